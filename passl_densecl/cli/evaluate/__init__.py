"""Judge backbones: several --weights, 'random' among them, give one table with a column each."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import ModuleType
from typing import Any

from passl_densecl.cli.command import Parser, Verb
from passl_densecl.cli.evaluate import correspondence, dense, knn, linear, lowshot, multihead, semi, svm
from passl_densecl.cli.evaluate.common import check_common, save
from passl_densecl.cli.options import add_weights_options, size_of


def _verb(module: ModuleType, example: str) -> Verb:
    """The verb that a module of this package is: its text, its options, and `run`, which gives a table and figures."""
    name = module.__name__.rpartition(".")[2]

    def add_options(parser: Parser) -> None:
        depth = " (default: as the first other weights)"
        add_weights_options(parser, several=True, note="; one column each", depth=depth)
        module.add_options(parser)
        parser.add_argument("--json", metavar="F.json", type=Path, help="also write every figure there")
        parser.aliases["--output"] = "--json"

    def run(args: argparse.Namespace) -> dict[str, Any]:
        check_common(args)
        args.size = size_of(args.size, args.weights)
        text, figures = module.run(args)
        print(text)
        if args.json:
            save(name, args, text, figures)
        return figures

    return Verb(str(module.__doc__), add_options, run, examples=(f"eval {name} {example}",))


_FOLDERS = "--train train --val val"
VERBS = {
    "knn": _verb(knn, f"output/densecl_r50 random {_FOLDERS}"),
    "linear": _verb(linear, f"output/densecl_r50 random {_FOLDERS}"),
    "multihead": _verb(multihead, f"output/densecl_r50 {_FOLDERS}"),
    "svm": _verb(svm, "output/densecl_r50 --voc VOCdevkit/VOC2007"),
    "lowshot": _verb(lowshot, "output/densecl_r50 --voc VOCdevkit/VOC2007"),
    "semi": _verb(semi, f"output/densecl_r50 {_FOLDERS} --percent 1"),
    "dense": _verb(dense, "output/densecl_r50 random --images photos --masks masks"),
    "correspondence": _verb(correspondence, "output/densecl_r50 random --images photos"),
}
