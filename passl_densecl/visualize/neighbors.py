"""Images beside their nearest neighbors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from passl_densecl.data.datasets import ImageSet
from passl_densecl.data.image_set import spread
from passl_densecl.evaluation.knn import nearest
from passl_densecl.text import printable
from passl_densecl.transforms import apply, center_view
from passl_densecl.visualize import style
from passl_densecl.visualize.embedding import Sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAME, OTHER = style.RIGHT, style.WRONG
_TILE_INCHES = 1.5
_TILE = 96  # pixels: shorter side of an image that is shown


def draw_nearest(sample: Sample, images: ImageSet, *, rows: int = 4, width: float) -> Figure:
    """Some images of a sample, each beside its nearest neighbors among all others of the sample."""
    count = len(sample.groups)
    found = nearest(sample.vectors, np.arange(count), sample.vectors, min(6, count))  # its labels are places
    others = found.labels != np.arange(count)[:, None]
    others[others.all(axis=1), -1] = False  # where an equal image took its own place
    k = found.labels.shape[1] - 1
    names, labels = np.unique(sample.groups, return_inverse=True)
    view = center_view(_TILE)
    return draw_neighbors(
        lambda place: apply(view, images.decode(sample.indices[place]), np.random.default_rng(0)),
        list(spread(count, rows)),
        found.labels[others].reshape(count, k),
        found.similarity[others].reshape(count, k),
        labels=labels if len(names) > 1 else None,
        tile_inches=width / (k + 1.3),
    )


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
    tile_inches: float = _TILE_INCHES,
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
    figure = style.new_figure((count + 1.3) * tile_inches, len(queries) * (tile_inches + 0.3) + 0.7)
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
