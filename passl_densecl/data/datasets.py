"""The data sets that training and evaluation read; and, from here, everything about images that others need.

A data set pairs an :class:`ImageSet` with transforms. Its keys are (epoch, index) and every random draw comes from
(seed, epoch, index, view), so a sample does not depend on who computes it, when, or after what.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from passl_densecl.data.image_set import ImageSet, check_decodable
from passl_densecl.data.images import EXTENSIONS, UndecodableImage, decode, decode_bytes
from passl_densecl.data.jpeg import upright_size
from passl_densecl.data.scan import scan_images
from passl_densecl.transforms import RandomResizedCrop, apply, resized_crop

__all__ = [
    "EXTENSIONS",
    "ImageSet",
    "LabelledDataset",
    "PairDataset",
    "Transforms",
    "UndecodableImage",
    "check_decodable",
    "decode",
    "scan_images",
]

_REPLACEMENT_TRIES = 20
Transforms = Sequence[Callable[[np.ndarray, np.random.Generator], np.ndarray]]


class PairDataset:
    """Two views of every image, for pre-training.

    ``dataset[epoch, index]`` → (query, key, index, bad): two uint8 H×W×3 arrays, and two int64 numbers. ``bad`` is -1,
    or ``index`` when that image could not be decoded and the next one that can stands in for it.

    Raises (on access):
        UndecodableImage: neither the image nor the 19 after it can be decoded.
    """

    def __init__(self, image_set: ImageSet, transforms: Transforms, seed: int) -> None:
        self.image_set = image_set
        self.transforms = tuple(transforms)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.int64, np.int64]:
        epoch, index = key
        seeds = [[self.seed, epoch, index, view] for view in (0, 1)]
        (query, key_view), used = _views_or_next(self.image_set, index, self.transforms, seeds)
        return query, key_view, np.int64(index), np.int64(-1 if used == index else index)


class LabelledDataset:
    """One view of every image and its label, for linear evaluation, k-NN and the like.

    ``dataset[epoch, index]`` → (image, label, index, bad): a uint8 H×W×3 array and three int64 numbers. ``label`` is -1
    when the set has no labels. An image that cannot be decoded is replaced, label and all, by the next one that can;
    ``bad`` is then ``index``, else -1. With deterministic transforms use epoch 0 throughout.

    Raises (on access):
        UndecodableImage: neither the image nor the 19 after it can be decoded.
    """

    def __init__(self, image_set: ImageSet, transforms: Transforms, seed: int) -> None:
        self.image_set = image_set
        self.transforms = tuple(transforms)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, np.int64, np.int64, np.int64]:
        epoch, index = key
        seeds = [[self.seed, epoch, index, 0]]
        (image,), used = _views_or_next(self.image_set, index, self.transforms, seeds)
        label = -1 if self.image_set.labels is None else self.image_set.labels[used]
        return image, np.int64(label), np.int64(index), np.int64(-1 if used == index else index)


def _views_or_next(
    image_set: ImageSet, index: int, transforms: Transforms, seeds: Sequence[Sequence[int]]
) -> tuple[list[np.ndarray], int]:
    """Views of the image, or of the first of those after it (around the end) that decodes; and which one it is."""
    first: UndecodableImage | None = None
    tries = min(_REPLACEMENT_TRIES, len(image_set))
    for step in range(tries):
        used = (index + step) % len(image_set)
        try:
            return _views(image_set.read(used), image_set.path(used), transforms, seeds), used
        except UndecodableImage as failure:
            first = first or failure
    assert first is not None
    raise UndecodableImage(first.path, f"{first.reason}; nor can any of the {tries - 1} images after it be decoded")


def _views(data: bytes, path: str, transforms: Transforms, seeds: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """The transformed image, once for each seed; a large JPEG is decoded no larger than the first crops need it."""
    rngs = [np.random.default_rng(seed) for seed in seeds]
    size = upright_size(data) if transforms and isinstance(transforms[0], RandomResizedCrop) else None
    if size is not None:
        crop, *rest = transforms
        assert isinstance(crop, RandomResizedCrop)
        rectangles = [crop.draw(rng, *size) for rng in rngs]
        shortest = min(min(rectangle.height, rectangle.width) for rectangle in rectangles)
        reduction = next(factor for factor in (8, 4, 2, 1) if factor == 1 or shortest >= factor * crop.size)
        image = decode_bytes(data, path, reduction)
        if image.shape[:2] == tuple(-(-side // reduction) for side in size):
            crops = [resized_crop(image, *rectangle.reduced(reduction), size=crop.size) for rectangle in rectangles]
            return [apply(rest, view, rng) for view, rng in zip(crops, rngs, strict=True)]
        rngs = [np.random.default_rng(seed) for seed in seeds]  # the header was wrong: once more, from the pixels
    image = decode_bytes(data, path)
    return [apply(transforms, image, rng) for rng in rngs]
