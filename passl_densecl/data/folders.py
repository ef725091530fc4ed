"""Finds images: below a folder, in class folders, in a list file or in a pack. Each gives an :class:`ImageSet`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from passl_densecl.data.image_set import ImageSet, spread
from passl_densecl.data.images import COUNTED_AS, SixteenBit, extension
from passl_densecl.data.scan import walk
from passl_densecl.errors import InputError

if TYPE_CHECKING:
    from passl_densecl.data.lists import Reading

_EIGHT_BIT = frozenset(["jpg", "webp", "gif", "bmp", "pbm", "avif"])
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
    elif labeled:
        from passl_densecl.data.class_folders import class_images

        images = class_images(root, walk(root, extensions), classes)
    else:
        scan = walk(root, extensions)
        if not scan.paths:
            from passl_densecl.data.invalid import nothing_found

            raise InputError(nothing_found(root, scan))
        images = ImageSet.from_paths(root, scan.paths, notes=scan.notes())
    images = replace(images, sixteen_bit=sixteen_bit)
    kinds = ((i, COUNTED_AS.get(extension(images.relative_path(i)))) for i in spread(len(images), 256))
    if deep := [index for index, kind in kinds if kind not in _EIGHT_BIT]:
        from passl_densecl.data.sixteen_bit import sixteen_bit_note

        images = replace(images, _notes=(*images._notes, *sixteen_bit_note(images, deep[:8])))
    return images


def _find_pack(root: str) -> str | None:
    """The LMDB file that ``root`` names, itself or as a folder with a ``data.mdb``; None when it names none."""
    file = os.path.join(root, "data.mdb") if os.path.isdir(root) else root
    if not os.path.isfile(file):
        return None
    if file.endswith((".lmdb", "data.mdb")):
        return file
    with open(file, "rb") as opened:
        return file if opened.read(20)[16:] == _LMDB_MAGIC else None
