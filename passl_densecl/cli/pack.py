"""Pack a folder of images into one LMDB file, which data.root then names instead of the folder.

The file has its name only when it is complete. Needs the package lmdb: pip install lmdb
"""

from __future__ import annotations

import argparse
import os
import shlex
import time

from passl_densecl.cli.command import Parser, Verb
from passl_densecl.cli.console import print_first, progress
from passl_densecl.cli.options import (
    add_images,
    add_list_options,
    add_workers_option,
    at_least,
    find_images,
    worker_count,
)
from passl_densecl.data.datasets import ImageSet
from passl_densecl.data.packing import Packed, pack_images
from passl_densecl.errors import InputError
from passl_densecl.text import megabytes, one_line, printable, quantity

SHOWN = 3  # bad images that are named
SHORTER_SIDE = "reduce images to a shorter side of N pixels, stored as JPEG; smaller ones are kept byte for byte"


def add_options(parser: Parser) -> None:
    add_images(parser, "a folder of images")
    output = "the file to make; it must not exist yet (default: DIR.lmdb)"
    parser.add_place("--output", metavar="OUT.lmdb", required=False, help=output)
    add_list_options(parser)
    parser.add_argument("--shorter-side", type=int, metavar="PIXELS", help=SHORTER_SIDE)
    parser.add_argument("--quality", type=int, default=95, metavar="Q", help="of these JPEG files, 1 to 100")
    add_workers_option(parser)


def pack(args: argparse.Namespace) -> None:
    workers = worker_count(args)
    at_least(1, shorter_side=args.shorter_side)
    if not 1 <= args.quality <= 100:
        raise InputError(f"--quality {args.quality}: expected 1 to 100")
    args.output = args.output or f"{args.images.rstrip('/')}.lmdb"
    if not args.output.endswith(".lmdb"):
        raise InputError(f"{printable(args.output)}: the name must end in .lmdb")
    if os.path.lexists(args.output):
        raise InputError(f"{printable(args.output)} exists already; choose another name, or remove it")
    images = find_images(args)
    print(f"data     {images.describe()}", flush=True)
    began = time.perf_counter()
    with progress("pack") as bar:
        packed = pack_images(
            images,
            args.output,
            shorter_side=args.shorter_side,
            quality=args.quality,
            num_workers=workers,
            progress=lambda done: bar(done, len(images)),
        )
    report(args, images, packed, time.perf_counter() - began)


def report(args: argparse.Namespace, images: ImageSet, packed: Packed, seconds: float) -> None:
    before, after = packed.source_bytes, packed.pack_bytes
    size = f"{megabytes(before)} → {megabytes(after)}"
    if 0 < after < before:
        size += f", {1 - after / before:.0%} smaller"
    print(f"packed   {quantity(len(images), 'image')}, {packed.reduced:,} of them reduced, in {seconds:,.1f} s: {size}")
    if packed.bad:
        print(f"warning  {len(packed.bad):,} cannot be read; training puts others in their place:")
        names = [f"{one_line(images.path(index))}: {reason}" for index, reason in packed.bad]
        print_first(names, SHOWN, "; densecl data check names them all")
    key = "data.train.root" if args.labeled else "data.root"
    print(f"wrote    {printable(args.output)} · use it with -o {key}={printable(shlex.quote(args.output))}")


main = Verb(__doc__, add_options, pack, examples=("data pack photos photos.lmdb --shorter-side 256",), outputs=())
