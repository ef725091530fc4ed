"""Features of every image of a folder, with the file names, as a table.

Images that cannot be decoded are left out and named. Files appear when they are complete.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np

from passl_densecl.api.embeddings import Embeddings, check_format, embed, nearest, write, write_card, write_neighbors
from passl_densecl.api.info import checked_view
from passl_densecl.cli.command import Parser, Verb
from passl_densecl.cli.console import print_first
from passl_densecl.cli.options import add_images, add_list_options, add_weights_options, at_least, find_images
from passl_densecl.data.datasets import ImageSet, check_decodable
from passl_densecl.data.workers import available_cores
from passl_densecl.disk import whole_file
from passl_densecl.errors import InputError
from passl_densecl.text import printable, quantity
from passl_densecl.transforms import apply

SHOWN = 3  # bad images that are named
ROWS = 8  # of the picture
TILE = 112  # pixels of an image in the picture
MOST_WORKERS = 8


STAGE = (
    "pooled: one vector per image (default); backbone: one per cell; global, dense: the same behind the projection "
    "heads of a pre-training checkpoint"
)
NEIGHBORS = "also F_neighbors.csv with the K nearest images of each, and F_neighbors.png with some of them"


def add_options(parser: Parser) -> None:
    output = "the table: .npz, .csv or .parquet (needs pyarrow)"
    stages = ("pooled", "backbone", "global", "dense")
    size = "side of the center crop (default: as the weights' run)"
    workers = "processes that decode, 0 for none (default: by cores)"
    add_weights_options(parser)
    add_images(parser, "a folder of images, or a pack (.lmdb)")
    parser.add_argument("--output", type=Path, required=True, metavar="F", help=output)
    parser.add_argument("--stage", choices=stages, default="pooled", help=STAGE)
    parser.add_argument("--size", type=int, metavar="PIXELS", help=size)
    parser.add_argument("--neighbors", type=int, metavar="K", help=NEIGHBORS)
    add_list_options(parser)
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images computed at once")
    parser.add_argument("--workers", type=int, metavar="N", help=workers)
    parser.add_argument("--device", metavar="D", help="cpu, gpu or gpu:1 (default: Paddle's choice)")


def run(args: argparse.Namespace) -> None:
    outputs = planned(args)
    check(args, outputs)
    images = find_images(args, [args.weights])
    if args.neighbors is not None and args.neighbors >= len(images):
        raise InputError(f"--neighbors {args.neighbors}: expected at most {len(images) - 1}, of {len(images)} images")
    check_decodable(images)
    print(f"data     {images.describe()}", flush=True)

    from passl_densecl.api.inference import progress_bar  # after the checks: Paddle takes seconds
    from passl_densecl.api.models import get_model

    strides = {"stem_stride": args.stem_stride, "last_stride": args.last_stride, "prefix": args.prefix}
    model = get_model(args.weights, True, args.device, depth=args.depth, **strides, seed=args.seed)
    print(f"weights  {model.info.source}: {model.info.kind}, ResNet-{model.info.depth}", flush=True)
    workers = min(available_cores(), MOST_WORKERS) if args.workers is None else args.workers
    began = time.perf_counter()
    with progress_bar("embed", len(images)) as advance:
        found = embed(
            model,
            images,
            args.stage,
            encoder=args.encoder,
            size=args.size,
            batch_size=args.batch_size,
            num_workers=workers,
            progress=advance,
        )
    seconds = time.perf_counter() - began
    shape = " × ".join(f"{length:,}" for length in found.features.shape)
    print(f"embedded {shape} float32 ({args.stage}) in {seconds:,.1f} s, {len(images) / seconds:,.0f} images/s")
    report_left_out(found)
    write(found, args.output)
    written = [args.output]
    if "card" in outputs:
        write_card(found, outputs["card"])
        written.append(outputs["card"])
    if args.neighbors is not None:
        written += neighbors(args, outputs, images, found)
    print(f"wrote    {', '.join(map(str, written))}")


def planned(args: argparse.Namespace) -> dict[str, Path]:
    """Every file that this run may write, by what it is."""
    outputs = {"table": args.output}
    if args.output.suffix == ".csv":
        outputs["card"] = beside(args.output, "_card.json")
    if args.neighbors is not None:
        outputs["neighbors"] = beside(args.output, "_neighbors.csv")
        outputs["picture"] = beside(args.output, "_neighbors.png")
    return outputs


def beside(path: Path, ending: str) -> Path:
    return path.with_name(path.stem + ending)


def check(args: argparse.Namespace, outputs: dict[str, Path]) -> None:
    """Whatever can be wrong with the options, before anything takes time."""
    check_format(args.output)
    for path in outputs.values():
        if path.is_dir():
            raise InputError(f"{path} is a folder; choose another name")
        if path.exists() and not args.overwrite:
            raise InputError(f"{path} exists already; choose another --output, or replace it with --overwrite")
    if args.size is not None:
        checked_view(args.size)
    at_least(1, batch_size=args.batch_size, neighbors=args.neighbors)
    at_least(0, workers=args.workers)
    if args.neighbors is not None and args.stage in ("backbone", "dense"):
        raise InputError(f"--neighbors needs one vector per image: use --stage pooled or global, not {args.stage}")


def report_left_out(found: Embeddings) -> None:
    if not found.left_out:
        return
    images = quantity(len(found.left_out), "image")
    print(f"warning  {images} cannot be decoded and {'is' if len(found.left_out) == 1 else 'are'} left out:")
    print_first([f"{name}: {reason}" for name, reason in found.left_out], SHOWN, "; the file lists them all")


def neighbors(args: argparse.Namespace, outputs: dict[str, Path], images: ImageSet, found: Embeddings) -> list[Path]:
    """Write the table and, where matplotlib is installed, the picture; return what was written."""
    indices, cosines = nearest(found.features, args.neighbors)
    write_neighbors(outputs["neighbors"], found.names, indices, cosines)
    if found.labels is not None:
        same = float((found.labels[indices] == found.labels[:, None]).mean())
        print(f"nearest  {same:.1%} of the {args.neighbors} nearest are of the same class")
    try:
        from passl_densecl.visualize.neighbors import draw_neighbors

        count = len(found.names)
        step = max(1, count // ROWS)
        view = checked_view(TILE)
        figure = draw_neighbors(
            lambda index: apply(view, images.decode(int(found.places[index])), np.random.default_rng(0)),
            list(range(step // 2, count, step))[:ROWS],
            indices[:, :10],
            cosines[:, :10],
            labels=found.labels,
            names=[os.path.basename(name) for name in found.names],
            title=f"{printable(args.images)}, {args.stage} features of {args.weights}",
        )
    except InputError as error:
        print(f"note     no {outputs['picture'].name}: {error}")
        return [outputs["neighbors"]]
    with whole_file(outputs["picture"]) as file:
        figure.savefig(file, format="png")
    return [outputs["neighbors"], outputs["picture"]]


main = Verb(__doc__, add_options, run, examples=("embed output/densecl_r50 photos --output photos.npz --neighbors 5",))
