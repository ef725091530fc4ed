"""Whole training states: encoders, projection heads, queues and pointers, from and to five kinds of checkpoints.

A state that training can go on from has the names of this project's model (``models/densecl.py``) and Paddle's layouts.
Without a dense part it is MoCo-v2's, which is DenseCL with ``loss_lambda`` 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from passl_densecl.errors import InputError
from passl_densecl.text import listed
from passl_densecl.weights.names import LAYOUTS, Layout, check_copy, encoder_vocabularies, match_layout, take_backbone
from passl_densecl.weights.vocabulary import VOCABULARIES, backbone_shapes, classifier_channels, translate

OURS = LAYOUTS["state"]
HEAD = ("0.weight", "0.bias", "2.weight", "2.bias")


@dataclass(frozen=True)
class TrainingState:
    """A training state under this project's names, in the order of its model."""

    arrays: dict[str, np.ndarray]
    kind: str  # what the file was
    vocabulary: str
    depth: int
    hidden_dim: int
    out_dim: int
    queue_len: int
    has_dense: bool

    def describe(self) -> str:
        dense = "global and dense" if self.has_dense else "no dense part"
        sizes = f"hidden_dim {self.hidden_dim}, out_dim {self.out_dim}, queue_len {self.queue_len:,}"
        return f"ResNet-{self.depth}, {dense}, {sizes}"


def state_shapes(depth: int, hidden_dim: int, out_dim: int, queue_len: int, dense: bool) -> dict[str, tuple[int, ...]]:
    """Name → shape of everything in ``models.DenseCL(…).state_dict()``, in its order."""
    width = classifier_channels(depth)
    shapes: dict[str, tuple[int, ...]] = {}
    linear = ((width, hidden_dim), (hidden_dim,), (hidden_dim, out_dim), (out_dim,))
    convolution = ((hidden_dim, width, 1, 1), (hidden_dim,), (out_dim, hidden_dim, 1, 1), (out_dim,))
    for backbone, *heads in zip(OURS.backbones, OURS.global_heads, OURS.dense_heads or (), strict=True):
        shapes |= {backbone + name: shape for name, shape in backbone_shapes(depth).items()}
        for head, wanted in zip(heads if dense else heads[:1], (linear, convolution), strict=False):
            shapes |= {head + name: shape for name, shape in zip(HEAD, wanted, strict=True)}
    for keys, pointer in (OURS.global_queue, OURS.dense_queue) if dense else (OURS.global_queue,):
        shapes |= {keys: (queue_len, out_dim), pointer: (1,)}
    return shapes


def read_state(arrays: Mapping[str, np.ndarray], expected: str | None = None) -> TrainingState:
    """Recognize a whole training state and give it this project's names and layouts.

    Args:
        arrays: name → array of a whole checkpoint.
        expected: a key of ``LAYOUTS`` that it must be.

    Raises:
        InputError: not a training state that we know, or one of its arrays is missing, left over or does not fit.
    """
    found = encoder_vocabularies(arrays)
    match = match_layout(found)
    if match is None or (expected is not None and LAYOUTS[expected] is not match[0]):
        wanted = LAYOUTS[expected].kind if expected else "whole training state (both encoders and their queues)"
        what = (
            f"a {match[0].kind}"
            if match
            else f"backbones behind {listed([repr(p) for p in found], 5, quoted=False)}"
            if found
            else "none"
        )
        raise InputError(f"no {wanted} in the file; it holds {what}")
    layout, outer = match
    result: dict[str, np.ndarray] = {}
    used: set[str] = set()
    depths = []
    for ours, theirs in zip(OURS.backbones, layout.backbones, strict=True):
        try:
            depth, backbone, names = take_backbone(arrays, outer + theirs, layout.vocabulary)
        except InputError as error:
            raise InputError(f"behind '{outer + theirs}': {error}") from None
        depths.append(depth)
        used |= names.keys()
        result |= {ours + name: array for name, array in backbone.items()}
    if depths[0] != depths[1]:
        raise InputError(f"the query encoder is a ResNet-{depths[0]}, the key encoder a ResNet-{depths[1]}")
    has_dense = layout.dense_heads is not None and any(n.startswith(outer + layout.dense_heads[0]) for n in arrays)
    rest = {outer + theirs: ours for theirs, ours in _head_and_queue_names(layout, has_dense).items()}
    missing = [name for name in rest if name not in arrays]
    if missing:
        raise InputError(f"not a whole {layout.kind}: {len(missing)} missing: {listed(missing, 5, quoted=False)}")
    result |= {ours: _turned(arrays[theirs], ours, layout) for theirs, ours in rest.items()}
    used |= rest.keys()
    allowed = {outer + name for name in layout.companions}
    if layout.copy_of_query is not None:
        allowed |= check_copy(arrays, outer + layout.backbones[0], outer + layout.copy_of_query)
    left = [name for name in arrays if name not in used and name not in allowed]
    if left:
        raise InputError(f"a {layout.kind} with {len(left)} names left over: {listed(left, 5, quoted=False)}")
    return _checked(result, layout, depths[0], has_dense)


