"""PairLoader end to end: what its workers deliver, against one core without it, and what memory they keep."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from typing import Any

import cv2

from benchmarks.data import chosen, pretrain_config, source
from benchmarks.measure import WALL, own_cores, shown, spread, status_mb
from passl_densecl.cli.console import table
from passl_densecl.cli.options import at_least
from passl_densecl.data.datasets import PairDataset
from passl_densecl.data.workers import keep_freed_memory
from passl_densecl.errors import InputError
from passl_densecl.text import quantity


def add_options(parser: argparse.ArgumentParser) -> None:
    source(parser)
    workers = "numbers of worker processes to try (default: %(default)s)"
    epochs = "through one iterator, as in training (default: %(default)s)"
    images = "of an epoch, spread over the folder (default: %(default)s)"
    parser.add_argument("--workers", default="0,1,2", metavar="N,N,…", help=workers)
    parser.add_argument("--epochs", type=int, default=3, help=epochs)
    parser.add_argument("--batch", type=int, default=32, help="images of a batch (default: %(default)s)")
    parser.add_argument("--images", type=int, default=512, metavar="N", help=images)


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    at_least(1, epochs=args.epochs, batch=args.batch, images=args.images)
    counts = _numbers(args.workers)
    transforms, (images, _) = pretrain_config(args.config).data.transforms, chosen(args.root, args.images)
    if len(images) < args.batch:
        raise InputError(f"--batch {args.batch}: only {len(images)} images (--root, --images) are there")

    import passl_densecl.data.loader as loader  # after the checks: Paddle takes seconds

    cv2.setNumThreads(0)
    keep_freed_memory()  # as the workers do
    dataset = PairDataset(images, transforms, seed=0)

    def one_core(epoch: int) -> float:
        """Images/s of the data set alone, in this process."""
        begin = time.perf_counter()
        for index in range(len(dataset)):
            dataset[epoch, index]
        return len(dataset) / (time.perf_counter() - begin)

    one_core(0)  # warm
    baseline, found = [one_core(1)], {}
    for number in counts:
        pairs = loader.PairLoader(images, transforms, seed=0, batch_size=args.batch, num_workers=number)
        found[number] = _epochs(pairs, args.epochs, args.batch)
        baseline.append(one_core(2 + len(baseline)))
        around = (baseline[-2] + baseline[-1]) / 2  # measured before and after this number of workers
        found[number]["one_core"] = around
        found[number]["ratio"] = {
            "what": f"images/s, {quantity(number, 'worker')} / {max(1, number)} × one core",
            **spread([rate / (max(1, number) * around) for rate in found[number]["images_per_second"]["epochs"]]),
        }
    how = f"{args.epochs} epochs (the first starts the workers); {WALL}; {len(own_cores())} cores"
    lowest, highest = f"{min(baseline):.1f}", f"{max(baseline):.1f}"
    one_core_row = ["one core, no loader", f"{spread(baseline)['median']:.1f}", f"{lowest} – {highest}", ""]
    head = ["", "images/s, median", "lowest – highest", "over N × one core"]
    memory = [["resident MiB after each epoch", "main", "all workers"]]
    for number, one in found.items():
        memory.append([quantity(number, "worker"), *(_flow(one["resident_mb"][name]) for name in ("main", "workers"))])
    text = "\n\n".join(
        [
            f"loader   {len(images):,} images of {args.root}, batches of {args.batch}, {how}",
            table([head, one_core_row, *(_row(number, one) for number, one in found.items())]),
            table(memory),
        ]
    )
    return text, {
        "clock": WALL,
        "images": len(images),
        "one_core": {"images_per_second": {**spread(baseline), "each": baseline}},
        "results": {str(number): one for number, one in found.items()},
        "ratios": {f"workers_{number}": one.pop("ratio") for number, one in found.items()},
    }


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise InputError(f"--workers {text!r}: expected different whole numbers with commas between, such as 0,1,2")
    return numbers


def _epochs(pairs: Any, epochs: int, batch: int) -> dict[str, Any]:
    """Rates and resident memory, epoch by epoch, through one iterator as in training."""
    rates, main, together = [], [], []
    begin = time.perf_counter()
    for step, _ in pairs.steps(0, epochs * pairs.steps_per_epoch):
        if (step + 1) % pairs.steps_per_epoch:
            continue
        rates.append(pairs.steps_per_epoch * batch / (time.perf_counter() - begin))
        main.append(status_mb("VmRSS"))
        together.append(sum(status_mb("VmRSS", child.pid or os.getpid()) for child in _workers()))
        begin = time.perf_counter()
    return {
        "images_per_second": {**spread(rates), "epochs": rates},
        "resident_mb": {"main": main, "workers": together},
        "growth_mb": {"main": main[-1] - main[0], "workers": together[-1] - together[0]},
    }


def _workers() -> list[Any]:
    return [child for child in multiprocessing.active_children() if child.name.startswith("data-")]


def _row(number: int, one: dict[str, Any]) -> list[str]:
    rate = one["images_per_second"]
    median, lowest, highest = (f"{rate[key]:.1f}" for key in ("median", "min", "max"))
    return [quantity(number, "worker"), median, f"{lowest} – {highest}", shown(one["ratio"])]


def _flow(values: list[float]) -> str:
    return " → ".join(f"{value:.0f}" for value in values)
