"""A linear classifier on cached features, all learning rates and weight decays of a sweep trained at once.

The fast preset: minutes. It differs from the official recipe (densecl train with configs/moco/moco_clas_r50.yaml):
features are computed once, or once for each of --copies augmented copies, instead of anew in every epoch; they are
standardized; learning rate and weight decay are chosen on a tenth of the training images, then the classifier is
trained on all of them. Compare its figures with each other, not with published ones.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np

from passl_densecl.cli.console import progress, table
from passl_densecl.cli.evaluate.common import (
    add_folders,
    add_sweep,
    backbones,
    center,
    classified,
    features,
    figures,
    labeled,
    percent,
)
from passl_densecl.data.datasets import Transforms
from passl_densecl.transforms import RandomHorizontalFlip, RandomResizedCrop, apply

COPIES = (
    "of the training images, taken in turn: the first as they are, the others cropped (8 to 100 %% of the area) and "
    "flipped at random"
)


@dataclass(frozen=True)
class Copy:
    """Random transforms whose draws differ from copy to copy of a data set."""

    transforms: Transforms
    number: int

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return apply(self.transforms, image, np.random.default_rng([self.number, int(rng.integers(2**62))]))


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "to train on")
    add_sweep(parser, epochs=100)
    parser.add_argument("--copies", type=int, default=1, metavar="N", help=COPIES)


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    train, val = labeled(args)
    from passl_densecl.evaluation.linear import Sweep, linear_accuracy

    whole = center(args.size)
    augment = (RandomResizedCrop(size=args.size, scale=(0.08, 1.0)), RandomHorizontalFlip())
    sweep = Sweep(args.lr, args.weight_decay, args.epochs, args.batch_size, seed=args.seed)
    found = {}
    for title, backbone in backbones(args):
        copies = []
        for number in range(args.copies):
            how = (Copy(augment, number),) if number else whole
            name = f"{title} train" + (f" {number + 1}/{args.copies}" if args.copies > 1 else "")
            copies.append(features(name, backbone, train, how, args.size))
        queries = features(f"{title} val", backbone, val, whole, args.size)
        with progress(f"{title} sweep") as bar:
            vectors = [copy.vectors for copy in copies]
            found[title] = linear_accuracy(
                vectors, copies[0].labels, queries.vectors, queries.labels, sweep, progress=bar
            )
    columns = list(found.values())
    rows = [
        ["top-1", *(percent(one.top1, one.standard_error) for one in columns)],
        ["top-5", *(percent(one.top5) for one in columns)],
        ["learning rate", *(f"{one.lr:g}" for one in columns)],
        ["weight decay", *(f"{one.weight_decay:g}" for one in columns)],
    ]
    text = table([[f"linear, {len(val):,} images, {args.size} px", *found], *rows])
    text += "\n(features cached and standardized, rates chosen on held-out training images: not the official recipe)"
    results = {
        title: {
            **classified(one),
            "held_out": [{"lr": lr, "weight_decay": decay, "top1": top1} for (lr, decay), top1 in one.held_out.items()],
        }
        for title, one in found.items()
    }
    return text, figures(train, val, results)
