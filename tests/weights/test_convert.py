"""One converter: every source to every target and back with the same bits, and networks that compute the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from passl_densecl.config import BackboneSpec, HeadSpec
from passl_densecl.errors import InputError
from passl_densecl.models import DenseCL
from passl_densecl.weights.convert import SOURCES, STATE_TARGETS, TARGETS, backbone_for, convert, convert_content
from passl_densecl.weights.files import read_card, read_weights
from passl_densecl.weights.names import extract_backbone
from passl_densecl.weights.read import read_backbone, read_classifier, read_training_state
from passl_densecl.weights.state import read_state, state_shapes
from passl_densecl.weights.tables import unwrap
from passl_densecl.weights.vocabulary import backbone_shapes, translate
from passl_densecl.weights.writing import write_weights

Arrays = dict[str, np.ndarray]
DEPTHS = (18, 34, 50, 101, 152)


def backbone(depth: int = 18, seed: int = 0) -> Arrays:
    """Every array with values of its own: noise in the vectors, one number for each output channel elsewhere."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in backbone_shapes(depth).items():
        arrays[name] = np.broadcast_to(rng.normal(size=(shape[0], *[1] * (len(shape) - 1))).astype("f4"), shape)
    return arrays


def classifier(depth: int, classes: int, seed: int = 9) -> Arrays:
    rng, channels = np.random.default_rng(seed), 512 if depth < 50 else 2048
    return {
        "fc.weight": rng.normal(size=(channels, classes)).astype("f4"),
        "fc.bias": rng.normal(size=classes).astype("f4"),
    }


def behind(prefix: str, arrays: Arrays) -> Arrays:
    return {prefix + name: array for name, array in arrays.items()}


def as_torch(arrays: Arrays, depth: int = 18) -> Arrays:
    return translate(arrays, "torchvision", depth)


def same(a: Arrays, b: Arrays) -> bool:
    return list(a) == list(b) and all(
        a[n] is b[n] or (a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and np.array_equal(a[n], b[n]))
        for n in a
    )


