"""VOC07's protocol: a linear SVM per class on pooled features, its cost by 3-fold choice, mean average precision.

Costs 1, 10, 100 and 0.5^4 to 0.5^19. Average precision is the area under the precision-recall curve (as the benchmarks
of this protocol compute it), not the mean of 11 points. Objects marked difficult are absent in training and left out of
the test. For VOC: --voc VOCdevkit/VOC2007. For other images: --images DIR with --train and --test, list files with
lines such as 'images/1.jpg dog,person'.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from passl_densecl.cli.command import Parser
from passl_densecl.cli.console import progress, table
from passl_densecl.cli.evaluate.common import add_size, backbones, center, features, percent
from passl_densecl.errors import InputError

if TYPE_CHECKING:
    from passl_densecl.evaluation.multilabel import MultiLabelSet


def add_options(parser: Parser) -> None:
    parser.add_argument("--voc", type=Path, metavar="DIR", help="a folder with JPEGImages and ImageSets/Main")
    images = "without --voc: what the paths in the list files are relative to"
    parser.add_argument("--images", type=Path, metavar="DIR", help=images)
    parser.aliases["--root"] = "--images"
    for name, split in (("--train", "trainval"), ("--test", "test")):
        parser.add_argument(
            name, default=split, metavar="NAME|FILE", help=f"split of --voc (default: {split}), or list"
        )
    costs = "to choose from (default: the protocol's 19)"
    parser.add_argument("--costs", type=float, nargs="+", metavar="C", help=costs)
    add_size(parser)


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from passl_densecl.evaluation.svm import COSTS, svm_accuracy

    train, test = sets(args)
    found = {}
    for title, backbone in backbones(args):
        bank, queries = vectors(title, backbone, train, test, args)
        with progress(f"{title} SVM") as bar:
            found[title] = svm_accuracy(
                bank, train.targets, queries, test.targets, costs=args.costs or COSTS, progress=bar
            )
    rows = [
        [name, *(percent(one.average_precision[number]) for one in found.values())]
        for number, name in enumerate(train.classes)
    ]
    rows += [["mean (mAP)", *(percent(one.mean) for one in found.values())]]
    text = table([[f"average precision, {len(test.images):,} images, {args.size} px", *found], *rows])
    results = {
        title: {
            "map": one.mean,
            "average_precision": dict(zip(train.classes, one.average_precision.tolist(), strict=True)),
            "cost": dict(zip(train.classes, one.costs.tolist(), strict=True)),
        }
        for title, one in found.items()
    }
    return text, {"train_images": len(train.images), "test_images": len(test.images), "results": results}


def sets(args: argparse.Namespace) -> tuple[MultiLabelSet, MultiLabelSet]:
    """The images to train and to test on."""
    from passl_densecl.evaluation.multilabel import read_list, read_voc

    if (args.voc is None) == (args.images is None):
        raise InputError("expected --voc DIR, or --images DIR with list files for --train and --test")
    if args.voc is not None:
        train, test = read_voc(args.voc, args.train), read_voc(args.voc, args.test)
        if train.classes != test.classes:
            raise InputError(f"{args.voc}: the splits {args.train} and {args.test} have different classes")
        return train, test
    train = read_list(args.train, args.images)
    return train, read_list(args.test, args.images, train.classes)


def vectors(
    title: str, backbone: Any, train: MultiLabelSet, test: MultiLabelSet, args: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features of both. All images must decode: the labels of a replacement would be wrong."""
    found = []
    for name, images in (("train", train.images), ("test", test.images)):
        seen = features(f"{title} {name}", backbone, images, center(args.size), args.size)
        if seen.bad:
            raise InputError(f"{images.path(seen.bad[0])!r} cannot be decoded: replace it, or remove it from the list")
        found.append(seen.vectors)
    return found[0], found[1]
