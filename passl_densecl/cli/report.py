"""Everything about a run on one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from passl_densecl.cli.command import Parser, Verb
from passl_densecl.cli.console import progress
from passl_densecl.cli.options import add_images
from passl_densecl.disk import whole_file
from passl_densecl.text import megabytes, printable
from passl_densecl.visualize.style import check_output, need_matplotlib

PAGE = "report.html"


def add_options(parser: Parser) -> None:
    results = "results of 'densecl eval' to show; JSON files in the run folder are shown anyway"
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="a run folder")
    add_images(parser, "images instead of those that the config names", place=False)
    parser.add_argument("--results", type=Path, nargs="+", default=[], metavar="F.json", help=results)
    parser.add_argument("--output", type=Path, metavar="F.html", help=f"default: RUN/{PAGE}, which is replaced")


def run(args: argparse.Namespace) -> None:
    need_matplotlib()
    output = args.output or args.run_dir / PAGE
    from passl_densecl.visualize.report import PARTS, Sources, build_report
    from passl_densecl.visualize.runs import read_result, read_run

    run = read_run(args.run_dir, need_metrics=False)
    check_output(output, (".html", ".htm"))
    results = tuple((path.name, read_result(path)) for path in args.results)
    with progress("report") as bar:
        done = iter(range(1, PARTS + 1))
        page, missing = build_report(run, Sources(args.images, results), lambda _: bar(next(done), PARTS))
    for reason in missing:
        print(f"note     not shown: {printable(reason)}")
    with whole_file(output) as file:
        file.write(page.encode("utf-8"))
    print(f"wrote    {printable(str(output))} ({megabytes(len(page))})")


main = Verb(
    "Everything about a run on one HTML page.\n\nOne file that needs no other: figures, curves, views, "
    "correspondences, config and environment of a run.",
    add_options,
    run,
    examples=("report output/densecl_r50",),
)
