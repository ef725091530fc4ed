"""The demo's image set and table; the whole demo is `make demo`."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from passl_densecl.cli import demo
from passl_densecl.config import load_config
from passl_densecl.data.datasets import scan_images
from passl_densecl.errors import InputError
from passl_densecl.transforms import output_size

ROOT = Path(__file__).resolve().parents[2]


SIZES = [(512, 512), (300, 451), (427, 640), (1411, 1411), (303, 384), (96, 300), (250, 290)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_no_pixel_is_in_train_and_in_val(height, width):
    train, val = demo.plan_tiles(height, width)
    assert train
    assert val
    used = {"train": np.zeros((height, width), int), "val": np.zeros((height, width), int)}
    for name, tiles in (("train", train), ("val", val)):
        for tile in tiles:
            assert tile.top >= 0
            assert tile.bottom <= height
            assert tile.left >= 0
            assert tile.right <= width
            assert (tile.bottom - tile.top, tile.right - tile.left) == (demo.TILE, demo.TILE)
            used[name][tile.top : tile.bottom, tile.left : tile.right] += 1
    assert not ((used["train"] > 0) & (used["val"] > 0)).any()
    assert used["val"].max() == 1  # validation tiles do not overlap
    assert len(set(train)) == len(train) <= demo.TRAIN_TILES_MAX


def test_the_photographs_become_class_folders(tmp_path, monkeypatch):
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the demo must not use the network"))
    demo.build_image_set(tmp_path)
    train, val = (scan_images(tmp_path / name, labeled=True) for name in ("train", "val"))
    assert train.classes == val.classes == tuple(sorted(demo.PHOTOGRAPHS))
    assert np.bincount(train.labels).min() >= 20
    assert np.bincount(val.labels).min() >= 3
    assert len(train) >= 400
    # A file holds the pixels that its name says, so that the plan's regions are what was proven disjoint.
    tile = tmp_path / "val" / "cat" / min(path.name for path in (tmp_path / "val" / "cat").iterdir())
    top, left = map(int, tile.stem.split("_")[1:])
    source = cv2.imread(str(demo.photograph(*demo.PHOTOGRAPHS["cat"])))[top : top + demo.TILE, left : left + demo.TILE]
    assert np.abs(cv2.imread(str(tile)).astype(int) - source).mean() < 6  # JPEG
    used = {demo.photograph(*source) for source in demo.PHOTOGRAPHS.values()}
    assert demo.photograph(*demo.UNSEEN) not in used


def write_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        cv2.imwrite(str(folder / f"{number} a.png"), np.full((8, 8, 3), number, np.uint8))


def names(split, labeled: bool) -> list[str]:
    images = scan_images(split.root, split.list_file, labeled=labeled)
    return [str(Path(images.path(index)).resolve()) for index in range(len(images))]


def test_a_folder_of_classes_is_split(tmp_path):
    write_images(tmp_path / "data" / "cats", 10)
    write_images(tmp_path / "data" / "dogs", 7)
    images = demo.user_folder(tmp_path / "data", tmp_path / "out")
    assert images.labeled
    train, val = names(images.train, True), names(images.val, True)
    assert len(train) == 14
    assert len(val) == 3
    assert not set(train) & set(val)
    assert names(images.pretrain, False) == train
    labels = scan_images(images.val.root, images.val.list_file, labeled=True).labels
    assert labels is not None
    assert labels.tolist() == [0, 0, 1]


def test_train_and_val_folders_are_taken_as_they_are(tmp_path):
    for split, count in (("train", 6), ("val", 2)):
        write_images(tmp_path / "data" / split / "cats", count)
        write_images(tmp_path / "data" / split / "dogs", count)
    images = demo.user_folder(tmp_path / "data", tmp_path / "out")
    assert images.labeled
    assert len(names(images.train, True)) == 12
    assert len(names(images.val, True)) == 4


def test_a_flat_folder_has_no_labels(tmp_path):
    write_images(tmp_path / "data", 11)
    images = demo.user_folder(tmp_path / "data", tmp_path / "out")
    assert not images.labeled
    assert any("without the k-NN" in note for note in images.notes)
    train, val = names(images.pretrain, False), names(images.val, False)
    assert len(train) == 9
    assert len(val) == 2
    assert not set(train) & set(val)


def test_a_large_folder_is_thinned_and_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "USER_TRAIN_MAX", 5)
    write_images(tmp_path / "data", 20)
    images = demo.user_folder(tmp_path / "data", tmp_path / "out")
    assert len(names(images.pretrain, False)) == 5
    assert "train: 5 of the 16 images, so that the demo takes minutes" in images.notes


def test_only_its_own_folder_is_emptied(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "precious.txt").write_text("keep")
    with pytest.raises(InputError, match="did not make"):
        demo.prepare(folder)
    assert (folder / "precious.txt").exists()
    demo.prepare(tmp_path / "new")
    (tmp_path / "new" / "old.txt").touch()
    demo.prepare(tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == [demo.MARKER]


def test_the_verdict_follows_the_numbers(capsys):
    rows = [
        demo.Row("up", 0.2, 0.6, 0.1, 100),
        demo.Row("down", 0.6, 0.2, 0.1, 100),
        demo.Row("same", 0.50, 0.55, 0.1, 100),
    ]
    assert [demo.verdict(row) for row in rows] == [1, -1, 0]
    demo.print_summary(rows, {"images": 1.0}, 6)
    text = capsys.readouterr().out
    assert "higher: up\n" in text
    assert "lower: down\n" in text
    assert "no clear difference: same\n" in text


def test_the_configs_fit_each_other():
    pretrain, linear = load_config(demo.PRETRAIN), load_config(demo.LINEAR)
    assert pretrain.model.depth == linear.model.depth
    assert pretrain.model.stem_stride == linear.model.stem_stride
    assert output_size(pretrain.data.transforms) == output_size(linear.data.val_transforms)
