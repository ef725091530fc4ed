"""Weighted k-nearest neighbors, against answers worked out by hand and by a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest

from passl_densecl.evaluation import knn
from passl_densecl.evaluation.knn import Neighbors, knn_accuracies, knn_accuracy, nearest, vote


def by_hand(train, train_labels, val, val_labels, k, temperature):
    """The definition, one vector at a time."""
    right = 0
    for vector, label in zip(val, val_labels, strict=True):
        cosines = [float(vector @ other / np.linalg.norm(vector) / np.linalg.norm(other)) for other in train]
        votes: dict[int, float] = {}
        for index in sorted(range(len(train)), key=lambda i: -cosines[i])[:k]:
            votes[train_labels[index]] = votes.get(train_labels[index], 0.0) + math.exp(cosines[index] / temperature)
        right += max(sorted(votes), key=lambda name: votes[name]) == label
    return right / len(val)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 1.0), (60, 0.07)])
def test_equals_the_definition(k, temperature):
    rng = np.random.default_rng(3)
    train, val = rng.standard_normal((60, 8)), rng.standard_normal((40, 8))
    centers = rng.standard_normal((4, 8))
    train_labels, val_labels = rng.integers(0, 4, 60), rng.integers(0, 4, 40)
    train, val = train + centers[train_labels], val + centers[val_labels]
    expected = by_hand(train, train_labels, val, val_labels, k, temperature)
    assert 0.3 < expected < 1  # the case is neither trivial nor hopeless
    assert knn_accuracy(train, train_labels, val, val_labels, k, temperature) == expected


def test_chunks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(0)
    train, val, labels = rng.standard_normal((30, 5)), rng.standard_normal((25, 5)), rng.integers(0, 3, 30)
    whole = knn_accuracy(train, labels, val, labels[:25], k=7)
    monkeypatch.setattr(knn, "_SIMILARITIES_AT_ONCE", 30 * 4)
    assert knn_accuracy(train, labels, val, labels[:25], k=7) == whole


def test_length_of_a_vector_does_not_count():
    train = np.array([[1.0, 0.0], [0.0, 100.0]])
    val = np.array([[3.0, 1.0], [0.1, 0.2]])
    assert knn_accuracy(train, [0, 1], val, [0, 1], k=1) == 1.0
    assert knn_accuracy(train, [0, 1], val, [1, 0], k=1) == 0.0


def test_near_neighbors_outvote_many_far_ones():
    train = np.array([[1.0, 0.0], [0.5, 0.87], [0.5, 0.87], [0.5, 0.87]])
    val = np.array([[1.0, 0.05]])
    assert knn_accuracy(train, [0, 1, 1, 1], val, [0], k=4, temperature=0.07) == 1.0
    assert knn_accuracy(train, [0, 1, 1, 1], val, [1], k=4, temperature=10.0) == 1.0  # nearly unweighted: the majority


@pytest.mark.parametrize("temperature", [0.07, 1e-4])
def test_a_low_temperature_does_not_overflow(temperature):
    train = np.eye(3)
    with np.errstate(all="raise", under="ignore"):
        assert knn_accuracy(train, [0, 1, 2], train, [0, 1, 2], k=3, temperature=temperature) == 1.0


def test_refusals_name_the_number():
    vectors, labels = np.eye(3), [0, 1, 2]
    with pytest.raises(ValueError, match="from 1 to the number of training vectors, 3; got 4"):
        knn_accuracy(vectors, labels, vectors, labels, k=4)
    with pytest.raises(ValueError, match="but 2 and 3 labels"):
        knn_accuracy(vectors, labels[:2], vectors, labels, k=1)
    with pytest.raises(ValueError, match="not labeled"):
        knn_accuracy(vectors, [-1, -1, -1], vectors, labels, k=1)


def clouds():
    rng = np.random.default_rng(3)
    centers = rng.standard_normal((4, 8))
    train_labels, val_labels = rng.integers(0, 4, 90), rng.integers(0, 4, 70)
    train = rng.standard_normal((90, 8)) + centers[train_labels]
    return train, train_labels, rng.standard_normal((70, 8)) + centers[val_labels], val_labels


def test_several_k_at_once_are_the_single_ones():
    found = knn_accuracies(*clouds(), ks=[1, 90, 3], temperature=10.0)
    assert found == {k: knn_accuracy(*clouds(), k=k, temperature=10.0) for k in (1, 90, 3)}
    assert len(set(found.values())) == 3


def test_scikit_learn_predicts_the_same():
    from sklearn.neighbors import KNeighborsClassifier

    train, labels, val, _ = clouds()
    unit, val_unit = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (train, val))
    # Between vectors of length 1 the squared distance is 2 − 2·cosine.
    other = KNeighborsClassifier(20, weights=lambda distance: np.exp((1 - distance**2 / 2) / 0.07), algorithm="brute")
    expected = other.fit(unit, labels).predict(val_unit)
    np.testing.assert_array_equal(vote(nearest(train, labels, val, 20), 20, 0.07), expected)


@pytest.mark.parametrize("cuts", [[45], [3, 60], [5, 9, 88]])
def test_a_bank_in_parts_finds_what_the_whole_finds(cuts):
    train, labels, val, _ = clouds()
    parts = [nearest(*part, val, 20) for part in zip(np.split(train, cuts), np.split(labels, cuts), strict=True)]
    merged, whole = Neighbors.merge(parts, 20), nearest(train, labels, val, 20)
    np.testing.assert_allclose(merged.similarity, whole.similarity, rtol=1e-6)
    np.testing.assert_array_equal(merged.labels, whole.labels)
