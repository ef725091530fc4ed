"""How often the cells of two crops of one image match correctly; the geometry of the crops gives the ground truth.

The match is the one from which the dense loss takes its positives: for every cell of the query view, the most similar
cell of the key view, by the cosine of the backbone's maps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import paddle

from passl_densecl import transforms
from passl_densecl.data.datasets import ImageSet, Transforms, UndecodableImage
from passl_densecl.data.geometry import View, grid, true_positions
from passl_densecl.errors import InputError
from passl_densecl.evaluation.features import Backbone, feature_maps
from passl_densecl.evaluation.position import L2, position_score
from passl_densecl.models import match
from passl_densecl.transforms import RandomResizedCrop

_PLACE_VIEWS = 256  # whose maps are kept for the position score
TOLERANCE = 1.0  # cells: allowed distance of a match from the true position along either axis

PHOTOMETRIC: Transforms = (transforms.ColorJitter(), transforms.RandomGrayscale(), transforms.GaussianBlur())
"""MoCo-v2's augmentations that do not move pixels."""


@dataclass(frozen=True)
class ViewSampling:
    """How random views are drawn: as RandomResizedCrop and RandomHorizontalFlip draw them in training."""

    size: int = 224  # pixels per side of a view
    scale: tuple[float, float] = (0.2, 1.0)  # area of the crop as a share of the image's
    flip: float = 0.5  # probability
    photometric: Transforms = PHOTOMETRIC

    def draw(self, rng: np.random.Generator, height: int, width: int) -> View:
        """A random view of a height×width image."""
        crop = RandomResizedCrop(size=self.size, scale=self.scale).draw(rng, height, width)
        return View(crop, self.size, bool(rng.random() < self.flip))


def is_near(cells: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(…, 2), (…, 2) → (…) bool: at most one cell apart along either axis."""
    return np.abs(cells - positions).max(axis=-1) <= TOLERANCE + 1e-9


@dataclass(frozen=True)
class Correspondence:
    """Shares from 0 to 1 over the same `cells` query cells."""

    share: float  # of query cells whose match is within one cell of the true position
    chance: float  # share reached by random matches
    same_place: float  # share reached by matching each cell with the cell of the same row and column: the shortcut
    cells: int  # query cells whose true position lies in the other view
    pairs: int  # pairs of views with at least one such cell
    standard_error: float  # of share, over pairs: pairs were drawn at random, cells were not
    place: float  # R² of a cell's row and column from its features, see `position_score`: the shortcut's strength
    place_error: float  # standard error of that, over query views; both nan for fewer than four pairs
    per_pair: tuple[tuple[int, int], ...] = field(default=(), repr=False)  # right and judged cells, to compare weights


def correspondence_accuracy(
    backbone: Backbone,
    image_set: ImageSet,
    sampling: ViewSampling = ViewSampling(),
    *,
    pairs: int = 256,
    seed: int = 0,
    batch_size: int = 32,
    place_l2: float = L2,
    progress: Callable[[int, int], None] | None = None,
) -> Correspondence:
    """How often the most similar cell of the other view is the right one, over `pairs` pairs of random views.

    Images are taken in turn. Pair n draws from (seed, n), so the pairs do not depend on the backbone. An image that
    cannot be decoded gives no pair. `place_l2` is the penalty of the position score.

    Raises:
        InputError: no two views overlap, or no image can be decoded.
    """
    judged: list[np.ndarray] = []  # results of _judge, one per pair
    maps: list[np.ndarray] = []  # of the first query views
    for start in range(0, pairs, batch_size):
        views, images = _draw_pairs(image_set, sampling, seed, range(pairs)[start : start + batch_size])
        if views:
            query_map, key_map = (feature_maps(backbone, np.stack(side)) for side in zip(*images, strict=True))
            matches = match(query_map.flatten(2), key_map.flatten(2)).numpy()  # (B, S)
            shapes = _shape(query_map), _shape(key_map)
            if len(judged) < _PLACE_VIEWS:
                maps.append(query_map.numpy())
            judged += [_judge(*pair, matched, *shapes) for pair, matched in zip(views, matches, strict=True)]
        if progress is not None:
            progress(min(start + batch_size, pairs), pairs)
    counts = np.array(judged).reshape(-1, 4)
    right, chance, same, cells = counts.sum(axis=0)
    if not cells:
        raise InputError(f"{len(counts)} pairs of views have no place in common: give more pairs or larger crops")
    seen = int((counts[:, 3] > 0).sum())
    residuals = counts[:, 0] - right / cells * counts[:, 3]  # of a ratio of two sums over pairs
    error = np.sqrt(seen / max(seen - 1, 1) * np.square(residuals).sum()) / cells
    views = np.concatenate(maps)
    place = position_score(views, place_l2) if len(views) >= 4 else (float("nan"), float("nan"))
    per_pair = tuple((int(one[0]), int(one[3])) for one in counts)
    shares = right / cells, chance / cells, same / cells
    return Correspondence(*shares, int(cells), seen, float(error), *place, per_pair)


def _draw_pairs(
    image_set: ImageSet, sampling: ViewSampling, seed: int, numbers: range
) -> tuple[list[tuple[View, View]], list[tuple[np.ndarray, np.ndarray]]]:
    """Geometry and pixels (uint8 size×size×3) of the pairs with these numbers."""
    views, images = [], []
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        try:
            image = image_set.decode(number % len(image_set))
        except UndecodableImage:
            continue
        query, key = (sampling.draw(rng, image.shape[0], image.shape[1]) for _ in range(2))
        views.append((query, key))
        images.append((query.render(image, sampling.photometric, rng), key.render(image, sampling.photometric, rng)))
    return views, images


def _judge(
    query: View, key: View, matches: np.ndarray, query_shape: tuple[int, int], key_shape: tuple[int, int]
) -> np.ndarray:
    """(S,) indices of key cells → (4,): sums of right, chance, same place over visible query cells; their count."""
    positions, inside = true_positions(query, key, query_shape, key_shape)
    cells = grid(*key_shape)
    near = is_near(cells[None], positions[:, None])[inside]  # (visible, key cells)
    own = np.arange(len(positions))[inside]
    rows = np.arange(len(near))
    right, same_place = near[rows, matches[inside]].sum(), near[rows, own].sum()
    return np.array([right, near.mean(axis=1).sum(), same_place, len(near)], np.float64)


def _shape(features: paddle.Tensor) -> tuple[int, int]:
    return features.shape[2], features.shape[3]
