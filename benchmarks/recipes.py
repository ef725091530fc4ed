"""The same augmentation by three hands: this project's (OpenCV), Pillow in torchvision's way, and torchvision itself.

A recipe is how the bytes of a file become an image, the transforms in order, and how the result becomes a uint8 array.
"""

from __future__ import annotations

import importlib.util
import io
import math
import random
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from passl_densecl.data.images import decode_bytes
from passl_densecl.errors import InputError
from passl_densecl.transforms import (
    ColorJitter,
    GaussianBlur,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Transform,
)

Step = Callable[[Any], Any]


class Recipe(NamedTuple):
    decode: Callable[[bytes], Any]
    steps: list[tuple[str, Step]]
    finish: Callable[[Any], np.ndarray]

    def view(self, image: Any) -> np.ndarray:
        for _, step in self.steps:
            image = step(image)
        return self.finish(image)


def own(transforms: Sequence[Transform], seed: int = 0) -> Recipe:
    """Ours, all views drawing from one stream (the data set makes a stream for each view)."""
    rng = np.random.default_rng(seed)

    def bound(transform: Transform) -> Step:
        return lambda image: transform(image, rng)

    return Recipe(
        partial(decode_bytes, path="of the benchmark"),
        [(transform.name, bound(transform)) for transform in transforms],
        lambda image: image,
    )


# --- Pillow, in torchvision's way ----------------------------------------------------------------------------------


def open_rgb(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def pillow(transforms: Sequence[Transform], seed: int = 0) -> Recipe:
    """What torchvision does with Pillow images, without torchvision."""
    draw = random.Random(seed)
    return Recipe(open_rgb, [(transform.name, _by_pillow(transform, draw)) for transform in transforms], np.array)


def crop_box(size: tuple[int, int], transform: RandomResizedCrop, draw: random.Random) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random crop of a (width, height), or the largest central one after 10 misfits."""
    (width, height), (lowest, highest) = size, transform.ratio
    for _ in range(10):
        area = width * height * draw.uniform(*transform.scale)
        aspect = math.exp(draw.uniform(math.log(lowest), math.log(highest)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = draw.randint(0, width - w), draw.randint(0, height - h)
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < lowest:
        h = round(width / lowest)
    elif width / height > highest:
        w = round(height * highest)
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _by_pillow(transform: Transform, draw: random.Random) -> Step:
    if isinstance(transform, RandomResizedCrop):
        side = (transform.size, transform.size)
        return lambda image: image.crop(crop_box(image.size, transform, draw)).resize(side, Image.Resampling.BILINEAR)
    if isinstance(transform, ColorJitter):
        return lambda image: _jitter(image, transform, draw) if draw.random() < transform.p else image
    if isinstance(transform, RandomGrayscale):
        return lambda image: _gray(image) if draw.random() < transform.p else image
    if isinstance(transform, GaussianBlur):
        return lambda image: _blur(image, draw.uniform(*transform.sigma)) if draw.random() < transform.p else image
    if isinstance(transform, RandomHorizontalFlip):
        return lambda image: ImageOps.mirror(image) if draw.random() < transform.p else image
    raise _unknown(transform)


def _jitter(image: Image.Image, transform: ColorJitter, draw: random.Random) -> Image.Image:
    kinds: list[Callable[[Image.Image], Any]] = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    strengths = [transform.brightness, transform.contrast, transform.saturation, transform.hue]
    for which in draw.sample(range(4), 4):
        strength = strengths[which]
        if strength == 0:
            continue
        if which == 3:
            image = _hue(image, draw.uniform(-strength, strength))
        else:
            image = kinds[which](image).enhance(draw.uniform(max(0.0, 1 - strength), 1 + strength))
    return image


def _hue(image: Image.Image, shift: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue) + np.uint8(int(shift * 255) % 256)  # wraps around, as hue does
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def _gray(image: Image.Image) -> Image.Image:
    gray = image.convert("L")
    return Image.merge("RGB", (gray, gray, gray))


def _blur(image: Image.Image, sigma: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(sigma))


# --- torchvision ---------------------------------------------------------------------------------------------------


def has_torchvision() -> bool:
    """Whether its transforms can be imported.

    Not the package itself: that registers detection operators first, and fails with a torch that it was not built for.
    The transforms of Pillow images are plain Python, and work with any.
    """
    if "torchvision" not in sys.modules:
        found = importlib.util.find_spec("torchvision")
        if found is None or not found.submodule_search_locations:
            return False
        package = importlib.util.module_from_spec(found)  # made, not run
        sys.modules["torchvision"] = package
    try:
        import torchvision.transforms  # noqa: F401  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def torchvision(transforms: Sequence[Transform], seed: int = 0) -> Recipe:
    """torchvision's own classes on Pillow images; the blur is MoCo-v2's, by Pillow."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.manual_seed(seed)
    draw = random.Random(seed)
    return Recipe(open_rgb, [(transform.name, _by_torchvision(transform, draw)) for transform in transforms], np.array)


def _by_torchvision(transform: Transform, draw: random.Random) -> Step:
    from torchvision import transforms as T  # pyright: ignore[reportMissingImports]

    if isinstance(transform, RandomResizedCrop):
        return T.RandomResizedCrop(transform.size, scale=transform.scale, ratio=transform.ratio)
    if isinstance(transform, ColorJitter):
        jitter = T.ColorJitter(transform.brightness, transform.contrast, transform.saturation, transform.hue)
        return T.RandomApply([jitter], p=transform.p)
    if isinstance(transform, RandomGrayscale):
        return T.RandomGrayscale(transform.p)
    if isinstance(transform, GaussianBlur):
        return T.RandomApply([lambda image: _blur(image, draw.uniform(*transform.sigma))], p=transform.p)
    if isinstance(transform, RandomHorizontalFlip):
        return T.RandomHorizontalFlip(transform.p)
    raise _unknown(transform)


def _unknown(transform: Transform) -> InputError:
    return InputError(f"the transform {transform.name} has no counterpart in this benchmark; use a pre-training config")
