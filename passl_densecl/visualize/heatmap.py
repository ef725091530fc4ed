"""The similarity of one cell to every other cell, of the same image and of another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from passl_densecl.errors import InputError
from passl_densecl.evaluation.features import Backbone, feature_map
from passl_densecl.visualize.maps import cells
from passl_densecl.visualize.style import HEAT, INK, WIDTH, heading, new_figure, show_image, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Similarity:
    """The cosine of one cell of the first image to every cell of each image."""

    cell: tuple[int, int]  # (row, column) in the first map
    maps: tuple[np.ndarray, ...]  # per image (H, W) float32, -1 to 1

    def best(self, image: int) -> tuple[int, int]:
        """(row, column) of the most similar cell of an image, in the first image other than the cell itself."""
        values = self.maps[image].copy()
        if image == 0 and values.size > 1:
            values[self.cell] = -np.inf
        row, column = np.unravel_index(int(values.argmax()), values.shape)
        return int(row), int(column)


def similarity_to(model: Backbone, images: list[np.ndarray], point: tuple[float, float]) -> Similarity:
    """The similarity of the cell at a point of the first image to all cells of all images.

    Args:
        images: uint8 RGB (height, width, 3), in the size of the model's input.
        point: (x, y) as shares of the first image's width and height, from 0 to below 1.

    Raises:
        InputError: the point lies outside.
    """
    if not (0 <= point[0] < 1 and 0 <= point[1] < 1):
        raise InputError(f"point {point[0]:g}, {point[1]:g} is outside the image: expected shares from 0 to below 1")
    maps = [feature_map(model, image) for image in images]
    height, width = maps[0].shape[1:]
    row, column = int(point[1] * height), int(point[0] * width)
    chosen = cells(maps[0])[row * width + column]
    return Similarity((row, column), tuple((cells(each) @ chosen).reshape(each.shape[1:]) for each in maps))


@styled
def draw_heatmap(images: list[np.ndarray], similarity: Similarity, *, names: list[str], title: str = "") -> Figure:
    """Each image, and below it the cosine of its cells to the chosen one, on a scale that both images share."""
    shares = [image.shape[1] / image.shape[0] for image in images]
    panels = 2 if len(images) == 1 else len(images)
    width = min(WIDTH, 4.4 * panels)
    ratios = [shares[0]] * 2 if len(images) == 1 else shares
    height = (width - 1.2) / sum(ratios)
    rows = 1 if len(images) == 1 else 2
    figure = new_figure(width, rows * height + 1.25)
    grid = figure.subplots(rows, panels, squeeze=False, width_ratios=ratios)
    plain, heat = ([grid[0, 0]], [grid[0, 1]]) if rows == 1 else (list(grid[0]), list(grid[1]))
    first, *rest = similarity.maps
    chosen = np.ravel_multi_index(similarity.cell, first.shape)
    others = np.concatenate([np.delete(first, chosen), *(values.ravel() for values in rest)])
    low, high = (float(others.min()), float(others.max())) if others.size else (0.0, 1.0)
    drawn = None
    for number, (image, values) in enumerate(zip(images, similarity.maps, strict=True)):
        show_image(plain[number], image)
        plain[number].set_title(names[number], fontsize=9.5)
        extent = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
        show_image(heat[number], np.repeat((96 + image.mean(axis=2, keepdims=True) * 0.62).astype(np.uint8), 3, axis=2))
        scale = {"cmap": HEAT, "vmin": low, "vmax": max(high, low + 1e-6)}
        drawn = heat[number].imshow(values, alpha=0.72, extent=extent, interpolation="nearest", **scale)
        cell = image.shape[1] / values.shape[1], image.shape[0] / values.shape[0]
        for axes in (plain[number], heat[number]):
            if number == 0:
                _mark_cell(axes, similarity.cell, cell, "white", "-")
            _mark_cell(axes, similarity.best(number), cell, INK, "--")
    assert drawn is not None
    figure.colorbar(drawn, ax=heat if rows == 1 else list(grid.ravel()), label="cosine to the chosen cell", shrink=0.9)
    last = len(images) - 1
    cosine = similarity.maps[last][similarity.best(last)]
    where = "elsewhere in the image" if last == 0 else f"in {names[last]}"
    size = f"maps of {first.shape[0]}×{first.shape[1]} cells"
    key = f"solid square: the chosen cell; dashed: the most similar other one; {size}"
    heading(figure, title, f"most similar cell {where}: cosine {cosine:.2f}", key)
    return figure


def _mark_cell(axes: Axes, cell: tuple[int, int], size: tuple[float, float], color: str, line: str) -> None:
    """A square around cell (row, column); `size` is its (width, height) in pixels."""
    from matplotlib.patches import Rectangle

    corner = (cell[1] * size[0] - 0.5, cell[0] * size[1] - 0.5)
    outline = INK if color == "white" else "white"
    axes.add_patch(Rectangle(corner, *size, fill=False, ec=outline, lw=2.8))
    axes.add_patch(Rectangle(corner, *size, fill=False, ec=color, lw=1.3, ls=line))
