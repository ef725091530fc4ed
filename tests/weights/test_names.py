"""Names of ResNet weights: complete, recognized in every kind of file, and refused where they do not fit."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle.vision.models.resnet import BasicBlock, BottleneckBlock, ResNet

from passl_densecl.errors import InputError, options_of_commands
from passl_densecl.weights.names import depth_of, extract_backbone, find_encoder
from passl_densecl.weights.tables import beside, unwrap
from passl_densecl.weights.vocabulary import backbone_shapes, identity_shortcut, is_identity, translate, translations
from tests.reference.cases import FOLDER as REFERENCE

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
    assert list(backbone_shapes(depth)) == list(wanted)


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_depth_shows_in_the_names(depth):
    names = list(backbone_shapes(depth))
    assert depth_of(names) == depth
    assert depth_of([*names, "fc.weight", "fc.bias"]) == depth
    assert depth_of(reversed(names)) == depth
    assert depth_of(names[:-10]) in (depth, None)
    assert depth_of(name for name in names if not name.startswith("layer4.")) is None
    assert depth_of(f"backbone.{name}" for name in names) is None


def test_a_resnet_of_other_blocks_has_no_depth():
    assert depth_of([]) is None
    assert depth_of(["fc.weight"]) is None
    assert depth_of([*backbone_shapes(18), "layer5.0.conv1.weight"]) is None
    assert depth_of([*backbone_shapes(18), "layer1.0.conv3.weight"]) is None


# The vocabularies, against names written out by hand

COLUMNS = ("torchvision", "paddleclas", "paddledetection", "detectron2")
R18_CONVOLUTIONS = """
conv1                   stem.0.conv            conv1.conv1.conv             stem.conv1
layer1.0.conv1          blocks.0.conv0.conv    res2.res2a.branch2a.conv     res2.0.conv1
layer1.0.conv2          blocks.0.conv1.conv    res2.res2a.branch2b.conv     res2.0.conv2
layer1.1.conv1          blocks.1.conv0.conv    res2.res2b.branch2a.conv     res2.1.conv1
layer1.1.conv2          blocks.1.conv1.conv    res2.res2b.branch2b.conv     res2.1.conv2
layer2.0.conv1          blocks.2.conv0.conv    res3.res3a.branch2a.conv     res3.0.conv1
layer2.0.conv2          blocks.2.conv1.conv    res3.res3a.branch2b.conv     res3.0.conv2
layer2.0.downsample.0   blocks.2.short.conv    res3.res3a.short.conv        res3.0.shortcut
layer2.1.conv1          blocks.3.conv0.conv    res3.res3b.branch2a.conv     res3.1.conv1
layer2.1.conv2          blocks.3.conv1.conv    res3.res3b.branch2b.conv     res3.1.conv2
layer3.0.conv1          blocks.4.conv0.conv    res4.res4a.branch2a.conv     res4.0.conv1
layer3.0.conv2          blocks.4.conv1.conv    res4.res4a.branch2b.conv     res4.0.conv2
layer3.0.downsample.0   blocks.4.short.conv    res4.res4a.short.conv        res4.0.shortcut
layer3.1.conv1          blocks.5.conv0.conv    res4.res4b.branch2a.conv     res4.1.conv1
layer3.1.conv2          blocks.5.conv1.conv    res4.res4b.branch2b.conv     res4.1.conv2
layer4.0.conv1          blocks.6.conv0.conv    res5.res5a.branch2a.conv     res5.0.conv1
layer4.0.conv2          blocks.6.conv1.conv    res5.res5a.branch2b.conv     res5.0.conv2
layer4.0.downsample.0   blocks.6.short.conv    res5.res5a.short.conv        res5.0.shortcut
layer4.1.conv1          blocks.7.conv0.conv    res5.res5b.branch2a.conv     res5.1.conv1
layer4.1.conv2          blocks.7.conv1.conv    res5.res5b.branch2b.conv     res5.1.conv2
"""
SOME_CONVOLUTIONS = {
    34: """
