"""Pairs of augmented views, from the same random draws as in the run, beside the whole images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from passl_densecl.config import PretrainConfig
from passl_densecl.data.datasets import ImageSet, PairDataset, UndecodableImage
from passl_densecl.data.loader import epoch_order
from passl_densecl.errors import InputError
from passl_densecl.transforms import Crop, RandomResizedCrop
from passl_densecl.visualize import style
from passl_densecl.visualize.style import FIRST, INK, LINES, SECOND

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TILE = 1.41  # inches
_ORIGINAL = 512  # pixels: longer side of the drawn image, at most


@dataclass(frozen=True)
class Pair:
    """An image and its two views in one epoch."""

    index: int  # of the image in its set
    original: np.ndarray | None  # uint8 RGB, perhaps reduced; None when another image replaces a bad one
    query: np.ndarray  # uint8 RGB (size, size, 3)
    key: np.ndarray
    crops: tuple[Crop, Crop] | None  # in pixels of `original`; None unless the first transform crops


def training_pairs(
    config: PretrainConfig,
    images: ImageSet,
    count: int,
    epoch: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Pair]:
    """The first `count` pairs of an epoch (counted from 1, as in the log), pixel for pixel as in training.

    Raises:
        InputError: an epoch that the run does not have, or too few images.
        RunError: neither an image nor any of its replacements can be decoded.
    """
    if not 1 <= epoch <= config.epochs:
        raise InputError(f"epoch {epoch}: the run has epochs 1 to {config.epochs}")
    if not 1 <= count <= len(images):
        raise InputError(f"{count} images: expected 1 to {len(images):,}, the images {images.source}")
    dataset = PairDataset(images, config.data.transforms, config.seed)
    pairs = []
    for number, index in enumerate(epoch_order(len(images), config.seed, epoch - 1)[:count].tolist()):
        query, key, _, why = dataset[epoch - 1, index]
        original, crops = (None, None) if why.item() else _original(config, images, epoch - 1, index)
        pairs.append(Pair(index, original, query, key, crops))
        if progress is not None:
            progress(number + 1, count)
    return pairs


def _original(
    config: PretrainConfig, images: ImageSet, epoch: int, index: int
) -> tuple[np.ndarray | None, tuple[Crop, Crop] | None]:
    """The whole image, reduced for the picture, and its two crops."""
    try:
        image = images.decode(index)
    except UndecodableImage:
        return None, None
    small = style.at_most(image, _ORIGINAL)
    first = config.data.transforms[0]
    if not isinstance(first, RandomResizedCrop):
        return small, None
    scale = small.shape[0] / image.shape[0]
    # The crop is the first draw of a view's random stream; see PairDataset.
    rngs = (np.random.default_rng([config.seed, epoch, index, view]) for view in (0, 1))
    drawn = (first.draw(rng, image.shape[0], image.shape[1]) for rng in rngs)
    query, key = (Crop(*(round(side * scale) for side in crop)) for crop in drawn)
    return small, (query, key)


@style.styled
def draw_pairs(pairs: list[Pair], *, title: str | None = "", columns: int = 2) -> Figure:
    """A grid of (image with both crops, query view, key view), `columns` of them side by side."""
    from matplotlib.gridspec import GridSpec

    columns = min(columns, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = style.new_figure(columns * (3 * _TILE + 0.25), rows * (_TILE + 0.06) + (0.35 if title is None else 0.95))
    widths = [width for column in range(columns) for width in (*([0.12] if column else []), 1, 1, 1)]
    cells = GridSpec(rows, len(widths), figure, width_ratios=widths)
    for number, pair in enumerate(pairs):
        row, column = divmod(number, columns)
        at = column * 4
        original, query, key = (figure.add_subplot(cells[row, at + offset]) for offset in range(3))
        _draw_original(original, pair)
        for axes, view, color, line in ((query, pair.query, FIRST, LINES[0]), (key, pair.key, SECOND, LINES[1])):
            style.show_image(axes, view)
            style.frame(axes, color, line)
        if row == 0:
            titles = {"image, crops": (original, INK), "query view": (query, FIRST), "key view": (key, SECOND)}
            for name, (axes, color) in titles.items():
                axes.set_title(name, color=color, loc="center", fontsize=9.5)
    if title is not None:
        style.heading(figure, title, "solid frame: query; dashed frame: key")
    return figure


def _draw_original(axes: Axes, pair: Pair) -> None:
    from matplotlib.patches import Rectangle

    if pair.original is None:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "cannot be\ndecoded;\nreplaced by\nits neighbor", ha="center", va="center", fontsize=9)
        return
    style.show_image(axes, pair.original)
    axes.set_anchor("C")
    for crop, color, line in zip(pair.crops or (), (FIRST, SECOND), LINES, strict=False):
        corner = (crop.left - 0.5, crop.top - 0.5)
        for edge, width, edge_line in (("white", 3.4, "solid"), (color, 2.0, line)):
            options = {"edgecolor": edge, "lw": width, "ls": edge_line}
            axes.add_patch(Rectangle(corner, crop.width, crop.height, fill=False, clip_on=False, **options))
