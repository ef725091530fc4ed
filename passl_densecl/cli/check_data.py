"""Find the images of a set that cannot be read: python tools/check_data.py DIR"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from passl_densecl.cli.command import command
from passl_densecl.data.check import Report, check_images
from passl_densecl.data.datasets import ImageSet, scan_images
from passl_densecl.data.workers import available_cores
from passl_densecl.errors import InputError
from passl_densecl.text import one_line, plural

SHOWN = 10  # bad images that are named on the terminal
DEFAULT_OUTPUT = "bad_images.txt"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Decode every image of a set; say what is in it and which images cannot be read.",
        epilog="Exit code 0: all are fine; 1: some are bad; 2: a mistake to mend, named in the message.",
    )
    parser.add_argument("root", metavar="DIR", help="a folder of images, or an .lmdb packed from one")
    parser.add_argument("--list_file", metavar="F", help="only the images that this text file lists")
    parser.add_argument("--labeled", action="store_true", help="labels follow the paths in F; check them as well")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="F.txt",
        help=f"where the paths of bad images go, relative to DIR, each after a '# reason' (default: {DEFAULT_OUTPUT}, "
        "written only when there are any)",
    )
    return parser.parse_args(arguments)


def check(args: argparse.Namespace) -> bool:
    """Print the report and write the list; True when all images are fine."""
    workers = available_cores() if args.workers is None else args.workers
    if workers < 1:
        raise InputError(f"--workers {workers}: expected at least 1")
    output = args.output or Path(DEFAULT_OUTPUT)
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: the folder {output.parent} does not exist; create it first")
    images = scan_images(args.root, args.list_file, labeled=args.labeled)
    print(f"data     {images.describe()}", flush=True)
    began = time.perf_counter()
    columns = (TextColumn("check"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
    with Progress(
        *columns, TimeRemainingColumn(), transient=True, auto_refresh=False, disable=not sys.stdout.isatty()
    ) as bar:
        task = bar.add_task("check", total=len(images), text="")
        drawn = 0.0

        def progress(done: int, bad: int) -> None:
            nonlocal drawn
            if time.perf_counter() - drawn > 0.2:
                bar.update(task, completed=done, text=f"{bad:,} bad", refresh=True)
                drawn = time.perf_counter()

        report = check_images(images, workers, progress)
    seconds = time.perf_counter() - began
    print(
        f"checked  {len(images):,} {plural(len(images), 'image')} in {seconds:,.1f} s with {workers} "
        f"{plural(workers, 'worker')} ({len(images) / seconds:,.0f} images/s)"
    )
    describe(report)
    if report.bad or args.output:
        write_list(output, images, report)
    if report.bad:
        complain(images, report)
        print(f"wrote    {output}")
    return not report.bad


def describe(report: Report) -> None:
    """What is in the images that decode."""
    if not len(report.sizes):
        return
    smallest, median, largest = (f"{width}×{height}" for width, height in report.quantiles())
    print(f"sizes    smallest {smallest}, median {median}, largest {largest} px; {report.file_bytes / 1e6:,.1f} MB")
    formats, colors = (
        ", ".join(f"{count:,} {name}" for name, count in found.most_common()) for found in (report.kinds, report.colors)
    )
    print(f"kinds    {formats}; {colors}")
    if report.misnamed:
        print(f"note     {report.misnamed:,} of another format than the name says; they are read all the same")


def complain(images: ImageSet, report: Report) -> None:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in report.reasons().most_common())
    print(f"bad      {len(report.bad):,} {plural(len(report.bad), 'image')}: {reasons}")
    for index, reason in report.bad[:SHOWN]:
        print(f"         {one_line(images.path(index))}: {reason}")
    if len(report.bad) > SHOWN:
        print(f"         and {len(report.bad) - SHOWN:,} more")


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


@command
def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    return 0 if check(args) else 1


if __name__ == "__main__":
    sys.exit(main())
