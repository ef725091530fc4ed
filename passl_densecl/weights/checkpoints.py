"""Checkpoint folders: which there are, how old each is, and whether its files are still what was written.

A checkpoint holds `model.pdparams`, `optimizer.pdopt`, `state.json` and `checksums.json` with the sizes and the SHA-256
of the other three. Checkpoints of older versions have no checksums.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from passl_densecl.disk import parse_json
from passl_densecl.errors import InputError

MODEL, OPTIMIZER, STATE, CHECKSUMS = "model.pdparams", "optimizer.pdopt", "state.json", "checksums.json"
FILES = (MODEL, OPTIMIZER, STATE)

# What follows a name. `.replaced` is a whole checkpoint that is used until a new one of its name has taken its place;
# the others are only kept for their owner to look at.
REPLACED, DAMAGED, SUPERSEDED = ".replaced", ".damaged", ".superseded"

_OUR_NAME = re.compile(r"(epoch|step)_\d+$")
_NO_CHECKPOINT = re.compile(r"^\.|tmp|partial|\.damaged|\.superseded")


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whole or not: what has such a name, or one of its files. Without temporary ones.

    Raises InputError when the folder cannot be read.
    """
    try:
        found = [
            entry
            for entry in (folder.iterdir() if folder.is_dir() else ())
            if entry.is_dir()
            and not _NO_CHECKPOINT.search(entry.name)
            and (_OUR_NAME.match(entry.name) or any((entry / name).exists() for name in FILES))
        ]
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror or error}") from error
    names = {entry.name for entry in found}
    return sorted(path for path in found if path.name.removesuffix(REPLACED) not in names - {path.name})


def recorded_step(checkpoint: Path) -> int | None:
    """The optimizer steps that a checkpoint's `state.json` says, or None."""
    try:
        step = parse_json((checkpoint / STATE).read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if type(step) is int else None


def by_age(checkpoints: Iterable[Path]) -> list[Path]:
    """Oldest first: by `step` in `state.json`, or by the largest number in the name where one does not say its step."""
    steps = {path: recorded_step(path) for path in checkpoints}
    if None in steps.values():
        steps = {path: int((re.findall(r"\d+", path.name) or ["-1"])[-1]) for path in steps}
    return sorted(steps, key=lambda path: (steps[path], path.name))


def checksums(checkpoint: Path) -> dict[str, tuple[int, str]] | None:
    """File name → (bytes, SHA-256) as written; None for a checkpoint without. Raises InputError when damaged."""
    path = checkpoint / CHECKSUMS
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        found = {name: (content[name]["bytes"], content[name]["sha256"]) for name in FILES}
        if not all(type(size) is int and re.fullmatch("[0-9a-f]{64}", digest) for size, digest in found.values()):
            raise ValueError("no size and SHA-256")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error!s:.100}"
        raise InputError(f"{path} is damaged ({reason}): nothing can be said about the files beside it") from error
    return found


def checksum_text(written: dict[str, tuple[int, str]]) -> bytes:
    """What :func:`checksums` reads."""
    content: dict[str, Any] = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in written.items()}
    return json.dumps(content, indent=1).encode()


def written_as(file: Path) -> tuple[int, str] | None:
    """Bytes and SHA-256 of a checkpoint's file as written; None where nothing says them."""
    known = checksums(file.parent) if file.name in FILES else None
    return known[file.name] if known else None


def check_size(file: Path) -> None:
    """Raises InputError when a file of a checkpoint is missing or has not the size that was written."""
    try:
        size = file.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{file} is missing") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error
    expected = written_as(file)
    if expected and size != expected[0]:
        cut = "; it was cut off" if size < expected[0] else ""
        raise InputError(f"{file} is damaged: it has {size:,} bytes, {expected[0]:,} were written{cut}")
