"""Finds images: below a folder, in class folders, in a list file or in a pack. Each gives an :class:`ImageSet`."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from passl_densecl.data.image_set import ImageSet, spread
from passl_densecl.data.images import COUNTED_AS, EXTENSIONS, counted, extension
from passl_densecl.errors import InputError
from passl_densecl.text import closest, listed, plural, printable, quantity, suggestion

__all__ = ["scan_images"]

_LISTED_FILES_CHECKED = 10_000
_SPLIT_NAMES = frozenset(["train", "training", "val", "valid", "validation", "test", "testing", "unlabeled"])
_ARCHIVES = frozenset(["zip", "tar", "gz", "tgz", "xz", "rar", "7z"])
_LMDB_MAGIC = 0xBEEFC0DE


def scan_images(
    root: str | os.PathLike[str],
    list_file: str | os.PathLike[str] | None = None,
    labeled: bool = False,
    classes: Sequence[str] | None = None,
    *,
    minimum: int = 1,
) -> ImageSet:
    """Find the images under ``root``, in an order that depends on their names only.

    Unlabeled: every image of the folder and its sub-folders, whatever the layout. Labeled: ``root/CLASS/…``, classes
    numbered in the order of their names (bytes). Links to folders are followed, except back to a folder that they
    lie in; names that begin with a dot are left out (``._photo.jpg`` of macOS is not a photo).

    With ``list_file``, exactly the files that it lists, in its order: one path relative to ``root`` per line, and when
    ``labeled`` a blank and the label after it (a class number, or a class name without blanks). Blank lines and
    lines that begin with '#' are ignored.

    ``root`` may also be a pack of images; it gives the same set as the folder that it was made from.

    Args:
        root: the folder, or the pack (an .lmdb file, or a folder with a data.mdb).
        classes: the class names to number by, for a validation set that must agree with a training set.
        minimum: fewer images than this are an error.

    Raises:
        InputError: no such folder or file, no image, too few, or labels that do not fit.
    """
    root = os.fspath(root)
    packed = _find_pack(root)
    if packed is not None:
        images = _from_pack(root, packed, list_file, labeled, classes)
    elif not os.path.isdir(root):
        raise InputError(_no_such_folder(root))
    elif list_file is not None:
        images = _from_list(root, list_file, labeled, classes)
    elif labeled:
        images = _from_class_folders(root, _walk(root), classes)
    else:
        images = _from_folder(root, _walk(root))
    if len(images) < minimum:
        raise InputError(
            f"{quantity(len(images), 'image')} {images.source}, expected at least {minimum:,}: add images, or set a "
            "smaller batch_size"
        )
    return images


# --- folders -------------------------------------------------------------------------------------------------------


@dataclass
class _Scan:
    """What lies below a folder."""

    paths: list[bytes] = field(default_factory=list)  # of images, relative to the folder, sorted
    folders: list[bytes] = field(default_factory=list)  # directly in the folder, sorted
    others: Counter[str] = field(default_factory=Counter)  # extension → number of files that are not images
    hidden: int = 0
    broken_links: int = 0  # and sockets and the like, named like images

    def notes(self) -> list[str]:
        """What the log should add to the number of images."""
        notes = []
        if self.broken_links:
            notes.append(f"{quantity(self.broken_links, 'link')} to missing files left out")
        splits = [name for name in map(os.fsdecode, self.folders) if name.lower() in _SPLIT_NAMES]
        if len(splits) > 1:
            notes.append(f"the folders {listed(splits)} count together: name one of them to leave the others out")
        return notes


def _walk(root: str) -> _Scan:
    """Every image below ``root``, in an order that depends on names only.

    Raises:
        InputError: a folder cannot be read.
    """
    scan = _Scan()
    top = os.fsencode(root)
    # A folder, and the folders on the way down to it by (device, inode): a link back to one of them would never end.
    pending: list[tuple[bytes, frozenset[tuple[int, int]]]] = [(b"", frozenset())]
    while pending:
        relative, above = pending.pop()
        folder = os.path.join(top, relative) if relative else top
        try:
            status = os.stat(folder)
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                continue
            with os.scandir(folder) as found:
                entries = list(found)
        except OSError as error:
            raise InputError(
                f"cannot read the folder {printable(os.fsdecode(folder))}: {error.strerror or error}; "
                "change its permissions, or move it elsewhere"
            ) from error
        if relative and b"/" not in relative:
            scan.folders.append(relative)
        for entry in entries:
            path = relative + b"/" + entry.name if relative else entry.name
            link = entry.is_symlink()  # a DirEntry raises where a link leads to itself, os.path does not
            if entry.name.startswith(b"."):
                scan.hidden += 1
            elif os.path.isdir(entry.path) if link else entry.is_dir():
                pending.append((path, above | {identity}))
            elif (kind := extension(entry.name)) not in COUNTED_AS:
                scan.others[kind] += 1
            elif os.path.isfile(entry.path) if link else entry.is_file():
                scan.paths.append(path)
            else:
                scan.broken_links += 1
    scan.paths.sort()
    scan.folders.sort()
    return scan


def _from_folder(root: str, scan: _Scan) -> ImageSet:
    if not scan.paths:
        raise InputError(_nothing_found(root, scan))
    return ImageSet.from_paths(root, scan.paths, notes=scan.notes())


def _from_class_folders(root: str, scan: _Scan, classes: Sequence[str] | None) -> ImageSet:
    found = {os.fsdecode(folder): number for number, folder in enumerate(scan.folders)}
    splits = [name for name in found if name.lower() in _SPLIT_NAMES]
    if splits and len(splits) == len(found):
        raise InputError(
            f"{printable(root)} holds the {plural(len(splits), 'folder')} {listed(splits)} where one folder for "
            f"each class was expected; name one of them: {printable(os.path.join(root, splits[0]))}"
        )
    if not scan.paths:
        raise InputError(_nothing_found(root, scan))
    loose = [path for path in scan.paths if b"/" not in path]
    if loose:
        example = printable(os.fsdecode(loose[0]))
        raise InputError(
            f"{quantity(len(loose), 'image')} ({example}{', …' if len(loose) > 1 else ''}) directly in "
            f"{printable(root)}, where only folders named after their class were expected "
            "(root/CLASS/image.jpg); move them into such folders, or write the labels into a list_file"
        )
    folder_of = [os.fsdecode(path[: path.index(b"/")]) for path in scan.paths]
    if classes is None:
        empty = sorted(set(found) - set(folder_of))
        if empty:
            raise InputError(
                f"no image in the class {plural(len(empty), 'folder')} {listed(empty)} of {printable(root)}; "
                "add images or remove the folder"
            )
        classes = list(found)
    number_of = {name: number for number, name in enumerate(classes)}
    unknown = [name for name in found if name not in number_of]
    if unknown:
        raise InputError(
            f"{len(unknown):,} of the {quantity(len(found), 'folder')} in {printable(root)} "
            f"{'is' if len(unknown) == 1 else 'are'} not a class of the training set: {listed(unknown)}; expected "
            f"{quantity(len(number_of), 'name')} such as {listed(number_of)}"
            f"{suggestion(unknown[0], number_of)}"
        )
    labels = np.fromiter((number_of[name] for name in folder_of), np.int64, len(folder_of))
    return ImageSet.from_paths(root, scan.paths, labels, classes, notes=scan.notes())


def _no_such_folder(root: str) -> str:
    if os.path.exists(root):
        return (
            f"{printable(root)} is a file, expected the folder that holds the images; a text file that lists images "
            "goes into list_file, with the folder that its paths start from as root"
        )
    if not root:
        return "the folder of images is empty text; name the folder"
    present, missing = os.path.split(os.path.abspath(root))
    while not os.path.isdir(present):
        present, missing = os.path.split(present)
    try:
        siblings = [entry.name for entry in os.scandir(present) if entry.is_dir() or entry.name.endswith(".lmdb")]
    except OSError:
        siblings = []
    close = closest(missing, siblings)
    hint = "give the folder that holds the images"
    if close:
        hint = f"did you mean {printable(_with_component(root, missing, close))!r}?"
    return f"no folder {printable(root)!r} ({printable(present)} has no {printable(missing)!r}); {hint}"


def _with_component(path: str, old: str, new: str) -> str:
    """``path`` with its component ``old`` (the last one of that name) replaced."""
    pieces = path.split(os.sep)
    last = len(pieces) - 1 - pieces[::-1].index(old) if old in pieces else None
    return new if last is None else os.sep.join([*pieces[:last], new, *pieces[last + 1 :]])


def _nothing_found(root: str, scan: _Scan) -> str:
    found = []
    if scan.others:
        found.append(f"{counted(scan.others)} {plural(scan.others.total(), 'file')}")
    if scan.hidden:
        found.append(f"{quantity(scan.hidden, 'hidden name')} (left out)")
    if scan.broken_links:
        found.append(f"{quantity(scan.broken_links, 'link')} to missing files")
    if scan.folders:
        names = [os.fsdecode(name) for name in scan.folders]
        found.append(f"the {plural(len(names), 'folder')} {listed(names)}")
    packed = not _ARCHIVES.isdisjoint(scan.others)
    advice = "unpack the archive first" if packed else "give a folder that holds " + ", ".join(sorted(EXTENSIONS))
    return f"no images under {printable(root)!r}; found {' and '.join(found) or 'nothing at all'}; {advice}"


# --- list files ----------------------------------------------------------------------------------------------------


def _from_list(
    root: str,
    list_file: str | os.PathLike[str],
    labeled: bool,
    classes: Sequence[str] | None,
    exists: Callable[[bytes], bool] | None = None,
) -> ImageSet:
    """``exists`` tells whether a listed path exists, for a root that is a pack."""
    list_file = os.fspath(list_file)
    try:
        with open(list_file, "rb") as file:
            lines = file.read().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise InputError(
            f"cannot read the list file {printable(list_file)}: {error.strerror or error}; give a text file with one "
            "image path per line"
        ) from error
    paths: list[bytes] = []
    words: list[str] = []
    numbers: list[int] = []  # of the lines, from 1
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith(b"#"):
            continue
        if labeled:
            pieces = text.rsplit(None, 1)
            if len(pieces) != 2:
                raise InputError(
                    f"{printable(list_file)}:{number}: expected 'path label', got {printable(os.fsdecode(text))!r}; "
                    "add a class number or class name after the path"
                )
            text = pieces[0]
            words.append(os.fsdecode(pieces[1]))
        paths.append(text)
        numbers.append(number)
    if not paths:
        raise InputError(
            f"{printable(list_file)} lists no image; expected one path per line, relative to {printable(root)}"
        )
    _check_listed(root, list_file, paths, numbers, exists)
    source = f"listed in {list_file}"
    if not labeled:
        return ImageSet.from_paths(root, paths, source=source)
    labels, names = _read_labels(list_file, words, numbers, classes)
    return ImageSet.from_paths(root, paths, labels, names, source=source)


def _check_listed(
    root: str, list_file: str, paths: Sequence[bytes], numbers: Sequence[int], exists: Callable[[bytes], bool] | None
) -> None:
    """Every path of a pack; of a folder an even sample, because a million files on a network drive take minutes."""
    top = os.fsencode(root)
    present = exists or (lambda path: os.path.isfile(os.path.join(top, path)))
    for index in spread(len(paths), len(paths) if exists else _LISTED_FILES_CHECKED):
        if present(paths[index]):
            continue
        name = printable(os.fsdecode(paths[index]))
        hint = f"paths are relative to {printable(root)}"
        pieces = paths[index].rsplit(None, 1)
        if len(pieces) == 2 and present(pieces[0]):
            hint = f"is {printable(os.fsdecode(pieces[1]))!r} a label? Labels are not expected here; leave them out"
        raise InputError(f"{printable(list_file)}:{numbers[index]}: no file {name!r}; {hint}")


def _read_labels(
    list_file: str, words: Sequence[str], numbers: Sequence[int], classes: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(N,) int64 and the class names. Without ``classes``, labels are all numbers or else all names."""
    if classes is None:
        if all(_is_number(word) for word in words):
            largest = max(range(len(words)), key=lambda index: int(words[index]))
            if int(words[largest]) > 10 * len(words) + 1000:
                raise InputError(
                    f"{printable(list_file)}:{numbers[largest]}: label {words[largest]} among {len(words):,} images; "
                    "labels count from 0 without large gaps"
                )
            classes = [str(number) for number in range(int(words[largest]) + 1)]
        else:
            classes = sorted(set(words))
    number_of = {name: number for number, name in enumerate(classes)}
    labels = np.empty(len(words), np.int64)
    for index, word in enumerate(words):
        label = number_of.get(word)
        if label is None and _is_number(word) and int(word) < len(classes):
            label = int(word)
        if label is None:
            raise InputError(
                f"{printable(list_file)}:{numbers[index]}: unknown label {printable(word)!r}; expected a number from "
                f"0 to {len(classes) - 1} or one of {listed(classes)}{suggestion(word, number_of)}"
            )
        labels[index] = label
    return labels, tuple(classes)


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit()


