"""Similarity to one cell: the right cell, the right numbers, the right place in the picture."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from passl_densecl.errors import InputError
from passl_densecl.visualize.heatmap import draw_heatmap, similarity_to


def pixels(images: paddle.Tensor) -> paddle.Tensor:
    """One cell a pixel."""
    return images


def picture(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_the_cell_under_the_point_is_compared_with_all():
    first, second = picture(4, 6, 0), picture(3, 5, 1)
    second[2, 4] = first[1, 5]
    found = similarity_to(pixels, [first, second], (5.5 / 6, 1.5 / 4))
    assert found.cell == (1, 5)
    assert [each.shape for each in found.maps] == [(4, 6), (3, 5)]
    assert found.maps[0][1, 5] == pytest.approx(1, abs=1e-6)
    assert found.best(1) == (2, 4)
    assert found.best(0) != (1, 5)
    from passl_densecl.models import normalize

    values = normalize(paddle.to_tensor(first[None]))[0].numpy()
    a, b = values[:, 1, 5], values[:, 3, 0]
    assert found.maps[0][3, 0] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)


@pytest.mark.parametrize("point", [(1.0, 0.5), (0.5, 1.0), (-0.1, 0.5)])
def test_a_point_outside_is_refused(point):
    with pytest.raises(InputError, match="is outside the image"):
        similarity_to(pixels, [picture(4, 4, 0)], point)


@pytest.mark.parametrize("count", [1, 2])
def test_the_picture_shows_the_numbers_on_one_scale(count):
    images = [picture(40, 60, seed) for seed in range(count)]
    found = similarity_to(lambda x: paddle.nn.functional.avg_pool2d(x, 10), images, (0.3, 0.6))
    figure = draw_heatmap(images, found, names=["a.png", "b.png"][:count], title="t")
    drawn = [axes.images[1] for axes in figure.axes if len(axes.images) == 2]
    assert len(drawn) == count
    for values, image in zip(found.maps, drawn, strict=True):
        np.testing.assert_array_equal(np.asarray(image.get_array()), values)
        assert tuple(image.get_extent()) == (-0.5, 59.5, 39.5, -0.5)
    assert len({image.get_clim() for image in drawn}) == 1
    chosen = figure.axes[0].patches[0]
    assert (chosen.get_x(), chosen.get_y()) == (10 * found.cell[1] - 0.5, 10 * found.cell[0] - 0.5)
    title = figure.get_suptitle()
    assert f"{found.maps[-1][found.best(count - 1)]:.2f}" in title
