"""Start detectors and segmenters from these weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from passl_densecl.cli.command import Parser, Verb
from passl_densecl.cli.options import add_dtype_option
from passl_densecl.integrations.toolboxes import TOOLBOXES

PREPARE = "Write weights in a toolbox's names and a config scaled to the devices, and print the one command to run."
CHECK = (
    "Say how many tensors the toolbox will use and where a config differs from the published protocol; "
    "exit code 1 if it does."
)


def prepare_options(parser: Parser) -> None:
    models = "; ".join(f"{name}: {', '.join(toolbox.models)}" for name, toolbox in TOOLBOXES.items())
    folder = "a clone of the toolbox, whose base files the config uses"
    output = "folder of the weights and config (default: transfer_TOOLBOX)"
    parser.add_place("--weights", type=Path, metavar="W", help="a file, checkpoint or run folder")
    toolbox = f"who is to train from the weights: {', '.join(TOOLBOXES)}"
    parser.add_argument("--toolbox", choices=tuple(TOOLBOXES), required=True, metavar="T", help=toolbox)
    parser.add_argument("--output", type=Path, metavar="DIR", help=output)
    parser.add_argument("--model", help=f"{models} (default: the first)")
    parser.add_argument("--gpus", type=int, default=8, metavar="N", help="devices; 0 is the CPU")
    parser.add_argument("--images-per-gpu", type=int, metavar="B", help="default: towards the published batch")
    parser.add_argument("--data", type=Path, metavar="ROOT", help="the data set's folder, as the toolbox expects it")
    parser.add_argument("--prefix", metavar="P", help="what stands before the backbone's names in W (default: found)")
    add_dtype_option(parser)
    parser.add_argument("--toolbox-dir", type=Path, metavar="CLONE", help=folder)


def check_options(parser: Parser) -> None:
    weights = "the file to start from (default: the one that CONFIG names)"
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file of a toolbox, in its place there")
    parser.add_argument("--weights", type=Path, metavar="W", help=weights)
    parser.add_argument("--gpus", type=int, default=8, metavar="N", help="devices that it will run on")


def run_check(args: argparse.Namespace) -> int:
    from passl_densecl.integrations.check import check

    checked = check(args.config, args.weights, args.gpus)
    print("\n".join(checked.lines()))
    return 1 if checked.findings else 0


def run_prepare(args: argparse.Namespace) -> None:
    from passl_densecl.integrations.prepare import prepare

    done = prepare(
        args.toolbox,
        args.weights,
        args.output or Path(f"transfer_{args.toolbox}"),
        model=args.model,
        gpus=args.gpus,
        images_per_gpu=args.images_per_gpu,
        data=args.data,
        toolbox_dir=args.toolbox_dir,
        prefix=args.prefix,
        dtype=args.dtype,
    )
    print("\n".join(done.lines()))


prepare = Verb(
    PREPARE,
    prepare_options,
    run_prepare,
    examples=("transfer prepare output/densecl_r50 --toolbox detectron2",),
    outputs=(),
)
check = Verb(CHECK, check_options, run_check, examples=("transfer check faster_rcnn/config.yaml --gpus 4",))
