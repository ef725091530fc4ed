"""Semantic segmentation by a linear 1×1 head on the frozen map: mIoU, the measure that dense pre-training is about.

Images: --voc VOCdevkit/VOC2012; or --images and --masks, two folders with the same file names (values are classes, 255
is ignored; --categories names them by a JSON file of COCO's and is what its panoptic masks need; --group takes its 27
supercategories). With --val-images and --val-masks the head is trained on the first two and judged on these; without,
by --folds over the images, dealt out by a hash of their names, and every image is judged once.

The head is fitted to convergence (L-BFGS on standardized features of single cells, penalty chosen on a quarter of the
training images), logits are interpolated to the size of the mask, every labeled pixel counts. ± is the standard error
over images. Scenes reward features that tell place (sky above, road below): --with-place gives it to every network.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from passl_densecl.cli.console import progress, table
from passl_densecl.cli.evaluate.common import backbones, percent
from passl_densecl.errors import InputError

if TYPE_CHECKING:
    from passl_densecl.evaluation.dense_probe import Reader
    from passl_densecl.evaluation.masks import MaskSet

FOLDERS = {
    "--images": "without --voc: images to train on (or all, for --folds)",
    "--masks": "their masks, under the same names",
    "--val-images": "images to judge on (default: by --folds)",
    "--val-masks": "their masks",
}
_CACHE_BYTES = 2**31
_CLASSES_SHOWN = 30


class Round(NamedTuple):
    """One head: what it is trained on and what it is judged on."""

    split: int
    train: Sequence[int]
    val: Sequence[int]


@dataclass
class Judged:
    """What is judged, and what came out, by column title."""

    masks: MaskSet
    counts: np.ndarray  # (images, classes) pixels
    rounds: list[Round]
    groups: dict[str, list[np.ndarray]] = field(default_factory=dict)  # for each split (G, classes, classes)
    l2s: dict[str, list[float]] = field(default_factory=dict)


def add_options(parser: argparse.ArgumentParser) -> None:
    voc = "a folder with JPEGImages, SegmentationClass, ImageSets"
    categories = "COCO's categories, with panoptic annotations if need be"
    ignore = "mask values that are not classes (default: 255)"
    least = "leave out classes on fewer images (default: as many as there are folds, else 1)"
    splits, names = ("train", "val"), ("TRAIN", "VAL")
    parser.add_argument("--voc", type=Path, metavar="DIR", help=voc)
    parser.add_argument("--voc-splits", nargs=2, default=splits, metavar=names, help="default: train val")
    for name, help in FOLDERS.items():
        parser.add_argument(name, type=Path, metavar="DIR", help=help)
    parser.add_argument("--categories", type=Path, metavar="F.json", help=categories)
    parser.add_argument("--val-categories", type=Path, metavar="F.json", help="default: as --categories")
    parser.add_argument("--group", action="store_true", help="supercategories are the classes")
    parser.add_argument("--ignore", type=int, nargs="+", default=[255], metavar="V", help=ignore)
    parser.add_argument("--min-images", type=int, metavar="N", help=least)
    parser.add_argument("--folds", type=int, default=3, help="folds of cross-validation, without validation images")
    parser.add_argument("--splits", type=int, default=1, help="repeat with other folds")
    parser.add_argument("--size", type=int, default=512, help="pixels of the shorter side")
    parser.add_argument("--cells", type=int, default=60_000, help="cells to train on, at most (default: %(default)s)")
    parser.add_argument(
        "--with-place", action="store_true", help="control: every head also gets the cells' coordinates"
    )
    parser.add_argument("--picture", type=Path, metavar="F.png", help="images, truth and predictions side by side")
    parser.add_argument("--picture-images", type=int, default=4, metavar="N", help="images in the picture")


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    judged = Judged(*plan(args))
    if args.picture is not None:
        from passl_densecl.cli.evaluate.dense_picture import check_matplotlib

        check_matplotlib()
    shown = spread_over(judged.rounds[0].val, args.picture_images) if args.picture else []
    predictions: dict[str, dict[int, np.ndarray]] = {}
    for title, backbone in backbones(args):
        predictions[title] = judge(title, backbone, judged, args, shown)
    if args.picture is not None:
        from passl_densecl.cli.evaluate.dense_picture import draw

        draw(args.picture, judged.masks, shown, predictions)
    return report(args, judged)


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
            "(--min-images)"
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
        raise InputError("expected --voc DIR, or --images DIR with --masks DIR (and --val-images with --val-masks)")
    how: dict[str, Any] = {"group": args.group, "ignore": args.ignore}
    train = read_folders(args.images, args.masks, categories=args.categories, **how)
    if args.val_images is None:
        return train, 0
    val = read_folders(args.val_images, args.val_masks, categories=args.val_categories or args.categories, **how)
    return join(train, val), len(train)


def judge(
    title: str, backbone: Any, judged: Judged, args: argparse.Namespace, shown: Sequence[int]
) -> dict[int, np.ndarray]:
    """Add to `judged` the confusion of all groups of images for each split and the penalty of every head.

    Returns the predictions for the images of `shown`.
    """
    from passl_densecl.evaluation.dense_probe import Probe, confusion, gather_cells, image_map, with_place

    masks, rounds, predictions = judged.masks, judged.rounds, {}

    def look(index: int) -> tuple[np.ndarray, np.ndarray]:
        features = image_map(backbone, masks.image(index), args.size)
        return with_place(features) if args.with_place else features, masks.mask(index)

    reader = look if len(rounds) == 1 else cached(look)
    found: dict[int, list[np.ndarray]] = {}
    l2s = judged.l2s[title] = []
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
            found.setdefault(one.split, []).append(confusion(reader, probe, one.val, progress=bar, on_prediction=keep))
        l2s.append(probe.l2)
    judged.groups[title] = [np.concatenate(parts) for parts in found.values()]
    return predictions


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


def report(args: argparse.Namespace, judged: Judged) -> tuple[str, dict[str, Any]]:
    """The table, and every figure for the JSON."""
    from passl_densecl.evaluation.dense_probe import DenseScores, jackknife

    masks, rounds, groups = judged.masks, judged.rounds, judged.groups
    indices = [index for one in rounds if one.split == 0 for index in one.val]
    pixels = judged.counts[indices].sum(axis=0)
    guess = np.zeros((len(pixels), len(pixels)))
    guess[:, judged.counts[rounds[0].train].sum(axis=0).argmax()] = pixels
    scores = {"one class": [DenseScores.of(guess)]}  # every pixel is given the most frequent class
    scores |= {title: [DenseScores.of(one.sum(axis=0)) for one in column] for title, column in groups.items()}
    errors = {title: jackknife(column[0], lambda m: DenseScores.of(m).miou) for title, column in groups.items()}
    first, *others = groups
    against = {title: difference(groups[first], groups[title]) for title in others}
    order = [number for number in np.argsort(-pixels, kind="stable") if pixels[number]]

    def mean(column: list[DenseScores], pick: Callable[[DenseScores], float]) -> float:
        return float(np.mean([pick(one) for one in column]))

    def row(title: str, pick: Callable[[DenseScores], float]) -> list[str]:
        cells = [percent(pick(scores["one class"][0]))]
        for name, splits in groups.items():
            error = jackknife(splits[0], lambda matrix: pick(DenseScores.of(matrix)))
            cells.append(percent(mean(scores[name], pick), error))
        return [title, *cells]

    def class_row(number: int) -> list[str]:
        cells = [percent(mean(column, lambda one: one.iou[number])) for column in scores.values()]
        return [f"  {masks.classes[number]} ({pixels[number] / pixels.sum():.1%})", *cells]

    rows = [row("mIoU", lambda one: one.miou), row("mean accuracy", lambda one: one.mean_accuracy)]
    rows.append(row("pixel accuracy", lambda one: one.pixel_accuracy))
    if against:
        gains = [f"{100 * gain:+.2f} ± {100 * error:.2f} %" for gain, error in against.values()]
        rows.append([f"mIoU − {first}", "", "", *gains])
    if args.splits > 1:
        spread = [percent(float(np.std([one.miou for one in scores[title]], ddof=1))) for title in groups]
        rows.append(["deviation over splits", "", *spread])
    rows += [class_row(number) for number in order[:_CLASSES_SHOWN]]
    how = f"{args.folds} folds" if len(rounds) > 1 else f"trained on {len(rounds[0].train):,} others"
    text = table([[f"{len(indices):,} images, {how}, {len(order)} classes, {args.size} px", *scores], *rows])
    if masks.left_out:
        text += f"\nnote     left out: {masks.without()}"
    results = {
        name: {
            "miou": [one.miou for one in column],
            "mean_accuracy": [one.mean_accuracy for one in column],
            "pixel_accuracy": [one.pixel_accuracy for one in column],
            "standard_error": errors.get(name),
            "iou": {masks.classes[number]: mean(column, lambda one, n=number: float(one.iou[n])) for number in order},
            "l2": judged.l2s.get(name),
            "confusion": groups[name][0].sum(axis=0).tolist() if name in groups else None,
            "confusion_of_groups": groups[name][0].tolist() if name in groups else None,
        }
        for name, column in scores.items()
    }
    gains = {title: {"miou": gain, "standard_error": error} for title, (gain, error) in against.items()}
    found = {"val_images": len(indices), "classes": list(masks.classes)}
    return text, {**found, "results": results, "difference_to_first": gains}


def difference(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> tuple[float, float]:
    """How much more mIoU the second has, and the standard error of that: both were judged on the same images."""
    from passl_densecl.evaluation.dense_probe import DenseScores, jackknife

    def gain(pair: np.ndarray) -> float:
        return DenseScores.of(pair[1]).miou - DenseScores.of(pair[0]).miou

    pairs = [np.stack([a, b], axis=1) for a, b in zip(first, second, strict=True)]  # (G, 2, classes, classes)
    return float(np.mean([gain(pair.sum(axis=0)) for pair in pairs])), jackknife(pairs[0], gain)


def spread_over(indices: Sequence[int], most: int) -> list[int]:
    """At most so many of them, evenly apart."""
    places = np.linspace(0, len(indices) - 1, min(most, len(indices))).astype(int)
    return [indices[place] for place in np.unique(places)]
