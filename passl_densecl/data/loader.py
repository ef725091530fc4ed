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
import multiprocessing
import signal
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import paddle

from passl_densecl.data.datasets import ImageSet, LabeledDataset, PairDataset, Transforms
from passl_densecl.data.workers import PREFETCH, Death, available_cores, in_processes
from passl_densecl.errors import InputError, RunError
from passl_densecl.tensors import to_tensor
from passl_densecl.text import megabytes, quantity

_AUTO_MOST = 8
_ORDER_STREAM = 2  # takes the place of "view" in a seed; the views are 0 and 1


@dataclass(frozen=True)
class PairBatch:
    """Two views of N images.

    Attributes:
        query, key: uint8 tensors, N×H×W×3, on the current device.
        indices: (N,) int64, which images of the set these are.
        bad: those among ``indices`` that could not be decoded and were replaced, and why.
    """

    query: paddle.Tensor
    key: paddle.Tensor
    indices: np.ndarray
    bad: dict[int, str]


@dataclass(frozen=True)
class LabeledBatch:
    """N images with their labels.

    Attributes:
        images: uint8 tensor, N×H×W×3, on the current device.
        labels: (N,) int64 tensor; -1 where the set has no labels.
        indices: (N,) int64, which images of the set these are.
        bad: those among ``indices`` that could not be decoded and were replaced, and why.
    """

    images: paddle.Tensor
    labels: paddle.Tensor
    indices: np.ndarray
    bad: dict[int, str]


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """(n,) int64: the order of all images in this epoch, a permutation that depends on the arguments only."""
    return np.random.default_rng([seed, epoch, 0, _ORDER_STREAM]).permutation(n)


# --- loaders -------------------------------------------------------------------------------------------------------


class _Loader:
    """Batches of a data set.

    Attributes:
        wait_seconds: how long the consumer waited for the last batch.
    """

    _dataset: PairDataset | LabeledDataset
    _num_workers: int
    wait_seconds = 0.0

    def _arrays(self, requests: Iterable[_Request], rows: int) -> Generator[tuple[np.ndarray, ...], None, None]:
        """The fields of every requested batch, of at most ``rows`` rows."""
        with closing(_compute(self._dataset, requests, rows, self._num_workers)) as batches:
            while True:
                began = time.perf_counter()
                arrays = next(batches, None)
                if arrays is None:
                    return
                self.wait_seconds = time.perf_counter() - began
                yield arrays


