"""Which cells of two views show the same place, told by the pixels themselves."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from passl_densecl import transforms as T
from passl_densecl.data.datasets import PairDataset, scan_images
from passl_densecl.data.geometry import MatchedPairs
from passl_densecl.data.loader import PairLoader, epoch_order

SIDE, CELL = 4, 16
RECIPE = (T.RandomResizedCrop(size=SIDE * CELL), T.ColorJitter(p=0.0), T.RandomHorizontalFlip())


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Pixels tell their place: green the row, red the column, as shares of 240. The fourth file is broken."""
    root = tmp_path_factory.mktemp("places")
    for number, (height, width) in enumerate([(240, 200), (150, 240), (700, 900), (64, 64)]):
        rows, columns = np.mgrid[:height, :width]
        picture = np.stack([np.zeros_like(rows), 240 * rows / height, 240 * columns / width], axis=-1)
        cv2.imwrite(str(root / f"{number}.{'jpg' if height == 700 else 'png'}"), np.rint(picture).astype(np.uint8))
    (root / "3.png").write_bytes(b"broken")
    return scan_images(root)


def centers(view: np.ndarray) -> np.ndarray:
    """(S, 2): row and column, as shares of 240, that the view shows in the middle of each cell."""
    cells = view.reshape(SIDE, CELL, SIDE, CELL, 3)[:, CELL // 2 - 1 : CELL // 2 + 1, :, CELL // 2 - 1 : CELL // 2 + 1]
    return cells.mean(axis=(1, 3))[..., [1, 0]].reshape(-1, 2)


def test_matched_cells_show_the_same_place(images):
    plain, data = PairDataset(images, RECIPE, seed=1), MatchedPairs(images, RECIPE, 1, SIDE)
    matched, flips, outside = 0, set(), 0
    for epoch in range(20):
        for index in range(4):
            query, key, number, why, matches = data[epoch, index]
            for ours, expected in zip((query, key, number, why), plain[epoch, index], strict=True):
                assert np.array_equal(ours, expected)
            assert bool(why) == (index == 3)  # then another image, with its own size, stands in
            assert (matches.dtype, matches.shape) == (np.int64, (SIDE * SIDE,))
            shown, there = centers(query), centers(key)
            cell = np.abs(there[[1, SIDE]] - there[0]).max(axis=0)  # of the key view, in pixels' values
            inside = matches >= 0
            distance = np.abs(there[matches[inside]] - shown[inside])
            assert (distance <= cell / 2 + 3).all()  # the nearest center is half a cell away at most
            bounds = there.min(axis=0) - cell / 2, there.max(axis=0) + cell / 2
            beyond = np.maximum(bounds[0] - shown, shown - bounds[1]).max(axis=1)
            assert (beyond[inside] < 3).all()
            assert (beyond[~inside] > -3).all()
            matched, outside = matched + inside.sum(), outside + (~inside).sum()
            flips.add((query[0, 0, 0] > query[0, -1, 0], key[0, 0, 0] > key[0, -1, 0]))
    assert len(flips) == 4  # both flipped, neither, and one of them
    assert matched > 400
    assert outside > 100


def test_views_that_share_nothing_match_nothing(images):
    recipe = (T.RandomResizedCrop(size=64, scale=(0.01, 0.02)), T.RandomHorizontalFlip(p=1.0))
    assert (MatchedPairs(images, recipe, 0, SIDE)[0, 0][4] == -1).all()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_carry_the_matches(images, num_workers):
    loader = PairLoader(images, RECIPE, SIDE, seed=3, batch_size=2, num_workers=num_workers)
    data = MatchedPairs(images, RECIPE, 3, SIDE)
    for step, batch in loader.steps(0, 4):
        epoch, number = divmod(step, 2)
        wanted = epoch_order(4, 3, epoch)[number * 2 : number * 2 + 2]
        assert (batch.matches.numpy() == np.stack([data[epoch, index][4] for index in wanted])).all()
