"""Plain data, which is all that a weight file may hold: containers, numbers, text and numpy arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from passl_densecl.errors import InputError, option

Dtype = Literal["float32", "float16", "float64"]  # of weights that are written
MAX_NESTING = 64
ARRAY_KINDS = "biufcSU"  # bool, integers, floats, complex, text; never objects, never records


class UnfitError(Exception):
    """The file describes something other than plain data; :func:`explained` makes an InputError of it."""


@contextmanager
def explained(path: Path, size: int) -> Iterator[None]:
    """Around the reading of a file of ``size`` bytes: whatever is wrong with it is an InputError that names it."""
    try:
        yield
    except (InputError, OSError):
        raise
    except EOFError:
        raise InputError(
            f"{path}: the file ends too early, at {size:,} bytes; it was cut off: copy or download it again"
        ) from None
    except Exception as error:  # a damaged file can fail in any way
        reason = str(error) if isinstance(error, UnfitError) else f"{type(error).__name__}: {error!s:.200}"
        raise InputError(f"{path}: the file is damaged or hostile: {reason}; nothing in it was run") from None


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


def widened(bits: np.ndarray) -> np.ndarray:
    """bfloat16, given as its bits in 16-bit integers, as float32: the upper half of the same bits."""
    wide = bits.astype("u4", order="C")
    np.left_shift(wide, np.uint32(16), out=wide)  # in place: an array without dimensions stays one
    return wide.view("f4")


def in_dtype(arrays: Mapping[str, np.ndarray], dtype: Dtype = "float32") -> tuple[dict[str, np.ndarray], str]:
    """The same arrays, those of floating-point numbers in ``dtype``; and what was converted, in words ("float16 →
    float32, 102 arrays"), or "" when all of them had it.

    Raises:
        InputError: a number is too large for ``dtype``, or no such dtype.
    """
    if dtype not in get_args(Dtype):
        raise InputError(f"{option('dtype', dtype)}: expected {', '.join(get_args(Dtype))}")
    result, others = dict(arrays), [name for name, array in arrays.items() if array.dtype.kind == "f"]
    others = [name for name in others if arrays[name].dtype != np.dtype(dtype)]
    for name in others:
        with np.errstate(over="ignore"):
            result[name] = arrays[name].astype(dtype)
        if np.isfinite(arrays[name]).all() and not np.isfinite(result[name]).all():
            largest = float(np.abs(arrays[name]).max())
            raise InputError(f"{name} holds {largest:.3g}, too large for {dtype}; choose another {option('dtype')}")
    if not others:
        return result, ""
    before = " and ".join(sorted({str(arrays[name].dtype) for name in others}))
    return result, f"{before} → {dtype}, {len(others)} arrays"
