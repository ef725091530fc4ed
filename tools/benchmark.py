#!/usr/bin/env python
"""Measure the project on this machine; every figure that matters is a ratio of two things timed in the same run.

step    one training step with loss_lambda 0.5 against one with 0 (MoCo-v2: no dense branch)
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import passl_densecl  # noqa: F401  (chooses the matrix kernels, which must come before Paddle)

# isort: split
import numpy as np
import paddle

from passl_densecl.config import SGDConfig
from passl_densecl.engine.optim import build_optimizer
from passl_densecl.models import DenseCL


def stepper(args: argparse.Namespace, dense: bool) -> Callable[[], float]:
    """A function that takes one training step and gives its seconds; the images are noise of the right size."""
    model = DenseCL(args.depth, queue_len=args.queue_len, dense=dense)
    model.train()
    optimizer = build_optimizer(SGDConfig.model_validate({"lr": 0.03}), model)
    shape = (args.batch, args.size, args.size, 3)
    rng = np.random.default_rng(0)
    query, key = (paddle.to_tensor(rng.integers(0, 256, shape, dtype=np.uint8)) for _ in range(2))

    def step() -> float:
        begin = time.perf_counter()
        keys = model.encode_keys(key, micro_batch_size=args.batch)
        losses = model(query, keys.local)
        loss = 0.5 * losses[0] + 0.5 * losses[2] if dense else losses[0]
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        model.enqueue(keys)
        float(loss)  # waits for the device
        return time.perf_counter() - begin

    return step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    step = verbs.add_parser("step", help="a step of DenseCL against one of MoCo-v2")
    step.add_argument("--depth", type=int, default=50)
    step.add_argument("--size", type=int, default=224, help="pixels a side")
    step.add_argument("--batch", type=int, default=8, help="images of the one micro-batch")
    step.add_argument("--queue_len", type=int, default=65536)
    step.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    moco, densecl = stepper(args, dense=False), stepper(args, dense=True)
    for warm_up in (moco, densecl):
        warm_up()
    pairs = [(moco(), densecl()) for _ in range(args.rounds)]
    ratios = sorted(b / a for a, b in pairs)
    print(
        f"ResNet-{args.depth}, {args.size} px, batch {args.batch}, queue {args.queue_len:,}, {args.rounds} pairs: "
        f"MoCo-v2 {statistics.median(a for a, _ in pairs):.2f} s, DenseCL {statistics.median(b for _, b in pairs):.2f} s, "
        f"ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
