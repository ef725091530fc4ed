"""Weights into layers: every name must fit, or nothing happens.

``Layer.set_state_dict`` only warns about names that are missing, unexpected or of another shape.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from passl_densecl.errors import InputError
from passl_densecl.text import listed

if TYPE_CHECKING:
    from paddle import Tensor
    from paddle.nn import Layer

SHOWN = 6


def load_strict(
    layer: Layer,
    arrays: Mapping[str, np.ndarray],
    *,
    may_miss: Collection[str] = (),
    source: str | os.PathLike[str] = "the weights",
) -> None:
    """Copy ``arrays`` into every weight and persistent buffer of ``layer``, or fail and change nothing.

    Numbers are converted to the layer's dtype within their kind: floats to floats, integers to integers.

    Args:
        layer: any layer; its ``state_dict()`` says which names are wanted.
        arrays: name → array for each of them, and for nothing else.
        may_miss: names that may be absent from ``arrays``; they keep their values.
        source: what the arrays are, for the message; usually the file.

    Raises:
        InputError: lists the names that are missing, unexpected, or of another shape or kind.
        ValueError: ``may_miss`` names something that the layer does not have.
    """
    state: dict[str, Tensor] = dict(layer.state_dict())
    strangers = sorted(set(may_miss) - set(state))
    if strangers:
        raise ValueError(f"may_miss names what {type(layer).__name__} does not have: {', '.join(strangers)}")
    missing = [name for name in state if name not in arrays and name not in may_miss]
    unexpected = [name for name in arrays if name not in state]
    unfit = [problem for name in state if name in arrays and (problem := _misfit(name, state[name], arrays[name]))]
    unfit += _contradictions(state, arrays)
    problems = [
        f"\n  {len(names)} {what}: {listed(names, SHOWN, quoted=False)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("that do not fit", unfit))
        if names
    ]
    if problems:
        from passl_densecl.weights.names import misfit_hint

        raise InputError(f"{source} do not fit {type(layer).__name__}{misfit_hint(state, arrays)}{''.join(problems)}")
    for name, target in state.items():
        if name in arrays:
            # A copy, so that the layer never shares memory with the caller's array.
            target.set_value(np.array(arrays[name], dtype=_numpy_dtype(target)))


def _numpy_dtype(tensor: Tensor) -> np.dtype:
    """The dtype that ``set_value`` wants; Paddle keeps bfloat16 in numpy as the bits in uint16."""
    name = str(tensor.dtype).removeprefix("paddle.")
    return np.dtype("uint16" if name == "bfloat16" else name)


def _misfit(name: str, target: Tensor, array: np.ndarray) -> str | None:
    if list(array.shape) != list(target.shape):
        return f"{name} is {list(array.shape)}, the model's is {list(target.shape)}"
    wanted = _numpy_dtype(target)
    if not np.can_cast(array.dtype, wanted, casting="same_kind") or (wanted == np.uint16) != (array.dtype == np.uint16):
        return f"{name} is {array.dtype}, the model's is {str(target.dtype).removeprefix('paddle.')}"
    return None


def _contradictions(state: Mapping[str, Tensor], arrays: Mapping[str, np.ndarray]) -> list[str]:
    """A layer that is reached by two attributes has two names; two values for it cannot both be meant."""
    first: dict[int, str] = {}
    problems = []
    for name, target in state.items():
        if name in arrays:
            other = first.setdefault(id(target), name)
            if not np.array_equal(arrays[other], arrays[name]):
                problems.append(f"{other} and {name} are one weight of the model with two different values")
    return problems
