"""Options that several verbs share, and the checks of their values."""

from __future__ import annotations

import argparse
from pathlib import Path

from passl_densecl.config import DEPTHS, BackboneOptions
from passl_densecl.data.workers import available_cores
from passl_densecl.errors import InputError

WEIGHTS = "a checkpoint folder, a run folder, a weight file, or 'random' for untrained weights"


def add_override_option(parser: argparse.ArgumentParser) -> None:
    help = "for example data.root=photos; repeatable"
    parser.add_argument("-o", "--override", action="append", default=[], metavar="KEY=VALUE", help=help)


def add_list_options(parser: argparse.ArgumentParser) -> None:
    """Which images of a folder, and whether with labels."""
    labeled = "with labels: DIR/CLASS/image.jpg, or after the paths in F"
    parser.add_argument("--list-file", metavar="F", help="only the images that this text file lists, in its order")
    parser.add_argument("--labeled", action="store_true", help=labeled)


def add_workers_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")


def worker_count(args: argparse.Namespace) -> int:
    """The value of --workers. Raises InputError when it is below 1."""
    at_least(1, workers=args.workers)
    return available_cores() if args.workers is None else args.workers


def add_encoder_option(parser: argparse.ArgumentParser) -> None:
    help = "of a pre-training checkpoint (default: query)"
    parser.add_argument("--encoder", choices=("query", "key"), default="query", help=help)


def add_stride_options(parser: argparse.ArgumentParser) -> None:
    """The encoder and the strides, which a weight file may not record."""
    add_encoder_option(parser)
    for name, choices, published in (("--stem-stride", (4, 2, 1), 4), ("--last-stride", (2, 1), 2)):
        help = f"default: as the config of the weights' run says, else {published}"
        parser.add_argument(name, type=int, choices=choices, help=help)


def add_weights_options(
    parser: argparse.ArgumentParser, *, several: bool = False, note: str = "", depth: str = ""
) -> None:
    """--weights (a list where `several`) and what `backbone_options` reads; `note` and `depth` end their help."""
    nargs = "+" if several else None
    parser.add_argument("--weights", required=True, nargs=nargs, metavar="W", help=WEIGHTS + note)
    add_stride_options(parser)
    parser.add_argument("--depth", type=int, choices=DEPTHS, help=f"of random weights{depth}")
    parser.add_argument("--seed", type=int, default=0, help="of random weights and all random draws (default: 0)")


def backbone_options(args: argparse.Namespace) -> BackboneOptions:
    """What the options state about the backbone; None where they say nothing."""
    return BackboneOptions(getattr(args, "depth", None), args.stem_stride, args.last_stride)


def at_least(least: int, **values: int | None) -> None:
    """Raises InputError for an option below `least`. Keywords are options: `batch_size` is --batch-size."""
    for name, value in values.items():
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value}: expected at least {least}")


def check_folders(**files: Path | None) -> None:
    """Raises InputError when a file cannot be written because its folder does not exist. Keywords are options."""
    for name, path in files.items():
        if path is not None and not path.resolve().parent.is_dir():
            raise InputError(f"--{name} {path}: the folder {path.parent} does not exist; create it first")
