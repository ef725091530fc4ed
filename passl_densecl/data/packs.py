"""Packs: an image set in one LMDB file, which a disk or a network reads faster than a million small files.

Record i is the bytes of image file i, under the key of i as 8 bytes (big-endian). ``passl_densecl.paths`` holds the
paths, joined by NUL; ``passl_densecl.labels``, of a labeled set, int64 numbers; ``passl_densecl``, written last, a JSON
object: ``format`` (``FORMAT``), ``images``, ``classes`` (null when unlabeled), ``shorter_side`` (null: as they were). A
file without it is not finished.

An LMDB environment must not live through a fork, and one process must not open a file twice. So there is one for each
file and process, opened when the first record is read and closed before every fork: workers open their own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from types import ModuleType
from typing import Any

import numpy as np

from passl_densecl.data.class_folders import class_images
from passl_densecl.data.image_set import ImageSet
from passl_densecl.data.lists import Reading, listed_images, read_labels
from passl_densecl.data.lmdb_check import bytes_needed, check_lmdb
from passl_densecl.data.scan import Scan
from passl_densecl.disk import check_format, parse_json, sync_folder
from passl_densecl.errors import InputError
from passl_densecl.text import printable

FORMAT = 1  # of the records; a pack with a larger number is refused
_HEADER = b"passl_densecl"
_PATHS = b"passl_densecl.paths"
_LABELS = b"passl_densecl.labels"
_MAP_BYTES = 2**28  # room for the file at first; doubled whenever it is full
_COMMIT_BYTES = 2**25
_LONGEST_PATH = 2**16


@dataclass(frozen=True)
class Pack:
    """What a pack holds, without the images.

    Attributes:
        file: absolute path of the LMDB file.
        version: its size and time of change; a file that has others is another pack.
        paths: N paths as they were below the packed folder, bytes of the file system.
        labels: (N,) int64, indices into ``classes``; None when unlabeled.
        classes: class names.
        shorter_side: larger images were reduced to this many pixels; None when nothing was changed.
    """

    file: str
    version: tuple[int, int]
    paths: list[bytes]
    labels: np.ndarray | None
    classes: tuple[str, ...]
    shorter_side: int | None


def open_pack(file: str) -> Pack:
    """Read what a pack holds.

    Raises:
        InputError: it cannot be read, is cut short, is not finished or no pack of ours; or lmdb is not installed.
    """
    file = os.path.abspath(file)
    version = _version(file)
    _check_sound(file)
    with _lock:
        header, paths, labels = (_get(file, version, key) for key in (_HEADER, _PATHS, _LABELS))
        if header is None or paths is None:
            _close(file)
    if header is None or paths is None:
        raise InputError(
            f"{printable(file)} is an LMDB file, but no finished pack of images; make one with densecl data pack"
        )
    return _described(file, version, header, paths.split(b"\0"), labels)


def _described(file: str, version: tuple[int, int], header: bytes, paths: list[bytes], labels: bytes | None) -> Pack:
    """The pack that its own records describe. Raises InputError when they do not fit together."""
    try:
        about = parse_json(header)
        check_format(printable(file), about["format"], FORMAT)
        classes, side = about["classes"] or [], about["shorter_side"]
        numbers = None if labels is None else np.frombuffer(labels, "<i8").astype(np.int64)
    except InputError:
        raise
    except (ValueError, TypeError, KeyError):
        raise _damaged(file, "its header") from None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise _damaged(file, "its classes")
    if side is not None and not (type(side) is int and 0 < side < 2**31):
        raise _damaged(file, "its shorter_side")
    if about.get("images") != len(paths) or any(not path or len(path) > _LONGEST_PATH for path in paths):
        raise _damaged(file, "its paths")
    if numbers is not None:
        fits = len(numbers) == len(paths) and numbers.min(initial=0) >= 0 and numbers.max(initial=-1) < len(classes)
        if not fits:
            raise _damaged(file, "its labels")
    return Pack(file, version, paths, numbers, tuple(classes), side)


def _damaged(file: str, what: str) -> InputError:
    return InputError(f"{printable(file)} is damaged: {what} cannot be what it was made with; pack the images again")


class Records:
    """The images of a pack: ``records(index)`` gives the bytes of image ``index``, in any process.

    Args:
        numbers: (N,) int64, the records that make up the set; None for all of them in order.

    Raises (when called):
        InputError: the file was changed or cut short after it was opened first.
    """

    def __init__(self, pack: Pack, numbers: np.ndarray | None = None) -> None:
        self._file = pack.file
        self._version = pack.version
        self._numbers = numbers

    def __call__(self, index: int) -> bytes:
        number = index if self._numbers is None else int(self._numbers[index])
        with _lock:
            record = _get(self._file, self._version, _key(number))
        if record is None:
            raise InputError(f"{printable(self._file)} holds no record {number}; pack the images again")
        return record


def _key(number: int) -> bytes:
    return number.to_bytes(8, "big")


def packed_images(
    root: str,
    file: str,
    list_file: str | os.PathLike[str] | None,
    labeled: bool,
    classes: Sequence[str] | None,
    reading: Reading,
) -> ImageSet:
    """What the packed folder would give, its images read from the pack. Raises InputError."""
    pack = open_pack(file)
    numbers = None
    if list_file is not None:
        number_of = {path: number for number, path in enumerate(pack.paths)}
        images = listed_images(root, list_file, labeled, classes, reading, number_of.__contains__)
        numbers = np.fromiter((number_of[images.relative_path(i)] for i in range(len(images))), np.int64, len(images))
    elif labeled and pack.labels is not None:
        labels, names, notes = pack.labels, pack.classes, []
        if classes is not None and tuple(classes) != names:
            words = [names[label] for label in labels.tolist()]
            numbered = names == tuple(map(str, range(len(names))))  # as in a list of class numbers; else they are names
            labels, names, note = read_labels(root, words, range(len(words)), classes, reading if numbered else "names")
            notes = [note]
        images = ImageSet.from_paths(root, pack.paths, labels, names, notes=notes)
    else:
        outside = [path for path in pack.paths if path.startswith((b"/", b"../"))]
        if labeled and outside:
            raise InputError(
                f"{printable(root)} holds no labels, and no class folder for {printable(os.fsdecode(outside[0]))!r}; "
                "pack the list again with its labels and --labeled"
            )
        folders = sorted({path[: path.index(b"/")] for path in pack.paths if b"/" in path} - {b"", b"..", b"."})
        scan = Scan(pack.paths, folders)
        if labeled:
            images = class_images(root, scan, classes)
        else:
            images = ImageSet.from_paths(root, pack.paths, notes=scan.notes())
    side = pack.shorter_side
    notes = (*images._notes, f"a pack, {'as they were' if side is None else f'shorter side at most {side} px'}")
    return replace(images, _notes=notes, _record=Records(pack, numbers))


# --- reading -------------------------------------------------------------------------------------------------------

_environments: dict[str, tuple[tuple[int, int], Any]] = {}  # file → (version, lmdb.Environment) of this process
_lock = threading.Lock()  # a fork waits for readers in other threads


def _close_environments() -> None:
    _lock.acquire()
    for file in list(_environments):
        _close(file)


def _close(file: str) -> None:
    _environments.pop(file)[1].close()


os.register_at_fork(before=_close_environments, after_in_parent=_lock.release, after_in_child=_lock.release)


def _get(file: str, version: tuple[int, int], key: bytes) -> bytes | None:
    """A copy of one record; the caller holds the lock."""
    lmdb = _lmdb(file)
    try:
        opened, environment = _environments.get(file, (None, None))
        if environment is None or opened != version:
            if _version(file) != version:
                raise InputError(f"{printable(file)} was changed since it was opened; start again")
            if environment is not None:  # of a file that had this name before
                _close(file)
            _check_whole(file)
            environment = lmdb.open(file, subdir=False, readonly=True, lock=False, create=False, max_readers=1)
            _environments[file] = version, environment
        with environment.begin() as transaction:
            return transaction.get(key)
    except lmdb.Error as error:
        raise InputError(f"{printable(file)} cannot be read as LMDB ({error}); pack the images again") from error


def _version(file: str) -> tuple[int, int]:
    try:
        status = os.stat(file)
    except OSError as error:
        raise InputError(f"cannot read {printable(file)}: {error.strerror or error}") from error
    return status.st_size, status.st_mtime_ns


def _check_sound(file: str) -> None:
    """LMDB trusts what it maps: a damaged file would kill the process, or each worker in turn."""
    _check_whole(file)
    problem = check_lmdb(file)
    if problem is not None:
        raise InputError(f"{printable(file)} is {problem}; copy it again, or pack the images again")


def _check_whole(file: str) -> None:
    """LMDB maps the file, and a page beyond the end of one that was cut short would kill the process."""
    try:
        needed, size = bytes_needed(file), os.path.getsize(file)
    except OSError as error:
        raise InputError(f"cannot read {printable(file)}: {error.strerror or error}") from error
    if needed is None:
        raise InputError(f"{printable(file)} is no LMDB file ({size:,} bytes); make one with densecl data pack")
    if size < needed:
        raise InputError(
            f"{printable(file)} is cut short: {size:,} bytes, expected {needed:,}; copy it again, or pack the images "
            "again"
        )


def _lmdb(file: str) -> ModuleType:
    try:
        import lmdb
    except ImportError:
        raise InputError(f"{printable(file)}: packs of images need the package lmdb; pip install lmdb") from None
    return lmdb


# --- writing -------------------------------------------------------------------------------------------------------


def write_pack(
    output: str,
    records: Iterable[bytes],
    paths: Sequence[bytes],
    *,
    labels: np.ndarray | None = None,
    classes: Sequence[str] = (),
    shorter_side: int | None = None,
) -> int:
    """Write a pack and return its size in bytes. It has its name only when it is complete and on the disk.

    Args:
        output: the file to make; until it is complete it is called ``output.partial``, and removed if it fails.
        records: the bytes of the N image files, in order; taken one after another, memory stays flat.
        paths: N paths below the packed folder.
        labels: (N,) int64, indices into ``classes``.

    Raises:
        InputError: the file exists, cannot be written or is being written by another process; or lmdb is missing.
    """
    lmdb = _lmdb(output)
    partial = output + ".partial"
    _check_absent(output)
    claim, busy = None, False
    try:
        claim = os.open(partial, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy = True
            raise InputError(f"{printable(partial)} is being written by another process; wait for it") from None
        os.ftruncate(claim, 0)  # what is left of an attempt that was killed
        _fill(lmdb, partial, chain(_numbered(records, len(paths)), _about(paths, labels, classes, shorter_side)))
        if os.path.getsize(partial) < (needed := bytes_needed(partial) or 0):
            os.truncate(partial, needed)  # pages that LMDB counts without having written to them
        os.fsync(claim)
        _check_absent(output)
        os.rename(partial, output)
        sync_folder(os.path.dirname(os.path.abspath(output)))
    except BaseException as error:
        if claim is not None and not busy:
            with contextlib.suppress(FileNotFoundError):  # it was renamed already
                os.unlink(partial)
        if isinstance(error, (lmdb.Error, OSError)):
            raise InputError(f"cannot write {printable(output)}: {error}") from error
        raise
    finally:
        if claim is not None:
            os.close(claim)
    return os.path.getsize(output)


def _check_absent(output: str) -> None:
    if os.path.lexists(output):
        raise InputError(f"{printable(output)} exists already; choose another name, or remove it")


def _numbered(records: Iterable[bytes], count: int) -> Iterator[tuple[bytes, bytes]]:
    number = -1
    for number, record in enumerate(records):
        yield _key(number), record
    assert number + 1 == count, f"{number + 1} records for {count} paths"


def _about(
    paths: Sequence[bytes], labels: np.ndarray | None, classes: Sequence[str], shorter_side: int | None
) -> Iterator[tuple[bytes, bytes]]:
    header = {
        "format": FORMAT,
        "images": len(paths),
        "classes": None if labels is None else list(classes),
        "shorter_side": shorter_side,
    }
    yield _HEADER, json.dumps(header).encode()
    if labels is not None:
        yield _LABELS, np.asarray(labels).astype("<i8").tobytes()
    yield _PATHS, b"\0".join(paths)


def _fill(lmdb: ModuleType, file: str, items: Iterator[tuple[bytes, bytes]]) -> None:
    """Append the items (in the order of their keys) to a new LMDB file."""
    room = _MAP_BYTES
    environment = lmdb.open(file, subdir=False, map_size=room, lock=False, sync=False, meminit=False)
    try:
        for batch in _batches(items):
            while True:
                try:
                    with environment.begin(write=True) as transaction:
                        for key, value in batch:
                            transaction.put(key, value, append=True)
                    break
                except lmdb.MapFullError:  # the transaction is undone
                    room *= 2
                    environment.set_mapsize(room)
        environment.sync(True)
    finally:
        environment.close()


def _batches(items: Iterator[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    batch, size = [], 0
    for item in items:
        batch.append(item)
        size += len(item[1])
        if size >= _COMMIT_BYTES or len(batch) >= 4096:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
