"""Checks of an export's target and of the packages it needs; made before Paddle is imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from passl_densecl.errors import InputError

FORMATS: dict[str, str] = {"paddle": "paddle.inference", "onnx": "onnxruntime"}  # format → runtime


def require(format: str) -> None:
    """Raise InputError, with the install command, when a package that writes or runs `format` is missing."""
    missing = [name for name in ("onnx", "onnxruntime") if format == "onnx" and importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"exporting to ONNX needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def check_output(out: Path, format: str) -> None:
    """Raise InputError when `out` exists, its folder does not, or its name does not fit `format`."""
    if (out.suffix == ".onnx") != (format == "onnx"):
        wanted = "a file whose name ends in .onnx" if format == "onnx" else "a new folder"
        raise InputError(f"{out}: format {format} writes {wanted}")
    if out.exists():
        raise InputError(f"{out} exists; remove it or choose another name")
    if not out.parent.is_dir():
        raise InputError(f"{out}: the folder {out.parent} does not exist; create it first")
