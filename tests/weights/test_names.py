"""Names of ResNet weights: complete, recognised in every kind of file, and refused where they do not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pytest
from paddle.vision.models.resnet import BasicBlock, BottleneckBlock, ResNet

from passl_densecl.errors import InputError
from passl_densecl.weights import backbone_names, backbone_shapes, depth_of, extract_backbone, find_encoder
from passl_densecl.weights.names import unwrap

DEPTHS = (18, 34, 50, 101, 152)
Arrays = dict[str, np.ndarray]


def backbone(depth: int = 18, seed: int = 0) -> Arrays:
    """Every array of a backbone, each with values of its own."""
    rng = np.random.default_rng(seed)
    return {name: np.full(shape, rng.normal(), "f4") for name, shape in backbone_shapes(depth).items()}


def behind(prefix: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
    return {prefix + name: array for name, array in arrays.items()}


def arrays_named(*names: str) -> Arrays:
    return {name: np.zeros(2, "f4") for name in names}


def pretraining_state() -> Arrays:
    heads = [f"{part}_head.{i}.{entry}" for part in ("global", "dense") for i in (0, 2) for entry in ("weight", "bias")]
    return {
        **behind("query_encoder.backbone.", backbone(seed=1)),
        **behind("query_encoder.", arrays_named(*heads)),
        **behind("key_encoder.backbone.", backbone(seed=2)),
        **behind("key_encoder.", arrays_named(*heads)),
        **arrays_named("global_queue.vectors", "global_queue.next", "dense_queue.vectors", "dense_queue.next", "step"),
    }


def passl_state() -> Arrays:
    neck = [f"{part}.{i}.{entry}" for part in ("mlp", "mlp2") for i in (0, 2) for entry in ("weight", "bias")]
    return {
        **arrays_named("queue", "queue_ptr", "queue2", "queue2_ptr"),
        **behind("backbone.", backbone(seed=1)),
        **behind("encoder_q.0.", backbone(seed=1)),
        **behind("encoder_q.1.", arrays_named(*neck)),
        **behind("encoder_k.0.", backbone(seed=2)),
        **behind("encoder_k.1.", arrays_named(*neck)),
    }


def same(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    return list(a) == list(b) and all(np.array_equal(a[name], b[name]) for name in a)


def error_of(arrays: Mapping[str, np.ndarray], **options) -> str:
    with pytest.raises(InputError) as caught:
        extract_backbone(arrays, **options)
    return str(caught.value)


# The tables


@pytest.mark.parametrize("depth", DEPTHS)
def test_names_and_shapes_are_those_of_paddle(depth):
    network = ResNet(BottleneckBlock if depth >= 50 else BasicBlock, depth, num_classes=0, with_pool=False)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert list(backbone_shapes(depth).items()) == list(wanted.items())
    assert backbone_names(depth) == list(wanted)


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_depth_shows_in_the_names(depth):
    names = backbone_names(depth)
    assert depth_of(names) == depth
    assert depth_of([*names, "fc.weight", "fc.bias"]) == depth
    assert depth_of(reversed(names)) == depth
    assert depth_of(names[:-10]) in (depth, None)
    assert depth_of(name for name in names if not name.startswith("layer4.")) is None
    assert depth_of(f"backbone.{name}" for name in names) is None


def test_a_resnet_of_other_blocks_has_no_depth():
    assert depth_of([]) is None
    assert depth_of(["fc.weight"]) is None
    assert depth_of([*backbone_names(18), "layer5.0.conv1.weight"]) is None
    assert depth_of([*backbone_names(18), "layer1.0.conv3.weight"]) is None


# Every kind of file


def test_a_plain_backbone_is_itself():
    arrays = backbone(50)
    taken = extract_backbone(arrays)
    assert same(taken.backbone, arrays)
    assert taken.depth == 50
    assert (taken.kind, taken.prefix, taken.dropped) == ("backbone", "", {})
    assert taken.weight_count == 23_508_032
    again = extract_backbone(dict(reversed(arrays.items())))
    assert same(again.backbone, arrays)  # in Paddle's order, whatever the file's


@pytest.mark.parametrize("prefix", ["backbone.", "encoder_q.0.", "query_encoder.backbone.", "module.", "a.b.c."])
def test_any_one_prefix_is_found(prefix):
    arrays = backbone()
    taken = extract_backbone(behind(prefix, arrays))
    assert same(taken.backbone, arrays)
    assert taken.prefix == prefix
    assert taken.dropped == {}


@pytest.mark.parametrize("outer", ["", "module.", "model.net."])
@pytest.mark.parametrize(("encoder", "seed"), [("query", 1), ("key", 2)])
def test_a_pretraining_state_gives_the_wanted_encoder(outer, encoder, seed):
    taken = extract_backbone(behind(outer, pretraining_state()), encoder=encoder)
    assert same(taken.backbone, backbone(seed=seed))
    assert taken.kind == "pre-training state"
    assert taken.prefix == f"{outer}{encoder}_encoder.backbone."
    assert sum(taken.dropped.values()) + len(taken.backbone) == len(pretraining_state())
    if not outer:
        other = {"query": "key", "key": "query"}[encoder]
        assert taken.dropped == {
            "query_encoder.global_head.": 4,
            "query_encoder.dense_head.": 4,
            f"{other}_encoder.backbone.": 100,
            "key_encoder.global_head.": 4,
            "key_encoder.dense_head.": 4,
            "global_queue.": 2,
            "dense_queue.": 2,
            "step": 1,
        }


def test_a_linear_state_gives_its_backbone_without_fc():
    taken = extract_backbone({**behind("backbone.", backbone()), **arrays_named("fc.weight", "fc.bias")})
    assert same(taken.backbone, backbone())
    assert (taken.kind, taken.dropped) == ("linear evaluation state", {"fc.": 2})
    taken = extract_backbone({**backbone(), **arrays_named("fc.weight", "fc.bias", "head.fc_cls.bias")})
    assert same(taken.backbone, backbone())
    assert taken.dropped == {"fc.": 2, "head.": 1}
    taken = extract_backbone(behind("module.", {**backbone(), **arrays_named("fc.weight", "fc.bias")}))
    assert same(taken.backbone, backbone())
    assert taken.dropped == {"module.fc.": 2}


@pytest.mark.parametrize(("encoder", "seed"), [("query", 1), ("key", 2)])
def test_a_passl_checkpoint_gives_the_wanted_encoder(encoder, seed):
    taken = extract_backbone(passl_state(), encoder=encoder)
    assert same(taken.backbone, backbone(seed=seed))
    assert taken.kind == "PASSL pre-training checkpoint"
    assert taken.dropped["backbone."] == 100
    assert taken.dropped["encoder_q.1."] == taken.dropped["encoder_k.1."] == 8
    assert taken.dropped["queue"] == taken.dropped["queue2_ptr"] == 1


def test_two_copies_that_differ_are_not_chosen_between():
    arrays = passl_state()
    arrays["backbone.bn1._mean"] = np.full(64, 9.0, "f4")
    message = error_of(arrays)
    assert "differ in bn1._mean" in message
    assert "--prefix 'encoder_q.0.' or --prefix 'backbone.'" in message
    assert extract_backbone(arrays, prefix="backbone.").backbone["bn1._mean"][0] == 9
    assert extract_backbone(arrays, prefix="encoder_q.0").backbone["bn1._mean"][0] != 9
    assert extract_backbone(arrays, encoder="key").prefix == "encoder_k.0."


def test_a_prefix_chooses_and_a_wrong_one_is_named():
    arrays = {**behind("student.", backbone(seed=1)), **behind("teacher.", backbone(seed=2))}
    assert "2 backbones; choose one by its prefix: --prefix 'student.', --prefix 'teacher.'" in error_of(arrays)
    for prefix in ("teacher.", "teacher"):
        taken = extract_backbone(arrays, prefix=prefix)
        assert same(taken.backbone, backbone(seed=2))
        assert taken.dropped == {"student.": 100}
    assert "behind the prefix 'teecher'" in (message := error_of(arrays, prefix="teecher"))
    assert message.endswith("did you mean 'teacher.'?")
    assert "no backbone behind the prefix ''" in error_of(arrays, prefix="")
    assert extract_backbone(backbone(), prefix="").prefix == ""
    assert "not both" in error_of(pretraining_state(), prefix="key_encoder.backbone.", encoder="key")


def test_find_encoder_says_where():
    place = find_encoder(list(pretraining_state()), encoder="key")
    assert (place.prefix, place.others) == ("key_encoder.backbone.", ("query_encoder.backbone.",))
    assert find_encoder(list(passl_state())).copy == "backbone."
    assert find_encoder(list(backbone())).prefix == ""
    # a name that merely ends alike is no prefix
    assert find_encoder([*backbone(), "mylayer1.0.conv1.weight"]).prefix == ""


# What does not fit


def test_a_missing_key_encoder_is_said():
    assert "holds no key encoder, only one backbone (backbone)" in error_of(backbone(), encoder="key")
    arrays = {name: array for name, array in pretraining_state().items() if not name.startswith("key_")}
    assert "without a key encoder" in error_of(arrays, encoder="key")
    assert extract_backbone(arrays).prefix == "query_encoder.backbone."


def test_missing_and_leftover_names_are_listed():
    arrays = behind("backbone.", backbone(50))
    del arrays["backbone.bn1._mean"]
    for name in backbone_names(50)[50:60]:
        del arrays[f"backbone.{name}"]
    arrays["backbone.layer2.1.conv4.weight"] = np.zeros(1)
    message = error_of(arrays)
    assert "ResNet-50" in message
    assert f"11 missing: bn1._mean, {', '.join(backbone_names(50)[50:54])} and 6 more" in message
    assert "1 left over: layer2.1.conv4.weight" in message


def test_a_missing_block_is_said():
    arrays = {name: array for name, array in backbone(50).items() if not name.startswith("layer3.5.")}
    assert "blocks per stage are 3, 4, 5, 3 (known: 18: 2, 2, 2, 2; 34: 3, 4, 6, 3; 50:" in error_of(arrays)
    arrays = {name: array for name, array in backbone(50).items() if not name.startswith("layer3.2.")}
    assert re.search(r"ResNet-50: \d+ missing: layer3\.2\.conv1\.weight", error_of(arrays))


def test_a_wide_resnet_is_no_resnet50():
    arrays = backbone(50)
    arrays["layer1.0.conv1.weight"] = np.zeros((128, 64, 1, 1), "f4")
    assert "layer1.0.conv1.weight is [128, 64, 1, 1], not [64, 64, 1, 1]" in error_of(arrays)


def test_weights_that_are_not_finite_are_refused():
    arrays = behind("backbone.", backbone())
    arrays["backbone.layer4.1.bn2._variance"][3] = np.nan
    arrays["backbone.conv1.weight"][0, 0, 0, 0] = np.inf
    assert "not finite (the training diverged?): conv1.weight, layer4.1.bn2._variance" in error_of(arrays)


def test_torch_naming_is_refused():
    names = {"_mean": "running_mean", "_variance": "running_var"}
    arrays = {
        ".".join([*name.split(".")[:-1], names.get(name.split(".")[-1], name.split(".")[-1])]): array
        for name, array in backbone().items()
    }
    assert "torch file's naming (bn1.running_mean" in error_of(arrays)
    assert "converting torch weights is not supported yet" in error_of(
        {**backbone(), **arrays_named("bn1.num_batches_tracked")}
    )
    mmpretrain = {**behind("backbone.", arrays), **behind("encoder_k.module.0.", arrays)}
    assert "torch file's naming" in error_of(mmpretrain)


@pytest.mark.parametrize(
    ("engine", "names"),
    [
        ("PaddleDetection", ["conv1.conv1.conv.weight", "res2.res2a.branch2a.conv.weight"]),
        ("PaddleDetection", ["backbone.res2.res2a.branch2a.conv.weight"]),
        ("PaddleClas", ["stem.0.conv.weight", "blocks.0.conv0.conv.weight"]),
        ("detectron2", ["stem.conv1.weight", "res2.0.conv1.weight"]),
    ],
)
def test_other_engines_are_recognised_and_refused(engine, names):
    assert f"this is {engine}'s naming" in error_of(arrays_named(*names))


def test_no_backbone_is_said():
    assert "no ResNet backbone: expected names like conv1.weight" in (message := error_of(arrays_named("a", "b.c")))
    assert message.endswith("found a, b.c")
    assert error_of({}).endswith("found nothing")


# The table in a checkpoint


def test_the_table_is_found_plain_or_wrapped():
    table = arrays_named("a", "b")
    assert unwrap(table) is table
    for wrapper in ("state_dict", "model", "model_state_dict"):
        assert unwrap({"epoch": 3, wrapper: table, "optimizer": {"c": np.ones(1)}}) is table


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"epoch": 3, "weights": {"a": np.zeros(1)}}, "'epoch': int 3, 'weights': a dict of 1"),
        ({"state_dict": {"a": 1}}, "'state_dict': a dict of 1"),
        ({}, "the file holds nothing"),
        ({"state_dict": {}}, "'state_dict': a dict of 0"),
        ([1, 2], "the file holds a list of 2"),
        (None, "NoneType None"),
        (np.zeros(3), "an array [3] of float64"),
        ({n: n for n in range(8)}, "and 3 more"),
    ],
)
def test_a_file_without_a_table_is_described(content, said):
    with pytest.raises(InputError, match="no table of names and arrays") as caught:
        unwrap(content)
    assert said in str(caught.value)