layer1.2.conv2          blocks.2.conv1.conv    res2.res2c.branch2b.conv     res2.2.conv2
layer3.5.conv1          blocks.12.conv0.conv   res4.res4f.branch2a.conv     res4.5.conv1
layer4.2.conv2          blocks.15.conv1.conv   res5.res5c.branch2b.conv     res5.2.conv2
""",
    50: """
layer1.0.conv3          blocks.0.conv2.conv    res2.res2a.branch2c.conv     res2.0.conv3
layer1.0.downsample.0   blocks.0.short.conv    res2.res2a.short.conv        res2.0.shortcut
layer2.3.conv1          blocks.6.conv0.conv    res3.res3d.branch2a.conv     res3.3.conv1
layer3.5.conv2          blocks.12.conv1.conv   res4.res4f.branch2b.conv     res4.5.conv2
layer4.0.downsample.0   blocks.13.short.conv   res5.res5a.short.conv        res5.0.shortcut
layer4.2.conv3          blocks.15.conv2.conv   res5.res5c.branch2c.conv     res5.2.conv3
""",
    101: """
layer2.3.conv3          blocks.6.conv2.conv    res3.res3d.branch2c.conv     res3.3.conv3
layer3.0.conv1          blocks.7.conv0.conv    res4.res4a.branch2a.conv     res4.0.conv1
layer3.0.downsample.0   blocks.7.short.conv    res4.res4a.short.conv        res4.0.shortcut
layer3.1.conv1          blocks.8.conv0.conv    res4.res4b1.branch2a.conv    res4.1.conv1
layer3.22.conv3         blocks.29.conv2.conv   res4.res4b22.branch2c.conv   res4.22.conv3
layer4.0.downsample.0   blocks.30.short.conv   res5.res5a.short.conv        res5.0.shortcut
layer4.2.conv3          blocks.32.conv2.conv   res5.res5c.branch2c.conv     res5.2.conv3
""",
    152: """
