"""What is recorded about a weight file: by the identity card in it, or by the run folder that it lies in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from passl_densecl.config import BackboneConfig, BackboneSpec, Config, PretrainConfig, load_config, parse_config
from passl_densecl.disk import parse_json
from passl_densecl.errors import InputError
from passl_densecl.transforms import output_size
from passl_densecl.weights.card import Card, run_card
from passl_densecl.weights.checkpoints import MODEL, STATE
from passl_densecl.weights.files import read_card


@dataclass(frozen=True)
class BackboneOptions:
    """What a caller states about a backbone in a file. None: as the file's card says, else as published."""

    depth: int | None = None
    stem_stride: int | None = None
    last_stride: int | None = None
    prefix: str | None = None  # what stands before its names, where the file holds several

    def resolve(self, depth: int, recorded: BackboneSpec | None = None) -> BackboneSpec:
        """The backbone of `depth` with the strides that were stated, else those that are `recorded`."""
        base = recorded or BackboneSpec(depth)
        return BackboneSpec(depth, self.stem_stride or base.stem_stride, self.last_stride or base.last_stride)


def recorded_card(file: Path) -> Card | None:
    """The identity card of a weight file, or, for a checkpoint older than the cards, what its run folder says. None for
    a file of another program.

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


def recorded_sixteen_bit(file: Path) -> Literal["high_byte", "stretch"] | None:
    """How the run of the weights read images with 16 bits a value; None where nothing says it.

    Raises:
        InputError: not a weight file, a damaged card, or a recipe that is not known here.
    """
    config = recorded_config(file)
    return None if config is None else sixteen_bit_of(config)


def sixteen_bit_of(config: Config) -> Literal["high_byte", "stretch"]:
    """How a run reads images with 16 bits a value; a linear evaluation: those of its validation."""
    return (config.data if isinstance(config, PretrainConfig) else config.data.val).sixteen_bit


def recorded_size(file: Path) -> int | None:
    """Pixels per side of the images that the run of the weights trained on; None where nothing says it.

    Raises:
        InputError: not a weight file, a damaged card, or a recipe that is not known here.
    """
    config = recorded_config(file)
    if config is None:
        return None
    return output_size(config.data.transforms if isinstance(config, PretrainConfig) else config.data.val_transforms)
