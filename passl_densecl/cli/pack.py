"""Pack a set of images into one LMDB file: python tools/pack_data.py DIR OUT.lmdb [--shorter_side 256]"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from passl_densecl.cli.command import command
from passl_densecl.data.datasets import ImageSet, scan_images
from passl_densecl.data.packing import Packed, pack_images
from passl_densecl.data.workers import available_cores
from passl_densecl.errors import InputError
from passl_densecl.text import one_line, plural, printable

SHOWN = 3  # bad images that are named


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Pack a folder of images into one LMDB file, which data.root then names instead of the folder.",
        epilog="The file has its name only when it is complete. Needs the package lmdb: pip install lmdb",
    )
    parser.add_argument("root", metavar="DIR", help="a folder of images")
    parser.add_argument("output", metavar="OUT.lmdb", help="the file to make; it must not exist yet")
    parser.add_argument("--list_file", metavar="F", help="only the images that this text file lists, in its order")
    parser.add_argument(
        "--labeled", action="store_true", help="with labels: DIR/CLASS/image.jpg, or after the paths in F"
    )
    parser.add_argument(
        "--shorter_side",
        type=int,
        metavar="N",
        help="reduce images to a shorter side of N pixels and store them as JPEG; smaller ones are kept byte for byte",
    )
    parser.add_argument("--quality", type=int, default=95, help="of these JPEG files, 1 to 100 (default: 95)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that reduce (default: one a core)")
    return parser.parse_args(arguments)


def pack(args: argparse.Namespace) -> None:
    workers = available_cores() if args.workers is None else args.workers
    if workers < 1:
        raise InputError(f"--workers {workers}: expected at least 1")
    if args.shorter_side is not None and args.shorter_side < 1:
        raise InputError(f"--shorter_side {args.shorter_side}: expected at least 1 pixel")
    if not 1 <= args.quality <= 100:
        raise InputError(f"--quality {args.quality}: expected 1 to 100")
    if not args.output.endswith(".lmdb"):
        raise InputError(f"{printable(args.output)}: the name must end in .lmdb")
    if os.path.lexists(args.output):
        raise InputError(f"{printable(args.output)} exists already; choose another name, or remove it")
    images = scan_images(args.root, args.list_file, labeled=args.labeled)
    print(f"data     {images.describe()}", flush=True)
    began = time.perf_counter()
    columns = (TextColumn("pack"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, auto_refresh=False, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task("pack", total=len(images))
        drawn = 0.0

        def progress(done: int) -> None:
            nonlocal drawn
            if time.perf_counter() - drawn > 0.2:
                bar.update(task, completed=done, refresh=True)
                drawn = time.perf_counter()

        packed = pack_images(
            images,
            args.output,
            shorter_side=args.shorter_side,
            quality=args.quality,
            num_workers=workers,
            progress=progress,
        )
    report(args, images, packed, time.perf_counter() - began)


def report(args: argparse.Namespace, images: ImageSet, packed: Packed, seconds: float) -> None:
    before, after = packed.source_bytes, packed.pack_bytes
    size = f"{before / 1e6:,.1f} MB → {after / 1e6:,.1f} MB"
    if 0 < after < before:
        size += f", {1 - after / before:.0%} smaller"
    print(
        f"packed   {len(images):,} {plural(len(images), 'image')}, {packed.reduced:,} of them reduced, in {seconds:,.1f} s: "
        + size
    )
    if packed.bad:
        print(f"warning  {len(packed.bad):,} cannot be read; training puts others in their place:")
        for index, reason in packed.bad[:SHOWN]:
            print(f"         {one_line(images.path(index))}: {reason}")
        if len(packed.bad) > SHOWN:
            print(f"         and {len(packed.bad) - SHOWN:,} more; tools/check_data.py names them all")
    key = "data.train.root" if args.labeled else "data.root"
    print(f"wrote    {printable(args.output)} · use it with -o {key}={printable(shlex.quote(args.output))}")


@command
def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    pack(args)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit like others: what is unfinished is removed
    sys.exit(main())
