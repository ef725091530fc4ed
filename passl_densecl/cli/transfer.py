"""From a backbone to a detector or segmenter: python tools/transfer.py prepare --toolbox NAME --weights W …"""

from __future__ import annotations

import argparse
from pathlib import Path

from passl_densecl.cli.command import Parser, command
from passl_densecl.integrations.toolboxes import TOOLBOXES

PREPARE = "Write weights in a toolbox's names and a config scaled to the devices, and print the one command to run."
CHECK = (
    "Say how many tensors the toolbox will use and where a config differs from the published protocol; "
    "exit code 1 if it does."
)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description="Start detectors and segmenters from these weights.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    short = "write weights and a config for a toolbox, and print the command"
    prepare = verbs.add_parser("prepare", help=short, description=PREPARE)
    models = "; ".join(f"{name}: {', '.join(toolbox.models)}" for name, toolbox in TOOLBOXES.items())
    folder = "a clone of the toolbox, whose base files the config uses"
    prepare.add_argument("--toolbox", choices=tuple(TOOLBOXES), required=True)
    prepare.add_argument("--weights", type=Path, required=True, metavar="W", help="a file, checkpoint or run folder")
    prepare.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the weights and config")
    prepare.add_argument("--model", help=f"{models} (default: the first)")
    prepare.add_argument("--gpus", type=int, default=8, metavar="N", help="devices (default: 8; 0: the CPU)")
    prepare.add_argument("--images-per-gpu", type=int, metavar="B", help="default: towards the published batch")
    prepare.add_argument("--data", type=Path, metavar="ROOT", help="the data set's folder, as the toolbox expects it")
    prepare.add_argument("--toolbox-dir", type=Path, metavar="CLONE", help=folder)
    check = verbs.add_parser("check", help="compare a config with the protocol", description=CHECK)
    config, weights = "a YAML file of one of the toolboxes, in its place there", "the file to start from"
    check.add_argument("config", type=Path, metavar="CONFIG", help=config)
    check.add_argument("--weights", type=Path, metavar="W", help=f"{weights} (default: the one that CONFIG names)")
    check.add_argument("--gpus", type=int, default=8, metavar="N", help="devices it will run on (default: 8)")
    return parser.parse_args(words)


@command
def main(words: list[str] | None = None) -> int:
    args = parse_arguments(words)
    if args.verb == "check":
        from passl_densecl.integrations.check import check

        checked = check(args.config, args.weights, args.gpus)
        print("\n".join(checked.lines()))
        return 1 if checked.findings else 0
    from passl_densecl.integrations.prepare import prepare

    done = prepare(
        args.toolbox,
        args.weights,
        args.output,
        model=args.model,
        gpus=args.gpus,
        images_per_gpu=args.images_per_gpu,
        data=args.data,
        toolbox_dir=args.toolbox_dir,
    )
    print("\n".join(done.lines()))
    return 0
