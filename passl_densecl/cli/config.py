"""The packaged configs: list them, show one, copy one to edit."""

from __future__ import annotations

import argparse
from pathlib import Path

from passl_densecl.cli.command import Parser, Verb, check_outputs
from passl_densecl.config.packaged import find_config, packaged_configs
from passl_densecl.disk import whole_file
from passl_densecl.errors import printable


def name_option(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="a packaged config, such as densecl_r50, or a file")


def copy_options(parser: Parser) -> None:
    name_option(parser)
    parser.add_place("--output", required=False, metavar="FILE", type=Path, help="default: NAME.yaml, here")


def list_configs(_: argparse.Namespace) -> None:
    configs = packaged_configs()
    width = max(map(len, configs))
    for name, path in configs.items():
        first = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        print(f"{name:<{width}}  {first}")


def show_config(args: argparse.Namespace) -> None:
    print(find_config(args.name).read_text(encoding="utf-8"), end="")


def copy_config(args: argparse.Namespace) -> None:
    source = find_config(args.name)
    args.output = args.output or Path(source.name)
    check_outputs(args, ("output",))
    with whole_file(args.output) as file:
        file.write(source.read_bytes())
    print(f"wrote    {printable(str(args.output))} · edit it, then: densecl train {printable(str(args.output))}")


ls = Verb("List the packaged configs, each with what it reproduces.", lambda _: None, list_configs)
show = Verb("Print a packaged config.", name_option, show_config, examples=("config show densecl_r50",))
cp = Verb(
    "Copy a packaged config to a file to edit.",
    copy_options,
    copy_config,
    examples=("config cp small/densecl_r18 mine.yaml",),
)
