"""Batches, in an order that only (seed, epoch) decides, computed by worker processes.

A training loader delivers every step of the rest of a run through one iterator, so that workers start once. Step s is
batch ``s % steps_per_epoch`` of epoch ``s // steps_per_epoch``; the rows of that whole batch are divided evenly among
the ranks, in rank order. What a batch holds does not depend on the number of workers or ranks, nor on where the
iterator started.

Why not ``paddle.io.DataLoader`` (tried on 2.6.2 and 3.3.1): leaving its iterator early leaves its worker processes, a
thread and files in /dev/shm behind for as long as the program runs; an exception in a worker reaches the caller as
"Blocking queue is killed"; and it draws from and reseeds the global random state. The workers here write into
anonymous shared memory, which needs no room in /dev/shm and cannot outlive the processes.
"""

from __future__ import annotations

import mmap
import signal
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
import paddle

from passl_densecl.data.datasets import Dataset, ImageSet, PairDataset, Transforms
from passl_densecl.data.workers import PREFETCH, Death, available_cores, in_processes
from passl_densecl.errors import InputError, RunError
from passl_densecl.tensors import to_tensor
from passl_densecl.text import megabytes, quantity

_AUTO_MOST = 8
_ORDER_STREAM = 2  # takes the place of "view" in a seed; the views are 0 and 1

Request = tuple[int, np.ndarray]
"""A batch to compute: its epoch, from which its draws come, and the (N,) int64 indices of its images."""


@dataclass(frozen=True)
class PairBatch:
    """Two views of N images.

    Attributes:
        query, key: uint8 tensors, N×H×W×3, on the current device.
        indices: (N,) int64, which images of the set these are.
        bad: those among ``indices`` that could not be decoded and were replaced, and why.
        matches: with ``matched_side``, (N, S) int64, see :class:`data.geometry.MatchedPairs`.
    """

    query: paddle.Tensor
    key: paddle.Tensor
    indices: np.ndarray
    bad: Mapping[int, str]
    matches: paddle.Tensor | None = None


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """(n,) int64: the order of all images in this epoch, a permutation that depends on the arguments only."""
    return np.random.default_rng([seed, epoch, 0, _ORDER_STREAM]).permutation(n)


# --- loaders -------------------------------------------------------------------------------------------------------


