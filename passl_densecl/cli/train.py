"""Pre-train a backbone, or evaluate one linearly, as the config says.

CONFIG is a YAML file, or the name of a packaged config ('densecl config ls' lists them). DATA is the folder of images
(data.root; for linear evaluation a folder with train/ and val/). key=value changes a key of the config.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from passl_densecl.cli.command import Parser, Verb
from passl_densecl.cli.options import add_override_option
from passl_densecl.config import Config, LinearConfig, PretrainConfig, dump_config, load_config, path_text
from passl_densecl.config.invalid import OTHER_NAMES, known_keys
from passl_densecl.config.packaged import find_config
from passl_densecl.errors import InputError, printable
from passl_densecl.reliability.loggers import check_loggers

DEVICES = "0,1,2,3 or all GPUs, cpu, or cpu:2 for two processes on the CPU (default: the config's device)"
NAME = "name of the run; its folder is output_dir/N (default: the config's)"
RESUME = "continue from PATH, a run or checkpoint folder; without PATH, from the newest checkpoint of this config's run"
OVERWRITE = (
    "start anew in a folder that holds a run: its checkpoints and metrics are removed when the first step is ready; "
    "train.log continues, and files that are not the run's stay"
)
ACCEPT = "with --resume: continue with another recipe than the checkpoint records; logs each change as old → new"
PRETRAINED = "linear: weights of the frozen backbone, or 'random'; pretrain: a backbone that a new run starts from"
LOAD = "linear: a trained classifier; pretrain: a whole training state that a new run starts from, at step 0"
PREFIX = "what stands before conv1.weight in the file of --pretrained, if it holds several backbones (default: found)"
REPLAY = "pretrain: recompute a step that was not finite, from RUN/nonfinite/step_…, and say where it begins"


def add_options(parser: Parser) -> None:
    words = "see above; with --resume PATH, CONFIG may be left out: the run's own is taken"
    parser.add_argument("words", nargs="*", metavar="CONFIG [DATA] [key=value …]", help=words)
    parser.add_argument("-c", "--config", metavar="CONFIG", help="the same as CONFIG")
    add_override_option(parser)
    parser.add_argument("--devices", metavar="D", help=DEVICES)
    parser.add_argument("--nnodes", type=int, default=1, metavar="N", help="hosts")
    parser.add_argument("--rank", type=int, metavar="R", help="number of this host, from 0 (with --nnodes)")
    parser.add_argument("--master", metavar="HOST:PORT", help="a free port of host 0 (with --nnodes)")
    parser.add_argument("--name", metavar="N", help=NAME)
    parser.add_argument("--resume", nargs="?", const="auto", metavar="PATH", help=RESUME)
    parser.add_argument("--accept-changes", action="store_true", help=ACCEPT)
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    parser.add_argument("--pretrained", metavar="W", help=PRETRAINED)
    parser.add_argument("--load", metavar="W", help=LOAD)
    parser.add_argument("--prefix", metavar="P", help=PREFIX)
    parser.add_argument("--evaluate-only", action="store_true", help="linear: evaluate --load, train nothing")
    parser.add_argument("--replay", metavar="DIR", help=REPLAY)
    parser.add_argument("--check", action="store_true", help="validate, print the resolved config, touch no device")
    parser.add_argument("-v", "--verbose", action="store_true", help="with --devices: also what Paddle's launcher says")


def run(args: argparse.Namespace) -> int:
    config_name, overrides = experiment(args)
    config = load_config(config_name, overrides)
    check_task(args, config, config_name)
    if args.check:
        check_loggers(config.loggers)
        print(dump_config(config), end="")
        return 0
    if args.devices is not None and "PADDLE_TRAINER_ID" not in os.environ:
        return start_trainers(args, config, config_name, overrides)
    start = {"resume": args.resume, "load": args.load, "pretrained": args.pretrained}
    start |= {"prefix": args.prefix, "overwrite": args.overwrite, "accept_changes": args.accept_changes}
    if isinstance(config, PretrainConfig):
        if args.replay:
            from passl_densecl.engine.replay import replay

            return replay(config, args.replay)
        from passl_densecl.engine.pretrain import pretrain

        return pretrain(config, **start)
    from passl_densecl.engine.linear import linear_eval

    assert isinstance(config, LinearConfig)
    return linear_eval(config, **start, evaluate_only=args.evaluate_only)


def check_task(args: argparse.Namespace, config: Config, name: str) -> None:
    """Raises InputError for options that do not go with the config's task."""
    if args.accept_changes and args.resume is None:
        raise InputError("--accept-changes goes with --resume: a new run has no record to differ from")
    if args.overwrite and args.evaluate_only:
        raise InputError("--overwrite goes with training, but --evaluate-only trains nothing")
    for option, given, task in (
        ("--evaluate-only", args.evaluate_only, "linear"),
        ("--replay", args.replay, "pretrain"),
    ):
        if given and config.task != task:
            goes_with = {"linear": "linear evaluation", "pretrain": "pre-training"}[task]
            raise InputError(f"{option} goes with {goes_with}, but {name} has task: {config.task}")


