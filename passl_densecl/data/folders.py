"""Finds images: below a folder, in class folders, in a list file or in a pack. Each gives an :class:`ImageSet`."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from passl_densecl.data.image_set import ImageSet, sixteen_bit_note
from passl_densecl.data.images import COUNTED_AS, SixteenBit, counted, extension, looks_like_image
from passl_densecl.errors import InputError
from passl_densecl.text import listed, plural, printable, quantity, suggestion

if TYPE_CHECKING:
    from passl_densecl.data.lists import Reading

_SPLIT_NAMES = frozenset(["train", "training", "val", "valid", "validation", "test", "testing", "unlabeled"])
_SYSTEM_FOLDERS = frozenset([b"@eaDir", b"#recycle", b"#snapshot", b"@Recycle", b"@Recently-Snapshot", b"@__thumb"])
_SYSTEM_FOLDERS |= frozenset([b"$RECYCLE.BIN", b"System Volume Information", b"__MACOSX", b"lost+found"])
_EXAMPLES = 20  # endings of which one file is looked into
_ARCHIVES = frozenset(["zip", "tar", "gz", "tgz", "xz", "rar", "7z"])
_LMDB_MAGIC = 0xBEEFC0DE


def scan_images(
    root: str | os.PathLike[str],
    list_file: str | os.PathLike[str] | None = None,
    labeled: bool = False,
    classes: Sequence[str] | None = None,
    *,
    minimum: int = 1,
    extensions: Literal["known", "any"] = "known",
    labels: Reading = "auto",
    sixteen_bit: SixteenBit = "high_byte",
) -> ImageSet:
    """Find the images under ``root``, in an order that depends on their names only.

    Unlabeled: every image of the folder and its sub-folders, whatever the layout. Labeled: ``root/CLASS/…``, classes
    numbered in the order of their names (bytes). Links to folders are followed, except back to a folder that they
    lie in. Left out, and counted in the description: other files, names that begin with a dot (``._photo.jpg`` of macOS
    is not a photo) and folders of the system's own (thumbnails, trash).

    With ``list_file``, exactly the files that it lists, in its order: one path relative to ``root`` per line, and when
    ``labeled`` a blank and the label after it (a class number, or a class name without blanks). Blank lines and
    lines that begin with '#' are ignored. See :mod:`~passl_densecl.data.lists` for the other forms that are read.

    ``root`` may also be a pack of images; it gives the same set as the folder that it was made from.

    Args:
        root: the folder, or the pack (an .lmdb file, or a folder with a data.mdb).
        classes: the class names to number by, for a validation set that must agree with a training set.
        minimum: fewer images than this are an error.
        extensions: "any": files without a known ending too, where their first bytes are those of an image.
        labels: how the labels of a list read; "auto": as whichever fits all of them.
        sixteen_bit: what the set's ``decode`` makes of 16 bits a value.

    Raises:
        InputError: no such folder or file, no image, too few, or labels that do not fit.
    """
    root = os.fspath(root)
    packed = _find_pack(root)
    if packed is not None:
        images = _from_pack(root, packed, list_file, labeled, classes, labels)
    elif not os.path.isdir(root):
        from passl_densecl.data.invalid import no_such_folder

        raise InputError(no_such_folder(root))
    elif list_file is not None:
        images = _from_list(root, list_file, labeled, classes, labels)
    elif labeled:
        images = _from_class_folders(root, _walk(root, extensions), classes)
    else:
        images = _from_folder(root, _walk(root, extensions))
    images = replace(images, sixteen_bit=sixteen_bit)
    if note := sixteen_bit_note(images):
        images = replace(images, _notes=(*images._notes, note))
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
    examples: dict[str, bytes] = field(default_factory=dict)  # extension → the path of one of them
    hidden: int = 0
    system: Counter[bytes] = field(default_factory=Counter)  # name → number of folders that are the system's own
    broken_links: int = 0  # and sockets and the like, named like images

    def notes(self) -> list[str]:
        """What the log should add to the number of images."""
        notes = []
        if self.broken_links:
            notes.append(f"{quantity(self.broken_links, 'link')} to missing files left out")
        left_out = [counted(self.others)] if self.others else []
        left_out += [quantity(self.hidden, "hidden name")] if self.hidden else []
        left_out += [f"{quantity(n, 'folder')} {os.fsdecode(name)}" for name, n in sorted(self.system.items())]
        if left_out:
            notes.append(f"left out: {', '.join(left_out)}")
        images = [kind for kind, path in sorted(self.examples.items())[:_EXAMPLES] if _is_image(path)]
        if images:
            kinds = listed([f".{kind}" if kind else "no ending" for kind in images], quoted=False)
            notes.append(f"files with {kinds} look like images: extensions: any takes them")
        splits = [name for name in map(os.fsdecode, self.folders) if name.lower() in _SPLIT_NAMES]
        if len(splits) > 1:
            notes.append(f"the folders {listed(splits)} count together: name one of them to leave the others out")
        return notes


def _is_image(path: bytes) -> bool:
    if not os.path.isfile(path):  # a named pipe would wait for its other end
        return False
    try:
        with open(path, "rb", buffering=0) as file:
            return looks_like_image(file.read(32))
    except OSError:
        return False


def _walk(root: str, extensions: str) -> _Scan:
    """Every image below ``root``, in an order that depends on names only.

    Raises:
        InputError: a folder cannot be read.
    """
    scan = _Scan()
    top, any_kind = os.fsencode(root), extensions == "any"
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
                if entry.name in _SYSTEM_FOLDERS:
                    scan.system[entry.name] += 1
                else:
                    pending.append((path, above | {identity}))
            elif (kind := extension(entry.name)) not in COUNTED_AS and not (any_kind and _is_image(entry.path)):
                scan.others[kind] += 1
                scan.examples.setdefault(kind, entry.path)
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
    advice = "give a folder that holds " + ", ".join(sorted(set(COUNTED_AS.values())))
    if any(map(_is_image, scan.examples.values())):
        advice = "some of them are images by their first bytes: set extensions: any"
    elif not {"heic", "heif"}.isdisjoint(scan.others):
        advice = "OpenCV does not decode HEIC: convert it to JPEG"
    elif packed:
        advice = "unpack the archive first"
    return f"no images under {printable(root)!r}; found {' and '.join(found) or 'nothing at all'}; {advice}"


# --- list files ----------------------------------------------------------------------------------------------------


def _from_list(
    root: str,
    list_file: str | os.PathLike[str],
    labeled: bool,
    classes: Sequence[str] | None,
    labels: Reading,
    exists: Callable[[bytes], bool] | None = None,
) -> ImageSet:
    """``exists`` tells whether a listed path exists, for a root that is a pack."""
    from passl_densecl.data.lists import read_labels, read_list  # only here and for packs: a folder needs none of it

    list_file = os.fspath(list_file)
    found = read_list(root, list_file, labeled, exists)
    source = f"listed in {list_file}"
    if not labeled:
        return ImageSet.from_paths(root, found.paths, source=source, notes=found.notes)
    numbers, names, note = read_labels(list_file, found.labels, found.lines, classes, labels)
    return ImageSet.from_paths(root, found.paths, numbers, names, source=source, notes=[*found.notes, note])


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
    root: str,
    file: str,
    list_file: str | os.PathLike[str] | None,
    labeled: bool,
    classes: Sequence[str] | None,
    reading: Reading,
) -> ImageSet:
    """What the packed folder would give, its images read from the pack."""
    from passl_densecl.data.lists import read_labels
    from passl_densecl.data.packs import Records, open_pack

    pack = open_pack(file)
    numbers = None
    if list_file is not None:
        number_of = {path: number for number, path in enumerate(pack.paths)}
        images = _from_list(root, list_file, labeled, classes, reading, number_of.__contains__)
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
        scan = _Scan(pack.paths, folders)
        images = _from_class_folders(root, scan, classes) if labeled else _from_folder(root, scan)
    side = pack.shorter_side
    notes = (*images._notes, f"a pack, {'as they were' if side is None else f'shorter side at most {side} px'}")
    return replace(images, _notes=notes, _record=Records(pack, numbers))
