"""Where the cells of one view of an image lie in another view of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from passl_densecl import transforms
from passl_densecl.data.datasets import ImageSet, PairDataset, Transforms
from passl_densecl.transforms import Crop, RandomHorizontalFlip, RandomResizedCrop


@dataclass(frozen=True)
class View:
    """A rectangle of an image, resized to size×size pixels and optionally flipped."""

    crop: Crop
    size: int
    flipped: bool = False

    def render(
        self, image: np.ndarray, photometric: Transforms = (), rng: np.random.Generator | None = None
    ) -> np.ndarray:
        """uint8 H×W×3, the whole image → uint8 size×size×3; the flip comes last, as in training."""
        view = transforms.resized_crop(image, *self.crop, size=self.size)
        if photometric:
            view = transforms.apply(photometric, view, rng or np.random.default_rng(0))
        return transforms.horizontal_flip(view) if self.flipped else view

    def to_image(self, points: np.ndarray) -> np.ndarray:
        """(S, 2) points (y, x) of the view, from 0 to 1 → (S, 2) points (y, x) of the image, in pixels."""
        y, x = points[:, 0], points[:, 1]
        x = 1 - x if self.flipped else x
        return np.stack([self.crop.top + y * self.crop.height, self.crop.left + x * self.crop.width], axis=1)

    def from_image(self, points: np.ndarray) -> np.ndarray:
        """The inverse of to_image; points outside the view are below 0 or above 1."""
        y = (points[:, 0] - self.crop.top) / self.crop.height
        x = (points[:, 1] - self.crop.left) / self.crop.width
        return np.stack([y, 1 - x if self.flipped else x], axis=1)


def grid(height: int, width: int) -> np.ndarray:
    """(H·W, 2) float64: row and column of every cell, in the order of a flattened map."""
    rows, columns = np.divmod(np.arange(height * width, dtype=np.float64), width)
    return np.stack([rows, columns], axis=1)


def true_positions(
    query: View, key: View, query_shape: tuple[int, int], key_shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the centers of the query view's cells in the key view.

    Args:
        query_shape, key_shape: (H, W) of the maps. The center of cell (i, j) is at ((i + ½) / H, (j + ½) / W) of the
            view.

    Returns:
        (S, 2) float64 row and column in key cells, where a whole number is the center of a cell; and (S,) bool,
        whether the position lies in the key view.
    """
    centers = (grid(*query_shape) + 0.5) / query_shape
    in_key = key.from_image(query.to_image(centers))
    inside = (in_key.min(axis=1) >= 0) & (in_key.max(axis=1) <= 1)
    return in_key * key_shape - 0.5, inside


class MatchedPairs(PairDataset):
    """Two views of every image, and which cells of them show the same place: the positives of dense_matches: geometry.

    ``dataset[epoch, index]`` → the fields of :class:`PairDataset` and (side²,) int64: for each cell of the query view
    the cell of the key view in which its center lies, -1 where it lies outside that view. The views are those of
    :class:`PairDataset`, which draws them. Source: the known geometry as the choice of positives is PixPro's (Xie et
    al., CVPR 2021), here one cell for each, the nearest.

    ``transforms`` begin with RandomResizedCrop; the others move no pixels, but for RandomHorizontalFlip.
    """

    def __init__(self, image_set: ImageSet, transforms: Transforms, seed: int, side: int) -> None:
        self._crops: list[Crop] = []
        self._flips: list[bool] = []
        noted = (RandomResizedCrop, self._crops), (RandomHorizontalFlip, self._flips)
        for kind, notes in noted:
            transforms = [_noting(one, notes) if isinstance(one, kind) else one for one in transforms]
        super().__init__(image_set, transforms, seed)
        self._side = side

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, ...]:
        self._crops.clear()
        self._flips.clear()
        fields = super().__getitem__(key)
        size = len(fields[0])
        # An image that could not be decoded, or whose header was wrong, may have left draws before those of the views.
        count = sum(isinstance(one, RandomHorizontalFlip) for one in self.transforms)
        flips = self._flips[-2 * count :]
        query, key_view = (
            View(crop, size, bool(sum(mirrored) % 2))
            for crop, mirrored in zip(self._crops[-2:], (flips[:count], flips[count:]), strict=True)
        )
        shape = self._side, self._side
        positions, inside = true_positions(query, key_view, shape, shape)
        rows, columns = np.clip(np.rint(positions), 0, self._side - 1).astype(np.int64).T
        return *fields, np.where(inside, rows * self._side + columns, -1)


def _noting(transform: Any, notes: list[Any]) -> Any:
    """The same transform, which also appends to `notes` whatever it draws."""
    kind = type(transform)

    class Noting(kind):
        def draw(self, *arguments: Any) -> Any:
            notes.append(super().draw(*arguments))
            return notes[-1]

    return Noting(**transform.model_dump())
