"""The model: key encoder, gradients, projections and initial weights."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import paddle
import pytest

from passl_densecl.config import BackboneSpec, HeadSpec
from passl_densecl.models import DenseCL, Encoder, Projections, build_backbone, match, normalize
from passl_densecl.models.losses import info_nce_plain

HEADS = {"hidden_dim": 16, "out_dim": 8}


def small(**changes) -> DenseCL:
    heads = HeadSpec(**HEADS | {key: changes.pop(key) for key in ("num_grid", "dense") if key in changes})
    backbone = BackboneSpec(18, last_stride=changes.pop("last_stride", 2))
    model = DenseCL(backbone, heads, **{"queue_len": 12, "momentum": 0.9} | changes)
    model.train()
    return model


def frozen_keys(**changes) -> DenseCL:
    """A model whose key encoder never changes."""
    model = small(**changes)
    model.momentum = 1.0
    return model


def images(count: int, seed: int = 0, side: int = 64) -> paddle.Tensor:
    return paddle.to_tensor(np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def disturb(encoder: paddle.nn.Layer, seed: int = 5) -> None:
    rng = np.random.default_rng(seed)
    for name, parameter in encoder.named_parameters():
        if not name.endswith(("_mean", "_variance")):
            noise = rng.standard_normal(parameter.shape).astype("float32")
            parameter.set_value(parameter.numpy() + 0.05 * noise)


def state(layer: paddle.nn.Layer) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in layer.state_dict().items()}


def parts(projections: Projections) -> dict[str, np.ndarray]:
    names = ("global_vector", "features", "dense", "dense_mean")
    return {name: getattr(projections, name).numpy() for name in names}


# ---------------------------------------------------------------- keys


def test_keys_come_from_the_key_encoder_alone():
    model, batch = frozen_keys(), images(4)
    before = parts(model.encode_keys(batch, micro_batch_size=2).local)
    disturb(model.query_encoder)
    for name, value in parts(model.encode_keys(batch, micro_batch_size=2).local).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    disturb(model.key_encoder)
    for name, value in parts(model.encode_keys(batch, micro_batch_size=2).local).items():
        assert np.abs(value - before[name]).max() > 1e-3, name


def test_the_moving_average_comes_before_the_keys():
    model, batch = small(momentum=0.0), images(4)
    disturb(model.query_encoder)
    keys = model.encode_keys(batch, micro_batch_size=4)
    with paddle.no_grad():
        expected = parts(model.query_encoder(normalize(batch)))
    for name, value in parts(keys.local).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6, err_msg=name)


def test_moving_average_equals_its_closed_form_for_trained_weights_only():
    model = small(momentum=0.9)
    start = state(model.key_encoder)
    for name, parameter in model.key_encoder.named_parameters():
        if name.endswith(("_mean", "_variance")):
            parameter.set_value(np.full(parameter.shape, 7, "float32"))
    queries = []
    for step in range(4):
        disturb(model.query_encoder, seed=step)
        for name, parameter in model.query_encoder.named_parameters():
            if name.endswith(("_mean", "_variance")):
                parameter.set_value(np.full(parameter.shape, 3 + step, "float32"))
        queries.append(state(model.query_encoder))
        model.update_key_encoder()
    for name, value in state(model.key_encoder).items():
        if name.endswith(("_mean", "_variance")):
            assert (value == 7).all(), name
            continue
        expected = 0.9**4 * start[name] + sum(
            0.1 * 0.9 ** (3 - step) * query[name] for step, query in enumerate(queries)
        )
        np.testing.assert_allclose(value, expected, atol=1e-5, err_msg=name)
        assert np.abs(value - start[name]).max() > 1e-3, name


def test_no_gradient_reaches_keys_queues_or_the_key_encoder():
    model, batch = small(), images(4)
    keys = model.encode_keys(batch, micro_batch_size=2)
    for part in (keys.global_vector, keys.dense_mean, keys.local.features, keys.local.dense):
        assert part.stop_gradient
    key = model.key_encoder(normalize(batch))  # even without no_grad
    assert key.global_vector.stop_gradient
    assert key.dense.stop_gradient
    query = model.query_encoder(normalize(images(4, seed=1)))
    assert query.features.stop_gradient  # no gradient through the correspondence
    losses = model.losses(query, key, 0.5)
    global_loss, dense_loss = losses["global_loss"], losses["dense_loss"]
    (global_loss + dense_loss).backward()
    assert all(parameter.grad is None for parameter in model.key_encoder.parameters())
    assert all(buffer.grad is None for buffer in model.buffers())
    for name, parameter in model.query_encoder.named_parameters():
        if name.endswith(("_mean", "_variance")):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert np.isfinite(parameter.grad.numpy()).all()
            assert np.abs(parameter.grad.numpy()).max() > 0, name


@pytest.mark.parametrize(("loss", "untouched"), [("global_loss", "dense_head"), ("dense_loss", "global_head")])
def test_each_loss_trains_its_own_head(loss, untouched):
    model, batch = small(), images(4)
    keys = model.encode_keys(batch, micro_batch_size=4)
    model(images(4, seed=1), keys.local, 0.5)[loss].backward()
    for name, parameter in model.query_encoder.named_parameters():
        if not parameter.stop_gradient:
            touched = parameter.grad is not None and np.abs(parameter.grad.numpy()).max() > 0
            assert touched != name.startswith(untouched), name


def test_running_statistics_are_each_encoders_own():
    model, batch = frozen_keys(), images(4)
    query_before = state(model.query_encoder)
    keys = model.encode_keys(batch, micro_batch_size=4)
    for name, value in state(model.query_encoder).items():
        np.testing.assert_array_equal(value, query_before[name], err_msg=name)
    with paddle.no_grad():
        first = model.key_encoder.backbone.conv1(normalize(batch)).numpy()
    mean = model.key_encoder.backbone.bn1._mean.numpy()
    np.testing.assert_allclose(mean, 0.1 * first.mean(axis=(0, 2, 3)), atol=1e-5)  # Paddle's momentum 0.9, from 0
    key_before = state(model.key_encoder)
    model(images(4, seed=1), keys.local, 0.5)
    for name, value in state(model.key_encoder).items():
        np.testing.assert_array_equal(value, key_before[name], err_msg=name)
    assert not np.array_equal(model.query_encoder.backbone.bn1._mean.numpy(), query_before["backbone.bn1._mean"])


def test_shuffled_keys_are_returned_in_order():
    model, batch = frozen_keys(), images(6)
    order = np.array([3, 0, 5, 1, 4, 2])
    shuffled = model.encode_keys(batch, micro_batch_size=2, order=order)
    expected = {}
    with paddle.no_grad():
        for start in (0, 2, 4):
            group = order[start : start + 2]
            for row, part in zip(group, range(2), strict=True):
                whole = parts(model.key_encoder(normalize(paddle.to_tensor(batch.numpy()[group]))))
                expected[row] = {name: value[part] for name, value in whole.items()}
    plain = parts(model.encode_keys(batch, micro_batch_size=2).local)
    for name, value in parts(shuffled.local).items():
        for row in range(6):
            np.testing.assert_allclose(value[row], expected[row][name], atol=1e-6, err_msg=f"{name} of image {row}")
        assert np.abs(value - plain[name]).max() > 1e-4, "other neighbors in BatchNorm, other keys"
    np.testing.assert_array_equal(shuffled.global_vector.numpy(), shuffled.local.global_vector.numpy())
    np.testing.assert_array_equal(shuffled.dense_mean.numpy(), shuffled.local.dense_mean.numpy())


def test_the_order_changes_nothing_in_eval_mode():
    model, batch = frozen_keys(), images(6)
    model.eval()
    plain = parts(model.encode_keys(batch, micro_batch_size=3).local)
    order = np.array([5, 3, 1, 0, 2, 4])
    for name, value in parts(model.encode_keys(batch, micro_batch_size=2, order=order).local).items():
        np.testing.assert_allclose(value, plain[name], atol=1e-6, err_msg=name)


def test_the_queues_store_global_keys_and_dense_means():
    model, batch = small(), images(4)
    before = model.global_queue.keys.numpy().copy()
    keys = model.encode_keys(batch, micro_batch_size=4)
    model.losses(model.query_encoder(normalize(batch)), keys.local, 0.5)
    np.testing.assert_array_equal(model.global_queue.keys.numpy(), before)  # unchanged before `enqueue`
    model.enqueue(keys)
    np.testing.assert_array_equal(model.global_queue.keys.numpy()[:4], keys.local.global_vector.numpy())
    np.testing.assert_array_equal(model.dense_queue.keys.numpy()[:4], keys.local.dense_mean.numpy())
    np.testing.assert_array_equal(model.global_queue.keys.numpy()[4:], before[4:])


def test_single_cells_in_the_place_of_dense_means():
    """Image n leaves the cell that was drawn for image n, wherever the shuffle put it; nothing else changes."""
    model, batch = frozen_keys(last_stride=1), images(6)
    model.eval()
    draws = np.array([0.0, 0.3, 0.5, 0.99, 0.7, 0.1])
    plain = model.encode_keys(batch, micro_batch_size=2)
    keys = model.encode_keys(batch, micro_batch_size=2, order=np.array([3, 0, 5, 1, 4, 2]), cells=draws)
    dense = plain.local.dense.numpy()  # (6, D, S)
    expected = dense[np.arange(6), :, (draws * dense.shape[2]).astype(int)]
    assert dense.shape[2] == 16
    np.testing.assert_allclose(keys.dense_mean.numpy(), expected, atol=1e-6)
    for name in ("global_vector", "features", "dense"):
        np.testing.assert_allclose(parts(keys.local)[name], parts(plain.local)[name], atol=1e-6, err_msg=name)
    model.enqueue(keys)
    np.testing.assert_array_equal(model.dense_queue.keys.numpy()[:6], keys.dense_mean.numpy())


def test_given_matches_take_the_place_of_the_most_similar_features():
    model, batch = frozen_keys(last_stride=1), images(4)
    query, key = model.query_encoder(normalize(images(4, seed=1))), model.encode_keys(batch, micro_batch_size=4).local
    found = match(query.features, key.features)
    chosen, given = (model.losses(query, each, 0.5) for each in (key, replace(key, matches=found)))
    for name, value in chosen.items():
        assert float(given[name]) == pytest.approx(float(value), rel=1e-6), name
    # Of the first image alone, each cell with the cell of the same place.
    matches = np.full(found.shape, -1)
    matches[0] = np.arange(found.shape[1])
    vectors = (part.dense[0].transpose([1, 0]) for part in (query, key))
    expected, _ = info_nce_plain(*vectors, model.dense_queue.keys, model.temperature)
    losses = model.losses(query, replace(key, matches=paddle.to_tensor(matches)), 0.5)
    assert float(losses["dense_loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(expected) != pytest.approx(float(chosen["dense_loss"]), rel=1e-3)


# ---------------------------------------------------------------- projections


def test_shapes_and_lengths_of_projections():
    encoder = Encoder(BackboneSpec(18), HeadSpec(hidden_dim=16, out_dim=8))
    with paddle.no_grad():
        out = encoder(normalize(images(3, side=96)))
        backbone = encoder.backbone(normalize(images(3, side=96)))
    assert backbone.shape == [3, 512, 3, 3]
    assert out.global_vector.shape == [3, 8]
    assert out.features.shape == [3, 512, 9]
    assert out.dense.shape == [3, 8, 9]
    assert out.dense_mean.shape == [3, 8]
    for name in ("global_vector", "dense", "dense_mean"):
        np.testing.assert_allclose(np.linalg.norm(parts(out)[name], axis=1), 1, atol=1e-5, err_msg=name)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_projections_are_those_of_the_paper():
    """Global: pool, then the head. Dense mean: over positions, before the vectors are normalized."""
    encoder = Encoder(BackboneSpec(18), HeadSpec(hidden_dim=16, out_dim=8))
    features = paddle.to_tensor(np.random.default_rng(2).random((2, 512, 2, 2), dtype=np.float32))
    with paddle.no_grad():
        out = encoder.project(features)
        dense = encoder.dense_head(features).numpy().reshape(2, 8, 4)
        global_vector = encoder.global_head(features.mean(axis=[2, 3])).numpy()
    np.testing.assert_allclose(out.global_vector.numpy(), unit(global_vector), atol=1e-6)
    np.testing.assert_allclose(out.dense.numpy(), unit(dense), atol=1e-6)
    np.testing.assert_allclose(out.dense_mean.numpy(), unit(dense.mean(axis=2)), atol=1e-6)


def test_num_grid_pools_the_dense_head_and_the_correspondence_alike():
    model = small(num_grid=3, last_stride=1)
    batch = images(2)
    keys = model.encode_keys(batch, micro_batch_size=2)
    assert keys.local.dense.shape == [2, 8, 9]
    assert keys.local.features.shape == [2, 512, 9]
    encoder = model.query_encoder
    features = paddle.to_tensor(np.random.default_rng(3).random((2, 512, 4, 4), dtype=np.float32))
    cells = [(0, 2), (1, 3), (2, 4)]  # adaptive windows of 3 cells over 4 positions
    rows = [[features.numpy()[:, :, a:b, c:d].mean(axis=(2, 3)) for c, d in cells] for a, b in cells]
    pooled = np.stack(rows).transpose(2, 3, 0, 1)
    with paddle.no_grad():
        out, by_hand = encoder.project(features), encoder.dense_head(paddle.to_tensor(pooled)).numpy().reshape(2, 8, 9)
    np.testing.assert_allclose(out.features.numpy(), pooled.reshape(2, 512, 9), atol=1e-6)
    np.testing.assert_allclose(out.dense.numpy(), unit(by_hand), atol=1e-5)
    whole = encoder.global_head(features.mean(axis=[2, 3])).numpy()  # the global branch uses the whole map
    np.testing.assert_allclose(out.global_vector.numpy(), unit(whole), atol=1e-6)
    losses = model(batch, keys.local, 0.5)
    assert all(math.isfinite(float(value)) for value in losses.values())


def test_rows_and_concat_are_inverse():
    encoder = Encoder(BackboneSpec(18), HeadSpec(hidden_dim=16, out_dim=8))
    with paddle.no_grad():
        out = encoder(normalize(images(3)))
    for name, value in parts(Projections.concat([out.rows(slice(0, 1)), out.rows(slice(1, 3))])).items():
        np.testing.assert_array_equal(value, parts(out)[name])


# ---------------------------------------------------------------- without the dense branch


def test_moco_v2_is_the_global_branch_of_the_same_model():
    full, half, batch = small(), small(dense=False), images(4)
    assert half.dense_queue is None
    assert half.query_encoder.dense_head is None
    assert not [name for name in half.state_dict() if "dense" in name]
    assert set(half.state_dict()) == {name for name in full.state_dict() if "dense" not in name}
    full_keys, half_keys = (model.encode_keys(batch, micro_batch_size=2) for model in (full, half))
    assert half_keys.dense_mean is None
    assert half_keys.local.dense is None
    assert half_keys.local.features is None
    losses = half(images(4, seed=1), half_keys.local, 0.0)
    assert list(losses) == ["loss", "global_loss", "global_top1"]
    expected = full(images(4, seed=1), full_keys.local, 0.0)
    assert list(expected) == ["loss", "global_loss", "global_top1", "dense_loss", "dense_top1"]
    for name in ("loss", "global_loss"):
        assert float(losses[name]) == pytest.approx(float(expected[name]), abs=1e-6)
    assert float(losses["global_top1"]) == float(expected["global_top1"])
    half.enqueue(half_keys)
    np.testing.assert_array_equal(half.global_queue.keys.numpy()[:4], half_keys.global_vector.numpy())


# ---------------------------------------------------------------- initial weights


@pytest.fixture(scope="module")
def wide():
    return Encoder(BackboneSpec(18), HeadSpec(hidden_dim=256, out_dim=128), seed=1)


def test_backbone_weights_start_kaiming_normal_fan_out(wide):
    names = [f"layer{stage}.{block}.conv{i}" for stage in (1, 2, 3, 4) for block in (0, 1) for i in (1, 2)]
    for name in ("conv1", *names, "layer2.0.downsample.0"):
        layer = dict(wide.backbone.named_sublayers())[name]
        outputs, _, height, width = layer.weight.shape
        deviation = math.sqrt(2 / (outputs * height * width))
        values = layer.weight.numpy()
        assert values.std() == pytest.approx(deviation, rel=0.04), name
        assert abs(values.mean()) < 4 * deviation / math.sqrt(values.size), name
        assert np.abs(values).max() > 3 * deviation, name  # a normal distribution has tails
    for name, parameter in wide.backbone.named_parameters():
        if len(parameter.shape) == 1:  # BatchNorm, the last one of a block as well
            start = 1.0 if name.endswith((".weight", "_variance")) else 0.0
            assert (parameter.numpy() == start).all(), name


def test_global_head_starts_kaiming_normal_fan_in_with_zero_biases(wide):
    for position, fan_in in ((0, 512), (2, 256)):
        layer = wide.global_head[position]
        assert layer.weight.shape[0] == fan_in
        assert layer.weight.numpy().std() == pytest.approx(math.sqrt(2 / fan_in), rel=0.03)
        assert (layer.bias.numpy() == 0).all()


def test_dense_head_starts_uniform_within_its_fan_in(wide):
    for position, fan_in in ((0, 512), (2, 256)):
        bound = 1 / math.sqrt(fan_in)
        for parameter in (wide.dense_head[position].weight, wide.dense_head[position].bias):
            values = parameter.numpy()
            assert np.abs(values).max() <= bound
            assert np.abs(values).max() > 0.95 * bound
            assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.12)


def test_key_encoder_starts_as_a_copy_and_is_separate():
    model = small()
    query, key = state(model.query_encoder), state(model.key_encoder)
    assert query.keys() == key.keys()
    for name in query:
        np.testing.assert_array_equal(query[name], key[name], err_msg=name)
    assert all(parameter.stop_gradient for parameter in model.key_encoder.parameters())
    disturb(model.query_encoder)
    for name, value in state(model.key_encoder).items():
        np.testing.assert_array_equal(value, key[name], err_msg=name)


def test_weights_depend_on_the_seed_only():
    first = state(small(seed=3))
    paddle.seed(77)
    np.random.seed(77)
    paddle.nn.Linear(3, 3)
    again, other = state(small(seed=3)), state(small(seed=4))
    for name, value in first.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    changed = [name for name, value in first.items() if not np.array_equal(other[name], value)]
    random = [name for name in first if value_is_random(name, first[name])]
    assert set(changed) == set(random)
    assert len(random) > 40


def value_is_random(name: str, value: np.ndarray) -> bool:
    return value.ndim > 1 or (".dense_head." in name and name.endswith("bias"))


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize(("stem_stride", "last_stride", "side"), [(4, 2, 2), (2, 2, 4), (1, 2, 8), (4, 1, 4)])
def test_strides_change_the_map_but_not_the_weights(depth, stem_stride, last_stride, side, published):
    backbone = build_backbone(BackboneSpec(depth, stem_stride, last_stride=last_stride), seed=None)
    backbone.eval()
    assert {name: tuple(value.shape) for name, value in backbone.state_dict().items()} == published[depth]
    with paddle.no_grad():
        features = backbone(normalize(images(1)))
    assert features.shape == [1, 512 if depth == 18 else 2048, side, side]


@pytest.fixture(scope="module")
def published():
    """Names and shapes of paddle.vision's own networks."""
    found = {}
    for depth, build in ((18, paddle.vision.models.resnet18), (50, paddle.vision.models.resnet50)):
        network = build(num_classes=0)
        found[depth] = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    return found


