"""A small, class-balanced and reproducible part of a labeled set, for semi-supervised evaluation."""

from __future__ import annotations

import hashlib

import numpy as np

from passl_densecl.data.datasets import ImageSet
from passl_densecl.errors import InputError


def balanced_subset(images: ImageSet, share: float, seed: int = 0) -> np.ndarray:
    """Ascending indices of about `share` of the images, equally many per class (all images of smaller classes).

    Images are taken in the order of a hash of seed and path below the root. The choice depends on neither the machine
    nor the other images, and for one seed a smaller share is a subset of a larger one.

    Raises:
        InputError: the share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise InputError(f"share {share:g}: expected more than 0 and at most 1 (0.01 for 1 %)")
    if images.labels is None:
        raise ValueError("the images have no labels")
    each = max(1, round(share * len(images) / len(images.classes)))
    keys = [hashlib.sha256(b"%d:%s" % (seed, images.relative_path(index))).digest() for index in range(len(images))]
    taken: list[int] = []
    for label in range(len(images.classes)):
        rows = sorted(np.flatnonzero(images.labels == label).tolist(), key=keys.__getitem__)
        taken += rows if share == 1 else rows[:each]
    return np.array(sorted(taken), np.int64)


def list_lines(images: ImageSet, indices: np.ndarray) -> bytes:
    """A list file of some images (path and class number per line), as `data.train.list_file` reads it."""
    assert images.labels is not None
    return b"".join(b"%s %d\n" % (images.relative_path(index), images.labels[index]) for index in indices.tolist())
