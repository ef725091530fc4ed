"""Pre-train a backbone or evaluate one linearly, whichever the config says. `--help` lists the options."""

from __future__ import annotations

import argparse
import os
import sys

from passl_densecl.cli.command import print_anything
from passl_densecl.config import LinearConfig, PretrainConfig, dump_config, load_config
from passl_densecl.errors import InputError, RunError


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-c", "--config", required=True, help="YAML file of the experiment")
    parser.add_argument(
        "-o",
        "--override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for example data.root=photos; repeatable",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="PATH",
        help="continue from PATH, or the run's newest checkpoint (auto)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start anew in a folder that holds a run: when all is ready for the first step, its checkpoints and metrics are "
        "removed; train.log goes on, and files that are not the run's stay",
    )
    parser.add_argument(
        "--pretrained",
        metavar="PATH",
        help="linear: weights of the frozen backbone, or 'random'; pretrain: a backbone that a new run starts from",
    )
    parser.add_argument(
        "--load",
        metavar="PATH",
        help="linear: a trained classifier; pretrain: a whole training state that a new run starts from, at step 0",
    )
    parser.add_argument("--evaluate-only", action="store_true", help="linear: evaluate --load, train nothing")
    parser.add_argument(
        "--replay",
        metavar="FOLDER",
        help="pretrain: compute a step that was not finite once more, from RUN/nonfinite/step_…, and say where it begins",
    )
    parser.add_argument("--check", action="store_true", help="validate, print the resolved config, touch no device")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    config = load_config(args.config, args.override)
    if args.check:
        print(dump_config(config), end="")
        return 0
    if args.overwrite and args.evaluate_only:
        raise InputError("--overwrite goes with training, but --evaluate-only trains nothing")
    if isinstance(config, PretrainConfig):
        if args.evaluate_only:
            raise InputError(f"--evaluate-only goes with linear evaluation, but {args.config} has task: pretrain")
        if args.replay:
            from passl_densecl.engine.replay import replay

            return replay(config, args.replay)
        from passl_densecl.engine.pretrain import pretrain

        return pretrain(
            config, resume=args.resume, load=args.load, pretrained=args.pretrained, overwrite=args.overwrite
        )
    assert isinstance(config, LinearConfig)
    if args.replay:
        raise InputError(f"--replay goes with pre-training, but {args.config} has task: linear")
    from passl_densecl.engine.linear import linear_eval

    return linear_eval(
        config,
        pretrained=args.pretrained,
        load=args.load,
        evaluate_only=args.evaluate_only,
        resume=args.resume,
        overwrite=args.overwrite,
    )


if __name__ == "__main__":
    print_anything()
    try:
        sys.exit(main())
    except InputError as error:
        if os.environ.get("PADDLE_TRAINER_ID", "0") == "0":  # every process meets the same error; one says it
            print(error, file=sys.stderr)
        sys.exit(2)
    except RunError as error:  # each process says what it met: they need not have met the same
        print(error, file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(3)  # and not by way of what is left of Paddle's process group: without the others it may hang or crash
