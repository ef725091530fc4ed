"""Linear SVMs on frozen features, one per class: the protocol of VOC07, with all images and in the low-shot setting.

Source: Goyal et al., Scaling and Benchmarking Self-Supervised Visual Representation Learning, ICCV 2019, appendix, with
the details of their benchmark: unit vectors, LinearSVC with squared hinge loss, positives weighted 2, at most 2,000
iterations. Average precision is the area under the precision-recall curve made monotonic (VOC 2010 and later, and their
VOC07 figures), not the mean of 11 points.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from passl_densecl.errors import InputError

COSTS = (1.0, 10.0, 100.0, *(0.5**power for power in range(4, 20)))
SHOTS = (1, 2, 4, 8, 16, 32, 64, 96)
FOLDS = 3
PRESENT, ABSENT, UNSURE = 1, -1, 0
"""Entries of a target matrix. Unsure ones (VOC's "difficult") train as absent and are excluded from the test."""


@dataclass(frozen=True)
class SvmResult:
    average_precision: np.ndarray  # (classes,) from 0 to 1
    costs: np.ndarray  # (classes,) chosen by 3-fold cross-validation on the training images

    @property
    def mean(self) -> float:
        return float(self.average_precision.mean())


def average_precision(present: np.ndarray, scores: np.ndarray) -> float:
    """(N,) bool, (N,) → the area under the precision-recall curve.

    Precision at each recall is the best one at any higher recall. For equal scores the later image is ranked first.
    Raises ValueError when no image is positive.
    """
    present = np.asarray(present, bool)
    if not present.any():
        raise ValueError("average precision needs at least one positive")
    ranked = present[np.argsort(scores, kind="stable")[::-1]]
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[ranked].mean())


def svm_accuracy(
    train: np.ndarray,
    train_targets: np.ndarray,
    test: np.ndarray,
    test_targets: np.ndarray,
    *,
    costs: Sequence[float] = COSTS,
    progress: Callable[[int, int], None] | None = None,
) -> SvmResult:
    """(N, C), (N, classes), (M, C), (M, classes) → average precision of each class.

    The cost is chosen per class by 3-fold cross-validation on the training images, by sklearn's average precision as in
    the protocol.

    Raises:
        InputError: scikit-learn is not installed, or a class has too few positives.
    """
    _check(train_targets, test_targets, FOLDS)
    train, test = unit(train), unit(test)
    classes = train_targets.shape[1]
    chosen, precisions = [], []
    for number in range(classes):
        target = np.where(train_targets[:, number] == PRESENT, 1, -1)
        cost = _choose_cost(train, target, costs)
        chosen.append(cost)
        precisions.append(_test(_fitted(train, target, cost), test, test_targets[:, number]))
        if progress is not None:
            progress(number + 1, classes)
    return SvmResult(np.array(precisions), np.array(chosen))


def low_shot_accuracy(
    train: np.ndarray,
    train_targets: np.ndarray,
    test: np.ndarray,
    test_targets: np.ndarray,
    *,
    shots: Sequence[int] = SHOTS,
    samples: int = 5,
    costs: Sequence[float] = COSTS,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, np.ndarray]:
    """k → (samples, costs) mean average precision with k positives and (classes − 1)·k negatives of each class.

    The protocol reports the cost whose mean over the samples is best on the test images. That is an upper bound: with
    k = 1 no image is left to choose by. Samples depend on the seed only, not on the vectors.

    Raises:
        InputError: scikit-learn is not installed, or a class has fewer positives or negatives than the largest k needs.
    """
    _check(train_targets, test_targets, max(shots))
    classes = train_targets.shape[1]
    train, test = unit(train), unit(test)
    precision = {k: np.zeros((samples, len(costs))) for k in shots}
    done = 0
    for k in shots:
        for sample in range(samples):
            for number in range(classes):
                rows = draw(train_targets[:, number], k, (classes - 1) * k, seed=[seed, sample, k, number])
                target = np.where(train_targets[rows, number] == PRESENT, 1, -1)
                for column, cost in enumerate(costs):
                    svm = _fitted(train[rows], target, cost)
                    precision[k][sample, column] += _test(svm, test, test_targets[:, number]) / classes
            done += 1
            if progress is not None:
                progress(done, len(shots) * samples)
    return precision


def draw(target: np.ndarray, positives: int, negatives: int, seed: Sequence[int]) -> np.ndarray:
    """Random rows of one class's targets: `positives` present ones and at most `negatives` absent ones."""
    rng = np.random.default_rng(list(seed))
    present, absent = np.flatnonzero(target == PRESENT), np.flatnonzero(target == ABSENT)
    without = rng.choice(absent, min(negatives, len(absent)), replace=False)
    return np.concatenate([rng.choice(present, positives, replace=False), without])


def unit(vectors: np.ndarray) -> np.ndarray:
    """(N, C) → float64 unit rows; zero rows stay zero."""
    vectors = np.asarray(vectors, np.float64)
    return vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-5)


def _choose_cost(train: np.ndarray, target: np.ndarray, costs: Sequence[float]) -> float:
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import StratifiedKFold

    if len(costs) == 1:
        return costs[0]
    folds = list(StratifiedKFold(FOLDS).split(train, target))

    def precision(cost: float, rows: np.ndarray, out: np.ndarray) -> float:
        svm = _fitted(train[rows], target[rows], cost)
        return float(average_precision_score(target[out], svm.decision_function(train[out])))

    return max(costs, key=lambda cost: np.mean([precision(cost, *fold) for fold in folds]))


def _fitted(vectors: np.ndarray, target: np.ndarray, cost: float) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    dual: Any = True
    svm = LinearSVC(
        C=cost, class_weight={1: 2, -1: 1}, loss="squared_hinge", tol=1e-4, dual=dual, max_iter=2000, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the protocol stops at 2,000 iterations, converged or not
        return svm.fit(vectors, target)


def _test(svm: Any, vectors: np.ndarray, target: np.ndarray) -> float:
    sure = target != UNSURE
    return average_precision(target[sure] == PRESENT, svm.decision_function(vectors[sure]))


def _check(train_targets: np.ndarray, test_targets: np.ndarray, positives: int) -> None:
    """Raise InputError, before minutes of work, without scikit-learn or when a class has too few images."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise InputError("support vector machines need scikit-learn: pip install scikit-learn") from None
    present, absent = (train_targets == PRESENT).sum(axis=0), (train_targets != PRESENT).sum(axis=0)
    for name, counts, least in (("positives", present, positives), ("negatives", absent, FOLDS)):
        if counts.min() < least:
            raise InputError(
                f"class number {counts.argmin()} has {counts.min()} training {name}, expected at least {least}: "
                "add images, leave the class out, or ask for fewer shots"
            )
    missing = np.flatnonzero(~(test_targets == PRESENT).any(axis=0))
    if len(missing):
        raise InputError(f"class number {missing[0]} is on no test image: its average precision is not defined")
