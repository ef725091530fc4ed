"""The streamed InfoNCE against its plain form in float64, and the correspondence against the paper's loop."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest

from passl_densecl.models import losses
from passl_densecl.models.losses import gather_matches, info_nce, info_nce_plain, match


def unit(shape: tuple[int, ...], seed: int, axis: int = -1) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal(shape)
    return (vectors / np.linalg.norm(vectors, axis=axis, keepdims=True)).astype("float32")


def plain(*arrays: np.ndarray, temperature: float) -> tuple[float, float, np.ndarray]:
    """(loss, top-1, gradient of the query) of the plain form, in float64."""
    query, *others = (paddle.to_tensor(array.astype("float64")) for array in arrays)
    query.stop_gradient = False
    loss, top1 = info_nce_plain(query, *others, temperature)
    loss.backward()
    return float(loss), float(top1), query.grad.numpy()


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_the_streamed_loss_equals_the_plain_one(temperature):
    query, negatives = unit((12, 6), 0), unit((30, 6), 1)
    positive = unit((12, 6), 2)
    positive[:5] = query[:5]  # some positives beat every negative
    tensors = [paddle.to_tensor(part) for part in (query, positive, negatives)]
    tensors[0].stop_gradient = False
    loss, top1 = info_nce(*tensors, temperature)
    loss.backward()
    expected_loss, expected_top1, gradient = plain(query, positive, negatives, temperature=temperature)
    assert float(loss) == pytest.approx(expected_loss, rel=1e-5)
    assert float(top1) == pytest.approx(expected_top1)
    assert 0.4 < float(top1) < 1
    np.testing.assert_allclose(tensors[0].grad.numpy(), gradient, atol=1e-6, rtol=1e-4)
    assert tensors[1].grad is None
    assert tensors[2].grad is None


def test_only_used_queries_count():
    query, positive, negatives = unit((12, 6), 0), unit((12, 6), 2), unit((30, 6), 1)
    used = np.arange(12) % 3 > 0
    tensors = [paddle.to_tensor(part) for part in (query, positive, negatives)]
    tensors[0].stop_gradient = False
    loss, top1 = info_nce(*tensors, 0.2, paddle.to_tensor(used))
    loss.backward()
    expected_loss, expected_top1, gradient = plain(query[used], positive[used], negatives, temperature=0.2)
    assert float(loss) == pytest.approx(expected_loss, rel=1e-5)
    assert float(top1) == pytest.approx(expected_top1)
    np.testing.assert_allclose(tensors[0].grad.numpy()[used], gradient, atol=1e-6, rtol=1e-4)
    assert not tensors[0].grad.numpy()[~used].any()


def test_no_used_query_gives_zero_and_no_gradient():
    tensors = [paddle.to_tensor(unit((shape, 6), shape)) for shape in (4, 4, 9)]
    tensors[0].stop_gradient = False
    loss, top1 = info_nce(*tensors, 0.2, paddle.zeros([4], "bool"))
    loss.backward()
    assert (float(loss), float(top1)) == (0, 0)
    assert not tensors[0].grad.numpy().any()


def test_info_nce_is_exact_where_exponentials_overflow():
    query, positive, negatives = unit((4, 6), 3), -unit((4, 6), 3), unit((9, 6), 4)
    loss, _ = info_nce(*(paddle.to_tensor(part) for part in (query, positive, negatives)), 0.002)
    assert float(loss) == pytest.approx(plain(query, positive, negatives, temperature=0.002)[0], rel=1e-5)
    easy, _ = info_nce(*(paddle.to_tensor(part) for part in (query, query, negatives)), 0.002)
    assert 0 <= float(easy) < 1e-4


@pytest.mark.parametrize("queue_len", [1, 24, 4096])
def test_chance_is_the_logarithm_of_the_number_of_candidates(queue_len):
    one = unit((1, 8), 5)
    query, positive, negatives = (paddle.to_tensor(one.repeat(count, 0)) for count in (3, 3, queue_len))
    loss, top1 = info_nce(query, positive, negatives, 0.2)
    assert float(loss) == pytest.approx(math.log(queue_len + 1), rel=1e-5)
    assert float(top1) <= 1  # rounding decides ties


def test_top1_counts_positives_that_beat_every_negative():
    east, north = np.eye(2, dtype="float32")
    query = np.stack([east, east, north])
    positive = np.stack([east, north, north])  # the second is wrong
    _, top1 = info_nce(paddle.to_tensor(query), paddle.to_tensor(positive), paddle.to_tensor(unit((5, 2), 8)), 0.2)
    assert float(top1) == pytest.approx(2 / 3)


def test_match_is_the_loop_of_the_paper():
    batch, channels, queries, positions = 3, 5, 6, 7
    query, key = unit((batch, channels, queries), 10, axis=1), unit((batch, channels, positions), 11, axis=1)
    matches = match(paddle.to_tensor(query), paddle.to_tensor(key))
    assert matches.shape == [batch, queries]
    for image in range(batch):
        for position in range(queries):
            cosines = [float(query[image, :, position] @ key[image, :, other]) for other in range(positions)]
            assert int(matches[image, position]) == int(np.argmax(cosines))


def test_gathered_rows_belong_to_their_image_and_match():
    batch, dim, positions = 3, 4, 5
    dense = unit((batch, dim, positions), 13, axis=1)
    matches = np.random.default_rng(0).integers(0, positions, (batch, positions))
    rows = gather_matches(paddle.to_tensor(dense), paddle.to_tensor(matches)).numpy()
    assert rows.shape == (batch * positions, dim)
    for image in range(batch):
        for position in range(positions):
            np.testing.assert_array_equal(rows[image * positions + position], dense[image, :, matches[image, position]])


def test_match_recovers_a_permutation():
    features = unit((2, 16, 9), 14, axis=1)
    order = np.random.default_rng(1).permutation(9)
    matches = match(paddle.to_tensor(features[:, :, order]), paddle.to_tensor(features))
    np.testing.assert_array_equal(matches.numpy(), np.stack([order, order]))


def test_no_gradient_passes_the_match():
    features = paddle.to_tensor(unit((1, 4, 3), 15, axis=1), stop_gradient=False)
    assert match(features, features).stop_gradient


def test_similarities_are_exact_float32_on_gpus_too(monkeypatch):
    """Paddle's switch decides at every product whether its factors may be TF32."""
    state = {"tf32": True}
    monkeypatch.setattr(paddle.base.core, "get_cublas_switch", lambda: state["tf32"], raising=False)
    monkeypatch.setattr(paddle.base.core, "set_cublas_switch", lambda on: state.update(tf32=on), raising=False)
    matmul, seen = paddle.matmul, []

    def watched(*tensors, **options):
        seen.append(state["tf32"])
        return matmul(*tensors, **options)

    monkeypatch.setattr(paddle, "matmul", watched)
    with losses.exact_float32():  # factors with 12 bits after the point
        product = paddle.matmul(paddle.full([256, 256], 1 + 2**-12), paddle.full([256, 256], 2**-8))
    assert bool((product == 1 + 2**-12).all())
    vectors = paddle.randn([4, 8])
    losses.info_nce(vectors, vectors, vectors, 0.2)
    losses.match(paddle.randn([2, 8, 5]), paddle.randn([2, 8, 5]))
    assert seen == [False] * 4
    assert state == {"tf32": True}
