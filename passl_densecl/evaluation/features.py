"""A backbone from any file of weights, and its features of images: maps and pooled vectors."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import paddle

from passl_densecl.config import DEPTHS, RANDOM
from passl_densecl.data.datasets import ImageSet, Transforms
from passl_densecl.data.labeled import EvaluationLoader
from passl_densecl.errors import InputError, option
from passl_densecl.models import ResNetBackbone, build_backbone, normalize
from passl_densecl.models.resnet import initialize
from passl_densecl.tensors import to_tensor
from passl_densecl.weights.files import weights_file
from passl_densecl.weights.load import load_strict
from passl_densecl.weights.recorded import BackboneOptions, recorded_backbone

Backbone = Callable[[paddle.Tensor], paddle.Tensor]
"""Normalized float32 images (B, 3, height, width) → map (B, C, H, W)."""


class Features(NamedTuple):
    """Pooled vectors of N images, in the order of their image set."""

    vectors: np.ndarray  # (N, C) float32
    labels: np.ndarray  # (N,) int64, -1 throughout when the set has none
    bad: list[int]  # indices of images that could not be decoded; each is replaced by another one with its label


def load_backbone(
    path: str | os.PathLike[str],
    options: BackboneOptions = BackboneOptions(),
    *,
    seed: int = 0,
    encoder: Literal["query", "key"] = "query",
) -> ResNetBackbone:
    """A backbone in eval mode, with weights from a file or, for the word "random", initialized with `seed`.

    Args:
        path: a checkpoint folder, a run folder (its newest checkpoint) or a weight file of any kind that
            ``passl_densecl.weights`` reads; or "random".
        options: "random" needs a depth; a depth given for weights must agree with them. Strides that are None come from
            the file's identity card, else from the config of the run folder, else they are the published ones. A prefix
            chooses one of several backbones.
        encoder: which encoder of a pre-training checkpoint.

    Raises:
        InputError: no such file, no backbone in it, another depth, or "random" without a depth.
    """
    if os.fspath(path) == RANDOM:
        depth = options.depth
        if options.prefix is not None:
            raise InputError(f"random weights have no names: leave out {option('prefix', options.prefix)}")
        if depth not in DEPTHS:
            raise InputError(f"random weights need a depth, one of {', '.join(map(str, DEPTHS))}; got {depth}")
        backbone = build_backbone(options.resolve(depth), seed)
    else:
        from passl_densecl.weights.read import read_backbone

        file = weights_file(path)
        taken = read_backbone(file, encoder=encoder, prefix=options.prefix)
        if options.depth not in (None, taken.depth):
            raise InputError(f"{file} holds a ResNet-{taken.depth}, expected ResNet-{options.depth}: omit the depth")
        backbone = build_backbone(options.resolve(taken.depth, recorded_backbone(file)), seed=None)
        load_strict(backbone, taken.backbone, source=file)
    backbone.eval()
    return backbone


def untrained_like(backbone: ResNetBackbone, seed: int = 0) -> ResNetBackbone:
    """An untrained backbone of the same depth and strides, initialized with `seed`."""
    fresh = copy.deepcopy(backbone)
    for name, parameter in fresh.named_parameters():
        if len(parameter.shape) == 1:  # BatchNorm: weight and variance become 1, bias and mean 0
            one = name.endswith((".weight", "._variance"))
            parameter.set_value(np.full(parameter.shape, float(one), "float32"))
    initialize(fresh.named_parameters(), seed)
    fresh.eval()
    return fresh


@paddle.no_grad()
def feature_maps(backbone: Backbone, images: np.ndarray) -> paddle.Tensor:
    """uint8 RGB (B, height, width, 3) → float32 (B, C, H, W), not normalized over channels."""
    return backbone(normalize(to_tensor(images))).astype("float32")


def feature_map(backbone: Backbone, image: np.ndarray) -> np.ndarray:
    """uint8 RGB (height, width, 3) → float32 (C, H, W), not normalized over channels."""
    return feature_maps(backbone, image[None])[0].numpy()


def pooled_features(
    backbone: Backbone,
    image_set: ImageSet,
    transforms: Transforms,
    batch_size: int = 64,
    *,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """The backbone's map averaged over positions, for every image: the input of k-NN and linear evaluation.

    Args:
        transforms: must give all images the same size; random ones draw as in epoch 0 with seed 0.
        num_workers: processes that decode; ``data.loader.choose_workers`` picks a number.
        rank, world_size: of several processes, each of which takes a contiguous part of the images; there must be at
            least one image per process.
        progress: called with (images done, images in all) after each batch.

    Raises:
        InputError: the transforms give images of different sizes.
        RunError: neither an image nor any of its replacements can be decoded, or memory ran out.
    """
    loader = EvaluationLoader(
        image_set, transforms, batch_size=batch_size, rank=rank, world_size=world_size, num_workers=num_workers
    )
    vectors: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    bad: list[int] = []
    for batch in loader:
        vectors.append(pool(backbone, batch.images))
        labels.append(batch.labels.numpy())
        bad += batch.bad
        if progress is not None:
            progress(int(batch.indices[-1]) + 1, len(image_set))
    return Features(np.concatenate(vectors), np.concatenate(labels), bad)


@paddle.no_grad()
def pool(backbone: Backbone, images: paddle.Tensor) -> np.ndarray:
    """uint8 RGB (B, height, width, 3) → float32 (B, C), averaged over positions."""
    return backbone(normalize(images)).mean(axis=[2, 3]).astype("float32").numpy()


STAGES = ("stem", "stage 1", "stage 2", "stage 3", "stage 4")


@paddle.no_grad()
def stage_maps(backbone: ResNetBackbone, images: paddle.Tensor) -> list[paddle.Tensor]:
    """uint8 RGB (B, height, width, 3) → five float32 maps (B, C, H, W): the stem before max-pooling, and each stage."""
    features = backbone.relu(backbone.bn1(backbone.conv1(normalize(images))))
    maps = [features]
    features = backbone.maxpool(features)
    for stage in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        features = stage(features)
        maps.append(features)
    return [one.astype("float32") for one in maps]
