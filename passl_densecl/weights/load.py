"""Weights into layers: every name must fit, or nothing happens.

``Layer.set_state_dict`` only warns about names that are missing, unexpected or of another shape.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from passl_densecl.disk import parse_json
from passl_densecl.errors import InputError
from passl_densecl.weights.card import Card, run_card
from passl_densecl.weights.checkpoints import MODEL, STATE
from passl_densecl.weights.files import read_card, read_weights, weights_file
from passl_densecl.weights.names import (
    Extraction,
    depth_of,
    encoder_prefixes,
    encoder_vocabularies,
    extract_backbone,
    match_layout,
    unwrap,
)
from passl_densecl.weights.state import read_state

if TYPE_CHECKING:
    from paddle import Tensor
    from paddle.nn import Layer

    from passl_densecl.config import BackboneSpec, Config

SHOWN = 6


def read_backbone(
    path: str | os.PathLike[str], *, encoder: Literal["query", "key"] = "query", prefix: str | None = None
) -> Extraction:
    """The backbone in a file, a checkpoint folder or a run folder of any kind that ``extract_backbone`` knows.

    Raises:
        InputError: nothing there, not readable as plain data, or no backbone in it; names the file.
    """
    file = weights_file(path)
    content = read_weights(file).content
    try:
        return extract_backbone(unwrap(content), encoder=encoder, prefix=prefix)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def read_model(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Everything that a file holds of a model, whoever wrote it, under this project's names.

    A whole training state has both encoders, necks and queues (``query_encoder.…``), a classifier ``backbone.…`` and
    ``fc.…``, a backbone the plain names of ``paddle.vision``.

    Raises:
        InputError: not readable as plain data, no model in it, or one that is not whole; names the file.
    """
    file = weights_file(path)
    content = read_weights(file).content
    try:
        table = unwrap(content)
        if match_layout(encoder_vocabularies(table)):
            return read_state(table).arrays
        taken = extract_backbone(table)
        classifier = taken.classifier()
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    if not classifier:
        return taken.backbone
    return {f"backbone.{name}": array for name, array in taken.backbone.items()} | classifier


def recorded_card(file: Path) -> Card | None:
    """What a file of weights is: its identity card, or, for a checkpoint of a run before there were cards, what the run's
    folder says. None for a file of another library.

    Raises:
        InputError: not a weight file, or a damaged card.
    """
    card = read_card(file)
    if card is not None:
        return card
    folder = file.resolve().parent.parent
    config = folder.parent / "config.yaml"
    if folder.name != "checkpoints" or not config.is_file():
        return None
    from passl_densecl.config import load_config

    state = _state_beside(file)
    step, per_epoch = state.get("step"), state.get("steps_per_epoch")
    return run_card(
        load_config(config),
        step=step,
        epoch=step // per_epoch if step is not None and per_epoch else None,
        classes=recorded_classes(file),
    )


def recorded_backbone(file: Path) -> BackboneSpec | None:
    """Depth and strides of the backbone in a file, as its card or its run's folder says; None where nothing does.

    The only places that tell the strides: the names and shapes of the weights do not depend on them.

    Raises:
        InputError: not a weight file, or a card that says what no ResNet has.
    """
    card = recorded_card(file)
    if card is None or card.depth is None or card.stem_stride is None or card.last_stride is None:
        return None
    from pydantic import ValidationError

    from passl_densecl.config import BackboneConfig

    said = {"depth": card.depth, "stem_stride": card.stem_stride, "last_stride": card.last_stride}
    try:
        return BackboneConfig.model_validate(said).backbone
    except ValidationError as error:
        wrong = "; ".join(f"{each['loc'][0]} {each['input']!r}: {each['msg']}" for each in error.errors())
        raise InputError(f"{file}: the identity card names a model that is not known here ({wrong})") from None


def recorded_config(file: Path) -> Config | None:
    """The recipe of the run that made the weights, as their card or the run's folder says; None where nothing does.

    Cards name no folders: "." stands for all of them.

    Raises:
        InputError: not a weight file, a damaged card, or a recipe that is not known here.
    """
    card = recorded_card(file)
    if card is None or card.config is None:
        return None
    from passl_densecl.config import parse_config

    folders = {"root": "."} if card.config.get("task") == "pretrain" else {"train": {"root": "."}, "val": {"root": "."}}
    data = card.config.get("data", {})
    recipe = {**card.config, "data": {**folders, **data} if isinstance(data, dict) else data}  # the check names others
    return parse_config(recipe, source=f"{file}, the recipe in its identity card")


def recorded_classes(file: Path, count: int | None = None) -> tuple[str, ...] | None:
    """The class names of a classifier, in the order of its outputs, as its card or the state.json beside it says.

    Raises:
        InputError: not a weight file, a damaged card, or names for another number of classes than `count`.
    """
    card = read_card(file)
    names = card.classes if card is not None else None
    if names is None and file.name == MODEL:
        names = tuple(_state_beside(file).get("classes", ())) or None
    if None not in (names, count) and len(names or ()) != count:
        raise InputError(
            f"{file} is a classifier of {count} classes, but {len(names or ())} class names are recorded for it"
        )
    return names


def _state_beside(file: Path) -> dict[str, Any]:
    """The numbers and classes of the checkpoint's state.json that are of use; what is not as expected is left out."""
    try:
        state = parse_json((file.parent / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(state, dict):
        return {}
    found = {key: state[key] for key in ("step", "steps_per_epoch") if type(state.get(key)) is int}
    classes = state.get("classes")
    if isinstance(classes, list) and all(isinstance(name, str) for name in classes):
        found["classes"] = classes
    return found


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
        f"\n  {len(names)} {what}: {', '.join(names[:SHOWN])}"
        + (f", … ({len(names) - SHOWN} more)" if len(names) > SHOWN else "")
        for what, names in (("missing", missing), ("unexpected", unexpected), ("that do not fit", unfit))
        if names
    ]
    if problems:
        raise InputError(f"{source} do not fit {type(layer).__name__}{_hint(state, arrays)}{''.join(problems)}")
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


def _hint(state: Mapping[str, Tensor], arrays: Mapping[str, np.ndarray]) -> str:
    """The usual reasons, where the names show one: another depth, another prefix."""
    asked, held = _depths(state), _depths(arrays)
    for prefix, depth in asked.items():
        other = held.get(prefix)
        if depth and other and depth != other:
            return (
                f": the file holds a ResNet-{other}, the config asks for ResNet-{depth}: "
                f"set model.depth: {other} or choose another file"
            )
    if asked and held and not set(asked) & set(held):
        return f": the file's backbone stands behind {_quoted(held)}, the model's behind {_quoted(asked)}"
    return ""


def _depths(names: Collection[str]) -> dict[str, int | None]:
    """Prefix → depth of every backbone among ``names``."""
    return {
        prefix: depth_of(name[len(prefix) :] for name in names if name.startswith(prefix))
        for prefix in encoder_prefixes(names)
    }


def _quoted(prefixes: Collection[str]) -> str:
    return " and ".join(f"'{prefix}'" if prefix else "no prefix" for prefix in prefixes)
