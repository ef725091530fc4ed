"""Look at what a backbone has learned: python tools/visualize.py match IMAGE [IMAGE2] --weights W --output F.png"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # works from a checkout, installed or not

import numpy as np

from passl_densecl.config import DEPTHS
from passl_densecl.data.datasets import decode
from passl_densecl.errors import InputError
from passl_densecl.transforms import Resize


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Pictures of what a backbone has learned.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    match = verbs.add_parser(
        "match",
        help="lines between the cells of two images that the backbone takes for the same",
        description="Lines between mutual nearest neighbours of two images, or of two random crops of one image, where "
        "the right answer is known.",
    )
    match.set_defaults(run=draw_match)
    match.add_argument("image", type=Path, metavar="IMAGE")
    match.add_argument("image2", type=Path, nargs="?", metavar="IMAGE2", help="without it: two random crops of IMAGE")
    add_backbone_options(match)
    match.add_argument(
        "--output", type=Path, required=True, metavar="F.png", help="the picture: .png, .jpg, .pdf or .svg"
    )
    match.add_argument(
        "--size", type=int, default=224, help="shorter side of what the backbone sees, pixels (default: 224)"
    )
    match.add_argument(
        "--threshold", type=float, metavar="T", help="leave out pairs with a cosine below T, from -1 to 1"
    )
    match.add_argument(
        "--all", action="store_true", help="the nearest neighbour of every cell, as the dense loss takes it"
    )
    match.add_argument("--top", type=int, metavar="N", help="draw only the N most similar pairs")
    match.add_argument(
        "--augment", action="store_true", help="of one image: also change colours, blur and flip, as in training"
    )
    match.add_argument("--seed", type=int, default=0, help="of the two crops, and of random weights (default: 0)")
    return parser.parse_args(arguments)


def add_backbone_options(parser: argparse.ArgumentParser) -> None:
    """What every verb needs that looks through a backbone."""
    parser.add_argument(
        "--weights",
        required=True,
        metavar="W",
        help="a checkpoint folder, a run folder, a weight file, or the word 'random' for untrained weights",
    )
    parser.add_argument("--depth", type=int, choices=DEPTHS, help="of random weights (default: 50)")
    parser.add_argument(
        "--stem_stride", type=int, choices=(4, 2, 1), help="default: as the run's config.yaml says, else 4"
    )
    parser.add_argument(
        "--last_stride", type=int, choices=(2, 1), help="default: as the run's config.yaml says, else 2"
    )
    parser.add_argument(
        "--encoder", choices=("query", "key"), default="query", help="of a pre-training checkpoint (default: query)"
    )


def draw_match(args: argparse.Namespace) -> None:
    if args.size < 32:
        raise InputError(f"--size {args.size}: expected at least 32 pixels")
    if args.threshold is not None and not -1 <= args.threshold <= 1:
        raise InputError(f"--threshold {args.threshold}: a cosine is from -1 to 1")
    if args.top is not None and args.top < 1:
        raise InputError(f"--top {args.top}: expected at least 1")
    if args.augment and args.image2 is not None:
        raise InputError(
            "--augment goes with one image, of which two views are drawn; leave it out or leave IMAGE2 out"
        )
    if args.seed < 0:
        raise InputError(f"--seed {args.seed}: expected 0 or more")
    check_output(args.output)
    from passl_densecl.evaluation import load_backbone  # Paddle takes seconds; a wrong option should not
    from passl_densecl.evaluation.correspondence import PHOTOMETRIC
    from passl_densecl.visualize.match import draw_matches, match_images, summary, two_views

    first = decode(str(args.image))
    views = None
    if args.image2 is None:
        views = two_views(first.shape[0], first.shape[1], args.size, args.seed, flip=0.5 if args.augment else 0.0)
        rng = np.random.default_rng([args.seed, 1])
        image_a, image_b = (view.render(first, PHOTOMETRIC if args.augment else (), rng) for view in views)
    else:
        rng = np.random.default_rng(0)  # Resize draws nothing
        image_a, image_b = (Resize(size=args.size)(image, rng) for image in (first, decode(str(args.image2))))
    depth = args.depth or (50 if args.weights == "random" else None)
    backbone = load_backbone(
        args.weights, depth, args.stem_stride, args.seed, last_stride=args.last_stride, encoder=args.encoder
    )
    matches = match_images(backbone, image_a, image_b, threshold=args.threshold, mutual=not args.all, views=views)
    names = args.image.name if args.image2 is None else f"{args.image.name} and {args.image2.name}"
    weights = "random weights" if args.weights == "random" else f"weights {args.weights}"
    figure = draw_matches(image_a, image_b, matches, title=f"{names} · {weights}", top=args.top)
    figure.savefig(args.output)
    print(f"match    {summary(matches)}")
    print(f"wrote    {args.output}")


def check_output(path: Path) -> None:
    """Before minutes of work: the folder is there and the ending is one that can be drawn."""
    endings = (".png", ".jpg", ".pdf", ".svg")
    if path.suffix.lower() not in endings:
        raise InputError(f"--output {path}: the name must end in {', '.join(endings[:-1])} or {endings[-1]}")
    if not path.parent.is_dir():
        raise InputError(f"--output {path}: the folder {path.parent} does not exist; create it first")


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    try:
        args.run(args)
    except InputError as error:
        print(f"visualize.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
