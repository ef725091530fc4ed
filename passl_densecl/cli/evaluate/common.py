"""What the verbs of `evaluate` share: options, the backbones in turn, features of labeled images, figures as JSON."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import passl_densecl
from passl_densecl.cli.console import progress
from passl_densecl.cli.options import at_least, backbone_options, sixteen_bit_for
from passl_densecl.data.datasets import ImageSet, Transforms
from passl_densecl.errors import InputError
from passl_densecl.transforms import CenterCrop, Resize

if TYPE_CHECKING:
    from passl_densecl.evaluation.features import Features
    from passl_densecl.evaluation.linear import LinearResult
    from passl_densecl.models import ResNetBackbone

RANDOM = "random"
LRS, WEIGHT_DECAYS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3), (0.0, 0.0001, 0.001, 0.01)


SIZE = "side of the center crop (default: as the run of the weights, else 224)"


def add_folders(parser: argparse.ArgumentParser, bank: str) -> None:
    """Two labeled folders, and how large their images are."""
    parser.add_argument("--train", required=True, metavar="DIR", help=f"labeled images, a folder per class: {bank}")
    parser.add_argument("--val", required=True, metavar="DIR", help="labeled images to classify")
    add_size(parser)


def add_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, metavar="PIXELS", help=SIZE)


def add_sweep(parser: argparse.ArgumentParser, epochs: int) -> None:
    """The options of linear classifiers on cached features."""
    lrs, decays = "learning rates to choose from (default: 0.001 to 0.3)", "and weight decays (default: 0 to 0.01)"
    parser.add_argument("--lr", type=float, nargs="+", default=list(LRS), metavar="X", help=lrs)
    parser.add_argument("--weight-decay", type=float, nargs="+", default=list(WEIGHT_DECAYS), metavar="X", help=decays)
    parser.add_argument("--epochs", type=int, default=epochs, help="epochs over the cached features")
    parser.add_argument("--batch-size", type=int, default=256, help="batch size of the classifiers")


LEAST = {
    **{"size": 8, "folds": 2, "dim": 64},
    **dict.fromkeys(("epochs", "batch_size", "copies", "count", "samples", "splits", "cells"), 1),
}


def check_common(args: argparse.Namespace) -> None:
    """Check what needs no images. Raises InputError."""
    for name, least in LEAST.items():
        at_least(least, **{name: getattr(args, name, None)})


def backbones(args: argparse.Namespace) -> Iterator[tuple[str, ResNetBackbone]]:
    """(column title, backbone in eval mode) for each of --weights, one at a time.

    Random weights without --depth are those of the first other backbone before it was trained: same depth and strides.
    """
    from passl_densecl.evaluation.features import load_backbone, untrained_like

    def load(path: str) -> ResNetBackbone:
        return load_backbone(path, backbone_options(args), seed=args.seed, encoder=args.encoder)

    others = [path for path in args.weights if path != RANDOM]
    for title, path in zip(titles(args.weights), args.weights, strict=True):
        if path == RANDOM and args.depth is None and others:
            yield title, untrained_like(load(others[0]), args.seed)
        else:
            yield title, load(path)


def titles(weights: Sequence[str]) -> list[str]:
    """Short and different names: the last part of a path, or as many as it takes."""
    if len(set(weights)) < len(weights):
        raise InputError("--weights names one file twice; give it once")
    for parts in range(1, 20):
        names = ["/".join(Path(one).parts[-parts:]) if one != RANDOM else one for one in weights]
        if len(set(names)) == len(weights):
            return names
    return list(weights)


def labeled(args: argparse.Namespace) -> tuple[ImageSet, ImageSet]:
    """The images of --train and --val."""
    from passl_densecl.data.datasets import check_decodable, scan_images

    reading = sixteen_bit_for(args.weights)
    train = scan_images(args.train, labeled=True, sixteen_bit=reading)
    val = scan_images(args.val, labeled=True, classes=train.classes, sixteen_bit=reading)
    for images in (train, val):
        check_decodable(images)
    return train, val


def center(size: int) -> Transforms:
    """The test transforms of the field: the shorter side to 8/7 of the size, then its middle."""
    return (Resize(size=round(size * 256 / 224)), CenterCrop(size=size))


def workers(size: int) -> int:
    """How many processes decode."""
    from passl_densecl.data.loader import choose_workers

    return choose_workers("auto", batch_bytes=3 * 64 * size**2, world_size_local=1)[0]


def features(title: str, backbone: ResNetBackbone, images: ImageSet, transforms: Transforms, size: int) -> Features:
    """Pooled vectors under a progress bar; images that cannot be decoded are named."""
    from passl_densecl.evaluation.features import pooled_features

    with progress(title) as bar:
        found = pooled_features(backbone, images, transforms, num_workers=workers(size), progress=bar)
    warn_of_bad(images, found.bad)
    return found


def warn_of_bad(images: ImageSet, bad: Sequence[int]) -> None:
    if bad:
        first = images.path(bad[0])
        warning = f"{len(bad):,} images cannot be decoded, such as {first!r}; others replace them, with their labels"
        print(f"warning  {warning}", file=sys.stderr)


def percent(value: float, error: float | None = None) -> str:
    """'52.9 ± 0.8 %', the second number a standard error."""
    if value is None or math.isnan(value):
        return "–"
    if error is None or math.isnan(error):
        return f"{100 * value:.2f} %"
    return f"{100 * value:.2f} ± {100 * error:.2f} %"


def binomial(share: float, count: int) -> float:
    """Standard error of a share of `count` independent cases."""
    return math.sqrt(max(share * (1 - share), 0) / count)


def figures(train: ImageSet, val: ImageSet, results: Mapping[str, Any], used: int | None = None) -> dict[str, Any]:
    """The JSON of a classification; `used`: how many of the training images, where not all."""
    counts = {"train_images": len(train) if used is None else used, "val_images": len(val)}
    return {**counts, "chance": 1 / len(train.classes), "results": results}


def classified(one: LinearResult) -> dict[str, float]:
    """The figures of a linear classifier."""
    names = ("top1", "top5", "standard_error", "lr", "weight_decay")
    return {name: getattr(one, name) for name in names}


def save(name: str, args: argparse.Namespace, text: str, found: Mapping[str, Any]) -> None:
    """Verb, version, options, the table as printed (what a report shows) and every figure as JSON."""
    options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    run = {"evaluation": name, "version": passl_densecl.__version__, "options": options}
    text = json.dumps({**run, "table": text, **found}, indent=1, ensure_ascii=False)
    args.json.write_text(text + "\n", encoding="utf-8")
