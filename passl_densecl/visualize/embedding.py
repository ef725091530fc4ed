"""A folder of images as points in the plane: near each other where the backbone finds them alike."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from passl_densecl.data.datasets import ImageSet, UndecodableImage
from passl_densecl.data.image_set import spread
from passl_densecl.errors import InputError
from passl_densecl.evaluation.features import Backbone, pool
from passl_densecl.tensors import to_tensor
from passl_densecl.text import printable
from passl_densecl.transforms import CenterCrop, Resize, apply
from passl_densecl.visualize.pca import principal_components
from passl_densecl.visualize.style import GRAY, INK, MARKERS, SERIES, WIDTH, at_most, heading, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BATCH = 32
_THUMBNAIL = 56  # pixels
_LEGEND = 30  # groups that are named
_FEWEST = 5  # images


@dataclass(frozen=True)
class Sample:
    """N images of a folder as one vector each."""

    vectors: np.ndarray  # (N, C) float32, averaged over positions
    groups: list[str]  # N names of sub-folders; "." for images that lie in the folder itself
    thumbnails: list[np.ndarray] = field(repr=False)  # N uint8 RGB
    bad: list[str]  # images that cannot be decoded; they are left out
    of: int  # images in the folder


def pooled_sample(
    model: Backbone, images: ImageSet, most: int, size: int, progress: Callable[[int, int], None] | None = None
) -> Sample:
    """At most `most` images, evenly over the folder, through the model; each a center crop of `size` pixels.

    Raises:
        InputError: fewer than five of them can be decoded.
    """
    chosen = list(spread(len(images), most))
    look = (Resize(size=round(size * 256 / 224)), CenterCrop(size=size))
    vectors, groups, thumbnails, bad = [], [], [], []
    waiting: list[np.ndarray] = []
    rng = np.random.default_rng(0)  # neither of the two draws anything
    for number, index in enumerate(chosen):
        try:
            view = apply(look, images.decode(index), rng)
        except UndecodableImage:
            bad.append(printable(images.path(index)))
        else:
            folder, slash, _ = os.fsdecode(images.relative_path(index)).removeprefix("./").partition("/")
            groups.append(printable(folder) if slash else ".")
            thumbnails.append(at_most(view, _THUMBNAIL))
            waiting.append(view)
        if waiting and (len(waiting) == _BATCH or number == len(chosen) - 1):
            vectors.append(pool(model, to_tensor(np.stack(waiting))))
            waiting = []
        if progress is not None:
            progress(number + 1, len(chosen))
    if len(groups) < _FEWEST:
        unread = f", of which {len(bad)} cannot be decoded" if bad else ""
        raise InputError(
            f"{len(chosen)} images {images.source}{unread}: expected at least {_FEWEST} to show how they lie"
        )
    return Sample(np.concatenate(vectors), groups, thumbnails, bad, len(images))


@dataclass(frozen=True)
class Layout:
    """Where the points lie, and what the axes are."""

    places: np.ndarray  # (N, 2)
    labels: tuple[str, str]  # of the axes


def lay_out(vectors: np.ndarray, method: Literal["tsne", "pca"], seed: int = 0) -> Layout:
    """(N, C) → the plane. Vectors are first brought to length 1, as k-NN compares them. Deterministic.

    Source of t-SNE: van der Maaten and Hinton, Visualizing Data using t-SNE, JMLR 9 (2008); here on 50 principal
    components, started from the first two, perplexity 30 (less for few images).

    Raises:
        InputError: t-SNE without scikit-learn.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    if method == "pca":
        found = principal_components(unit, 2)
        first, second = (f"component {n + 1}: {share:.0%} of the variance" for n, share in enumerate(found.shares))
        return Layout(found.project(unit), (first, second))
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise InputError("t-SNE needs scikit-learn: pip install scikit-learn; or take --method pca") from None
    reduced = principal_components(unit, min(50, *unit.shape)).project(unit)
    start = reduced[:, :2] / max(float(reduced[:, 0].std()), 1e-12) * 1e-4
    perplexity = min(30.0, (len(unit) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init=start.astype(np.float32), random_state=seed)  # type: ignore[arg-type]
    places = tsne.fit_transform(reduced)
    return Layout(np.asarray(places, np.float64), ("t-SNE 1 (no unit)", "t-SNE 2 (no unit)"))


def neighbor_agreement(vectors: np.ndarray, groups: list[str]) -> tuple[float, float]:
    """How often an image's nearest neighbor (by cosine) is of its own group, and how often chance would have it.

    Measured on the vectors, not on the plane.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    names = np.asarray(groups)
    sizes = np.array(list(Counter(groups).values()), np.float64)
    chance = float((sizes * (sizes - 1)).sum() / (len(groups) * (len(groups) - 1)))
    return float((names[cosine.argmax(axis=1)] == names).mean()), chance


@styled
def draw_embedding(sample: Sample, layout: Layout, *, title: str = "", thumbnails: int = 0) -> Figure:
    """A point for every image, colored and shaped by its sub-folder, with a legend.

    Args:
        thumbnails: draw up to so many of the images themselves, where they do not cover each other.
    """
    counts = Counter(sample.groups)
    names = sorted(counts)
    figure = new_figure(WIDTH, 6.4 if len(names) > 1 else 7.0)
    axes = figure.add_subplot()
    several = len(names) > 1
    for number, name in enumerate(names):
        rows = [row for row, group in enumerate(sample.groups) if group == name]
        axes.scatter(
            layout.places[rows, 0],
            layout.places[rows, 1],
            s=34 if len(sample.groups) < 400 else 16,
            marker=MARKERS[(number + number // len(SERIES)) % len(MARKERS)],
            color=SERIES[number % len(SERIES)],
            edgecolors="white",
            linewidths=0.4,
            zorder=2,
            label=f"{name} ({counts[name]})" if number < _LEGEND else None,
        )
    if thumbnails:
        _draw_thumbnails(figure, axes, sample, layout, names, thumbnails)
    axes.set_xlabel(layout.labels[0])
    axes.set_ylabel(layout.labels[1])
    if layout.labels[0].startswith("t-SNE"):
        axes.set_xticks([])
        axes.set_yticks([])
    else:
        axes.set_aspect("equal", adjustable="datalim")
    shown = f"{len(sample.groups):,} of {sample.of:,}" if len(sample.groups) < sample.of else f"{sample.of:,}"
    note = ""
    if several:
        more = len(names) - _LEGEND
        legend = axes.legend(
            loc="upper left",
            bbox_to_anchor=(1.0, 1.0),
            title=f"and {more} more" if more > 0 else None,
            handletextpad=0.2,
        )
        legend.get_title().set_color(GRAY)
        share, chance = neighbor_agreement(sample.vectors, sample.groups)
        note = f"the nearest neighbor (cosine of the pooled features) is of the same sub-folder for {share:.0%}; chance {chance:.0%}"
    heading(figure, f"{shown} images{f' · {title}' if title else ''}", note)
    return figure


def _draw_thumbnails(figure: Figure, axes: Axes, sample: Sample, layout: Layout, names: list[str], most: int) -> None:
    """Images at their points, each in a frame of its group's color; one that would cover another is left out."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    axes.margins(0.07)
    span = np.maximum(np.ptp(layout.places, axis=0), 1e-12)
    inches = layout.places / span * (figure.get_figwidth() * 0.7, figure.get_figheight() * 0.8)
    apart = 0.52  # inches
    placed: list[int] = []
    for row in np.random.default_rng(0).permutation(len(inches)).tolist():
        if len(placed) == most:
            break
        if all(np.abs(inches[row] - inches[other]).max() >= apart for other in placed):
            placed.append(row)
    for row in placed:
        color = SERIES[names.index(sample.groups[row]) % len(SERIES)] if len(names) > 1 else INK
        box = AnnotationBbox(
            OffsetImage(sample.thumbnails[row], zoom=34 / max(sample.thumbnails[row].shape[:2])),
            (float(layout.places[row, 0]), float(layout.places[row, 1])),
            pad=0.12,
            bboxprops={"edgecolor": color, "linewidth": 2},
        )
        box.set_zorder(3)
        axes.add_artist(box)
