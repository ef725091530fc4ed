"""Images beside their nearest neighbors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from passl_densecl.text import printable
from passl_densecl.visualize import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAME, OTHER = style.RIGHT, style.WRONG
_TILE_INCHES = 1.5


@style.styled
def draw_neighbors(
    tile: Callable[[int], np.ndarray],
    queries: Sequence[int],
    indices: np.ndarray,
    cosines: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    names: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """One row per query: the image, and to its right its nearest neighbors with their cosines.

    Args:
        tile: index → uint8 RGB (side, side, 3), of one size for all.
        queries: indices of the images to show.
        indices, cosines: (N, k) from :func:`passl_densecl.api.embeddings.nearest`.
        labels: (N,) classes; frames are blue for neighbors of the query's class and orange for others.
        names: text below the queries.
    """
    count = indices.shape[1]
    figure = style.new_figure((count + 1.3) * _TILE_INCHES, len(queries) * (_TILE_INCHES + 0.3) + 0.7)
    # An empty column separates the queries from their neighbors.
    grid = figure.add_gridspec(len(queries), count + 2, width_ratios=[1, 0.08, *[1] * count])
    for row, query in enumerate(queries):
        for column, index in enumerate([query, *indices[query].tolist()]):
            axes = figure.add_subplot(grid[row, column + (column > 0)])
            axes.imshow(tile(index))
            axes.set_xticks([])
            axes.set_yticks([])
            framed = labels is not None and column > 0
            for spine in axes.spines.values():
                spine.set_visible(framed)
                if labels is not None:
                    spine.set_color(SAME if labels[index] == labels[query] else OTHER)
                spine.set_linewidth(3)
            if column:
                axes.set_xlabel(f"{cosines[query, column - 1]:.2f}", fontsize=9)
            elif names is not None:
                axes.set_xlabel(_short(names[query]), fontsize=7, parse_math=False)
            if row == 0 and column == 0:
                axes.set_title("query", fontsize=10)
            elif row == 0 and column == 1:
                axes.set_title("nearest, by cosine →", fontsize=10, loc="left")
    wide = int(figure.get_figwidth() * 12)  # characters that fit
    lines = [_short(title, wide)] if title else []
    lines += ["frame blue: of the query's class; orange: of another"] if labels is not None else []
    figure.suptitle("\n".join(lines), fontsize=10, parse_math=False)
    return figure


def _short(name: str, most: int = 24) -> str:
    name = printable(name)
    return name if len(name) <= most else "…" + name[1 - most :]
