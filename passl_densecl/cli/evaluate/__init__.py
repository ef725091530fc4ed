"""Judge backbones: several --weights, 'random' among them, give one table with a column each.

knn             weighted nearest neighbors of pooled features: nothing is trained
linear          a linear classifier on cached features, learning rates swept at once (the fast preset; the official
                recipe is tools/train.py -c configs/moco/moco_clas_r50.yaml)
multihead       the same on the stem and each of the four stages
svm, lowshot    VOC07's protocol: a linear SVM per class, average precision; with all images, or 1 to 96 per class
semi            fine-tune all of it on 1 % or 10 % of the labels
dense           semantic segmentation by a linear 1×1 head on the frozen map: mIoU
correspondence  do the cells of two crops of one image find each other?
"""

from __future__ import annotations

import argparse
from pathlib import Path

from passl_densecl.cli.command import Parser, command
from passl_densecl.cli.evaluate import correspondence, dense, knn, linear, lowshot, multihead, semi, svm
from passl_densecl.cli.evaluate.common import check_common, save
from passl_densecl.cli.options import add_weights_options

VERBS = {
    "knn": knn,
    "linear": linear,
    "multihead": multihead,
    "svm": svm,
    "lowshot": lowshot,
    "semi": semi,
    "dense": dense,
    "correspondence": correspondence,
}


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=layout)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, module in VERBS.items():
        text = str(module.__doc__)
        verb = verbs.add_parser(name, help=text.split("\n")[0], description=text, formatter_class=layout)
        depth = " (default: as the first other weights)"
        add_weights_options(verb, several=True, note=": a column each", depth=depth)
        module.add_options(verb)
        verb.add_argument("--output", type=Path, metavar="F.json", help="also write every figure there")
    return parser.parse_args(words)


@command
def main(words: list[str] | None = None) -> int:
    args = parse_arguments(words)
    check_common(args)
    text, figures = VERBS[args.verb].run(args)
    print(text)
    if args.output:
        save(args, text, figures)
    return 0
