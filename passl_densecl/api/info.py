"""What is known of a model beyond its weights: where it came from, its strides, how it sees images, its classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from passl_densecl.config import BackboneSpec, Config, LinearConfig
from passl_densecl.errors import InputError
from passl_densecl.transforms import CenterCrop, RandomResizedCrop, Resize, Transform

Kind = Literal["pre-training model", "classifier", "backbone"]
PUBLISHED_SIZE = 224


@dataclass(frozen=True)
class ModelInfo:
    """What :func:`~passl_densecl.get_model` knows of the model that it returns; there as ``model.info``."""

    kind: Kind
    source: str  # the file of weights, or words for weights that were not trained
    backbone: BackboneSpec
    transforms: tuple[Transform, ...]  # what an image goes through; they give all images one size
    classes: tuple[str, ...] | None = None  # names in the order of the classifier's outputs, where they are known

    @property
    def depth(self) -> int:
        return self.backbone.depth

    @property
    def stem_stride(self) -> int:
        return self.backbone.stem_stride

    @property
    def last_stride(self) -> int:
        return self.backbone.last_stride


def view(size: int = PUBLISHED_SIZE) -> tuple[Transform, ...]:
    """The transforms of linear evaluation for a center crop of `size` pixels: 224 from a shorter side of 256."""
    return Resize(size=round(size * 256 / 224)), CenterCrop(size=size)


def checked_view(size: int) -> tuple[Transform, ...]:
    """As :func:`view`. Raises InputError for a size that is no whole number from 8 to 8192."""
    if isinstance(size, bool) or not isinstance(size, int) or not 8 <= size <= 8192:
        raise InputError(f"size {size!r}: expected a whole number of pixels from 8 to 8192, such as {PUBLISHED_SIZE}")
    return view(size)


def view_of(config: Config | None) -> tuple[Transform, ...]:
    """How a run's images are to be seen: as in its validation, or at the size of its crops; the published way for None."""
    if isinstance(config, LinearConfig):
        return config.data.val_transforms
    crops = (
        [one.size for one in config.data.transforms if isinstance(one, RandomResizedCrop | CenterCrop)]
        if config
        else []
    )
    return view(crops[-1] if crops else PUBLISHED_SIZE)
