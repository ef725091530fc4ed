"""Decode every image of a set; say what is in it and which images cannot be read.

Exit code 0: all are fine; 1: some are bad; 2: invalid input, named in the message.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from passl_densecl.cli.command import Parser, Verb
from passl_densecl.cli.console import print_first, progress
from passl_densecl.cli.options import add_images, add_list_options, add_workers_option, find_images, worker_count
from passl_densecl.data.check import Report, check_images
from passl_densecl.data.datasets import ImageSet
from passl_densecl.data.sixteen_bit import describe_sixteen_bit
from passl_densecl.errors import InputError
from passl_densecl.text import megabytes, one_line, quantity

SHOWN = 10  # bad images that are named on the terminal
DEFAULT_OUTPUT = "bad_images.txt"
OUTPUT = (
    f"where the paths of bad images go, relative to DIR, each after a '# reason' (default: {DEFAULT_OUTPUT}, "
    "written only when there are any)"
)


def add_options(parser: Parser) -> None:
    add_images(parser, "a folder of images, or an .lmdb packed from one")
    add_list_options(parser)
    add_workers_option(parser)
    parser.add_argument("--output", type=Path, metavar="F.txt", help=OUTPUT)


def check(args: argparse.Namespace) -> bool:
    """Print the report and write the list; True when all images are fine."""
    workers = worker_count(args)
    images = find_images(args)
    print(f"data     {images.describe()}", flush=True)
    began = time.perf_counter()
    with progress("check") as bar:
        report = check_images(images, workers, lambda done, bad: bar(done, len(images), f"{bad:,} bad"))
    seconds = time.perf_counter() - began
    print(
        f"checked  {quantity(len(images), 'image')} in {seconds:,.1f} s with {quantity(workers, 'worker')} "
        f"({len(images) / seconds:,.0f} images/s)"
    )
    print_contents(images, report)
    if report.bad:
        print_bad(images, report)
    output = args.output or Path(DEFAULT_OUTPUT)
    if report.bad and args.output is None and output.exists() and not args.overwrite:
        print(f"note     {output} exists already and is not replaced: add --overwrite, or --output F.txt")
    elif report.bad or args.output:
        try:
            write_list(output, images, report)
            print(f"wrote    {output}")
        except InputError as error:
            if args.output is not None:
                raise
            print(f"note     the list could not be written: {error}")  # the answer is printed above
    return not report.bad


def print_contents(images: ImageSet, report: Report) -> None:
    """Sizes, formats and colors of the images that decode."""
    if not len(report.sizes):
        return
    smallest, median, largest = (f"{width}×{height}" for width, height in report.quantiles())
    print(f"sizes    smallest {smallest}, median {median}, largest {largest} px; {megabytes(report.file_bytes)}")
    formats, colors = (
        ", ".join(f"{count:,} {name}" for name, count in found.most_common()) for found in (report.kinds, report.colors)
    )
    print(f"kinds    {formats}; {colors}")
    if report.sixteen_bit:
        says = describe_sixteen_bit(images.sixteen_bit, report.brightest)
        print(f"note     {report.sixteen_bit:,} have 16 bits a value: {says}")
    if report.misnamed:
        print(f"note     {report.misnamed:,} of another format than the name says; they are read all the same")


def print_bad(images: ImageSet, report: Report) -> None:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in report.reasons().most_common())
    print(f"bad      {quantity(len(report.bad), 'image')}: {reasons}")
    print_first([f"{one_line(images.path(index))}: {reason}" for index, reason in report.bad], SHOWN)


def write_list(output: Path, images: ImageSet, report: Report) -> None:
    """Paths in the bytes of the file system, so that every name comes out as it is; the form of a list file.

    A name that no line of such a file can hold, because of a line end in it for example, is escaped behind a '#'.
    """
    lines = []
    for index, reason in report.bad:
        path = images.relative_path(index)
        lines.append(b"# " + reason.encode("utf-8", "backslashreplace"))
        if path.splitlines() == [path.strip()] and not path.startswith(b"#"):
            lines.append(path)
        else:
            lines.append(b"# escaped: " + one_line(os.fsdecode(path)).encode())
    try:
        output.write_bytes(b"".join(line + b"\n" for line in lines))
    except OSError as error:
        raise InputError(f"--output {output}: {error.strerror or error}") from error


main = Verb(__doc__, add_options, lambda args: 0 if check(args) else 1, examples=("data check photos",))
