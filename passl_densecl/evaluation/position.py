"""How much of a feature map is position: can a linear function tell where in the view a cell lies?

Zero padding tells a convolutional network its place, whatever the image shows. A contrastive loss over cells can be won
by place alone; then this score rises and correspondences fall.
"""

from __future__ import annotations

import numpy as np

from passl_densecl.evaluation.linear import standardization

L2 = 1e-3  # on standardized features, per cell


def coordinates(height: int, width: int) -> np.ndarray:
    """(H·W, 2) float32: row and column of every cell of a map, from -1 to 1."""
    sides = [
        np.linspace(-1, 1, count, dtype=np.float32) if count > 1 else np.zeros(1, np.float32)
        for count in (height, width)
    ]
    return np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 2)


def position_score(maps: np.ndarray, l2: float = L2) -> tuple[float, float]:
    """(N, C, H, W) of N views, N ≥ 4 → R² of place from features, and its standard error over images.

    A ridge regression of row and column, fitted to the first half of the views and judged on the second: 1 is exact,
    0 as good as the middle of the map. Few cells, less than about ten times C, need a stronger penalty `l2`. Views
    should be random crops: in whole photographs what is seen tells place too.
    """
    count, channels, height, width = maps.shape
    cells = np.ascontiguousarray(maps.reshape(count, channels, -1).transpose(0, 2, 1))  # (N, S, C)
    place, half = coordinates(height, width).astype(np.float64), count // 2
    train = cells[:half].reshape(-1, channels)
    mean, deviation = standardization(train)
    train = (train - mean) / deviation
    gram = (train.T @ train).astype(np.float64) + l2 * len(train) * np.eye(channels)
    weight = np.linalg.solve(gram, train.T.astype(np.float64) @ np.tile(place, (half, 1)))
    found = ((cells[half:] - mean) / deviation) @ weight  # (N − half, S, 2)
    errors = np.square(found - place).sum(axis=(1, 2)) / np.square(place).sum()  # one per view; R² is 1 − their mean
    return float(1 - errors.mean()), float(errors.std(ddof=1) / np.sqrt(len(errors)))
