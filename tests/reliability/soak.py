#!/usr/bin/env python
"""Train for an hour on small data and measure the growth of memory, open files and shared memory: `make soak`.

Three stages: one process for most of the time, two processes under the launcher, then ten stops (SIGTERM) and resumes.
Each has data workers, and a checkpoint and a k-NN evaluation every epoch. Every process is sampled from outside.
Writes soak.json and soak.png. Exit code 0 when everything stays within the limits of memory.py, 1 when not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.engine.runs import ROOT, command, environment, write_config
from tests.reliability.memory import Fit, Limits, Process, fit, growth, shm_files, totals, tree

WARM_UP = 0.2  # of a stage: allocators, caches and the queue fill
TOO_LONG = 900  # seconds that a start, an epoch or a stop may take before the soak fails
LIMITS = Limits()
TRANSFORMS = ["RandomResizedCrop", "ColorJitter", "RandomGrayscale", "GaussianBlur", "RandomHorizontalFlip"]


@dataclass
class Series:
    """One process, or all together, over a stage."""

    name: str
    hours: list[float] = field(default_factory=list)
    mib: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def add(self, hour: float, mib: float, files: int) -> None:
        self.hours.append(hour)
        self.mib.append(mib)
        self.files.append(files)

    def after(self, hour: float) -> Series:
        first = sum(at < hour for at in self.hours)
        return Series(self.name, self.hours[first:], self.mib[first:], self.files[first:])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="duration of all stages together, approximately")
    parser.add_argument("--workers", type=int, default=1, help="data workers of each process")
    parser.add_argument("--resumes", type=int, default=10, help="number of stops and resumes in a row")
    parser.add_argument("--two", type=float, default=0.25, help="share of the time for two processes; 0 for none")
    parser.add_argument("--every", type=float, default=2, help="seconds between two samples")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "soak", help="folder for data and results")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    images = make_images(args.output / "images")
    before, seen_shm = shm_files(), set[str]()
    stages, problems = [], []
    plan = [("one process", 1, args.minutes * (0.9 - args.two)), ("two processes", 2, args.minutes * args.two)]
    for title, processes, minutes in plan:
        if minutes > 0:
            stages.append(train(title, processes, minutes, images, args, seen_shm))
            problems += stages[-1]["problems"]
    resumes = stop_and_resume(images, args)
    problems += resumes["problems"]
    left = sorted((shm_files() & seen_shm) - before)
    if len(left) > LIMITS.shm_files:
        problems.append(f"{len(left)} files of /dev/shm outlive the runs: {', '.join(left[:3])}")
    result = {
        "minutes": args.minutes,
        "workers": args.workers,
        "machine": platform.platform(),
        "python": platform.python_version(),
        "paddle": version("paddlepaddle"),
        "cores": os.cpu_count(),
        "limits": dataclasses.asdict(LIMITS),
        "stages": stages,
        "resumes": resumes,
        "shm_left": left,
        "problems": problems,
    }
    (args.output / "soak.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(stages, args.output / "soak.png")
    for line in report(result):
        print(line)
    print(f"wrote    {args.output / 'soak.json'} and soak.png")
    return 1 if problems else 0


def version(package: str) -> str:
    from importlib import metadata

    return metadata.version(package)


def make_images(folder: Path, count: int = 128) -> Path:
    """A tree of small photographs in four classes, noise with a colored disc; made once."""
    import cv2
    import numpy as np

    for index in range(count):
        path = folder / f"class_{index % 4}" / f"{index:03d}.jpg"
        if path.is_file():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(index)
        image = rng.integers(0, 120, (64, 80, 3), dtype=np.uint8)
        cv2.circle(image, (40, 32), 18, [(230, 60, 60), (60, 230, 60), (60, 60, 230), (230, 230, 60)][index % 4], -1)
        cv2.imwrite(str(path), image)
    return folder


def config(name: str, images: Path, args: argparse.Namespace) -> Path:
    """An endless run: the smallest network, a checkpoint and an evaluation every epoch."""
    folder = args.output / time.strftime("run_%Y%m%d_%H%M%S")
    folder.mkdir(parents=True)
    return write_config(
        folder,
        images,
        name=name,
        epochs=10**6,
        batch_size=16,
        micro_batch_size=8,
        log_every_steps=1,
        model__queue_len=64,
        data__num_workers=args.workers,
        data__transforms=[{"name": name, **({"size": 32} if "Crop" in name else {})} for name in TRANSFORMS],
        checkpoint={"every_epochs": 1, "keep": 2},
        evaluation={"train": str(images), "val": str(images), "every_epochs": 1, "k": 5, "size": 32},
    )


def start(config: Path, *options: str, processes: int = 1) -> subprocess.Popen[bytes]:
    with open(config.with_suffix(".out"), "ab") as log:
        return subprocess.Popen(
            command("tools/train.py", "-c", config, *options, processes=processes, logs=config.with_suffix(".launch")),
            cwd=ROOT,
            env=environment(),
            stdout=log,
            stderr=log,
        )


def stop(process: subprocess.Popen[bytes]) -> int:
    """Send SIGTERM to every trainer; returns the exit code."""
    for trainer in trainers(tree(process.pid)):
        os.kill(trainer.pid, signal.SIGTERM)
    return process.wait(timeout=TOO_LONG)


def trainers(processes: list[Process]) -> list[Process]:
    """The trainers by rank: neither the launcher nor data workers, which are forks."""
    training = {p.pid: p for p in processes if "tools/train.py" in p.command and "distributed.launch" not in p.command}
    return sorted((p for p in training.values() if p.parent not in training), key=lambda p: p.pid)


def wait_for(what: str, done: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + TOO_LONG
    while not done():
        if process.poll() is not None:
            raise SystemExit(f"soak     the run ended with {process.returncode} before {what}")
        if time.monotonic() > deadline:
            process.kill()
            raise SystemExit(f"soak     {what} took more than {TOO_LONG} s")
        time.sleep(0.2)


def steps_of(run: Path) -> list[int]:
    """The training steps in metrics.jsonl, in the order of its lines."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [row["step"] for row in rows if "loss" in row]


