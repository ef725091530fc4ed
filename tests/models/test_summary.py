"""Weights and multiply-adds against closed forms and published figures."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import nn

from passl_densecl.config import BackboneSpec, HeadSpec, PretrainModelConfig
from passl_densecl.models import DenseCL, build_backbone
from passl_densecl.models.linear import LinearClassifier
from passl_densecl.models.summary import Cost, costs, summarize_linear, summarize_pretraining

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def by_hand(depth: int, size: int, stem_stride: int = 4, last_stride: int = 2) -> Cost:
    """The closed form: He et al. 2016, table 1, with the stride of a bottleneck in its 3×3 convolution."""
    side = -(-size // 2) if stem_stride > 1 else size
    stem = [(64, 3, 7, side)]  # (out, in, window, side of the output)
    side = -(-side // 2) if stem_stride == 4 else side
    layers, incoming = stem, 64
    for stage, blocks in enumerate(STAGES[depth]):
        width = 64 * 2**stage
        stride = (1, 2, 2, last_stride)[stage]
        outgoing = width if depth < 50 else 4 * width
        for block in range(blocks):
            before = side
            side = -(-side // (stride if block == 0 else 1))
            if depth < 50:
                layers += [(width, incoming, 3, side), (width, width, 3, side)]
            else:
                layers += [(width, incoming, 1, before), (width, width, 3, side), (outgoing, width, 1, side)]
            if incoming != outgoing:
                layers.append((outgoing, incoming, 1, side))
            incoming = outgoing
    return Cost(
        weights=sum(out * into * window**2 + 2 * out for out, into, window, _ in layers),
        statistics=sum(2 * out for out, *_ in layers),
        convolution=sum(out * into * window**2 * side**2 for out, into, window, side in layers),
        batch_norm=sum(2 * out * side**2 for out, _, _, side in layers),
    )


def backbone_cost(depth: int, size: int, stem_stride: int = 4, last_stride: int = 2) -> Cost:
    backbone = build_backbone(BackboneSpec(depth, stem_stride, last_stride), None)
    return sum(costs(backbone, paddle.zeros([1, 3, size, size])).values(), Cost())


def pretraining(**changes: object) -> PretrainModelConfig:
    return PretrainModelConfig.model_validate({"depth": 18, "queue_len": 256, "hidden_dim": 32, "out_dim": 8} | changes)


@pytest.mark.parametrize(("depth", "published"), [(18, 1.82), (50, 4.11), (101, 7.83), (152, 11.56)])
def test_backbone_costs_equal_the_published_ones_and_the_closed_form(depth, published):
    cost = backbone_cost(depth, 224)
    assert cost == by_hand(depth, 224)
    assert round(cost.multiply_adds / 1e9, 2) == published
    if depth == 50:
        assert cost.multiply_adds == 4_109_364_224  # mmpretrain's metafile of DenseCL, to the last digit


@pytest.mark.parametrize("stem_stride", [4, 2, 1])
@pytest.mark.parametrize("last_stride", [2, 1])
def test_strides_are_counted(stem_stride, last_stride):
    for depth, size in ((18, 75), (50, 32)):
        assert backbone_cost(depth, size, stem_stride, last_stride) == by_hand(depth, size, stem_stride, last_stride)


def test_densecl_r50_is_the_published_network():
    """Weights: mmpretrain's DenseCL metafile has 64,850,560 for both encoders."""
    model = pretraining(depth=50, hidden_dim=2048, out_dim=128, queue_len=65_536)
    summary = summarize_pretraining(model, 224, 65_536)
    assert {name: part.weights for name, part in summary.parts.items()} == {
        "backbone": 23_508_032,
        "global_head": 4_458_624,
        "dense_head": 4_458_624,
    }
    assert (summary.weights, summary.trained, summary.map_shape) == (64_850_560, 32_425_280, (2048, 7, 7))
    head = 2048 * 2048 + 2048 * 128
    forward = 4_109_364_224 + 50 * head  # one pooled vector and 49 positions
    assert summary.parts["global_head"].multiply_adds == head
    assert summary.parts["dense_head"].multiply_adds == 49 * head
    assert summary.training == {
        "query encoder, forward": forward,
        "query encoder, backward": 2 * forward,
        "key encoder, forward": forward,
        "global loss": 128 + 2 * 128 * 65_536,
        "dense matches": 49 * 49 * 2048,
        "dense loss": 49 * (128 + 2 * 128 * 65_536),
    }
    assert summary.training_multiply_adds == sum(summary.training.values())


