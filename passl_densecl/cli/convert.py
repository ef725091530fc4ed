"""Write a file of ResNet weights, whoever made it, as another project expects it.

The source is recognized by the names in it: this project's checkpoints, run folders and classifiers, PASSL's, the
DenseCL authors', mmpretrain's, MoCo's, torchvision's, detectron2's, PaddleClas's, PaddleDetection's, and safetensors.
Targets ending in 'state' take a whole pre-training state: both encoders, projection heads and queues. Nothing in IN is
executed, whoever made it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from passl_densecl.cli.command import Parser, Verb
from passl_densecl.cli.options import add_dtype_option, add_encoder_option
from passl_densecl.errors import InputError
from passl_densecl.weights.convert import SOURCES, STATE_TARGETS, TARGETS, convert

FROM = f"whose names the file must have, normally not needed: {', '.join(SOURCES)}"


def add_options(parser: Parser) -> None:
    targets = (*TARGETS, *STATE_TARGETS)
    parser.add_place("--weights", metavar="IN", type=Path, help="a file, a checkpoint folder or a run folder")
    parser.add_place(
        "--output", metavar="OUT", type=Path, required=False, help="the file to write; its suffix must fit --to"
    )
    parser.add_argument("--to", choices=targets, metavar="TARGET", help=f"who is to read it: {', '.join(targets)}")
    parser.add_argument("--from", dest="source", choices=tuple(SOURCES), metavar="SOURCE", help=FROM)
    add_encoder_option(parser)
    add_dtype_option(parser)
    parser.add_argument("--info", action="store_true", help="write nothing; describe IN (the same as densecl info IN)")


def run(args: argparse.Namespace) -> None:
    if args.info:
        from passl_densecl.cli.info import describe_weights

        if args.output or args.to:
            raise InputError("--info takes one file and writes nothing")
        return describe_weights(args.weights)
    if not (args.output and args.to):
        raise InputError("give IN, OUT and --to TARGET (or IN and --info)")
    done = convert(
        args.weights,
        args.output,
        args.to,
        from_=args.source,
        encoder=args.encoder,
        prefix=args.prefix,
        dtype=args.dtype,
    )
    print("\n".join(done.lines()))
    return None


main = Verb(
    __doc__,
    add_options,
    run,
    examples=("convert output/densecl_r50 r50.pkl --to detectron2", "convert densecl_r50.pth r50.pdparams --to paddle"),
)
