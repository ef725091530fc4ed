"""Which cells of two images a backbone takes for the same: lines between nearest neighbours."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import cv2
import numpy as np

from passl_densecl.errors import InputError
from passl_densecl.evaluation.correspondence import View, draw_view, grid, is_near, true_positions
from passl_densecl.evaluation.features import Backbone, feature_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Blue and orange stay apart for colour-blind eyes; grey steps back.
RIGHT, WRONG, UNSEEN = "#2f7ed8", "#f28e2b", "#9a9a9a"
_BAR_INCHES = 6.0  # height of the images in the picture
_DRAWS = 100
_BEND = 0.5  # cells, at the most, that a line leaves the straight way
_GAP = 0.06  # between the images, as a share of their height


@dataclass(frozen=True)
class Matches:
    """M pairs of cells, most similar first."""

    cells_a: np.ndarray  # (M,) index of the cell in map a, row by row
    cells_b: np.ndarray  # (M,) index of the cell in map b
    similarity: np.ndarray  # (M,) float32 cosine, -1 to 1
    shape_a: tuple[int, int]  # (H, W) of map a
    shape_b: tuple[int, int]
    mutual: bool  # each the nearest neighbour of the other; else b is a's nearest neighbour
    # Where the images are two views of one, for every match:
    visible: np.ndarray | None = None  # (M,) bool: the place of cell a lies in view b at all
    correct: np.ndarray | None = None  # (M,) bool: and cell b is within one cell of it
    chance: float | None = None  # the share of correct ones that cells b drawn at random would reach

    def __len__(self) -> int:
        return len(self.similarity)

    def top(self, count: int) -> Matches:
        """The `count` most similar ones."""
        rows = slice(0, count)
        names = ("cells_a", "cells_b", "similarity", "visible", "correct")
        return replace(self, **{name: None if (v := getattr(self, name)) is None else v[rows] for name in names})


def two_views(
    height: int, width: int, size: int, seed: int, *, flip: float = 0.0, common: float = 0.4
) -> tuple[View, View]:
    """Two random crops of a height×width image, as large as in training, each flipped with probability `flip`.

    Drawn anew until the second shows the share `common` of the first (of a hundred pairs the one that shows the most).
    """
    rng = np.random.default_rng(seed)
    best, most = None, -1.0
    for _ in range(_DRAWS):
        views = draw_view(rng, height, width, size, flip=flip), draw_view(rng, height, width, size, flip=flip)
        shared = float(true_positions(*views, (16, 16), (16, 16))[1].mean())
        if shared > most:
            best, most = views, shared
        if most >= common:
            break
    assert best is not None
    return best


def match_images(
    backbone: Backbone,
    image_a: np.ndarray,
    image_b: np.ndarray,
    *,
    threshold: float | None = None,
    mutual: bool = True,
    views: tuple[View, View] | None = None,
) -> Matches:
    """Nearest neighbours among the cells of the backbone's maps of two images, by cosine.

    Args:
        image_a, image_b: uint8 RGB (height, width, 3), in the size in which the backbone shall see them.
        threshold: leave out pairs that are less similar; -1 to 1.
        mutual: only pairs in which each is the nearest of the other; otherwise the nearest in b for every cell of a,
            which is what the dense loss takes.
        views: how the images were cut from one, when they were: tells which matches are correct.
    """
    map_a, map_b = feature_map(backbone, image_a), feature_map(backbone, image_b)  # (C, H, W)
    shape_a, shape_b = (map_a.shape[1], map_a.shape[2]), (map_b.shape[1], map_b.shape[2])
    cosine = _unit(map_a).T @ _unit(map_b)  # (cells of a, cells of b)
    to_b, to_a = cosine.argmax(axis=1), cosine.argmax(axis=0)
    cells = np.arange(len(cosine))
    similarity = cosine[cells, to_b]
    kept = (to_a[to_b] == cells) if mutual else np.ones(len(cells), bool)
    if threshold is not None:
        kept &= similarity >= threshold
    order = cells[kept][np.argsort(-similarity[kept], kind="stable")]
    found = Matches(order, to_b[order], similarity[order], shape_a, shape_b, mutual)
    return found if views is None else _judged(found, *views)


def _judged(matches: Matches, view_a: View, view_b: View) -> Matches:
    positions, inside = true_positions(view_a, view_b, matches.shape_a, matches.shape_b)
    cells = grid(*matches.shape_b)
    positions, visible = positions[matches.cells_a], inside[matches.cells_a]
    correct = visible & is_near(cells[matches.cells_b], positions)
    near = is_near(cells[None], positions[visible][:, None])
    return replace(matches, visible=visible, correct=correct, chance=float(near.mean()) if near.size else None)


def draw_matches(
    image_a: np.ndarray, image_b: np.ndarray, matches: Matches, *, title: str = "", top: int | None = None
) -> Figure:
    """Both images side by side with a line for every match; `figure.savefig(path)` writes it.

    Lines are coloured by similarity; for two views of one image by whether they are correct. The images are uint8 RGB,
    as they were matched; the second is drawn as high as the first.

    Args:
        title: the first line above the picture; counts stand below it.
        top: draw only so many, the most similar ones; the counts are always of all.
    """
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it announces that it looks for fonts
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("pictures need matplotlib: pip install matplotlib") from None

    height, width_a = image_a.shape[:2]
    width_b = round(image_b.shape[1] * height / image_b.shape[0])
    gap = round(height * _GAP)
    scale = max(1.0, 480 / height)  # enlarged cell by cell it would be a mosaic
    canvas = np.full((height, width_a + gap + width_b, 3), 255, np.uint8)
    canvas[:, :width_a] = image_a
    canvas[:, width_a + gap :] = cv2.resize(image_b, (width_b, height), interpolation=cv2.INTER_AREA)
    canvas = cv2.resize(canvas, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)

    figure = Figure(
        figsize=(_BAR_INCHES * canvas.shape[1] / canvas.shape[0] + 1.6, _BAR_INCHES + 1.2),
        dpi=100,
        layout="constrained",
    )
    axes = figure.add_subplot()
    axes.imshow(canvas)
    axes.set_axis_off()
    shown = matches if top is None else matches.top(top)
    points_a = (grid(*matches.shape_a) + 0.5) / matches.shape_a * (height, width_a) * scale
    points_b = ((grid(*matches.shape_b) + 0.5) / matches.shape_b * (height, width_b) + (0, width_a + gap)) * scale
    for points in (points_a, points_b):
        axes.scatter(points[:, 1], points[:, 0], s=7, color="white", edgecolors="black", linewidths=0.4, alpha=0.7)
    _draw_lines(figure, axes, points_a[shown.cells_a], points_b[shown.cells_b], shown)
    counts = summary(matches) + (f"; the {len(shown)} most similar are drawn" if len(shown) < len(matches) else "")
    axes.set_title(f"{title}\n{counts}" if title else counts, fontsize=11)
    return figure


def summary(matches: Matches) -> str:
    """One sentence: how many, and how many of them are correct where that is known."""
    cells = matches.shape_a[0] * matches.shape_a[1]
    kind = "mutual nearest neighbours among" if matches.mutual else "nearest neighbours of"
    text = f"{len(matches)} {kind} {cells} cells"
    if matches.visible is None or matches.correct is None:
        return text
    seen = int(matches.visible.sum())
    if not seen:
        return f"{text}; none of them lies in both views"
    chance = "" if matches.chance is None else f" (chance {matches.chance:.0%})"
    return f"{text}; of {seen} that lie in both views {matches.correct.sum() / seen:.0%} are correct{chance}"


def _draw_lines(figure: Figure, axes: Axes, starts: np.ndarray, ends: np.ndarray, matches: Matches) -> None:
    """(M, 2) and (M, 2) places (y, x) on the canvas; the most similar on top."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.lines import Line2D
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if matches.correct is not None and matches.visible is not None:
        states = np.where(matches.correct, 2, np.where(matches.visible, 1, 0))
        colours = [(UNSEEN, WRONG, RIGHT)[state] for state in states]
        legend = [
            Line2D([], [], color=colour, lw=2.5, label=f"{(states == state).sum()} {label}")
            for state, colour, label in (
                (2, RIGHT, "correct, within one cell"),
                (1, WRONG, "wrong"),
                (0, UNSEEN, "not in the other view"),
            )
        ]
        axes.legend(handles=legend, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncol=3, frameon=False, fontsize=10)
        order = np.lexsort((matches.similarity, states))
    else:
        low, high = (matches.similarity.min(), matches.similarity.max()) if len(matches) else (0.0, 1.0)
        scale = ScalarMappable(Normalize(low, max(high, low + 1e-6)), colormaps["plasma"])
        colours = [tuple(colour) for colour in scale.to_rgba(matches.similarity)]
        figure.colorbar(scale, ax=axes, shrink=0.8, pad=0.01, label="cosine similarity")
        order = np.argsort(matches.similarity)
    columns, rows = matches.shape_a[1], matches.shape_a[0]
    cell = axes.get_ylim()[0] / rows
    for index in order:
        (y0, x0), (y1, x1), colour = starts[index], ends[index], colours[index]
        # Lines of one row would cover each other: every column's line takes another way through the middle.
        bend = 2 * _BEND * cell * ((matches.cells_a[index] % columns + 0.5) / columns - 0.5)
        path = Path(
            [(x0, y0), ((x0 + x1) / 2, (y0 + y1) / 2 + 2 * bend), (x1, y1)], [Path.MOVETO, Path.CURVE3, Path.CURVE3]
        )
        for line, width, alpha in (("black", 2.4, 0.35), (colour, 1.4, 0.9)):
            axes.add_patch(PathPatch(path, fill=False, edgecolor=line, lw=width, alpha=alpha, capstyle="round"))
        axes.scatter([x0, x1], [y0, y1], s=26, color=[colour], edgecolors="black", linewidths=0.6, zorder=3)


def _unit(features: np.ndarray) -> np.ndarray:
    """(C, H, W) → (C, H·W), of length 1 over C."""
    flat = features.reshape(len(features), -1)
    return flat / np.maximum(np.linalg.norm(flat, axis=0), 1e-12)
