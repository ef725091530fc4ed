"""Linear classifiers on cached features: a whole sweep of learning rates and weight decays trained at once.

This is the fast preset. Beside the official recipe, which `tools/train.py` runs: features are computed once (or once for
each of a few augmented copies) instead of anew in every epoch, they are standardized, and the learning rate is chosen
instead of given. Figures are therefore comparable with each other, not with published ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import paddle

from passl_densecl.errors import InputError
from passl_densecl.tensors import to_tensor

MOMENTUM = 0.9


@dataclass(frozen=True)
class LinearResult:
    """Accuracies are shares from 0 to 1."""

    top1: float
    top5: float
    standard_error: float  # of top1, from the number of validation images
    lr: float  # chosen on the held-out part of the training images
    weight_decay: float
    held_out: dict[tuple[float, float], float]  # (lr, weight decay) → top-1 on the held-out part


def linear_accuracy(
    train: Sequence[np.ndarray],
    train_labels: np.ndarray,
    val: np.ndarray,
    val_labels: np.ndarray,
    *,
    lrs: Sequence[float] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    weight_decays: Sequence[float] = (0.0, 0.0001, 0.001, 0.01),
    epochs: int = 100,
    batch_size: int = 256,
    held_out: float = 0.1,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> LinearResult:
    """Copies of (N, C), (N,), (M, C), (M,) → top-1 and top-5 of a linear classifier on the validation vectors.

    Every combination is trained on 90 % of the training images and the one that is best on the rest is trained again on
    all of them; the validation images choose nothing. SGD with momentum 0.9, cosine to 0, weights from zero.

    Args:
        train: one array, or one for each augmented copy of the images, taken in turn from epoch to epoch.
        held_out: share of every class that chooses.
        progress: called with (epochs done, epochs in all).

    Raises:
        InputError: no class has two images, so that none can be held out.
    """
    train_labels, val_labels = np.asarray(train_labels), np.asarray(val_labels)
    classes = int(max(train_labels.max(), val_labels.max())) + 1
    mean, deviation = standardization(train[0])
    standard = _Standard(mean, deviation)
    combinations = list(itertools.product(lrs, weight_decays))
    chosen, shares = combinations[0], dict[tuple[float, float], float]()
    rounds = 1 if len(combinations) == 1 else 2
    if rounds == 2:
        out = hold_out(train_labels, held_out, seed)
        weights = _fit(
            [copy[~out] for copy in train],
            train_labels[~out],
            classes,
            combinations,
            standard,
            epochs,
            batch_size,
            seed,
            _part(progress, 0, epochs * rounds),
        )
        top1, _ = _judge(weights, train[0][out], train_labels[out], classes, standard)
        shares = dict(zip(combinations, top1.tolist(), strict=True))
        chosen = max(combinations, key=lambda one: shares[one])
    weights = _fit(
        train,
        train_labels,
        classes,
        [chosen],
        standard,
        epochs,
        batch_size,
        seed,
        _part(progress, epochs * (rounds - 1), epochs * rounds),
    )
    (top1,), (top5,) = (values.tolist() for values in _judge(weights, val, val_labels, classes, standard))
    return LinearResult(top1, top5, math.sqrt(top1 * (1 - top1) / len(val_labels)), *chosen, shares)


def standardization(vectors: np.ndarray, rows: int = 4096) -> tuple[np.ndarray, np.ndarray]:
    """(N, C) → (C,) mean and (C,) deviation over the rows; a channel that never varies has deviation 1."""
    total, squares = np.zeros(vectors.shape[1]), np.zeros(vectors.shape[1])
    for start in range(0, len(vectors), rows):
        part = vectors[start : start + rows].astype(np.float64)
        total, squares = total + part.sum(axis=0), squares + np.square(part).sum(axis=0)
    mean = total / len(vectors)
    variance = np.maximum(squares / len(vectors) - mean**2, 0)
    deviation = np.where(variance > 1e-10 * (1e-12 + mean**2), np.sqrt(variance), 1.0)
    return mean.astype(np.float32), deviation.astype(np.float32)


def hold_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """(N,) → (N,) bool: the share of every class, at least one of each that has two or more images."""
    rng = np.random.default_rng([seed, 0x401D])
    out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        out[rows[: min(len(rows) - 1, max(1, round(share * len(rows))))]] = True
    if not out.any():
        raise InputError(
            "no class has two training images: none can be held out to choose the learning rate; give one "
            "learning rate and one weight decay"
        )
    return out


@dataclass(frozen=True)
class _Standard:
    mean: np.ndarray
    deviation: np.ndarray

    def __call__(self, vectors: np.ndarray) -> paddle.Tensor:
        """(B, C) of any float type → float32 tensor, standardized."""
        return to_tensor((vectors.astype(np.float32) - self.mean) / self.deviation)


@paddle.no_grad()
def _fit(
    copies: Sequence[np.ndarray],
    labels: np.ndarray,
    classes: int,
    combinations: Sequence[tuple[float, float]],
    standard: _Standard,
    epochs: int,
    batch_size: int,
    seed: int,
    progress: Callable[[int], None],
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Weights (C, G·classes) and biases (G·classes) of G classifiers, one a combination: one product gives all logits."""
    count, batch_size = len(labels), min(batch_size, len(labels))
    steps = count // batch_size
    lrs, decays = (
        to_tensor(np.repeat(column, classes).astype("float32")) for column in zip(*combinations, strict=True)
    )
    weight = paddle.zeros([copies[0].shape[1], len(combinations) * classes])
    bias = paddle.zeros([len(combinations) * classes])
    speed, bias_speed = paddle.zeros_like(weight), paddle.zeros_like(bias)
    one_hot = np.eye(classes, dtype=np.float32)
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(count)
        vectors = copies[epoch % len(copies)]
        for step in range(steps):
            rows = order[step * batch_size : (step + 1) * batch_size]
            x = standard(vectors[rows])
            truth = to_tensor(one_hot[labels[rows]]).unsqueeze(1)  # (B, 1, classes)
            logits = (x @ weight + bias).reshape([len(rows), len(combinations), classes])
            error = (paddle.nn.functional.softmax(logits, axis=2) - truth).reshape([len(rows), -1]) / len(rows)
            rate = lrs * (0.5 + 0.5 * math.cos(math.pi * (epoch * steps + step) / (epochs * steps)))
            speed = MOMENTUM * speed + x.t() @ error + decays * weight
            bias_speed = MOMENTUM * bias_speed + error.sum(axis=0)
            weight, bias = weight - rate * speed, bias - rate * bias_speed
        progress(epoch + 1)
    return weight, bias


