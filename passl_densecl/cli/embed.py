"""Features of a folder of images as a table: python tools/embed.py DIR --weights W --output F.npz"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from passl_densecl.api.embeddings import Embeddings, check_format, embed, nearest, write, write_card, write_neighbors
from passl_densecl.api.info import checked_view
from passl_densecl.cli.command import command
from passl_densecl.config import DEPTHS
from passl_densecl.data.datasets import ImageSet, check_decodable, scan_images
from passl_densecl.data.workers import available_cores
from passl_densecl.disk import whole_file
from passl_densecl.errors import InputError
from passl_densecl.text import plural, printable
from passl_densecl.transforms import apply

SHOWN = 3  # bad images that are named
ROWS = 8  # of the picture
TILE = 112  # pixels of an image in the picture
MOST_WORKERS = 8


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Features of every image of a folder, with the file names, as a table.",
        epilog="Images that cannot be decoded are left out and named. Files appear when they are complete.",
    )
    parser.add_argument("root", metavar="DIR", help="a folder of images, or a pack (.lmdb)")
    parser.add_argument(
        "--weights",
        required=True,
        metavar="W",
        help="a checkpoint, run folder, weight file, name of a published model, or 'random'",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="F", help="the table: .npz, .csv or .parquet (needs pyarrow)"
    )
    parser.add_argument(
        "--stage",
        choices=("pooled", "backbone", "global", "dense"),
        default="pooled",
        help="pooled: one vector an image (default); backbone: one a cell; global, dense: the same behind the necks "
        "of a pre-training checkpoint",
    )
    parser.add_argument(
        "--size", type=int, metavar="N", help="pixels of the center crop (default: as the weights' run)"
    )
    parser.add_argument(
        "--neighbors",
        type=int,
        metavar="K",
        help="also F_neighbors.csv with the K nearest images of each, and F_neighbors.png with some of them",
    )
    parser.add_argument("--list_file", metavar="L", help="only the images that this text file lists, in its order")
    parser.add_argument(
        "--labeled", action="store_true", help="with labels: DIR/CLASS/image.jpg, or after the paths in L"
    )
    parser.add_argument("--encoder", choices=("query", "key"), default="query", help="of a pre-training checkpoint")
    parser.add_argument("--depth", type=int, choices=DEPTHS, help="of random weights")
    parser.add_argument("--stem_stride", type=int, choices=(4, 2, 1), help="default: as the run's config says, else 4")
    parser.add_argument("--last_stride", type=int, choices=(2, 1), help="default: as the run's config says, else 2")
    parser.add_argument("--seed", type=int, default=0, help="of random weights (default: 0)")
    parser.add_argument("--batch_size", type=int, default=64, help="default: 64")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that decode, 0 for none (default: by cores)"
    )
    parser.add_argument("--device", metavar="D", help="cpu, gpu or gpu:1 (default: Paddle's choice)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist already")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    outputs = planned(args)
    check(args, outputs)
    images = scan_images(args.root, args.list_file, labeled=args.labeled)
    if args.neighbors is not None and args.neighbors >= len(images):
        raise InputError(f"--neighbors {args.neighbors}: expected at most {len(images) - 1}, of {len(images)} images")
    check_decodable(images)
    print(f"data     {images.describe()}", flush=True)

    from passl_densecl.api.inference import progress_bar  # after the checks: Paddle takes seconds
    from passl_densecl.api.models import get_model

    model = get_model(
        args.weights,
        True,
        args.device,
        depth=args.depth,
        stem_stride=args.stem_stride,
        last_stride=args.last_stride,
        seed=args.seed,
    )
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
    if args.batch_size < 1:
        raise InputError(f"--batch_size {args.batch_size}: expected at least 1")
    if args.workers is not None and args.workers < 0:
        raise InputError(f"--workers {args.workers}: expected at least 0")
    if args.neighbors is not None:
        if args.neighbors < 1:
            raise InputError(f"--neighbors {args.neighbors}: expected at least 1")
        if args.stage in ("backbone", "dense"):
            raise InputError(f"--neighbors needs one vector an image: take --stage pooled or global, not {args.stage}")


def report_left_out(found: Embeddings) -> None:
    if not found.left_out:
        return
    count = len(found.left_out)
    print(
        f"warning  {count:,} {plural(count, 'image')} cannot be decoded and {'is' if count == 1 else 'are'} left out:"
    )
    for name, reason in found.left_out[:SHOWN]:
        print(f"         {name}: {reason}")
    if count > SHOWN:
        print(f"         and {count - SHOWN:,} more; the file lists them all")


def neighbors(args: argparse.Namespace, outputs: dict[str, Path], images: ImageSet, found: Embeddings) -> list[Path]:
    """Write the table and, where matplotlib is there, the picture; returns what was written."""
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
            title=f"{printable(args.root)}, {args.stage} features of {args.weights}",
        )
    except InputError as error:
        print(f"note     no {outputs['picture'].name}: {error}")
        return [outputs["neighbors"]]
    with whole_file(outputs["picture"]) as file:
        figure.savefig(file, format="png")
    return [outputs["neighbors"], outputs["picture"]]


@command
def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    run(args)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit like others: what is unfinished is removed
    sys.exit(main())
