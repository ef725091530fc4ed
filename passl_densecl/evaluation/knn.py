"""Weighted k-nearest-neighbor classification on frozen features.

Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018, section 3.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_SIMILARITIES_AT_ONCE = 2**24  # 64 MiB of float32


class Neighbors(NamedTuple):
    """The k nearest vectors of a bank for each of M vectors, nearest first."""

    similarity: np.ndarray  # (M, k) float32 cosines; -inf where the bank has fewer than k vectors
    labels: np.ndarray  # (M, k) int64

    @staticmethod
    def merge(parts: Sequence[Neighbors], k: int) -> Neighbors:
        """The k nearest of several banks together; for equal cosines the earlier bank comes first."""
        similarity = np.concatenate([part.similarity for part in parts], axis=1)
        labels = np.concatenate([part.labels for part in parts], axis=1)
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        return Neighbors(np.take_along_axis(similarity, order, axis=1), np.take_along_axis(labels, order, axis=1))


def knn_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    val_features: np.ndarray,
    val_labels: np.ndarray,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """(N, C), (N,), (M, C), (M,) → top-1, a share from 0 to 1.

    Each of the k training vectors with the largest cosine votes for its label with weight exp(cosine / temperature);
    for equal sums the smaller label wins. Labels are integers from 0.

    Raises:
        ValueError: k is not from 1 to N, sizes do not fit, or a label is negative.
    """
    return knn_accuracies(train_features, train_labels, val_features, val_labels, [k], temperature)[k]


def knn_accuracies(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    val_features: np.ndarray,
    val_labels: np.ndarray,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
) -> dict[int, float]:
    """As :func:`knn_accuracy`, for several k at the cost of the largest."""
    if len(train_features) != len(train_labels) or len(val_features) != len(val_labels):
        raise ValueError(
            f"{len(train_features)} and {len(val_features)} vectors, "
            f"but {len(train_labels)} and {len(val_labels)} labels"
        )
    for k in ks:
        if not 1 <= k <= len(train_features):
            raise ValueError(f"k must be from 1 to the number of training vectors, {len(train_features)}; got {k}")
    if not len(val_labels):
        raise ValueError("no validation vectors")
    train_labels, val_labels = np.asarray(train_labels), np.asarray(val_labels)
    if min(train_labels.min(), val_labels.min()) < 0:
        raise ValueError("a label is negative: the images are not labeled")
    neighbors = nearest(train_features, train_labels, val_features, max(ks))
    return {k: float((vote(neighbors, k, temperature) == val_labels).mean()) for k in ks}


def nearest(train_features: np.ndarray, train_labels: np.ndarray, val_features: np.ndarray, k: int) -> Neighbors:
    """(N, C), (N,), (M, C) → the k nearest by cosine; a bank of fewer than k vectors is padded with cosines of -inf."""
    bank = _unit(train_features)  # (N, C)
    labels = np.asarray(train_labels, np.int64)
    kept = min(k, len(bank))
    chunk = max(1, _SIMILARITIES_AT_ONCE // len(bank))
    parts = []
    for start in range(0, len(val_features), chunk):
        similarity = _unit(val_features[start : start + chunk]) @ bank.T  # (chunk, N)
        some = np.argpartition(-similarity, kept - 1, axis=1)[:, :kept]
        parts.append(Neighbors(np.take_along_axis(similarity, some, axis=1), labels[some]))
    similarity = np.full((len(val_features), k), -np.inf, np.float32)
    padded = np.zeros((len(val_features), k), np.int64)
    similarity[:, :kept] = np.concatenate([part.similarity for part in parts])
    padded[:, :kept] = np.concatenate([part.labels for part in parts])
    return Neighbors.merge([Neighbors(similarity, padded)], k)


def vote(neighbors: Neighbors, k: int, temperature: float) -> np.ndarray:
    """(M,) int64: the label with the largest sum of weights among each vector's k nearest."""
    closeness, labels = neighbors.similarity[:, :k], neighbors.labels[:, :k]
    # Relative to the closest: no decision changes, and a low temperature cannot overflow.
    weights = np.exp((closeness - closeness[:, :1]).astype(np.float64) / temperature)
    votes = np.zeros((len(labels), int(labels.max()) + 1))
    np.add.at(votes, (np.arange(len(labels))[:, None], labels), weights)
    return votes.argmax(axis=1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """(N, C) → float32 unit rows; zero rows stay zero."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
