"""The paper's question at small scale: random weights, MoCo-v2 (λ = 0) and DenseCL (λ = 0.5), one budget, one protocol.

Every network is pre-trained with configs/small/reproduce_r18.yaml and then judged by 20-NN, a linear classifier (fast
preset), correspondences between two crops and, where images with masks are given, by a linear segmentation head.
--ablation adds the runs of the paper's two ablations: λ, and the grid of the dense head. Interrupted, the same command
continues where it stopped: runs are resumed, finished ones and their figures are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from passl_densecl.cli.command import Parser, command
from passl_densecl.config import PretrainConfig, load_config
from passl_densecl.data.datasets import scan_images
from passl_densecl.errors import InputError
from passl_densecl.transforms import output_size

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/small/reproduce_r18.yaml"
LAMBDAS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
GRIDS = (1, 3, 5, 7, None)
K = 20
# Verb → (title, where its JSON holds the figure); in the order of the table's columns.
MEASURES = {
    "knn": f"{K}-NN top-1",
    "linear": "linear top-1",
    "dense": "segmentation mIoU",
    "correspondence": "correspondences",
}


@dataclass(frozen=True)
class Network:
    """One line of the table: how it is trained; `settings` is None for random weights."""

    title: str
    folder: str  # of its runs, before the seed
    settings: tuple[str, ...] | None

    def run(self, seed: int) -> str:
        return f"{self.folder}_s{seed}"


RANDOM = Network("random weights", "random", None)
MOCO = Network("MoCo-v2 (λ = 0)", "lambda_0", ("model.loss_lambda=0",))
DENSECL = Network("DenseCL (λ = 0.5)", "lambda_0.5", ("model.loss_lambda=0.5",))


def networks(ablation: str | None) -> list[Network]:
    """What is compared: the three of the paper's claim, or an ablation's values."""
    if ablation == "lambda":
        return [Network(f"λ = {value:g}", f"lambda_{value:g}", (f"model.loss_lambda={value:g}",)) for value in LAMBDAS]
    if ablation == "grid":
        return [
            Network(f"grid {value}", f"grid_{value}", ("model.loss_lambda=0.5", f"model.num_grid={value}"))
            if value
            else Network("no pooling", DENSECL.folder, DENSECL.settings)
            for value in GRIDS
        ]
    return [RANDOM, MOCO, DENSECL]


def say_and_run(words: Iterable[object]) -> None:
    """Print a command and run it. Raises InputError when it fails, SystemExit when it was asked to stop."""
    shown = [str(word) for word in words]
    print("\n$ python " + shlex.join(shown), flush=True)
    code = subprocess.run([sys.executable, *shown], cwd=ROOT).returncode
    if code < 0 or code in (130, 143):  # asked to stop: the run has saved and can go on
        raise SystemExit(128 - code if code < 0 else code)
    if code:
        raise InputError(f"this command ended with exit code {code}; see the lines above. Run again to continue here")


def train(args: argparse.Namespace, network: Network, seed: int, overrides: Sequence[str]) -> None:
    """Pre-train, or continue, or do nothing when the run has ended."""
    run = args.output / "runs" / network.run(seed)
    if (run / "checkpoints" / f"epoch_{args.epochs:04d}").is_dir() or network.settings is None:
        return
    launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", args.processes, "--log_dir", run / "launch"]
    settings = [*overrides, *network.settings, f"seed={seed}", f"name={run.name}", f"output_dir={run.parent}"]
    options = [word for setting in settings for word in ("-o", setting)]
    start = launcher if args.processes > 1 else []
    say_and_run([*start, "tools/train.py", "-c", CONFIG, *options, "--resume", "auto"])


def measure(args: argparse.Namespace, verb: str, network: Network, seed: int) -> Path:
    """The JSON of one verb for one network, made unless it is there."""
    folder = args.output / "runs" / network.run(seed)
    output = folder / f"evaluation_{verb}.json"
    if output.is_file():
        return output
    folder.mkdir(parents=True, exist_ok=True)
    weights = ["--weights", folder, "--seed", 0]
    if network.settings is None:  # its own seed draws the weights
        model = base().model
        strides = ["--stem-stride", model.stem_stride, "--last-stride", model.last_stride]
        weights = ["--weights", "random", "--depth", model.depth, *strides, "--seed", seed]
    labeled = ["--train", args.data / "train", "--val", args.data / "val", "--size", args.size]
    words = {
        "knn": [*labeled, "--k", K],
        "linear": labeled,
        "dense": [*shlex.split(args.dense or ""), "--size", args.dense_size],
        "correspondence": ["--images", args.data / "val", "--size", 2 * args.size],
    }[verb]
    say_and_run(["tools/evaluate.py", verb, *weights, *words, "--output", output])
    return output


class Figure(NamedTuple):
    """What a run reached by one measure, and the standard error over the images that it was judged on."""

    value: float
    standard_error: float


def figure(verb: str, path: Path) -> Figure:
    """The one number of a verb's JSON that the table shows, and its error."""
    *_, result = json.loads(path.read_text(encoding="utf-8"))["results"].values()  # baselines come first
    error = result["standard_error"]
    value = {
        "knn": lambda: result["top1"][str(K)],
        "linear": lambda: result["top1"],
        "dense": lambda: statistics.fmean(result["miou"]),
        "correspondence": lambda: result["share"],
    }[verb]()
    return Figure(value, error[str(K)] if verb == "knn" else error)


