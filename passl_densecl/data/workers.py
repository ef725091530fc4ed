"""A function of a number, for many numbers, in processes that may die: a death costs one result and is named."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, NamedTuple, TypeVar

import cv2
import numpy as np

from passl_densecl.errors import InputError, RunError

__all__ = ["Death", "available_cores", "in_processes", "keep_freed_memory", "leave_signals_to_main", "signals_held"]

T = TypeVar("T")
_CHUNK = 8  # numbers that a process takes at a time
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_KEPT_BYTES = 2**28
_AHEAD = 4  # chunks a process that may wait for an earlier one
_LEFT_TO_MAIN = (signal.SIGINT, signal.SIGTERM)  # they often reach the whole group; the main process decides


class Death(NamedTuple):
    """In place of a result: the process that computed it died of this ("signal 11", "exit code 1")."""

    cause: str


@dataclass
class _Chunk:
    number: int
    missing: list[int]
    results: dict[int, Any] = field(default_factory=dict)


@dataclass
class _Worker(Generic[T]):
    process: BaseProcess
    connection: Connection
    chunk: _Chunk | None = None


def in_processes(function: Callable[[int], T], count: int, num_workers: int) -> Generator[T | Death, None, None]:
    """``function(0), …, function(count - 1)`` in this order, computed by ``num_workers`` ≥ 1 forked processes.

    Where a process dies, the number that it was at gets a :class:`Death` and another process takes its place. Only a few
    results wait at any time. What the processes write to standard error is dropped (decoders are talkative). Closing the
    generator ends the processes.

    Raises:
        InputError, RunError: ``function`` did.
        RuntimeError: it raised another exception, whose traceback is in the message.
    """
    context = multiprocessing.get_context("fork")
    current = np.frombuffer(mmap.mmap(-1, 8 * num_workers), np.int64)  # shared: the number that each one is at
    current[:] = -1
    workers: list[_Worker[T] | None] = [None] * num_workers
    finished: dict[int, _Chunk] = {}
    chunks = -(-count // _CHUNK)
    sent = wanted = 0

    def start(place: int) -> _Worker[T]:
        ours, theirs = context.Pipe()
        open_here = [ours, *(worker.connection for worker in workers if worker is not None)]
        process = context.Process(target=_work, args=(function, current, place, theirs, open_here), daemon=True)
        with signals_held():
            process.start()
        theirs.close()
        return _Worker(process, ours)

    def send(place: int, chunk: _Chunk) -> None:
        worker = workers[place] or start(place)
        workers[place] = worker
        worker.chunk = chunk
        with contextlib.suppress(OSError):  # it is dead: found out below
            worker.connection.send(chunk.missing)

    try:
        while wanted < chunks:
            for place in range(num_workers):
                worker = workers[place]
                if (worker is None or worker.chunk is None) and sent < min(chunks, wanted + _AHEAD * num_workers):
                    send(place, _Chunk(sent, list(range(sent * _CHUNK, min((sent + 1) * _CHUNK, count)))))
                    sent += 1
            busy = [worker for worker in workers if worker is not None and worker.chunk is not None]
            wait([part for worker in busy for part in (worker.connection, worker.process.sentinel)])
            for place in range(num_workers):
                worker = workers[place]
                if worker is None or worker.chunk is None:
                    continue
                chunk = worker.chunk
                answer = _answer(worker)
                if isinstance(answer, str):
                    raise RuntimeError(f"in a worker process:\n{answer}")
                if isinstance(answer, (InputError, RunError)):
                    raise answer
                if isinstance(answer, list):
                    chunk.results.update(zip(chunk.missing, answer, strict=True))
                elif isinstance(answer, Death):
                    at = int(current[place])
                    if at not in chunk.missing:
                        raise RuntimeError(f"a worker process died at its start ({answer.cause})")
                    chunk.results[at] = answer
                    chunk.missing.remove(at)
                    worker.connection.close()
                    workers[place], current[place] = None, -1
                    if chunk.missing:
                        send(place, chunk)
                        continue
                else:
                    continue
                worker.chunk = None
                finished[chunk.number] = chunk
            while wanted in finished:
                results = finished.pop(wanted).results
                wanted += 1
                yield from (results[number] for number in sorted(results))
    finally:
        for worker in workers:
            if worker is not None:
                worker.process.kill()  # nothing that it has begun is of value
                worker.process.join()
                worker.connection.close()


def _answer(worker: _Worker[Any]) -> list[Any] | str | InputError | RunError | Death | None:
    """Results, an error or its traceback, a death, or None when there is nothing yet."""
    alive = worker.process.is_alive()  # asked first: what a process sends before it ends is in the pipe by then
    try:
        if worker.connection.poll():
            return worker.connection.recv()
    except (EOFError, OSError):
        alive = False
    if alive:
        return None
    worker.process.join()
    code = worker.process.exitcode
    return Death(f"signal {-code}" if code is not None and code < 0 else f"exit code {code}")


def _work(
    function: Callable[[int], Any], current: np.ndarray, place: int, connection: Connection, open_here: list[Connection]
) -> None:
    """The life of a process: a list of numbers in, a list of results out, until the connection ends."""
    leave_signals_to_main()
    for other in open_here:  # an end that stays open here would hide the main process's death from the others
        other.close()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    cv2.setNumThreads(0)
    while True:
        try:
            numbers = connection.recv()
        except (EOFError, OSError):
            return
        answer: list[Any] | str | InputError | RunError = []
        try:
            for number in numbers:
                current[place] = number
                answer.append(function(number))
        except (InputError, RunError) as error:
            answer = error
        except Exception:
            answer = traceback.format_exc()
        try:
            connection.send(answer)
        except OSError:
            return


@contextlib.contextmanager
def signals_held() -> Generator[None, None, None]:
    """A process forked within it does not obey SIGINT and SIGTERM before it has called :func:`leave_signals_to_main`.

    Between the fork and its first line it would: on a busy machine that is time enough to die of one.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_MAIN)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_main() -> None:
    """Ignore SIGINT and SIGTERM in this process, those that came while they were held as well."""
    for name in _LEFT_TO_MAIN:
        signal.signal(name, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _LEFT_TO_MAIN)


def available_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return cores


def keep_freed_memory() -> None:
    """Let this process keep up to 256 MiB that it has freed, for its next image; nothing where malloc is not glibc's.

    Otherwise the memory of a decoded image goes back to the system and comes again page by page, zeroed, for the next
    one: hundreds of page faults an image.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for threshold in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            mallopt(threshold, _KEPT_BYTES)
