"""Linear classifiers on the stem and each of the four stages, pooled to about equally many numbers.

Every map is averaged to the finest grid that leaves at most --dim numbers (9,216, the protocol's, are 12, 12 or 6, 8 or
4, 6 or 3 and 4 or 2 cells a side in ResNet-18 or 50). Then as in `linear`. Needs 2 bytes per number, image and stage.
"""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from passl_densecl.cli.console import progress, table
from passl_densecl.cli.evaluate.common import (
    add_folders,
    add_sweep,
    backbones,
    center,
    classified,
    figures,
    labeled,
    percent,
    warn_of_bad,
    workers,
)
from passl_densecl.data.datasets import ImageSet

if TYPE_CHECKING:
    from passl_densecl.models import ResNetBackbone


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "to train on")
    add_sweep(parser, epochs=30)
    parser.add_argument("--dim", type=int, default=9216, help="numbers per stage, at most")


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    train, val = labeled(args)
    from passl_densecl.evaluation.features import STAGES
    from passl_densecl.evaluation.linear import Sweep, linear_accuracy

    sweep = Sweep(args.lr, args.weight_decay, args.epochs, args.batch_size, seed=args.seed)
    found: dict[str, list[Any]] = {}
    grids: dict[str, list[int]] = {}
    for title, backbone in backbones(args):
        bank, labels, grids[title] = pooled_stages(f"{title} train", backbone, train, args)
        queries, truth, _ = pooled_stages(f"{title} val", backbone, val, args)
        found[title] = []
        for stage, inside, outside in zip(STAGES, bank, queries, strict=True):
            with progress(f"{title} {stage}") as bar:
                found[title].append(linear_accuracy([inside], labels, outside, truth, sweep, progress=bar))

    def cell(title: str, number: int) -> str:
        one, grid = found[title][number], grids[title][number]
        return f"{percent(one.top1, one.standard_error)} ({grid}×{grid})"

    rows = [[stage, *(cell(title, number) for title in found)] for number, stage in enumerate(STAGES)]
    text = table([[f"top-1, {len(val):,} images, {args.size} px", *found], *rows])
    results = {
        title: {
            stage: {**classified(one), "grid": grid}
            for stage, one, grid in zip(STAGES, column, grids[title], strict=True)
        }
        for title, column in found.items()
    }
    return text, figures(train, val, results)


def pooled_stages(
    title: str, backbone: ResNetBackbone, images: ImageSet, args: argparse.Namespace
) -> tuple[list[np.ndarray], np.ndarray, list[int]]:
    """For each stage (N, C·grid²) float16 vectors; (N,) labels; and each stage's cells a side."""
    import paddle.nn.functional as F

    from passl_densecl.data.labeled import EvaluationLoader
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
