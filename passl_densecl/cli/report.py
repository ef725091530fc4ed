"""Pages of HTML: everything about a run, and runs side by side."""

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


def report_options(parser: Parser) -> None:
    results = "results of 'densecl eval' to show; JSON files in the run folder are shown anyway"
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="a run folder")
    add_images(parser, "images instead of those that the config names", place=False)
    parser.add_argument("--results", type=Path, nargs="+", default=[], metavar="F.json", help=results)
    parser.add_argument("--output", type=Path, metavar="F.html", help=f"default: RUN/{PAGE}, which is replaced")


def write_report(args: argparse.Namespace) -> None:
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


def compare_options(parser: Parser) -> None:
    results = "results of 'densecl eval' that judged several of the runs at once; those in the run folders are shown"
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="two or more run folders, finished or not")
    parser.add_argument("--results", type=Path, nargs="+", default=[], metavar="F.json", help=results)
    parser.add_argument("--output", type=Path, default=Path("compare.html"), metavar="F.html", help="the page")


def write_comparison(args: argparse.Namespace) -> None:
    from passl_densecl.visualize import compare as page

    with progress("compare") as bar:
        done = iter(range(1, page.PARTS + 1))
        missing = page.compare(
            args.runs,
            args.output,
            results=args.results,
            overwrite=args.overwrite,
            progress=lambda _: bar(next(done), page.PARTS),
        )
    for reason in missing:
        print(f"note     not shown: {printable(reason)}")
    print(f"wrote    {printable(str(args.output))} ({megabytes(args.output.stat().st_size)})")


report = Verb(
    "Everything about a run on one HTML page.\n\nOne file that needs no other: cost, figures, curves, views, "
    "correspondences, config and environment of a run. A run that ends writes it itself (report: false in the config "
    "turns that off).",
    report_options,
    write_report,
    examples=("report output/densecl_r50",),
)
compare = Verb(
    "Runs side by side on one HTML page.\n\nWhat their configs differ in, their curves together, their figures with "
    "errors.",
    compare_options,
    write_comparison,
    examples=("compare output/densecl_r50 output/moco_v2_r50",),
)