layer2.7.conv2          blocks.10.conv1.conv   res3.res3h.branch2b.conv     res3.7.conv2
layer3.35.conv3         blocks.46.conv2.conv   res4.res4b35.branch2c.conv   res4.35.conv3
layer4.2.conv1          blocks.49.conv0.conv   res5.res5c.branch2a.conv     res5.2.conv1
""",
}
# What a BatchNorm is called beside its convolution, and its entries, each time as (convolution's end, BatchNorm's end).
NORMS = {
    "torchvision": ((".0", ".1"), ("conv", "bn"), "weight bias running_mean running_var"),
    "paddle": ((".0", ".1"), ("conv", "bn"), "weight bias _mean _variance"),
    "paddleclas": ((".conv", ".bn"), None, "weight bias _mean _variance"),
    "paddledetection": ((".conv", ".norm"), None, "weight bias _mean _variance"),
    "detectron2": (("", ".norm"), None, "weight bias running_mean running_var"),
}


def written_out(convolution: str, vocabulary: str) -> list[str]:
    """The five names of a convolution and its BatchNorm."""
    (end, norm_end), words, entries = NORMS[vocabulary]
    if words is not None and not convolution.endswith(end):
        norm = convolution.replace(*words)
    else:
        norm = convolution[: len(convolution) - len(end)] + norm_end
    return [f"{convolution}.weight", *(f"{norm}.{entry}" for entry in entries.split())]


@pytest.mark.parametrize("vocabulary", [*COLUMNS, "paddle"])
def test_resnet18_in_every_vocabulary(vocabulary):
    column = COLUMNS.index("torchvision" if vocabulary == "paddle" else vocabulary)
    rows = [line.split()[column] for line in R18_CONVOLUTIONS.split("\n") if line]
    expected = [name for row in rows for name in written_out(row, vocabulary)]
    assert list(translations(vocabulary, 18)) == expected
    assert list(translations(vocabulary, 18).values()) == list(backbone_shapes(18))
    assert len(expected) == 100


@pytest.mark.parametrize("vocabulary", COLUMNS)
@pytest.mark.parametrize("depth", SOME_CONVOLUTIONS)
def test_deeper_resnets_in_every_vocabulary(vocabulary, depth):
    table = translations(vocabulary, depth)
    for line in filter(None, SOME_CONVOLUTIONS[depth].split("\n")):
        columns = line.split()
        theirs = written_out(columns[COLUMNS.index(vocabulary)], vocabulary)
        ours = written_out(columns[0], "paddle")
        assert [table[name] for name in theirs] == ours
    assert list(table.values()) == list(backbone_shapes(depth))
    assert len(set(table)) == len(table) == {34: 180, 50: 265, 101: 520, 152: 775}[depth]


@pytest.mark.parametrize(("depth", "blocks"), [(50, "3 4 6 3"), (101, "3 4 23 3"), (152, "3 8 36 3")])
def test_detectron2_names_are_exactly_these(depth, blocks):
    expected = []
    for layer in ["stem.conv1"] + [
        f"res{stage}.{block}.{layer}"
        for stage, count in enumerate(map(int, blocks.split()), start=2)
        for block in range(count)
        for layer in ("conv1", "conv2", "conv3", "shortcut")
        if layer != "shortcut" or block == 0
    ]:
        expected += [
            f"{layer}.{e}" for e in ("weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
        ]
    assert list(translate(backbone(depth), "detectron2", depth)) == expected
    assert len(expected) == {50: 265, 101: 520, 152: 775}[depth]


def test_all_names_of_resnet50_are_those_that_the_engines_showed():
    table = json.loads((REFERENCE / "names_r50.json").read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    columns = {"paddleclas": "ppcls", "paddledetection": "ppdet", "paddle": "paddle_vision"}
    for vocabulary in ("paddle", *COLUMNS):
        column = columns.get(vocabulary, vocabulary)
        assert translations(vocabulary, 50) == {row[column]: row["paddle_vision"] for row in rows}
    assert [tuple(row["shape"]) for row in rows] == list(backbone_shapes(50).values())
    assert len(rows) == 265


LIBRARIES = json.loads(gzip.decompress((Path(__file__).parent / "data" / "names.json.gz").read_bytes()))


def of_library(title: str) -> Arrays:
    """A network of another library in its own names: every array holds one number, which is its place in the list.

    data/make_names.py built them with the real libraries. With the weights of such networks the outputs for a
    photograph were the same here to a millionth.
    """
    return {name: np.full(shape, place, "f4") for place, (name, shape) in enumerate(LIBRARIES[title])}


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize(
    ("library", "prefix", "kind", "dropped"),
    [
        ("sequential", "", "backbone, torch.nn.Sequential names", {}),
        ("huggingface", "resnet.", "Hugging Face classifier, Hugging Face names", {"classifier.": 2}),
    ],
)
def test_the_networks_of_other_libraries_are_read_by_their_own_names(library, depth, prefix, kind, dropped):
    arrays = of_library(f"{library} {depth}")
    taken = extract_backbone(arrays)
    assert (taken.vocabulary, taken.prefix, taken.kind, taken.depth) == (library, prefix, kind, depth)
    assert taken.dropped == {"num_batches_tracked": {18: 20, 50: 53}[depth]} | dropped
    assert (taken.fc is not None) == (library == "huggingface")
    # A Sequential has torchvision's arrays in torchvision's order; Hugging Face has a block's shortcut in front.
    place = dict.fromkeys((name for name, _ in LIBRARIES[f"torchvision {depth}"] if not name.startswith("fc.")))
    if library == "huggingface":
        names = list(place)
        for name in [name for name in names if ".downsample." in name]:
            block = name.split("downsample")[0]
            shortcut = [n for n in place if n.startswith(f"{block}downsample.")]
            names = [n for n in names if n not in shortcut]
            at = next(index for index, n in enumerate(names) if n.startswith(block))
            names[at:at] = shortcut
        place = dict.fromkeys(names)
    expected = {name: number for number, name in enumerate(place)}
    for name, array in taken.backbone.items():
        torch_name = re.sub("_mean$", "running_mean", re.sub("_variance$", "running_var", name))
        assert (array == expected[torch_name]).all(), name
    assert same(extract_backbone(behind("model.", arrays)).backbone, taken.backbone)


def test_a_part_of_another_network_is_no_sequential_backbone():
    """Any network may have a `4.0.conv1.weight`."""
    arrays = {**backbone(), **arrays_named("decoder.4.0.conv1.weight", "decoder.0.weight")}
    assert extract_backbone(arrays).dropped == {"decoder.4.": 1, "decoder.": 1}


def caffe2(depth: int = 50) -> Arrays:
    """Names as in MSRA's R-50.pkl: scale and shift in the place of a BatchNorm."""
    names = ["conv1_w", "res_conv1_bn_s", "res_conv1_bn_b", "fc1000_w", "fc1000_b"]
    names += [f"res2_0_branch{branch}_{end}" for branch in ("1", "2a", "2b", "2c") for end in ("w", "bn_s", "bn_b")]
    return arrays_named(*names)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"conv1.0.weight": np.zeros((32, 3, 3, 3), "f4"), "conv1.weight": None}, "a ResNet with a deep stem"),
        ({"visual.conv3.weight": np.zeros(1, "f4"), "bn1.bias": None}, "a deep stem (ResNet-C and -D, CLIP's)"),
        ({"layer1.0.se.fc1.weight": np.zeros(1, "f4")}, "a ResNet with squeeze-and-excitation"),
        ({"layer1.0.conv1.weight": np.zeros((128, 64, 1, 1), "f4")}, "ResNeXt and Wide ResNet have the same names"),
    ],
)
def test_networks_that_are_taken_for_a_resnet_are_named(change, said):
    arrays = {name: array for name, array in (backbone(50) | change).items() if array is not None}
    assert said in error_of(arrays)


