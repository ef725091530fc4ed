"""What a user reads when something does not fit: the value, what was expected, what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from passl_densecl.config import PretrainConfig, load_config
from passl_densecl.data.datasets import scan_images
from passl_densecl.engine.linear import linear_eval
from passl_densecl.engine.pretrain import check_image_count, choose_queue_len, pretrain
from passl_densecl.errors import InputError
from passl_densecl.reliability.log import SilentLog
from tests.engine.runs import train_here, write_config


class Recorder(SilentLog):
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def line(self, label: str, text: str) -> None:
        self.lines.append((label, text))


@pytest.fixture
def config(tmp_path, photos):
    """The small experiment on the 40 images of `photos`, with overrides."""

    def config(*overrides: str, images=photos) -> PretrainConfig:
        loaded = load_config(write_config(tmp_path, images), ["device=cpu", *overrides])
        assert isinstance(loaded, PretrainConfig)
        return loaded

    return config


def test_an_empty_folder(config, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no images under '.*empty'; found nothing at all; give a folder that holds"):
        pretrain(config(images=tmp_path / "empty"))


def test_a_folder_of_something_else(config, tmp_path):
    (tmp_path / "texts").mkdir()
    for index in range(3):
        (tmp_path / "texts" / f"{index}.txt").write_text("no image")
    with pytest.raises(InputError, match=r"no images under '.*texts'; found 3 \.?txt files"):
        pretrain(config(images=tmp_path / "texts"))


def test_a_misspelt_folder(config, tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match=r"did you mean '?.*photos"):
        pretrain(config(images=tmp_path / "photso"))


def test_a_folder_where_nothing_decodes(config, tmp_path):
    (tmp_path / "broken").mkdir()
    for index in range(20):
        (tmp_path / "broken" / f"{index:02d}.jpg").write_bytes(b"\xff\xd8 this is no picture")
    with pytest.raises(InputError, match=r"no image could be decoded .*broken.*; tried 16 of 20") as error:
        pretrain(config(images=tmp_path / "broken"))
    assert "00.jpg" in str(error.value)


def test_fewer_images_than_a_batch(config):
    with pytest.raises(InputError, match="40 images under") as error:
        pretrain(config("batch_size=64", "model.queue_len=64"))
    assert "fewer than batch_size 64" in str(error.value)
    assert "set batch_size 32 or less" in str(error.value)
    assert check_image_count(scan_images(config().data.root), config("batch_size=32", "model.queue_len=64")) == 1


def test_a_queue_longer_than_the_data_set_is_a_warning_that_helps(config):
    queue_len, warning = choose_queue_len(config("model.queue_len=64"), 40)
    assert queue_len == 64
    assert warning is not None
    assert "model.queue_len 64 is longer than the data set (40 images)" in warning
    assert "-o model.queue_len=16 (or auto)" in warning
    assert config("model.queue_len=16").model.queue_len == 16  # what it suggests is accepted


@pytest.mark.parametrize(
    ("images", "expected"),
    [(40, 16), (1000, 256), (12_418, 4096), (1_281_167, 65_536), (17, 16), (100_000_000, 65_536)],
)
def test_auto_fits_the_queue_to_the_data_set(config, images, expected):
    assert choose_queue_len(config("model.queue_len=auto"), images) == (expected, None)


def test_a_queue_that_fits_gives_no_warning(config):
    assert choose_queue_len(config("model.queue_len=40"), 40) == (40, None)


@pytest.mark.parametrize(("processes", "fitting", "batch"), [(3, 2, 12), (8, 4, 32), (6, 4, 24)])
def test_processes_that_cannot_share_the_micro_batches(config, monkeypatch, processes, fitting, batch):
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", str(processes))
    images = scan_images(config().data.root)
    with pytest.raises(InputError, match=f"^{processes} processes cannot share 4 micro-batches") as error:
        check_image_count(images, config())
    assert f"start {fitting} processes, or set batch_size {batch}" in str(error.value)
    assert check_image_count(images, config(f"batch_size={batch}", "model.queue_len=32")) == 40 // batch
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", str(fitting))
    assert check_image_count(images, config()) == 2


def test_a_missing_checkpoint(config, tmp_path):
    with pytest.raises(InputError, match=r"checkpoint '.*nowhere': no such folder"):
        pretrain(config(), resume=str(tmp_path / "nowhere"))
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "model.pdparams").write_bytes(b"")
    with pytest.raises(InputError, match=r"optimizer\.pdopt is missing; choose another checkpoint"):
        pretrain(config(), resume=str(tmp_path / "half"))
    assert not config().run_dir.exists()


def test_missing_weights(photos, tmp_path):
    tree = {
        "task": "linear",
        "name": "run",
        "output_dir": str(tmp_path),
        "device": "cpu",
        "model": {"depth": 18},
        "data": {
            "train": {"root": str(photos)},
            "val": {"root": str(photos)},
            "num_workers": 0,
            "train_transforms": [{"name": "CenterCrop", "size": 32}],
            "val_transforms": [{"name": "CenterCrop", "size": 32}],
        },
        "batch_size": 8,
        "epochs": 1,
        "optimizer": {"lr": 0.1},
        "schedule": {"name": "constant"},
    }
    path = tmp_path / "linear.yaml"
    path.write_text(json.dumps(tree))  # YAML holds JSON
    with pytest.raises(InputError, match=r"nowhere\.pdparams does not exist"):
        linear_eval(load_config(path), pretrained=str(tmp_path / "nowhere.pdparams"))
    with pytest.raises(InputError, match=r"nowhere\.pdparams does not exist"):
        linear_eval(load_config(path), load=str(tmp_path / "nowhere.pdparams"), evaluate_only=True)


def test_an_option_of_the_other_task(capsys):
    config = "configs/densecl/densecl_r50.yaml"
    assert train_here(Path(config), "--evaluate-only") == 2
    said = f"--evaluate-only goes with linear evaluation, but {config} has task: pretrain"
    assert said in capsys.readouterr().err
