"""Linear classifiers on cached features: against scikit-learn, against themselves alone, and where they could cheat."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from passl_densecl.errors import InputError
from passl_densecl.evaluation import linear
from passl_densecl.evaluation.linear import Sweep, linear_accuracy


def blobs(count, classes=4, width=12, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(7).standard_normal((classes, width))
    labels = rng.integers(0, classes, count)
    scale = np.linspace(0.1, 30, width)  # channels of very different sizes, as features have them
    vectors = (centers[labels] + spread * rng.standard_normal((count, width))) * scale + 5
    return vectors.astype(np.float32), labels


def test_reaches_what_logistic_regression_reaches():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (train, labels), (val, truth) = blobs(400, seed=1), blobs(600, seed=2)
    found = linear_accuracy([train], labels, val, truth, Sweep(epochs=60, batch_size=64))
    expected = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(train, labels).score(val, truth)
    assert 0.5 < expected < 0.98
    assert found.top1 == pytest.approx(expected, abs=0.02)
    assert found.top5 == 1.0  # of four classes
    assert found.standard_error == pytest.approx(np.sqrt(found.top1 * (1 - found.top1) / 600))


def test_the_minimum_is_that_of_scikit_learn():
    """With a weight decay the minimum is unique: full batches must walk to it."""
    from sklearn.linear_model import LogisticRegression

    train, labels = blobs(200, seed=3)
    trainer = linear._Trainer(Sweep(epochs=600, batch_size=200), 4, *linear.standardization(train))
    weight, bias = trainer.fit([train], labels, [(0.3, 0.01)])
    # sklearn minimizes C · Σ loss + ‖w‖² / 2, here it is the mean loss + decay · ‖w‖² / 2.
    other = LogisticRegression(C=1 / (200 * 0.01), tol=1e-8, max_iter=5000).fit(
        trainer.standardize(train).numpy(), labels
    )
    np.testing.assert_allclose(weight.numpy().T, other.coef_, atol=2e-3)
    centerd = bias.numpy() - bias.numpy().mean()
    np.testing.assert_allclose(centerd, other.intercept_ - other.intercept_.mean(), atol=2e-3)


def test_together_or_alone_is_the_same():
    train, labels = blobs(120, seed=4)
    trainer = linear._Trainer(Sweep(epochs=5, batch_size=32), 4, *linear.standardization(train))
    ones = [(0.01, 0.0), (0.3, 0.001), (0.1, 0.1)]
    together, bias = trainer.fit([train], labels, ones)
    for number, one in enumerate(ones):
        alone, own_bias = trainer.fit([train], labels, [one])
        part = slice(4 * number, 4 * number + 4)
        np.testing.assert_allclose(together.numpy()[:, part], alone.numpy(), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(bias.numpy()[part], own_bias.numpy(), rtol=1e-4, atol=1e-6)


def test_accuracy_is_exact_and_equal_logits_do_not_count_as_right():
    zeros = paddle.zeros([3, 2 * 6]), paddle.zeros([2 * 6])
    labels = np.arange(6).repeat(10)
    trainer = linear._Trainer(Sweep(), 6, np.zeros(3, np.float32), np.ones(3, np.float32))
    top1, top5 = trainer.accuracies(zeros, np.zeros((60, 3)), labels)
    np.testing.assert_allclose(top1, [1 / 6, 1 / 6])
    np.testing.assert_allclose(top5, [5 / 6, 5 / 6])
    rng = np.random.default_rng(0)
    vectors, weight, bias = rng.standard_normal((200, 3)), rng.standard_normal((3, 12)), rng.standard_normal(12)
    labels = rng.integers(0, 6, 200)
    weights = paddle.to_tensor(weight.astype("float32")), paddle.to_tensor(bias.astype("float32"))
    top1, top5 = trainer.accuracies(weights, vectors, labels)
    for number in range(2):
        logits = (vectors @ weight + bias)[:, 6 * number : 6 * number + 6]
        order = np.argsort(-logits, axis=1)
        assert top1[number] == (order[:, 0] == labels).mean()
        assert top5[number] == pytest.approx((order[:, :5] == labels[:, None]).any(axis=1).mean())


def test_a_rate_that_diverges_is_not_chosen():
    (train, labels), (val, truth) = blobs(200, seed=5), blobs(100, seed=6)
    found = linear_accuracy([train], labels, val, truth, Sweep((1e30, 0.03), (0.1,), 10, 32))
    assert found.lr == 0.03
    assert found.held_out[1e30, 0.1] < found.held_out[0.03, 0.1]


def test_validation_images_choose_nothing():
    (train, labels), (val, truth) = blobs(200, seed=5, spread=2.0), blobs(100, seed=6)
    sweep = Sweep((1e-6, 0.003, 0.3), (0.0, 0.3), epochs=4, batch_size=32)
    found = linear_accuracy([train], labels, val, truth, sweep)
    wrong = linear_accuracy([train], labels, val, (truth + 1) % 4, sweep)
    assert (found.lr, found.weight_decay, found.held_out) == (wrong.lr, wrong.weight_decay, wrong.held_out)
    assert found.top1 != wrong.top1


def test_copies_take_turns():
    (train, labels), (val, truth) = blobs(200, seed=1), blobs(300, seed=2)
    sweep = Sweep((0.1,), (0.0,), epochs=2, batch_size=50)
    useless = np.zeros_like(train)
    alone = linear_accuracy([train], labels, val, truth, sweep)
    assert linear_accuracy([train, train], labels, val, truth, sweep).top1 == alone.top1
    assert linear_accuracy([train, useless], labels, val, truth, sweep).top1 != alone.top1


def test_what_is_held_out():
    labels = np.array([0] * 20 + [1] * 5 + [2])
    out = linear.hold_out(labels, 0.1, seed=0)
    assert [int(out[labels == label].sum()) for label in range(3)] == [2, 1, 0]
    assert not np.array_equal(out, linear.hold_out(labels, 0.1, seed=1))
    with pytest.raises(InputError, match="no class has two training images"):
        linear.hold_out(np.arange(5), 0.1, seed=0)


def test_a_channel_that_never_varies_stays_finite():
    vectors = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    vectors[:, 1] = 3.3
    mean, deviation = linear.standardization(vectors, rows=16)
    np.testing.assert_allclose(mean, vectors.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(deviation[[0, 2]], vectors.std(axis=0)[[0, 2]], rtol=1e-5)
    assert deviation[1] == 1
