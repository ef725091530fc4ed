"""k-NN while training: it is right, it disturbs nothing, nothing of it is lost, and processes share it."""

from __future__ import annotations

import random
import shutil

import numpy as np
import paddle
import pytest

from passl_densecl.config import load_config
from passl_densecl.data.datasets import scan_images
from passl_densecl.engine.pretrain import pretrain
from passl_densecl.errors import InputError
from passl_densecl.evaluation.features import load_backbone, pooled_features
from passl_densecl.evaluation.knn import knn_accuracy
from passl_densecl.transforms import CenterCrop, Resize
from tests.engine.runs import arrays, metrics, train, write_config

LAST = "epoch_0003"
SMALL = [{"name": "RandomResizedCrop", "size": 32, "scale": [0.2, 1.0]}, {"name": "RandomHorizontalFlip"}]
SHAPE = {
    "epochs": 3,
    "batch_size": 20,
    "micro_batch_size": 10,
    "checkpoint": {"every_epochs": 1, "keep": 9},
    "data__transforms": SMALL,
}


def evaluation(photos, **changes):
    """The section; its bank and its queries are the two halves of the photographs."""
    for half in ("train", "val"):
        if not (photos.parent / half).is_dir():
            for number, path in enumerate(sorted(photos.glob("*/*.png"))):
                if (number % 2 == 0) == (half == "train"):
                    target = photos.parent / half / path.parent.name / path.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, target)
    halves = {half: str(photos.parent / half) for half in ("train", "val")}
    return halves | {"k": 3, "size": 32, "every_epochs": 2} | changes


def run(folder, photos, resume=None, **changes):
    """A run in this process, under a folder of its own."""
    folder.mkdir(exist_ok=True)
    config = load_config(write_config(folder, photos, **SHAPE | changes))
    assert pretrain(config, resume=resume) == 0
    return folder / "run"


def accuracies(path):
    return [(one["step"], one["knn_top1"]) for one in metrics(path) if "knn_top1" in one]


@pytest.fixture(scope="module")
def with_and_without(tmp_path_factory, photos):
    root = tmp_path_factory.mktemp("knn")
    without = run(root / "without", photos)
    paddle.seed(5)
    np.random.seed(5)
    random.seed(5)
    return run(root / "with", photos, evaluation=evaluation(photos)), without


def assert_same_bits(one, other, last=LAST):
    for file in ("model.pdparams", "optimizer.pdopt"):
        ours, expected = arrays(one, last, file), arrays(other, last, file)
        assert ours.keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(ours[name], expected[name], err_msg=name)


def test_training_ends_with_the_same_bits(with_and_without):
    one, other = with_and_without
    assert_same_bits(one, other)
    assert [line for line in metrics(one) if "loss" in line] == metrics(other)
    assert len(metrics(other)) == 6


def test_it_comes_before_training_every_second_epoch_and_last_of_all(with_and_without):
    one, other = with_and_without
    assert [step for step, _ in accuracies(one)] == [0, 4, 6]
    assert accuracies(other) == []
    log = (one / "train.log").read_text()
    assert "3-NN before training and every 2 epochs, 32 px: val 20 images in 4 classes" in log
    assert log.count("3-NN top-1") == 3


def test_it_is_the_accuracy_of_the_query_encoder(with_and_without, photos):
    path, _ = with_and_without
    bank, queries = (scan_images(evaluation(photos)[half], labeled=True) for half in ("train", "val"))
    crop = (Resize(size=round(32 * 256 / 224)), CenterCrop(size=32))
    for step, name in ((4, "epoch_0002"), (6, LAST)):
        backbone = load_backbone(path / "checkpoints" / name)
        one, other = (pooled_features(backbone, images, crop) for images in (bank, queries))
        expected = knn_accuracy(one.vectors, one.labels, other.vectors, other.labels, k=3)
        assert dict(accuracies(path))[step] == expected
    assert all(0.25 < top1 < 1 for _, top1 in accuracies(path)), accuracies(path)  # a case that could fail


def test_visualdl_has_it(with_and_without):
    from visualdl import LogReader

    (file,) = (with_and_without[0] / "vdl").iterdir()
    points = LogReader(file_path=str(file)).get_data("scalar", "knn/top1")
    assert [point.id for point in points] == [0, 4, 6]
    np.testing.assert_allclose(
        [point.value for point in points], [v for _, v in accuracies(with_and_without[0])], rtol=1e-6
    )


def test_resumed_before_an_evaluation_ends_with_the_same_bits_and_figures(with_and_without, tmp_path, photos):
    shutil.copytree(with_and_without[0], tmp_path / "run")
    for name in ("epoch_0002", LAST):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / name)
    again = run(tmp_path, photos, resume="auto", evaluation=evaluation(photos))
    assert_same_bits(again, with_and_without[0])
    assert metrics(again) == metrics(with_and_without[0])


def test_an_evaluation_that_a_stop_left_out_is_made_up_for(with_and_without, tmp_path, photos):
    """Stopped or killed between the checkpoint and its evaluation, a run makes up for it when it goes on."""
    shutil.copytree(with_and_without[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / LAST)
    file = tmp_path / "run" / "metrics.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("".join(line + "\n" for line in lines if not ('"knn_top1"' in line and '"step": 4,' in line)))
    again = run(tmp_path, photos, resume="auto", evaluation=evaluation(photos))
    assert metrics(again) == metrics(with_and_without[0])


def test_two_processes_share_the_work_and_agree(with_and_without, tmp_path, photos):
    train(write_config(tmp_path, photos, **SHAPE, evaluation=evaluation(photos)), processes=2)
    found, expected = dict(accuracies(tmp_path / "run")), dict(accuracies(with_and_without[0]))
    assert found.keys() == expected.keys()
    for step, value in expected.items():
        assert abs(found[step] - value) <= (0 if step == 0 else 3 / 20)  # later weights differ by rounding


@pytest.mark.parametrize(
    ("change", "message"),
    [({"train": "nowhere"}, "nowhere"), ({"k": 41}, "evaluation.train: 20 images .* expected at least 41")],
)
def test_mistakes_are_known_before_training(tmp_path, photos, change, message):
    config = load_config(write_config(tmp_path, photos, **SHAPE, evaluation=evaluation(photos, **change)))
    with pytest.raises(InputError, match=message):
        pretrain(config)
    assert not (tmp_path / "run").exists()


def test_the_section_can_be_given_on_the_command_line(tmp_path, photos):
    path = write_config(tmp_path, photos, evaluation=None)
    config = load_config(path, [f"evaluation.train={photos}", f"evaluation.val={photos}"])
    assert config.evaluation.k == 20
    with pytest.raises(InputError, match=r"evaluation\.val"):
        load_config(path, [f"evaluation.train={photos}"])
    with pytest.raises(InputError, match="did you mean 'every_epochs'"):
        load_config(path, ["evaluation.every_epoch=2"])
