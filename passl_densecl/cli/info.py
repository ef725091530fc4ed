"""What a config's network costs, or what a file of weights is.

Of a config: weights and multiply-adds (FLOPs) of every part. Of weights, whoever made them: what they are, where they
come from and what they hold; nothing in them is executed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from passl_densecl.cli.command import Parser, Verb
from passl_densecl.cli.options import add_override_option, at_least
from passl_densecl.config import QUEUE_LEN_MAX, Config, PretrainConfig, load_config
from passl_densecl.config.packaged import find_config
from passl_densecl.errors import InputError
from passl_densecl.transforms import output_size
from passl_densecl.weights.zoo import list_models

if TYPE_CHECKING:
    from passl_densecl.models.summary import Summary

NAMES = {"global_head": "global head", "dense_head": "dense head", "fc": "classifier"}
CLASSES = 1000


def add_options(parser: Parser) -> None:
    what = (
        "a config (a file, or a packaged name), or weights: a run or checkpoint folder, a weight file, a published name"
    )
    classes = f"linear config: of the data set, which the config cannot know (default: {CLASSES})"
    size = "config: side of an image (default: as the config trains)"
    parser.add_argument("what", metavar="CONFIG|WEIGHTS", help=what)
    add_override_option(parser)
    parser.add_argument("--size", type=int, metavar="PIXELS", help=size)
    parser.add_argument("--classes", type=int, metavar="N", help=classes)
    parser.add_argument("--arrays", action="store_true", help="weights: also list every array")
    parser.add_argument("--json", type=Path, metavar="F.json", help="config: also write the figures there")


def run(args: argparse.Namespace) -> None:
    path = Path(args.what)
    published = args.what.startswith("hf:") or args.what in list_models()
    if published or (path.exists() and path.suffix not in (".yaml", ".yml")):
        if args.override or args.size or args.classes or args.json:
            raise InputError(f"{args.what} holds weights; -o, --size, --classes and --json go with a config")
        describe_weights(path, arrays=args.arrays)
    else:
        describe_config(args)


def describe_weights(path: Path, *, arrays: bool = True) -> None:
    """Print what a file of weights is, whoever made it."""
    from passl_densecl.weights.files import weights_file
    from passl_densecl.weights.info import describe_file, render

    print(render(describe_file(weights_file(path)), arrays=arrays))


def describe_config(args: argparse.Namespace) -> None:
    config = load_config(find_config(args.what), args.override)
    at_least(32, size=args.size)
    transforms = config.data.transforms if isinstance(config, PretrainConfig) else config.data.train_transforms
    size = args.size or output_size(transforms)
    if args.classes is not None and (isinstance(config, PretrainConfig) or args.classes < 1):
        raise InputError(f"--classes {args.classes}: expected 1 or more, with a config of task linear")
    summary, notes = summarize(config, size, args.classes)
    show(summary, args.what, f"ResNet-{config.model.depth}", size, notes)
    if args.json:
        tree = {
            "config": args.what,
            "overrides": args.override,
            "size": size,
            **asdict(config.model.backbone),
            **asdict(summary),
            "weights": summary.weights,
            "training_multiply_adds": summary.training_multiply_adds,
            "multiply_adds": {name: part.multiply_adds for name, part in summary.parts.items()},
        }
        args.json.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


def summarize(config: Config, size: int, classes: int | None) -> tuple[Summary, list[str]]:
    """The figures of a config's network, and what was assumed."""
    import paddle

    from passl_densecl.models.summary import summarize_linear, summarize_pretraining

    paddle.set_device("cpu")
    notes = ["a multiply-add counts one, BatchNorm two per number; pooling, ReLU and residual sums are not counted"]
    if not isinstance(config, PretrainConfig):
        notes.insert(0, f"{classes or CLASSES:,} classes{'' if classes else ' assumed; --classes N for yours'}")
        return summarize_linear(config.model.backbone, size, classes or CLASSES), notes
    queue_len = config.model.queue_len
    if not isinstance(queue_len, int):
        queue_len = QUEUE_LEN_MAX
        notes.insert(0, f"queue_len auto: {QUEUE_LEN_MAX:,} is the maximum; -o model.queue_len=N for yours")
    return summarize_pretraining(config.model, size, queue_len), notes


def show(summary: Summary, config: str, backbone: str, size: int, notes: list[str]) -> None:
    channels, height, width = summary.map_shape
    print(f"{config} at {size}×{size} pixels: {backbone}, last map {channels}×{height}×{width}")
    print(f"{'':<26}{'weights':>12}{'multiply-adds':>16}")
    for name, part in summary.parts.items():
        row(NAMES.get(name, name), part.weights, part.multiply_adds)
    everything = sum(part.multiply_adds for part in summary.parts.values())
    if summary.encoders == 1:
        row("whole network", summary.weights, everything)
    else:
        row("one encoder", summary.weights // summary.encoders, everything)
        row("both encoders", summary.weights)
    row("trained", summary.trained)
    row("a training step", None, summary.training_multiply_adds, "per image")
    for name, cost in summary.training.items():
        row(f"  {name}", None, cost)
    statistics = sum(part.statistics for part in summary.parts.values())
    extra = [f"{statistics:,} running statistics of BatchNorm" + (" per encoder" if summary.encoders > 1 else "")]
    count, length, dim = summary.queues
    if count:
        queues = "two queues" if count == 2 else "one queue"
        extra.append(f"{queues} of {length:,}×{dim} ({count * length * dim:,} numbers)")
    print(f"besides  {'; '.join(extra)}")
    for note in notes:
        print(f"note     {note}")


def row(name: str, weights: int | None, multiply_adds: int | None = None, remark: str = "") -> None:
    first = "" if weights is None else f"{weights:,}"
    second = "" if multiply_adds is None else in_units(multiply_adds)
    print(f"{name:<26}{first:>12}{second:>16}  {remark}".rstrip())


def in_units(count: int) -> str:
    """4109364224 → '4.109 G'."""
    for unit, scale in (("G", 10**9), ("M", 10**6)):
        if count >= scale:
            return f"{count / scale:,.3f} {unit}"
    return f"{count:,}  "


main = Verb(__doc__, add_options, run, examples=("info densecl_r50", "info output/densecl_r50"))