def experiment(args: argparse.Namespace) -> tuple[str, list[str]]:
    """(Config file or name, overrides) that the words and options mean."""
    places = [args.config] if args.config else []
    settings = []
    for word in args.words:
        is_setting = re.match(r"[A-Za-z_][\w.]*=", word) and not Path(word).exists()
        (settings if is_setting else places).append(word)
    moved = []
    if not places and args.resume not in (None, "auto"):
        run = run_of(args.resume)
        places.append(str(run / "config.yaml"))
        if load_config(places[0]).run_dir.resolve() != run:  # moved, copied, or named from another directory
            moved = [f"output_dir={path_text(str(run.parent))}", f"name={path_text(run.name)}"]
    if not places:
        raise InputError("which experiment? give a config file or the name of a packaged config, such as densecl_r50")
    if len(places) > 2:
        raise InputError(f"unexpected {printable(places[2])!r} after CONFIG and DATA; settings are written key=value")
    overrides = [*moved, *args.override, *settings]
    if args.name is not None:
        overrides.insert(0, f"name={args.name}")
    if len(places) == 2:
        overrides = [*data_overrides(find_config(places[0]), places[1]), *overrides]
    return places[0], overrides


def data_overrides(config: Path, data: str) -> list[str]:
    """What DATA sets: data.root, or for linear evaluation the roots of its train/ and val/. Raises InputError."""
    if not re.search(r"^task:\s*linear\b", config.read_text(encoding="utf-8", errors="replace"), re.MULTILINE):
        return [f"data.root={path_text(data)}"]
    missing = [split for split in ("train", "val") if not (Path(data) / split).is_dir()]
    if missing:
        raise InputError(
            f"{printable(data)}: linear evaluation takes DATA/train and DATA/val, but {' and '.join(missing)} "
            "is missing; or set data.train.root=… and data.val.root=…"
        )
    return [f"data.{split}.root={path_text(os.path.join(data, split))}" for split in ("train", "val")]


def run_of(path: str) -> Path:
    """The run folder of a run or checkpoint folder. Raises InputError when it is neither."""
    folder = Path(path).resolve()
    run = folder if folder.parent.name != "checkpoints" else folder.parent.parent
    if not (run / "config.yaml").is_file():
        raise InputError(f"--resume {printable(path)}: no run folder (config.yaml is missing); give one, or CONFIG")
    return run


def start_trainers(args: argparse.Namespace, config: Config, name: str, overrides: Sequence[str]) -> int:
    """Train on --devices: in this process on one, else in one process each. Returns the exit code."""
    from passl_densecl.cli.launch import Hosts, launch, parse_devices

    devices = parse_devices(args.devices)
    if args.nnodes > 1 and (args.rank is None or args.master is None):
        raise InputError(f"--nnodes {args.nnodes} needs --rank R (0 to {args.nnodes - 1}) and --master HOST:PORT")
    words = ["-c", name]
    for override in (*devices.overrides, *overrides):
        words += ["-o", override]
    for option in ("resume", "pretrained", "load", "prefix", "replay"):
        if getattr(args, option) is not None:
            words += [f"--{option}", getattr(args, option)]
    flags = ("overwrite", "evaluate_only", "accept_changes")
    words += [f"--{option.replace('_', '-')}" for option in flags if getattr(args, option)]
    if devices.count == 1 and args.nnodes == 1:
        if devices.gpus:
            os.environ["FLAGS_selected_gpus"] = str(devices.gpus[0])  # noqa: SIM112
        return run(main.parser().read(words))
    logs = Path(config.output_dir) / config.name / "log"
    return launch(words, devices, Hosts(args.nnodes, args.rank or 0, args.master), logs, verbose=args.verbose)


main = Verb(
    __doc__,
    add_options,
    run,
    examples=(
        "train small/densecl_r18 photos --devices cpu:2",
        "train densecl_r50 photos --devices 0,1,2,3 model.queue_len=auto",
        "train --resume output/densecl_r50",
        "train moco_clas_r50 imagenet --pretrained r50.pdparams",
    ),
    outputs=(),
    advice={name: f"{key}=VALUE" for name, key in (known_keys() | OTHER_NAMES).items()} | {"gpus": "--devices 0,1"},
    named=False,
)
