"""Collective operations of the processes that share one batch. In a single process each of them is the identity.

The whole batch is divided into equal contiguous slices, one per process in the order of their ranks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import paddle
import paddle.distributed

from passl_densecl.tensors import to_tensor

if TYPE_CHECKING:
    from passl_densecl.distributed.peers import Peers

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


def uninterrupted() -> contextlib.AbstractContextManager[object]:
    """Within it, the loss of another process does not end this one: for writing results that all have computed."""
    return peers.uninterrupted if peers is not None else contextlib.nullcontext()


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


def own_rows(count: int) -> slice:
    """This process's slice of a whole batch of `count` rows."""
    share = count // world_size()
    return slice(rank() * share, (rank() + 1) * share)


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
def exchange_rows(rows: paddle.Tensor, order: np.ndarray | paddle.Tensor) -> paddle.Tensor:
    """(N, …) in each process → (N, …): its slice of the whole batch in a new order, where row i is the old row
    order[i].

    `order` is a permutation of range(N·processes), the same everywhere; a tensor, on the device, serves several calls.
    All rows go to all processes, as in the original. Sending each only to the process that needs it moves a fraction of
    the bytes, but not safely on every Paddle: with NCCL, that of 2.6 reads what `batch_isend_irecv` has not yet
    received, and its `gather` fails where a process needs none of another's rows.
    """
    places = to_tensor(order) if isinstance(order, np.ndarray) else order
    return paddle.gather(gather_rows(rows), places[own_rows(places.shape[0])])


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
    wait_for_all()
    return (all_reduce(values.astype("float64")).numpy() / world_size()).tolist()


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
