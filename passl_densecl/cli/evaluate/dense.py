"""Semantic segmentation by a linear 1×1 head on the frozen map: mIoU, the measure that dense pre-training is about.

Images: --voc VOCdevkit/VOC2012; or --images and --masks, two folders with the same file names (values are classes, 255 is
ignored; --categories names them by a JSON file of COCO's and is what its panoptic masks need; --group takes its 27
supercategories). With --val_images and --val_masks the head is trained on the first two and judged on these; without, by
--folds over the images, dealt out by a hash of their names, and every image is judged once.

The head is fitted to convergence (L-BFGS on standardized features of single cells, penalty chosen on a quarter of the training
images), logits are interpolated to the size of the mask, every labeled pixel counts. ± is the standard error over images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from passl_densecl.cli.evaluate.common import backbones, percent, progress, table
from passl_densecl.errors import InputError

if TYPE_CHECKING:
    from passl_densecl.evaluation.dense_probe import Reader
    from passl_densecl.evaluation.masks import MaskSet

_CACHE_BYTES = 2**31
_CLASSES_SHOWN = 30


class Round(NamedTuple):
    """One head: what it is trained on and what it is judged on."""

    split: int
    train: Sequence[int]
    val: Sequence[int]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--voc", type=Path, metavar="DIR", help="a folder with JPEGImages, SegmentationClass, ImageSets"
    )
    parser.add_argument(
        "--voc_splits", nargs=2, default=("train", "val"), metavar=("TRAIN", "VAL"), help="default: train val"
    )
    parser.add_argument("--images", type=Path, metavar="DIR")
    parser.add_argument("--masks", type=Path, metavar="DIR")
    parser.add_argument("--val_images", type=Path, metavar="DIR")
    parser.add_argument("--val_masks", type=Path, metavar="DIR")
    parser.add_argument(
        "--categories", type=Path, metavar="F.json", help="COCO's categories, with panoptic annotations if need be"
    )
    parser.add_argument("--val_categories", type=Path, metavar="F.json", help="default: as --categories")
    parser.add_argument("--group", action="store_true", help="supercategories are the classes")
    parser.add_argument(
        "--ignore", type=int, nargs="+", default=[255], metavar="V", help="values that are no class (default: 255)"
    )
    parser.add_argument(
        "--min_images",
        type=int,
        metavar="N",
        help="leave out classes on fewer images (default: as many as there are folds, else 1)",
    )
    parser.add_argument("--folds", type=int, default=3, help="without validation images (default: %(default)s)")
    parser.add_argument("--splits", type=int, default=1, help="repeat with other folds (default: %(default)s)")
    parser.add_argument("--size", type=int, default=512, help="pixels of the shorter side (default: %(default)s)")
    parser.add_argument("--cells", type=int, default=200_000, help="to train on, at the most (default: %(default)s)")
    parser.add_argument("--picture", type=Path, metavar="F.png", help="images, truth and predictions side by side")
    parser.add_argument("--picture_images", type=int, default=4, metavar="N", help="in it (default: %(default)s)")


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    masks, counts, rounds = plan(args)
    if args.picture is not None:
        from passl_densecl.cli.evaluate.dense_picture import check_matplotlib

        check_matplotlib()
    shown = spread_over(rounds[0].val, args.picture_images) if args.picture else []
    groups: dict[str, list[np.ndarray]] = {}  # for each column, for each split (G, classes, classes)
    l2s: dict[str, list[float]] = {}
    predictions: dict[str, dict[int, np.ndarray]] = {}
    for title, backbone in backbones(args):
        predictions[title] = {}
        groups[title], l2s[title] = judge(title, backbone, masks, rounds, args, shown, predictions[title])
    if args.picture is not None:
        from passl_densecl.cli.evaluate.dense_picture import draw

        draw(args.picture, masks, shown, predictions)
    return report(args, masks, counts, rounds, groups, l2s)


def plan(args: argparse.Namespace) -> tuple[MaskSet, np.ndarray, list[Round]]:
    """All images with masks, pixels of every class on them, and which to train and to judge on."""
    from passl_densecl.evaluation.masks import fold_of, presence

    masks, fixed = read(args)
    with progress("masks") as bar:
        counts = presence(masks, bar)
    least = args.min_images or (1 if fixed else args.folds)
    kept = [number for number, images in enumerate((counts > 0).sum(axis=0)) if images >= least]
    if len(kept) < 2:
        raise InputError(
            f"{masks.describe()}: {len(kept)} classes are on {least} images or more, expected at least two "
            "(--min_images)"
        )
    masks, counts = masks.only(kept), counts[:, kept]
    if fixed:
        return masks, counts, [Round(0, range(fixed), range(fixed, len(masks)))]
    if len(masks) < 2 * args.folds:
        raise InputError(f"{masks.describe()}: too few for {args.folds} folds; expected at least {2 * args.folds}")
    rounds = []
    for split in range(args.splits):
        fold = fold_of(masks.names, args.folds, args.seed + split)
        rounds += [
            Round(split, np.flatnonzero(fold != number).tolist(), np.flatnonzero(fold == number).tolist())
            for number in range(args.folds)
        ]
    return masks, counts, rounds


def read(args: argparse.Namespace) -> tuple[MaskSet, int]:
    """All images, those to train on first, and how many these are (0: by folds)."""
    from passl_densecl.evaluation.masks import join, read_folders, read_voc_masks

    if args.voc is not None:
        train, val = (read_voc_masks(args.voc, split) for split in args.voc_splits)
        return join(train, val), len(train)
    if args.images is None or args.masks is None or (args.val_images is None) != (args.val_masks is None):
        raise InputError("expected --voc DIR, or --images DIR with --masks DIR (and --val_images with --val_masks)")
    how: dict[str, Any] = {"group": args.group, "ignore": args.ignore}
    train = read_folders(args.images, args.masks, categories=args.categories, **how)
    if args.val_images is None:
        return train, 0
    val = read_folders(args.val_images, args.val_masks, categories=args.val_categories or args.categories, **how)
    return join(train, val), len(train)


def judge(
    title: str,
    backbone: Any,
    masks: MaskSet,
    rounds: Sequence[Round],
    args: argparse.Namespace,
    shown: Sequence[int],
    predictions: dict[int, np.ndarray],
) -> tuple[list[np.ndarray], list[float]]:
    """For each split the confusion of all groups of images, and the penalty of every head."""
    from passl_densecl.evaluation.dense_probe import Probe, confusion, gather_cells, image_map

    def look(index: int) -> tuple[np.ndarray, np.ndarray]:
        return image_map(backbone, masks.image(index), args.size), masks.mask(index)

    reader = look if len(rounds) == 1 else cached(look)
    found: dict[int, list[np.ndarray]] = {}
    l2s = []
    for number, one in enumerate(rounds):
        name = f"{title} {number + 1}/{len(rounds)}" if len(rounds) > 1 else title

        def keep(index: int, predicted: np.ndarray, first: bool = number == 0) -> None:
            if first and index in shown:
                predictions[index] = predicted

        with progress(f"{name} features") as bar:
            cells = gather_cells(reader, one.train, len(masks.classes), most=args.cells, seed=args.seed, progress=bar)
        with progress(f"{name} fit"):
            probe = Probe.train(cells, args.seed)
        with progress(f"{name} score") as bar:
            found.setdefault(one.split, []).append(confusion(reader, probe, one.val, progress=bar, seen=keep))
        l2s.append(probe.l2)
    return [np.concatenate(parts) for parts in found.values()], l2s


def cached(look: Reader) -> Reader:
    """Every image looked at once, as long as there is room."""
    known: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    used = 0

    def reader(index: int) -> tuple[np.ndarray, np.ndarray]:
        nonlocal used
        if index in known:
            return known[index]
        found = look(index)
        used += sum(part.nbytes for part in found)
        if used <= _CACHE_BYTES:
            known[index] = found
        return found

    return reader


def report(
    args: argparse.Namespace,
    masks: MaskSet,
    counts: np.ndarray,
    rounds: Sequence[Round],
    groups: dict[str, list[np.ndarray]],
    l2s: dict[str, list[float]],
) -> tuple[str, dict[str, Any]]:
    from passl_densecl.evaluation.dense_probe import DenseScores, jackknife

    judged = [index for one in rounds if one.split == 0 for index in one.val]
    pixels = counts[judged].sum(axis=0)
    guess = np.zeros((len(pixels), len(pixels)))
    guess[:, counts[rounds[0].train].sum(axis=0).argmax()] = pixels
    names = ["one class", *groups]  # what calling every pixel the most frequent class would reach
    scores = [
        [DenseScores.of(guess)],
        *([DenseScores.of(one.sum(axis=0)) for one in column] for column in groups.values()),
    ]

    def row(title: str, pick: Callable[[DenseScores], float]) -> list[str]:
        cells = [percent(pick(scores[0][0]))]
        for column, splits in zip(scores[1:], groups.values(), strict=True):
            error = jackknife(splits[0], lambda matrix: pick(DenseScores.of(matrix)))
            cells.append(percent(float(np.mean([pick(one) for one in column])), error))
        return [title, *cells]

    rows = [
        row("mIoU", lambda one: one.miou),
        row("mean accuracy", lambda one: one.mean_accuracy),
        row("pixel accuracy", lambda one: one.pixel_accuracy),
    ]
    titles = list(groups)
    against = {title: difference(groups[titles[0]], groups[title]) for title in titles[1:]}
    if against:
        rows.append(
            [f"mIoU − {titles[0]}", "", "", *(f"{100 * d:+.2f} ± {100 * e:.2f} %" for d, e in against.values())]
        )
    if args.splits > 1:
        rows.append(
            [
                "deviation over splits",
                "",
                *(percent(float(np.std([one.miou for one in column], ddof=1))) for column in scores[1:]),
            ]
        )
    order = [number for number in np.argsort(-pixels, kind="stable") if pixels[number]]
    for number in order[:_CLASSES_SHOWN]:
        rows.append(
            [
                f"  {masks.classes[number]} ({pixels[number] / pixels.sum():.1%})",
                *(percent(float(np.mean([one.iou[number] for one in column]))) for column in scores),
            ]
        )
    how = f"{args.folds} folds" if len(rounds) > 1 else f"trained on {len(rounds[0].train):,} others"
    text = table([f"{len(judged):,} images, {how}, {len(order)} classes, {args.size} px", *names], rows)
    if masks.left_out:
        text += f"\nnote     left out: {masks.without()}"
    results = {
        name: {
            "miou": [one.miou for one in column],
            "mean_accuracy": [one.mean_accuracy for one in column],
            "pixel_accuracy": [one.pixel_accuracy for one in column],
            "standard_error": jackknife(groups[name][0], lambda m: DenseScores.of(m).miou) if name in groups else None,
            "iou": {masks.classes[number]: float(np.mean([one.iou[number] for one in column])) for number in order},
            "l2": l2s.get(name),
            "confusion": groups[name][0].sum(axis=0).tolist() if name in groups else None,
        }
        for name, column in zip(names, scores, strict=True)
    }
    return text, {
        "val_images": len(judged),
        "classes": list(masks.classes),
        "results": results,
        "difference_to_first": {title: {"miou": d, "standard_error": e} for title, (d, e) in against.items()},
    }


def difference(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> tuple[float, float]:
    """How much more mIoU the second has, and the standard error of that: both were judged on the same images."""
    from passl_densecl.evaluation.dense_probe import DenseScores, jackknife

    def gain(pair: np.ndarray) -> float:
        return DenseScores.of(pair[1]).miou - DenseScores.of(pair[0]).miou

    pairs = [np.stack([a, b], axis=1) for a, b in zip(first, second, strict=True)]  # (G, 2, classes, classes)
    return float(np.mean([gain(pair.sum(axis=0)) for pair in pairs])), jackknife(pairs[0], gain)


def spread_over(indices: Sequence[int], most: int) -> list[int]:
    """At most so many of them, evenly apart."""
    return [
        indices[number] for number in np.unique(np.linspace(0, len(indices) - 1, min(most, len(indices))).astype(int))
    ]
