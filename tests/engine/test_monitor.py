"""Correspondences and place while training: right, harmless, and compared with those before the dense loss."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from passl_densecl.config import load_config
from passl_densecl.data.datasets import scan_images
from passl_densecl.engine.monitor import Monitor
from passl_densecl.errors import InputError
from tests.engine.runs import metrics, write_config
from tests.engine.test_knn import SHAPE, assert_same_bits, run
from tests.engine.test_messages import Recorder

MAP = {"model__last_stride": 1, "model__loss_lambda_warmup_epochs": 1, "loggers": [], "epochs": 2}
MAP |= {"batch_size": 8, "micro_batch_size": 8}
MAP["data__transforms"] = [{"name": "RandomResizedCrop", "size": 40, "scale": [0.2, 1.0]}]  # 3×3 cells
LAST = "epoch_0002"
KEYS = ("correspondence_accuracy", "correspondence_standard_error", "place_r2", "place_standard_error")


def measured(path):
    return {one["step"]: [one[key] for key in KEYS] for one in metrics(path) if KEYS[0] in one}


def test_a_run_ends_with_the_same_bits_and_goes_on_with_what_was_measured(tmp_path, few_photos, monkeypatch):
    compared: list[tuple[int, int]] = []
    top1s = []

    def check_place(_, dense_top1, now, old):
        compared.append((now["step"], old["step"]))
        top1s.append(dense_top1)

    monkeypatch.setattr(Monitor, "check_place", check_place)
    options = MAP | {"monitor": {"images": 8}}
    one, other = run(tmp_path / "with", few_photos, **options), run(tmp_path / "without", few_photos, **MAP)
    assert_same_bits(one, other, LAST)
    found = measured(one)
    assert list(found) == [0, 2, 4]
    assert len({row[2] for row in found.values()}) == 3
    assert all(0 < share < 1 and place < 1 for share, _, place, _ in found.values()), found
    assert compared == [(4, 2)]  # the dense loss is trained from step 2 on
    assert top1s == [next(each["dense_top1"] for each in metrics(one) if each["step"] == 4)]
    log = (one / "train.log").read_text()
    assert "8 pairs of crops before training and every 1 epoch, 40 px" in log
    assert f"epoch 2/2  correspondences {found[4][0]:.1%} (same place " in log

    shutil.rmtree(one / "checkpoints" / LAST)
    compared.clear()
    assert_same_bits(run(tmp_path / "with", few_photos, resume="auto", **options), other, LAST)
    assert measured(one) == found
    assert compared == [(4, 2)]


def test_a_dense_loss_that_is_won_by_place(tmp_path, few_photos):
    def measured(step: int, accuracy: float, place: float) -> dict:
        return {"step": step, "correspondence_accuracy": accuracy, "place_r2": place}

    config, log, before = (
        load_config(write_config(tmp_path, few_photos, **MAP, monitor={})),
        Recorder(),
        measured(330, 0.324, 0.903),
    )
    monitor = Monitor(SimpleNamespace(config=config, log=log), scan_images(few_photos))  # type: ignore[arg-type]
    del log.lines[:]
    # (dense top-1, correspondences): won and better, worse but not won, won and worse once and then twice
    for epoch, (top1, accuracy) in enumerate([(0.98, 0.33), (0.6, 0.3), (0.98, 0.3), (0.98, 0.275), (0.98, 0.27)]):
        monitor.check_place(top1, measured(400 + epoch, accuracy, 0.952), before)
        assert len(log.lines) == (epoch >= 3), epoch
    assert log.lines[0][1].startswith(
        "the dense loss seems to be won by place: its top-1 is 98%, but 27.5% of the cells of two crops match "
        "correctly, 32.4% before the dense loss began (step 330); a cell's features tell its place with R² 0.95, 0.90 "
        "then."
    )


def test_it_takes_different_images_and_needs_a_map(tmp_path, photos):
    config = load_config(write_config(tmp_path, photos, **SHAPE | MAP, monitor={"images": 8}))
    fake = type("Run", (), {"config": config, "log": type("Log", (), {"line": lambda *_: None})()})
    images = Monitor(fake, scan_images(photos))._images  # type: ignore[arg-type]
    assert len({images.path(index).split("class_")[1][0] for index in range(len(images))}) > 2
    with pytest.raises(InputError, match=r"monitor .*map is one cell, which has no place"):
        load_config(write_config(tmp_path, photos, **SHAPE, monitor={}))
