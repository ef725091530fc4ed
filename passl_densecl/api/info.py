"""What is known of a model beyond its weights: source, strides, transforms of its images, class names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from passl_densecl.config import BackboneSpec, Config, LinearConfig
from passl_densecl.data.images import SixteenBit
from passl_densecl.errors import InputError
from passl_densecl.transforms import CenterCrop, RandomResizedCrop, Transform, center_view
from passl_densecl.weights.recorded import sixteen_bit_of

Kind = Literal["pre-training model", "classifier", "backbone"]
PUBLISHED_SIZE = 224


@dataclass(frozen=True)
class ModelInfo:
    """Facts about a model from `get_model`, which sets it as ``model.info``."""

    kind: Kind
    source: str  # the file of weights, or a description of untrained ones
    backbone: BackboneSpec
    transforms: tuple[Transform, ...]  # of input images; they give all images one size
    sixteen_bit: SixteenBit = "high_byte"  # how images with 16 bits a value are read
    classes: tuple[str, ...] | None = None  # names in the order of the classifier's outputs; None: unknown

    @property
    def depth(self) -> int:
        return self.backbone.depth

    @property
    def stem_stride(self) -> int:
        return self.backbone.stem_stride

    @property
    def last_stride(self) -> int:
        return self.backbone.last_stride


def checked_view(size: int) -> tuple[Transform, ...]:
    """As `center_view`. Raises InputError when `size` is not a whole number from 8 to 8192."""
    if isinstance(size, bool) or not isinstance(size, int) or not 8 <= size <= 8192:
        raise InputError(f"size {size!r}: expected a whole number of pixels from 8 to 8192, such as {PUBLISHED_SIZE}")
    return center_view(size)


def view_of(config: Config | None) -> tuple[Transform, ...]:
    """A run's validation transforms, or a center view in the size of its crops; without a config the published ones."""
    if isinstance(config, LinearConfig):
        return config.data.val_transforms
    transforms = config.data.transforms if config else ()
    crops = [one.size for one in transforms if isinstance(one, RandomResizedCrop | CenterCrop)]
    return center_view(crops[-1] if crops else PUBLISHED_SIZE)


def reading_of(config: Config | None) -> dict[str, Any]:
    """The fields of ModelInfo that say how a run reads images; without a config the published ones."""
    reading: dict[str, Any] = {"transforms": view_of(config)}
    return reading if config is None else reading | {"sixteen_bit": sixteen_bit_of(config)}
