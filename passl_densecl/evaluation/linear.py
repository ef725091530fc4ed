"""Linear classifiers on cached features: all learning rates and weight decays of a sweep are trained at once.

This is the fast preset. It differs from the official recipe, which `densecl train` runs: features are computed once
(or once for each of a few augmented copies) instead of in every epoch, they are standardized, and the learning rate is
chosen from a sweep. Compare its figures with each other, not with published ones.
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

Progress = Callable[[int, int], None] | None
"""Called with (epochs done, epochs in all)."""


@dataclass(frozen=True)
class Sweep:
    """How the classifiers are trained: SGD with momentum 0.9, cosine to 0, weights from zero."""

    lrs: Sequence[float] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    weight_decays: Sequence[float] = (0.0, 0.0001, 0.001, 0.01)
    epochs: int = 100
    batch_size: int = 256
    held_out: float = 0.1  # share of every class on which a combination is chosen
    seed: int = 0


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
    sweep: Sweep = Sweep(),
    progress: Progress = None,
) -> LinearResult:
    """Copies of (N, C), (N,), (M, C), (M,) → top-1 and top-5 of a linear classifier on the validation vectors.

    Every combination of the sweep is trained without the held-out images; the one that is best on these is trained
    again on all training images. The validation images choose nothing.

    Args:
        train: one array, or one for each augmented copy of the images, taken in turn from epoch to epoch.

    Raises:
        InputError: no class has two images, so that none can be held out.
    """
    train_labels, val_labels = np.asarray(train_labels), np.asarray(val_labels)
    classes = int(max(train_labels.max(), val_labels.max())) + 1
    trainer = _Trainer(sweep, classes, *standardization(train[0]))
    combinations = list(itertools.product(sweep.lrs, sweep.weight_decays))
    chosen, shares = combinations[0], dict[tuple[float, float], float]()
    choosing = sweep.epochs if len(combinations) > 1 else 0
    total = choosing + sweep.epochs
    if choosing:
        out = hold_out(train_labels, sweep.held_out, sweep.seed)
        weights = trainer.fit([c[~out] for c in train], train_labels[~out], combinations, _part(progress, 0, total))
        top1, _ = trainer.accuracies(weights, train[0][out], train_labels[out])
        shares = dict(zip(combinations, top1.tolist(), strict=True))
        chosen = max(combinations, key=lambda one: shares[one])
    weights = trainer.fit(train, train_labels, [chosen], _part(progress, choosing, total))
    (top1,), (top5,) = (values.tolist() for values in trainer.accuracies(weights, val, val_labels))
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
    """(N,) → (N,) bool: the share of every class, at least one image of each class that has two or more."""
    rng = np.random.default_rng([seed, 0x401D])
    out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        out[rows[: min(len(rows) - 1, max(1, round(share * len(rows))))]] = True
    if not out.any():
        raise InputError(
            "no class has two training images, so none can be held out to choose the learning rate: give one learning "
            "rate and one weight decay"
        )
    return out


@dataclass(frozen=True)
class _Trainer:
    """Trains G classifiers, one per combination, side by side: one product gives the logits of all."""

    sweep: Sweep
    classes: int
    mean: np.ndarray  # (C,)
    deviation: np.ndarray  # (C,)

    def standardize(self, vectors: np.ndarray) -> paddle.Tensor:
        """(B, C) of any float type → float32 tensor."""
        return to_tensor((vectors.astype(np.float32) - self.mean) / self.deviation)

    @paddle.no_grad()
    def fit(
        self,
        copies: Sequence[np.ndarray],
        labels: np.ndarray,
        combinations: Sequence[tuple[float, float]],
        progress: Callable[[int], None] = lambda done: None,
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Weights (C, G·classes) and biases (G·classes)."""
        epochs, classes = self.sweep.epochs, self.classes
        count, batch_size = len(labels), min(self.sweep.batch_size, len(labels))
        steps = count // batch_size
        lrs, decays = (
            to_tensor(np.repeat(column, classes).astype("float32")) for column in zip(*combinations, strict=True)
        )
        weight = paddle.zeros([copies[0].shape[1], len(combinations) * classes])
        bias = paddle.zeros([len(combinations) * classes])
        speed, bias_speed = paddle.zeros_like(weight), paddle.zeros_like(bias)
        one_hot = np.eye(classes, dtype=np.float32)
        for epoch in range(epochs):
            order = np.random.default_rng([self.sweep.seed, epoch]).permutation(count)
            vectors = copies[epoch % len(copies)]
            for step in range(steps):
                rows = order[step * batch_size : (step + 1) * batch_size]
                x = self.standardize(vectors[rows])
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
    def accuracies(
        self, weights: tuple[paddle.Tensor, paddle.Tensor], vectors: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(G,) top-1 and (G,) top-5. For equal logits the smaller class ranks first; non-finite ones are wrong."""
        (weight, bias), classes = weights, self.classes
        hits = np.zeros((2, weight.shape[1] // classes))
        for start in range(0, len(vectors), 1024):
            truth = labels[start : start + 1024]
            logits = (self.standardize(vectors[start : start + 1024]) @ weight + bias).numpy()
            logits = logits.reshape(len(truth), -1, classes)
            own = np.take_along_axis(logits, truth[:, None, None], axis=2)
            before = (logits > own) | ((logits == own) & (np.arange(classes) < truth[:, None, None]))
            rank = np.where(np.isfinite(logits).all(axis=2), before.sum(axis=2), classes)  # (B, G)
            hits += [(rank < most).sum(axis=0) for most in (1, min(5, classes))]
        top1, top5 = hits / len(labels)
        return top1, top5


def _part(progress: Progress, done: int, total: int) -> Callable[[int], None]:
    return (lambda more: progress(done + more, total)) if progress else (lambda more: None)
