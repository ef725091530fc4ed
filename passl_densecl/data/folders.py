"""Finds images: below a folder, in class folders, in a list file or in a pack. Each gives an :class:`ImageSet`."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from passl_densecl.data.image_set import ImageSet, spread
from passl_densecl.data.images import COUNTED_AS, SixteenBit, counted, extension, looks_like_image
from passl_densecl.errors import InputError
from passl_densecl.text import listed, printable, quantity

if TYPE_CHECKING:
    from passl_densecl.data.lists import Reading

SPLIT_NAMES = frozenset(["train", "training", "val", "valid", "validation", "test", "testing", "unlabeled"])
_SYSTEM_FOLDERS = frozenset([b"@eaDir", b"#recycle", b"#snapshot", b"@Recycle", b"@Recently-Snapshot", b"@__thumb"])
_SYSTEM_FOLDERS |= frozenset([b"$RECYCLE.BIN", b"System Volume Information", b"__MACOSX", b"lost+found"])
_EIGHT_BIT = frozenset(["jpg", "webp", "gif", "bmp", "pbm", "avif"])
_EXAMPLES = 20  # endings of which one file is looked into
_LMDB_MAGIC = (0xBEEFC0DE).to_bytes(4, sys.byteorder)


def scan_images(
    root: str | os.PathLike[str],
    list_file: str | os.PathLike[str] | None = None,
    labeled: bool = False,
    classes: Sequence[str] | None = None,
    *,
    extensions: Literal["known", "any"] = "known",
    labels: Reading = "auto",
    sixteen_bit: SixteenBit = "high_byte",
) -> ImageSet:
    """Find the images under ``root``, in an order that depends on their names only.

    Unlabeled: every image of the folder and its sub-folders, whatever the layout. Labeled: ``root/CLASS/…``, classes
    numbered in the order of their names (bytes). Links to folders are followed, except back to a folder that they
    lie in. Left out, and counted in the description: other files, names that begin with a dot (``._photo.jpg`` of macOS
    is not a photo) and folders of the system's own (thumbnails, trash).

    With ``list_file``, exactly the files that it lists, in its order; see :mod:`~passl_densecl.data.lists`.

    ``root`` may also be a pack of images; it gives the same set as the folder that it was made from.

    Args:
        root: the folder, or the pack (an .lmdb file, or a folder with a data.mdb).
        classes: the class names to number by, for a validation set that must agree with a training set.
        extensions: "any": files without a known ending too, where their first bytes are those of an image.
        labels: how the labels of a list read; "auto": as whichever fits all of them.
        sixteen_bit: what the set's ``decode`` makes of 16 bits a value.

    Raises:
        InputError: no such folder or file, no image, or labels that do not fit.
    """
    root = os.fspath(root)
    if (pack := _find_pack(root)) is not None:
        from passl_densecl.data.packs import packed_images

        images = packed_images(root, pack, list_file, labeled, classes, labels)
    elif not os.path.isdir(root):
        from passl_densecl.data.invalid import no_such_folder

        raise InputError(no_such_folder(root))
    elif list_file is not None:
        from passl_densecl.data.lists import listed_images

        images = listed_images(root, list_file, labeled, classes, labels)
    else:
        images = images_of(root, _walk(root, extensions), labeled, classes)
    images = replace(images, sixteen_bit=sixteen_bit)
    kinds = ((i, COUNTED_AS.get(extension(images.relative_path(i)))) for i in spread(len(images), 256))
    if deep := [index for index, kind in kinds if kind not in _EIGHT_BIT]:
        from passl_densecl.data.sixteen_bit import sixteen_bit_note

        images = replace(images, _notes=(*images._notes, *sixteen_bit_note(images, deep[:8])))
    return images


@dataclass
class Scan:
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
        images = [kind for kind, path in sorted(self.examples.items())[:_EXAMPLES] if is_image(path)]
        if images:
            kinds = listed([f".{kind}" if kind else "no ending" for kind in images], quoted=False)
            notes.append(f"files with {kinds} look like images: extensions: any takes them")
        splits = [name for name in map(os.fsdecode, self.folders) if name.lower() in SPLIT_NAMES]
        if len(splits) > 1:
            notes.append(f"the folders {listed(splits)} count together: name one of them to leave the others out")
        return notes


def images_of(root: str, scan: Scan, labeled: bool, classes: Sequence[str] | None) -> ImageSet:
    """The images of a scan, labeled by their folders or not. Raises InputError."""
    if labeled:
        from passl_densecl.data.class_folders import class_images

        return class_images(root, scan, classes)
    if not scan.paths:
        from passl_densecl.data.invalid import nothing_found

        raise InputError(nothing_found(root, scan))
    return ImageSet.from_paths(root, scan.paths, notes=scan.notes())


def is_image(path: bytes) -> bool:
    """Whether the file begins like an image; False where it cannot be read."""
    if not os.path.isfile(path):  # a named pipe would wait for its other end
        return False
    try:
        with open(path, "rb", buffering=0) as file:
            return looks_like_image(file.read(32))
    except OSError:
        return False


def _walk(root: str, extensions: str) -> Scan:
    """Every image below ``root``, in an order that depends on names only. Raises InputError."""
    scan = Scan()
    top = os.fsencode(root)
    # A folder, and the folders on the way down to it by (device, inode): a link back to one of them would never end.
    pending: list[tuple[bytes, frozenset[tuple[int, int]]]] = [(b"", frozenset())]
    while pending:
        relative, above = pending.pop()
        folder = os.path.join(top, relative) if relative else top
        try:
            status = os.stat(folder)
            here = above | {(status.st_dev, status.st_ino)}
            if here == above:
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
            path = os.path.join(relative, entry.name)
            link = entry.is_symlink()  # a DirEntry raises where a link leads to itself, os.path does not
            if entry.name.startswith(b"."):
                scan.hidden += 1
            elif os.path.isdir(entry.path) if link else entry.is_dir():
                if entry.name in _SYSTEM_FOLDERS:
                    scan.system[entry.name] += 1
                else:
                    pending.append((path, here))
            elif (kind := extension(entry.name)) not in COUNTED_AS and not (
                extensions == "any" and is_image(entry.path)
            ):
                scan.others[kind] += 1
                scan.examples.setdefault(kind, entry.path)
            elif os.path.isfile(entry.path) if link else entry.is_file():
                scan.paths.append(path)
            else:
                scan.broken_links += 1
    scan.paths.sort()
    scan.folders.sort()
    return scan


def _find_pack(root: str) -> str | None:
    """The LMDB file that ``root`` names, itself or as a folder with a ``data.mdb``; None when it names none."""
    file = os.path.join(root, "data.mdb") if os.path.isdir(root) else root
    if not os.path.isfile(file):
        return None
    if file.endswith((".lmdb", "data.mdb")):
        return file
    with open(file, "rb") as opened:
        return file if opened.read(20)[16:] == _LMDB_MAGIC else None
