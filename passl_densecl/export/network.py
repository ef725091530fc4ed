"""A network up to one of its stages, read from any weights, for export. Needs no Paddle."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import passl_densecl
from passl_densecl.config import BackboneSpec, PretrainConfig
from passl_densecl.disk import sha256_of
from passl_densecl.errors import InputError
from passl_densecl.transforms import MEAN, STD
from passl_densecl.weights.files import weights_file
from passl_densecl.weights.names import Extraction
from passl_densecl.weights.read import read_backbone, read_model
from passl_densecl.weights.recorded import BackboneOptions, recorded_backbone, recorded_classes, recorded_config

PIXEL_MEAN, PIXEL_STD = (tuple(round(255 * value, 3) for value in values) for values in (MEAN, STD))  # of 0..255

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
    "classifier": ("logits", ("batch", "classes"), "one number per class, before softmax"),
    "global": ("vector", ("batch", "dim"), "the global projection head's unit vector"),
    "dense": ("vectors", ("batch", "dim", "rows", "columns"), "the dense projection head's unit vector per position"),
}
HEADS = {"classifier": "fc", "global": "global_head", "dense": "dense_head"}


@dataclass(frozen=True)
class Network:
    """A trained network up to `stage`: the source of every format and of every comparison."""

    stage: str
    backbone: BackboneSpec
    num_grid: int | None  # dense: the map is pooled to this many cells per side
    arrays: dict[str, np.ndarray]  # backbone.* and, where the stage has one, fc.*, global_head.* or dense_head.*
    classes: tuple[str, ...]  # in the order of the logits; empty when not recorded
    source: Path
    kind: str  # what the source is
    recorded: bool  # strides come from the weights' card or config; False: they are assumed

    def info(self, kind: InputKind) -> dict[str, Any]:
        """What users of the exported file must know, as plain data."""
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
            "mean": list(PIXEL_MEAN),
            "std": list(PIXEL_STD),
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
        stage: where the network ends. None: "classifier" if the file has one, else "backbone". "global" and "dense"
            need a pre-training checkpoint, which holds the projection heads.
        encoder: which encoder of a pre-training checkpoint.
        options: strides that replace those of the weights' identity card or of their run's config, and the prefix that
            chooses one of several backbones.

    Raises:
        InputError: no such file, no backbone in it, or not the part that `stage` needs.
    """
    file = weights_file(path)
    taken = read_backbone(file, encoder=encoder, prefix=options.prefix)
    if stage is None:
        stage = "classifier" if taken.fc is not None else "backbone"
    arrays = {f"backbone.{name}": np.asarray(array, np.float32) for name, array in taken.backbone.items()}
    arrays |= _head(file, taken, stage, encoder, options.prefix)
    recorded = recorded_backbone(file)
    grid = _grid(file) if stage == "dense" else None
    classes = recorded_classes(file, len(arrays["fc.bias"])) or () if stage == "classifier" else ()
    backbone = options.resolve(taken.depth, recorded)
    return Network(stage, backbone, grid, arrays, classes, file, taken.kind, recorded is not None)


def _head(file: Path, taken: Extraction, stage: str, encoder: str, prefix: str | None) -> dict[str, np.ndarray]:
    """The stage's layers after the backbone, by attribute name. Raises InputError when the file does not hold them."""
    if stage not in HEADS:
        return {}
    held = read_model(file, prefix=prefix)
    before = "" if stage == "classifier" else f"{encoder}_encoder."
    head = f"{before}{HEADS[stage]}."
    arrays = {name.removeprefix(before): np.asarray(held[name], np.float32) for name in held if name.startswith(head)}
    if not arrays:
        needs = "a classifier" if stage == "classifier" else "a whole pre-training checkpoint"
        is_moco = stage == "dense" and f"{before}global_head.0.weight" in held
        other = "a MoCo-v2 checkpoint, without a dense projection head" if is_moco else f"a {taken.kind}"
        raise InputError(f"{file}: stage {stage} needs {needs}; this is {other}: choose another stage")
    return arrays


def _grid(file: Path) -> int | None:
    config = recorded_config(file)
    return config.model.num_grid if isinstance(config, PretrainConfig) else None
