"""The pictures of views show what the training loader delivers, and where it was cut."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from passl_densecl.data.datasets import scan_images
from passl_densecl.data.loader import PairLoader
from passl_densecl.errors import InputError
from passl_densecl.transforms import resized_crop
from passl_densecl.visualize.style import FIRST, SECOND
from passl_densecl.visualize.views import draw_pairs, training_pairs
from tests.visualize.conftest import pretrain_config


@pytest.mark.parametrize("epoch", [1, 3])
def test_they_are_the_pixels_of_the_loader(photos, tmp_path, epoch):
    config, images = pretrain_config(photos, tmp_path), scan_images(photos)
    loader = PairLoader(images, config.data.transforms, seed=config.seed, batch_size=config.batch_size)
    start = (epoch - 1) * loader.steps_per_epoch
    _, batch = next(loader.steps(start, start + 1))
    pairs = training_pairs(config, images, 8, epoch)
    assert [pair.index for pair in pairs] == batch.indices.tolist()
    np.testing.assert_array_equal(np.stack([pair.query for pair in pairs]), batch.query.numpy())
    np.testing.assert_array_equal(np.stack([pair.key for pair in pairs]), batch.key.numpy())


def test_the_boxes_are_what_was_cut(photos, tmp_path):
    config = pretrain_config(photos, tmp_path)
    only_crop = config.model_copy(
        update={"data": config.data.model_copy(update={"transforms": config.data.transforms[:1]})}
    )
    for pair in training_pairs(only_crop, scan_images(photos), 6, 2):
        assert pair.crops is not None
        for crop, view in zip(pair.crops, (pair.query, pair.key), strict=True):
            np.testing.assert_array_equal(resized_crop(pair.original, *crop, size=32), view)


def test_boxes_shrink_with_a_large_image(tmp_path):
    import cv2

    (tmp_path / "large").mkdir()
    image = np.random.default_rng(0).integers(0, 256, (600, 1024, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "large" / "a.png"), image)
    config = pretrain_config(tmp_path / "large", tmp_path)
    (pair,) = training_pairs(config, scan_images(tmp_path / "large"), 1)
    first = config.data.transforms[0]
    drawn = first.draw(np.random.default_rng([config.seed, 0, 0, 1]), 600, 1024)  # type: ignore[union-attr]
    assert pair.original is not None
    assert pair.crops is not None
    assert pair.original.shape == (300, 512, 3)
    np.testing.assert_allclose(pair.crops[1], np.array(drawn) / 2, atol=0.5)


def test_a_bad_image_shows_its_stand_in_without_boxes(photos, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(photos, folder)
    config = pretrain_config(folder, tmp_path)
    index = training_pairs(config, scan_images(folder), 1)[0].index
    path = scan_images(folder).path(index)
    with open(path, "wb") as file:
        file.write(b"no image")
    (pair,) = training_pairs(config, scan_images(folder), 1)
    assert pair.original is None
    assert pair.crops is None
    assert pair.query.shape == (32, 32, 3)
    draw_pairs([pair])


def test_the_grid_holds_every_pair_and_marks_query_and_key(photos, tmp_path):
    pairs = training_pairs(pretrain_config(photos, tmp_path), scan_images(photos), 5)
    figure = draw_pairs(pairs, title="a title")
    assert len(figure.axes) == 15
    np.testing.assert_array_equal(np.asarray(figure.axes[4].images[0].get_array()), pairs[1].query)
    from matplotlib.colors import to_hex

    edges = [to_hex(patch.get_edgecolor()).upper() for patch in figure.axes[0].patches]
    assert edges == ["#FFFFFF", FIRST, "#FFFFFF", SECOND]
    styles = [patch.get_linestyle() for patch in figure.axes[0].patches]
    assert styles[1] != styles[3]


def test_transforms_without_a_crop_draw_no_boxes(photos, tmp_path):
    config = pretrain_config(photos, tmp_path)
    rest = config.model_copy(update={"data": config.data.model_copy(update={"transforms": config.data.transforms[1:]})})
    pairs = training_pairs(rest, scan_images(photos), 2)
    assert [pair.crops for pair in pairs] == [None, None]
    assert not draw_pairs(pairs).axes[0].patches


@pytest.mark.parametrize(
    ("options", "message"),
    [((0, 1), "0 images: expected 1 to 40"), ((41, 1), "41 images"), ((1, 0), "epochs 1 to 6"), ((1, 7), "epoch 7")],
)
def test_mistakes_are_named(photos, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        training_pairs(pretrain_config(photos, tmp_path), scan_images(photos), *options)
