"""FCOS from pre-trained and random weights on a small COCO set: python tools/demo_detect.py --data ROOT --weights W"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from passl_densecl.cli.command import Parser, command
from passl_densecl.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
BASES = ROOT / "tests" / "integrations" / "bases"  # PaddleDetection's base files in short, with small images
STARTS = ("pretrained", "random")
SHOWN = 3  # boxes drawn per image: the best ones, whatever their score


DESCRIPTION = (
    "Train FCOS twice on a few dozen images in COCO's layout, from pre-trained and from random weights with the same "
    "seed, and draw both loss curves and what the detectors see. Minutes on a CPU."
)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    epilog = "It runs in the environment of `make test-downstream`, which has PaddleDetection from PyPI."
    parser = Parser(description=DESCRIPTION, epilog=epilog)
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT", help="a folder in COCO's layout")
    parser.add_argument("--weights", type=Path, required=True, metavar="W", help="a file, checkpoint or run folder")
    parser.add_argument("--output", type=Path, default=Path("output/demo_detect"), metavar="DIR")
    parser.add_argument("--epochs", type=int, default=6, help="of each training (default: 6)")
    parser.add_argument("--start", choices=STARTS, help=argparse.SUPPRESS)  # one training, in a process of its own
    return parser.parse_args(words)


def train(args: argparse.Namespace, start: str) -> None:
    """One training and its evaluation, in this process; `bbox.json` of the evaluation lies in the working directory."""
    import random

    import numpy as np
    import paddle
    from ppdet.core.workspace import load_config  # pyright: ignore[reportMissingImports]
    from ppdet.engine import Trainer  # pyright: ignore[reportMissingImports]

    config = load_config(str(next(args.output.glob("fcos_r*.yml"))))
    config.epoch, config.log_iter, config.save_dir = args.epochs, 1, start
    config.snapshot_epoch = args.epochs
    shrink(config)
    # The recipe's warm-up is longer than this whole training.
    config["LearningRate"]["base_lr"] = 0.005
    for schedule in config["LearningRate"]["schedulers"]:
        if hasattr(schedule, "steps"):
            schedule.steps = 20
        else:
            schedule.milestones = [args.epochs + 1]
    paddle.seed(0)
    np.random.seed(0)
    random.seed(0)
    trainer = Trainer(config, mode="train")
    if start == "pretrained":
        trainer.load_weights(config.pretrain_weights)
    trainer.train(validate=False)
    evaluator = Trainer(config, mode="eval")
    evaluator.load_weights(str(next(Path(start).rglob("model_final.pdparams"))))
    evaluator.evaluate()


def shrink(config: dict) -> None:
    """A network and images that a CPU trains in minutes: towers of one convolution instead of four."""
    tower = {"feat_in": 256, "feat_out": 256, "num_convs": 1, "norm_type": "gn", "use_dcn": False}
    config["FCOSHead"]["fcos_feat"] = {"name": "FCOSFeat", **tower}
    config["TrainReader"]["batch_size"] = 4
    for reader in ("TrainReader", "EvalReader"):
        for step in config[reader]["sample_transforms"]:
            if "Resize" in step:
                step["Resize"]["target_size"] = [128, 224]


def run(args: argparse.Namespace, start: str) -> list[float]:
    """Train in a process of its own; the loss of every step."""
    folder = args.output / start
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        ROOT / "tools" / "demo_detect.py",
        "--data",
        args.data,
        "--weights",
        args.weights,
        "--output",
        args.output,
    ]
    command += ["--epochs", str(args.epochs), "--start", start]
    with (folder / "log.txt").open("w") as log:
        environment, words = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}, [str(word) for word in command]
        code = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, cwd=folder, env=environment).returncode
    text = (folder / "log.txt").read_text(errors="replace")
    losses = [float(value) for value in re.findall(r"Epoch: .* loss: ([\d.]+)", text)]
    if code or not losses:
        last = text.strip().splitlines()[-1:] or ["no output"]
        raise InputError(f"the training from {start} weights failed: {last[0]} (see {folder / 'log.txt'})")
    ap = re.findall(r"IoU=0.50:0.95 \| area=   all \| maxDets=100 \] = (-?[\d.]+)", text)
    tenth = max(len(losses) // 10, 1)
    first, final = sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth
    means = f"loss {first:.3f} → {final:.3f} (means of {tenth})"
    print(f"{start:11}{len(losses)} steps, {means}, AP {ap[0] if ap else '?'}")
    return losses


def draw_curves(curves: dict[str, list[float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for (name, losses), color in zip(curves.items(), ("C0", "C7"), strict=True):
        width = max(len(losses) // 12, 1)
        means = [sum(losses[max(i - width + 1, 0) : i + 1]) / min(i + 1, width) for i in range(len(losses))]
        axes.plot(losses, color=color, alpha=0.25)
        axes.plot(means, color=color, label=f"{name} (mean of {width} steps)")
    axes.set(xlabel="step", ylabel="loss", title="FCOS, the same data, seed and schedule")
    axes.legend()
    figure.savefig(path, dpi=110, bbox_inches="tight")


def draw_detections(args: argparse.Namespace, path: Path, count: int = 4) -> None:
    """The first images of the evaluation: a row each of truth and of the best boxes from either start."""
    import cv2
    import numpy as np

    from passl_densecl.integrations.prepare import coco_layout

    _, (folder, annotations) = coco_layout(args.data)
    table = json.loads((args.data / annotations).read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in table["categories"]}
    images = table["images"][:count]
    rows = [("truth", table["annotations"])]
    rows += [(start, json.loads((args.output / start / "bbox.json").read_text())) for start in STARTS]
    canvas = []
    for title, boxes in rows:
        tiles = []
        for image in images:
            pixels = cv2.imread(str(args.data / folder / image["file_name"]))
            if pixels is None:
                raise InputError(f"{args.data / folder / image['file_name']}: cannot be read as an image")
            mine = sorted((b for b in boxes if b["image_id"] == image["id"]), key=lambda b: -b.get("score", 0))
            draw_boxes(pixels, mine if title == "truth" else mine[:SHOWN], names)
            tile = cv2.resize(pixels, (320, 240), interpolation=cv2.INTER_AREA)
            tiles.append(cv2.putText(tile, title, (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 2))
        canvas.append(np.hstack(tiles))
    cv2.imwrite(str(path), np.vstack(canvas))


def draw_boxes(pixels, boxes: Sequence[dict], names: dict[int, str]) -> None:  # noqa: ANN001
    import cv2

    for box in boxes:
        x, y, width, height = (round(value) for value in box["bbox"])
        score = f" {box['score']:.2f}" if "score" in box else ""
        color = (60, 220, 60) if "score" not in box else (40, 160, 255)
        cv2.rectangle(pixels, (x, y), (x + width, y + height), color, 2)
        title, place = names[box["category_id"]] + score, (x, max(y - 4, 14))
        cv2.putText(pixels, title, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, color, 2)


@command
def main(words: list[str] | None = None) -> int:
    args = parse_arguments(words)
    args.data, args.weights, args.output = (path.resolve() for path in (args.data, args.weights, args.output))
    if args.start:
        train(args, args.start)
        return 0
    from passl_densecl.integrations.prepare import prepare

    done = prepare("paddledetection", args.weights, args.output, gpus=0, data=args.data, toolbox_dir=BASES)
    print("\n".join(done.lines()[:3]))
    curves = {start: run(args, start) for start in STARTS}
    draw_curves(curves, args.output / "curves.png")
    draw_detections(args, args.output / "detections.jpg")
    boxes = f"the {SHOWN} best boxes of each image, whatever their score"
    print(f"wrote    {args.output}/curves.png, detections.jpg ({boxes})")
    return 0
