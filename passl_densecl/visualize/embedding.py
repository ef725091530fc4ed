"""A folder of images as points in the plane, close to each other where their features are similar."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from passl_densecl.data.datasets import ImageSet, UndecodableImage
from passl_densecl.data.image_set import spread
from passl_densecl.errors import InputError, option
from passl_densecl.evaluation.features import Backbone, pool
from passl_densecl.tensors import to_tensor
from passl_densecl.text import and_more, printable
from passl_densecl.transforms import apply, center_view
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
    """N images of a folder with one vector each."""

    vectors: np.ndarray  # (N, C) float32, averaged over positions
    indices: list[int]  # N places of the images in their set
    groups: list[str]  # N names of sub-folders; "." for images in the folder itself
    thumbnails: list[np.ndarray] = field(repr=False)  # N uint8 RGB
    bad: list[str]  # images that cannot be decoded; they are not in the sample
    total: int  # images in the folder


def pooled_sample(
    model: Backbone, images: ImageSet, most: int, size: int, progress: Callable[[int, int], None] | None = None
) -> Sample:
    """Pooled features of at most `most` images, evenly over the folder; each a center crop of `size` pixels.

    Raises:
        InputError: fewer than five of them can be decoded.
    """
    chosen = list(spread(len(images), most))
    transforms = center_view(size)
    vectors, indices, groups, thumbnails, bad = [], [], [], [], []
    waiting: list[np.ndarray] = []
    rng = np.random.default_rng(0)  # not used by these transforms
    for number, index in enumerate(chosen):
        try:
            view = apply(transforms, images.decode(index), rng)
        except UndecodableImage:
            bad.append(printable(images.path(index)))
        else:
            folder, slash, _ = os.fsdecode(images.relative_path(index)).removeprefix("./").partition("/")
            indices.append(index)
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
        raise InputError(f"{len(chosen)} images {images.source}{unread}: expected at least {_FEWEST} images")
    return Sample(np.concatenate(vectors), indices, groups, thumbnails, bad, len(images))


@dataclass(frozen=True)
class Layout:
    """Positions of the points, and labels of the axes."""

    places: np.ndarray  # (N, 2)
    labels: tuple[str, str]  # of the axes


def lay_out(vectors: np.ndarray, method: Literal["tsne", "pca"], seed: int = 0) -> Layout:
    """(N, C) → the plane. Vectors are normalized first, as in k-NN. Deterministic.

    Source of t-SNE: van der Maaten and Hinton, Visualizing Data using t-SNE, JMLR 9 (2008); here on 50 principal
    components, started from the first two, perplexity 30 (less for few images).

    Raises:
        InputError: t-SNE without scikit-learn.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    if method == "pca":
        principal = principal_components(unit, 2)
        first, second = (f"component {n + 1}: {share:.0%} of the variance" for n, share in enumerate(principal.shares))
        return Layout(principal.project(unit), (first, second))
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise InputError(
            f"t-SNE needs scikit-learn: pip install scikit-learn; or use {option('method', 'pca')}"
        ) from None
    reduced = principal_components(unit, min(50, *unit.shape)).project(unit)
    start = reduced[:, :2] / max(float(reduced[:, 0].std()), 1e-12) * 1e-4
    perplexity = min(30.0, (len(unit) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init=start.astype(np.float32), random_state=seed)  # type: ignore[arg-type]
    places = tsne.fit_transform(reduced)
    return Layout(np.asarray(places, np.float64), ("t-SNE 1 (no unit)", "t-SNE 2 (no unit)"))


def neighbor_agreement(vectors: np.ndarray, groups: list[str]) -> tuple[float, float]:
    """Share of images whose nearest neighbor (by cosine) is of their own group, and the share expected by chance.

    Measured on the vectors, not in the plane.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    names = np.asarray(groups)
    sizes = np.array(list(Counter(groups).values()), np.float64)
    chance = float((sizes * (sizes - 1)).sum() / (len(groups) * (len(groups) - 1)))
    return float((names[cosine.argmax(axis=1)] == names).mean()), chance


@styled
def draw_embedding(
    sample: Sample, layout: Layout, *, title: str | None = "", thumbnails: int = 0, width: float = WIDTH
) -> Figure:
    """A point per image, with the color and marker of its sub-folder, and a legend.

    Args:
        title: part of the first line above the picture. None: no text above.
        thumbnails: at most this many images are drawn as well, where they do not overlap.
        width: of the figure, in inches.
    """
    counts = Counter(sample.groups)
    names = sorted(counts)
    figure = new_figure(width, width * (0.71 if len(names) > 1 else 0.78))
    axes = figure.add_subplot()
    size = 34 if len(sample.groups) < 400 else 16
    for number, name in enumerate(names):
        x, y = layout.places[[row for row, group in enumerate(sample.groups) if group == name]].T
        marker = MARKERS[(number + number // len(SERIES)) % len(MARKERS)]
        options = {"s": size, "color": SERIES[number % len(SERIES)], "edgecolors": "white", "linewidths": 0.4}
        label = f"{name} ({counts[name]})" if number < _LEGEND else None
        axes.scatter(x, y, marker=marker, zorder=2, label=label, **options)
    if thumbnails:
        _draw_thumbnails(figure, axes, sample, layout, names, thumbnails)
    axes.set_xlabel(layout.labels[0])
    axes.set_ylabel(layout.labels[1])
    if layout.labels[0].startswith("t-SNE"):
        axes.set_xticks([])
        axes.set_yticks([])
    else:
        axes.set_aspect("equal", adjustable="datalim")
    count = f"{sample.total:,}" if len(sample.groups) == sample.total else f"{len(sample.groups):,} of {sample.total:,}"
    note = ""
    if len(names) > 1:
        more = and_more(len(names), _LEGEND).strip() or None
        legend = axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), title=more, handletextpad=0.2)
        legend.get_title().set_color(GRAY)
        share, chance = neighbor_agreement(sample.vectors, sample.groups)
        note = f"nearest neighbor (cosine of pooled features) in the same sub-folder: {share:.0%}; chance {chance:.0%}"
    if title is not None:
        heading(figure, f"{count} images{f' · {title}' if title else ''}", note)
    return figure


def _draw_thumbnails(figure: Figure, axes: Axes, sample: Sample, layout: Layout, names: list[str], most: int) -> None:
    """Images at their points, framed in their group's color; images that would overlap another are not drawn."""
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
