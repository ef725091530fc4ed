"""Training reads a pack as it reads the folder: the same run to the last bit."""

from __future__ import annotations

import shutil

import pytest

from passl_densecl.data.datasets import scan_images
from passl_densecl.data.packing import pack_images
from tests.engine.runs import arrays, metrics, train_here, write_config

pytest.importorskip("lmdb")


def test_a_run_on_a_pack_equals_one_on_the_folder(tmp_path, photos, capfd):
    images = tmp_path / "photos"
    shutil.copytree(photos, images)
    for name in ("class_0/08.png", "class_2/14.png"):
        (images / name).write_bytes(b"no image")  # replaced by the same neighbors
    pack_images(scan_images(images), str(tmp_path / "photos.lmdb"))
    runs = []
    for name, root, workers in (("folder", images, 0), ("pack", tmp_path / "photos.lmdb", 2)):
        assert train_here(write_config(tmp_path, root, name=name, epochs=1, data__num_workers=workers)) == 0
        assert f"40 images under {root}" in capfd.readouterr().out
        runs.append(tmp_path / name)
    assert "cannot decode" in (runs[1] / "train.log").read_text()
    assert "photos.lmdb/class_" in (runs[1] / "train.log").read_text()
    expected, found = (arrays(run, "epoch_0001") for run in runs)
    assert expected.keys() == found.keys()
    assert all(expected[name].tobytes() == found[name].tobytes() for name in expected)
    assert metrics(runs[0]) == metrics(runs[1])
