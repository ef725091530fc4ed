#!/usr/bin/env python
"""Judge a backbone without training: `knn` classifies images by their nearest neighbours among labelled ones."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from passl_densecl.config import DEPTHS
from passl_densecl.data.datasets import ImageSet, scan_images
from passl_densecl.errors import InputError
from passl_densecl.transforms import CenterCrop, Resize


def knn(args: argparse.Namespace) -> None:
    """Print and save the accuracy of a weighted k-NN on average-pooled features."""
    if args.size < 8 or args.k < 1:
        raise InputError(f"expected --size of at least 8 and --k of at least 1, got {args.size} and {args.k}")
    train = scan_images(args.train, labelled=True)
    val = scan_images(args.val, labelled=True, classes=train.classes)
    if args.k > len(train):
        raise InputError(f"--k {args.k}: {args.train!r} holds only {len(train)} images")

    from rich.progress import Progress  # after the checks: Paddle takes seconds

    from passl_densecl.evaluation import Features, knn_accuracy, load_backbone, pooled_features

    backbone = load_backbone(
        args.weights, args.depth, args.stem_stride, args.seed, last_stride=args.last_stride, encoder=args.encoder
    )
    transforms = (Resize(size=round(args.size * 256 / 224)), CenterCrop(size=args.size))

    def features(title: str, images: ImageSet) -> Features:
        with Progress(transient=True) as bar:
            task = bar.add_task(title, total=len(images))
            return pooled_features(
                backbone, images, transforms, progress=lambda done, _: bar.update(task, completed=done)
            )

    bank, queries = features("train", train), features("val", val)
    top1 = knn_accuracy(
        bank.vectors, bank.labels, queries.vectors, queries.labels, k=args.k, temperature=args.temperature
    )
    result = {"weights": args.weights, "k": args.k, "temperature": args.temperature, "size": args.size, "top1": top1,
              "train_images": len(train), "val_images": len(val)}  # fmt: skip
    print(
        f"{args.k}-NN    top-1 {top1:.2%}  ({len(val):,} images, bank of {len(train):,}, {args.size} px) · {args.weights}"
    )
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("knn", help="weighted k-nearest-neighbour accuracy on pooled features")
    one.set_defaults(run=knn)
    one.add_argument(
        "--weights", required=True, metavar="W", help="a checkpoint, run folder or weight file, or 'random'"
    )
    one.add_argument("--train", required=True, metavar="DIR", help="labelled images, one folder a class: the bank")
    one.add_argument("--val", required=True, metavar="DIR", help="labelled images to classify")
    one.add_argument("--size", type=int, default=224, help="pixels of the centre crop")
    one.add_argument("--k", type=int, default=20)
    one.add_argument("--temperature", type=float, default=0.07)
    one.add_argument("--depth", type=int, choices=DEPTHS, help="of random weights")
    one.add_argument(
        "--stem_stride", type=int, choices=(4, 2, 1), help="default: as the run's config.yaml says, else 4"
    )
    one.add_argument("--last_stride", type=int, choices=(2, 1), help="default: as the run's config.yaml says, else 2")
    one.add_argument("--encoder", choices=("query", "key"), default="query", help="of a pre-training checkpoint")
    one.add_argument("--seed", type=int, default=0, help="of random weights")
    one.add_argument("--output", type=Path, metavar="F.json", help="also write the result there")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    args.run(args)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
