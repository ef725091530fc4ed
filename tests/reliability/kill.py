"""SIGKILL at many moments; each run is resumed until it ends, and its result must equal that of an undisturbed run.

`python -m tests.reliability.kill` (make test-kill). Half of the moments are random in time, the others are places in
the code (strike.py). Compared are the names and bytes of the remaining checkpoints, and metrics.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from tests.engine.runs import ROOT, command, environment, metrics, write_config
from tests.reliability.pictures import write_pictures
from tests.reliability.strike import children

# (processes, place, which call, victims). A run has 15 steps with a checkpoint each and evaluations at 0, 10 and 15;
# its 27th rename is that of the last checkpoint (only the removal of an older one and an evaluation follow), its 2nd
# line of metrics that of step 1, which is in no checkpoint yet.
PLACED = [
    (1, "start", 1, "self"),
    (1, "step", 7, "self"),
    (1, "sync", 12, "self"),
    (1, "rename", 9, "self"),
    (1, "renamed", 27, "self"),
    (1, "prune", 3, "self"),
    (1, "evaluation", 4, "self"),
    (1, "metrics", 2, "self"),
    (2, "evaluation", 3, "workers"),
    (2, "renamed", 13, "all"),
    (2, "prune", 2, "workers"),
    (2, "model", 1, "all"),
]
SETTINGS = {
    "epochs": 3,
    "batch_size": 8,
    "checkpoint": {"every_epochs": 1, "every_steps": 1, "keep": 2},
    "data__num_workers": 1,
}


@dataclass(frozen=True)
class Moment:
    processes: int
    victims: str  # "self"; for two processes "workers", or "all" with their launcher
    seconds: float | None = None
    place: str = ""
    number: int = 0

    def __str__(self) -> str:
        when = f"after {self.seconds:.1f} s" if self.seconds is not None else f"at {self.place} {self.number}"
        return f"{self.processes} {'process  ' if self.processes == 1 else 'processes'} {self.victims:<7} {when}"


def configure(folder: Path, pictures: Path) -> Path:
    folder.mkdir(parents=True)
    halves = {"train": str(pictures), "val": str(pictures), "every_epochs": 2, "size": 32, "k": 3}
    return write_config(folder, pictures, **SETTINGS, evaluation=halves)


def start(config: Path, *options: str, processes: int, strike: tuple[str, int, str] | None = None) -> subprocess.Popen:
    script: list[object] = ["tools/train.py"]
    if strike:
        script = [ROOT / "tests" / "reliability" / "strike.py", *strike, "tools/train.py"]
    with open(config.with_suffix(".out"), "a") as out:
        return subprocess.Popen(
            command(*script, "-c", config, *options, processes=processes, logs=config.with_suffix(".launch")),
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment(),
            start_new_session=True,
        )


def kill_at(config: Path, moment: Moment, limit: float = 600) -> int:
    """Start or resume a run and have it killed; returns the exit code of the process that was started."""
    options = ("--resume", "auto")
    if moment.seconds is None:
        strike = (moment.place, moment.number, moment.victims)
        return start(config, *options, processes=moment.processes, strike=strike).wait(limit)
    process = start(config, *options, processes=moment.processes)
    try:
        return process.wait(moment.seconds)
    except subprocess.TimeoutExpired:
        trainers = children(process.pid) if moment.processes > 1 else []
        for pid in [*([] if moment.victims == "workers" else [process.pid]), *trainers]:
            os.kill(pid, signal.SIGKILL)
        return process.wait(limit)


def finish(config: Path, processes: int, limit: float = 600) -> None:
    """Resume once; the run must end with exit code 0."""
    process = start(config, "--resume", "auto", processes=processes)
    if process.wait(limit) != 0:
        out = config.with_suffix(".out")
        raise RuntimeError(f"the resumed run ended with exit code {process.returncode}: see {out}")


def differences(run: Path, expected: Path) -> list[str]:
    """Differences from the undisturbed run."""
    found = []
    ours, theirs = metrics(run), metrics(expected)
    if ours != theirs:
        lines = [[(line["step"], *sorted(line)[:1]) for line in one] for one in (ours, theirs)]
        what = f"{lines[0]} instead of {lines[1]}" if lines[0] != lines[1] else "values"
        found.append(f"metrics.jsonl: {what}")
    names = [sorted(entry.name for entry in (one / "checkpoints").iterdir()) for one in (run, expected)]
    if names[0] != names[1]:
        found.append(f"checkpoints: {names[0]} instead of {names[1]}")
    for file in sorted((expected / "checkpoints").rglob("*")):
        other = run / file.relative_to(expected)
        if file.is_file() and (not other.is_file() or other.read_bytes() != file.read_bytes()):
            found.append(f"{file.relative_to(expected)}: other bytes")
    return found


def where(run: Path) -> str:
    """How far a killed run came, from the files that it left."""
    if not (run / "train.log").is_file():
        return "start-up: no log yet"
    half = [entry.name for entry in (run / "checkpoints").glob(".*.tmp")] if (run / "checkpoints").is_dir() else []
    lines = (run / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
    place = f"after the metrics of step {steps[-1]}" if steps else "before the first step"
    return place + (f", in the write or removal of {half[0]}" if half else "")


def moments(count: int, seed: int, lengths: dict[int, float]) -> list[Moment]:
    rng = random.Random(seed)
    chosen = [Moment(processes, victims, None, place, number) for processes, place, number, victims in PLACED]
    chosen = chosen if count > len(chosen) else rng.sample(chosen, (count + 1) // 2)
    while len(chosen) < count:
        processes = 1 + len(chosen) % 2
        victims = "self" if processes == 1 else rng.choice(["workers", "all"])
        chosen.append(Moment(processes, victims, rng.uniform(0.1, 0.95) * lengths[processes]))
    return chosen


def undisturbed(scratch: Path, pictures: Path, processes: int) -> tuple[Path, float]:
    """(run folder, seconds) of a run that nothing disturbs."""
    config, began = configure(scratch / f"undisturbed_{processes}", pictures), time.monotonic()
    finish(config, processes)
    return config.parent / "run", time.monotonic() - began


def try_moment(folder: Path, pictures: Path, moment: Moment, expected: Path) -> tuple[str, list[str]]:
    """Kill a run and resume it; returns how far it came before, and what is wrong with the result."""
    config = configure(folder, pictures)
    code = kill_at(config, moment)
    while code == 0 and moment.seconds is not None:  # it ended first: again, and earlier
        moment = replace(moment, seconds=0.6 * moment.seconds)
        shutil.rmtree(folder)
        config = configure(folder, pictures)
        code = kill_at(config, moment)
    place = where(folder / "run")
    try:
        finish(config, moment.processes)
        found = differences(folder / "run", expected)
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        found = [str(error), config.with_suffix(".out").read_text()[-2000:]]
    if code == 0:
        found.append("it was not killed: it never reached the place")
    return place, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        pictures = write_pictures(scratch / "pictures", 40)
        whole = {processes: undisturbed(scratch, pictures, processes) for processes in (1, 2)}
        lengths = {processes: seconds for processes, (_, seconds) in whole.items()}
        print(f"undisturbed: {lengths[1]:.0f} s with one process, {lengths[2]:.0f} s with two", flush=True)
        for index, moment in enumerate(moments(args.moments, args.seed, lengths)):
            place, found = try_moment(scratch / f"killed_{index}", pictures, moment, whole[moment.processes][0])
            failed += bool(found)
            print(f"{index + 1:>3} {moment!s:<46} {place:<72} {'; '.join(found) or 'identical'}", flush=True)
    print(f"{args.moments - failed} of {args.moments} ended like the undisturbed run", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