# --- packs ---------------------------------------------------------------------------------------------------------


def _find_pack(root: str) -> str | None:
    """The LMDB file that ``root`` names, itself or as a folder with a ``data.mdb``; None when it names none."""
    if os.path.isdir(root):
        inside = os.path.join(root, "data.mdb")
        return inside if os.path.isfile(inside) else None
    if not os.path.isfile(root):
        return None
    if root.endswith(".lmdb"):
        return root
    with open(root, "rb") as file:
        return root if int.from_bytes(file.read(20)[16:], sys.byteorder) == _LMDB_MAGIC else None


def _from_pack(
    root: str, file: str, list_file: str | os.PathLike[str] | None, labeled: bool, classes: Sequence[str] | None
) -> ImageSet:
    """What the packed folder would give, its images read from the pack."""
    from passl_densecl.data.packs import Records, open_pack  # only here: a folder of files needs none of it

    pack = open_pack(file)
    numbers = None
    if list_file is not None:
        number_of = {path: number for number, path in enumerate(pack.paths)}
        images = _from_list(root, list_file, labeled, classes, number_of.__contains__)
        numbers = np.fromiter((number_of[images.relative_path(i)] for i in range(len(images))), np.int64, len(images))
    elif labeled and pack.labels is not None:
        labels, names = pack.labels, pack.classes
        if classes is not None:
            words = [pack.classes[label] for label in pack.labels.tolist()]
            labels, names = _read_labels(root, words, range(len(words)), classes)
        images = ImageSet.from_paths(root, pack.paths, labels, names)
    else:
        outside = [path for path in pack.paths if path.startswith((b"/", b"../"))]
        if labeled and outside:
            raise InputError(
                f"{printable(root)} holds no labels, and no class folder for {printable(os.fsdecode(outside[0]))!r}; "
                "pack the list again with its labels and --labeled"
            )
        folders = sorted({path[: path.index(b"/")] for path in pack.paths if b"/" in path} - {b"", b"..", b"."})
        scan = _Scan(pack.paths, folders)
        images = _from_class_folders(root, scan, classes) if labeled else _from_folder(root, scan)
    side = pack.shorter_side
    notes = (*images._notes, f"a pack, {'as they were' if side is None else f'shorter side at most {side} px'}")
    return replace(images, _notes=notes, _record=Records(pack, numbers))
