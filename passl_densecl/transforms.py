"""Augmentations as small callable values: ``transform(image, rng) -> image``.

An image is a uint8 array H×W×3 in RGB order, a transform is a frozen pydantic model that checks its own numbers, and
every random draw comes from the ``numpy.random.Generator`` that the caller passes in. No transform changes its input.

The recipe is MoCo-v2's (Chen et al. 2020, https://arxiv.org/abs/2003.04297): RandomResizedCrop → ColorJitter →
RandomGrayscale → GaussianBlur → RandomHorizontalFlip, drawn once for each view. Each operation computes what
torchvision computes on Pillow images, on which the published recipe was run, to within rounding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple, Union

import cv2
import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from passl_densecl.errors import InputError

# ImageNet statistics of RGB values scaled to 0..1; networks apply them on their device (`models.normalize`).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

_CROP_TRIES = 10
_LONGEST_STRIP = 100  # longer side over shorter side
# Pillow cuts the fraction off, OpenCV rounds: half a level less makes them agree (0.499 keeps whole numbers).
_CUT_OFF = -0.499
_THREE = np.array([0, 1, 0], np.float32)  # the kernel that changes nothing
_GRAY = (0.299, 0.587, 0.114)  # the luma of Rec. ITU-R BT.601, as Pillow and OpenCV have it
_HUE_CUT_OFF = 0.375
_NEEDS_NO_SMOOTHING = 8  # 1/128 square pixels, scale 1.17: so far plain sampling errs less than the filters do above
_LARGEST_FIXED_POINT_SIGMA = 4.0  # above, 1/256 is too coarse for the many small values of the kernel


# --- geometry ------------------------------------------------------------------------------------------------------


class Crop(NamedTuple):
    """A rectangle of an image, in whole pixels."""

    top: int
    left: int
    height: int
    width: int

    def reduced(self, factor: int) -> Crop:
        """The same rectangle of the image whose sides are ``factor`` times shorter, to the nearest pixel."""
        return self if factor == 1 else Crop(*(round(value / factor) for value in self))


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 H×W×3 → uint8 height×width×3: bilinear, with anti-aliasing where the image shrinks.

    Pillow's bilinear filter is a triangle whose width grows with the scale s when shrinking, with variance s²/6 in
    source pixels. Here a short filter brings the variance that OpenCV's plain bilinear sampling (1/6) lacks, which is
    several times closer to Pillow than area interpolation, and faster.
    """
    source_height, source_width = image.shape[:2]
    if (source_height, source_width) == (height, width):
        return image.copy()
    # Far from the goal, whole blocks are averaged first, so that the filter stays short.
    block_y, block_x = max(1, source_height // (4 * height)), max(1, source_width // (4 * width))
    if block_y > 1 or block_x > 1:
        size = round(source_width / block_x), round(source_height / block_y)
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    kernel_y = _smoothing_kernel(_variance(image.shape[0] / height, block_y > 1))
    kernel_x = _smoothing_kernel(_variance(image.shape[1] / width, block_x > 1))
    if len(kernel_x) > 1 or len(kernel_y) > 1:
        # A single value along one direction would take OpenCV a path that is twice as slow as three with zeros.
        kernel_y, kernel_x = (_THREE if len(kernel) == 1 else kernel for kernel in (kernel_y, kernel_x))
        image = cv2.sepFilter2D(image, -1, kernel_x, kernel_y, borderType=cv2.BORDER_REFLECT)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def _variance(scale: float, averaged: bool) -> int:
    """What bilinear sampling at ``scale`` source pixels a pixel lacks to be anti-aliased, in 1/128 square pixels."""
    return max(0, round(128 * ((scale * scale - 1) / 6 - (1 / 12 if averaged else 0))))


@functools.lru_cache(maxsize=2048)
def _smoothing_kernel(variance: int) -> np.ndarray:
    """1-D float32 kernel of this variance, in 1/128 square pixels; [1] where it is too little to matter.

    Three values give any variance up to 1/2; as many such filters as it takes are folded into one.
    """
    kernel = np.ones(1)
    if variance > _NEEDS_NO_SMOOTHING:
        times = math.ceil(2 * variance / 128)
        side = variance / 128 / (2 * times)
        for _ in range(times):
            kernel = np.convolve(kernel, [side, 1 - 2 * side, side])
    return _in_fixed_point(kernel)


def _in_fixed_point(kernel: np.ndarray) -> np.ndarray:
    """float32, in multiples of 1/256, as OpenCV computes on 8-bit images; the sum stays 1, zeros at the ends go."""
    steps = np.rint(kernel * 256)
    steps[len(steps) // 2] += 256 - steps.sum()
    needless = int(np.argmax(steps > 0))
    return (steps[needless : len(steps) - needless] / 256).astype(np.float32)


def resized_crop(image: np.ndarray, top: int, left: int, height: int, width: int, size: int) -> np.ndarray:
    """uint8 H×W×3 → uint8 size×size×3: the rectangle, resized as by :func:`resize`; pixels outside it play no part."""
    return resize(image[top : top + height, left : left + width], size, size)


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 H×W×3 → uint8 size×size×3: the middle; where the image is smaller than ``size``, black is put around it."""
    height, width = image.shape[:2]
    if height < size or width < size:
        y, x = max(size - height, 0), max(size - width, 0)
        image = cv2.copyMakeBorder(image, y // 2, y - y // 2, x // 2, x - x // 2, cv2.BORDER_CONSTANT)
        height, width = image.shape[:2]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def horizontal_flip(image: np.ndarray) -> np.ndarray:
    """uint8 H×W×3 → uint8 H×W×3, left and right exchanged."""
    return cv2.flip(image, 1)


# --- color --------------------------------------------------------------------------------------------------------


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with black: 0 is black, 1 the image, 2 twice as bright. ``factor`` ≥ 0."""
    return _blend_with_level(image, 0, factor)


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the mean gray of the whole image: 0 is flat gray, 1 the image. ``factor`` ≥ 0."""
    mean_gray = int(sum(share * mean for share, mean in zip(_GRAY, cv2.mean(image), strict=False)) + 0.5)
    return _blend_with_level(image, mean_gray, factor)


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend every pixel with its own gray: 0 is a gray image, 1 the image. ``factor`` ≥ 0."""
    # OpenCV multiplies bytes in steps of 1/1024, of which a row must have 1024: else gray would change.
    red, green, blue = (round(1024 * (1.0 - factor) * share) / 1024 for share in _GRAY)
    own = 1.0 - (red + green + blue)
    rows = [(red + own, green, blue, _CUT_OFF), (red, green + own, blue, _CUT_OFF), (red, green, blue + own, _CUT_OFF)]
    return cv2.transform(image, np.array(rows))


def adjust_hue(image: np.ndarray, shift: float) -> np.ndarray:
    """Turn the hue circle by ``shift`` of a full turn, from -0.5 to 0.5; saturation and value stay.

    Computed on the channels, without going through HSV and back. Whole thirds of a turn exchange the channels. The
    rest, at most a sixth, moves the middle one of a pixel's three values by its share of (largest − smallest), up or
    down as the order of the channels has it; where that passes the largest (smallest) value, that one comes back by as
    much as it was passed by. For a channel x, followed by n and p in the order red, green, blue, all of it is: where n
    > p, x falls by move − (x − middle), where n < p it rises by move − (middle − x), neither below 0, and it stays
    between the smallest and the largest value. (As a bound on the fall, n − p > 0 serves for n > p: it is larger
    wherever it matters.)
    """
    height, width = image.shape[:2]
    # Pillow's hue is the turn × 255, cut off, so that it comes back a little smaller on average.
    sextants = (int(shift * 255) - _HUE_CUT_OFF) * 6 / 255
    thirds = round(sextants / 2)
    planes = np.empty((3, height, width), np.uint8)
    cv2.split(image, [planes[(channel + thirds) % 3] for channel in range(3)])
    red, green, blue = planes
    high, low = cv2.max(red, green), cv2.min(red, green)
    largest, smallest = cv2.max(high, blue), cv2.min(low, blue)
    middle = cv2.max(low, cv2.min(high, blue, high), low)
    move = cv2.convertScaleAbs(cv2.subtract(largest, smallest), high, alpha=abs(sextants - 2 * thirds))
    turned, fall, rise, bound = np.empty_like(planes), *np.empty_like(planes)
    for x, following, previous, new in zip(planes, (green, blue, red), (blue, red, green), turned, strict=True):
        if sextants < 2 * thirds:
            following, previous = previous, following
        # cv2.subtract and cv2.add stop at 0 and 255; the last argument takes the result, which spares the cache.
        cv2.subtract(move, cv2.subtract(x, middle, fall), fall)
        cv2.min(fall, cv2.subtract(following, previous, bound), fall)
        cv2.subtract(move, cv2.subtract(middle, x, rise), rise)
        cv2.min(rise, cv2.subtract(previous, following, bound), rise)
        cv2.max(cv2.subtract(x, fall, new), smallest, new)
        cv2.min(cv2.add(new, rise, new), largest, new)
    return cv2.merge(list(turned))


def to_grayscale(image: np.ndarray) -> np.ndarray:
    """uint8 H×W×3 → uint8 H×W×3 with three equal channels: 0.299 R + 0.587 G + 0.114 B."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _blend_with_level(image: np.ndarray, level: int, factor: float) -> np.ndarray:
    """level + factor · (image − level), the fraction cut off and the range kept."""
    return cv2.addWeighted(image, factor, image, 0.0, level * (1.0 - factor) + _CUT_OFF)


# --- blur ----------------------------------------------------------------------------------------------------------


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur with standard deviation ``sigma`` > 0 pixels, as Pillow's ``ImageFilter.GaussianBlur(sigma)``, MoCo-v2's.

    Pillow runs three box filters whose fractional width gives exactly the variance sigma² (Gwosdek et al. 2011,
    "Theoretical foundations of Gaussian convolution by extended box filtering"); here they are folded into one kernel.
    """
    kernel = _blur_kernel(sigma)
    if sigma > _LARGEST_FIXED_POINT_SIGMA:
        smooth = cv2.sepFilter2D(image, cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
        return np.rint(smooth).astype(np.uint8)
    kernel = _in_fixed_point(kernel)
    return cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)


def _blur_kernel(sigma: float) -> np.ndarray:
    """1-D float32 kernel: three extended boxes of variance sigma² / 3 each, convolved."""
    variance = sigma * sigma / 3
    reach = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)  # whole pixels on either side of the center
    edge = (2 * reach + 1) * (reach * (reach + 1) - 3 * variance) / (6 * (variance - (reach + 1) ** 2))
    box = np.array([edge] + [1.0] * (2 * reach + 1) + [edge]) / (2 * reach + 1 + 2 * edge)
    return np.convolve(np.convolve(box, box), box).astype(np.float32)


# --- the transforms ------------------------------------------------------------------------------------------------


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"expected (smallest, largest), got {bounds[0]:g} before {bounds[1]:g}")
    return bounds