@pytest.mark.parametrize(
    ("changes", "positions"),
    [({}, 4), ({"loss_lambda": 0.0}, 0), ({"num_grid": 3}, 9), ({"stem_stride": 2, "last_stride": 1}, 64)],
)
def test_a_summary_agrees_with_the_model_that_trains(changes, positions):
    config = pretraining(**changes)
    summary = summarize_pretraining(config, 64, 256)
    model = DenseCL(
        BackboneSpec(18, stem_stride=config.stem_stride, last_stride=config.last_stride),
        HeadSpec(hidden_dim=32, out_dim=8, num_grid=config.num_grid, dense=config.loss_lambda > 0),
        queue_len=256,
    )
    trained = [p for p in model.parameters() if not p.stop_gradient]
    assert summary.trained == sum(int(np.prod(p.shape)) for p in trained)
    state = {name: int(np.prod(value.shape)) for name, value in model.state_dict().items()}
    queues = sum(count for name, count in state.items() if name.endswith("queue.keys"))
    assert summary.queues[0] * summary.queues[1] * summary.queues[2] == queues
    statistics = sum(part.statistics for part in summary.parts.values())
    pointers = summary.queues[0]
    assert summary.weights + 2 * statistics + queues + pointers == sum(state.values())

    projections = model.query_encoder(paddle.zeros([1, 3, 64, 64]))
    assert (0 if projections.dense is None else projections.dense.shape[2]) == positions
    assert summary.training.get("dense loss", 0) == positions * (8 + 2 * 8 * 256)
    assert summary.training.get("dense matches", 0) == positions**2 * 512
    if positions:
        assert summary.parts["dense_head"].convolution == positions * (512 * 32 + 32 * 8)


def test_linear_evaluation_trains_its_last_layer_only():
    summary = summarize_linear(BackboneSpec(18, 4, 2), 64, 10)
    assert summary.parts["backbone"] == by_hand(18, 64)
    assert summary.parts["fc"] == Cost(weights=512 * 10 + 10, linear=512 * 10)
    assert (summary.weights, summary.trained) == (by_hand(18, 64).weights + 5130, 5130)
    assert summary.training_multiply_adds == by_hand(18, 64).multiply_adds + 2 * 5120
    trained = [p for p in LinearClassifier(BackboneSpec(18), 10).parameters() if not p.stop_gradient]
    assert sum(int(np.prod(p.shape)) for p in trained) == summary.trained


def test_groups_batches_and_repeated_layers_are_counted_and_hooks_are_removed():
    conv = nn.Conv2D(4, 6, 3, padding=1, groups=2)
    network = nn.Sequential(conv, nn.BatchNorm2D(6), nn.ReLU(), nn.Conv2D(6, 4, 1), conv)
    found = costs(network, paddle.zeros([3, 4, 5, 5]))
    assert sum(found.values(), Cost()).convolution == 25 * (2 * 6 * 2 * 9 + 4 * 6)  # `conv` runs twice
    assert found["1"] == Cost(weights=12, statistics=12, batch_norm=2 * 6 * 25)
    again = costs(network, paddle.zeros([1, 4, 5, 5]))
    assert again == found  # per image, for any batch; no hook of the first count is left


def test_an_unknown_layer_is_an_error():
    with pytest.raises(ValueError, match=r"0: the multiply-adds of a Conv1D are not known"):
        costs(nn.Sequential(nn.Conv1D(2, 2, 1)), paddle.zeros([1, 2, 4]))
