"""Predicted segmentations beside the truth, with a legend."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from passl_densecl.errors import InputError

if TYPE_CHECKING:
    from passl_densecl.evaluation.masks import MaskSet

_SIDE = 320  # pixels of a picture's longer side


def check_matplotlib() -> None:
    """Before minutes of work. Raises InputError when there is none."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("--picture needs matplotlib: pip install matplotlib") from None


def draw(file: Path, masks: MaskSet, shown: Sequence[int], predictions: Mapping[str, Mapping[int, np.ndarray]]) -> None:
    """Write a row for each image: itself, the truth, and what each backbone's head says; unlabeled pixels are white."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colors = palette(len(masks.classes))
    columns = ["image", "truth", *predictions]
    figure = Figure(figsize=(2.9 * len(columns), 2.3 * len(shown) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shown), len(columns), squeeze=False)
    there: set[int] = set()
    for row, index in zip(axes, shown, strict=True):
        truth = masks.mask(index)
        image = cv2.resize(masks.image(index), truth.shape[::-1], interpolation=cv2.INTER_AREA)
        layers = [truth, *(np.where(truth >= 0, one[index], -1) for one in predictions.values())]
        there |= set(np.unique(np.stack(layers)).tolist()) - {-1}
        pictures = [image, *(paint(layer, image, colors) for layer in layers)]
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(shrink(picture))
            axis.set_axis_off()
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=10)
    handles = [Patch(color=colors[number] / 255, label=masks.classes[number]) for number in sorted(there)]
    columns_of_legend = min(8, 2 * len(columns))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns_of_legend, fontsize=8, frameon=False)
    try:
        figure.savefig(file, dpi=110)
    except (OSError, ValueError) as error:
        raise InputError(f"--picture {file}: {error}") from None


def palette(count: int) -> np.ndarray:
    """(count, 3) uint8 colors, neighbors far apart in hue, and those of nearly one hue in different shades."""
    hues = (np.arange(count) * 0.6180339887) % 1
    kinds = [(0.85, 0.9), (0.9, 0.5), (0.4, 0.95), (1.0, 0.7), (0.55, 0.75)]  # saturation, brightness
    colors = [colorsys.hsv_to_rgb(hue, *kinds[number % 5]) for number, hue in enumerate(hues)]
    return np.round(255 * np.array(colors)).astype(np.uint8)


def paint(layer: np.ndarray, image: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Classes in color over a faint gray image; unlabeled pixels white."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].repeat(3, axis=2)
    mixed = (0.72 * colors[np.maximum(layer, 0)] + 0.28 * gray).astype(np.uint8)
    mixed[layer < 0] = 255
    return mixed


def shrink(image: np.ndarray) -> np.ndarray:
    scale = min(1.0, _SIDE / max(image.shape[:2]))
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
