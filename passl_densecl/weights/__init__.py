"""Weights are data: reading, writing, naming, extracting and loading them, without running anything from a file."""

from __future__ import annotations

import importlib
from typing import Any

# The names that others use → the module that defines each. It is imported when a name is first asked for.
_NAMES = {
    "card": ("Card", "Parent"),
    "files": ("WeightFile", "read_arrays", "read_card", "read_weights", "weights_file"),
    "info": ("FileInfo", "describe_file", "render"),
    "load": ("load_strict",),
    "names": ("Extraction", "depth_of", "extract_backbone", "find_encoder"),
    "read": ("read_backbone", "read_classifier", "read_model", "read_training_state"),
    "recorded": ("recorded_backbone", "recorded_card", "recorded_classes", "recorded_config"),
    "vocabulary": ("backbone_names", "backbone_shapes"),
    "writing": ("write_pickle", "write_weights"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
