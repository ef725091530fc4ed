"""Convert a file of weights for another project: python tools/convert_weight.py IN OUT --to detectron2"""

from __future__ import annotations

import argparse
from pathlib import Path

from passl_densecl.cli.command import Parser, command
from passl_densecl.cli.options import add_encoder_option
from passl_densecl.weights.convert import SOURCES, STATE_TARGETS, TARGETS, convert

EPILOG = (
    "The source is recognized by the names in it: this project's checkpoints, run folders and classifiers, PASSL's, "
    "the DenseCL authors', mmpretrain's, MoCo's, torchvision's, detectron2's, PaddleClas's, PaddleDetection's, and "
    "safetensors. Targets ending in 'state' take a whole pre-training state: both encoders, projection heads and "
    "queues. Nothing in IN is executed, whoever made it."
)
FROM = f"whose names the file must have, normally not needed: {' | '.join(SOURCES)}"


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    description = "Read a file of ResNet weights, whoever made it, and write it as another project expects it."
    parser = Parser(description=description, epilog=EPILOG)
    targets = (*TARGETS, *STATE_TARGETS)
    output = "the file to write; its suffix must fit --to"
    parser.add_argument("input", metavar="IN", type=Path, help="a file, a checkpoint folder or a run folder")
    parser.add_argument("output", metavar="OUT", type=Path, nargs="?", help=output)
    parser.add_argument("--to", choices=targets, metavar="TARGET", help=" | ".join(targets))
    parser.add_argument("--from", dest="source", choices=tuple(SOURCES), metavar="SOURCE", help=FROM)
    add_encoder_option(parser)
    parser.add_argument("--prefix", help="what stands before the backbone's names, where the file holds several")
    parser.add_argument("--info", action="store_true", help="write nothing; say what IN is and what it holds")
    args = parser.parse_args(words)
    if args.info and (args.output or args.to):
        parser.error("--info takes one file and writes nothing")
    if not args.info and not (args.output and args.to):
        parser.error("give IN, OUT and --to TARGET (or IN and --info)")
    return args


@command
def main(words: list[str] | None = None) -> int:
    args = parse_arguments(words)
    if args.info:
        from passl_densecl.weights.files import weights_file
        from passl_densecl.weights.info import describe_file, render

        print(render(describe_file(weights_file(args.input))))
        return 0
    done = convert(args.input, args.output, args.to, from_=args.source, encoder=args.encoder, prefix=args.prefix)
    print("\n".join(done.lines()))
    return 0
