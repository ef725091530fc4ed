"""Linear evaluation: the backbone does not move, every image counts once, and any file gives the same backbone."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest

from passl_densecl.config import BackboneSpec, HeadSpec, load_config, parse_config
from passl_densecl.data.datasets import decode, scan_images
from passl_densecl.engine.linear import fingerprint, linear_eval, load_pretrained
from passl_densecl.errors import InputError
from passl_densecl.models import DenseCL, normalize
from passl_densecl.models.linear import LinearClassifier
from passl_densecl.reliability.signals import StopRequest
from passl_densecl.weights.card import Card, Parent
from passl_densecl.weights.files import read_arrays, read_card
from passl_densecl.weights.load import load_strict
from passl_densecl.weights.writing import write_pickle
from tests.engine.runs import arrays, metrics, train

CLASSES = 7
TRAIN_IMAGES, VAL_IMAGES = 42, 15  # two processes share 15 images as 7 and 8
LAST = "epoch_0003"


def write_images(root: Path, count: int, seed: int) -> Path:
    """Noise whose color tells the class."""
    colors = np.random.default_rng(0).integers(0, 200, (CLASSES, 3))
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        label = index % CLASSES
        folder = root / f"class_{label}"
        folder.mkdir(parents=True, exist_ok=True)
        image = np.clip(colors[label] + rng.integers(-50, 50, (40, 40, 3)), 0, 255)
        cv2.imwrite(str(folder / f"{index:03d}.png"), image.astype(np.uint8))
    return root


def linear_config(folder: Path, data: Path, **changes):
    """A checked config on `data`/train and `data`/val with its run in `folder`/run; `model__depth=50` changes a key."""
    tree = {
        "task": "linear",
        "report": False,
        "name": "run",
        "output_dir": str(folder),
        "device": "cpu",
        "model": {"depth": 18},
        "data": {
            "train": {"root": str(data / "train")},
            "val": {"root": str(data / "val")},
            "num_workers": 0,
            "train_transforms": [
                {"name": "RandomResizedCrop", "size": 32, "scale": [0.5, 1.0]},
                {"name": "RandomHorizontalFlip"},
            ],
            "val_transforms": [{"name": "CenterCrop", "size": 32}],
        },
        "batch_size": 8,
        "epochs": 3,
        "optimizer": {"lr": 0.1, "reference_batch_size": 8, "weight_decay": 0.0},
        "schedule": {"name": "step", "milestones": [2]},
        "log_every_steps": 1,
        "checkpoint": {"every_epochs": 1, "keep": 5},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = tree
        for parent in parents:
            node = node[parent]
        node[last] = value
    return parse_config(tree)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("linear_images")
    write_images(root / "train", TRAIN_IMAGES, seed=1)
    write_images(root / "val", VAL_IMAGES, seed=2)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory, data):
    """One pre-trained encoder (its statistics not those of the start) as a training checkpoint and as files."""
    folder = tmp_path_factory.mktemp("weights")
    model = DenseCL(BackboneSpec(18), HeadSpec(hidden_dim=8, out_dim=4), queue_len=8, seed=9)
    images = scan_images(str(data / "train"))
    batch = paddle.to_tensor(np.stack([decode(images.path(index)) for index in range(16)]))
    model.train()
    for _ in range(10):  # running statistics that fit the images
        model(batch, model.key_encoder(normalize(batch)), 0.5)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    backbone = {name: value.numpy() for name, value in model.query_encoder.backbone.state_dict().items()}
    (folder / "epoch_0001").mkdir()
    write_pickle(folder / "epoch_0001" / "model.pdparams", state)
    write_pickle(folder / "plain.pdparams", backbone)
    write_pickle(folder / "prefixed.pdparams", {f"backbone.{name}": value for name, value in backbone.items()})
    return folder, backbone


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data, weights):
    folder = tmp_path_factory.mktemp("linear")
    assert linear_eval(linear_config(folder, data), pretrained=str(weights[0] / "epoch_0001")) == 0
    return folder / "run"


def test_the_backbone_is_frozen_to_the_bit(undisturbed, weights):
    after = arrays(undisturbed, LAST)
    backbone = weights[1]
    assert set(after) == {f"backbone.{name}" for name in backbone} | {"fc.weight", "fc.bias"}
    for name, value in backbone.items():  # BatchNorm's statistics included
        np.testing.assert_array_equal(after[f"backbone.{name}"], value, err_msg=name)
    assert (
        np.abs(after["fc.weight"] - LinearClassifier(BackboneSpec(18), CLASSES).fc.weight.numpy()).max() > 0.05
    )  # it has learned
    assert set(arrays(undisturbed, LAST, "optimizer.pdopt")) == {"fc.weight", "fc.bias"}


def test_training_mode_leaves_the_backbone_in_eval_mode(data):
    model = LinearClassifier(BackboneSpec(18), CLASSES)
    before = fingerprint(model.backbone)
    model.eval()
    model.train()
    assert not any(layer.training for layer in model.backbone.sublayers(include_self=True))
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    loss = model(paddle.to_tensor(images)).sum()
    loss.backward()
    assert fingerprint(model.backbone) == before
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["fc.weight", "fc.bias"]
    assert [name for name, p in model.named_parameters() if not p.stop_gradient] == ["fc.weight", "fc.bias"]
    assert model.fc.weight.numpy().std() == pytest.approx(0.01, rel=0.1)
    assert (model.fc.bias.numpy() == 0).all()


def test_a_fingerprint_sees_one_changed_statistic():
    model = LinearClassifier(BackboneSpec(18), CLASSES)
    before = fingerprint(model.backbone)
    mean = model.backbone.bn1._mean
    values = mean.numpy()
    values[3] += 1e-6
    mean.set_value(values)
    assert fingerprint(model.backbone) != before


@pytest.mark.parametrize("source", ["epoch_0001", "epoch_0001/model.pdparams", "plain.pdparams", "prefixed.pdparams"])
def test_every_kind_of_file_gives_the_same_backbone(weights, data, tmp_path, source):
    folder, backbone = weights
    model = LinearClassifier(BackboneSpec(18), CLASSES)
    load_pretrained(model, str(folder / source), linear_config(tmp_path, data).model.backbone)
    for name, value in model.backbone.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), backbone[name], err_msg=name)


def test_random_keeps_the_seeded_weights(weights, data, tmp_path):
    model, untouched = (
        LinearClassifier(BackboneSpec(18), CLASSES, seed=4),
        LinearClassifier(BackboneSpec(18), CLASSES, seed=4),
    )
    load_pretrained(model, "random", linear_config(tmp_path, data).model.backbone)
    assert fingerprint(model.backbone) == fingerprint(untouched.backbone)
    load_pretrained(model, str(weights[0] / "plain.pdparams"), linear_config(tmp_path, data).model.backbone)
    assert fingerprint(model.backbone) != fingerprint(untouched.backbone)


def test_resumed_in_an_epoch_equals_undisturbed(undisturbed, data, weights, tmp_path, monkeypatch):
    config = linear_config(tmp_path, data)
    asked = iter(range(1, 100))
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "requested", lambda _: next(asked) == 8)  # 5 steps an epoch: in the second one
        assert linear_eval(config, pretrained=str(weights[0] / "epoch_0001" / "model.pdparams")) == 143
    assert (config.run_dir / "checkpoints" / "step_00000008").is_dir()
    assert not (config.run_dir / "checkpoints" / LAST).exists()
    assert linear_eval(config, resume="auto") == 0
    for file in ("model.pdparams", "optimizer.pdopt"):
        ours, expected = arrays(config.run_dir, LAST, file), arrays(undisturbed, LAST, file)
        assert ours.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(ours[name], value, err_msg=name)
        both = [run / "checkpoints" / LAST / file for run in (config.run_dir, undisturbed)]
        assert both[0].read_bytes() == both[1].read_bytes()  # card and all
    assert metrics(config.run_dir) == metrics(undisturbed)
    assert len(metrics(undisturbed)) == 3 * (5 + 1)  # steps, and a validation an epoch


def test_a_classifiers_card_says_what_it_is(undisturbed, weights):
    source = weights[0] / "epoch_0001" / "model.pdparams"
    card = read_card(undisturbed)
    assert card is not None
    assert (card.kind, card.depth, card.stem_stride, card.last_stride, card.epoch) == ("linear classifier", 18, 4, 2, 3)
    assert card.classes == tuple(f"class_{label}" for label in range(CLASSES))
    assert card.parents == (Parent.of(source, "file without a card"),)
    velocity = read_card(undisturbed / "checkpoints" / LAST / "optimizer.pdopt")
    assert velocity == card.replace(kind="optimizer state")


def test_a_classifier_carries_its_classes_alone(undisturbed, data, tmp_path):
    alone = tmp_path / "classifier.pdparams"
    alone.write_bytes((undisturbed / "checkpoints" / LAST / "model.pdparams").read_bytes())
    val = write_images(tmp_path / "val", VAL_IMAGES, seed=3)
    (val / "class_6").rename(val / "clas_6")
    with pytest.raises(InputError, match="not a class of the training set: 'clas_6'"):
        linear_eval(linear_config(tmp_path, data, data__val={"root": str(val)}), load=str(alone), evaluate_only=True)
    other = linear_config(tmp_path / "other", data, model__stem_stride=1)
    with pytest.raises(
        InputError, match=r"load=.* was trained with model.stem_stride \d, the config says 1; set model"
    ):
        linear_eval(other, load=str(alone), evaluate_only=True)
    assert not other.run_dir.exists()
    config = linear_config(tmp_path / "good", data)
    assert linear_eval(config, load=str(alone), evaluate_only=True) == 0
    assert json.loads((config.run_dir / "evaluation.json").read_text())["classes"] == CLASSES


def test_extracted_weights_of_other_strides_are_refused(weights, data, tmp_path):
    write_pickle(
        tmp_path / "w.pdparams", weights[1], card=Card(kind="backbone", depth=18, stem_stride=4, last_stride=1)
    )
    model = LinearClassifier(BackboneSpec(18), CLASSES)
    with pytest.raises(InputError, match=r"trained with model.last_stride 1, .*; set model.last_stride=1"):
        load_pretrained(model, str(tmp_path / "w.pdparams"), linear_config(tmp_path, data).model.backbone)
    config = linear_config(tmp_path, data, model__last_stride=1)
    load_pretrained(model, str(tmp_path / "w.pdparams"), config.model.backbone)
    np.testing.assert_array_equal(model.backbone.conv1.weight.numpy(), weights[1]["conv1.weight"])


def test_the_best_epoch_is_recorded_and_kept(undisturbed):
    validations = [line for line in metrics(undisturbed) if "val_top1" in line]
    state = json.loads((undisturbed / "checkpoints" / LAST / "state.json").read_text())
    assert state["classes"] == [f"class_{label}" for label in range(CLASSES)]
    best = max(validations, key=lambda line: line["val_top1"])
    assert state["best"]["top1"] == best["val_top1"]
    assert state["best"]["epoch"] == best["epoch"]
    assert (undisturbed / "checkpoints" / state["best"]["name"]).is_dir()


def exact(run: Path, data: Path, config) -> tuple[float, float]:
    """(top-1, top-5), image by image."""
    model = LinearClassifier(BackboneSpec(18), CLASSES)
    load_strict(model, read_arrays(run / "checkpoints" / LAST / "model.pdparams"))
    model.eval()
    images = scan_images(str(data / "val"), labeled=True)
    right1 = right5 = 0
    for index in range(len(images)):
        image = config.data.val_transforms[0](decode(images.path(index)), np.random.default_rng(0))
        order = np.argsort(-model(paddle.to_tensor(image[None])).numpy()[0])
        right1 += int(order[0] == images.labels[index])
        right5 += int(images.labels[index] in order[:5])
    return right1 / len(images), right5 / len(images)


def test_evaluation_is_exact_for_one_and_for_two_processes(undisturbed, data, tmp_path):
    checkpoint = undisturbed / "checkpoints" / LAST
    alone = linear_config(tmp_path / "alone", data)
    assert linear_eval(alone, load=str(checkpoint), evaluate_only=True) == 0
    one = json.loads((alone.run_dir / "evaluation.json").read_text())
    top1, top5 = exact(undisturbed, data, alone)
    assert one == {
        "weights": str(checkpoint / "model.pdparams"),
        "images": VAL_IMAGES,
        "bad_images": 0,
        "classes": CLASSES,
        "top1": top1,
        "top5": top5,
    }
    assert top1 <= top5
    assert top5 > 5 / CLASSES  # better than chance, so that a wrong label would show
    assert one["top1"] == [line["val_top1"] for line in metrics(undisturbed) if "val_top1" in line][-1]

    path = tmp_path / "two.yaml"
    text = (undisturbed / "config.yaml").read_text().replace(str(undisturbed.parent), str(tmp_path / "two"))
    path.write_text(text)
    said = train(path, "--load", checkpoint, "--evaluate-only", processes=2)
    two = json.loads((load_config(path).run_dir / "evaluation.json").read_text())
    assert two == one, said


# ---------------------------------------------------------------- messages


def test_without_weights_there_is_nothing_to_evaluate(data, tmp_path):
    config = linear_config(tmp_path, data)
    with pytest.raises(InputError, match=r"needs a backbone: pretrained, .* or pretrained='random'"):
        linear_eval(config)
    with pytest.raises(InputError, match="evaluate_only needs a trained classifier: load"):
        linear_eval(config, evaluate_only=True, pretrained="random")
    assert not config.run_dir.exists()


def test_weights_of_another_depth_are_refused(data, weights, tmp_path):
    config = linear_config(tmp_path, data, model__depth=34)
    with pytest.raises(InputError, match="holds a ResNet-18, the config asks for ResNet-34") as error:
        linear_eval(config, pretrained=str(weights[0] / "plain.pdparams"))
    assert "plain.pdparams" in str(error.value)
    assert "model.depth" in str(error.value)


def test_weights_without_a_file_are_refused(data, weights, tmp_path):
    with pytest.raises(InputError, match=r"plian\.pdparams does not exist; did you mean '.*plain\.pdparams'"):
        linear_eval(linear_config(tmp_path, data), pretrained=str(weights[0] / "plian.pdparams"))


def test_a_validation_class_that_was_not_trained_is_refused(data, tmp_path):
    val = tmp_path / "val"
    write_images(val, VAL_IMAGES, seed=3)
    (val / "class_6").rename(val / "clas_6")
    with pytest.raises(InputError, match=r"1 of the 7 folders .* not a class of the training set: 'clas_6'") as error:
        linear_eval(linear_config(tmp_path, data, data__val={"root": str(val)}), pretrained="random")
    assert "did you mean 'class_6'?" in str(error.value)


def test_a_classifier_of_other_classes_is_not_evaluated(undisturbed, data, tmp_path):
    model = LinearClassifier(BackboneSpec(18), 3)
    write_pickle(tmp_path / "bare.pdparams", {name: value.numpy() for name, value in model.state_dict().items()})
    with pytest.raises(InputError, match=r"a classifier of 3 classes, but .* holds 7"):
        linear_eval(linear_config(tmp_path, data), load=str(tmp_path / "bare.pdparams"), evaluate_only=True)


def test_fewer_images_than_a_batch_are_refused(data, tmp_path):
    with pytest.raises(InputError, match="fewer than batch_size 64; set batch_size 32 or less"):
        linear_eval(linear_config(tmp_path, data, batch_size=64), pretrained="random")
