"""Pre-train a backbone or evaluate one linearly, whichever the config says. `--help` lists the options."""

from __future__ import annotations

import argparse
from functools import partial

from passl_densecl.cli.command import Parser, command
from passl_densecl.cli.options import add_override_option
from passl_densecl.config import LinearConfig, PretrainConfig, dump_config, load_config
from passl_densecl.errors import InputError

RESUME = "continue from PATH, or from the run's newest checkpoint (auto)"
OVERWRITE = (
    "start anew in a folder that holds a run: its checkpoints and metrics are removed when the first step is ready; "
    "train.log continues, and files that are not the run's stay"
)
PRETRAINED = "linear: weights of the frozen backbone, or 'random'; pretrain: a backbone that a new run starts from"
LOAD = "linear: a trained classifier; pretrain: a whole training state that a new run starts from, at step 0"
REPLAY = "pretrain: recompute a step that was not finite, from RUN/nonfinite/step_…, and say where it begins"


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("-c", "--config", required=True, help="YAML file of the experiment")
    add_override_option(parser)
    parser.add_argument("--resume", nargs="?", const="auto", metavar="PATH", help=RESUME)
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    parser.add_argument("--pretrained", metavar="PATH", help=PRETRAINED)
    parser.add_argument("--load", metavar="PATH", help=LOAD)
    parser.add_argument("--evaluate-only", action="store_true", help="linear: evaluate --load, train nothing")
    parser.add_argument("--replay", metavar="FOLDER", help=REPLAY)
    parser.add_argument("--check", action="store_true", help="validate, print the resolved config, touch no device")
    return parser.parse_args(words)


@partial(command, named=False)
def main(words: list[str] | None = None) -> int:
    args = parse_arguments(words)
    config = load_config(args.config, args.override)
    if args.check:
        print(dump_config(config), end="")
        return 0
    if args.overwrite and args.evaluate_only:
        raise InputError("--overwrite goes with training, but --evaluate-only trains nothing")
    start = {"resume": args.resume, "load": args.load, "pretrained": args.pretrained, "overwrite": args.overwrite}
    if isinstance(config, PretrainConfig):
        if args.evaluate_only:
            raise InputError(f"--evaluate-only goes with linear evaluation, but {args.config} has task: pretrain")
        if args.replay:
            from passl_densecl.engine.replay import replay

            return replay(config, args.replay)
        from passl_densecl.engine.pretrain import pretrain

        return pretrain(config, **start)
    assert isinstance(config, LinearConfig)
    if args.replay:
        raise InputError(f"--replay goes with pre-training, but {args.config} has task: linear")
    from passl_densecl.engine.linear import linear_eval

    return linear_eval(config, **start, evaluate_only=args.evaluate_only)
