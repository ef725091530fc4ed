"""How many tensors of a file a toolbox will use: its own rule of matching, on names alone, without the toolbox.

The toolboxes do not report it. PaddleDetection matches by suffix and drops the rest, PaddleClas and PaddleSeg compare
whole names, detectron2 compares whole names unless the file asks for its heuristics; all go on with random weights
where nothing fits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from passl_densecl.integrations.toolboxes import Kind
from passl_densecl.weights.files import read_weights
from passl_densecl.weights.vocabulary import VOCABULARIES, companions, translations

VOCABULARY: dict[Kind, str] = {
    "paddledetection": "paddledetection",
    "paddleseg": "paddle",
    "paddleclas": "paddleclas",
    "detectron2": "detectron2",
    "adelaidet": "detectron2",
}


@dataclass(frozen=True)
class Network:
    """The part of a toolbox's model that takes the backbone's weights."""

    toolbox: Kind
    depth: int
    deep_stem: bool = False  # three 3×3 convolutions in the place of the 7×7
    pooled_shortcuts: bool = False  # variant d: average pooling before the shortcut; renames it in PaddleDetection
    has_fpn: bool = True
    res5_in_head: bool = False  # the C4 networks

    def plain_names(self) -> list[str]:
        """The toolbox's names of a plain ResNet's tensors, including the shortcut of ResNet-18's first block."""
        names = [*translations(VOCABULARY[self.toolbox], self.depth)]
        if VOCABULARIES[VOCABULARY[self.toolbox]].widest_shortcut:
            names += companions(VOCABULARY[self.toolbox], self.depth)
        return names

    def names(self) -> list[str]:
        """Those of them that the toolbox's model has, with the parts of the model they stand in."""
        return [self._place(name) for name in self.plain_names() if not (self.deep_stem and _of_stem(name))]

    def _place(self, name: str) -> str:
        if self.pooled_shortcuts and self.toolbox == "paddledetection" and not name.startswith("res2."):
            name = name.replace(".short.", ".short.conv.")
        if self.toolbox in ("paddleclas", "paddleseg"):
            return name
        in_head = self.res5_in_head and name.startswith("res5.")
        if self.toolbox == "paddledetection":
            return ("bbox_head.head." if in_head else "backbone.") + name
        if in_head:
            return "roi_heads." + name
        return ("backbone.bottom_up." if self.has_fpn else "backbone.") + name


@dataclass(frozen=True)
class Match:
    """How many of the backbone's tensors come out of a file."""

    matched: int
    total: int
    in_file: int
    example: str  # a name in the file

    @property
    def whole(self) -> bool:
        return self.matched == self.total


def count_matches(path: Path, network: Network) -> Match:
    """What the toolbox will make of a file.

    Raises:
        InputError: the file cannot be read as weights.
    """
    content = read_weights(path).content
    table = content if isinstance(content, dict) else {}
    heuristics = False
    if network.toolbox in ("detectron2", "adelaidet"):
        heuristics = bool(table.get("matching_heuristics")) or "__author__" in table
        table = table.get("model", table)
    # The Paddle toolboxes take the file itself as the table: what lies under 'state_dict' they do not find.
    names = [name for name, value in table.items() if isinstance(value, np.ndarray)]
    wanted = network.names()
    matched = _suffix_matches(wanted, names) if heuristics or network.toolbox == "paddledetection" else None
    if matched is None:
        matched = len(set(wanted) & set(names))
    return Match(matched, len(network.plain_names()), len(names), next(iter(names), "nothing"))


def _of_stem(name: str) -> bool:
    return name.startswith(("conv1.", "bn1.", "stem."))


def _suffix_matches(wanted: Iterable[str], names: Collection[str]) -> int:
    """How many wanted names end in a whole part of a name in the file."""
    known = {name.removeprefix("backbone.") if name.startswith("backbone.res5") else name for name in names}
    found = 0
    for name in wanted:
        parts = name.split(".")
        found += any(".".join(parts[start:]) in known for start in range(len(parts)))
    return found