_Size = Annotated[int, Field(ge=1, le=65536)]
_Probability = Annotated[float, Field(ge=0, le=1)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Area = Annotated[float, Field(gt=0, le=1)]
_FROM_LIST = Field(strict=False)  # YAML has no tuples
_Strength = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Transform(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def output_size(self, size: int | None) -> int | None:
        """Pixels per side of what becomes of a square image of ``size``; None for images of any shape, in and out."""
        return size


class RandomResizedCrop(_Transform):
    """A rectangle of random area and shape, resized to size×size pixels.

    ``scale`` bounds the area as a share of the image's, ``ratio`` bounds width / height (drawn evenly on a log scale).
    """

    name: Literal["RandomResizedCrop"] = "RandomResizedCrop"
    size: _Size
    scale: Annotated[tuple[_Area, _Area], _FROM_LIST, AfterValidator(_ordered)] = (0.2, 1.0)
    ratio: Annotated[tuple[_Positive, _Positive], _FROM_LIST, AfterValidator(_ordered)] = (3 / 4, 4 / 3)

    def output_size(self, size: int | None) -> int:
        return self.size

    def draw(self, rng: np.random.Generator, height: int, width: int) -> Crop:
        """A random rectangle within height×width pixels; after ten that do not fit, the largest fitting middle one."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(_CROP_TRIES):
            area = height * width * rng.uniform(*self.scale)
            aspect = math.exp(rng.uniform(low, high))
            crop_height, crop_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < crop_height <= height and 0 < crop_width <= width:
                top = int(rng.integers(0, height - crop_height + 1))
                left = int(rng.integers(0, width - crop_width + 1))
                return Crop(top, left, crop_height, crop_width)
        crop_height = min(height, max(1, round(width / self.ratio[0])))
        crop_width = min(width, max(1, round(height * self.ratio[1])))
        return Crop((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return resized_crop(image, *self.draw(rng, image.shape[0], image.shape[1]), size=self.size)


class ColorJitter(_Transform):
    """With probability ``p``: brightness, contrast, saturation and hue, in random order.

    A strength b of the first three draws a factor from max(0, 1 − b) to 1 + b; ``hue`` h draws a turn from −h to h.
    """

    name: Literal["ColorJitter"] = "ColorJitter"
    brightness: _Strength = 0.4
    contrast: _Strength = 0.4
    saturation: _Strength = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    p: _Probability = 0.8

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.p:
            return image
        order = rng.permutation(4)
        # Drawn whether used or not, so that a strength of 0 does not shift the draws that follow.
        amounts = [rng.uniform(max(0.0, 1 - s), 1 + s) for s in (self.brightness, self.contrast, self.saturation)]
        amounts.append(rng.uniform(-self.hue, self.hue))
        strengths = (self.brightness, self.contrast, self.saturation, self.hue)
        for which in order:
            if strengths[which] > 0:
                image = _ADJUSTMENTS[which](image, amounts[which])
        return image


_ADJUSTMENTS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


class RandomGrayscale(_Transform):
    """With probability ``p``: gray, in three equal channels."""

    name: Literal["RandomGrayscale"] = "RandomGrayscale"
    p: _Probability = 0.2

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return to_grayscale(image) if rng.random() < self.p else image


class GaussianBlur(_Transform):
    """With probability ``p``: a blur whose standard deviation is drawn evenly from ``sigma`` (pixels)."""

    name: Literal["GaussianBlur"] = "GaussianBlur"
    sigma: Annotated[tuple[_Positive, _Positive], _FROM_LIST, AfterValidator(_ordered)] = (0.1, 2.0)
    p: _Probability = 0.5

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return gaussian_blur(image, rng.uniform(*self.sigma)) if rng.random() < self.p else image


class RandomHorizontalFlip(_Transform):
    """With probability ``p``: left and right exchanged."""

    name: Literal["RandomHorizontalFlip"] = "RandomHorizontalFlip"
    p: _Probability = 0.5

    def draw(self, rng: np.random.Generator) -> bool:
        return bool(rng.random() < self.p)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return horizontal_flip(image) if self.draw(rng) else image


class Resize(_Transform):
    """The shorter side becomes ``size`` pixels, the longer one follows.

    Of an image more than a hundred times as long as wide the ends are cut off first: a strip of 20,000×1 pixels would
    become 3.9 GB of which a center crop takes the middle.
    """

    name: Literal["Resize"] = "Resize"
    size: _Size

    def output_size(self, size: int | None) -> int | None:
        return None if size is None else self.size

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        longest = _LONGEST_STRIP * min(image.shape[:2])
        top, left = (max(0, length - longest) // 2 for length in image.shape[:2])
        image = image[top : top + longest, left : left + longest]
        height, width = image.shape[:2]
        if height <= width:
            return resize(image, self.size, int(self.size * width / height))
        return resize(image, int(self.size * height / width), self.size)


class CenterCrop(_Transform):
    """The middle size×size pixels; a smaller image gets a black border."""

    name: Literal["CenterCrop"] = "CenterCrop"
    size: _Size

    def output_size(self, size: int | None) -> int:
        return self.size

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return center_crop(image, self.size)


Transform = Annotated[
    Union[  # noqa: UP007 (pydantic evaluates this at run time)
        RandomResizedCrop, ColorJitter, RandomGrayscale, GaussianBlur, RandomHorizontalFlip, Resize, CenterCrop
    ],
    Field(discriminator="name"),
]
"""Any transform of this module, chosen by its ``name``: the type of an entry in a configuration's list."""


def center_view(size: int) -> tuple[Resize, CenterCrop]:
    """The field's evaluation transforms: the central size×size pixels after a resize to 8/7 of `size` (224 of 256)."""
    return Resize(size=round(size * 256 / 224)), CenterCrop(size=size)


def output_size(transforms: Sequence[Transform]) -> int:
    """Pixels per side of the square images that the transforms give, one after the other.

    Raises:
        InputError: none of them fixes the size, so images of different shapes stay different.
    """
    size = None
    for transform in transforms:
        size = transform.output_size(size)
    if size is None:
        names = ", ".join(transform.name for transform in transforms) or "none"
        raise InputError(
            f"the transforms ({names}) do not fix the size of the images; end with RandomResizedCrop or CenterCrop"
        )
    return size


def apply(
    transforms: Sequence[Callable[[np.ndarray, np.random.Generator], np.ndarray]],
    image: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """uint8 H×W×3 → uint8 h×w×3: one transform after the other, all drawing from the same ``rng``."""
    for transform in transforms:
        image = transform(image, rng)
    return image
