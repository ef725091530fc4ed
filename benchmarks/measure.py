"""What the benchmarks share: rounds, ratios, fresh processes, memory and tables."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import platform
import signal
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from passl_densecl.cli.console import table
from passl_densecl.errors import InputError

CPU = "CPU time of the process"  # what it computed, whoever else uses the machine
WALL = "wall time"
PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "torch", "torchvision", "numpy", "pillow")
PACKAGES += ("opencv-python-headless", "opencv-python")
_END_SECONDS = 10.0


class Timing(NamedTuple):
    """Seconds that something took: on the clock, and of processor time in all threads of its process."""

    wall: float
    cpu: float


def timed(act: Callable[[], Any]) -> tuple[Timing, Any]:
    """How long a call took, and what it returned."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = act()
    return Timing(time.perf_counter() - wall, time.process_time() - cpu), result


def interleave(contestants: Mapping[str, Callable[[], Timing]], rounds: int) -> dict[str, list[Timing]]:
    """Everyone once to warm up, then once a round; every second round in reverse, so that a drift favors nobody."""
    for contestant in contestants.values():
        contestant()
    timings: dict[str, list[Timing]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name in list(contestants)[:: 1 if number % 2 == 0 else -1]:
            timings[name].append(contestants[name]())
    return timings


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summary(timings: Sequence[Timing], clock: str, images: int | None = None) -> dict[str, Any]:
    """One contestant's entry in the JSON: seconds of the chosen clock, and both clocks of every round."""
    seconds = [_seconds(timing, clock) for timing in timings]
    result: dict[str, Any] = {"seconds": spread(seconds)}
    if images is not None:
        result["images_per_second"] = spread([images / value for value in seconds])
    return result | {"rounds": {"wall": [t.wall for t in timings], "cpu": [t.cpu for t in timings]}}


def quotient(what: str, above: Sequence[Timing], below: Sequence[Timing], clock: str) -> dict[str, Any]:
    """above / below in seconds, round by round: both of a round met the same machine."""
    pairs = zip(above, below, strict=True)
    return {"what": what, **spread([_seconds(a, clock) / _seconds(b, clock) for a, b in pairs])}


def _seconds(timing: Timing, clock: str) -> float:
    return timing.cpu if clock == CPU else timing.wall


# --- processes -----------------------------------------------------------------------------------------------------


class Worker:
    """A fresh process that builds a few functions and calls one of them whenever it is asked; it sleeps in between.

    `build` is "module:function"; called with the arguments, in the new process, it gives the functions by name. `env`
    is set before it is imported, and `cores` are the only ones that the process may use.
    """

    def __init__(
        self, build: str, *arguments: Any, env: Mapping[str, str] | None = None, cores: set[int] | None = None
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._name = build
        self._process = context.Process(
            target=_serve, args=(theirs, build, arguments, dict(env or {}), cores), daemon=True
        )
        self._process.start()
        theirs.close()

    def ready(self) -> Worker:
        """Wait until everything is built."""
        self._answer()
        return self

    def ask(self, function: str, *, memory: bool = False) -> None:
        self._connection.send((function, memory))

    def answer(self) -> tuple[Timing | dict[str, float], Any]:
        return self._answer()

    def time(self, function: str) -> Timing:
        """How long one call takes in there."""
        self.ask(function)
        return self._answer()[0]

    def memory(self, function: str) -> dict[str, float]:
        """MiB: resident before the call, the most during it, and the difference."""
        self.ask(function, memory=True)
        return self._answer()[0]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.close()
        self._process.join(_END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _answer(self) -> Any:
        try:
            error, result = self._connection.recv()
        except EOFError:
            self._process.join(_END_SECONDS)
            advice = "; probably the memory ran out" if self._process.exitcode == -9 else ""
            code = self._process.exitcode
            raise RuntimeError(f"the process of {self._name} ended with code {code}{advice}") from None
        if error is not None:
            raise RuntimeError(f"in the process of {self._name}:\n{error}")
        return result


@contextlib.contextmanager
def workers(*group: Worker) -> Iterator[tuple[Worker, ...]]:
    """All of them ready; ended at the end, whatever happens."""
    try:
        yield tuple(worker.ready() for worker in group)
    finally:
        for worker in group:
            worker.close()


def together(group: Sequence[Worker], function: str) -> Timing:
    """All workers call the function at the same time: wall time until the last is done, and all their CPU time."""
    begin = time.perf_counter()
    for worker in group:
        worker.ask(function)
    answers = [worker.answer()[0] for worker in group]
    return Timing(time.perf_counter() - begin, sum(answer.cpu for answer in answers if isinstance(answer, Timing)))


def thread_limit(threads: int) -> dict[str, str]:
    """The environment in which OpenMP, MKL and OpenBLAS use that many threads."""
    return {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


def own_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def _serve(
    connection: Connection, build: str, arguments: Sequence[Any], env: dict[str, str], cores: set[int] | None
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches everyone; the main process ends this one
    os.environ.update(env)
    if cores is not None:
        os.sched_setaffinity(0, cores)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # libraries that print (gloo does) must not write into the tables
    warnings.simplefilter("ignore")
    try:
        module, name = build.split(":")
        functions = getattr(importlib.import_module(module), name)(*arguments)
        connection.send((None, None))
        while True:
            try:
                function, memory = connection.recv()
            except EOFError:
                return
            measured = with_peak if memory else timed
            connection.send((None, measured(functions[function])))
    except Exception:
        with contextlib.suppress(OSError):
            connection.send((traceback.format_exc(), None))


# --- memory --------------------------------------------------------------------------------------------------------


def with_peak(act: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """MiB of this process by /proc/self/status: resident before the call, highest (VmHWM) after it, and the difference.

    `ru_maxrss` would not do: a child inherits its parent's through fork.
    """
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # from here on VmHWM counts anew
    before = status_mb("VmHWM")
    result = act()
    peak = status_mb("VmHWM")
    return {"before_mb": before, "peak_mb": peak, "extra_mb": peak - before}, result


def status_mb(field: str, pid: int | str = "self") -> float:
    """A field of /proc/PID/status, in MiB."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
    raise InputError(f"/proc/{pid}/status has no {field}; memory can be measured on Linux only")


# --- text ----------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "cpu": _cpu_name(),
        "cores": len(own_cores()),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def shown(values: Mapping[str, Any], digits: int = 3) -> str:
    """ "1.013 (1.010 to 1.020)", of a spread."""
    low, high = (f"{values[key]:.{digits}f}" for key in ("min", "max"))
    return f"{values['median']:.{digits}f} ({low} to {high})"


def time_table(title: str, results: Mapping[str, Mapping[str, Any]], unit: str = "s") -> str:
    """Name, median, lowest–highest and images/s of `summary` entries."""
    scale = {"s": 1.0, "ms": 1000.0}[unit]
    rows = [[title, unit, "lowest – highest", "images/s"]]
    for name, result in results.items():
        seconds, rate = result["seconds"], result.get("images_per_second")
        low, high = (f"{seconds[key] * scale:.3f}" for key in ("min", "max"))
        speed = f"{rate['median']:.1f}" if rate else ""
        rows.append([name, f"{seconds['median'] * scale:.3f}", f"{low} – {high}", speed])
    return table(rows if any(row[3] for row in rows[1:]) else [row[:3] for row in rows])


def ratio_lines(ratios: Mapping[str, Mapping[str, Any]]) -> str:
    return table([["ratio", "median (lowest to highest)"], *([r["what"], shown(r)] for r in ratios.values())])
