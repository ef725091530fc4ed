"""Semi-supervised: fine-tune the whole backbone and a classifier on a small part of the labels.

The part has as many images of every class, chosen by a hash of their paths and the seed: the same on every machine, and
1 % is a part of 10 %. --list writes it, as data.train.list_file reads it; with --list-only that is all. Several --seeds
fine-tune on another part each; the table has their mean and standard deviation. One process.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from passl_densecl.cli.console import progress, table
from passl_densecl.cli.evaluate.common import (
    add_folders,
    backbones,
    binomial,
    center,
    figures,
    labeled,
    percent,
    workers,
)
from passl_densecl.data.datasets import ImageSet
from passl_densecl.errors import InputError
from passl_densecl.transforms import RandomHorizontalFlip, RandomResizedCrop


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "of which a part is used")
    parser.add_argument("--percent", type=float, default=1.0, help="share of the training images, in percent")
    parser.add_argument("--list", type=Path, metavar="F.txt", help="also write the (first seed's) part there")
    parser.add_argument("--list-only", action="store_true", help="train nothing")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="default: that of --seed")
    parser.add_argument("--epochs", type=int, help="default: 20, or as many as make 600 steps")
    parser.add_argument("--batch-size", type=int, default=64, help="largest batch")
    parser.add_argument("--lr", type=float, default=0.01, help="learning rate of the backbone")
    parser.add_argument("--head-lr", type=float, default=0.1, help="learning rate of the classifier")
    parser.add_argument("--weight-decay", type=float, default=1e-4, help="L2 penalty of all weights")


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    train, val = labeled(args)
    seeds = args.seeds or [args.seed]
    parts = {seed: choose(train, args.percent, seed) for seed in seeds}
    first = parts[seeds[0]]
    if args.list is not None:
        from passl_densecl.evaluation.subset import list_lines

        args.list.write_bytes(list_lines(train, first))
    elif args.list_only:
        raise InputError("--list-only needs --list F.txt")
    what = f"{len(first):,} of {len(train):,} images, {len(train.classes)} classes"
    if args.list_only:
        return f"{what} · {args.list}", {"images": len(first)}
    results: dict[str, dict[str, Any]] = {}
    for seed, part in parts.items():
        subset = take(train, part)
        for title, backbone in backbones(args):
            one = fine_tune(title, backbone, subset, val, seed, args)
            found = results.setdefault(title, {"top1": [], "top5": [], "steps": one.steps})
            found["top1"].append(one.top1)
            found["top5"].append(one.top5)
    for found in results.values():
        found["mean_top1"], found["mean_top5"] = float(np.mean(found["top1"])), float(np.mean(found["top5"]))
        found["deviation_top1"] = float(np.std(found["top1"], ddof=1)) if len(seeds) > 1 else None
        found["standard_error"] = binomial(found["mean_top1"], len(val))
    columns = results.values()
    top1 = [percent(one["mean_top1"], one["deviation_top1"] or one["standard_error"]) for one in columns]
    rows = [["top-1", *top1], ["top-5", *(percent(one["mean_top5"]) for one in columns)]]
    meaning = f"deviation over {len(seeds)} parts" if len(seeds) > 1 else "standard error"
    head = [f"fine-tuned on {args.percent:g} % ({what}); {len(val):,} val, ± {meaning}", *results]
    return table([head, *rows]), figures(train, val, results, used=len(first))


def choose(train: ImageSet, percent: float, seed: int) -> np.ndarray:
    from passl_densecl.evaluation.subset import balanced_subset

    if not 0 < percent <= 100:
        raise InputError(f"--percent {percent:g}: expected more than 0 and at most 100")
    return balanced_subset(train, percent / 100, seed)


def take(images: ImageSet, indices: np.ndarray) -> ImageSet:
    """Some of the images, in the same root."""
    assert images.labels is not None
    paths = [images.relative_path(index) for index in indices.tolist()]
    return ImageSet.from_paths(images.root, paths, images.labels[indices], images.classes)


def fine_tune(title: str, backbone: Any, subset: ImageSet, val: ImageSet, seed: int, args: argparse.Namespace) -> Any:
    from passl_densecl.engine.finetune import Recipe, finetune

    batch = min(args.batch_size, len(subset))
    epochs = args.epochs or max(20, -(-600 // (len(subset) // batch)))
    recipe = Recipe(epochs, batch, args.lr, args.head_lr, args.weight_decay)
    augment = (RandomResizedCrop(size=args.size, scale=(0.08, 1.0)), RandomHorizontalFlip())
    with progress(title) as bar:
        return finetune(
            backbone,
            subset,
            val,
            augment,
            center(args.size),
            recipe,
            seed=seed,
            num_workers=workers(args.size),
            progress=lambda _, done, total: bar(done, total),
        )
