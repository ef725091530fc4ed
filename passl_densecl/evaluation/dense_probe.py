"""Semantic segmentation with a linear 1×1 head on the frozen map.

Geometry: image sides are 32·n + 1 pixels. A stride of 32 then gives n + 1 cells per side, centered at pixels 0, 32, …:
the outer cells lie on the borders, and logits are interpolated from corner to corner, as in DeepLab.
Control: with `with_place` every network is also told where a cell lies, so that only what else it knows can differ.
Training: a cell's target is the share of each class around its center. Multinomial logistic regression on standardized
features is convex: L-BFGS finds its minimum, so nothing depends on a learning rate or a seed.
Scoring: logits are interpolated to the size of the mask; every labeled pixel counts, in an exact confusion matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import paddle
import paddle.nn.functional as F

from passl_densecl import transforms
from passl_densecl.errors import InputError
from passl_densecl.evaluation.features import Backbone, feature_maps
from passl_densecl.evaluation.linear import standardization
from passl_densecl.evaluation.position import coordinates
from passl_densecl.tensors import to_tensor

GRID = 32
_GROUPS = 100
L2S = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""Strengths of the penalty to choose from, strongest first: each fit starts from the previous one."""

Reader = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""Index of an image → its map, float32 (C, H, W), and its mask, int (height, width), -1 where unlabeled."""

Head = tuple[np.ndarray, np.ndarray]
"""Weight (C, classes) and bias (classes,)."""

Progress = Callable[[int, int], None] | None
"""Called with (images done, images in all)."""


def image_map(backbone: Backbone, image: np.ndarray, size: int) -> np.ndarray:
    """uint8 RGB (height, width, 3) → float32 (C, H, W) of the whole image, its shorter side about `size` pixels."""
    scale = size / min(image.shape[:2])
    height, width = (GRID * max(1, round(side * scale / GRID)) + 1 for side in image.shape[:2])
    return feature_maps(backbone, transforms.resize(image, height, width)[None])[0].numpy()


def with_place(features: np.ndarray) -> np.ndarray:
    """(C, H, W) → (C + 5, H, W): also y, x, y², x² and yx of every cell, from -1 to 1."""
    y, x = coordinates(*features.shape[1:]).T.reshape(2, *features.shape[1:])
    return np.concatenate([features, np.stack([y, x, y * y, x * x, y * x])])


class Cells(NamedTuple):
    """M positions of maps with their targets."""

    features: np.ndarray  # (M, C) float32
    targets: np.ndarray  # (M, classes) float32: share of each class in the cell; sums to its labeled share

    @staticmethod
    def join(parts: Sequence[Cells]) -> Cells:
        return Cells(np.concatenate([p.features for p in parts]), np.concatenate([p.targets for p in parts]))

    def standardize(self, mean: np.ndarray, deviation: np.ndarray) -> Cells:
        return Cells((self.features - mean) / deviation, self.targets)


def cell_targets(mask: np.ndarray, height: int, width: int, classes: int) -> np.ndarray:
    """(·, ·) → (height·width, classes) float32: the share of each class in the cell around every map position.

    Cells on the border lie half outside the image. The shares of a cell sum to its labeled share.
    """
    targets = np.zeros((height, width, classes), np.float32)
    halves = (max(1, 2 * (width - 1)), max(1, 2 * (height - 1)))
    for label in np.unique(mask[mask >= 0]):
        area = cv2.resize((mask == label).astype(np.float32), halves, interpolation=cv2.INTER_AREA)
        area = np.pad(area, ((int(height > 1),) * 2, (int(width > 1),) * 2), mode="edge")
        for axis, count in enumerate((height, width)):
            if count > 1:
                pairs = area.reshape(*area.shape[:axis], count, 2, *area.shape[axis + 1 :])
                area = pairs.mean(axis=axis + 1)
        targets[..., label] = area
    return targets.reshape(height * width, classes)


def gather_cells(
    read: Reader, indices: Sequence[int], classes: int, *, most: int = 60_000, seed: int = 0, progress: Progress = None
) -> list[Cells]:
    """The labeled cells of every image; a random sample of about `most` in all if there are more."""
    parts: list[Cells] = []
    share = most / max(len(indices), 1)
    for done, index in enumerate(indices, start=1):
        features, mask = read(index)
        targets = cell_targets(mask, features.shape[1], features.shape[2], classes)
        rows = np.flatnonzero(targets.sum(axis=1) > 0)
        if len(rows) > share:
            rows = np.sort(np.random.default_rng([seed, index]).choice(rows, max(1, round(share)), replace=False))
        parts.append(Cells(np.ascontiguousarray(features.reshape(len(features), -1).T[rows]), targets[rows]))
        if progress is not None:
            progress(done, len(indices))
    if not sum(len(part.features) for part in parts):
        raise InputError("the training images have no labeled pixel")
    return parts


@dataclass(frozen=True)
class Probe:
    """A linear head that includes the standardization of the features."""

    weight: np.ndarray  # (C, classes) float32
    bias: np.ndarray  # (classes,) float32
    l2: float

    @staticmethod
    def train(parts: Sequence[Cells], seed: int = 0, l2s: Sequence[float] = L2S) -> Probe:
        """Fit a head to the cells of some images; the penalty is chosen by the loss on a quarter of the images."""
        chosen, head = l2s[0], None
        if len(l2s) > 1 and len(parts) > 1:
            chosen, head = _choose(parts, seed, l2s)
        cells = Cells.join(parts)
        mean, deviation = standardization(cells.features)
        weight, bias = fit(cells.standardize(mean, deviation), chosen, start=head)
        weight = weight / deviation[:, None]
        return Probe(weight.astype(np.float32), (bias - mean @ weight).astype(np.float32), chosen)

    @paddle.no_grad()
    def predict(self, features: np.ndarray, height: int, width: int) -> np.ndarray:
        """float32 (C, H, W) → (height, width) int64: the class of every pixel."""
        flat = features.reshape(len(features), -1).T @ self.weight + self.bias  # (S, classes)
        logits = to_tensor(np.ascontiguousarray(flat.T).reshape(1, -1, *features.shape[1:]))
        return F.interpolate(logits, [height, width], mode="bilinear", align_corners=True)[0].argmax(axis=0).numpy()


def _choose(parts: Sequence[Cells], seed: int, l2s: Sequence[float]) -> tuple[float, Head | None]:
    """The penalty whose head, fitted to three quarters of the images, predicts the others best; and that head.

    Tried from strong to weak until the held-out loss rises: it has one minimum, and weak penalties take longest.
    """
    order = np.random.default_rng([seed, 0xDE45E]).permutation(len(parts))
    out = max(1, len(parts) // 4)
    held, rest = (Cells.join([parts[index] for index in some]) for some in (order[:out], order[out:]))
    scale = standardization(rest.features)
    held, rest = held.standardize(*scale), rest.standardize(*scale)
    best, chosen, head, best_head, spectrum = np.inf, l2s[0], None, None, Spectrum.of(rest)
    for l2 in l2s:
        head = fit(rest, l2, start=head, spectrum=spectrum, tolerance=1e-4)
        loss, _ = _cross_entropy(held, *head)
        if loss >= best:
            break
        best, chosen, best_head = loss, l2, head
    return chosen, best_head


def confusion(
    read: Reader,
    probe: Probe,
    indices: Sequence[int],
    *,
    progress: Progress = None,
    on_prediction: Callable[[int, np.ndarray], None] | None = None,
) -> np.ndarray:
    """(G, classes, classes) int64: pixels by true and predicted class, for G groups of consecutive images.

    Up to 100 images each image is a group. `on_prediction` receives the index and prediction of every image.
    """
    classes = len(probe.bias)
    groups = min(len(indices), _GROUPS)
    matrices = np.zeros((groups, classes, classes), np.int64)
    for row, index in enumerate(indices):
        features, mask = read(index)
        predicted = probe.predict(features, *mask.shape)
        labeled = mask >= 0
        pairs = mask[labeled].astype(np.int64) * classes + predicted[labeled]
        counts = np.bincount(pairs, minlength=classes * classes)
        matrices[row * groups // len(indices)] += counts.reshape(classes, classes)
        if on_prediction is not None:
            on_prediction(index, predicted)
        if progress is not None:
            progress(row + 1, len(indices))
    return matrices


class DenseScores(NamedTuple):
    """Shares from 0 to 1, over the classes that occur in the ground truth."""

    miou: float
    mean_accuracy: float  # mean over the classes of their recall
    pixel_accuracy: float
    iou: np.ndarray  # (classes,), nan where the class is not in the ground truth

    @staticmethod
    def of(matrix: np.ndarray) -> DenseScores:
        """(classes, classes) pixels by true and predicted class."""
        right, truth, predicted = np.diag(matrix).astype(float), matrix.sum(axis=1), matrix.sum(axis=0)
        known = truth > 0
        iou = np.full(len(matrix), np.nan)
        iou[known] = right[known] / (truth + predicted - right)[known]
        recall = (right[known] / truth[known]).mean()
        return DenseScores(float(iou[known].mean()), float(recall), float(right.sum() / matrix.sum()), iou)


def jackknife(groups: np.ndarray, score: Callable[[np.ndarray], float]) -> float:
    """Standard error of a score of the sum over G groups, by leaving out each group in turn; nan for one group."""
    count = len(groups)
    if count < 2:
        return float("nan")
    total = groups.sum(axis=0)
    values = np.array([score(total - group) for group in groups])
    return float(np.sqrt((count - 1) / count * np.square(values - values.mean()).sum()))


# ---------------------------------------------------------------- logistic regression


class Spectrum(NamedTuple):
    """What makes a fit fast: the principal axes of the features, and how often each class occurs."""

    values: np.ndarray  # (C,) mean squares of the features along the axes
    axes: np.ndarray  # (C, C), a column each
    shares: np.ndarray  # (classes,)

    @staticmethod
    def of(cells: Cells, most: int = 20_000) -> Spectrum:
        some = cells.features[:: -(-len(cells.features) // most)]  # it decides how fast a fit is, not where it ends
        values, axes = np.linalg.eigh((some.T @ some).astype(np.float64) / len(some))
        return Spectrum(np.maximum(values, 0), axes, cells.targets.sum(axis=0, dtype=np.float64) / cells.targets.sum())


def fit(
    cells: Cells,
    l2: float,
    *,
    start: Head | None = None,
    spectrum: Spectrum | None = None,
    most: int = 300,
    tolerance: float = 1e-6,
) -> Head:
    """The head that minimizes Σ targets · −log softmax(features @ weight + bias) / Σ targets + l2 / 2 · ‖weight‖².

    L-BFGS, until the loss is about `tolerance` nats above its minimum or after `most` steps. The bias is not penalized.
    It works in coordinates in which the curvature is about 1 in every direction: that of class k along an axis of the
    features is near share · (1 − share) · value + l2. In the features' own, as different as their spectrum, it takes
    ten times as many steps.
    """
    values, axes, shares = spectrum or Spectrum.of(cells)
    weights = np.maximum(shares * (1 - shares), 1e-4)
    scales = 1 / np.sqrt(np.vstack([values[:, None] * weights + l2, weights]))  # (C + 1, classes), the bias last

    def head(flat: np.ndarray) -> Head:
        scaled = flat.reshape(scales.shape) * scales
        return axes @ scaled[:-1], scaled[-1]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = head(flat)
        loss, gradient = _cross_entropy(cells, weight, bias)
        gradient[:-1] = axes.T @ (gradient[:-1] + l2 * weight)
        return loss + l2 / 2 * float(np.square(weight).sum()), (gradient * scales).ravel()

    point = np.zeros(scales.shape) if start is None else np.vstack([axes.T @ start[0], start[1]]) / scales
    return head(minimize(objective, point.ravel(), most=most, small=math.sqrt(2 * tolerance)))


def minimize(
    objective: Callable[[np.ndarray], tuple[float, np.ndarray]], point: np.ndarray, *, most: int, small: float
) -> np.ndarray:
    """The point where the gradient of a smooth convex function is at most `small`. L-BFGS with ten pairs and
    backtracking.

    Source: Nocedal & Wright, Numerical Optimization, 2nd edition, algorithms 7.4 and 3.1.
    """
    value, gradient = objective(point)
    steps: list[tuple[np.ndarray, np.ndarray, float]] = []  # (change of point, change of gradient, 1 / their product)
    for _ in range(most):
        if np.linalg.norm(gradient) <= small:
            break
        direction = -_inverse_hessian(steps, gradient)
        slope = float(gradient @ direction)
        rate = 1.0 if steps else min(1.0, 1 / float(np.abs(gradient).sum()))
        for _ in range(30):
            new_value, new_gradient = objective(point + rate * direction)
            if new_value <= value + 1e-4 * rate * slope:
                break
            rate /= 2
        else:  # no further descent at this precision
            break
        change, turn = rate * direction, new_gradient - gradient
        if change @ turn > 1e-12 * (turn @ turn):
            steps = [*steps[-9:], (change, turn, 1 / float(change @ turn))]
        point, value, gradient = point + change, new_value, new_gradient
    return point


def _inverse_hessian(steps: Sequence[tuple[np.ndarray, np.ndarray, float]], gradient: np.ndarray) -> np.ndarray:
    """The two-loop recursion: the approximate inverse Hessian times the gradient."""
    result, factors = gradient.copy(), []
    for change, turn, inverse in reversed(steps):
        factors.append(inverse * float(change @ result))
        result -= factors[-1] * turn
    if steps:
        change, turn, inverse = steps[-1]
        result /= inverse * float(turn @ turn)
    for (change, turn, inverse), factor in zip(steps, reversed(factors), strict=True):
        result += (factor - inverse * float(turn @ result)) * change
    return result


def _cross_entropy(cells: Cells, weight: np.ndarray, bias: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean loss over the labeled area, and its gradient (C + 1, classes). Products are float32, sums float64."""
    features, targets = cells
    logits = features @ weight.astype(np.float32) + bias.astype(np.float32)
    logits -= logits.max(axis=1, keepdims=True)
    likely = np.exp(logits)
    sums = likely.sum(axis=1, keepdims=True)
    labeled, area = targets.sum(axis=1, keepdims=True), float(targets.sum(dtype=np.float64))
    loss = float((targets * (np.log(sums) - logits)).sum(dtype=np.float64)) / area
    error = (likely / sums * labeled - targets) / np.float32(area)
    return loss, np.vstack([features.T @ error, error.sum(axis=0, keepdims=True)]).astype(np.float64)
