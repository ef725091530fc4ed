"""Masks of every kind: values, palette indices, panoptic colors; and what folders and JSON files say of them."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from passl_densecl.errors import InputError
from passl_densecl.evaluation.masks import fold_of, join, presence, read_folders, read_mask, read_voc_masks

VALUES = np.random.default_rng(0).integers(0, 21, (13, 17)).astype(np.uint8)
VALUES[0, 0] = 255


def voc_palette():
    colors = np.random.default_rng(1).integers(0, 256, (256, 3)).astype(np.uint8)
    colors[5] = colors[3]  # two classes of one color: only the index tells
    return colors.ravel().tolist()


def with_palette(path, values, bits=8):
    image = Image.frombytes("P", values.shape[::-1], values.tobytes())
    image.putpalette(voc_palette()[: 3 * 2**bits])
    image.save(path, bits=bits)


def test_values_of_a_gray_mask(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), VALUES)
    np.testing.assert_array_equal(read_mask(str(tmp_path / "a.png")), VALUES)
    cv2.imwrite(str(tmp_path / "b.png"), VALUES.astype(np.uint16) * 200)
    np.testing.assert_array_equal(read_mask(str(tmp_path / "b.png")), VALUES.astype(int) * 200)


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
def test_a_palette_gives_indices_not_colors(tmp_path, bits):
    values = VALUES % 2**bits if bits < 8 else VALUES
    with_palette(tmp_path / "a.png", values, bits)
    assert (tmp_path / "a.png").read_bytes()[24:26] == bytes([bits, 3])  # the case is really that case
    np.testing.assert_array_equal(read_mask(str(tmp_path / "a.png")), values)


def test_a_damaged_mask_is_named(tmp_path):
    with_palette(tmp_path / "a.png", VALUES)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(InputError, match=r"a\.png: damaged"):
        read_mask(str(tmp_path / "a.png"))


@pytest.fixture
def folders(tmp_path):
    for folder in ("images/x", "masks/x"):
        (tmp_path / folder).mkdir(parents=True)
    for number in range(4):
        cv2.imwrite(str(tmp_path / f"images/x/{number}.jpg"), np.full((20, 30, 3), 50 * number, np.uint8))
    for number, value in ((1, 7), (2, 40), (9, 7)):
        mask = np.zeros((20, 30), np.uint8)
        mask[:5], mask[5:10] = value, 255
        cv2.imwrite(str(tmp_path / f"masks/x/{number}.png"), mask)
    return tmp_path


CATEGORIES = [
    {"id": 7, "name": "dog", "supercategory": "animal"},
    {"id": 8, "name": "cat", "supercategory": "animal"},
    {"id": 40, "name": "sky", "supercategory": "sky-stuff"},
]


def test_two_folders(folders):
    found = read_folders(folders / "images", folders / "masks")
    assert found.names == ("x/1", "x/2")
    assert found.classes == ("class 0", "class 7", "class 40")
    assert found.describe() == "2 images with masks, 3 classes (2 images have no mask, 1 masks no image)"
    assert np.unique(found.mask(1)).tolist() == [-1, 0, 2]
    assert presence(found).tolist() == [[300, 150, 0], [300, 0, 150]]
    assert read_folders(folders / "images", folders / "masks", ignore=[0, 255]).classes == ("class 7", "class 40")
    only = found.only([2, 0])
    assert only.classes == ("class 40", "class 0")
    assert presence(only).tolist() == [[0, 300], [150, 300]]
    assert found.image(1)[0, 0].tolist() == [100, 100, 100]


def test_categories_name_the_values(folders):
    file = folders / "c.json"
    file.write_text(json.dumps({"categories": CATEGORIES}))
    found = read_folders(folders / "images", folders / "masks", categories=file)
    assert found.classes == ("dog", "cat", "sky")
    assert presence(found).tolist() == [[150, 0, 0], [0, 0, 150]]  # 0 is no category
    named = {"file_name": "1.png", "segments_info": [{"id": 1, "category_id": 8}]}
    file.write_text(json.dumps({"categories": CATEGORIES, "annotations": [named]}))  # of panoptic masks, not of these
    assert presence(read_folders(folders / "images", folders / "masks", categories=file)).tolist() == [
        [150, 0, 0],
        [0, 0, 150],
    ]
    grouped = read_folders(folders / "images", folders / "masks", categories=file, group=True)
    assert grouped.classes == ("animal", "sky-stuff")
    assert presence(grouped).tolist() == [[150, 0], [0, 150]]


def test_panoptic_colors(folders):
    ids = {1: 70000, 2: 300}
    annotations = []
    for number, kind in ((1, 8), (2, 40)):
        mask = np.zeros((20, 30, 3), np.uint8)
        one = ids[number]
        mask[:4] = (one // 65536, one // 256 % 256, one % 256)  # BGR
        cv2.imwrite(str(folders / f"masks/x/{number}.png"), mask)
        annotations.append({"file_name": f"{number}.png", "segments_info": [{"id": one, "category_id": kind}]})
    with pytest.raises(InputError, match="categories"):
        read_folders(folders / "images", folders / "masks")
    file = folders / "p.json"
    file.write_text(json.dumps({"categories": CATEGORIES, "annotations": annotations}))
    found = read_folders(folders / "images", folders / "masks", categories=file)
    assert presence(found).tolist() == [[0, 120, 0], [0, 0, 120]]
    assert (found.mask(0)[4:] == -1).all()


def test_two_sets_are_joined_by_class_name(folders):
    first = read_folders(folders / "images", folders / "masks", ignore=[0, 255])
    second = read_folders(folders / "images", folders / "masks", ignore=[40, 255])
    both = join(first, second)
    assert both.without() == "4 images have no mask, 2 masks no image"
    assert both.classes == ("class 7", "class 40", "class 0")
    assert presence(both).sum(axis=0).tolist() == [300, 300, 1200]


def test_a_voc_folder(tmp_path):
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "JPEGImages/2007_1.jpg"), np.zeros((13, 17, 3), np.uint8))
    with_palette(tmp_path / "SegmentationClass/2007_1.png", VALUES)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("2007_1\n")
    found = read_voc_masks(tmp_path, "val")
    assert (found.classes[0], found.classes[15], len(found.classes)) == ("background", "person", 21)
    np.testing.assert_array_equal(found.mask(0), np.where(VALUES == 255, -1, VALUES.astype(int)))
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("2007_1\n2007_2\n")
    with pytest.raises(InputError, match=r"2007_2\.jpg"):
        read_voc_masks(tmp_path, "val")
    with pytest.raises(InputError, match="expected a VOC folder"):
        read_voc_masks(tmp_path, "train")


def test_folds_are_equal_and_go_by_name():
    names = [f"n{number}" for number in range(10)]
    fold = fold_of(names, 3, 0)
    assert sorted(np.bincount(fold).tolist()) == [3, 3, 4]
    assert (fold_of(names[::-1], 3, 0) == fold[::-1]).all()
    assert (fold_of(names, 3, 1) != fold).any()


def test_nothing_in_common_is_said(folders):
    with pytest.raises(InputError, match="has the name of a mask under"):
        read_folders(folders / "images" / "x", folders / "masks")
