"""Plain data, which is all that a weight file may hold: containers, numbers, text and numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

MAX_NESTING = 64
ARRAY_KINDS = "biufcSU"  # bool, integers, floats, complex, text; never objects, never records


def describe(value: object) -> str:
    """A value read from a file in a few words, for messages."""
    if isinstance(value, np.ndarray):
        return f"an array {list(value.shape)} of {value.dtype}"
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 2**128:  # Python refuses to print very large ones
        return f"int of {value.bit_length():,} bits"
    text = repr(value[:41] if isinstance(value, (str, bytes)) else value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def as_array(value: Any) -> np.ndarray | None:
    """The array of a numpy array or a tensor of Paddle or torch; None for anything else."""
    if not isinstance(value, np.ndarray) and hasattr(value, "numpy") and callable(value.numpy):
        value = np.asarray(value.numpy())
    return value if isinstance(value, np.ndarray) and value.dtype.kind in ARRAY_KINDS else None


def not_plain(value: object) -> TypeError:
    """The error for a value that cannot be written."""
    name = f"{type(value).__module__}.{type(value).__name__}"
    return TypeError(f"only plain data can be written, not {name}: {value!r:.80}")
