"""Trainers of one run, started without a launcher: only they themselves can detect that one is gone."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.engine.runs import ROOT, environment


def free_ports(count: int) -> list[int]:
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


def start_trainers(config: Path, *options: str, count: int = 2) -> list[subprocess.Popen]:
    """tools/train.py in `count` processes; their output goes to trainer.RANK beside the config."""
    ends = [f"127.0.0.1:{port}" for port in free_ports(count)]
    trainers = []
    for rank in range(count):
        own = {
            "PADDLE_TRAINER_ID": str(rank),
            "PADDLE_TRAINERS_NUM": str(count),
            "PADDLE_LOCAL_SIZE": str(count),
            "PADDLE_MASTER": ends[0],
            "PADDLE_TRAINER_ENDPOINTS": ",".join(ends),
            "PADDLE_CURRENT_ENDPOINT": ends[rank],
            "PADDLE_DISTRI_BACKEND": "gloo",
        }
        with open(config.with_name(f"trainer.{rank}"), "w") as out:
            words = [sys.executable, "tools/train.py", "-c", str(config), *options]
            streams = {"stdout": out, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(words, cwd=ROOT, env=environment() | own, start_new_session=True, **streams)
            trainers.append(process)
    return trainers


def output_of(config: Path, rank: int) -> str:
    return config.with_name(f"trainer.{rank}").read_text(errors="replace")


def wait_for_step(run: Path, step: int, trainers: list[subprocess.Popen], seconds: float = 200) -> None:
    """Wait until metrics.jsonl has the step; fails when a trainer ends."""
    deadline = time.monotonic() + seconds
    while steps_of(run) < step:
        assert [trainer.poll() for trainer in trainers] == [None] * len(trainers), run
        assert time.monotonic() < deadline
        time.sleep(0.05)


def steps_of(run: Path) -> int:
    """The last step in metrics.jsonl, 0 without one."""
    file = run / "metrics.jsonl"
    lines = [line for line in file.read_text().splitlines() if line.endswith("}")] if file.is_file() else []
    return json.loads(lines[-1])["step"] if lines else 0