class TrainingLoader:
    """What the loaders of training share: shuffling, dividing among ranks, dropping the rest.

    Attributes:
        steps_per_epoch: whole batches in an epoch; images that fill no whole batch wait for another epoch's order.
        wait_seconds: how long the consumer waited for the last batch.

    Raises:
        InputError: fewer images than ``batch_size``, or a batch that the ranks cannot share evenly.
    """

    dataset_type: type[Dataset]
    wait_seconds = 0.0

    def __init__(
        self,
        image_set: ImageSet,
        transforms: Transforms,
        *,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        if batch_size % world_size:
            raise InputError(
                f"batch_size {batch_size}: {world_size} processes cannot share it evenly; expected a multiple of "
                f"{world_size}, try {max(1, round(batch_size / world_size)) * world_size}"
            )
        count = len(image_set)
        if count < batch_size:
            raise InputError(
                f"batch_size {batch_size:,} is more than the {count:,} images; expected at most as many, try "
                f"batch_size {1 << max(0, count.bit_length() - 1)}"
            )
        self._dataset = self.dataset_type(image_set, transforms, seed)
        self._seed, self._batch_size, self._num_workers = seed, batch_size, num_workers
        self._share = batch_size // world_size
        self._first = rank * self._share
        self.steps_per_epoch = count // batch_size

    def batches(self, start: int, stop: int) -> Generator[tuple[int, tuple[np.ndarray, ...]], None, None]:
        """(step, the fields of this rank's batch) for every step from ``start`` up to, not including, ``stop``."""
        requests = self._requests(start, stop)
        with closing(compute(self._dataset, requests, self._share, self._num_workers)) as batches:
            for step in range(start, stop):
                began = time.perf_counter()
                arrays = next(batches)
                self.wait_seconds = time.perf_counter() - began
                yield step, arrays

    def _requests(self, start: int, stop: int) -> Iterator[Request]:
        order = np.empty(0, np.int64)
        for step in range(start, stop):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if step == start or batch == 0:
                order = epoch_order(len(self._dataset), self._seed, epoch)
            first = batch * self._batch_size + self._first
            yield epoch, order[first : first + self._share]


class PairLoader(TrainingLoader):
    """Two augmented views of every image: the batches of pre-training.

    ``matched_side``: the cells a side of a view's map, for batches that also say which cells show the same.
    """

    dataset_type = PairDataset

    def __init__(self, image_set: ImageSet, transforms: Transforms, matched_side: int | None = None, **options: Any):
        super().__init__(image_set, transforms, **options)
        if matched_side is not None:
            from passl_densecl.data.geometry import MatchedPairs

            self._dataset = MatchedPairs(image_set, transforms, self._seed, matched_side)

    def steps(self, start: int, stop: int) -> Generator[tuple[int, PairBatch], None, None]:
        """(step, this rank's batch) for every step from ``start`` up to, not including, ``stop``."""
        for step, (query, key, indices, why, *matches) in self.batches(start, stop):
            # The arrays are a worker's, which will write to them again: copies go out.
            bad, matched = bad_images(indices, why), to_tensor(matches[0]) if matches else None
            yield step, PairBatch(to_tensor(query), to_tensor(key), indices.copy(), bad, matched)


def bad_images(indices: np.ndarray, why: np.ndarray) -> dict[int, str]:
    """Index → reason of the images of a batch that could not be decoded."""
    return {int(index): text.decode("utf-8", "replace") for index, text in zip(indices, why, strict=True) if text}


# --- computing batches ---------------------------------------------------------------------------------------------


def compute(
    dataset: Dataset, requests: Iterable[Request], rows: int, num_workers: int
) -> Generator[tuple[np.ndarray, ...], None, None]:
    """The fields of every requested batch (of at most ``rows`` rows), in the order of the requests.

    The arrays hold their values until the next batch is asked for. Exceptions of the data set are raised here,
    whichever process raised them. Closing the generator, or leaving it in any other way, ends the workers at once.
    """
    requests = iter(requests)
    first = next(requests, None)
    if first is None:
        return
    epoch, indices = first
    sample = dataset[epoch, int(indices[0])]
    window = max(1, PREFETCH * num_workers)
    rooms = [_allocate(sample, rows) for _ in range(window)]  # batch b is written into room b % window

    def fill(task: tuple[int, Request]) -> int:
        number, (epoch, indices) = task
        for row, index in enumerate(indices.tolist()):
            for array, value in zip(rooms[number % window], dataset[epoch, index], strict=True):
                if np.shape(value) != array.shape[1:]:
                    sizes = ["×".join(map(str, shape[:2])) for shape in (array.shape[1:], np.shape(value))]
                    raise InputError(
                        f"the transforms give images of different sizes, {' and '.join(sizes)} pixels, which make no "
                        "batch; end with RandomResizedCrop or CenterCrop"
                    )
                array[row] = value
        return len(indices)

    tasks = enumerate(chain([first], requests))
    if num_workers == 0:
        lengths = (fill(task) for task in tasks)
    else:
        lengths = in_processes(fill, tasks, num_workers, window=window, silent=False)
    with closing(lengths):
        for number, length in enumerate(lengths):
            if isinstance(length, Death):
                raise _death(length, num_workers)
            yield tuple(array[:length] for array in rooms[number % window])


def _allocate(sample: Sequence[Any], rows: int) -> tuple[np.ndarray, ...]:
    """Room for a batch of samples like this one, in memory that processes forked from here on share with this one."""
    arrays = []
    for value in map(np.asarray, sample):
        size = rows * value.nbytes
        try:
            memory = mmap.mmap(-1, size)
        except OSError as error:
            raise RunError(
                f"no memory for a batch of {megabytes(size)} ({error.strerror}); set fewer data.num_workers, or a "
                "smaller batch_size"
            ) from error
        arrays.append(np.frombuffer(memory, value.dtype).reshape(rows, *value.shape))
    return tuple(arrays)


def _death(death: Death, num_workers: int) -> RunError:
    if death.exit_code == -signal.SIGKILL:
        cause = "was killed (signal 9), as the system does when the memory runs out"
        advice = f"set fewer data.num_workers than {num_workers}, or a smaller batch_size"
    else:
        cause = f"ended with {death.cause}"
        advice = "an image may crash its decoder (densecl data check names it); with data.num_workers 0 the cause shows"
    return RunError(f"a data worker {cause}: {advice}. A training run continues with --resume auto")


# --- how many workers ----------------------------------------------------------------------------------------------


def choose_workers(requested: int | Literal["auto"], *, batch_bytes: int, world_size_local: int = 1) -> tuple[int, str]:
    """The number of worker processes for this process, and a sentence for the log that says why.

    Args:
        requested: a number, which is kept as far as memory allows, or "auto": this process's share of the cores, from
            1 to 8.
        batch_bytes: size of one batch of this process; every worker holds ``PREFETCH`` of them.
        world_size_local: training processes on this machine.
    """
    cores = available_cores()
    count = max(1, min(_AUTO_MOST, cores // world_size_local)) if requested == "auto" else requested
    free = _available_memory()
    fitting = count if free is None else min(count, free // 2 // world_size_local // max(1, PREFETCH * batch_bytes))
    if fitting < count:
        why = (
            f"{count} would hold {count * PREFETCH} batches of {megabytes(batch_bytes)} each, more than half of the "
            f"{megabytes(free or 0)} of free memory; a smaller batch_size allows more"
        )
    elif requested == "auto":
        why = quantity(cores, "core") + (f" for {world_size_local} processes" if world_size_local > 1 else "")
    else:
        why = "as configured" + (f", on {quantity(cores, 'core')}" if count * world_size_local > cores else "")
    return fitting, f"{quantity(fitting, 'worker')} ({why})"


def _available_memory() -> int | None:
    """Bytes that could be used without swapping, None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return None
