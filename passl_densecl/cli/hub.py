"""Weights where people keep them: download published ones, publish one's own."""

from __future__ import annotations

import argparse
from pathlib import Path

from passl_densecl.cli.command import Parser, Verb


def download_options(parser: Parser) -> None:
    name = "a name of the model zoo, or hf:OWNER/NAME[/FILE][@REVISION]"
    output = "a file with the published suffix, or a folder (default: only the cache, whose path is printed)"
    parser.add_argument("name", metavar="NAME", help=name)
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists already")
    parser.add_place("--output", required=False, type=Path, metavar="PATH", help=output)


def run_download(args: argparse.Namespace) -> None:
    from passl_densecl.weights.hub import download as fetch

    print(fetch(args.name, args.output, overwrite=args.overwrite))


def push_options(parser: Parser) -> None:
    parser.add_place("--weights", metavar="W", help="a run or checkpoint folder, or a weight file; published as it is")
    parser.add_place("--repository", metavar="OWNER/NAME", help="made if it does not exist")
    parser.add_argument("--revision", metavar="R", help="an existing branch (default: main)")
    parser.add_argument("--private", action="store_true", help="a repository that is made is visible to you only")
    parser.add_argument("--license", metavar="L", help="for the model card, such as apache-2.0 (default: none)")
    parser.add_argument("--message", metavar="TEXT", help="of the commit (default: what the weights are)")
    parser.add_argument("--overwrite", action="store_true", help="replace weights there; their history keeps them")


def run_push(args: argparse.Namespace) -> None:
    from passl_densecl.weights.push import push as publish

    settings = {name: getattr(args, name) for name in ("revision", "private", "license", "message", "overwrite")}
    print(f"wrote    {publish(args.weights, args.repository, **settings)}")


download = Verb(
    "Download published weights, checked and kept in a cache, and say where they are.",
    download_options,
    run_download,
    examples=("download densecl_r50_imagenet", "download hf:OWNER/NAME@main r50.safetensors"),
    outputs=(),
)
push = Verb(
    "Publish weights on Hugging Face: model.safetensors, config.json and a model card from their identity card.",
    push_options,
    run_push,
    examples=("push r50.pdparams OWNER/NAME --license apache-2.0",),
    outputs=(),
)
