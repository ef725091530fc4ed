"""The queue of negatives: the newest K keys, oldest overwritten first."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import nn

from passl_densecl.models.resnet import rng_of
from passl_densecl.tensors import to_tensor


class Queue(nn.Layer):
    """K unit vectors of length D. Starts with random ones; `enqueue` writes a whole batch at the pointer and wraps
    around.

    `keys` is (K, D) float32 (the original stores its transpose), `pointer` (1,) int64: the row that is written next.
    Both are buffers, so they travel in the state of the model. Source: MoCo (CVPR 2020), section 3.2.
    """

    keys: paddle.Tensor
    pointer: paddle.Tensor

    def __init__(self, length: int, dim: int, name: str, seed: int = 0) -> None:
        super().__init__()
        vectors = rng_of(name, seed).standard_normal((length, dim), dtype=np.float32)
        self.register_buffer("keys", to_tensor(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)))
        self.register_buffer("pointer", paddle.zeros([1], dtype="int64"))
        self.length = length

    @paddle.no_grad()
    def enqueue(self, keys: paddle.Tensor) -> None:
        """Write (N, D) unit vectors, N ≤ K. Raises ValueError when there are more keys than places."""
        count = keys.shape[0]
        if count > self.length:
            raise ValueError(f"a queue of {self.length} cannot take {count} keys at once")
        rows = (self.pointer + paddle.arange(count, dtype="int64")) % self.length
        paddle.scatter_(self.keys, rows, keys.astype("float32"), overwrite=True)
        # On the device; `set_value` of Paddle 2.6 goes through the host.
        paddle.assign((self.pointer + count) % self.length, self.pointer)
