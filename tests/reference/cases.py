"""Weights, queues and images of the training cases r*.json, as functions of their names."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent


def read_case(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The settings of a case, and what each of its steps must give."""
    content = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return content["case"], content["expected"]


def normal(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """float64 standard normal values from a random stream of their own: PCG64 of seed XOR CRC-32 of the name."""
    stream = np.random.PCG64(zlib.crc32(name.encode()) ^ seed)
    return np.random.Generator(stream).standard_normal(shape)


def weight(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """float32 initial weight of both encoders, by its name in the original: He-normal over the fan-in for matrices
    (out, in) and convolutions (out, in, height, width), N(0, 0.1²) for biases, N(1, 0.1²) for BatchNorm's scales."""
    values = normal(name, shape, seed)
    if len(shape) > 1:
        return (values * math.sqrt(2 / math.prod(shape[1:]))).astype(np.float32)
    values = (values * 0.1).astype(np.float32)
    return values if name.endswith("bias") else values + np.float32(1)


def queue(name: str, dim: int, length: int, seed: int) -> np.ndarray:
    """(dim, length) float32, columns of length 1; the original's names are `queue` and `queue2`."""
    vectors = normal(name, (dim, length), seed).astype(np.float32)
    return vectors / np.sqrt(np.square(vectors).sum(axis=0, keepdims=True))


def images(case: dict[str, Any], step: int, view: str) -> np.ndarray:
    """(batch, 3, size, size) float32: one view, "q" or "k", of a step's batch, normalized: squares of 8×8 pixels."""
    coarse = normal(f"image.{step}.{view}", (case["batch"], 3, *[case["size"] // 8] * 2), case["seed"])
    return np.kron(coarse.astype(np.float32), np.ones((8, 8), np.float32))
