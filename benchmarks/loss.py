"""`info_nce`, which never holds all logits, against the usual way: concatenate and cross-entropy."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.measure import (
    CPU,
    WALL,
    Worker,
    interleave,
    quotient,
    shown,
    summary,
    thread_limit,
    time_table,
    workers,
)
from passl_densecl.cli.console import table
from passl_densecl.cli.options import at_least
from passl_densecl.text import quantity

_HERE = "benchmarks.loss"
_TEMPERATURE = 0.2


def add_options(parser: argparse.ArgumentParser) -> None:
    queries = "query vectors: 1568 is 32 images × 7×7 (default: %(default)s)"
    keys = "negatives, the queue's length (default: %(default)s)"
    parser.add_argument("--queries", type=int, default=1568, metavar="N", help=queries)
    parser.add_argument("--keys", type=int, default=65536, metavar="K", help=keys)
    parser.add_argument("--dim", type=int, default=128, metavar="D", help="length of a vector (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed pairs (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of the matrix kernels (default: %(default)s)")


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    at_least(1, queries=args.queries, keys=args.keys, dim=args.dim, rounds=args.rounds, threads=args.threads)
    sizes, env = (args.queries, args.keys, args.dim), thread_limit(args.threads)
    clock = CPU if args.threads == 1 else WALL
    with workers(Worker(f"{_HERE}:build", *sizes, env=env)) as (worker,):
        names = ("streamed", "concatenated")
        timings = interleave({name: partial(worker.time, name) for name in names}, args.rounds)
        worker.ask("difference")
        difference = worker.answer()[1]
    memory = {}
    for name in names:
        with workers(Worker(f"{_HERE}:build", *sizes, env=env)) as (worker,):
            memory[name] = worker.memory(name)
    results = {name: summary(timings[name], clock) for name in names}
    ratios = {
        "time": quotient("time, streamed / concatenated", timings["streamed"], timings["concatenated"], clock),
        "extra_memory": _memory_ratio(memory),
    }
    text = "\n\n".join(
        [
            f"loss     {args.queries:,} queries, {args.keys:,} keys, {args.dim} long; "
            f"{quantity(args.rounds, 'round')}, forward and backward; {clock}, {quantity(args.threads, 'thread')}",
            time_table("loss", results),
            table([["extra memory", "MiB"], *([name, f"{value['extra_mb']:.0f}"] for name, value in memory.items())]),
            table(
                [
                    ["ratio", "median (lowest to highest)"],
                    [ratios["time"]["what"], shown(ratios["time"])],
                    [ratios["extra_memory"]["what"], f"{ratios['extra_memory']['median']:.3f}"],
                ]
            ),
            f"largest difference of a gradient's element: {difference['gradient']:.1e} "
            f"(largest element {difference['largest']:.1e}); of the loss: {difference['loss']:.1e}",
        ]
    )
    return text, {"clock": clock, "results": results, "memory": memory, "difference": difference, "ratios": ratios}


def _memory_ratio(memory: dict[str, dict[str, float]]) -> dict[str, Any]:
    value = memory["streamed"]["extra_mb"] / max(memory["concatenated"]["extra_mb"], 1e-9)
    return {"what": "extra memory, streamed / concatenated", "median": value, "min": value, "max": value}


def build(queries: int, keys: int, dim: int) -> dict[str, Callable[[], Any]]:
    """Both losses on the same vectors, forward and backward. Runs in a process of its own."""
    import passl_densecl  # noqa: F401  (before Paddle)

    # isort: split
    import numpy as np
    import paddle
    import paddle.nn.functional as F

    from passl_densecl.models import info_nce
    from passl_densecl.tensors import to_tensor

    paddle.set_device("cpu")
    rng = np.random.default_rng(0)

    def unit(vectors: np.ndarray) -> paddle.Tensor:
        return to_tensor(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    def concatenated(query: paddle.Tensor, positive: paddle.Tensor, negatives: paddle.Tensor) -> paddle.Tensor:
        of_positive = (query * positive).sum(axis=1, keepdim=True)
        logits = paddle.concat([of_positive, paddle.matmul(query, negatives, transpose_y=True)], axis=1) / _TEMPERATURE
        return F.cross_entropy(logits, paddle.zeros([query.shape[0]], dtype="int64"))

    def streamed(query: paddle.Tensor, positive: paddle.Tensor, negatives: paddle.Tensor) -> paddle.Tensor:
        return info_nce(query, positive, negatives, _TEMPERATURE)[0]

    def vectors(count: int, negatives: int) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        query = rng.standard_normal((count, dim), dtype=np.float32)
        positive = query + rng.standard_normal((count, dim), dtype=np.float32)  # alike, as two views are
        return unit(query), unit(positive), unit(rng.standard_normal((negatives, dim), dtype=np.float32))

    def gradient(loss: Callable[..., paddle.Tensor], inputs: tuple[paddle.Tensor, ...]) -> tuple[float, np.ndarray]:
        query = inputs[0].detach()
        query.stop_gradient = False
        value = loss(query, *inputs[1:])
        value.backward()
        assert query.grad is not None
        return float(value), query.grad.numpy()

    small, inputs = vectors(4, 8), vectors(queries, keys)
    for loss in (streamed, concatenated):
        gradient(loss, small)  # loads the kernels, which is not the loss's memory

    def difference() -> dict[str, float]:
        (ours, our_gradient), (theirs, their_gradient) = (gradient(loss, inputs) for loss in (streamed, concatenated))
        return {
            "gradient": float(np.abs(our_gradient - their_gradient).max()),
            "largest": float(np.abs(their_gradient).max()),
            "loss": abs(ours - theirs),
        }

    return {
        "streamed": partial(gradient, streamed, inputs),
        "concatenated": partial(gradient, concatenated, inputs),
        "difference": difference,
    }
