"""From a backbone to a detector or segmenter: python tools/transfer.py prepare --engine paddledetection --weights W --output DIR"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from passl_densecl.cli.command import command
from passl_densecl.integrations.toolboxes import TOOLBOXES


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Start detectors and segmenters from these weights.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    prepare = verbs.add_parser(
        "prepare",
        help="write weights and a config for an engine, and print the command",
        description="Write weights in an engine's names and a config scaled to the devices, and print the one command.",
    )
    prepare.add_argument("--engine", choices=tuple(TOOLBOXES), required=True)
    prepare.add_argument("--weights", type=Path, required=True, metavar="W", help="a file, checkpoint or run folder")
    prepare.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="where weights and config are written"
    )
    models = "; ".join(f"{name}: {', '.join(engine.models)}" for name, engine in TOOLBOXES.items())
    prepare.add_argument("--model", help=f"{models} (default: the first)")
    prepare.add_argument("--gpus", type=int, default=8, metavar="N", help="devices (default: 8; 0: the CPU)")
    prepare.add_argument("--images-per-gpu", type=int, metavar="B", help="default: towards the published batch")
    prepare.add_argument("--data", type=Path, metavar="ROOT", help="the data set's folder, as the engine expects it")
    prepare.add_argument(
        "--engine-dir", type=Path, metavar="CLONE", help="a clone of the engine, whose base files it uses"
    )
    check = verbs.add_parser(
        "check",
        help="compare a config with the protocol",
        description="Say how many tensors the engine will use and where a config departs from the protocol; exit code 1 if it does.",
    )
    check.add_argument(
        "config", type=Path, metavar="CONFIG", help="a YAML file of any of these engines, in its place there"
    )
    check.add_argument(
        "--weights", type=Path, metavar="W", help="the file it will start from (default: the one it names)"
    )
    check.add_argument("--gpus", type=int, default=8, metavar="N", help="devices it will run on (default: 8)")
    return parser.parse_args(arguments)


@command
def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    if args.verb == "check":
        from passl_densecl.integrations.check import check

        checked = check(args.config, args.weights, args.gpus)
        print("\n".join(checked.lines()))
        return 1 if checked.findings else 0
    from passl_densecl.integrations.prepare import prepare

    done = prepare(
        args.engine,
        args.weights,
        args.output,
        model=args.model,
        gpus=args.gpus,
        images_per_gpu=args.images_per_gpu,
        data=args.data,
        engine_dir=args.engine_dir,
    )
    print("\n".join(done.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
