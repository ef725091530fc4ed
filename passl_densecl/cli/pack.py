"""Pack a set of images into one LMDB file: python tools/pack_data.py DIR OUT.lmdb [--shorter-side 256]"""

from __future__ import annotations

import argparse
import os
import shlex
import time

from passl_densecl.cli.command import Parser, command
from passl_densecl.cli.console import print_first, progress
from passl_densecl.cli.options import add_list_options, add_workers_option, at_least, worker_count
from passl_densecl.data.datasets import ImageSet, scan_images
from passl_densecl.data.packing import Packed, pack_images
from passl_densecl.errors import InputError
from passl_densecl.text import megabytes, one_line, printable, quantity

SHOWN = 3  # bad images that are named
SHORTER_SIDE = "reduce images to a shorter side of N pixels, stored as JPEG; smaller ones are kept byte for byte"


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description="Pack a folder of images into one LMDB file, which data.root then names instead of the folder.",
        epilog="The file has its name only when it is complete. Needs the package lmdb: pip install lmdb",
    )
    parser.add_argument("root", metavar="DIR", help="a folder of images")
    parser.add_argument("output", metavar="OUT.lmdb", help="the file to make; it must not exist yet")
    add_list_options(parser)
    parser.add_argument("--shorter-side", type=int, metavar="N", help=SHORTER_SIDE)
    parser.add_argument("--quality", type=int, default=95, help="of these JPEG files, 1 to 100 (default: 95)")
    add_workers_option(parser)
    return parser.parse_args(words)


def pack(args: argparse.Namespace) -> None:
    workers = worker_count(args)
    at_least(1, shorter_side=args.shorter_side)
    if not 1 <= args.quality <= 100:
        raise InputError(f"--quality {args.quality}: expected 1 to 100")
    if not args.output.endswith(".lmdb"):
        raise InputError(f"{printable(args.output)}: the name must end in .lmdb")
    if os.path.lexists(args.output):
        raise InputError(f"{printable(args.output)} exists already; choose another name, or remove it")
    images = scan_images(args.root, args.list_file, labeled=args.labeled)
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
        print_first(names, SHOWN, "; tools/check_data.py names them all")
    key = "data.train.root" if args.labeled else "data.root"
    print(f"wrote    {printable(args.output)} · use it with -o {key}={printable(shlex.quote(args.output))}")


@command
def main(words: list[str] | None = None) -> int:
    pack(parse_arguments(words))
    return 0
