"""From file to two ready views on one core: this project against torchvision or Pillow, and against decoding alone."""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from benchmarks.measure import CPU, Timing, interleave, quotient, ratio_lines, summary, time_table, timed
from passl_densecl.cli.console import table
from passl_densecl.cli.options import at_least
from passl_densecl.config import PretrainConfig, load_config
from passl_densecl.data.datasets import ImageSet, PairDataset, UndecodableImage, scan_images
from passl_densecl.data.workers import keep_freed_memory
from passl_densecl.errors import InputError
from passl_densecl.text import quantity
from passl_densecl.transforms import Transform

if TYPE_CHECKING:  # Pillow may be missing
    from benchmarks.recipes import Recipe

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "densecl" / "densecl_r50.yaml"


def add_options(parser: argparse.ArgumentParser) -> None:
    source(parser)
    images = "so many, spread over the folder (default: %(default)s)"
    rounds = "how often all of them are done by each (default: %(default)s)"
    baseline = "auto, the default: torchvision where it can be imported, else the same by Pillow alone"
    baselines = ("auto", "torchvision", "pillow")
    parser.add_argument("--images", type=int, default=200, metavar="N", help=images)
    parser.add_argument("--rounds", type=int, default=5, help=rounds)
    parser.add_argument("--baseline", choices=baselines, default="auto", help=baseline)


def source(parser: argparse.ArgumentParser) -> None:
    """The options that say which images and which transforms."""
    parser.add_argument("--root", required=True, metavar="DIR", help="a folder of images, or a pack of them")
    config = "a pre-training config: its transforms (default: configs/densecl/densecl_r50.yaml)"
    parser.add_argument("--config", type=Path, default=CONFIG, metavar="C", help=config)


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    at_least(1, images=args.images, rounds=args.rounds)
    cv2.setNumThreads(0)
    keep_freed_memory()  # as the loader's workers do
    transforms, (images, left_out) = pretrain_config(args.config).data.transforms, chosen(args.root, args.images)
    baseline_name, baseline = _baseline(args.baseline, transforms)
    dataset, epochs = PairDataset(images, transforms, seed=0), count()

    def own() -> None:
        epoch = next(epochs)  # new draws every round, as in training
        for index in range(len(dataset)):
            dataset[epoch, index]

    def by_baseline() -> None:
        for index in range(len(images)):
            image = baseline.decode(images.read(index))
            for _ in range(2):
                baseline.view(image)

    contestants = {"passl_densecl": own, baseline_name: by_baseline, "decoding alone": partial(_decode_all, images)}
    timings = interleave({name: partial(_time, act) for name, act in contestants.items()}, args.rounds)
    results = {name: summary(values, CPU, len(images)) for name, values in timings.items()}
    own_times = timings["passl_densecl"]
    ratios = {
        key: quotient(f"images/s, passl_densecl / {name}", timings[name], own_times, CPU)
        for key, name in (("speed_over_baseline", baseline_name), ("speed_over_decoding", "decoding alone"))
    }
    from benchmarks import recipes

    parts = _parts({"passl_densecl": recipes.own(transforms), baseline_name: baseline}, images, args.rounds)
    height, width = images.decode(0).shape[:2]
    text = "\n\n".join(
        [
            f"data     {len(images):,} images of {args.root} ({left_out} unreadable left out; the first is "
            f"{width}×{height}), two views each; {quantity(args.rounds, 'round')}; {CPU}, OpenCV on one thread",
            time_table("all images", results),
            _part_table(parts),
            ratio_lines(ratios),
        ]
    )
    return text, {
        "clock": CPU,
        "images": len(images),
        "baseline": baseline_name,
        "results": results,
        "seconds_per_image": parts,
        "ratios": ratios,
    }


def pretrain_config(path: Path) -> PretrainConfig:
    found = load_config(path)
    if not isinstance(found, PretrainConfig):
        raise InputError(f"--config {path}: expected a pre-training config (task: pretrain)")
    return found


def chosen(root: str, most: int) -> tuple[ImageSet, int]:
    """At most so many images that decode, spread over the folder, and how many did not. Then files are in the cache."""
    everything = scan_images(root)
    indices = np.unique(np.linspace(0, len(everything) - 1, min(most, len(everything))).round().astype(int))
    good = []
    for index in indices.tolist():
        with contextlib.suppress(UndecodableImage):
            everything.decode(index)
            good.append(index)
    if not good:
        raise InputError(f"--root {root}: none of the {len(indices)} images that were tried can be decoded")
    return everything.subset(good), len(indices) - len(good)


def _baseline(name: str, transforms: Sequence[Transform]) -> tuple[str, Recipe]:
    try:
        from benchmarks import recipes
    except ImportError as error:
        raise InputError(f"the baseline needs Pillow ({error}); `pip install pillow`") from None
    if name == "torchvision" and not recipes.has_torchvision():
        raise InputError("--baseline torchvision: it cannot be imported here; install it, or take --baseline pillow")
    if name == "torchvision" or (name == "auto" and recipes.has_torchvision()):
        return "torchvision", recipes.torchvision(transforms)
    return "Pillow", recipes.pillow(transforms)


def _decode_all(images: ImageSet) -> None:
    """At full scale, whatever the data set does."""
    for index in range(len(images)):
        cv2.imdecode(np.frombuffer(images.read(index), np.uint8), cv2.IMREAD_COLOR)


def _time(act: Callable[[], None]) -> Timing:
    return timed(act)[0]


def _parts(recipes: Mapping[str, Recipe], images: ImageSet, rounds: int) -> dict[str, dict[str, float]]:
    """Recipe → part → CPU seconds per image (both views): the median of the rounds, in which the recipes take turns."""
    passes: dict[str, list[dict[str, float]]] = {name: [] for name in recipes}
    for _ in range(rounds):
        for name, recipe in recipes.items():
            passes[name].append(_one_pass(recipe, images))
    return {
        name: {part: statistics.median(one[part] for one in found) for part in found[0]}
        for name, found in passes.items()
    }


def _one_pass(recipe: Recipe, images: ImageSet) -> dict[str, float]:
    seconds: dict[str, float] = {}

    def part(name: str, act: Callable[[Any], Any], value: Any) -> Any:
        begin = time.process_time()
        result = act(value)
        seconds[name] = seconds.get(name, 0.0) + (time.process_time() - begin) / len(images)
        return result

    for index in range(len(images)):
        image = part("read and decode", lambda index: recipe.decode(images.read(index)), index)
        for _ in range(2):
            view = image
            for name, step in recipe.steps:
                view = part(name, step, view)
            part("to an array", recipe.finish, view)
    return seconds


def _part_table(parts: Mapping[str, Mapping[str, float]]) -> str:
    names = list(dict.fromkeys(name for one in parts.values() for name in one))
    rows = [["CPU ms per image, by part", *parts]]
    rows += [[name, *(f"{one.get(name, 0.0) * 1000:.2f}" for one in parts.values())] for name in names]
    return table([*rows, ["sum", *(f"{sum(one.values()) * 1000:.2f}" for one in parts.values())]])
