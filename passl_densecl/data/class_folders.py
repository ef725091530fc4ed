"""Labels from folders: ``root/CLASS/…``, classes numbered in the order of their names (bytes)."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from passl_densecl.data.image_set import ImageSet
from passl_densecl.data.invalid import nothing_found
from passl_densecl.data.scan import SPLIT_NAMES, Scan
from passl_densecl.errors import InputError
from passl_densecl.text import listed, plural, printable, quantity, suggestion


def class_images(root: str, scan: Scan, classes: Sequence[str] | None) -> ImageSet:
    found = {os.fsdecode(folder): number for number, folder in enumerate(scan.folders)}
    splits = [name for name in found if name.lower() in SPLIT_NAMES]
    if splits and len(splits) == len(found):
        raise InputError(
            f"{printable(root)} holds the {plural(len(splits), 'folder')} {listed(splits)} where one folder for "
            f"each class was expected; name one of them: {printable(os.path.join(root, splits[0]))}"
        )
    if not scan.paths:
        raise InputError(nothing_found(root, scan))
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
