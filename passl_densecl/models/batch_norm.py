"""BatchNorm's running statistics when several processes share a step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import paddle
from paddle import nn

from passl_densecl.distributed import collectives as dist


class ChainedStatistics:
    """BatchNorm's running statistics, as if one process had seen all micro-batches of the step one after another.

    Each update is r ← m·r + (1−m)·s. A process that starts from r and sees n micro-batches ends at mⁿ·r + c; the chain
    over all processes, in the order of their ranks, ends at m^(n·processes)·r + Σ m^(n·later processes)·c.
    So a checkpoint does not depend on how many devices made it.
    """

    def __init__(self, layer: nn.Layer, updates_per_step: int, momentum: float = 0.9) -> None:
        self._statistics = [
            parameter
            for name, parameter in layer.named_parameters()
            if name.rsplit(".", 1)[-1] in ("_mean", "_variance")
        ]
        self._sizes = [statistic.shape[0] for statistic in self._statistics]
        self._own_decay = momentum**updates_per_step
        self._before: paddle.Tensor | None = None

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around all training-mode forward passes of one step, which `undo` takes back afterwards."""
        if not self._statistics:
            yield
            return
        before = self._before = self.values()
        yield
        if dist.world_size() == 1:
            return
        with paddle.no_grad():
            later = dist.world_size() - 1 - dist.rank()
            seen = (self.values() - before * self._own_decay) * self._own_decay**later
            self._put(before * self._own_decay ** dist.world_size() + dist.all_reduce(seen))

    def undo(self) -> None:
        """Put the statistics back, to the bit, to what they were before the last step."""
        if self._before is not None:
            self._put(self._before)

    @paddle.no_grad()
    def values(self) -> paddle.Tensor:
        """All of them in one vector."""
        return paddle.concat(self._statistics)

    @paddle.no_grad()
    def _put(self, values: paddle.Tensor) -> None:
        for statistic, value in zip(self._statistics, paddle.split(values, self._sizes), strict=True):
            paddle.assign(value, statistic)  # on the device; `set_value` of Paddle 2.6 goes through the host
