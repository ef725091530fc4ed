"""Files: opened with words a user understands, read within bounds, written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from passl_densecl.errors import InputError, NewerFormat
from passl_densecl.text import closest


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The open file and its size in bytes. Raises InputError when it is missing, a folder or cannot be read."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected a file of weights such as model.pdparams in it")
    if not path.exists():
        raise InputError(f"{path} does not exist{did_you_mean(path)}")
    try:
        with open(path, "rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write that appears as ``path`` only when it is complete and on the disk, and not at all after an error.

    It replaces a former file in the same instant; when anything fails, the former one stays.

    Raises:
        InputError: the folder is missing or the file cannot be written there.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist{did_you_mean(path.parent)}; create it first")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file in it")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


class HashedFile(io.BufferedWriter):
    """A new file that counts and hashes what is written, so that nobody has to read it for that; on the disk when its
    `with` ends. Raises OSError as the disk gives it; what is half written then stays for the caller to remove.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(open(path, "xb", buffering=0))  # noqa: SIM115
        self._digest = hashlib.sha256()
        self.size = 0  # bytes

    def write(self, data: Any, /) -> int:
        self._digest.update(data)
        count = super().write(data)
        self.size += count
        return count

    @property
    def sha256(self) -> str:
        """Of what was written so far, in hexadecimal."""
        return self._digest.hexdigest()

    def __exit__(self, kind: Any, *error: Any) -> None:
        try:
            if kind is None:
                self.flush()
                os.fsync(self.fileno())
        finally:
            super().__exit__(kind, *error)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with opened(path) as (file, _):
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says. Raises ValueError for whatever is wrong with it, nesting without end included."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def check_format(what: str, found: object, known: int) -> None:
    """Raises InputError when a file of this project has a newer format than ``known``, or no number of a format.

    Formats count from 1. An older one is read; a newer one may mean anything.
    """
    if type(found) is not int or found < 1:
        raise InputError(f"{what} is damaged: its format is {found!r:.40}, expected a number from 1 to {known}")
    if found > known:
        raise NewerFormat(
            f"{what} has format {found:,}, this passl_densecl reads formats up to {known}: a newer version wrote it; "
            "upgrade passl_densecl"
        )


def did_you_mean(path: Path) -> str:
    """'; did you mean …?' with a neighbor of the missing ``path`` that is spelled alike, or nothing."""
    folder = path.parent
    if not folder.is_dir():
        return f" (nor does its folder {folder})" if folder != folder.parent else ""
    close = closest(path.name, [entry.name for entry in folder.iterdir()])
    return f"; did you mean '{folder / close}'?" if close else ""


def make_writable(folder: Path, option: str) -> None:
    """Make a folder, with its parents, and write something in it for trial.

    Raises:
        InputError: it cannot be made or nothing can be written there; names the `option` that chose it.
    """
    trial = folder / f".trial.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with open(trial, "wb") as file:
                file.write(bytes(4096))  # the permission bits tell root nothing, and no bit tells that the disk is full
                file.flush()
                os.fsync(file.fileno())
        finally:
            trial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{option}: {folder} cannot be written: {error.strerror or error}; choose another place, or mend this one"
        ) from error


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make the names in a folder themselves durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