@paddle.no_grad()
def _judge(
    weights: tuple[paddle.Tensor, paddle.Tensor],
    vectors: np.ndarray,
    labels: np.ndarray,
    classes: int,
    standard: _Standard,
) -> tuple[np.ndarray, np.ndarray]:
    """(G,) top-1 and (G,) top-5, exact; of equal logits the smaller class comes first, one that diverged is never right."""
    weight, bias = weights
    hits = np.zeros((2, weight.shape[1] // classes))
    for start in range(0, len(vectors), 1024):
        truth = labels[start : start + 1024]
        logits = (standard(vectors[start : start + 1024]) @ weight + bias).numpy().reshape(len(truth), -1, classes)
        own = np.take_along_axis(logits, truth[:, None, None], axis=2)
        before = (logits > own) | ((logits == own) & (np.arange(classes) < truth[:, None, None]))
        rank = np.where(np.isfinite(logits).all(axis=2), before.sum(axis=2), classes)  # (B, G)
        hits += [(rank < most).sum(axis=0) for most in (1, min(5, classes))]
    top1, top5 = hits / len(labels)
    return top1, top5


def _part(progress: Callable[[int, int], None] | None, done: int, total: int) -> Callable[[int], None]:
    return (lambda more: progress(done + more, total)) if progress else (lambda more: None)