def test_networks_without_a_resnets_names_are_named():
    assert "a pre-activation ResNet (ResNetV2)" in error_of(arrays_named("stages.0.blocks.0.norm1.weight"))
    assert "a vision transformer" in error_of(arrays_named("model.blocks.0.attn.qkv.weight"))


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"blobs": t | {"weight_order": "(1) x"}}])
def test_caffe2s_weights_are_refused_with_the_reasons(wrap):
    message = error_of(unwrap(wrap(caffe2())))
    for reason in ("strides are in the 1×1 convolutions", "folded into scale and shift", "BGR", "torchvision's"):
        assert reason in message


@pytest.mark.parametrize("vocabulary", ["torchvision", "detectron2"])
def test_caffe2s_weights_are_known_under_other_names_too(vocabulary):
    """OpenMMLab's resnet50_msra and detectron2's model zoo: means 0 and one variance, but biases."""
    arrays = backbone(50)
    for name, array in arrays.items():
        if name.endswith(("._mean", "._variance")):
            array[:] = 0 if name.endswith("._mean") else 1 - 1e-5
    assert "This is a ResNet of Caffe2 (MSRA's) or made from one" in error_of(translate(arrays, vocabulary, 50))
    untrained = {name: np.zeros_like(array) if name.endswith(".bias") else array for name, array in arrays.items()}
    assert extract_backbone(translate(untrained, vocabulary, 50)).depth == 50
    arrays["layer4.2.bn3._mean"] += 1
    assert extract_backbone(translate(arrays, vocabulary, 50)).depth == 50


