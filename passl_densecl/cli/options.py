"""Options that several verbs share, and the checks of their values."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from passl_densecl.cli.command import Parser
from passl_densecl.config import DEPTHS, RANDOM
from passl_densecl.data.datasets import ImageSet, scan_images
from passl_densecl.data.images import SixteenBit
from passl_densecl.data.workers import available_cores
from passl_densecl.errors import InputError
from passl_densecl.weights.files import weights_file
from passl_densecl.weights.recorded import BackboneOptions, recorded_sixteen_bit, recorded_size

WEIGHTS = "a run or checkpoint folder, a weight file, the name of a published model, or 'random' for untrained weights"
PUBLISHED_SIZE = 224
T = TypeVar("T")


def add_override_option(parser: argparse.ArgumentParser) -> None:
    help = "for example data.root=photos; repeatable"
    parser.add_argument("-o", "--override", action="append", default=[], metavar="KEY=VALUE", help=help)


def add_images(parser: Parser, help: str, *, place: bool = True, **kwargs: Any) -> None:
    """--images, which used to be --root."""
    if place:
        parser.add_place("--images", metavar="DIR", help=help, **kwargs)
    else:
        parser.add_argument("--images", metavar="DIR", help=help, **kwargs)
    parser.aliases["--root"] = "--images"


def add_list_options(parser: argparse.ArgumentParser) -> None:
    """Which images of a folder, and whether with labels."""
    labeled = "with labels: DIR/CLASS/image.jpg, or after the paths in F"
    parser.add_argument("--list-file", metavar="F", help="only the images that this text file lists, in its order")
    parser.add_argument("--labeled", action="store_true", help=labeled)
    labels = "how to read the labels of F"
    extensions = "any: files without a known ending too, judged by their first bytes"
    sixteen = "of 16 bits the upper 8, or each image's own range (default: as the run of the weights, else high_byte)"
    parser.add_argument("--labels", choices=("auto", "names", "numbers"), default="auto", help=labels)
    parser.add_argument("--extensions", choices=("known", "any"), default="known", help=extensions)
    parser.add_argument("--sixteen-bit", choices=("high_byte", "stretch"), help=sixteen)


def find_images(args: argparse.Namespace, weights: Sequence[str] = ()) -> ImageSet:
    """The images of --images, as `add_list_options` says; 16 bits as the run of the weights. Raises InputError."""
    return scan_images(
        args.images,
        args.list_file,
        labeled=args.labeled,
        labels=args.labels,
        extensions=args.extensions,
        sixteen_bit=args.sixteen_bit or sixteen_bit_for(weights),
    )


def add_dtype_option(parser: argparse.ArgumentParser) -> None:
    dtype = "type of the numbers in the new file; toolboxes take float32"
    parser.add_argument("--dtype", choices=("float32", "float16", "float64"), default="float32", help=dtype)


def add_workers_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")


def worker_count(args: argparse.Namespace) -> int:
    """The value of --workers. Raises InputError when it is below 1."""
    at_least(1, workers=args.workers)
    return available_cores() if args.workers is None else args.workers


def add_encoder_option(parser: argparse.ArgumentParser) -> None:
    """Which of several backbones in a file: an encoder of ours, or by the names there."""
    prefix = "what stands before conv1.weight in the file, if it holds several backbones (default: found)"
    parser.add_argument("--prefix", metavar="P", help=prefix)
    help = "which encoder of a pre-training checkpoint"
    parser.add_argument("--encoder", choices=("query", "key"), default="query", help=help)


def add_backbone_options(parser: argparse.ArgumentParser) -> None:
    """The encoder, and what a weight file may not record: `backbone_options` reads it."""
    add_encoder_option(parser)
    for name, choices, published in (("--stem-stride", (4, 2, 1), 4), ("--last-stride", (2, 1), 2)):
        help = f"of the backbone (default: as the weights' run or identity card says, else {published})"
        parser.add_argument(name, type=int, choices=choices, help=help)


def add_weights_options(
    parser: Parser, *, several: bool = False, note: str = "", depth: str = " (default: 50)", required: bool = True
) -> None:
    """--weights, also by position (a list where `several`), and what `backbone_options` reads; `note` and `depth` end
    their help."""
    nargs: dict[str, Any] = {"nargs": "+"} if several else {}
    parser.add_place("--weights", required=required, metavar="W", help=WEIGHTS + note, **nargs)
    add_backbone_options(parser)
    parser.add_argument("--depth", type=int, choices=DEPTHS, help=f"depth of random weights{depth}")
    parser.add_argument("--seed", type=int, default=0, help="seed of random weights and all random draws")


def backbone_options(args: argparse.Namespace) -> BackboneOptions:
    """What the options state about the backbone; None where they say nothing."""
    return BackboneOptions(getattr(args, "depth", None), args.stem_stride, args.last_stride, args.prefix)


def add_size(parser: argparse.ArgumentParser, what: str, default: str = "as the run of the weights, else 224") -> None:
    parser.add_argument("--size", type=int, metavar="PIXELS", help=f"{what} (default: {default})")


def size_of(size: int | None, weights: Sequence[str | Path]) -> int:
    """--size in pixels, or the size of the images that the runs of the weights trained on, 224 where none is recorded.

    Raises InputError when the weights' runs had different sizes: the option must choose.
    """
    if size is not None:
        return size
    recorded = _recorded(weights, recorded_size, "were trained at different sizes", "choose one with --size PIXELS")
    chosen = recorded or PUBLISHED_SIZE
    why = "as in the run of the weights" if recorded else "no size is recorded for the weights"
    print(f"size     {chosen} px, {why}; --size changes it")
    return chosen


def sixteen_bit_for(weights: Sequence[str | Path]) -> SixteenBit:
    """How the runs of the weights read images with 16 bits a value; the upper 8 bits where none is recorded.

    Raises InputError when they read them differently.
    """
    remedy = "evaluate them one at a time"
    return _recorded(weights, recorded_sixteen_bit, "read 16-bit images differently", remedy) or "high_byte"


def _recorded(weights: Sequence[str | Path], read: Callable[[Path], T | None], differ: str, remedy: str) -> T | None:
    """The one value that is recorded for the weights, None for none. Raises InputError when there are several."""
    found = {str(one): read(weights_file(Path(one))) for one in weights if str(one) != RANDOM}
    values = {each for each in found.values() if each is not None}
    if len(values) > 1:
        each = ", ".join(f"{one}: {value}" for one, value in found.items())
        raise InputError(f"the weights {differ} ({each}); {remedy}")
    return values.pop() if values else None


def at_least(least: int, **values: int | None) -> None:
    """Raises InputError for an option below `least`. Keywords are options: `batch_size` is --batch-size."""
    for name, value in values.items():
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value}: expected at least {least}")
