"""Processes working on one batch: who am I, gather rows, join statistics, agree to stop. Alone, each is the identity.

The whole batch is cut into equal contiguous slices, one a process in the order of their ranks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import paddle
import paddle.distributed

from passl_densecl import peers
from passl_densecl.errors import RunError
from passl_densecl.tensors import to_tensor

T = TypeVar("T")
START_WITHIN = 600.0  # seconds that the first process may take to come; it waits for the others for 900 (Paddle)

_peers: peers.Peers | None = None  # the lines to the other processes, from start to stop


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("PADDLE_TRAINER_ID", "0"))


def world_size() -> int:
    """How many processes the launcher started, over all hosts."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))


def local_world_size() -> int:
    """How many of them run on this host."""
    return int(os.environ.get("PADDLE_LOCAL_SIZE", str(world_size())))


def is_main() -> bool:
    return rank() == 0


def start(limit: float = 60) -> None:
    """Join the other processes (NCCL on GPUs, gloo on CPUs), and watch that they stay. Alone: nothing.

    A process that dies, or gives no sign of life for `limit` seconds, ends the others: with a RunError, or with exit code 3
    where they hang in something that cannot be interrupted.
    """
    if world_size() > 1 and not paddle.distributed.is_initialized():
        _wait_for_first()
        # Paddle prints its flags; a run's log has moved sys.stdout away.
        with contextlib.redirect_stdout(sys.__stdout__), _mortal():
            try:
                paddle.distributed.init_parallel_env()
            except (RuntimeError, SystemError) as error:  # after 900 s, or when one ends meanwhile
                raise RunError(f"the {world_size()} processes have not come together: {_short(error)}") from error
        _watch(limit)


def stop() -> None:
    """Leave the other processes, after all have come here."""
    if world_size() > 1 and paddle.distributed.is_initialized():
        barrier()
        _leave()
        paddle.distributed.destroy_process_group()


@contextlib.contextmanager
def together(limit: float) -> Iterator[None]:
    """From `start` to `stop`. An error here is told to the others; one that another process's end caused names that end."""
    start(limit)
    try:
        yield
    except Exception as error:
        # A collective throws whatever its library does (RuntimeError, mostly), and may do so before the line breaks.
        foreign = isinstance(error, (RuntimeError, OSError, SystemError)) and not isinstance(error, RunError)
        lost = _peers.lost_within(3) if _peers and foreign else None
        _leave(error)
        if lost:
            raise RunError(lost) from error
        if foreign and "gloo" in str(error) and "TIMEOUT" in str(error):
            raise RunError(
                "another process was more than 30 s late for a collective operation on CPUs, though it is alive: it is "
                "too slow, or waits for its disk. Whole checkpoints stay whole; continue with --resume auto"
            ) from error
        raise
    stop()


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][:200] if str(error).strip() else type(error).__name__


def _wait_for_first() -> None:
    """Until the first process listens. Paddle itself would wait for ever, and in native code that nothing interrupts."""
    host, _, port = os.environ.get("PADDLE_MASTER", "").rpartition(":")
    deadline = time.monotonic() + START_WITHIN
    while host and not is_main():
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise RunError(
                    f"process 0 of {world_size()} cannot be reached at {host}:{port} ({error.strerror or error}) for "
                    f"{START_WITHIN:.0f} s: it has ended (its own output says why), or the network is not as it should be. "
                    "Start all processes again, with --resume auto"
                ) from None
            time.sleep(0.2)


