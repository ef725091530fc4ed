"""The strict loader: all names and shapes, or nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle.vision.models.resnet import BasicBlock, ResNet

from passl_densecl.config import dump_config, load_config
from passl_densecl.errors import InputError
from passl_densecl.weights.card import Card
from passl_densecl.weights.load import load_strict
from passl_densecl.weights.read import read_backbone
from passl_densecl.weights.recorded import recorded_backbone, recorded_card, recorded_classes
from passl_densecl.weights.vocabulary import backbone_shapes
from passl_densecl.weights.writing import write_pickle, write_weights

ROOT = Path(__file__).resolve().parents[2]
Arrays = dict[str, np.ndarray]


class Probe(paddle.nn.Layer):
    """A small model with weights, BatchNorm statistics and a buffer of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 3), paddle.nn.BatchNorm2D(4))
        self.fc = paddle.nn.Linear(4, 4)
        self.register_buffer("pointer", paddle.zeros([1], dtype="int64"))


def state(layer: paddle.nn.Layer) -> Arrays:
    return {name: np.array(tensor.numpy()) for name, tensor in layer.state_dict().items()}


def other(layer: paddle.nn.Layer) -> Arrays:
    """New values for everything in ``layer``."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(5, 2, array.shape).astype(array.dtype) for name, array in state(layer).items()}


def same(a: Arrays, b: Arrays) -> bool:
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def failure(layer: paddle.nn.Layer, arrays: Arrays, **options) -> str:
    """The message; the layer must be as before."""
    before = state(layer)
    with pytest.raises(InputError) as caught:
        load_strict(layer, arrays, **options)
    assert same(state(layer), before)
    return str(caught.value)


def test_every_value_arrives_buffers_included():
    layer = Probe()
    arrays = other(layer)
    assert {"backbone.1._mean", "backbone.1._variance", "pointer"} < arrays.keys()
    load_strict(layer, arrays)
    assert same(state(layer), arrays)
    assert np.array_equal(layer.fc.weight.numpy(), arrays["fc.weight"])  # the live weight, not a copy in state_dict
    assert layer.fc.weight.stop_gradient is False
    assert layer.backbone[1]._mean.stop_gradient is True


def test_the_loaded_layer_owns_its_memory():
    layer = Probe()
    arrays = other(layer)
    load_strict(layer, arrays)
    before = state(layer)
    for array in arrays.values():
        array += 1
    assert same(state(layer), before)
    frozen = np.frombuffer(before["fc.weight"].tobytes(), "f4").reshape(4, 4)  # read-only
    load_strict(layer, {**before, "fc.weight": frozen})
    assert same(state(layer), before)


def test_missing_and_unexpected_names_are_listed_and_nothing_changes():
    layer = Probe()
    arrays = other(layer)
    del arrays["fc.bias"]
    arrays["head.weight"] = np.zeros(1, "f4")
    message = failure(layer, arrays, source="x.pdparams")
    assert message.startswith("x.pdparams do not fit Probe")
    assert "1 missing: fc.bias" in message
    assert "1 unexpected: head.weight" in message
    message = failure(layer, {f"n{i}": np.zeros(1, "f4") for i in range(10)})
    assert f"{len(state(layer))} missing" in message
    assert "10 unexpected: n0, n1, n2, n3, n4, n5 and 4 more" in message


def test_another_shape_is_an_error_even_with_as_many_numbers():
    layer = Probe()
    message = failure(layer, {**other(layer), "fc.weight": np.zeros((2, 8), "f4"), "fc.bias": np.zeros((1, 4), "f4")})
    assert "2 that do not fit: " in message
    assert "fc.weight is [2, 8], the model's is [4, 4]" in message
    assert "fc.bias is [1, 4], the model's is [4]" in message


def test_named_exceptions_may_be_missing_and_keep_their_values():
    layer = Probe()
    before, arrays = state(layer), other(layer)
    head = {"fc.weight", "fc.bias"}
    load_strict(layer, {name: array for name, array in arrays.items() if name not in head}, may_miss=head)
    after = state(layer)
    for name in after:
        assert after[name].tobytes() == (before if name in head else arrays)[name].tobytes()
    load_strict(layer, arrays, may_miss=head)  # and may be there
    assert same(state(layer), arrays)
    del arrays["pointer"]
    assert "1 missing: pointer" in failure(layer, arrays, may_miss=head)
    with pytest.raises(ValueError, match=r"may_miss names what Probe does not have: fc\.wieght"):
        load_strict(layer, other(layer), may_miss={"fc.wieght"})


def test_numbers_are_converted_within_their_kind_only():
    layer = Probe()
    arrays = other(layer)
    load_strict(layer, {name: array.astype(">f8" if array.dtype == "f4" else "i4") for name, array in arrays.items()})
    assert same(state(layer), arrays)
    load_strict(layer, {**arrays, "fc.bias": np.arange(4, dtype="f2")})
    assert np.array_equal(layer.fc.bias.numpy(), [0, 1, 2, 3])
    for name, array, said in (
        ("pointer", np.zeros(1, "f4"), "pointer is float32, the model's is int64"),
        ("fc.bias", np.zeros(4, "c8"), "fc.bias is complex64, the model's is float32"),
        ("fc.bias", np.zeros(4, "u2"), "fc.bias is uint16, the model's is float32"),  # bits of bfloat16
        ("fc.bias", np.zeros(4, "U1"), "fc.bias is <U1, the model's is float32"),
    ):
        assert said in failure(layer, {**arrays, name: array})


def test_bfloat16_goes_there_and_back():
    layer = paddle.nn.Linear(2, 3).to(dtype="bfloat16")
    arrays = {"weight": np.full((2, 3), 0x3F80, "u2"), "bias": np.full(3, 0x4000, "u2")}
    load_strict(layer, arrays)
    assert np.array_equal(layer.weight.astype("float32").numpy(), np.ones((2, 3)))
    assert same(state(layer), arrays)
    assert "weight is float32" in failure(layer, {**arrays, "weight": np.ones((2, 3), "f4")})


def test_two_values_for_one_weight_are_a_contradiction():
    layer = paddle.nn.Layer()
    layer.one = paddle.nn.Linear(2, 2)
    layer.two = layer.one
    arrays = state(layer)
    assert set(arrays) == {"one.weight", "one.bias", "two.weight", "two.bias"}
    load_strict(layer, arrays)
    arrays["two.bias"] = arrays["one.bias"] + 1
    assert "one.bias and two.bias are one weight of the model with two different values" in failure(layer, arrays)


@pytest.mark.parametrize("prefix", ["", "query_encoder.backbone."])
def test_another_depth_is_named(prefix):
    layer = ResNet(BasicBlock, 18, num_classes=0, with_pool=False)
    for part in reversed(prefix.split(".")[:-1]):
        outer = paddle.nn.Layer()
        outer.add_sublayer(part, layer)
        layer = outer
    arrays = {prefix + name: np.zeros(shape, "f4") for name, shape in backbone_shapes(50).items()}
    message = failure(layer, arrays, source="r50.pdparams")
    assert (
        "the file holds a ResNet-50, the config asks for ResNet-18: set model.depth: 50 or choose another file"
        in message
    )


def test_another_prefix_is_named():
    layer = ResNet(BasicBlock, 18, num_classes=0, with_pool=False)
    arrays = {f"backbone.{name}": array for name, array in state(layer).items()}
    message = failure(layer, arrays)
    assert "the file's backbone has the prefix 'backbone.', the model's ''" in message
    assert "100 missing" in message
    assert "100 unexpected" in message


def test_a_backbone_is_read_from_whatever_holds_it(tmp_path):
    layer = ResNet(BasicBlock, 18, num_classes=0, with_pool=False)
    arrays = other(layer)
    folder = tmp_path / "run" / "checkpoints" / "epoch_0001"
    folder.mkdir(parents=True)
    write_pickle(folder / "model.pdparams", {f"query_encoder.backbone.{name}": array for name, array in arrays.items()})
    write_pickle(tmp_path / "passl.pd", {"epoch": 1, "state_dict": {f"encoder_q.0.{k}": v for k, v in arrays.items()}})
    for path in (tmp_path / "run", folder, folder / "model.pdparams", tmp_path / "passl.pd"):
        taken = read_backbone(path)
        load_strict(layer, taken.backbone)
        assert same(state(layer), arrays)
        load_strict(layer, {name: np.zeros_like(array) for name, array in arrays.items()})
    write_pickle(tmp_path / "no.pdparams", {"a": np.zeros(1)})
    with pytest.raises(InputError, match=r"no\.pdparams: no ResNet backbone"):
        read_backbone(tmp_path / "no.pdparams")


@pytest.mark.parametrize("suffix", [".pdparams", ".pth", ".safetensors"])
def test_a_backbone_is_read_from_every_format(tmp_path, suffix):
    arrays = {name: np.full(shape, 0.5, "f4") for name, shape in backbone_shapes(18).items()}
    write_weights(tmp_path / f"w{suffix}", arrays, card=Card(kind="backbone", depth=18, stem_stride=1, last_stride=1))
    path = (tmp_path / f"w{suffix}").rename(tmp_path / "w")
    assert same(read_backbone(path).backbone, arrays)
    model = recorded_backbone(path)
    assert model is not None
    assert (model.depth, model.stem_stride, model.last_stride) == (18, 1, 1)


def old_run(folder: Path, state: str) -> Path:
    """A checkpoint as it was before there were cards."""
    checkpoint = folder / "checkpoints" / "epoch_0003"
    checkpoint.mkdir(parents=True)
    write_pickle(checkpoint / "model.pdparams", {"a": np.ones(1)})
    config = load_config(ROOT / "configs/demo/densecl_r18.yaml", ["model.last_stride=1"])
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    (checkpoint / "state.json").write_text(state)
    return checkpoint / "model.pdparams"


def test_a_checkpoint_without_a_card_is_known_by_its_run(tmp_path):
    file = old_run(tmp_path / "run", '{"step": 30, "steps_per_epoch": 10}')
    card = recorded_card(file)
    assert card is not None
    assert (card.kind, card.epoch, card.step, card.last_stride) == ("pre-training checkpoint", 3, 30, 1)
    model = recorded_backbone(file)
    assert model is not None
    assert model.last_stride == 1
    for number, state in enumerate(("{", "[]", '{"step": "x", "classes": [1]}')):
        card = recorded_card(old_run(tmp_path / str(number), state))
        assert card is not None
        assert (card.epoch, card.step, card.classes) == (None, None, None)
    write_pickle(tmp_path / "alone.pdparams", {"a": np.ones(1)})
    assert recorded_card(tmp_path / "alone.pdparams") is None
    assert recorded_backbone(tmp_path / "alone.pdparams") is None


def test_the_card_is_believed_before_the_folder(tmp_path):
    file = old_run(tmp_path / "run", '{"step": 30, "classes": ["beside"]}')
    assert recorded_classes(file) == ("beside",)
    write_pickle(file, {"a": np.ones(1)}, card=Card(kind="linear classifier", classes=("a", "b"), step=7))
    card = recorded_card(file)
    assert card is not None
    assert card.step == 7
    assert recorded_classes(file) == ("a", "b")
    assert recorded_backbone(file) is None  # it does not say the strides


def test_a_card_of_no_resnet_is_said(tmp_path):
    write_pickle(tmp_path / "w", {"a": np.ones(1)}, card=Card(kind="backbone", depth=19, stem_stride=3, last_stride=1))
    with pytest.raises(InputError, match=r"names a model that is not known here \(depth 19: .*; stem_stride 3: "):
        recorded_backbone(tmp_path / "w")