def test_an_identity_is_told_from_a_trained_shortcut():
    shortcut = identity_shortcut()
    assert is_identity(shortcut)
    for name in shortcut:
        for change in (0.9, 1.0001):
            other = {**shortcut, name: shortcut[name] * np.float32(change) + np.float32(change - 1)}
            assert not is_identity(other), name
    assert not is_identity({**shortcut, "layer1.0.downsample.0.weight": np.eye(32, dtype="f4")[:, :, None, None]})
    norm = paddle.nn.BatchNorm2D(64)
    entries = ("weight", "bias", "_mean", "_variance")
    norm.set_state_dict({entry: shortcut[f"layer1.0.downsample.1.{entry}"] for entry in entries})
    norm.eval()
    maps = np.random.default_rng(0).normal(0, 3, (2, 64, 5, 5)).astype("f4")
    convolved = paddle.nn.functional.conv2d(
        paddle.to_tensor(maps), paddle.to_tensor(shortcut["layer1.0.downsample.0.weight"])
    )
    np.testing.assert_allclose(norm(convolved).numpy(), maps, rtol=1e-6)


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
    assert "differ in backbone.bn1._mean" in message
    assert "choose one: prefix='encoder_q.0.' or prefix='backbone.'" in message
    assert extract_backbone(arrays, prefix="backbone.").backbone["bn1._mean"][0] == 9
    assert extract_backbone(arrays, prefix="encoder_q.0").backbone["bn1._mean"][0] != 9
    assert extract_backbone(arrays, encoder="key").prefix == "encoder_k.0."


def test_a_prefix_chooses_and_a_wrong_one_is_named():
    arrays = {**behind("student.", backbone(seed=1)), **behind("teacher.", backbone(seed=2))}
    assert "2 backbones; choose one by its prefix: prefix='student.', prefix='teacher.'" in error_of(arrays)
    with options_of_commands():
        assert "choose one by its prefix: --prefix student., --prefix teacher." in error_of(arrays)
        assert "give --prefix or --encoder key, not both" in error_of(arrays, prefix="teacher.", encoder="key")
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
    for name in list(backbone_shapes(50))[50:60]:
        del arrays[f"backbone.{name}"]
    arrays["backbone.layer2.1.conv4.weight"] = np.zeros(1)
    message = error_of(arrays)
    assert "ResNet-50" in message
    assert f"11 missing: bn1._mean, {', '.join(list(backbone_shapes(50))[50:54])} and 6 more" in message
    assert "1 left over: layer2.1.conv4.weight" in message


def test_a_missing_block_is_said():
    arrays = {name: array for name, array in backbone(50).items() if not name.startswith("layer3.5.")}
    assert "closest to ResNet-50, but 15 missing: layer3.5.conv1.weight, " in error_of(arrays)
    arrays = {name: array for name, array in backbone(50).items() if not name.startswith("layer3.2.")}
    assert "closest to ResNet-50, but 15 missing: layer3.2.conv1.weight, " in error_of(arrays)


def test_a_wide_resnet_is_no_resnet50():
    arrays = backbone(50)
    arrays["layer1.0.conv1.weight"] = np.zeros((128, 64, 1, 1), "f4")
    assert "layer1.0.conv1.weight is [128, 64, 1, 1], not [64, 64, 1, 1]" in error_of(arrays)


def test_weights_that_are_not_finite_are_refused():
    arrays = behind("backbone.", backbone())
    arrays["backbone.layer4.1.bn2._variance"][3] = np.nan
    arrays["backbone.conv1.weight"][0, 0, 0, 0] = np.inf
    assert "not finite (the training diverged?): conv1.weight, layer4.1.bn2._variance" in error_of(arrays)


def torch_named(arrays: Arrays) -> Arrays:
    """The same under torch's names of the statistics, with counters."""
    renamed = {}
    for name, array in arrays.items():
        renamed[re.sub("_mean$", "running_mean", re.sub("_variance$", "running_var", name))] = array
        if name.endswith("_variance"):
            renamed[name.replace("_variance", "num_batches_tracked")] = np.array(7, "i8")
    return renamed


