"""Plain data, which is all that a weight file may hold: containers, numbers, text and numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

MAX_NESTING = 64
ARRAY_KINDS = "biufcSU"  # bool, integers, floats, complex, text; never objects, never records


def as_array(value: Any) -> np.ndarray | None:
    """The array of a numpy array or a tensor of Paddle or torch; None for anything else."""
    if not isinstance(value, np.ndarray) and hasattr(value, "numpy") and callable(value.numpy):
        value = np.asarray(value.numpy())
    return value if isinstance(value, np.ndarray) and value.dtype.kind in ARRAY_KINDS else None


def not_plain(value: object) -> TypeError:
    """The error for a value that cannot be written."""
    name = f"{type(value).__module__}.{type(value).__name__}"
    return TypeError(f"only plain data can be written, not {name}: {value!r:.80}")
