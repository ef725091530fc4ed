"""Fine-tuning a whole backbone on few labeled images: the semi-supervised evaluation with 1 % or 10 % of the labels.

A loop of minutes to hours in one process, so it keeps no checkpoints. Two learning rates, for backbone and classifier,
are divided by ten after 60 % and 80 % of the steps (epochs 12 and 16 of 20), as benchmarks of the field do it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.vision.models import ResNet

from passl_densecl.data.datasets import ImageSet, Transforms
from passl_densecl.data.labeled import EvaluationLoader, LabeledLoader
from passl_densecl.engine.learner import check_finite, trained
from passl_densecl.models import normalize
from passl_densecl.models.resnet import rng_of


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune. Learning rates are for the whole batch as given; they are not scaled."""

    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.01
    head_lr: float = 0.1
    weight_decay: float = 1e-4
    momentum: float = 0.9


@dataclass(frozen=True)
class FinetuneResult:
    """Shares from 0 to 1, over all validation images, after the last epoch."""

    top1: float
    top5: float
    standard_error: float  # of top1, from the number of validation images
    steps: int


def finetune(
    backbone: ResNet,
    train: ImageSet,
    val: ImageSet,
    train_transforms: Transforms,
    val_transforms: Transforms,
    recipe: Recipe,
    *,
    seed: int = 0,
    num_workers: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> FinetuneResult:
    """Train the backbone (which is changed) and a new classifier on all images of `train`; judge them on all of `val`.

    Raises:
        InputError: fewer training images than a batch.
        RunError: the loss is not finite; nothing of it is in the weights then.
    """
    classes = len(val.classes)
    head = nn.Linear(backbone.inplanes, classes)  # which Paddle leaves at the channels of the last stage
    weight = rng_of("fc.weight", seed).standard_normal(head.weight.shape, dtype=np.float32) * np.float32(0.01)
    head.weight.set_value(weight)
    head.bias.set_value(np.zeros(classes, "float32"))
    optimizers = [
        (
            rate,
            paddle.optimizer.Momentum(
                rate, recipe.momentum, list(trained(layer).values()), weight_decay=recipe.weight_decay or None
            ),
        )
        for rate, layer in ((recipe.lr, backbone), (recipe.head_lr, head))
    ]
    loader = LabeledLoader(train, train_transforms, seed=seed, batch_size=recipe.batch_size, num_workers=num_workers)
    last = recipe.epochs * loader.steps_per_epoch
    backbone.train()
    for step, batch in loader.steps(0, last):
        factor = 0.1 ** ((step >= 0.6 * last) + (step >= 0.8 * last))
        loss = F.cross_entropy(head(backbone(normalize(batch.images)).mean(axis=[2, 3])), batch.labels)
        remedy = f"Lower the learning rates (now {recipe.lr:g} and {recipe.head_lr:g})"
        check_finite("the loss", [float(loss)], step + 1, remedy)
        loss.backward()
        for rate, optimizer in optimizers:
            optimizer.set_lr(rate * factor)
            optimizer.step()
            optimizer.clear_grad()
        if progress is not None:
            progress("fine-tune", step + 1, last)
    backbone.eval()
    return _judge(backbone, head, val, val_transforms, recipe.batch_size, num_workers, last, progress)


@paddle.no_grad()
def _judge(
    backbone: ResNet,
    head: nn.Linear,
    val: ImageSet,
    transforms: Transforms,
    batch_size: int,
    num_workers: int,
    steps: int,
    progress: Callable[[str, int, int], None] | None,
) -> FinetuneResult:
    right = np.zeros(5)
    done = 0
    for batch in EvaluationLoader(val, transforms, batch_size=batch_size, num_workers=num_workers):
        logits = head(backbone(normalize(batch.images)).mean(axis=[2, 3]))
        best = logits.topk(min(5, logits.shape[1]), axis=1)[1]
        hits = (best == batch.labels.unsqueeze(1)).astype("int64").sum(axis=0).numpy()
        right[: len(hits)] += hits
        done += len(batch.indices)
        if progress is not None:
            progress("validate", done, len(val))
    top1, top5 = float(right[0] / len(val)), float(right.sum() / len(val))
    return FinetuneResult(top1, top5, math.sqrt(top1 * (1 - top1) / len(val)), steps)
