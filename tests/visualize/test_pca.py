"""Principal components and the colors made of them."""

from __future__ import annotations

import numpy as np
import pytest

from passl_densecl.errors import InputError
from passl_densecl.visualize.pca import draw_colors, map_colors, principal_components


@pytest.mark.parametrize("shape", [(200, 6), (5, 40)])
def test_components_are_those_of_the_singular_value_decomposition(shape):
    vectors = np.random.default_rng(0).standard_normal(shape) * np.arange(1, shape[1] + 1)
    found = principal_components(vectors, 3)
    centerd = vectors - vectors.mean(axis=0)
    _, values, axes = np.linalg.svd(centerd, full_matrices=False)
    np.testing.assert_allclose(np.abs((found.axes * axes[:3]).sum(axis=1)), 1, rtol=1e-6)
    np.testing.assert_allclose(found.shares, values[:3] ** 2 / (values**2).sum(), rtol=1e-6)
    assert (np.take_along_axis(found.axes, np.abs(found.axes).argmax(axis=1)[:, None], axis=1) > 0).all()
    np.testing.assert_allclose(np.abs(found.project(vectors)), np.abs(centerd @ axes[:3].T), atol=1e-8)


def test_fewer_dimensions_than_components_leave_zeros():
    found = principal_components(np.random.default_rng(0).standard_normal((20, 2)), 3)
    assert found.shares[2] == 0
    assert found.shares.sum() == pytest.approx(1)
    assert not found.axes[2].any()


def test_equal_features_have_equal_colors_in_all_images():
    rng = np.random.default_rng(1)
    kinds = rng.standard_normal((5, 16))
    labels = rng.integers(0, 5, (2, 4, 6))
    maps = [kinds[label].transpose(2, 0, 1).astype(np.float32) for label in labels]
    colors, share = map_colors(maps)
    assert share > 0.6
    for kind in range(5):
        one = np.concatenate([color[label == kind] for color, label in zip(colors, labels, strict=True)])
        np.testing.assert_allclose(one, np.broadcast_to(one[0], one.shape), atol=1e-6)
    everything = np.concatenate([color.reshape(-1, 3) for color in colors])
    assert everything.min() == 0
    assert everything.max() == 1


def test_a_margin_keeps_the_border_out_of_the_components():
    rng = np.random.default_rng(2)
    features = rng.standard_normal((8, 10, 10)).astype(np.float32)
    features[:, 0], features[:, -1], features[:, :, 0], features[:, :, -1] = 100, -100, 100, -100  # (8, 10) each
    inside = np.s_[1:-1, 1:-1]
    with_border, without = map_colors([features])[0][0][inside], map_colors([features], margin=1)[0][0][inside]
    assert without.std(axis=(0, 1)).min() > 0.2
    np.testing.assert_allclose(without, map_colors([features[:, 1:-1, 1:-1]])[0][0])
    assert not np.allclose(with_border, without)
    with pytest.raises(InputError, match="lower margin"):
        map_colors([features], margin=5)


def test_too_few_cells_are_refused():
    with pytest.raises(InputError, match="raise size"):
        map_colors([np.ones((8, 1, 3), np.float32)])


def test_the_picture_has_every_image_above_its_colors():
    images = [np.full((20, 30, 3), value, np.uint8) for value in (10, 90, 200, 30, 60)]
    colors = [np.random.default_rng(n).random((2, 3, 3)) for n in range(5)]
    figure = draw_colors(images, colors, 0.42, names=list("abcde"), title="t", columns=3, margin=1)
    assert len(figure.axes) == 12
    np.testing.assert_array_equal(np.asarray(figure.axes[10 - 3].images[0].get_array()), images[4])
    np.testing.assert_array_equal(np.asarray(figure.axes[10].images[0].get_array()), colors[4])
    assert "42% of the variance" in figure.get_suptitle()
    assert "without 1 cell" in figure.get_suptitle()