def checkpoints_of(run: Path) -> list[str]:
    return sorted(path.name for path in run.glob("checkpoints/*"))


def train(
    title: str, processes: int, minutes: float, images: Path, args: argparse.Namespace, seen_shm: set[str]
) -> dict[str, Any]:
    """Train for `minutes`, sample every process and fit the series."""
    path = config("run", images, args)
    run = path.parent / "run"
    print(f"soak     {title}: {minutes:.0f} minutes, {args.workers} data worker(s) per process, in {run}", flush=True)
    process = start(path, processes=processes)
    series, began = {}, time.monotonic()
    try:
        wait_for("the first checkpoint", lambda: bool(list(run.glob("checkpoints/epoch_*"))), process)
        for hour, found in samples(process, began, minutes, args.every):
            record(series, hour, found)
            seen_shm |= {name for one in found for name in one.shm}
            progress(title, hour * 60, minutes, series["together"], run)
        code = stop(process)
    finally:
        if process.poll() is None:
            stop(process)
    # The launcher has its own exit code for stopped processes.
    asked = code == 143 if processes == 1 else "on request" in (run / "train.log").read_text()
    return judge(title, series, run, [] if asked else [f"{title}: did not stop on request (exit code {code})"])


def samples(
    process: subprocess.Popen[bytes], began: float, minutes: float, every: float
) -> Iterator[tuple[float, list[Process]]]:
    while (hour := (time.monotonic() - began) / 3600) * 60 < minutes:
        if process.poll() is not None:
            raise SystemExit(f"soak     the run ended by itself, with {process.returncode}")
        yield hour, tree(process.pid)
        time.sleep(every)


def record(series: dict[str, Series], hour: float, found: list[Process]) -> None:
    """Adds a sample of each trainer and each worker, under stable names, and of all processes together."""
    known = trainers(found)
    for rank, trainer in enumerate(known):
        workers = sorted((p for p in found if p.parent == trainer.pid), key=lambda p: p.pid)
        named = {f"process {rank}": trainer} | {f"worker {p.pid} of process {rank}": p for p in workers}
        for name, process in named.items():
            series.setdefault(name, Series(name)).add(hour, process.anonymous, process.files)
    series.setdefault("together", Series("together")).add(hour, *totals(found))


def progress(title: str, minute: float, minutes: float, series: Series, run: Path) -> None:
    if sys.stdout.isatty():
        bar = "━" * round(30 * minute / minutes)
        print(f"\r{title} {bar:<30} {minute:4.1f}/{minutes:.0f} min  {series.mib[-1]:,.0f} MiB", end="", flush=True)
    elif len(series.hours) % 150 == 1:
        print(f"         {minute:4.1f} min  {series.mib[-1]:,.0f} MiB  {len(steps_of(run)):,} steps", flush=True)


