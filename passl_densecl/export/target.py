"""Where an exported network goes, and what that needs; checked before Paddle is imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from passl_densecl.errors import InputError

FORMATS: dict[str, str] = {"paddle": "paddle.inference", "onnx": "onnxruntime"}  # → the engine that runs it


def require(format: str) -> None:
    """Raise InputError, with the line that installs it, when a package is missing that writes or runs `format`."""
    missing = [name for name in ("onnx", "onnxruntime") if format == "onnx" and importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"exporting to ONNX needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def check_output(out: Path, format: str) -> None:
    """Raise InputError when `out` is taken, has no folder to stand in, or does not look like what `format` writes."""
    if (out.suffix == ".onnx") != (format == "onnx"):
        wanted = "a file whose name ends in .onnx" if format == "onnx" else "the name of a folder to make"
        raise InputError(f"{out}: format {format} writes {wanted}")
    if out.exists():
        raise InputError(f"{out} exists; remove it or choose another name")
    if not out.parent.is_dir():
        raise InputError(f"{out}: the folder {out.parent} does not exist; create it first")
