"""The one pool of processes: a function of each task of a stream, computed in order by processes that may die."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TypeVar

import cv2

from passl_densecl.errors import InputError, RunError

Task = TypeVar("Task")
Result = TypeVar("Result")
PREFETCH = 2  # tasks that one process has: the one that it computes, and the next
_WINDOW = 32  # tasks per process that may be computed before an earlier one is
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_KEPT_BYTES = 2**28
_LEFT_TO_MAIN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # often sent to the whole group; the main one decides

_main_ends: set[Connection] = set()  # this process's ends of the pipes to all of its workers


class Death(NamedTuple):
    """In place of a result: the process that computed it ended with this exit code; −N for signal N."""

    exit_code: int | None

    @property
    def cause(self) -> str:
        """ "signal 11", "exit code 1"."""
        code = self.exit_code
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


class _Failure(NamedTuple):
    """In place of a result: the exception that the function raised, and its traceback."""

    error: Exception
    trace: str


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    connection: Connection
    tasks: deque[tuple[int, Any]] = field(default_factory=deque)  # (number, task), the one it computes first


def in_processes(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    num_workers: int,
    *,
    window: int | None = None,
    silent: bool = True,
) -> Generator[Result | Death, None, None]:
    """``function(task)`` for every task, in the order of the tasks, computed by ``num_workers`` ≥ 1 forked processes.

    Where a process dies, the task that it was computing gives a :class:`Death`, and another process takes its place.
    Closing the generator, or leaving it in any other way, ends the processes at once; the end of the program does too.

    Args:
        function: inherited by the processes, with all that it refers to; only tasks and results are pickled.
        window: task t is not begun before the consumer has asked for the result after that of task t − window, so
            no more than ``window`` results wait at any time. By default 32 per process.
        silent: drop what the processes write to standard error, because decoders write to it.

    Raises:
        InputError, RunError, OSError: ``function`` raised it.
        RuntimeError: ``function`` raised another exception, which the message names.
        RunError: a process cannot be started.
    """
    pool = _Pool(function, num_workers, silent)
    window = window or _WINDOW * num_workers
    numbered, last = enumerate(tasks), False
    answers: dict[int, Any] = {}
    sent = wanted = 0
    try:
        while True:
            while not last and sent < wanted + window and pool.has_room():
                item = next(numbered, None)
                if item is None:
                    last = True
                else:
                    pool.send(item)
                    sent += 1
            if wanted == sent:
                return
            # Also when the wanted answer has come: other processes must not wait until theirs are taken.
            answers.update(pool.receive(timeout=0 if wanted in answers else None))
            if wanted in answers:
                answer = answers.pop(wanted)
                if isinstance(answer, _Failure):
                    raise answer.error from RuntimeError(f"in a worker process:\n{answer.trace}")
                yield answer
                wanted += 1
    finally:
        pool.close()


class _Pool:
    """Processes that answer their tasks in any order; one that has died is replaced when there is a task for it."""

    def __init__(self, function: Callable[[Any], Any], num_workers: int, silent: bool) -> None:
        self._function = function
        self._silent = silent
        self._context = multiprocessing.get_context("fork")  # processes see the function's data without a copy
        self._workers: list[_Worker | None] = [None] * num_workers
        # Runs at the latest when the interpreter exits: the processes do not listen to SIGTERM.
        self.close = util.Finalize(self, _end, args=(self._workers,), exitpriority=10)

    def has_room(self) -> bool:
        return any(worker is None or len(worker.tasks) < PREFETCH for worker in self._workers)

    def send(self, *items: tuple[int, Any]) -> None:
        """Give (number, task) to the process with the fewest tasks. Raises RunError when it cannot be started."""
        for item in items:
            loads = [0 if worker is None else len(worker.tasks) for worker in self._workers]
            place = loads.index(min(loads))
            worker = self._workers[place]
            if worker is not None and not worker.tasks and not worker.process.is_alive():
                _hang_up(worker)
                worker = None
            if worker is None:
                worker = self._start(place)
            worker.tasks.append(item)
            with contextlib.suppress(OSError):  # it is dead: receive() finds out
                worker.connection.send(item[1])

    def receive(self, timeout: float | None) -> list[tuple[int, Any]]:
        """(number, answer) of every process that has one; waits for the first for at most ``timeout`` seconds."""
        busy = [worker for worker in self._workers if worker is not None and worker.tasks]
        ready = set(wait([part for worker in busy for part in (worker.connection, worker.process.sentinel)], timeout))
        answers = []
        for worker in busy:
            if worker.connection not in ready and worker.process.sentinel not in ready:
                continue
            alive = worker.process.is_alive()  # asked first: what a process sends before it ends is in the pipe by then
            try:
                if worker.connection.poll():
                    answer = worker.connection.recv()
                    answers.append((worker.tasks.popleft()[0], answer))
                    continue
            except (EOFError, OSError):
                alive = False
            if not alive:
                worker.process.join()
                answers.append((worker.tasks.popleft()[0], Death(worker.process.exitcode)))
                self._workers[self._workers.index(worker)] = None
                _hang_up(worker)
                self.send(*worker.tasks)
        return answers

    def _start(self, place: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        _main_ends.add(ours)
        args = (self._function, theirs, self._silent)
        worker = _Worker(self._context.Process(target=_work, args=args, name=f"data-{place}", daemon=True), ours)
        self._workers[place] = worker  # before it starts: a KeyboardInterrupt may come at once, and must end it
        # Held until the process ignores them: between the fork and its first line it would die of one.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_MAIN)
        try:
            worker.process.start()
        except OSError as error:
            raise RunError(
                f"cannot start {len(self._workers)} worker processes ({error.strerror}); set fewer workers "
                "(data.num_workers, --workers)"
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        return worker


def _hang_up(worker: _Worker) -> None:
    _main_ends.discard(worker.connection)
    worker.connection.close()


def _end(workers: list[_Worker | None]) -> None:
    present = [worker for worker in workers if worker is not None]
    started = [worker.process for worker in present if worker.process.pid is not None]
    for process in started:
        process.kill()  # nothing that it has begun is of value
    for process in started:
        process.join()
    for worker in present:
        _hang_up(worker)


def _work(function: Callable[[Any], Any], connection: Connection, silent: bool) -> None:
    """The life of a process: a task in, an answer out, until the connection ends because the main process did."""
    for name in _LEFT_TO_MAIN:
        signal.signal(name, signal.SIG_IGN)  # those that came while they were held as well
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _LEFT_TO_MAIN)
    for other in _main_ends:  # an end that stays open here would hide the main process's death from the others
        other.close()
    if silent:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    cv2.setNumThreads(0)
    keep_freed_memory()
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer = function(task)
        except Exception as error:
            if not isinstance(error, (InputError, RunError, OSError)):  # others may not be pickled
                error = RuntimeError(f"{type(error).__name__}: {error}")
            answer = _Failure(error, traceback.format_exc())
        try:
            connection.send(answer)
        except OSError:
            return


def available_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
        quota, period = map(int, file.read().split())  # no number where there is no quota
        cores = min(cores, max(1, round(quota / period)))
    return cores


def keep_freed_memory() -> None:
    """Let this process keep up to 256 MiB that it has freed, for its next image (glibc only): otherwise the
    memory of each image comes anew from the system, zeroed page by page.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for threshold in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            mallopt(threshold, _KEPT_BYTES)