@pytest.mark.parametrize("prefix", ["", "backbone.", "module."])
def test_torch_names_become_paddles(prefix):
    taken = extract_backbone(behind(prefix, torch_named(backbone())))
    assert same(taken.backbone, backbone())
    assert (taken.vocabulary, taken.prefix) == ("torchvision", prefix)
    assert taken.kind == (f"backbone behind '{prefix}'" if prefix else "backbone") + ", torchvision names"
    assert taken.dropped == {"num_batches_tracked": 20}


def test_names_of_two_vocabularies_do_not_mix():
    arrays = backbone()
    arrays["bn1.num_batches_tracked"] = np.array(7, "i8")
    assert "closest to ResNet-18, but 1 left over: bn1.num_batches_tracked" in error_of(arrays)
    arrays = torch_named(backbone())
    arrays["bn1._mean"] = arrays.pop("bn1.running_mean")
    message = error_of(arrays)
    assert "torchvision's ResNet-18, but 1 missing: bn1.running_mean; 1 left over: bn1._mean" in message


@pytest.mark.parametrize(("encoder", "seed"), [("query", 1), ("key", 2)])
@pytest.mark.parametrize(
    ("kind", "outer", "prefixes", "others"),
    [
        ("mmpretrain", "", ("backbone.", "encoder_k.module.0."), ("neck.mlp.0.weight", "encoder_k.steps", "queue")),
        ("OpenSelfSup", "", ("encoder_q.0.", "encoder_k.0."), ("encoder_q.1.mlp.0.weight", "queue")),
        ("OpenSelfSup", "module.", ("encoder_q.0.", "encoder_k.0."), ("encoder_q.1.mlp.0.weight", "queue")),
        ("MoCo", "module.", ("encoder_q.", "encoder_k."), ("encoder_q.fc.0.weight", "encoder_k.fc.0.weight", "queue")),
    ],
)
def test_a_torch_training_checkpoint_gives_the_wanted_encoder(kind, outer, prefixes, others, encoder, seed):
    arrays = arrays_named(*others)
    for number, prefix in enumerate(prefixes, start=1):
        arrays |= behind(prefix, torch_named(backbone(seed=number)))
    taken = extract_backbone(behind(outer, arrays), encoder=encoder)
    assert same(taken.backbone, backbone(seed=seed))
    assert taken.kind == f"{kind} pre-training checkpoint"
    assert taken.fc is None  # MoCo's fc is a projection, no classifier


@pytest.mark.parametrize(
    ("vocabulary", "missing"),
    [
        ("paddledetection", "res4.res4b7.branch2b.norm._mean"),
        ("paddleclas", "blocks.14.conv1.bn._mean"),
        ("detectron2", "res4.7.conv2.norm.running_mean"),
        ("torchvision", "layer3.7.bn2.running_mean"),
    ],
)
def test_other_engines_become_paddles_and_must_be_whole(vocabulary, missing):
    arrays = translate(backbone(101), vocabulary, 101)
    taken = extract_backbone(arrays)
    assert same(taken.backbone, backbone(101))
    assert (taken.vocabulary, taken.depth) == (vocabulary, 101)
    damaged = {name: array for name, array in arrays.items() if name != missing}
    assert f"'s ResNet-101, but 1 missing: {missing}" in error_of(damaged)
    added = {**arrays, missing.replace("ean", "edian"): np.zeros(1, "f4")}
    assert f"1 left over: {missing.replace('ean', 'edian')}" in error_of(added)
    assert f"{missing} is [3], not [256]" in error_of({**arrays, missing: np.zeros(3, "f4")})
    assert f"{missing} is int32" in error_of({**arrays, missing: np.zeros(256, "i4")})
    assert missing in error_of({**arrays, missing: np.full(256, np.nan, "f4")})
    assert extract_backbone({**arrays, "fpn.lateral.weight": np.zeros(1, "f4")}).dropped["fpn."] == 1