@contextlib.contextmanager
def _mortal() -> Iterator[None]:
    """Within it SIGTERM and SIGINT end the process at once: Paddle waits for the others without letting Python obey."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(limit: float) -> None:
    """Connect with the first process; without a watch, and with a warning, where that is not possible."""
    global _peers
    seconds = min(limit, 30.0)
    server, port, secret = peers.invite() if is_main() else (None, 0, bytes(16))
    told = np.asarray([port, *secret], "int64")
    port, *letters = (int(value) for value in gather_rows(to_tensor(told[None])).numpy()[0])
    if server is not None:
        lines, names = peers.receive(server, secret, set(range(1, world_size())), world_size(), seconds)
    else:
        first = os.environ.get("PADDLE_TRAINER_ENDPOINTS", os.environ.get("PADDLE_MASTER", "")).split(",")[0]
        host = first.rpartition(":")[0] or "127.0.0.1"
        line = peers.call(host, port, bytes(letters), rank(), seconds)
        lines, names = {0: line} if line else {}, {0: f"process 0 of {world_size()} (host {host})"}
    if any_of(len(lines) < (world_size() - 1 if is_main() else 1)):
        for line in lines.values():
            line.close()
        warnings.warn(
            f"processes cannot reach port {port} of the first one: one that dies may not be noticed", stacklevel=3
        )
        return
    _peers = peers.Peers(lines, names, main=is_main(), limit=limit)


def _leave(error: BaseException | None = None) -> None:
    global _peers
    if _peers is not None:
        _peers.leave(error)
        _peers = None


def meet() -> None:
    """Wait for the other processes before gloo is asked, because it waits for no longer than 30 s. Alone, or NCCL: nothing.

    Raises RunError when one of them is lost.
    """
    if _peers is not None and paddle.get_device() == "cpu":
        _peers.meet()


def uninterrupted() -> contextlib.AbstractContextManager[None]:
    """Within it, the loss of another process does not end this one: for writing what all have made together."""
    return _peers.uninterrupted() if _peers is not None else contextlib.nullcontext()


def barrier() -> None:
    meet()
    if world_size() > 1:
        paddle.distributed.barrier()


def parallel(layer: paddle.nn.Layer) -> paddle.nn.Layer:
    """The layer with gradients averaged over the processes; weights and buffers start as rank 0's. Alone: the layer."""
    return paddle.DataParallel(layer) if world_size() > 1 else layer


def local_gradients(layer: paddle.nn.Layer) -> contextlib.AbstractContextManager:
    """Within it, gradients pile up in each process and are not averaged yet."""
    return layer.no_sync() if isinstance(layer, paddle.DataParallel) else contextlib.nullcontext()


def own_rows(count: int, process: int | None = None) -> slice:
    """A process's slice, this one's if none is named, of a whole batch of `count` rows."""
    share, number = count // world_size(), rank() if process is None else process
    return slice(number * share, (number + 1) * share)


@paddle.no_grad()
def gather_rows(rows: paddle.Tensor) -> paddle.Tensor:
    """(N, …) in each process → (N·processes, …), in the order of the ranks, everywhere."""
    if world_size() == 1:
        return rows
    meet()
    parts: list[paddle.Tensor] = []
    paddle.distributed.all_gather(parts, rows.contiguous())
    return paddle.concat(parts)


