"""Runs of the real tools in processes of their own, as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

from passl_densecl.cli.main import main
from passl_densecl.weights.files import read_arrays

ROOT = Path(__file__).resolve().parents[2]
TIMING_KEYS = ("images_per_second", "data_share", "peak_memory_mb", "seconds")  # differ between two identical runs

PRETRAIN = {
    "task": "pretrain",
    "name": "run",
    "model": {"depth": 18, "hidden_dim": 64, "out_dim": 16, "queue_len": 24, "momentum": 0.9, "stem_stride": 4},
    "data": {
        "transforms": [
            {"name": "RandomResizedCrop", "size": 40, "scale": [0.2, 1.0]},
            {"name": "ColorJitter"},
            {"name": "GaussianBlur", "sigma": [0.1, 1.0]},
            {"name": "RandomHorizontalFlip"},
        ],
        "num_workers": 0,
    },
    "batch_size": 16,
    "micro_batch_size": 4,
    "epochs": 2,
    "optimizer": {"lr": 0.05, "reference_batch_size": 16},
    "schedule": {"name": "cosine", "per": "step"},
    "log_every_steps": 1,
    "report": False,  # seconds of every run
}


def write_config(folder: Path, images: Path, **changes: object) -> Path:
    """PRETRAIN on `images` with runs under `folder`; `model__queue_len=8` changes a nested key."""
    tree = json.loads(json.dumps(PRETRAIN))
    tree["data"]["root"] = str(images)
    tree["output_dir"] = str(folder)
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = tree
        for parent in parents:
            node = node[parent]
        node[last] = value
    path = folder / f"{tree['name']}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def command(*arguments: object, processes: int = 1, logs: Path | None = None) -> list[str]:
    launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(processes), "--log_dir", str(logs)]
    return [sys.executable, *(launcher if processes > 1 else []), *(str(argument) for argument in arguments)]


def train(config: Path, *arguments: object, processes: int = 1, launcher: bool = False) -> str:
    """tools/train.py -c config arguments…, which must end well; returns what it printed. Several processes are joined
    without Paddle's launcher, whose start takes seconds, unless `launcher`.
    """
    if processes > 1 and not launcher:
        from tests.reliability.trainers import output_of, start_trainers

        trainers = start_trainers(config, *map(str, arguments), count=processes)
        try:
            codes = [trainer.wait(400) for trainer in trainers]
        finally:
            for trainer in trainers:
                trainer.kill()
        said = "".join(output_of(config, rank) for rank in range(processes))
    else:
        words = command("tools/train.py", "-c", config, *arguments, processes=processes, logs=config.parent / "launch")
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=400, env=environment())
        codes, said = [done.returncode], done.stdout[-3000:] + done.stderr[-3000:]
    assert not any(codes), said
    return said


def train_here(config: Path, *arguments: object) -> int:
    """The same in this process, which spares the seconds in which Paddle is imported; returns the exit code."""
    return main(["train", "-c", *map(str, (config, *arguments))])


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def arrays(run: Path, checkpoint: str, file: str = "model.pdparams") -> dict[str, np.ndarray]:
    return read_arrays(run / "checkpoints" / checkpoint / file)


def metrics(run: Path) -> list[dict]:
    """The lines of metrics.jsonl without what differs between two identical runs."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING_KEYS} for line in lines]