def test_a_vocabulary_can_be_demanded():
    assert same(extract_backbone(backbone(), vocabulary="paddle").backbone, backbone())
    assert "no names of detectron2 in the file; it has those of paddle.vision" in error_of(
        backbone(), vocabulary="detectron2"
    )
    both = {**backbone(seed=1), **translate(backbone(seed=2), "detectron2", 18)}
    assert same(extract_backbone(both, vocabulary="detectron2").backbone, backbone(seed=2))


@pytest.mark.parametrize("vocabulary", ["paddleclas", "paddledetection"])
def test_the_shortcut_that_only_two_engines_have(vocabulary):
    arrays = translate(backbone(), vocabulary, 18)
    kernel, mean = (
        name
        for name in arrays
        if ".short." in name
        and re.search(r"\.0\.|2a\.", name.split("short")[0])
        and name.endswith(("conv.weight", "_mean"))
    )
    assert arrays[kernel].shape == (64, 64, 1, 1)
    assert extract_backbone(arrays).dropped == {"identity shortcut": 5}
    without = {name: array for name, array in arrays.items() if kernel.split("conv.weight")[0] not in name}
    assert len(without) == 100
    assert same(extract_backbone(without).backbone, backbone())
    trained = {**arrays, kernel: arrays[kernel] * 1.01}
    assert f"has a shortcut convolution in its first block ({kernel})" in error_of(trained)
    assert "shortcut convolution" in error_of({**arrays, mean: arrays[mean] + 0.1})
    del arrays[mean]
    assert f"1 missing: {mean}" in error_of(arrays)
    assert len(translate(backbone(50), vocabulary, 50)) == 265


def test_no_backbone_is_said():
    assert "no ResNet backbone: expected names like layer1.0.conv1.weight (paddle.vision), blocks.0" in (
        message := error_of(arrays_named("a", "b.c"))
    )
    assert message.endswith("found a, b.c")
    assert error_of({}).endswith("found nothing")


# The table in a checkpoint


def test_the_table_is_found_plain_or_wrapped():
    table = arrays_named("a", "b")
    assert unwrap(table) is table
    for wrapper in ("state_dict", "model", "model_state_dict"):
        assert unwrap({"epoch": 3, wrapper: table, "optimizer": {"c": np.ones(1)}}) is table


def test_nested_tables_are_one_with_their_places_as_prefixes():
    """DINO's checkpoints hold two networks, VISSL's one far inside."""
    student, teacher = (
        behind(p, torch_named(backbone(seed=s))) for p, s in (("module.backbone.", 1), ("backbone.", 2))
    )
    dino = {"student": student, "teacher": teacher, "epoch": 3, "optimizer": {"state": {0: {"m": np.ones(1)}}}}
    table = unwrap(dino | {"dino_loss": {"center": np.zeros((1, 4), "f4")}})
    assert "prefix='student.module.backbone.', prefix='teacher.backbone.'" in error_of(table)
    assert same(extract_backbone(table, prefix="teacher.backbone").backbone, backbone(seed=2))
    trunk = behind("_feature_blocks.", torch_named(backbone(seed=3)))
    model = {"trunk": trunk, "heads": {"0.clf.0.weight": np.zeros((3, 512), "f4")}}
    vissl = {"phase_idx": 1, "loss": {"name": "x"}, "classy_state_dict": {"base_model": {"model": model, "meta": {}}}}
    taken = extract_backbone(unwrap(vissl))
    assert same(taken.backbone, backbone(seed=3))
    assert taken.prefix == "classy_state_dict.base_model.model.trunk._feature_blocks."
    assert beside(dino) == ("epoch", "optimizer")
    assert beside(vissl) == ("phase_idx", "loss")
    again = {"a": teacher}
    for _ in range(50):
        again = {str(number): again for number in range(10)}  # 10^50 tables for who visits them all
    assert len(unwrap(again)) == len(teacher)


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
