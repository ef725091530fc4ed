"""Weights are data: reading, writing, naming, extracting and loading them, without running anything from a file."""

from __future__ import annotations

from passl_densecl.weights.card import Card, Parent
from passl_densecl.weights.files import (
    WeightFile,
    read_arrays,
    read_card,
    read_pickle,
    read_weights,
    weights_file,
    write_pickle,
    write_weights,
)
from passl_densecl.weights.info import FileInfo, describe_file, render
from passl_densecl.weights.load import (
    load_strict,
    read_backbone,
    read_model,
    recorded_backbone,
    recorded_card,
    recorded_classes,
    recorded_config,
)
from passl_densecl.weights.names import (
    Extraction,
    backbone_names,
    backbone_shapes,
    depth_of,
    extract_backbone,
    find_encoder,
)

__all__ = [
    "Card",
    "Extraction",
    "FileInfo",
    "Parent",
    "WeightFile",
    "backbone_names",
    "backbone_shapes",
    "depth_of",
    "describe_file",
    "extract_backbone",
    "find_encoder",
    "load_strict",
    "read_arrays",
    "read_backbone",
    "read_card",
    "read_model",
    "read_pickle",
    "read_weights",
    "recorded_backbone",
    "recorded_card",
    "recorded_classes",
    "recorded_config",
    "render",
    "weights_file",
    "write_pickle",
    "write_weights",
]
