"""What the proofs with real toolboxes share: weights, an image, and steps that are processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from passl_densecl.integrations.matching import Network
from passl_densecl.weights.vocabulary import backbone_shapes, translations

Arrays = dict[str, np.ndarray]


def random_weights(depth: int, seed: int = 0) -> Arrays:
    """A backbone whose every tensor differs from what a new network has, BatchNorm's statistics included."""
    rng, arrays = np.random.default_rng(seed), {}
    for name, shape in backbone_shapes(depth).items():
        if len(shape) == 4:
            values = rng.standard_normal(shape) * (2 / (shape[0] * shape[2] * shape[3])) ** 0.5
        elif name.endswith("_variance"):
            values = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("weight"):
            values = rng.uniform(0.2, 0.8, shape)
        else:
            values = rng.standard_normal(shape) * 0.1
        arrays[name] = values.astype("float32")
    return arrays


def image() -> np.ndarray:
    return np.random.default_rng(7).standard_normal((1, 3, 128, 160)).astype("float32")


def compare(state: dict, arrays: Arrays, network: Network) -> int:
    """How many tensors of a toolbox's model equal those that went in, bit for bit; a name that is missing is none.

    `state` maps names to tensors of Paddle or torch.
    """
    names = dict(zip(network.shapes(), network.plain_shapes(), strict=True))
    ours = translations(network.vocabulary, network.depth)
    return sum(
        name in state and np.array_equal(state[name].detach().numpy(), arrays[ours[plain]])
        for name, plain in names.items()
        if plain in ours
    )


def run(script: str, name: str, scratch: Path, arguments: list[str], limit: float) -> bool:
    """One step in a process of its own; its log goes to a file, its result to the summary."""
    command = [sys.executable, script, "--scratch", str(scratch), "--step", name, *arguments]
    log, start = scratch / f"{name}.log", time.monotonic()
    with log.open("w") as file:
        try:
            where = {"cwd": scratch, "env": {**os.environ, "CUDA_VISIBLE_DEVICES": ""}}
            output = {"stdout": file, "stderr": subprocess.STDOUT}
            code = subprocess.run(command, timeout=limit, check=False, **where, **output).returncode
        except subprocess.TimeoutExpired:
            code = f"not done after {limit:.0f} s"
    lines = log.read_text(errors="replace").splitlines()
    proved = [line.removeprefix("proved ") for line in lines if line.startswith("proved ")]
    is_good = code == 0 and len(proved) == 1
    told = proved[0] if is_good else f"{name} FAILED ({code}): {lines[-1] if lines else 'no output'} (see {log})"
    print(f"{'ok' if is_good else 'NO':3} {time.monotonic() - start:4.0f} s  {told}", flush=True)
    return is_good
