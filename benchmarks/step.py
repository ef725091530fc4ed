"""One training step: λ = 0.5 against λ = 0, against plain torch, and shared by several processes."""

from __future__ import annotations

import argparse
import importlib.util
import socket
import statistics
from functools import partial
from typing import Any

from benchmarks.measure import (
    CPU,
    WALL,
    Timing,
    Worker,
    interleave,
    own_cores,
    quotient,
    ratio_lines,
    summary,
    thread_limit,
    time_table,
    together,
    workers,
)
from passl_densecl.cli.console import table
from passl_densecl.cli.options import at_least
from passl_densecl.config import DEPTHS
from passl_densecl.errors import InputError
from passl_densecl.text import quantity

_TRAINING = "benchmarks.training"
_NAMES = {
    "densecl": "DenseCL (λ = 0.5)",
    "moco_v2": "MoCo-v2 (λ = 0)",
    "torch": "torch, plain layout",
    "torch_channels_last": "torch, channels last",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    depth = f"of the ResNet: {', '.join(map(str, DEPTHS))} (default: %(default)s)"
    rounds = "timed steps of each; 0 measures the memory only (default: %(default)s)"
    threads = "of the kernels (not with --processes: one each) (default: %(default)s)"
    processes = "also: N micro-batches by one process on one core, and by N processes on N cores"
    parser.add_argument("--depth", type=int, default=50, help=depth)
    parser.add_argument("--size", type=int, default=224, help="pixels a side (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="images of one micro-batch (default: %(default)s)")
    parser.add_argument("--queue-len", type=int, default=65536, help="keys in the queue (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help=rounds)
    parser.add_argument("--threads", type=int, default=1, help=threads)
    parser.add_argument("--processes", type=int, default=1, metavar="N", help=processes)
    parser.add_argument("--torch", action="store_true", help="also: the same step in plain torch, in both layouts")
    parser.add_argument("--profile", action="store_true", help="also: where the time of a step goes")


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    _check(args)
    sizes = (args.depth, args.size, args.batch, args.queue_len)
    clock = CPU if args.threads == 1 else WALL
    text = [
        f"step     ResNet-{args.depth}, {args.size} px, batch {args.batch}, queue {args.queue_len:,}, "
        f"{quantity(args.rounds, 'round')}; {clock}, {quantity(args.threads, 'thread')}"
    ]
    data: dict[str, Any] = {"clock": clock, "results": {}, "ratios": {}}
    ratios = data["ratios"]
    if args.rounds:
        timings = _compared(args, sizes)
        data["results"] = {name: summary(values, clock, args.batch) for name, values in timings.items()}
        ratios["time"] = quotient("time, DenseCL / MoCo-v2", timings["densecl"], timings["moco_v2"], clock)
        for name in [name for name in timings if name.startswith("torch")]:
            what = f"images/s, DenseCL here / {_NAMES[name]}"
            ratios[f"speed_over_{name}"] = quotient(what, timings[name], timings["densecl"], clock)
        text.append(time_table("step", {_NAMES[name]: result for name, result in data["results"].items()}))
    data["memory"] = memory = _memory(sizes, args.threads)
    ratio = memory["densecl"]["extra_mb"] / memory["moco_v2"]["extra_mb"]
    ratios["memory"] = {"what": "memory, DenseCL / MoCo-v2", "median": ratio, "min": ratio, "max": ratio}
    rows = [[_NAMES[name], f"{value['extra_mb']:.0f}", f"{value['before_mb']:.0f}"] for name, value in memory.items()]
    text.append(table([["peak memory, MiB", "training", "Paddle itself"], *rows]))
    if args.processes > 1:
        data["processes"] = _processes(args, sizes)
        ratios["processes"] = data["processes"].pop("ratio")
        text.append(f"{data['processes']['how']}; {WALL}\n\n" + time_table("whole batch", data["processes"]["results"]))
    text.append(ratio_lines(ratios))
    if args.profile:
        data["profile"] = _profile(sizes, args.rounds, args.threads)
        parts = data["profile"].items()
        rows = [[name, f"{part['seconds'] * 1000:.1f}", f"{part['share']:.1%}"] for name, part in parts]
        text.append(table([["part of a DenseCL step", "ms", "share"], *rows]) + f"\n(medians; {WALL})")
    return "\n\n".join(text), data


def _check(args: argparse.Namespace) -> None:
    if args.depth not in DEPTHS:
        raise InputError(f"--depth {args.depth}: expected one of {', '.join(map(str, DEPTHS))}")
    at_least(32, size=args.size)
    at_least(2, batch=args.batch)  # BatchNorm of one vector is no BatchNorm
    at_least(1, threads=args.threads, processes=args.processes)
    at_least(1 if args.torch or args.profile or args.processes > 1 else 0, rounds=args.rounds)
    at_least(args.batch * args.processes, queue_len=args.queue_len)
    if args.processes > len(own_cores()):
        raise InputError(f"--processes {args.processes}: only {len(own_cores())} cores, and each needs one")
    if args.torch and importlib.util.find_spec("torch") is None:
        raise InputError("--torch: torch is not installed here; `pip install torch`, or omit the option")


def _compared(args: argparse.Namespace, sizes: tuple[int, ...]) -> dict[str, list[Timing]]:
    env = thread_limit(args.threads)
    layouts = {"torch": False, "torch_channels_last": True} if args.torch else {}
    group = [Worker(f"{_TRAINING}:pair", *sizes, env=env)]
    group += [Worker("benchmarks.torch_step:build", *sizes, last, args.threads, env=env) for last in layouts.values()]
    with workers(*group) as (own, *others):
        contestants = {name: partial(own.time, name) for name in ("densecl", "moco_v2")}
        for name, other in zip(layouts, others, strict=True):
            contestants[name] = partial(other.time, "step")
        return interleave(contestants, args.rounds)


def _memory(sizes: tuple[int, ...], threads: int) -> dict[str, dict[str, float]]:
    found = {}
    for name, dense in (("densecl", True), ("moco_v2", False)):
        with workers(Worker(f"{_TRAINING}:from_nothing", *sizes, dense, env=thread_limit(threads))) as (worker,):
            found[name] = worker.memory("two steps")
    return found


def _processes(args: argparse.Namespace, sizes: tuple[int, ...]) -> dict[str, Any]:
    """One process with all micro-batches on the first core, and as many processes as micro-batches, one a core."""
    count, cores = args.processes, own_cores()
    endpoints = _endpoints(count)
    one_thread = thread_limit(1)
    alone = Worker(f"{_TRAINING}:shared", *sizes, count, env=one_thread, cores={cores[0]})
    group = [
        Worker(f"{_TRAINING}:shared", *sizes, count, env=one_thread | _rank(number, endpoints), cores={cores[number]})
        for number in range(count)
    ]
    with workers(alone, *group):
        contestants = {"one": partial(together, [alone], "step"), "several": partial(together, group, "step")}
        timings = interleave(contestants, args.rounds)
    names = {"one": "1 process, 1 core", "several": f"{count} processes, {count} cores"}
    return {
        "how": f"{count} micro-batches of {args.batch} a step; every process pinned to a core of its own "
        "(sched_setaffinity), OMP_NUM_THREADS=1, joined by gloo",
        "results": {names[name]: summary(values, WALL, args.batch * count) for name, values in timings.items()},
        "ratio": quotient(f"images/s, {count} processes / 1", timings["one"], timings["several"], WALL),
    }


def _rank(number: int, endpoints: list[str]) -> dict[str, str]:
    """What `paddle.distributed.launch` tells a process."""
    return {
        "PADDLE_TRAINER_ID": str(number),
        "PADDLE_TRAINERS_NUM": str(len(endpoints)),
        "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
        "PADDLE_CURRENT_ENDPOINT": endpoints[number],
        "PADDLE_MASTER": endpoints[0],
        "PADDLE_DISTRI_BACKEND": "gloo",
        "GLOG_minloglevel": "1",  # not every connection on the screen
    }


def _endpoints(count: int) -> list[str]:
    """Addresses on this machine that are free now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    names = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return names


def _profile(sizes: tuple[int, ...], rounds: int, threads: int) -> dict[str, dict[str, float]]:
    """Median seconds of every part and its share of their sum, the largest first."""
    with workers(Worker(f"{_TRAINING}:profile", *sizes, env=thread_limit(threads))) as (worker,):
        found = []
        for _ in range(rounds + 1):
            worker.ask("step")
            found.append(worker.answer()[1])
    medians = {name: statistics.median(one[name] for one in found[1:]) for name in found[0]}  # the first warms up
    ordered = sorted(medians.items(), key=lambda item: -item[1])
    return {name: {"seconds": value, "share": value / sum(medians.values())} for name, value in ordered}