def judge(title: str, series: dict[str, Series], run: Path, problems: list[str]) -> dict[str, Any]:
    """Slopes after the warm-up of all processes that lasted through the stage, and what is wrong."""
    end = series["together"].hours[-1]
    rows = []
    for one in series.values():
        rest = one.after(WARM_UP * end)
        if len(rest.hours) < 0.9 * len(series["together"].after(WARM_UP * end).hours):
            continue  # an evaluation's workers, which end with it; they count in the sum
        line, more = fit(rest.hours, rest.mib), growth(rest.files)
        what = "anonymous memory of all processes" if one.name == "together" else "anonymous memory"
        rows.append(
            {
                "name": one.name,
                "what": what,
                "mib_start": rest.mib[0],
                "mib_end": rest.mib[-1],
                "mib_most": max(rest.mib),
                "slope": line.slope,
                "error": line.error,
                "files_start": rest.files[0],
                "files_most": max(rest.files),
                "files_growth": more,
            }
        )
        problems += find_problems(f"{title}, {one.name}", line, more)
    steps = len(steps_of(run))
    return {
        "title": title,
        "hours": end,
        "steps": steps,
        "epochs": steps // 8,
        "rows": rows,
        "problems": problems,
        "series": [
            dataclasses.asdict(one) for one in series.values() if len(one.hours) >= 0.7 * len(series["together"].hours)
        ],
    }


def find_problems(name: str, line: Fit, more_files: int) -> list[str]:
    """The limits that a series exceeds."""
    found = []
    if line.least > LIMITS.mib_per_hour:
        rate = f"{line.slope:.1f} ± {line.error:.1f} MiB per hour"
        found.append(f"{name}: memory grows by {rate}, more than {LIMITS.mib_per_hour:g}")
    if more_files > LIMITS.files:
        found.append(f"{name}: {more_files} more files are open than at the start")
    return found


def stop_and_resume(images: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Stop within an epoch and resume, repeatedly: no step is lost or repeated, no file is left over."""
    path = config("resumed", images, args)
    run = path.parent / "resumed"
    problems, rounds = [], []
    for number in range(args.resumes + 1):
        before = len(steps_of(run))
        process = start(path, "--resume", "auto")
        target = before + 9 + number % 7  # an epoch has eight steps: after a checkpoint, at different places
        wait_for(f"step {target}", lambda: len(steps_of(run)) >= target, process)  # noqa: B023
        (trainer,) = trainers(tree(process.pid))
        code = stop(process)
        steps = steps_of(run)
        rounds.append({"steps": len(steps), "mib": trainer.anonymous, "files": trainer.files, "code": code})
        if code != 143:
            problems.append(f"resume {number}: exit code {code}, expected 143")
        if steps != list(range(1, len(steps) + 1)):
            problems.append(f"resume {number}: metrics.jsonl does not hold every step once, in order")
        if len(checkpoints_of(run)) != 2:
            problems.append(f"resume {number}: checkpoints {checkpoints_of(run)}, expected the newest two")
        print(f"         resume {number}: stopped at step {len(steps)}, {trainer.anonymous:,.0f} MiB", flush=True)
    return {"count": args.resumes, "rounds": rounds, "problems": problems}


def report(result: dict[str, Any]) -> Iterator[str]:
    for stage in result["stages"]:
        minutes = stage["hours"] * 60
        yield f"{stage['title']}: {minutes:.0f} minutes, {stage['steps']:,} steps, {stage['epochs']:,} epochs"
        for row in stage["rows"]:
            yield (
                f"  {row['name']:<26} {row['slope']:+7.2f} ± {row['error']:.2f} MiB per hour  ({row['what']}, "
                f"{row['mib_start']:,.0f} to {row['mib_end']:,.0f} MiB); open files {row['files_start']}, "
                f"{row['files_growth']:+d}"
            )
    resumes = result["resumes"]
    steps, left = resumes["rounds"][-1]["steps"], len(result["shm_left"])
    yield f"{resumes['count']} resumes in a row, {steps:,} steps; left in /dev/shm: {left}"
    for problem in result["problems"]:
        yield f"PROBLEM  {problem}"
    yield "passed" if not result["problems"] else f"{len(result['problems'])} problem(s)"


def draw(stages: list[dict[str, Any]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(stages), figsize=(7 * len(stages), 7), squeeze=False, sharex="col")
    for column, stage in enumerate(stages):
        for one in stage["series"]:
            minutes = [60 * hour for hour in one["hours"]]
            axes[0][column].plot(minutes, one["mib"], lw=1, label=one["name"])
            axes[1][column].plot(minutes, one["files"], lw=1, label=one["name"])
        axes[0][column].set(title=f"{stage['title']}: {stage['steps']:,} steps", ylabel="MiB", ylim=(0, None))
        axes[1][column].set(ylabel="open files", xlabel="minutes", ylim=(0, None))
        for axis in axes[:, column]:
            axis.axvspan(0, 60 * WARM_UP * stage["hours"], color="0.92", zorder=0, label="warm-up, not counted")
        axes[0][column].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