def test_strides_and_a_global_initializer_keep_the_values_of_the_weights():
    plain = state(build_backbone(BackboneSpec(18), seed=2))
    own = paddle.nn.initializer.Constant(3.0)
    paddle.nn.initializer.set_global_initializer(own)
    try:
        dense = state(build_backbone(BackboneSpec(18, 1, last_stride=1), seed=2))
        assert paddle.base.initializer._global_weight_initializer_ is own
    finally:
        paddle.nn.initializer.set_global_initializer(None)
    for name, value in plain.items():
        np.testing.assert_array_equal(dense[name], value, err_msg=name)


def test_last_stride_1_computes_the_published_positions_and_those_between():
    wide, plain = build_backbone(BackboneSpec(18, last_stride=1), seed=2), build_backbone(BackboneSpec(18), seed=2)
    for network in (wide, plain):
        network.eval()
    block, published = wide.layer4[0], plain.layer4[0]
    features = paddle.to_tensor(np.random.default_rng(0).random((1, 256, 6, 6), dtype=np.float32))
    with paddle.no_grad():
        for ours, theirs in ((block.conv1, published.conv1), (block.downsample, published.downsample)):
            np.testing.assert_allclose(ours(features).numpy()[:, :, ::2, ::2], theirs(features).numpy(), atol=1e-4)


def count(layer: paddle.nn.Layer) -> int:
    return sum(math.prod(parameter.shape) for parameter in layer.parameters() if not parameter.stop_gradient)


@pytest.mark.parametrize(
    ("depth", "backbone", "heads"),
    # Linear or 1×1 conv C → 2048 → 128 with biases, twice
    [(18, 11_176_512, 2 * (512 * 2048 + 2048 + 2048 * 128 + 128)), (50, 23_508_032, 8_917_248)],
)
def test_number_of_trained_weights(depth, backbone, heads):
    encoder = Encoder(BackboneSpec(depth))
    assert count(encoder.backbone) == backbone
    assert count(encoder) - count(encoder.backbone) == heads
    if depth == 50:
        assert count(encoder) == 32_425_280


def test_images_are_normalized_with_the_statistics_of_imagenet():
    pixel = paddle.to_tensor(np.array([[[[0, 128, 255]]]], np.uint8))
    expected = (np.array([0, 128, 255]) / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    out = normalize(pixel)
    assert out.shape == [1, 3, 1, 1]
    np.testing.assert_allclose(out.numpy().ravel(), expected, atol=1e-5)
