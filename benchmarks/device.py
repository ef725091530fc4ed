"""A training step on a GPU, or on the CPU: DenseCL against MoCo-v2 in every precision, its memory, sizes of chunks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.measure import WALL, Worker, interleave, quotient, ratio_lines, summary, time_table, workers
from passl_densecl.cli.console import table
from passl_densecl.cli.options import at_least

_NAMES = {"densecl": "DenseCL (λ = 0.5)", "moco_v2": "MoCo-v2 (λ = 0)"}


def add_options(parser: argparse.ArgumentParser) -> None:
    default = "(default: %(default)s)"
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help=default)
    parser.add_argument("--depth", type=int, default=50, help=f"of the ResNet {default}")
    parser.add_argument("--size", type=int, default=224, help=f"pixels a side {default}")
    parser.add_argument("--batch", type=int, default=32, help=f"images of one micro-batch {default}")
    parser.add_argument("--queue-len", type=int, default=65536, help=f"keys in the queue {default}")
    parser.add_argument("--rounds", type=int, default=10, help=f"timed steps of each {default}")


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    at_least(2, batch=args.batch)
    at_least(1, rounds=args.rounds)
    at_least(args.batch, queue_len=args.queue_len)
    sizes = (args.depth, args.size, args.batch, args.queue_len)
    queries = args.batch * 49  # a 7×7 map
    with workers(Worker("benchmarks.device:chunks", args.device, queries, args.queue_len)) as (loss,):
        found = _value(loss, "facts")
        chunks = interleave({name: partial(loss.time, name) for name in found["chunks"]}, args.rounds)
    text = [
        f"device   {found['name']}; ResNet-{args.depth}, {args.size} px, micro-batch {args.batch}, queue "
        f"{args.queue_len:,}, {args.rounds} rounds; {WALL}"
    ]
    data: dict[str, Any] = {"clock": WALL, "device": found["name"], "results": {}, "ratios": {}, "memory": {}}
    for precision in found["precisions"]:
        group = [
            Worker("benchmarks.training:on_device", *sizes, dense, found["device"], precision)
            for dense in (True, False)
        ]
        with workers(*group) as pair:
            named = dict(zip(_NAMES, pair, strict=True))
            timings = interleave({name: partial(one.time, "step") for name, one in named.items()}, args.rounds)
            for name, one in named.items():
                data["memory"][f"{_NAMES[name]}, {precision}"] = _value(one, "peak memory")
        for name, values in timings.items():
            data["results"][f"{_NAMES[name]}, {precision}"] = summary(values, WALL, args.batch)
        what = f"time, DenseCL / MoCo-v2, {precision}"
        data["ratios"][precision] = quotient(what, timings["densecl"], timings["moco_v2"], WALL)
    data["chunks"] = {name: summary(values, WALL) for name, values in chunks.items()}
    rows = [[name, f"{value:,.0f}"] for name, value in data["memory"].items()]
    text += [time_table("step", data["results"]), table([["peak memory of the device or process", "MiB"], *rows])]
    text += [ratio_lines(data["ratios"]), time_table("dense loss, logits at once", data["chunks"], "ms")]
    return "\n\n".join(text), data


def _value(worker: Worker, function: str) -> Any:
    worker.ask(function)
    return worker.answer()[1]


# --- in a fresh process --------------------------------------------------------------------------------------------


def chunks(requested: str, queries: int, keys: int) -> dict[str, Callable[[], Any]]:
    """The dense loss with its gradient, with so many logits at once; and what there is to measure on."""
    import numpy as np
    import paddle

    from passl_densecl.distributed.device import set_device
    from passl_densecl.distributed.gpu_failure import amp_problem
    from passl_densecl.models import losses
    from passl_densecl.tensors import to_tensor

    set_device(requested)
    device = paddle.get_device().partition(":")[0]
    name = paddle.device.cuda.get_device_name() if device == "gpu" else "CPU"
    precisions = ["float32", *(dtype for dtype in ("bfloat16", "float16") if amp_problem(dtype) is None)]
    rng = np.random.default_rng(0)
    vectors = [rng.standard_normal((count, 128), dtype=np.float32) for count in (queries, queries, keys)]
    query, positive, negatives = (to_tensor(one / np.linalg.norm(one, axis=1, keepdims=True)) for one in vectors)
    query.stop_gradient = False

    def loss(at_once: int) -> float:
        losses._LOGITS_AT_ONCE[device] = at_once
        value = losses.info_nce(query, positive, negatives, 0.2)[0]
        value.backward()
        query.clear_gradient()
        return float(value)

    contestants = {f"2^{power}": partial(loss, 2**power) for power in (20, 21, 22, 24, 26)}
    facts = {"device": device, "name": name, "precisions": precisions, "chunks": list(contestants)}
    return {"facts": lambda: facts, **contestants}
