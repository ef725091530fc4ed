"""Several processes, one device each: collectives against numpy, a shared step, and one that is killed.

`python -m passl_densecl.doctor.several FOLDER OVERRIDE …` is one of them; `start` is who starts them.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import passl_densecl  # noqa: F401  (chooses the matrix kernels, which must come before Paddle)

# isort: split
import numpy as np

from passl_densecl.config import PretrainConfig, load_config
from passl_densecl.distributed import collectives as dist
from passl_densecl.distributed import process_group
from passl_densecl.distributed.device import set_device
from passl_densecl.engine.learner import Learner
from passl_densecl.engine.pretrain import build_model, encode_keys, forward_backward
from passl_densecl.errors import RunError
from passl_densecl.models.batch_norm import ChainedStatistics
from passl_densecl.tensors import to_tensor

KILLED = "one of the processes is gone"


def config_of(name: str, overrides: Sequence[str]) -> PretrainConfig:
    config = load_config(name, overrides)
    assert isinstance(config, PretrainConfig)
    return config


def train_steps(config: PretrainConfig, steps: int, size: int) -> dict[str, Any]:
    """The losses of a few steps on images of noise, and the norm of every weight after them; the work is shared."""
    model = build_model(config, config.batch_size * 2)
    learner = Learner.build(model, config)
    learner.optimizer.set_lr(1e-4)  # a fresh network amplifies rounding: hardly at this rate
    statistics = ChainedStatistics(model, config.micro_batch_count // dist.world_size())
    rng, losses = np.random.default_rng(0), []
    for step in range(steps):
        noise = rng.integers(0, 256, (2, config.batch_size, size, size, 3), dtype=np.uint8)
        query, key = (to_tensor(images[dist.own_rows(config.batch_size)]) for images in noise)
        with statistics.step():
            keys = encode_keys(config, model, key, step)
            found = forward_backward(config, learner, query, keys, 0.5)
        learner.step()
        learner.optimizer.clear_grad()
        model.enqueue(keys)
        total = sum(float(each["loss"]) for each in found)
        losses.append(dist.all_reduce_sum([total])[0] / config.micro_batch_count)
    return {"losses": losses, "norms": [float(np.linalg.norm(value.numpy())) for value in model.parameters()]}


def check_collectives() -> list[str]:
    """The operations whose result differs from numpy's, over all processes."""
    size, rank = dist.world_size(), dist.rank()
    whole = np.random.default_rng(0).standard_normal((size * 6, 5)).astype("float32")
    own = dist.own_rows(len(whole))
    order = np.random.default_rng(1).permutation(len(whole))
    sums = [float(rank), 1.5]
    expected = [float(sum(range(size))), 1.5 * size]
    results: dict[str, tuple[Any, Any]] = {
        "gather_rows": (dist.gather_rows(to_tensor(whole[own])).numpy(), whole),
        "all_reduce_sum": (dist.all_reduce_sum(sums), expected),
        "all_reduce_mean": (dist.all_reduce_mean(to_tensor(np.asarray(sums))), np.asarray(expected) / size),
        "all_reduce": (dist.all_reduce(to_tensor(np.asarray(sums, "float32"))).numpy(), expected),
        "any_process": (dist.any_process(rank == size - 1), True),
        "gather_objects": (dist.gather_objects([rank]), list(range(size))),
    }
    for number in range(20):  # what arrives late is seen only now and then
        rows = to_tensor(whole[own] + number if number % 2 else (whole[own] * 9 + number).astype("uint8"))
        moved = dist.exchange_rows(rows, order)
        everything = whole + number if number % 2 else (whole * 9 + number).astype("uint8")
        results[f"exchange_rows {number}"] = (moved.numpy(), everything[order][own])
        results[f"and back {number}"] = (dist.exchange_rows(moved, np.argsort(order)).numpy(), rows.numpy())
    wrong = [name for name, (found, right) in results.items() if not np.allclose(found, right, atol=1e-6)]
    return sorted(set(dist.gather_objects(wrong)))


def main(folder: str, device: str, name: str, *overrides: str) -> int:
    set_device(device)
    try:
        with process_group.running(limit=20):
            answer = {"wrong": check_collectives()}
            config = config_of(name, overrides)
            answer |= train_steps(config, 2, 32)
            dist.barrier()
            if dist.is_main():
                Path(folder, "several.json").write_text(json.dumps(answer | {"done": time.time()}), encoding="utf-8")
            if dist.rank() == dist.world_size() - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            while True:
                dist.barrier()
    except RunError as error:
        print(f"{KILLED}: {error}", file=sys.stderr, flush=True)
        os._exit(3)  # leaving Paddle's group may hang


def start(gpus: Sequence[int], count: int, folder: Path, words: Sequence[str], seconds: float) -> tuple[list[Any], str]:
    """Run `main` in so many processes: ([answer, their exit codes, seconds from the kill to the end], what failed)."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    endpoints = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    common = {"PADDLE_TRAINERS_NUM": str(count), "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints)}
    common |= {"PADDLE_MASTER": endpoints[0], "PADDLE_LOCAL_SIZE": str(count), "GLOG_minloglevel": "2"}
    command = [sys.executable, "-m", "passl_densecl.doctor.several", str(folder), "gpu" if gpus else "cpu", *words]
    paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    processes, logs = [], [folder / f"process_{number}.log" for number in range(count)]
    for number, log in enumerate(logs):
        own = {"PADDLE_TRAINER_ID": str(number), "PADDLE_CURRENT_ENDPOINT": endpoints[number]}
        own |= {"FLAGS_selected_gpus": str(gpus[number])} if gpus else {}
        env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"} | common | own
        with log.open("w") as output:
            processes.append(subprocess.Popen(command, env=env, stdout=output, stderr=output, stdin=subprocess.DEVNULL))
    deadline = time.monotonic() + seconds
    try:
        for process in processes:
            process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        pass
    codes, ended = [process.poll() for process in processes], time.time()
    for process in processes:
        process.kill()
        process.wait()
    answer = folder / "several.json"
    if not answer.is_file():
        told = [line for log in logs for line in log.read_text(errors="replace").splitlines() if line.strip()]
        late = f"no result within {seconds:.0f} s; " if None in codes else ""
        return [], f"{late}exit codes {codes}; {told[-1][:300] if told else 'no message'}"
    found = json.loads(answer.read_text(encoding="utf-8"))
    return [found, codes, ended - found["done"]], ""


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
