"""The data sets that training and evaluation read; and, from here, everything about images that others need.

A data set pairs an :class:`ImageSet` with transforms. Its keys are (epoch, index) and every random draw comes from
(seed, epoch, index, view), so a sample does not depend on who computes it, when, or after what.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from passl_densecl.data.folders import scan_images
from passl_densecl.data.image_set import ImageSet, check_decodable
from passl_densecl.data.images import EXTENSIONS, UndecodableImage, checked_size, decode, decode_pixels, memory_is_named
from passl_densecl.errors import RunError
from passl_densecl.text import one_line
from passl_densecl.transforms import RandomResizedCrop, apply, resized_crop

__all__ = [
    "EXTENSIONS",
    "WHY",
    "Dataset",
    "ImageSet",
    "PairDataset",
    "Transforms",
    "UndecodableImage",
    "check_decodable",
    "decode",
    "scan_images",
]

WHY = np.dtype("S240")
"""Bytes of UTF-8 that say why an image could not be decoded; empty for one that could."""

_TRIES = 20
Transforms = Sequence[Callable[[np.ndarray, np.random.Generator], np.ndarray]]


class Dataset:
    """Transformed images of a set; all draws come from ``seed``, the epoch, the index and the view.

    An image that cannot be decoded is always replaced by the same one, some way along the set: each of a hundred bad
    files in a row gets a stand-in of its own. All draws stay those of ``index``, so no other image's views change.

    Raises (on access):
        RunError: neither the image nor any of its 19 stand-ins can be decoded, or the memory ran out.
    """

    def __init__(self, image_set: ImageSet, transforms: Transforms, seed: int) -> None:
        self.image_set = image_set
        self.transforms = tuple(transforms)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, ...]:
        raise NotImplementedError

    def views_or_others(self, epoch: int, index: int, count: int) -> tuple[list[np.ndarray], int, np.ndarray]:
        """``count`` views of the image or of the first of its stand-ins that decodes, which one that is, and why not
        the image (empty where it is the image)."""
        seeds = [[self.seed, epoch, index, view] for view in range(count)]
        first: UndecodableImage | None = None
        for used in _stand_ins(index, len(self)):
            try:
                with memory_is_named(self.image_set.path(used)):
                    views = _views(self.image_set, used, self.transforms, seeds)
            except UndecodableImage as failure:
                first = first or failure
                continue
            why = first.reason if first else ""  # cut to what every sample of a batch has room for
            return views, used, np.array(why.encode("utf-8", "backslashreplace")[: WHY.itemsize], WHY)
        root = one_line(self.image_set.root)
        raise RunError(
            f"{first}; nor can any of {min(_TRIES, len(self)) - 1} others in its place be decoded. Is the disk with "
            f"{root} still connected? densecl data check {root} checks all images"
        )


class PairDataset(Dataset):
    """Two views of every image, for pre-training.

    ``dataset[epoch, index]`` → (query, key, index, why): two uint8 H×W×3 arrays, an int64 number and a text. ``why`` is
    empty, or says (in UTF-8) why the image could not be decoded, and then another one stands in for it.
    """

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.int64, np.ndarray]:
        epoch, index = key
        (query, key_view), _, why = self.views_or_others(epoch, index, 2)
        return query, key_view, np.int64(index), why


def _stand_ins(index: int, count: int) -> Iterator[int]:
    """The image, then those that may stand in for it, best first: all different, far from it and from each other.

    Steps of about 0.618 of the set (golden ratio), because bad files often lie side by side.
    """
    stride = max(1, round(count * 0.618))
    while math.gcd(stride, count) > 1:
        stride += 1
    return ((index + number * stride) % count for number in range(min(_TRIES, count)))


def _views(image_set: ImageSet, index: int, transforms: Transforms, seeds: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """The transformed image, once for each seed; a large JPEG is decoded no larger than the first crops need it."""
    data, path = image_set.read(index), image_set.path(index)
    size = checked_size(data, path)
    crop = transforms[0] if transforms else None
    if size is not None and isinstance(crop, RandomResizedCrop) and data.startswith(b"\xff\xd8"):
        rest = transforms[1:]
        rngs = [np.random.default_rng(seed) for seed in seeds]
        rectangles = [crop.draw(rng, *size) for rng in rngs]
        shortest = min(min(rectangle.height, rectangle.width) for rectangle in rectangles)
        reduction = next(factor for factor in (8, 4, 2, 1) if factor == 1 or shortest >= factor * crop.size)
        image = decode_pixels(data, path, reduction)
        if image.shape[:2] == tuple(-(-side // reduction) for side in size):
            crops = [resized_crop(image, *rectangle.reduced(reduction), size=crop.size) for rectangle in rectangles]
            return [apply(rest, view, rng) for view, rng in zip(crops, rngs, strict=True)]
        # The header was wrong: once more, from the pixels.
    image = decode_pixels(data, path, sixteen_bit=image_set.sixteen_bit)
    return [apply(transforms, image, np.random.default_rng(seed)) for seed in seeds]