@paddle.no_grad()
def exchange_rows(rows: paddle.Tensor, order: np.ndarray) -> paddle.Tensor:
    """(N, …) in each process → (N, …): its slice of the whole batch in a new order, where row i is the old row order[i].

    `order` is a permutation of range(N·processes), the same everywhere. Every row goes straight to the one process that
    wants it (with an odd number of processes, to all).
    """
    size, share = world_size(), rows.shape[0]
    meet()
    wanted = order[own_rows(len(order))]
    if size % 2:
        return paddle.gather(gather_rows(rows), to_tensor(wanted))
    senders = wanted // share
    arrivals = {rank(): paddle.gather(rows, to_tensor(wanted[senders == rank()] % share))}
    messages = []
    for other in _partners():
        theirs = order[own_rows(len(order), other)]
        leaving = theirs[theirs // share == rank()] % share
        # At least one row, wanted or not: gloo numbers its messages, so two processes must have exchanged equally many.
        message = paddle.gather(rows, to_tensor(leaving if len(leaving) else np.zeros(1, np.int64)))
        arrivals[other] = paddle.empty([max(1, int((senders == other).sum())), *rows.shape[1:]], rows.dtype)
        pair = [
            paddle.distributed.P2POp(paddle.distributed.isend, message, other),  # type: ignore[arg-type]
            paddle.distributed.P2POp(paddle.distributed.irecv, arrivals[other], other),
        ]
        # And they wait for their receiver: of two processes, the first sends before it receives.
        messages += pair if rank() < other else pair[::-1]
    for task in paddle.distributed.batch_isend_irecv(messages):
        task.wait()
    arrived = paddle.concat([arrivals[sender][: int((senders == sender).sum())] for sender in range(size)])
    # They stand by sender, and for each sender in our order.
    return paddle.gather(arrived, to_tensor(np.argsort(np.argsort(senders, kind="stable"))))


def _partners() -> list[int]:
    """The other processes, so ordered that all meet in pairs: my k-th partner's k-th partner is me. For an even number."""
    last = world_size() - 1  # it stays, the others go round it
    if rank() == last:
        return [turn * (last + 1) // 2 % last for turn in range(last)]
    return [last if (turn - 2 * rank()) % last == 0 else (turn - rank()) % last for turn in range(last)]


@paddle.no_grad()
def total(values: Sequence[float]) -> list[float]:
    """The sum of each number over the processes, in float64."""
    if world_size() == 1:
        return [float(value) for value in values]
    meet()
    tensor = to_tensor(np.asarray(values, np.float64))
    paddle.distributed.all_reduce(tensor)
    return [float(value) for value in tensor.numpy()]


@paddle.no_grad()
def mean(values: paddle.Tensor) -> list[float]:
    """The mean of a small tensor over the processes, as numbers."""
    return [value / world_size() for value in total(values.astype("float64").numpy().tolist())]


def joined(items: list[T]) -> list[T]:
    """The items of all processes (plain values, few), in the order of the ranks, everywhere."""
    if world_size() == 1 or not any_of(bool(items)):
        return items
    parts: list[list[T]] = []
    paddle.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def any_of(flag: bool) -> bool:
    """Whether the flag is up in any process."""
    return total([float(flag)])[0] > 0


@paddle.no_grad()
def summed(values: paddle.Tensor) -> paddle.Tensor:
    """The tensor, of any shape, now the sum of every process's; a device may still be working on it."""
    if world_size() > 1:
        paddle.distributed.all_reduce(values)
    return values


def vote(flag: bool) -> paddle.Tensor:
    """In how many processes the flag is up; a device may still be working on it."""
    return summed(paddle.full([], float(flag)))


class ChainedStatistics:
    """BatchNorm's running statistics, as if one process had seen all micro-batches of the step one after another.

    Each update is r ← m·r + (1−m)·s. A process that starts from r and sees n micro-batches ends at mⁿ·r + c; the chain
    over all processes, in the order of their ranks, ends at m^(n·processes)·r + Σ m^(n·later processes)·c.
    So a checkpoint does not depend on how many devices made it.
    """

    def __init__(self, layer: paddle.nn.Layer, updates_per_step: int, momentum: float = 0.9) -> None:
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
        before = self._before = self.joined()
        yield
        if world_size() == 1:
            return
        with paddle.no_grad():
            later = world_size() - 1 - rank()
            seen = (self.joined() - before * self._own_decay) * self._own_decay**later
            self._put(before * self._own_decay ** world_size() + summed(seen))

    def undo(self) -> None:
        """Put the statistics back, to the bit, to what they were before the last step."""
        if self._before is not None:
            self._put(self._before)

    @paddle.no_grad()
    def joined(self) -> paddle.Tensor:
        """All of them in one vector."""
        return paddle.concat(self._statistics)

    @paddle.no_grad()
    def _put(self, joined: paddle.Tensor) -> None:
        for statistic, values in zip(self._statistics, paddle.split(joined, self._sizes), strict=True):
            statistic.set_value(values)
