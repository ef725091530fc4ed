"""What is exported: a network up to one of its stages, read from any weights. No Paddle is needed here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import passl_densecl
from passl_densecl.config import BackboneOptions, BackboneSpec, PretrainConfig
from passl_densecl.disk import sha256_of
from passl_densecl.errors import InputError
from passl_densecl.weights import (
    Extraction,
    read_backbone,
    read_model,
    recorded_backbone,
    recorded_classes,
    recorded_config,
    weights_file,
)

# ImageNet's statistics of RGB values from 0 to 255, as the networks are trained with.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

Stage = Literal["backbone", "pooled", "classifier", "global", "dense"]
InputKind = Literal["uint8", "float32"]

INPUT_NAME = "images"
INPUTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "uint8": ("RGB, 0 to 255, as decoded; normalized inside", ("batch", "height", "width", "3")),
    "float32": ("RGB, (value − mean) / std", ("batch", "3", "height", "width")),
}
# stage → (name of its output, axes, what it is)
STAGES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "backbone": ("feature_map", ("batch", "channels", "rows", "columns"), "the backbone's last map"),
    "pooled": ("features", ("batch", "channels"), "the map's average over its positions"),
    "classifier": ("logits", ("batch", "classes"), "one number a class, before softmax"),
    "global": ("vector", ("batch", "dim"), "the global neck's vector, of length 1"),
    "dense": ("vectors", ("batch", "dim", "rows", "columns"), "the dense neck's vectors, of length 1 at each position"),
}
HEADS = {"classifier": "fc", "global": "global_head", "dense": "dense_head"}


@dataclass(frozen=True)
class Network:
    """A trained network up to `stage`. Every format is written from these values, every comparison is with them."""

    stage: str
    backbone: BackboneSpec
    num_grid: int | None  # dense: the map is pooled to so many cells a side
    arrays: dict[str, np.ndarray]  # backbone.* and, where the stage has one, fc.*, global_head.* or dense_head.*
    classes: tuple[str, ...]  # in the order of the logits; empty when they are not recorded
    source: Path
    kind: str  # what the source is
    recorded: bool  # strides and grid are as the weights' card or their run's config says, not assumed

    def info(self, kind: InputKind) -> dict[str, Any]:
        """Everything that a reader of the exported file must know, as plain data."""
        output, axes, meaning = STAGES[self.stage]
        values, input_axes = INPUTS[kind]
        return {
            "written_by": f"passl_densecl {passl_densecl.__version__}",
            "stage": self.stage,
            "depth": self.backbone.depth,
            "stem_stride": self.backbone.stem_stride,
            "last_stride": self.backbone.last_stride,
            "num_grid": self.num_grid,
            "input": {"name": INPUT_NAME, "dtype": kind, "axes": list(input_axes), "values": values},
            "output": {"name": output, "dtype": "float32", "axes": list(axes), "values": meaning},
            "mean": list(MEAN),
            "std": list(STD),
            "classes": list(self.classes),
            "source": self.source.name,
            "source_sha256": sha256_of(self.source),
        }


def read_network(
    path: str | os.PathLike[str],
    stage: Stage | None = None,
    *,
    encoder: Literal["query", "key"] = "query",
    options: BackboneOptions = BackboneOptions(),
) -> Network:
    """The network in a checkpoint, a run folder or a weight file of any kind that ``passl_densecl.weights`` reads.

    Args:
        stage: where it ends. None takes "classifier" when there is one in the file, else "backbone". "global" and "dense"
            need a pre-training checkpoint, which holds the necks.
        encoder: which one of a pre-training checkpoint.
        options: strides other than those that the weights' identity card or their run's config says.

    Raises:
        InputError: nothing there, no backbone in it, or not what `stage` needs.
    """
    file = weights_file(path)
    taken = read_backbone(file, encoder=encoder)
    if stage is None:
        stage = "classifier" if taken.fc is not None else "backbone"
    arrays = {f"backbone.{name}": np.asarray(array, np.float32) for name, array in taken.backbone.items()}
    arrays |= _head(file, taken, stage, encoder)
    recorded = recorded_backbone(file)
    grid = _grid(file) if stage == "dense" else None
    classes = recorded_classes(file, len(arrays["fc.bias"])) or () if stage == "classifier" else ()
    backbone = options.resolve(taken.depth, recorded)
    return Network(stage, backbone, grid, arrays, classes, file, taken.kind, recorded is not None)


def _head(file: Path, taken: Extraction, stage: str, encoder: str) -> dict[str, np.ndarray]:
    """What follows the backbone, under its attribute's name. Raises InputError when the file does not hold it."""
    if stage not in HEADS:
        return {}
    held = read_model(file)
    before = "" if stage == "classifier" else f"{encoder}_encoder."
    head = f"{before}{HEADS[stage]}."
    found = {name.removeprefix(before): np.asarray(held[name], np.float32) for name in held if name.startswith(head)}
    if not found:
        needs = "a classifier" if stage == "classifier" else "a whole pre-training checkpoint"
        is_moco = stage == "dense" and f"{before}global_head.0.weight" in held
        other = "a MoCo-v2 checkpoint, without a dense neck" if is_moco else f"a {taken.kind}"
        raise InputError(f"{file}: stage {stage} needs {needs}; this is {other}: choose another stage")
    return found


def _grid(file: Path) -> int | None:
    config = recorded_config(file)
    return config.model.num_grid if isinstance(config, PretrainConfig) else None
