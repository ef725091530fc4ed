"""Weighted k-nearest-neighbour classification: how well classes lie together, with nothing trained."""

from __future__ import annotations

import numpy as np

_SIMILARITIES_AT_ONCE = 2**24  # 64 MiB of float32


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
    of equal sums the smaller label wins. Labels are integers from 0.
    Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018, section 3.4.

    Raises:
        ValueError: k is not from 1 to N, sizes do not fit, or a label is negative.
    """
    if len(train_features) != len(train_labels) or len(val_features) != len(val_labels):
        raise ValueError(
            f"{len(train_features)} and {len(val_features)} vectors, "
            f"but {len(train_labels)} and {len(val_labels)} labels"
        )
    if not 1 <= k <= len(train_features):
        raise ValueError(f"k must be from 1 to the number of training vectors, {len(train_features)}; got {k}")
    if not len(val_labels):
        raise ValueError("no validation vectors")
    train_labels, val_labels = np.asarray(train_labels), np.asarray(val_labels)
    if min(train_labels.min(), val_labels.min()) < 0:
        raise ValueError("a label is negative: the images are not labelled")
    classes = int(train_labels.max()) + 1
    bank = _unit(train_features)  # (N, C)
    chunk = max(1, _SIMILARITIES_AT_ONCE // len(bank))
    right = 0
    for start in range(0, len(val_features), chunk):
        similarity = _unit(val_features[start : start + chunk]) @ bank.T  # (chunk, N)
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        closeness = np.take_along_axis(similarity, nearest, axis=1)
        # Relative to the closest, which changes no decision and cannot overflow at a low temperature.
        weights = np.exp((closeness - closeness.max(axis=1, keepdims=True)).astype(np.float64) / temperature)
        votes = np.zeros((len(similarity), classes))
        np.add.at(votes, (np.arange(len(similarity))[:, None], train_labels[nearest]), weights)
        right += int((votes.argmax(axis=1) == val_labels[start : start + chunk]).sum())
    return right / len(val_labels)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """(N, C) → float32, rows of length 1 (a zero row stays)."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
