"""Maps as colors: their first three principal components as red, green and blue, the same for all images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from passl_densecl.errors import InputError, option
from passl_densecl.text import plural
from passl_densecl.visualize.maps import cells
from passl_densecl.visualize.style import WIDTH, heading, new_figure, show_image, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TAILS = (1, 99)  # percentiles that become 0 and 1, so that few outliers do not reduce the contrast


@dataclass(frozen=True)
class Principal:
    """Directions of the largest variance of a set of vectors."""

    mean: np.ndarray  # (C,)
    axes: np.ndarray  # (components, C) unit vectors; the largest entry of each is positive
    shares: np.ndarray  # (components,) of the variance, 0 to 1, falling

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """(N, C) → (N, components) float64."""
        return (vectors - self.mean) @ self.axes.T


def principal_components(vectors: np.ndarray, count: int) -> Principal:
    """The first `count` principal components of (N, C) vectors; missing dimensions are zero.

    Deterministic, signs included: the largest entry of each eigenvector is positive.
    """
    vectors = np.asarray(vectors, np.float64)
    mean = vectors.mean(axis=0)
    centered = vectors - mean
    tall = len(centered) >= centered.shape[1]
    small = centered.T @ centered if tall else centered @ centered.T
    values, eigenvectors = np.linalg.eigh(small)
    order = np.argsort(values)[::-1][:count]
    axes = eigenvectors[:, order].T if tall else (centered.T @ eigenvectors[:, order]).T
    lengths = np.linalg.norm(axes, axis=1, keepdims=True)
    axes = np.where(lengths > 1e-9, axes / np.maximum(lengths, 1e-9), 0)
    axes *= np.where(np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1) < 0, -1, 1)
    shares = np.maximum(values[order], 0) / max(float(np.maximum(values, 0).sum()), 1e-12)
    missing = count - len(order)
    return Principal(mean, np.pad(axes, ((0, missing), (0, 0))), np.pad(shares, (0, missing)))


def map_colors(maps: list[np.ndarray], margin: int = 0) -> tuple[list[np.ndarray], float]:
    """Maps (C, H, W) of several images → as many RGB arrays (H, W, 3) from 0 to 1, and their share of the variance.

    One set of components and one scale for all images, so that equal colors mean similar features throughout.

    Args:
        margin: rows and columns along the border that are excluded from the components and their scale: zero padding
            of the convolutions can mark these cells more than the image's content does.

    Raises:
        InputError: fewer than four cells in all.
    """
    vectors = [cells(each) for each in maps]
    inner = np.concatenate([cells(_inner(each, margin)) for each in maps])
    if len(inner) < 4:
        raise InputError(
            f"{len(inner)} cells are too few for three components: raise {option('size')} or lower {option('margin')}"
        )
    principal = principal_components(inner, 3)
    low, high = np.percentile(principal.project(inner), _TAILS, axis=0)
    colors = [
        np.clip((principal.project(each) - low) / np.maximum(high - low, 1e-9), 0, 1).reshape(*one.shape[1:], 3)
        for each, one in zip(vectors, maps, strict=True)
    ]
    return colors, float(principal.shares.sum())


def _inner(each: np.ndarray, margin: int) -> np.ndarray:
    height, width = each.shape[1:]
    return each[:, margin : max(height - margin, margin), margin : max(width - margin, margin)]


@styled
def draw_colors(
    images: list[np.ndarray],
    colors: list[np.ndarray],
    share: float,
    *,
    names: list[str],
    title: str | None = "",
    columns: int = 4,
    margin: int = 0,
) -> Figure:
    """Every image with its map as colors below it."""
    columns = min(columns, len(images))
    bands = -(-len(images) // columns)
    width = min(WIDTH, 2.9 * columns + 0.4)
    tallest = max(image.shape[0] / image.shape[1] for image in images)
    tile = (width - 0.3) / columns
    figure = new_figure(width, bands * (2 * tile * min(tallest, 1.5) + 0.3) + (0.1 if title is None else 0.85))
    grid = figure.subplots(2 * bands, columns, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    for number, (image, color) in enumerate(zip(images, colors, strict=True)):
        band, column = divmod(number, columns)
        above, below = grid[2 * band, column], grid[2 * band + 1, column]
        show_image(above, image)
        above.set_title(names[number] if len(names[number]) <= 24 else names[number][:23] + "…", fontsize=9.5)
        below.imshow(color, interpolation="nearest", extent=(0, image.shape[1], image.shape[0], 0))
    if title is not None:
        heading(figure, title, *describe(colors, share, margin))
    return figure


def describe(colors: list[np.ndarray], share: float, margin: int = 0) -> tuple[str, str]:
    """Two lines of text: the meaning of the colors, and how to read them."""
    sizes = sorted({f"{color.shape[0]}×{color.shape[1]}" for color in colors})
    border = f"; components without {margin} {plural(margin, 'cell')} along the border" if margin else ""
    return (
        f"red, green, blue: the first three principal components, {share:.0%} of the variance",
        f"equal colors are similar features in all {len(colors)} {plural(len(colors), 'image')}; maps of "
        f"{' and '.join(sizes[:3])} cells{border}",
    )
