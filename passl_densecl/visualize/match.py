"""Matches between the cells of two images: lines between nearest neighbors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from passl_densecl.data.geometry import View, grid, true_positions
from passl_densecl.evaluation.correspondence import ViewSampling, is_near
from passl_densecl.evaluation.features import Backbone, feature_map
from passl_densecl.visualize.maps import cells
from passl_densecl.visualize.style import HEAT, RIGHT, UNSEEN, WIDTH, WRONG, heading, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# state of a match → (label, color, line style): distinguishable without color
_STATES: dict[int, tuple[str, str, Any]] = {
    2: ("correct, within one cell", RIGHT, "solid"),
    1: ("wrong", WRONG, (0, (4, 1.6))),
    0: ("not in the other view", UNSEEN, (0, (1, 1.4))),
}
_DRAWS = 100
_BEND = 0.5  # cells: the largest deviation of a curved line
_GAP = 0.06  # between the images, as a share of their height


@dataclass(frozen=True)
class Matches:
    """M pairs of cells, most similar first."""

    cells_a: np.ndarray  # (M,) index of the cell in map a, row by row
    cells_b: np.ndarray  # (M,) index of the cell in map b
    similarity: np.ndarray  # (M,) float32 cosine, -1 to 1
    shape_a: tuple[int, int]  # (H, W) of map a
    shape_b: tuple[int, int]
    mutual: bool  # both are nearest neighbors of each other; else b is a's nearest neighbor
    # For two views of one image:
    visible: np.ndarray | None = None  # (M,) bool: the position of cell a lies in view b
    correct: np.ndarray | None = None  # (M,) bool: and cell b is within one cell of it
    chance: float | None = None  # share of correct matches for random cells b

    def __len__(self) -> int:
        return len(self.similarity)

    def top(self, count: int) -> Matches:
        """The `count` most similar matches."""
        rows = slice(0, count)
        names = ("cells_a", "cells_b", "similarity", "visible", "correct")
        return replace(self, **{name: None if (v := getattr(self, name)) is None else v[rows] for name in names})


def two_views(
    height: int, width: int, size: int, seed: int, *, flip: float = 0.0, common: float = 0.4
) -> tuple[View, View]:
    """Two random crops of a height×width image, as large as in training, each flipped with probability `flip`.

    Pairs are drawn until the second view shows the share `common` of the first; the best of a hundred pairs at most.
    """
    rng, sampling = np.random.default_rng(seed), ViewSampling(size, flip=flip)
    best, most = None, -1.0
    for _ in range(_DRAWS):
        views = sampling.draw(rng, height, width), sampling.draw(rng, height, width)
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
    """Nearest neighbors among the cells of the backbone's maps of two images, by cosine.

    Args:
        image_a, image_b: uint8 RGB (height, width, 3), in the size of the backbone's input.
        threshold: drop less similar pairs; -1 to 1.
        mutual: only mutual nearest neighbors; False: the nearest cell in b for every cell of a, as in the dense loss.
        views: the crops of one image that a and b are, if they are: they show which matches are correct.
    """
    map_a, map_b = feature_map(backbone, image_a), feature_map(backbone, image_b)  # (C, H, W)
    shape_a, shape_b = (map_a.shape[1], map_a.shape[2]), (map_b.shape[1], map_b.shape[2])
    cosine = cells(map_a) @ cells(map_b).T  # (cells of a, cells of b)
    to_b, to_a = cosine.argmax(axis=1), cosine.argmax(axis=0)
    every = np.arange(len(cosine))
    similarity = cosine[every, to_b]
    kept = (to_a[to_b] == every) if mutual else np.ones(len(every), bool)
    if threshold is not None:
        kept &= similarity >= threshold
    order = every[kept][np.argsort(-similarity[kept], kind="stable")]
    matches = Matches(order, to_b[order], similarity[order], shape_a, shape_b, mutual)
    return matches if views is None else _judged(matches, *views)


def _judged(matches: Matches, view_a: View, view_b: View) -> Matches:
    positions, inside = true_positions(view_a, view_b, matches.shape_a, matches.shape_b)
    places = grid(*matches.shape_b)
    positions, visible = positions[matches.cells_a], inside[matches.cells_a]
    correct = visible & is_near(places[matches.cells_b], positions)
    near = is_near(places[None], positions[visible][:, None])
    return replace(matches, visible=visible, correct=correct, chance=float(near.mean()) if near.size else None)


@styled
def draw_matches(
    image_a: np.ndarray,
    image_b: np.ndarray,
    matches: Matches,
    *,
    title: str | None = "",
    top: int | None = None,
    width: float = WIDTH,
) -> Figure:
    """Both images side by side with a line for every match.

    Lines are colored by similarity; for two views of one image by correctness, with a line style for each state. The
    images are uint8 RGB, as they were matched; the second is drawn as high as the first.

    Args:
        title: the first line above the picture, followed by the counts. None: no text above.
        top: draw only this many, the most similar ones; the counts are always of all.
        width: of the figure, in inches.
    """
    height, width_a = image_a.shape[:2]
    width_b = round(image_b.shape[1] * height / image_b.shape[0])
    gap = round(height * _GAP)
    scale = max(1.0, 480 / height)  # without interpolation small images would look like a mosaic
    canvas = np.full((height, width_a + gap + width_b, 3), 255, np.uint8)
    canvas[:, :width_a] = image_a
    canvas[:, width_a + gap :] = cv2.resize(image_b, (width_b, height), interpolation=cv2.INTER_AREA)
    canvas = cv2.resize(canvas, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)

    bar = 0.9 if matches.correct is None else 0.0  # inches for the color bar
    figure = new_figure(width, (width - bar) * canvas.shape[0] / canvas.shape[1] + (0.8 if bar else 1.1))
    axes = figure.add_subplot()
    axes.imshow(canvas)
    axes.set_axis_off()
    drawn = matches if top is None else matches.top(top)
    points_a = (grid(*matches.shape_a) + 0.5) / matches.shape_a * (height, width_a) * scale
    points_b = ((grid(*matches.shape_b) + 0.5) / matches.shape_b * (height, width_b) + (0, width_a + gap)) * scale
    for points in (points_a, points_b):
        axes.scatter(points[:, 1], points[:, 0], s=7, color="white", edgecolors="black", linewidths=0.4, alpha=0.7)
    _draw_lines(figure, axes, points_a[drawn.cells_a], points_b[drawn.cells_b], drawn)
    counts = summary(matches) + (f"; the {len(drawn)} most similar are drawn" if len(drawn) < len(matches) else "")
    if title is not None:
        heading(figure, title, counts)
    return figure


def as_json(matches: Matches) -> dict[str, Any]:
    """Plain data: counts, share of correct matches if the truth is known, and every pair."""
    pairs = []
    for index in range(len(matches)):
        a, b = int(matches.cells_a[index]), int(matches.cells_b[index])
        pair: dict[str, Any] = {
            "cell_a": list(divmod(a, matches.shape_a[1])),
            "cell_b": list(divmod(b, matches.shape_b[1])),
            "cosine": round(float(matches.similarity[index]), 6),
        }
        if matches.visible is not None and matches.correct is not None:
            pair |= {"visible": bool(matches.visible[index]), "correct": bool(matches.correct[index])}
        pairs.append(pair)
    result: dict[str, Any] = {
        "map_a": list(matches.shape_a),
        "map_b": list(matches.shape_b),
        "mutual": matches.mutual,
        "matches": len(matches),
    }
    if matches.visible is not None and matches.correct is not None:
        seen = int(matches.visible.sum())
        share = float(matches.correct.sum() / seen) if seen else None
        result |= {"visible": seen, "correct": int(matches.correct.sum()), "share": share, "chance": matches.chance}
    return result | {"pairs": pairs}


def summary(matches: Matches) -> str:
    """One sentence: the number of matches, and of correct ones if known."""
    count = matches.shape_a[0] * matches.shape_a[1]
    kind = "mutual nearest neighbors among" if matches.mutual else "nearest neighbors of"
    text = f"{len(matches)} {kind} {count} cells"
    if matches.visible is None or matches.correct is None:
        return text
    seen = int(matches.visible.sum())
    if not seen:
        return f"{text}; none lies in both views"
    chance = "" if matches.chance is None else f" (chance {matches.chance:.0%})"
    return f"{text}; of {seen} that lie in both views {matches.correct.sum() / seen:.0%} are correct{chance}"


def _draw_lines(figure: Figure, axes: Axes, starts: np.ndarray, ends: np.ndarray, matches: Matches) -> None:
    """Draw lines between (M, 2) and (M, 2) points (y, x) of the canvas; the most similar on top."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.lines import Line2D
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if matches.correct is not None and matches.visible is not None:
        states = np.where(matches.correct, 2, np.where(matches.visible, 1, 0))
        styles = [_STATES[state][1:] for state in states]
        legend = [
            Line2D([], [], color=color, ls=line, lw=2.2, label=f"{(states == state).sum()} {label}")
            for state, (label, color, line) in _STATES.items()
        ]
        columns = 3 if figure.get_figwidth() > 6 else 1
        figure.legend(handles=legend, loc="outside lower center", ncols=columns, handlelength=3)
        order = np.lexsort((matches.similarity, states))
    else:
        low, high = (matches.similarity.min(), matches.similarity.max()) if len(matches) else (0.0, 1.0)
        scale = ScalarMappable(Normalize(low, max(high, low + 1e-6)), colormaps[HEAT])
        styles = [(tuple(color), "solid") for color in scale.to_rgba(matches.similarity)]
        figure.colorbar(scale, ax=axes, shrink=0.8, pad=0.01, label="cosine similarity")
        order = np.argsort(matches.similarity)
    columns, rows = matches.shape_a[1], matches.shape_a[0]
    cell = axes.get_ylim()[0] / rows
    for index in order:
        (y0, x0), (y1, x1), (color, style) = starts[index], ends[index], styles[index]
        # Lines of one row would overlap: each column's line has another curvature.
        bend = 2 * _BEND * cell * ((matches.cells_a[index] % columns + 0.5) / columns - 0.5)
        points = [(x0, y0), ((x0 + x1) / 2, (y0 + y1) / 2 + 2 * bend), (x1, y1)]
        path = Path(points, [Path.MOVETO, Path.CURVE3, Path.CURVE3])
        for edge, line, width, alpha in (("white", "solid", 2.8, 0.5), (color, style, 1.5, 1.0)):
            axes.add_patch(PathPatch(path, fill=False, edgecolor=edge, ls=line, lw=width, alpha=alpha))
    if len(matches):
        points, colors = np.concatenate([starts[order], ends[order]]), [styles[index][0] for index in order]
        axes.scatter(points[:, 1], points[:, 0], s=26, color=colors * 2, edgecolors="black", linewidths=0.6, zorder=3)
