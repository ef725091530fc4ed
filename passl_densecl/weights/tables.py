"""The table of arrays in what a file holds: the file itself, an entry of a checkpoint, or several nested in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, get_args

import numpy as np

from passl_densecl.errors import InputError, option
from passl_densecl.text import listed
from passl_densecl.weights.names import encoder_vocabularies, known_network
from passl_densecl.weights.reading import describe

Dtype = Literal["float32", "float16", "float64"]  # of weights that are written

# The dictionary of weights inside a checkpoint that holds other things as well.
WRAPPERS = ("state_dict", "model", "model_state_dict")


def unwrap(content: object) -> dict[str, np.ndarray]:
    """The table of arrays in what a file holds: itself, the value of ``state_dict`` and the like in a checkpoint, or
    all nested tables in one (DINO's ``student`` and ``teacher``, VISSL's ``classy_state_dict``), names joined by dots.

    Raises:
        InputError: there is none; says what there is.
    """
    return _unwrapped(content)[0]


def beside(content: object) -> tuple[str, ...]:
    """The entries of a checkpoint beside its table of weights."""
    return _unwrapped(content)[1]


def _unwrapped(content: object) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    if _is_table(content):
        return content, ()  # type: ignore[return-value]
    if isinstance(content, dict):
        for wrapper in WRAPPERS:
            if _is_table(content.get(wrapper)):
                return content[wrapper], tuple(str(key) for key in content if key != wrapper)
        nested = dict(_arrays(content, "", set()))
        if encoder_vocabularies(nested) or known_network(nested):
            used = {name.split(".")[0] for name in nested}
            return nested, tuple(str(key) for key in content if str(key).split(".")[0] not in used)
        entries = [f"{key!r}: {describe(value)}" for key, value in content.items()]
        inside = f"entries {listed(entries, 5, quoted=False)}" if entries else "nothing"
    else:
        inside = describe(content)
    raise InputError(
        f"no table of names and arrays, plain or under {', '.join(map(repr, WRAPPERS))}: the file holds {inside}"
    )


def _arrays(value: dict, before: str, seen: set[int]) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays in nested tables; one that is there for the second time is passed over, or a small file could unfold
    without end."""
    seen.add(id(value))
    for key, item in value.items():
        if isinstance(key, str) and isinstance(item, np.ndarray):
            yield before + key, item
        elif isinstance(key, str) and isinstance(item, dict) and id(item) not in seen:
            yield from _arrays(item, f"{before}{key}.", seen)


def _is_table(value: object) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(array, np.ndarray) for name, array in value.items())
    )


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