def base() -> PretrainConfig:
    config = load_config(ROOT / CONFIG)
    assert isinstance(config, PretrainConfig)
    return config


def markdown(rows: dict[str, dict[str, list[Figure]]], verbs: Sequence[str], seeds: int) -> str:
    """A table of means over the seeds, ± their standard deviation; of one seed the figure, ± its standard error."""
    lines = ["| | " + " | ".join(MEASURES[verb] for verb in verbs) + " |", "|---" * (len(verbs) + 1) + "|"]
    for title, values in rows.items():
        lines.append(f"| {title} | " + " | ".join(shown(values[verb]) for verb in verbs) + " |")
    spread = f"mean ± standard deviation over {seeds} seeds"
    if seeds == 1:
        spread = "one seed; ± one standard error over the images, which says nothing about other seeds"
    return "\n".join([*lines, "", f"({spread})", ""])


def shown(figures: Sequence[Figure]) -> str:
    values = [one.value for one in figures]
    error = statistics.stdev(values) if len(values) > 1 else figures[0].standard_error
    return f"{100 * statistics.fmean(values):.1f} ± {100 * error:.1f} %"


def draw(rows: dict[str, dict[str, list[Figure]]], titles: dict[str, str], output: Path) -> None:
    """One panel a measure, a point a seed, with a bar of one standard error over the images to either side."""
    from passl_densecl.visualize.style import MARKERS, SERIES, new_figure, save_figure, styled

    @styled
    def picture() -> Any:
        made = new_figure(max(3.0 * len(titles), 6.0), 1.2 + 0.42 * len(rows))
        for panel, (verb, title) in enumerate(titles.items()):
            axes = made.add_subplot(1, len(titles), panel + 1)
            for line, values in enumerate(rows.values()):
                axes.errorbar(
                    [100 * one.value for one in values[verb]],
                    [line] * len(values[verb]),
                    xerr=[100 * one.standard_error for one in values[verb]],
                    linestyle="none",
                    color=SERIES[line % len(SERIES)],
                    marker=MARKERS[line % len(MARKERS)],
                )
            axes.set_yticks(range(len(rows)), list(rows) if panel == 0 else [""] * len(rows))
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.set_title(title)
            axes.set_xlabel("%")
            axes.grid(axis="x")
        save_figure(made, output)

    picture()


def reproduce(args: argparse.Namespace) -> None:
    config = base()
    images = scan_images(str(args.data / "train"))
    args.epochs = args.epochs or config.epochs
    args.size = args.size or output_size(config.data.transforms)
    half = len(images) // config.batch_size * args.epochs // 2
    overrides = [
        f"data.root={args.data / 'train'}",
        f"epochs={args.epochs}",
        f"model.loss_lambda_warmup_steps={half}",
        f"data.transforms.0.size={args.size}",
    ]
    verbs = [verb for verb in MEASURES if verb != "dense" or args.dense]
    compared = networks(args.ablation)
    rows: dict[str, dict[str, list[Figure]]] = {}
    for network in compared:
        for seed in args.seeds:
            train(args, network, seed, overrides)
            for verb in verbs:
                path = measure(args, verb, network, seed)
                rows.setdefault(network.title, {}).setdefault(verb, []).append(figure(verb, path))
    name = f"results_{args.ablation}" if args.ablation else "results"
    table = markdown(rows, verbs, len(args.seeds))
    (args.output / f"{name}.md").write_text(table, encoding="utf-8")
    found = {
        title: {verb: [one._asdict() for one in each] for verb, each in values.items()}
        for title, values in rows.items()
    }
    content = {"seeds": args.seeds, "epochs": args.epochs, "results": found}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    (args.output / f"{name}.json").write_text(text, encoding="utf-8")
    draw(rows, {verb: MEASURES[verb] for verb in verbs}, args.output / f"{name}.png")
    print(f"\n{table}\ntable    {args.output / name}.md, .json\npicture  {args.output / name}.png")


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    processes = min(2, os.cpu_count() or 1)
    masks = "'--images A --masks B --val-images C --val-masks D'"
    dense = f"images with masks, as options of `evaluate.py dense`: {masks}"
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="labeled images: DIR/train and DIR/val")
    parser.add_argument("--output", type=Path, default=Path("output/reproduce"), help="default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    parser.add_argument("--epochs", type=int, help="default: as the config says")
    parser.add_argument("--size", type=int, help="pixels of the crops (default: as the config says)")
    parser.add_argument("--processes", type=int, default=processes, help="default: %(default)s")
    parser.add_argument("--ablation", choices=("lambda", "grid"), help="these runs instead of the three")
    parser.add_argument("--dense", metavar="OPTIONS", help=dense)
    parser.add_argument("--dense-size", type=int, default=256, help="shorter side there (default: %(default)s)")
    return parser.parse_args(words)


@command
def main(words: list[str] | None = None) -> int:
    args = parse_arguments(words)
    for part in ("train", "val"):
        if not (args.data / part).is_dir():
            raise InputError(f"--data {args.data}: no folder {part!r} in it; expected train/CLASS/… and val/CLASS/…")
    args.data, args.output = args.data.resolve(), args.output.resolve()
    args.output.mkdir(parents=True, exist_ok=True)
    reproduce(args)
    return 0