def write_state(state: TrainingState, to: str) -> dict[str, np.ndarray]:
    """A training state under the names and layouts of a kind of checkpoint, a key of ``LAYOUTS``.

    Raises:
        InputError: the kind has no place for a dense part.
    """
    layout = LAYOUTS[to]
    if layout is OURS:
        return dict(state.arrays)
    if state.has_dense and layout.dense_heads is None:
        raise InputError(
            f"a {layout.kind} has no place for the dense head and its queue; only a state without them fits"
        )
    outer = "module." if to == "moco-state" else ""  # as MoCo's own training writes it
    result: dict[str, np.ndarray] = {}
    result |= {name: np.asarray(value, "int64") for name, value in layout.companions.items()}
    for ours, theirs in zip(OURS.backbones, layout.backbones, strict=True):
        backbone = {n.removeprefix(ours): a for n, a in state.arrays.items() if n.startswith(ours)}
        named = translate(backbone, layout.vocabulary, state.depth)
        result |= {outer + theirs + name: array for name, array in named.items()}
        if layout.copy_of_query is not None and ours == OURS.backbones[0]:
            result |= {outer + layout.copy_of_query + name: array for name, array in named.items()}
    rest = _head_and_queue_names(layout, state.has_dense)
    return result | {outer + theirs: _turned(state.arrays[ours], ours, layout) for theirs, ours in rest.items()}


def _head_and_queue_names(layout: Layout, dense: bool) -> dict[str, str]:
    """Their name → ours of all that is not backbone."""
    prefixes = list(zip(layout.global_heads, OURS.global_heads, strict=True))
    queues = [(layout.global_queue, OURS.global_queue)]
    if dense:
        prefixes += zip(layout.dense_heads or (), OURS.dense_heads or (), strict=True)
        queues += [(layout.dense_queue, OURS.dense_queue)]
    names = {theirs + entry: ours + entry for theirs, ours in prefixes for entry in HEAD}
    for theirs, ours in queues:
        names |= dict(zip(theirs, ours, strict=True))
    return names


def _turned(array: np.ndarray, ours: str, layout: Layout) -> np.ndarray:
    """An array between a layout and ours, in either direction: Linear weights and queues may be transposed."""
    if ours in (OURS.global_queue[1], OURS.dense_queue[1]) and array.size == 1 and array.dtype.kind in "iu":
        return array.reshape(1).astype("int64")
    is_queue = ours in (OURS.global_queue[0], OURS.dense_queue[0])
    is_matrix = ours.endswith(".weight") and ours.startswith(OURS.global_heads)
    turned = not layout.keys_are_rows if is_queue else is_matrix and VOCABULARIES[layout.vocabulary].is_torch
    return np.ascontiguousarray(array.T) if turned else array


def _checked(result: dict[str, np.ndarray], layout: Layout, depth: int, has_dense: bool) -> TrainingState:
    """The state, once every shape agrees with the others and every value is a number."""
    first, last, keys = (
        result[OURS.global_heads[0] + "0.weight"],
        result[OURS.global_heads[0] + "2.weight"],
        result[OURS.global_queue[0]],
    )
    if not first.ndim == last.ndim == keys.ndim == 2:
        raise InputError(f"the global head and queue of a {layout.kind} must be matrices")
    sizes = (first.shape[1], last.shape[1], keys.shape[0])
    shapes = state_shapes(depth, *sizes, has_dense)
    wrong = [f"{n} is {list(result[n].shape)}, not {list(s)}" for n, s in shapes.items() if result[n].shape != s]
    if wrong:
        what = f"the parts of this {layout.kind} do not fit together (as this project names and lays them)"
        raise InputError(f"{what}: {listed(wrong, 5, quoted=False)}")
    pointers = {OURS.global_queue[1], OURS.dense_queue[1]}

    def is_fit(name: str, array: np.ndarray) -> bool:
        if name in pointers:
            return array.dtype.kind in "iu" and 0 <= array[0] < sizes[2]
        return array.dtype.kind == "f" and bool(np.isfinite(array).all())

    if unfit := [name for name in shapes if not is_fit(name, result[name])]:
        raise InputError(
            f"values that cannot be (not finite, or a pointer outside its queue): {listed(unfit, 5, quoted=False)}"
        )
    return TrainingState({n: result[n] for n in shapes}, layout.kind, layout.vocabulary, depth, *sizes, has_dense)
