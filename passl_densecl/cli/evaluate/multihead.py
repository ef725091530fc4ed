"""Linear classifiers on the stem and each of the four stages, pooled to about equally many numbers.

Every map is averaged to the finest grid that leaves at most --dim numbers (9,216, the protocol's, are 12, 12 or 6, 8 or 4, 6
or 3 and 4 or 2 cells a side in ResNet-18 or 50). Then as in `linear`. Needs 2 bytes a number and image and stage.
"""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from passl_densecl.cli.evaluate.common import (
    add_folders,
    add_sweep,
    backbones,
    center,
    labeled,
    percent,
    progress,
    table,
    warn_of_bad,
    workers,
)
from passl_densecl.data.datasets import ImageSet

if TYPE_CHECKING:
    from passl_densecl.models import ResNetBackbone


def arguments(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "to train on")
    add_sweep(parser, epochs=30)
    parser.add_argument("--dim", type=int, default=9216, help="numbers a stage, at the most (default: %(default)s)")


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    train, val = labeled(args)
    from passl_densecl.evaluation import linear_accuracy
    from passl_densecl.evaluation.features import STAGES

    found: dict[str, list[Any]] = {}
    grids: dict[str, list[int]] = {}
    for title, backbone in backbones(args):
        bank, labels, grids[title] = pooled_stages(f"{title} train", backbone, train, args)
        queries, truth, _ = pooled_stages(f"{title} val", backbone, val, args)
        found[title] = []
        for stage, inside, outside in zip(STAGES, bank, queries, strict=True):
            with progress(f"{title} {stage}") as bar:
                found[title].append(
                    linear_accuracy(
                        [inside],
                        labels,
                        outside,
                        truth,
                        lrs=args.lr,
                        weight_decays=args.weight_decay,
                        epochs=args.epochs,
                        batch_size=args.batch_size,
                        seed=args.seed,
                        progress=bar,
                    )
                )
    rows = [
        [
            f"{stage}",
            *(
                f"{percent(column[number].top1, column[number].standard_error)} ({grids[title][number]}×{grids[title][number]})"
                for title, column in found.items()
            ),
        ]
        for number, stage in enumerate(STAGES)
    ]
    text = table([f"top-1, {len(val):,} images, {args.size} px", *found], rows)
    results = {
        title: {
            stage: {
                "top1": one.top1,
                "top5": one.top5,
                "standard_error": one.standard_error,
                "lr": one.lr,
                "weight_decay": one.weight_decay,
                "grid": grid,
            }
            for stage, one, grid in zip(STAGES, column, grids[title], strict=True)
        }
        for title, column in found.items()
    }
    return text, {
        "train_images": len(train),
        "val_images": len(val),
        "chance": 1 / len(train.classes),
        "results": results,
    }


def pooled_stages(
    title: str, backbone: ResNetBackbone, images: ImageSet, args: argparse.Namespace
) -> tuple[list[np.ndarray], np.ndarray, list[int]]:
    """For each stage (N, C·grid²) float16 vectors; (N,) labels; and each stage's cells a side."""
    import paddle.nn.functional as F

    from passl_densecl.data.loader import EvaluationLoader
    from passl_densecl.evaluation.features import stage_maps

    parts: list[list[np.ndarray]] = [[] for _ in range(5)]
    labels, grids, bad = [], [0] * 5, []
    with progress(title) as bar:
        for batch in EvaluationLoader(images, center(args.size), batch_size=64, num_workers=workers(args.size)):
            for number, one in enumerate(stage_maps(backbone, batch.images)):
                grids[number] = min(math.isqrt(max(1, args.dim // one.shape[1])), *one.shape[2:])
                pooled = F.adaptive_avg_pool2d(one, grids[number]).flatten(1).numpy()
                parts[number].append(np.clip(pooled, -65504, 65504).astype(np.float16))
            labels.append(batch.labels.numpy())
            bad += batch.bad
            bar(int(batch.indices[-1]) + 1, len(images))
    warn_of_bad(images, bad)
    return [np.concatenate(some) for some in parts], np.concatenate(labels), grids
