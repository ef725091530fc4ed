"""Weights are data: reading, writing, naming, extracting and loading them, without running anything from a file."""

from __future__ import annotations

from passl_densecl.weights.files import read_arrays, read_pickle, weights_file, write_pickle
from passl_densecl.weights.load import load_strict, read_backbone, recorded_model
from passl_densecl.weights.names import (
    Extraction,
    backbone_names,
    backbone_shapes,
    depth_of,
    extract_backbone,
    find_encoder,
)

__all__ = [
    "Extraction",
    "backbone_names",
    "backbone_shapes",
    "depth_of",
    "extract_backbone",
    "find_encoder",
    "load_strict",
    "read_arrays",
    "read_backbone",
    "read_pickle",
    "recorded_model",
    "weights_file",
    "write_pickle",
]
