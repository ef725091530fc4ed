"""Identity cards: every weight file that this project writes says what it is and what it was made from.

A card travels inside the file, where other libraries do not look: as a comment of a pickle, as a record of its own in a
torch file, in the metadata of a safetensors file. It holds no times and no folders, so that equal weights with equal
origins are equal files. A card says its format; one of a newer format is refused, and the file with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from passl_densecl import __version__
from passl_densecl.disk import sha256_of

if TYPE_CHECKING:
    from passl_densecl.config import LinearConfig, PretrainConfig

PRETRAINING, CLASSIFIER = "pre-training checkpoint", "linear classifier"
BACKBONE, OPTIMIZER = "backbone", "optimizer state"
FOREIGN = "file without a card"  # the kind of a parent that this project did not write

FORMAT = 1  # raised when an entry changes its meaning; a new entry alone needs no new format
MAX_BYTES = 2**20
PICKLE_START = b"\x80\x04\x8d"  # of a pickle with a card: protocol 4, then a text, whose length and bytes follow
MAGIC = "passl_densecl card "

# Where a run's images lie, what it ran on, how often it was saved and when it gives up say nothing about its weights.
_PLACES: dict[str, Any] = {"data": {"root", "list_file", "train", "val", "num_workers"}}
_PLACES |= dict.fromkeys(
    ("output_dir", "device", "checkpoint", "log_every_steps", "loggers", "report", "guard", "dist_timeout"), True
)


class _Entry(BaseModel):
    # What a newer version has added in the same format is kept; a number for a text is an error.
    model_config = ConfigDict(extra="allow", frozen=True)


class Parent(_Entry):
    """A file from which another one was made."""

    file: str  # its name, without folders
    sha256: str  # of its bytes
    kind: str

    @classmethod
    def of(cls, path: Path, kind: str) -> Parent:
        """The parent that the file at ``path`` is; reads it once."""
        return cls(file=path.name, sha256=sha256_of(path), kind=kind)


class Card(_Entry):
    """What a weight file is. Everything but the kind may be unknown."""

    kind: str
    names: str = "paddle"  # whose names the weights have: "paddle", "torchvision", "detectron2", …
    encoder: str | None = None  # "query" or "key", of a backbone taken out of a pre-training checkpoint
    depth: int | None = None  # of the ResNet
    stem_stride: int | None = None
    last_stride: int | None = None
    epoch: int | None = None  # whole epochs trained
    step: int | None = None  # optimizer steps taken
    classes: tuple[str, ...] | None = None  # of a classifier, in the order of its outputs
    config: dict[str, Any] | None = None  # of the run, without its folders
    parents: tuple[Parent, ...] = ()
    version: str = __version__  # of passl_densecl
    format: int = FORMAT  # cards of before there was this entry have format 1

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, without what is unknown."""
        return self.model_dump(mode="json", exclude_none=True)

    def replace(self, **changes: Any) -> Card:
        return self.model_copy(update=changes)


def run_card(
    config: PretrainConfig | LinearConfig,
    *,
    epoch: int | None,
    step: int | None,
    classes: tuple[str, ...] | None = None,
    parents: tuple[Parent, ...] = (),
) -> Card:
    """The card of a run's checkpoint after ``step`` optimizer steps, with the config but for ``_PLACES``."""
    return Card(
        kind=PRETRAINING if config.task == "pretrain" else CLASSIFIER,
        depth=config.model.depth,
        stem_stride=config.model.stem_stride,
        last_stride=config.model.last_stride,
        epoch=epoch,
        step=step,
        classes=classes,
        config=config.model_dump(mode="json", exclude=_PLACES),
        parents=parents,
    )


def encode(card: Card | Mapping[str, Any]) -> bytes:
    """The text that is stored in a file; equal cards give equal bytes."""
    values = card.to_dict() if isinstance(card, Card) else card
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)  # ASCII: names may be any bytes
    if len(text) > MAX_BYTES:
        raise ValueError(f"an identity card of {len(text):,} bytes; at most {MAX_BYTES:,} are meant")
    return (MAGIC + text).encode("ascii")