def refusal(content: object, to: str = "paddle", **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        convert_content(content, to, **options)
    return str(caught.value)


# Backbones

SOURCE_FILES: dict[str, Callable[[Arrays, Arrays, int], Any]] = {
    "this project, pre-training": lambda b, o, d: (
        behind("query_encoder.backbone.", b) | behind("key_encoder.backbone.", o)
    ),
    "this project, linear": lambda b, o, d: behind("backbone.", b) | classifier(d, 3),
    "PASSL .pd": lambda b, o, d: {
        "epoch": 7,
        "state_dict": behind("backbone.", b) | behind("encoder_q.0.", b) | behind("encoder_k.0.", o),
    },
    "PASSL extracted": lambda b, o, d: behind("backbone.", b),
    "DenseCL authors' .pth": lambda b, o, d: {"state_dict": as_torch(b, d), "author": "x"},
    "OpenSelfSup full": lambda b, o, d: {
        "meta": {},
        "state_dict": behind("encoder_q.0.", as_torch(b, d)) | behind("encoder_k.0.", as_torch(o, d)),
    },
    "mmpretrain full": lambda b, o, d: {
        "state_dict": behind("backbone.", as_torch(b, d)) | behind("encoder_k.module.0.", as_torch(o, d))
    },
    "MoCo .pth": lambda b, o, d: {
        "state_dict": behind("module.encoder_q.", as_torch(b, d)) | behind("module.encoder_k.", as_torch(o, d))
    },
}


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_source_to_every_target_and_back_has_the_same_bits(depth):
    """`-s` shows the table."""
    plain, other = backbone(depth, 1), backbone(depth, 2)
    written = {target: convert_content(plain, target)[0] for target in TARGETS}
    sources: dict[str, Any] = {name: build(plain, other, depth) for name, build in SOURCE_FILES.items()}
    sources |= {f"--to {target}": content for target, content in written.items()}
    print(f"\nResNet-{depth}".ljust(30), *(f"{name:>15}" for name in TARGETS))
    for name, content in sources.items():
        taken = extract_backbone(unwrap(content))
        assert same(taken.backbone, plain), name
        for target in TARGETS:
            arrays = {key: array for key, array in backbone_for(taken, target).items() if "fc." not in key}
            assert same(arrays, unwrap(written[target])), (name, target)
        print(f"{name:<29}", *(f"{'bit-equal':>15}" for _ in TARGETS))


@pytest.mark.parametrize("source", SOURCE_FILES)
def test_the_key_encoder_is_another_one(source):
    content = SOURCE_FILES[source](backbone(18, 1), backbone(18, 2), 18)
    if source in ("this project, linear", "PASSL extracted", "DenseCL authors' .pth"):
        assert "no key encoder" in refusal(content, encoder="key")
    else:
        assert same(convert_content(content, "paddle", encoder="key")[0], backbone(18, 2))


def test_what_the_targets_look_like():
    content = {to: convert_content(backbone(50) | classifier(50, 10), to)[0] for to in TARGETS}
    assert set(content["detectron2"]) == {"model", "__author__", "matching_heuristics"}
    assert content["detectron2"]["matching_heuristics"] is True
    assert content["detectron2"]["__author__"] != "Caffe2"
    assert len(content["detectron2"]["model"]) == 265
    assert set(content["mmpretrain"]) == {"meta", "state_dict"}
    names = set(content["mmpretrain"]["state_dict"])
    assert {"backbone.conv1.weight", "head.fc.weight", "head.fc.bias", "backbone.bn1.num_batches_tracked"} < names
    assert len(names) == 265 + 53 + 2
    for to in ("torchvision", "safetensors"):
        counters = [array for name, array in content[to].items() if name.endswith(".num_batches_tracked")]
        assert len(counters) == 53
        assert all(array.dtype == np.int64 and array.shape == () and array == 0 for array in counters)
        assert list(content[to])[-2:] == ["fc.weight", "fc.bias"]
        assert len(content[to]) == 320
    for to, count in (("paddle", 267), ("paddleclas", 267), ("paddledetection", 265)):
        assert len(content[to]) == count
        assert all(isinstance(array, np.ndarray) for array in content[to].values())


# Classifiers


@pytest.mark.parametrize("depth", [18, 50])
def test_a_square_classifier_still_computes_the_same(depth):
    """2048 classes on 2048 channels: the shape cannot tell a weight from its transpose, only values can."""
    channels = 512 if depth < 50 else 2048
    fc = classifier(depth, channels)
    features = np.random.default_rng(5).normal(size=(2, channels)).astype("f4")
    logits = features @ fc["fc.weight"] + fc["fc.bias"]
    for to, place in (
        ("paddle", "fc"),
        ("paddleclas", "fc"),
        ("torchvision", "fc"),
        ("safetensors", "fc"),
        ("mmpretrain", "head.fc"),
    ):
        arrays = unwrap(convert_content(backbone(depth) | fc, to)[0])
        weight, bias = arrays[f"{place}.weight"], arrays[f"{place}.bias"]
        assert np.allclose(features @ (weight if to.startswith("paddle") else weight.T) + bias, logits, atol=1e-3), to
        assert same(convert_content(arrays, "paddle")[0], backbone(depth) | fc)


@pytest.mark.parametrize(
    ("backbone_prefix", "place", "is_torch", "kind"),
    [
        ("backbone.", "fc", False, "linear evaluation state"),
        ("backbone.", "head.fc_cls", False, "PASSL or OpenSelfSup linear classifier"),
        ("backbone.", "head.fc_cls", True, "PASSL or OpenSelfSup linear classifier, torchvision names"),
        ("backbone.", "head.fc", True, "mmpretrain classifier, torchvision names"),
        ("", "fc", True, "classifier, torchvision names"),
        ("module.", "module.fc", True, "classifier, torchvision names"),
    ],
)
def test_classifiers_are_found_where_each_project_has_them(tmp_path, backbone_prefix, place, is_torch, kind):
    fc = classifier(18, 7)
    named = behind(backbone_prefix, as_torch(backbone()) if is_torch else backbone())
    named[f"{place}.weight"] = fc["fc.weight"].T if is_torch else fc["fc.weight"]
    named[f"{place}.bias"] = fc["fc.bias"]
    arrays, told = convert_content({"state_dict": named, "optimizer": {}}, "paddle")
    assert same(arrays, backbone() | fc)
    assert (told.kind, told.beside) == (kind, ("optimizer",))
    assert told.kept.endswith("and a classifier of 7 classes")
    assert told.dropped == ({"num_batches_tracked": 20} if is_torch else {})
    _, told = convert_content({"state_dict": named}, "detectron2")
    assert told.dropped["classifier (no place for it in detectron2)"] == 2
    write_weights(tmp_path / "w.pdparams", named)
    assert same(read_classifier(tmp_path / "w.pdparams"), behind("backbone.", backbone()) | fc)


def test_a_classifier_that_does_not_fit_is_an_error(tmp_path):
    fc = classifier(18, 7)
    wrong = backbone() | {"fc.weight": fc["fc.weight"].T, "fc.bias": fc["fc.bias"]}
    assert "weight is [7, 512] and its bias [7]; expected [512, classes] and [classes] for a ResNet-18" in refusal(
        wrong
    )
    assert "expected [classes, 512]" in refusal(as_torch(backbone()) | fc)
    write_weights(tmp_path / "w.pdparams", backbone())
    with pytest.raises(InputError, match=r"w\.pdparams: no classifier on its backbone \(backbone\)"):
        read_classifier(tmp_path / "w.pdparams")


def test_mocos_projection_is_no_classifier():
    arrays = behind(
        "module.encoder_q.",
        as_torch(backbone()) | {"fc.weight": np.zeros((16, 512), "f4"), "fc.bias": np.zeros(16, "f4")},
    )
    arrays |= behind("module.encoder_k.", as_torch(backbone(seed=3)))
    written, told = convert_content(arrays, "paddle")
    assert same(written, backbone())
    assert told.dropped["module.encoder_q.fc."] == 2


# Whole training states


@pytest.fixture(scope="module")
def model() -> DenseCL:
    """hidden_dim is the 512 channels and the queue as long as its vectors: no shape shows what is transposed."""
    model = DenseCL(BackboneSpec(18), HeadSpec(hidden_dim=512, out_dim=32), queue_len=32)
    rng = np.random.default_rng(0)
    for name, tensor in model.state_dict().items():
        tensor.set_value(
            np.full([1], 5, "i8") if name.endswith("pointer") else rng.normal(size=tensor.shape).astype("f4")
        )
    return model


@pytest.fixture(scope="module")
def state(model) -> Arrays:
    return {name: np.array(tensor.numpy()) for name, tensor in model.state_dict().items()}


def without_dense(state: Arrays) -> Arrays:
    return {name: array for name, array in state.items() if "dense" not in name}


def foreign(state: Arrays, kind: str, outer: str = "") -> Arrays:
    """A checkpoint as another project writes it, spelled out here independently of the package."""
    both = "encoder_q.0. encoder_k.0. encoder_q.1.mlp. encoder_k.1.mlp. encoder_q.1.mlp2. encoder_k.1.mlp2."
    key = "encoder_k.module."
    rows = {
        "passl-state": both,
        "openselfsup-state": both,
        "mmpretrain-state": f"backbone. {key}0. neck.mlp. {key}1.mlp. neck.mlp2. {key}1.mlp2.",
        "moco-state": "encoder_q. encoder_k. encoder_q.fc. encoder_k.fc.",
    }
    ours = [
        "query_encoder.backbone.",
        "key_encoder.backbone.",
        "query_encoder.global_head.",
        "key_encoder.global_head.",
        "query_encoder.dense_head.",
        "key_encoder.dense_head.",
    ]
    result = {}
    for name, array in state.items():
        for before, after in zip(ours, rows[kind].split(), strict=False):
            if name.startswith(before):
                turn = kind != "passl-state" and "global_head" in name and array.ndim == 2
                rest = name.removeprefix(before)
                if kind != "passl-state" and "backbone" in before:
                    rest = rest.replace("_mean", "running_mean").replace("_variance", "running_var")
                result[after + rest] = array.T if turn else array
                if before == ours[0] and kind in ("passl-state", "openselfsup-state"):
                    result["backbone." + rest] = array
    result |= {"queue": state["global_queue.keys"].T, "queue_ptr": state["global_queue.pointer"]}
    if "dense_queue.keys" in state:
        result |= {"queue2": state["dense_queue.keys"].T, "queue2_ptr": state["dense_queue.pointer"]}
    if kind == "mmpretrain-state":
        result["encoder_k.steps"] = np.array(1_000_960)
    return behind(outer, result)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("depth", [18, 50])
def test_the_shapes_of_a_state_are_those_of_the_built_model(depth, dense):
    built = DenseCL(BackboneSpec(depth), HeadSpec(hidden_dim=32, out_dim=16, dense=dense), queue_len=24)
    wanted = {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}
    assert list(state_shapes(depth, 32, 16, 24, dense).items()) == list(wanted.items())


@pytest.mark.parametrize("kind", [kind for kind in STATE_TARGETS if kind not in ("state", "moco-state")])
@pytest.mark.parametrize("outer", ["", "module."])
@pytest.mark.parametrize("dense", [True, False])
def test_a_whole_training_checkpoint_becomes_our_state(state, kind, outer, dense):
    wanted = state if dense else without_dense(state)
    content = {"epoch": 3, "state_dict": foreign(wanted, kind, outer), "optimizer": {}}
    ours, told = convert_content(content, "state")
    assert same(ours, wanted)
    assert told.dropped == {}
    assert told.beside == ("epoch", "optimizer")
    assert "hidden_dim 512, out_dim 32, queue_len 32" in told.kept


def test_mocos_checkpoint_becomes_a_state_without_a_dense_part(state):
    wanted = without_dense(state)
    ours, told = convert_content({"state_dict": foreign(wanted, "moco-state", "module.")}, "state")
    assert same(ours, wanted)
    assert "no dense part" in told.kept
    assert not read_state(ours).has_dense


@pytest.mark.parametrize("kind", STATE_TARGETS)
@pytest.mark.parametrize("dense", [True, False])
def test_states_go_there_and_back_with_the_same_bits(state, kind, dense):
    wanted = state if dense else without_dense(state)
    if kind == "moco-state" and dense:
        assert "no place for the dense head" in refusal(wanted, kind)
        return
    written, _ = convert_content(wanted, kind)
    assert same(convert_content(written, "state")[0], wanted)
    if kind != "state":
        spelled = foreign(wanted, kind, "module." if kind == "moco-state" else "")
        table = unwrap(written)
        counters = {name for name in table if name.endswith("num_batches_tracked")}
        assert set(table) - counters == set(spelled)
        for name in spelled:
            if not name.endswith("steps"):
                assert np.array_equal(table[name], spelled[name]), name
    if kind == "mmpretrain-state":
        assert unwrap(written)["encoder_k.steps"] == 1  # at 0 mmengine would overwrite the key encoder


def test_a_state_that_is_not_whole_is_refused(state):
    passl = foreign(state, "passl-state")
    mm = foreign(state, "mmpretrain-state")

    def damaged(arrays: Arrays, **changes: np.ndarray | None) -> str:
        changed = dict(arrays)
        for name, value in changes.items():
            changed.pop(name.replace("__", "."), None)
            if value is not None:
                changed[name.replace("__", ".")] = value
        return refusal(changed, "state")

    assert "1 missing: encoder_k.1.mlp.2.bias" in damaged(passl, encoder_k__1__mlp__2__bias=None)
    assert "1 missing: queue2_ptr" in damaged(passl, queue2_ptr=None)
    assert "1 names left over: neck.mlp3.0.weight" in damaged(mm, neck__mlp3__0__weight=np.zeros(1, "f4"))
    assert "global_queue.pointer" in damaged(passl, queue_ptr=np.array([32]))
    assert "dense_queue.keys" in damaged(passl, queue2=np.full((32, 32), np.nan, "f4"))
    assert "dense_queue.keys is [24, 32], not [32, 32]" in damaged(passl, queue2=np.ones((32, 24), "f4"))
    assert "query_encoder.dense_head.2.weight is [9, 512, 1, 1]" in damaged(
        mm, neck__mlp2__2__weight=np.zeros((9, 512, 1, 1), "f4")
    )
    assert "should be the same backbone twice but differ in backbone.bn1.bias" in damaged(
        passl, backbone__bn1__bias=np.zeros(64, "f4")
    )
    assert "behind 'encoder_k.0.': the names are closest to ResNet-18, but 1 missing: bn1._mean" in damaged(
        passl, encoder_k__0__bn1___mean=None
    )
    assert (
        "no whole training state (both encoders and their queues) in the file; it holds backbones behind ''"
        in refusal(backbone(), "state")
    )
    other = {name: array for name, array in mm.items() if not name.startswith("encoder_k.module.0.")}
    other |= behind("encoder_k.module.0.", as_torch(backbone(34), 34))
    assert "the query encoder is a ResNet-18, the key encoder a ResNet-34" in refusal(other, "state")
    assert "to='state' takes both encoders; leave out encoder and prefix" in refusal(state, "state", encoder="key")


def test_mocos_first_version_has_no_projection_head_to_go_on_from(state):
    arrays = foreign(without_dense(state), "moco-state")
    for encoder in "qk":
        for entry in ("0.weight", "0.bias", "2.weight", "2.bias"):
            del arrays[f"encoder_{encoder}.fc.{entry}"]
        arrays |= {
            f"encoder_{encoder}.fc.weight": np.zeros((32, 512), "f4"),
            f"encoder_{encoder}.fc.bias": np.zeros(32, "f4"),
        }
    assert "8 missing: encoder_q.fc.0.weight" in refusal(arrays, "state")
    assert same(
        convert_content(arrays, "paddle")[0],
        {
            n.removeprefix("query_encoder.backbone."): a
            for n, a in state.items()
            if n.startswith("query_encoder.backbone.")
        },
    )


def test_a_converted_state_projects_as_the_original_network_did(model, state):
    """Not names but numbers: mmpretrain's layouts computed by hand, ours by the model with the converted state."""
    mm = foreign(state, "mmpretrain-state")
    features = np.random.default_rng(1).normal(size=(2, 512, 3, 3)).astype("f4")
    hidden = np.maximum(features.mean(axis=(2, 3)) @ mm["neck.mlp.0.weight"].T + mm["neck.mlp.0.bias"], 0)
    global_vector = hidden @ mm["neck.mlp.2.weight"].T + mm["neck.mlp.2.bias"]
    global_vector /= np.linalg.norm(global_vector, axis=1, keepdims=True)
    model.set_state_dict(convert_content(mm, "state")[0])
    ours = model.query_encoder.project(paddle.to_tensor(features)).global_vector
    np.testing.assert_allclose(ours.numpy(), global_vector, atol=1e-5)
    np.testing.assert_allclose(ours.numpy() @ model.global_queue.keys.numpy().T, global_vector @ mm["queue"], atol=1e-4)


# Files


def test_a_wrong_suffix_names_the_right_one(tmp_path):
    write_weights(tmp_path / "in.pdparams", backbone())
    for to, target in (TARGETS | STATE_TARGETS).items():
        with pytest.raises(InputError) as caught:
            convert(tmp_path / "in.pdparams", tmp_path / "out.bin", to)
        assert f"must end in {' or '.join(target.suffixes)}" in str(caught.value)
    with pytest.raises(InputError, match="no target 'caffe'; there are paddle, torchvision"):
        convert(tmp_path / "in.pdparams", tmp_path / "out.pth", "caffe")
    assert [path.name for path in tmp_path.iterdir()] == ["in.pdparams"]


@pytest.mark.parametrize("to", TARGETS)
def test_files_go_there_and_back(tmp_path, to):
    write_weights(tmp_path / "in.pdparams", {f"backbone.{n}": np.array(a) for n, a in backbone().items()})
    middle = tmp_path / f"middle{TARGETS[to].suffixes[0]}"
    done = convert(tmp_path / "in.pdparams", middle, to)
    assert done.lines()[0] == f"read     {tmp_path / 'in.pdparams'} (backbone behind 'backbone.')"
    assert "kept     100 arrays: ResNet-18, 11.18 M weights" in done.lines()
    assert f"wrote    {middle}, names like {done.report.example}" in done.lines()
    assert "RGB" in "\n".join(done.lines())
    again = tmp_path / f"again{middle.suffix}"
    convert(tmp_path / "in.pdparams", again, to)
    assert again.read_bytes() == middle.read_bytes()
    card = read_card(middle)
    assert card is not None
    assert (card.kind, card.names, card.depth) == ("backbone", TARGETS[to].vocabulary, 18)
    back = convert(middle, tmp_path / "back.pdparams", "paddle", from_=to)
    assert same(unwrap(read_weights(tmp_path / "back.pdparams").content), backbone())
    assert back.report.kept == done.report.kept


@pytest.mark.parametrize(
    ("to", "depth", "said"),
    [
        ("detectron2", 50, ["STRIDE_IN_1X1 False", "FREEZE_AT 0", "SyncBN", "INPUT.FORMAT RGB", "DEPTH 50", "58.395"]),
        ("detectron2", 18, ["RES2_OUT_CHANNELS 64"]),
        ("paddledetection", 50, ["variant: b", "freeze_norm: false", "freeze_at: -1", "sync_bn", "depth: 50", "0.485"]),
        ("paddledetection", 18, ["shortcut convolution"]),
        ("paddleclas", 18, ["use_first_short_conv: False", "ResNet18"]),
        ("mmpretrain", 50, ["frozen_stages=-1", "norm_eval=False", "SyncBN", "to_rgb=True"]),
    ],
)
def test_the_settings_that_must_go_with_a_file_are_told(tmp_path, to, depth, said):
    write_weights(tmp_path / "in.pdparams", backbone(depth))
    output = tmp_path / f"out{TARGETS[to].suffixes[0]}"
    told = "\n".join(convert(tmp_path / "in.pdparams", output, to).lines())
    for words in (*said, "RGB"):
        assert words in told
    assert ("RES2_OUT" in told or "shortcut" in told or to == "mmpretrain") == (depth == 18 or to == "mmpretrain")


def test_a_damaged_source_leaves_nothing_behind(tmp_path):
    arrays = backbone()
    del arrays["layer3.1.bn2._variance"]
    write_weights(tmp_path / "in.pdparams", arrays)
    (tmp_path / "out.pkl").write_bytes(b"older")
    with pytest.raises(InputError, match=r"in\.pdparams: .* 1 missing: layer3\.1\.bn2\._variance"):
        convert(tmp_path / "in.pdparams", tmp_path / "out.pkl", "detectron2")
    assert (tmp_path / "out.pkl").read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pdparams", "out.pkl"]
    with pytest.raises(InputError, match="is the file to read"):
        convert(tmp_path / "in.pdparams", Path(f"{tmp_path}/../{tmp_path.name}/in.pdparams"), "paddle")


@pytest.mark.parametrize("before", ["float16", "float64"])
def test_weights_are_written_in_float32_unless_asked_for_otherwise(tmp_path, before):
    """Layer.set_state_dict takes nothing else. PaddleClas's file has a shortcut of our own in addition."""
    source = {name: array.astype(before) for name, array in (backbone() | classifier(18, 3)).items()}
    source["bn1.bias"] = source["bn1.bias"].astype("float32")
    write_weights(tmp_path / "in.pdparams", source)
    for to in TARGETS:
        output = tmp_path / f"out{TARGETS[to].suffixes[0]}"
        done = convert(tmp_path / "in.pdparams", output, to)
        table = unwrap(read_weights(output).content)
        assert {array.dtype.str for array in table.values()} - {"<i8"} == {"<f4"}, to
        count = 99 + 2 * (to not in ("detectron2", "paddledetection"))
        assert f"dtype    {before} → float32, {count} arrays" in done.lines()
        for name, array in extract_backbone(table).backbone.items():
            assert np.array_equal(array, source[name].astype("f4")), name
        convert(tmp_path / "in.pdparams", output, to, dtype="float64")
        table = unwrap(read_weights(output).content)
        assert {array.dtype.str for array in table.values()} - {"<i8"} == {"<f8"}, to
        assert extract_backbone(table).depth == 18
    taken = read_backbone(tmp_path / "in.pdparams")
    assert taken.converted == f"{before} → float32, 99 arrays"
    network = paddle.vision.models.resnet18(num_classes=0, with_pool=False)
    assert network.set_state_dict(taken.backbone) == ([], [])
    assert {a.dtype.str for a in read_backbone(tmp_path / "in.pdparams", dtype="float16").backbone.values()} == {"<f2"}


def test_a_float32_file_keeps_its_bits_and_says_nothing_of_its_dtype(tmp_path):
    write_weights(tmp_path / "in.pdparams", backbone())
    told = convert(tmp_path / "in.pdparams", tmp_path / "x.pd", "paddle").lines()
    assert not [line for line in told if "dtype" in line]
    assert same(read_backbone(tmp_path / "in.pdparams").backbone, backbone())


def test_numbers_that_do_not_fit_a_dtype_are_refused(tmp_path, state):
    with pytest.raises(InputError, match=r"conv1\.weight holds 1e\+05, too large for float16; choose another dtype"):
        convert_content(backbone() | {"conv1.weight": np.full((64, 3, 7, 7), 1e5, "f4")}, "paddle", dtype="float16")
    with pytest.raises(InputError, match="dtype='bfloat16': expected float32, float16, float64"):
        convert_content(backbone(), "paddle", dtype="bfloat16")  # type: ignore[arg-type]
    half = {name: array.astype("f2") if array.dtype.kind == "f" else array for name, array in state.items()}
    arrays, told = convert_content(half, "state")
    assert {array.dtype.str for array in arrays.values()} == {"<f4", "<i8"}
    assert told.converted.startswith("float16 → float32, ")


def test_from_is_checked(tmp_path):
    assert set(SOURCES.values()) - {"sequential", "huggingface"} < {*TARGETS}
    assert same(convert_content(as_torch(backbone()), "paddle", from_="mmpretrain")[0], backbone())
    assert "no names of PaddleClas in the file; it has those of torchvision" in refusal(
        as_torch(backbone()), from_="paddleclas"
    )


def test_a_state_is_read_from_a_run_folder(tmp_path, state):
    folder = tmp_path / "checkpoints" / "epoch_0001"
    folder.mkdir(parents=True)
    write_weights(folder / "model.pdparams", state)
    convert(tmp_path, tmp_path / "mm.pth", "mmpretrain-state")
    assert same(read_training_state(tmp_path / "mm.pth").arrays, state)
    card = read_card(tmp_path / "mm.pth")
    assert card is not None
    assert (card.kind, card.names, card.classes) == ("pre-training checkpoint", "torchvision", None)
    found = read_training_state(tmp_path)
    assert same(found.arrays, state)
    assert (found.depth, found.hidden_dim, found.out_dim, found.queue_len, found.has_dense) == (18, 512, 32, 32, True)
    write_weights(folder / "model.pdparams", backbone())
    with pytest.raises(InputError, match=r"model\.pdparams: no whole training state"):
        read_training_state(tmp_path)


# Networks: what torch computes with a converted file


def torch_resnet(depth: int, classes: int) -> Any:
    """A ResNet in plain torch whose names are torchvision's, with its strides in the 3×3 convolutions."""
    import torch
    from torch import nn

    expansion = 4 if depth >= 50 else 1

    class Block(nn.Module):
        def __init__(self, incoming: int, width: int, stride: int) -> None:
            super().__init__()
            outgoing = width * expansion
            sizes = [(incoming, width, 3, stride), (width, width, 3, 1)]
            if expansion == 4:
                sizes = [(incoming, width, 1, 1), (width, width, 3, stride), (width, outgoing, 1, 1)]
            self.count = len(sizes)
            for n, (into, out, window, step) in enumerate(sizes, start=1):
                setattr(self, f"conv{n}", nn.Conv2d(into, out, window, step, window // 2, bias=False))
                setattr(self, f"bn{n}", nn.BatchNorm2d(out))
            self.downsample = None
            if stride != 1 or incoming != outgoing:
                self.downsample = nn.Sequential(
                    nn.Conv2d(incoming, outgoing, 1, stride, bias=False), nn.BatchNorm2d(outgoing)
                )

        def forward(self, x: Any) -> Any:
            y = x
            for n in range(1, self.count + 1):
                y = getattr(self, f"bn{n}")(getattr(self, f"conv{n}")(y))
                y = torch.relu(y) if n < self.count else y
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
            incoming = 64
            counts = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
            for stage, count in enumerate(counts, start=1):
                width, blocks = 32 * 2**stage, []
                for index in range(count):
                    blocks.append(Block(incoming, width, 2 if stage > 1 and index == 0 else 1))
                    incoming = width * expansion
                self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            self.fc = nn.Linear(incoming, classes)

        def forward(self, x: Any) -> Any:
            x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
            for stage in (1, 2, 3, 4):
                x = getattr(self, f"layer{stage}")(x)
            return x, self.fc(x.mean(dim=(2, 3)))

    return Network()


@pytest.mark.parametrize("depth", [18, 50, 101])
def test_torch_computes_the_same_with_a_converted_file(tmp_path, depth, record_property):
    """In both directions; the classifier has as many classes as channels, so that only values tell its transpose."""
    torch = pytest.importorskip("torch")
    from passl_densecl.models.resnet import build_backbone

    channels = 512 if depth < 50 else 2048
    network = build_backbone(BackboneSpec(depth), seed=3)
    rng = np.random.default_rng(depth)
    for name, tensor in network.state_dict().items():  # statistics and scales of a trained network, not of a fresh one
        if len(tensor.shape) == 1:
            low, high = (0.5, 1.0) if name.endswith("_variance") else (0.4, 0.6) if "weight" in name else (-0.1, 0.1)
            tensor.set_value(rng.uniform(low, high, tensor.shape).astype("f4"))
    arrays = {name: np.array(tensor.numpy()) for name, tensor in network.state_dict().items()}
    fc = {n: a * np.float32(0.01) for n, a in classifier(depth, channels).items()}
    write_weights(tmp_path / "w.pdparams", arrays | fc)
    convert(tmp_path / "w.pdparams", tmp_path / "w.pth", "torchvision")
    theirs = torch_resnet(depth, channels)
    theirs.load_state_dict(torch.load(tmp_path / "w.pth", weights_only=True), strict=True)
    network.eval()
    theirs.eval()
    images = rng.normal(size=(2, 3, 97, 64)).astype("f4")
    with paddle.no_grad(), torch.no_grad():
        ours = network(paddle.to_tensor(images)).numpy()
        features, logits = (output.numpy() for output in theirs(torch.from_numpy(images)))
    expected = ours.mean(axis=(2, 3)) @ fc["fc.weight"] + fc["fc.bias"]
    gap, scale = np.abs(features - ours).max(), np.abs(ours).max()
    logit_gap, logit_scale = np.abs(logits - expected).max(), np.abs(expected).max()
    print(f"ResNet-{depth}: C5 differs by {gap:.2g} of {scale:.3g}, logits by {logit_gap:.2g} of {logit_scale:.3g}")
    assert scale > 0.1
    assert gap < 1e-5 * max(scale, 1)
    assert logit_gap < 1e-5 * max(logit_scale, 1)
    torch.save({"state_dict": theirs.state_dict(), "epoch": 3}, tmp_path / "back.pth")
    convert(tmp_path / "back.pth", tmp_path / "back.pdparams", "paddle")
    back = unwrap(read_weights(tmp_path / "back.pdparams").content)
    assert same(back, arrays | fc)
    torch.save(theirs.state_dict(), tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    assert same(extract_backbone(unwrap(read_weights(tmp_path / "legacy.pth").content)).backbone, arrays)
