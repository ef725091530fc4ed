"""The geometry of views, and the share of right matches for backbones of which it is known."""

from __future__ import annotations

import cv2
import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from passl_densecl.data.datasets import scan_images
from passl_densecl.data.geometry import View, true_positions
from passl_densecl.errors import InputError
from passl_densecl.evaluation.correspondence import ViewSampling, correspondence_accuracy, is_near
from passl_densecl.transforms import MEAN, STD, Crop

SIZE, GRID = 64, 8
PLAIN = ViewSampling(SIZE, photometric=())


@pytest.fixture(scope="module")
def position_images(tmp_path_factory):
    """Images whose red is the column and green the row: a color tells its place, whatever the crop."""
    folder = tmp_path_factory.mktemp("positions")
    for number, (height, width) in enumerate([(128, 128), (96, 160), (200, 120)]):
        rows, columns = np.mgrid[:height, :width]
        image = np.zeros((height, width, 3), np.uint8)
        image[..., 2] = np.round(columns / (width - 1) * 255)  # OpenCV writes BGR
        image[..., 1] = np.round(rows / (height - 1) * 255)
        cv2.imwrite(str(folder / f"{number}.png"), image)
    return scan_images(folder)


def reads_positions(images: paddle.Tensor) -> paddle.Tensor:
    """(B, 3, h, w) → (B, 3, GRID, GRID): a vector on a small cap of the sphere, whose direction is the place."""
    colors = images * paddle.to_tensor(np.float32(STD)).reshape([1, 3, 1, 1])
    colors = colors + paddle.to_tensor(np.float32(MEAN)).reshape([1, 3, 1, 1])
    place = F.adaptive_avg_pool2d(colors[:, :2] - 0.5, GRID)
    return paddle.concat([place, paddle.ones_like(place[:, :1])], axis=1)


def says_nothing(images: paddle.Tensor) -> paddle.Tensor:
    """The same vector everywhere: argmax then takes the first cell."""
    return paddle.ones([images.shape[0], 4, GRID, GRID])


def says_where_in_the_view(images: paddle.Tensor) -> paddle.Tensor:
    """A one-hot vector of the cell's index: every cell matches the cell in the same place, the shortcut."""
    return paddle.eye(GRID * GRID).reshape([1, GRID * GRID, GRID, GRID]).tile([images.shape[0], 1, 1, 1])


class SaysAnything:
    """Random vectors: matches are random."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __call__(self, images: paddle.Tensor) -> paddle.Tensor:
        return paddle.to_tensor(self.rng.standard_normal((images.shape[0], 32, GRID, GRID)).astype("float32"))


def test_a_backbone_that_sees_places_is_right(position_images):
    found = correspondence_accuracy(reads_positions, position_images, PLAIN, pairs=40)
    assert found.share > 0.99
    assert found.cells > 40 * 8


def test_random_matches_reach_the_stated_chance(position_images):
    found = correspondence_accuracy(SaysAnything(), position_images, PLAIN, pairs=150)
    assert found.chance == pytest.approx(4 / GRID**2, rel=0.25)  # about 2×2 cells lie within one cell
    assert found.share == pytest.approx(found.chance, abs=0.012)


def test_the_shortcut_reaches_what_is_stated_for_it(position_images):
    shortcut = correspondence_accuracy(says_where_in_the_view, position_images, PLAIN, pairs=60)
    assert shortcut.share == shortcut.same_place
    assert shortcut.same_place > 2 * shortcut.chance  # which is why chance alone would flatter


def test_a_constant_backbone_knows_nothing(position_images):
    found = correspondence_accuracy(says_nothing, position_images, PLAIN, pairs=100)
    assert found.share < found.chance + 0.01


def test_same_pairs_for_a_seed_and_any_batch_size(position_images):
    def measure(seed, **options):
        return correspondence_accuracy(
            reads_positions, position_images, ViewSampling(SIZE), pairs=10, seed=seed, **options
        )

    assert measure(5) == measure(5) == measure(5, batch_size=3)
    assert measure(5).cells != measure(6).cells


def test_no_common_place_is_said(position_images):
    with pytest.raises(InputError, match="no place in common"):
        correspondence_accuracy(reads_positions, position_images, ViewSampling(SIZE, (0.001, 0.001)), pairs=1, seed=11)


def test_positions_of_a_shifted_and_a_flipped_view():
    left, right = View(Crop(0, 0, 80, 80), SIZE), View(Crop(0, 20, 80, 80), SIZE)
    positions, inside = true_positions(left, right, (4, 4), (4, 4))  # a cell is 20 pixels
    np.testing.assert_allclose(positions[5], [1, 0])  # row 1, column 1 is one column further left in the right view
    assert inside.reshape(4, 4).tolist() == [[False, True, True, True]] * 4
    flipped = View(right.crop, SIZE, flipped=True)
    np.testing.assert_allclose(true_positions(left, flipped, (4, 4), (4, 4))[0][5], [1, 3])
    np.testing.assert_allclose(true_positions(flipped, left, (4, 4), (4, 4))[0][7], [1, 1])


def test_positions_follow_scale_and_a_map_of_another_shape():
    whole, part = View(Crop(0, 0, 100, 100), SIZE), View(Crop(50, 50, 50, 50), SIZE)
    positions, inside = true_positions(whole, part, (4, 4), (2, 4))
    # Cell (2, 3) of the whole has its center at y 62.5, x 87.5: a quarter and three quarters into the part.
    np.testing.assert_allclose(positions[11], [0.25 * 2 - 0.5, 0.75 * 4 - 0.5])
    assert inside.sum() == 4


def test_near_means_within_one_cell_along_both_axes():
    truth = np.array([[2.0, 2.0]] * 4)
    cells = np.array([[3.0, 1.0], [2.0, 3.01], [0.9, 2.0], [2.0, 2.0]])
    assert is_near(cells, truth).tolist() == [True, False, False, True]


def test_the_pixels_are_where_the_geometry_says(position_images):
    """Colors of the view tell places of the image; they must be those that to_image computes, flipped or not."""
    height, width = 128, 128
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([columns * 2, rows * 2, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    rng = np.random.default_rng(1)
    flips = set()
    for _ in range(12):
        view = PLAIN.draw(rng, height, width)
        flips.add(view.flipped)
        places = rng.uniform(0.1, 0.9, (20, 2))
        pixels = view.render(image)[(places[:, 0] * SIZE).astype(int), (places[:, 1] * SIZE).astype(int)]
        centers = (np.floor(places * SIZE) + 0.5) / SIZE
        expected = view.to_image(centers) - 0.5  # the center of pixel n is at n + ½
        np.testing.assert_allclose(pixels[:, [1, 0]] / 2, expected, atol=1.2)
        np.testing.assert_allclose(view.from_image(view.to_image(places)), places)
    assert flips == {True, False}


def test_the_standard_error_is_the_spread_over_draws_of_pairs(position_images):
    """Pairs, not cells, are drawn: cells of one pair stand or fall together."""

    def measure(seed):
        return correspondence_accuracy(says_where_in_the_view, position_images, PLAIN, pairs=24, seed=seed)

    found = [measure(seed) for seed in range(12)]
    spread = np.std([one.share for one in found], ddof=1)
    stated = np.mean([one.standard_error for one in found])
    assert 0.5 < spread / stated < 2
    assert stated > 1.5 * np.sqrt(found[0].share * (1 - found[0].share) / found[0].cells)
