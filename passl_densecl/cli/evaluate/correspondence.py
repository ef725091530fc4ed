"""Do the cells of two random crops of one image find each other? The geometry is known, so there is a right answer.

Share of the query cells whose most similar key cell lies within one cell of the true place. Two baselines show what
that is worth: chance, and 'same place', which matches row r and column c with row r and column c and needs no image at
all. It wins when both crops show nearly the same, so judge against it. All weights see the same pairs. 'place R²' says
how well a linear function of a cell's features tells its row and column in the crop (1: exactly): a dense loss that is
won by place raises it while correspondences fall. ± is the standard error over pairs of crops.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from passl_densecl.cli.command import Parser
from passl_densecl.cli.console import progress, table
from passl_densecl.cli.evaluate.common import add_size, backbones, percent
from passl_densecl.errors import InputError


def add_options(parser: Parser) -> None:
    parser.add_argument("--images", required=True, metavar="DIR", help="any images; labels are not needed")
    parser.add_argument("--count", type=int, default=512, metavar="N", help="pairs of crops")
    scale = "area of a crop as a share of the image's (default: 0.2 1)"
    parser.add_argument("--scale", type=float, nargs=2, default=(0.2, 1.0), metavar=("A", "B"), help=scale)
    parser.add_argument("--plain", action="store_true", help="no changes of color and no blur")
    parser.add_argument("--no-flip", action="store_true", help="no mirror images")
    parser.aliases["--pairs"] = "--count"
    add_size(parser)


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from passl_densecl.cli.options import sixteen_bit_for
    from passl_densecl.data.datasets import check_decodable, scan_images

    if not 0 < args.scale[0] <= args.scale[1] <= 1:
        low, high = args.scale
        raise InputError(f"--scale {low:g} {high:g}: expected two shares from 0 to 1, the smaller first")
    images = scan_images(args.images, sixteen_bit=sixteen_bit_for(args.weights))
    check_decodable(images)
    from passl_densecl.evaluation.correspondence import PHOTOMETRIC, ViewSampling, correspondence_accuracy

    flip, photometric = 0.0 if args.no_flip else 0.5, () if args.plain else PHOTOMETRIC
    sampling = ViewSampling(args.size, tuple(args.scale), flip, photometric)
    found = {}
    for title, backbone in backbones(args):
        with progress(title) as bar:
            found[title] = correspondence_accuracy(
                backbone, images, sampling, pairs=args.count, seed=args.seed, progress=bar
            )
    columns = list(found.values())
    rows = [
        ["right", *(percent(one.share, one.standard_error) for one in columns)],
        ["same place", *(percent(one.same_place) for one in columns)],
        ["chance", *(percent(one.chance) for one in columns)],
        ["place R²", *(f"{one.place:.3f} ± {one.place_error:.3f}" for one in columns)],
        ["cells judged", *(f"{one.cells:,}" for one in columns)],
    ]
    text = table([[f"within one cell, {columns[0].pairs:,} pairs, {args.size} px", *found], *rows])
    return text, {"images": len(images), "results": {title: asdict(one) for title, one in found.items()}}