class _TrainingLoader(_Loader):
    """What :class:`PairLoader` and :class:`LabeledLoader` share: shuffling, dividing among ranks, dropping the rest.

    Attributes:
        steps_per_epoch: whole batches in an epoch; images that fill no whole batch wait for another epoch's order.
    """

    _dataset_type: type[PairDataset] | type[LabeledDataset]

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
        _check_ranks(batch_size, rank, world_size)
        dataset = self._dataset_type(image_set, transforms, seed)
        if len(dataset) < batch_size:
            raise InputError(
                f"batch_size {batch_size:,} is more than the {len(dataset):,} images; "
                f"expected at most as many, try batch_size {_power_of_two_up_to(len(dataset))}"
            )
        self._dataset = dataset
        self._seed = seed
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._num_workers = num_workers
        self.steps_per_epoch = len(dataset) // batch_size

    def _requests(self, start: int, stop: int) -> Iterator[_Request]:
        known_epoch, order = -1, np.empty(0, np.int64)
        share = self._batch_size // self._world_size
        for step in range(start, stop):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if epoch != known_epoch:
                known_epoch, order = epoch, epoch_order(len(self._dataset), self._seed, epoch)
            first = batch * self._batch_size + self._rank * share
            yield _Request(epoch, order[first : first + share])

    def _steps(self, start: int, stop: int) -> Generator[tuple[int, tuple[np.ndarray, ...]], None, None]:
        with closing(self._arrays(self._requests(start, stop), self._batch_size // self._world_size)) as batches:
            yield from enumerate(batches, start)


class PairLoader(_TrainingLoader):
    """Two augmented views of every image: the batches of pre-training.

    Raises:
        InputError: fewer images than ``batch_size``, or a batch that the ranks cannot share evenly.
    """

    _dataset_type = PairDataset

    def steps(self, start: int, stop: int) -> Generator[tuple[int, PairBatch], None, None]:
        """(step, this rank's batch) for every step from ``start`` up to, not including, ``stop``."""
        for step, (query, key, indices, why) in self._steps(start, stop):
            # The arrays are a worker's, which will write to them again: copies go out.
            yield step, PairBatch(to_tensor(query), to_tensor(key), indices.copy(), _bad(indices, why))


class LabeledLoader(_TrainingLoader):
    """One augmented view of every image and its label: the batches of linear training.

    Raises:
        InputError: fewer images than ``batch_size``, or a batch that the ranks cannot share evenly.
    """

    _dataset_type = LabeledDataset

    def steps(self, start: int, stop: int) -> Generator[tuple[int, LabeledBatch], None, None]:
        """(step, this rank's batch) for every step from ``start`` up to, not including, ``stop``."""
        for step, arrays in self._steps(start, stop):
            yield step, _labeled(arrays)


class EvaluationLoader(_Loader):
    """Every image once, in order: ``for batch in loader``, as often as wanted.

    Each rank gets an unbroken part of the set; the parts differ by one image at most, nothing is padded or repeated,
    and the last batch is short. A rank without images gets no batch. ``batch_size`` is the number of images of one
    batch of one rank. ``transforms`` should be deterministic; if they draw, they draw as in epoch 0 with seed 0.
    """

    def __init__(
        self,
        image_set: ImageSet,
        transforms: Transforms,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        _check_ranks(world_size, rank, world_size)
        if batch_size < 1:
            raise InputError(f"batch_size {batch_size}: expected at least 1")
        self._dataset = LabeledDataset(image_set, transforms, seed=0)
        self._first = len(image_set) * rank // world_size
        self._stop = len(image_set) * (rank + 1) // world_size
        self._batch_size = batch_size
        self._num_workers = num_workers

    def __len__(self) -> int:
        """The number of batches of this rank."""
        return -(-(self._stop - self._first) // self._batch_size)

    def __iter__(self) -> Generator[LabeledBatch, None, None]:
        requests = (
            _Request(0, np.arange(first, min(first + self._batch_size, self._stop)))
            for first in range(self._first, self._stop, self._batch_size)
        )
        with closing(self._arrays(requests, min(self._batch_size, self._stop - self._first))) as batches:
            yield from map(_labeled, batches)


def _labeled(arrays: Sequence[np.ndarray]) -> LabeledBatch:
    images, labels, indices, why = arrays
    return LabeledBatch(to_tensor(images), to_tensor(labels), indices.copy(), _bad(indices, why))


def _bad(indices: np.ndarray, why: np.ndarray) -> dict[int, str]:
    return {
        int(index): text.decode("utf-8", "replace") for index, text in zip(indices, why.tolist(), strict=True) if text
    }


def _check_ranks(batch_size: int, rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}: expected 0 to {world_size - 1}")
    if batch_size < 1 or batch_size % world_size:
        fitting = max(world_size, round(batch_size / world_size) * world_size)
        raise InputError(
            f"batch_size {batch_size}: {world_size} processes cannot share it evenly; expected a multiple of "
            f"{world_size}, try {fitting}"
        )


def _power_of_two_up_to(count: int) -> int:
    return 1 << max(0, count.bit_length() - 1)


# --- computing batches ---------------------------------------------------------------------------------------------


class _Request(NamedTuple):
    """A batch to compute: images ``indices`` (int64) with the draws of ``epoch``."""

    epoch: int
    indices: np.ndarray


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


def _compute(
    dataset: PairDataset | LabeledDataset, requests: Iterable[_Request], rows: int, num_workers: int
) -> Generator[tuple[np.ndarray, ...], None, None]:
    """The fields of every requested batch (of at most ``rows`` rows), in the order of the requests.

    The arrays hold their values until the next batch is asked for. Exceptions of the data set are raised here,
    whichever process raised them. Closing the generator, or leaving it in any other way, ends the workers at once.
    """
    requests = iter(requests)
    first = next(requests, None)
    if first is None:
        return
    sample = dataset[first.epoch, int(first.indices[0])]
    window = max(1, PREFETCH * num_workers)
    rooms = [_allocate(sample, rows) for _ in range(window)]  # batch b is written into room b % window

    def fill(task: tuple[int, _Request]) -> int:
        number, request = task
        _fill(dataset, request, rooms[number % window])
        return len(request.indices)

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


def _fill(dataset: PairDataset | LabeledDataset, request: _Request, room: Sequence[np.ndarray]) -> None:
    for row, index in enumerate(request.indices.tolist()):
        for array, value in zip(room, dataset[request.epoch, index], strict=True):
            if np.shape(value) != array.shape[1:]:
                raise InputError(
                    f"the transforms give images of different sizes, {_size(array.shape[1:])} and "
                    f"{_size(np.shape(value))} pixels, which make no batch; end with RandomResizedCrop or CenterCrop"
                )
            array[row] = value


def _size(shape: Sequence[int]) -> str:
    return "×".join(str(length) for length in shape[:2])


def _death(death: Death, num_workers: int) -> RunError:
    if death.exit_code == -signal.SIGKILL:
        cause = "was killed (signal 9), as the system does when the memory runs out"
        advice = f"set fewer data.num_workers than {num_workers}, or a smaller batch_size"
    elif death.exit_code is not None and death.exit_code < 0:
        cause = f"died of {death.cause} ({signal.strsignal(-death.exit_code) or 'unknown'})"
        advice = "an image may crash its decoder: densecl data check names it"
    else:
        cause, advice = f"ended with {death.cause}", "with data.num_workers 0 the cause shows"
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
    if "fork" not in multiprocessing.get_all_start_methods():
        return 0, "no workers: this system cannot fork processes, images are loaded by the training process"
    cores = available_cores()
    count = max(1, min(_AUTO_MOST, cores // world_size_local)) if requested == "auto" else requested
    free = _available_memory()
    fitting = count
    if free is not None and count > 0:
        fitting = min(count, free // 2 // world_size_local // max(1, PREFETCH * batch_bytes))
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
