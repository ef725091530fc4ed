"""How many tensors of a file a toolbox will use: its own rule of matching, without the toolbox.

The toolboxes do not report it. PaddleDetection matches names by suffix and drops the rest, PaddleClas compares whole
names, detectron2 compares whole names unless the file asks for its heuristics; all pass over tensors of another shape
and go on with random weights where nothing fits. PaddleDetection and detectron2 convert the numbers' dtype; PaddleClas
loads nothing of a file with another dtype than float32. In PaddleSeg our plug-in reads the file, all or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from passl_densecl.errors import InputError
from passl_densecl.integrations.toolboxes import TOOLBOXES, Kind
from passl_densecl.weights.convert import TARGETS
from passl_densecl.weights.files import read_weights
from passl_densecl.weights.names import extract_backbone
from passl_densecl.weights.tables import unwrap
from passl_densecl.weights.vocabulary import named_shapes


@dataclass(frozen=True)
class Network:
    """The part of a toolbox's model that takes the backbone's weights."""

    toolbox: Kind
    depth: int
    deep_stem: bool = False  # three 3×3 convolutions in the place of the 7×7
    pooled_shortcuts: bool = False  # variant d: average pooling before the shortcut; renames it in PaddleDetection
    has_fpn: bool = True
    res5_in_head: bool = False  # the C4 networks

    @property
    def vocabulary(self) -> str:
        """Whose names its weights have."""
        return TARGETS[TOOLBOXES[self.toolbox].target].vocabulary

    def plain_shapes(self) -> dict[str, tuple[int, ...]]:
        """The toolbox's names and shapes of a plain ResNet's tensors, with the shortcut of ResNet-18's first block."""
        return named_shapes(self.vocabulary, self.depth)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of them that the toolbox's model has, with the parts of the model they stand in."""
        plain = self.plain_shapes().items()
        return {self._place(name): shape for name, shape in plain if not (self.deep_stem and _of_stem(name))}

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
    example: str  # a name in the file
    reason: str = ""  # why the toolbox takes none of them, though the names fit

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
    heuristics = network.toolbox == "paddledetection"
    if network.toolbox in ("detectron2", "adelaidet"):
        heuristics = bool(table.get("matching_heuristics")) or "__author__" in table
        table = table.get("model", table)
    # The Paddle toolboxes take the file itself as the table: what lies under 'state_dict' they do not find.
    arrays = {name: value for name, value in table.items() if isinstance(value, np.ndarray)}
    total, example = len(network.plain_shapes()), next(iter(arrays), "nothing")
    matched, reason = _matches(network.shapes(), arrays, heuristics), ""
    if network.toolbox == "paddleseg":
        matched, reason = _read_by_plugin(content, network.depth, total)
    elif network.toolbox == "paddleclas":
        others = sorted({str(array.dtype) for array in arrays.values()} - {"float32"})
        if matched and others:
            matched, reason = 0, f"{' and '.join(others)}: it stops at numbers that are not float32"
    return Match(matched, total, example, reason)


def _read_by_plugin(content: object, depth: int, total: int) -> tuple[int, str]:
    try:
        found = extract_backbone(unwrap(content)).depth
    except InputError as error:
        return 0, str(error)
    return (total, "") if found == depth else (0, f"a ResNet-{found}, not a ResNet-{depth}")


def _of_stem(name: str) -> bool:
    return name.startswith(("conv1.", "bn1.", "stem."))


def _matches(wanted: Mapping[str, tuple[int, ...]], arrays: Mapping[str, np.ndarray], heuristics: bool) -> int:
    """How many wanted tensors are in the file in the right shape: under their whole name or, with `heuristics`, under
    the longest end of it that is there."""
    if heuristics:
        arrays = {n.removeprefix("backbone.") if n.startswith("backbone.res5") else n: a for n, a in arrays.items()}
    found = 0
    for name, shape in wanted.items():
        parts = name.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts) if heuristics else 1))
        found += next((arrays[end].shape == shape for end in ends if end in arrays), False)
    return found
