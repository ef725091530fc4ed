"""Collective operations of the processes that share one batch. In a single process each of them is the identity.

The whole batch is divided into equal contiguous slices, one per process in the order of their ranks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import paddle
import paddle.distributed

from passl_densecl.distributed.peers import Peers
from passl_densecl.tensors import to_tensor

T = TypeVar("T")

peers: Peers | None = None  # connections to the other processes; set while process_group.py's group is up


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


def wait_for_all() -> None:
    """Wait for the other processes before a gloo operation, which itself waits only 30 s. Single process, NCCL:
    nothing.

    Raises RunError when one of them is lost.
    """
    if peers is not None and paddle.get_device() == "cpu":
        peers.wait_for_all()


def uninterrupted() -> contextlib.AbstractContextManager[None]:
    """Within it, the loss of another process does not end this one: for writing results that all have computed."""
    return peers.uninterrupted() if peers is not None else contextlib.nullcontext()


def barrier() -> None:
    wait_for_all()
    if world_size() > 1:
        paddle.distributed.barrier()


def parallel(layer: paddle.nn.Layer) -> paddle.nn.Layer:
    """The layer with gradients averaged over the processes; weights and buffers start as rank 0's. Single process: the
    layer.
    """
    return paddle.DataParallel(layer) if world_size() > 1 else layer


def local_gradients(layer: paddle.nn.Layer) -> contextlib.AbstractContextManager:
    """Within it, gradients accumulate in each process and are not averaged yet."""
    return layer.no_sync() if isinstance(layer, paddle.DataParallel) else contextlib.nullcontext()


def own_rows(count: int, process: int | None = None) -> slice:
    """A process's slice, by default this one's, of a whole batch of `count` rows."""
    share, number = count // world_size(), rank() if process is None else process
    return slice(number * share, (number + 1) * share)


@paddle.no_grad()
def gather_rows(rows: paddle.Tensor) -> paddle.Tensor:
    """(N, …) in each process → (N·processes, …), in the order of the ranks, everywhere."""
    if world_size() == 1:
        return rows
    wait_for_all()
    parts: list[paddle.Tensor] = []
    paddle.distributed.all_gather(parts, rows.contiguous())
    return paddle.concat(parts)


@paddle.no_grad()
def exchange_rows(rows: paddle.Tensor, order: np.ndarray) -> paddle.Tensor:
    """(N, …) in each process → (N, …): its slice of the whole batch in a new order, where row i is the old row
    order[i].

    `order` is a permutation of range(N·processes), the same everywhere. Every row goes directly to the one process that
    needs it (with an odd number of processes, to all).
    """
    size, share = world_size(), rows.shape[0]
    wait_for_all()
    wanted = order[own_rows(len(order))]
    if size % 2:
        return paddle.gather(gather_rows(rows), to_tensor(wanted))
    senders = wanted // share
    arrivals = {rank(): paddle.gather(rows, to_tensor(wanted[senders == rank()] % share))}
    messages = []
    for other in _partners():
        theirs = order[own_rows(len(order), other)]
        leaving = theirs[theirs // share == rank()] % share
        # At least one row, needed or not: gloo numbers its messages, so both sides must exchange equally many.
        message = paddle.gather(rows, to_tensor(leaving if len(leaving) else np.zeros(1, np.int64)))
        arrivals[other] = paddle.empty([max(1, int((senders == other).sum())), *rows.shape[1:]], rows.dtype)
        pair = [
            paddle.distributed.P2POp(paddle.distributed.isend, message, other),  # type: ignore[arg-type]
            paddle.distributed.P2POp(paddle.distributed.irecv, arrivals[other], other),
        ]
        # Sends wait for their receiver: of two processes, the lower rank sends before it receives.
        messages += pair if rank() < other else pair[::-1]
    for task in paddle.distributed.batch_isend_irecv(messages):
        task.wait()
    arrived = paddle.concat([arrivals[sender][: int((senders == sender).sum())] for sender in range(size)])
    # Rows are grouped by sender, and within a sender in our order.
    return paddle.gather(arrived, to_tensor(np.argsort(np.argsort(senders, kind="stable"))))


def _partners() -> list[int]:
    """The other processes, ordered so that all form pairs: my k-th partner's k-th partner is me. For an even number."""
    last = world_size() - 1  # it stays, the others go round it
    if rank() == last:
        return [turn * (last + 1) // 2 % last for turn in range(last)]
    return [last if (turn - 2 * rank()) % last == 0 else (turn - rank()) % last for turn in range(last)]


@paddle.no_grad()
def all_reduce_sum(values: Sequence[float]) -> list[float]:
    """The sum of each number over the processes, in float64."""
    if world_size() == 1:
        return [float(value) for value in values]
    wait_for_all()
    tensor = to_tensor(np.asarray(values, np.float64))
    paddle.distributed.all_reduce(tensor)
    return [float(value) for value in tensor.numpy()]


@paddle.no_grad()
def all_reduce_mean(values: paddle.Tensor) -> list[float]:
    """The mean of a small tensor over the processes, as numbers."""
    return [value / world_size() for value in all_reduce_sum(values.astype("float64").numpy().tolist())]


def gather_objects(items: list[T]) -> list[T]:
    """The items of all processes (plain values, few), in the order of the ranks, everywhere."""
    if world_size() == 1 or not any_process(bool(items)):
        return items
    parts: list[list[T]] = []
    paddle.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return all_reduce_sum([float(flag)])[0] > 0


@paddle.no_grad()
def all_reduce(values: paddle.Tensor) -> paddle.Tensor:
    """The tensor, of any shape, now the sum over the processes; the device may still be computing it."""
    if world_size() > 1:
        paddle.distributed.all_reduce(values)
    return values


def count_flags(flag: bool) -> paddle.Tensor:
    """In how many processes the flag is set; the device may still be computing it."""
    return all_reduce(paddle.full([], float(flag)))
