"""Weights and multiply-adds of a config's network: python tools/model_info.py configs/densecl/densecl_r50.yaml"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from passl_densecl.cli.command import command
from passl_densecl.config import QUEUE_LEN_MAX, Config, PretrainConfig, load_config
from passl_densecl.errors import InputError
from passl_densecl.transforms import CenterCrop, RandomResizedCrop

if TYPE_CHECKING:
    from passl_densecl.models.summary import Summary

NAMES = {"global_head": "global neck", "dense_head": "dense neck", "fc": "classifier"}
CLASSES = 1000


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Weights and multiply-adds (FLOPs) of a config's network.")
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the experiment, pre-training or linear")
    parser.add_argument(
        "-o",
        "--override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for example model.depth=101; repeatable",
    )
    parser.add_argument("--size", type=int, metavar="PIXELS", help="side of an image (default: as the config trains)")
    parser.add_argument(
        "--classes", type=int, metavar="N", help=f"linear: of the data set, which the config cannot know ({CLASSES})"
    )
    parser.add_argument("--json", type=Path, metavar="F.json", help="also write the figures there")
    return parser.parse_args()


def image_size(config: Config) -> int:
    """Pixels a side of what the network is trained on; 224 where no transform says it."""
    transforms = config.data.transforms if isinstance(config, PretrainConfig) else config.data.train_transforms
    sizes = [t.size for t in transforms if isinstance(t, (RandomResizedCrop, CenterCrop))]
    return sizes[-1] if sizes else 224


def report(args: argparse.Namespace) -> None:
    config = load_config(args.config, args.override)
    size = image_size(config) if args.size is None else args.size
    if size < 32:
        raise InputError(f"--size {size}: expected at least 32 pixels")
    if args.classes is not None and (isinstance(config, PretrainConfig) or args.classes < 1):
        raise InputError(f"--classes {args.classes}: expected 1 or more, with a config of task linear")
    if args.json and not args.json.parent.is_dir():
        raise InputError(f"--json {args.json}: the folder {args.json.parent} does not exist")
    import paddle

    from passl_densecl.models.summary import summarize_linear, summarize_pretraining

    paddle.set_device("cpu")
    model = config.model
    notes = []
    if isinstance(config, PretrainConfig):
        queue_len = config.model.queue_len
        if not isinstance(queue_len, int):
            queue_len = QUEUE_LEN_MAX
            notes.append(
                f"queue_len auto: {QUEUE_LEN_MAX:,} is the most that it can be; -o model.queue_len=N for yours"
            )
        summary = summarize_pretraining(config.model, size, queue_len)
    else:
        classes = args.classes or CLASSES
        notes.append(f"{classes:,} classes{'' if args.classes else ' assumed; --classes N for yours'}")
        summary = summarize_linear(model.backbone, size, classes)
    notes.append("a multiply-add counts one, BatchNorm two a number; pooling, ReLU and residual sums are not counted")
    show(summary, args.config, f"ResNet-{model.depth}", size, notes)
    if args.json:
        tree = {
            "config": args.config,
            "overrides": args.override,
            "size": size,
            **asdict(model.backbone),
            **asdict(summary),
            "weights": summary.weights,
            "training_multiply_adds": summary.training_multiply_adds,
            "multiply_adds": {name: part.multiply_adds for name, part in summary.parts.items()},
        }
        args.json.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


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
    row("a training step", None, summary.training_multiply_adds, "for one image")
    for name, cost in summary.training.items():
        row(f"  {name}", None, cost)
    statistics = sum(part.statistics for part in summary.parts.values())
    apart = [f"{statistics:,} running statistics of BatchNorm" + (" an encoder" if summary.encoders > 1 else "")]
    count, length, dim = summary.queues
    if count:
        apart.append(
            f"{'two queues' if count == 2 else 'one queue'} of {length:,}×{dim} ({count * length * dim:,} numbers)"
        )
    print(f"apart    {'; '.join(apart)}")
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


@command
def main() -> int:
    report(parse_arguments())
    return 0


if __name__ == "__main__":
    sys.exit(main())
