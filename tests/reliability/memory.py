"""Memory, open files and files of /dev/shm that processes hold, from /proc, and how they grow. Linux only."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

PROC = Path("/proc")
SHM = "/dev/shm/"


class Process(NamedTuple):
    """One process at one moment; memory in MiB."""

    pid: int
    parent: int
    command: str
    anonymous: float  # pages without a file, shared or not: independent of the page cache and of forks
    resident: float  # RSS
    proportional: float  # as `anonymous`, shared pages divided by the number of sharers: for sums over processes
    files: int  # open file descriptors
    shm: frozenset[str]  # files of /dev/shm that it has open or mapped


class Fit(NamedTuple):
    """A straight line through a series: its slope per hour, with the standard error."""

    slope: float
    error: float

    @property
    def least(self) -> float:
        """The lower bound of the slope (two standard errors)."""
        return self.slope - 2 * self.error


@dataclass(frozen=True)
class Limits:
    """How much a run may grow, and why."""

    # A long run takes two weeks (336 hours): 3 MiB per hour are then 1 GiB, which a training host can spare. A step
    # here is much shorter than a real one, so a leak per step or epoch is many times as fast here.
    mib_per_hour: float = 3.0
    files: int = 0  # a file that stays open once stays open every time
    shm_files: int = 0  # likewise a file in shared memory, which outlives the run


def tree(root: int) -> list[Process]:
    """The process `root` and its descendants, without those that end meanwhile."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (parent := _parent(int(entry.name))) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        waiting += children.get(pid, [])
        process = read_process(pid)
        if process is not None:
            found.append(process)
    return found


def read_process(pid: int) -> Process | None:
    """What a process holds now; None after its end."""
    folder = PROC / str(pid)
    try:
        rollup = dict(line.split(":", 1) for line in (folder / "smaps_rollup").read_text().splitlines()[1:])
        sizes = {key: int(value.split()[0]) / 1024 for key, value in rollup.items()}
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        links = [_link(folder / "fd" / name) for name in os.listdir(folder / "fd")]
        mapped = [line.split(maxsplit=5)[5] for line in (folder / "maps").read_text().splitlines() if SHM in line]
    except (OSError, ValueError):
        return None
    parent = _parent(pid)
    if parent is None or "Anonymous" not in sizes:
        return None
    shm = frozenset(path for path in (*links, *mapped) if path.startswith(SHM))
    return Process(pid, parent, command, sizes["Anonymous"], sizes["Rss"], sizes["Pss_Anon"], len(links), shm)


def shm_files() -> set[str]:
    """The files of /dev/shm, of all programs."""
    return {SHM + name for name in os.listdir(SHM)}


def fit(hours: Sequence[float], values: Sequence[float], blocks: int = 20) -> Fit:
    """The slope of a series by least squares over the medians of `blocks` intervals of equal length.

    Neighboring samples are correlated (an evaluation takes memory and gives it back), and would make the standard error
    too small; medians of intervals are nearly independent.
    """
    if len(values) < 3 * 4:
        raise ValueError(f"{len(values)} samples are too few for a slope")
    count = min(blocks, len(values) // 3)
    x = np.array([np.median(part) for part in np.array_split(np.asarray(hours, float), count)])
    y = np.array([np.median(part) for part in np.array_split(np.asarray(values, float), count)])
    x = x - x.mean()
    slope = float((x * y).sum() / (x * x).sum())
    residuals = y - y.mean() - slope * x
    return Fit(slope, float(np.sqrt((residuals**2).sum() / (count - 2) / (x * x).sum())))


def growth(counts: Sequence[int]) -> int:
    """The least count of the last quarter minus that of the first: what was opened and not closed."""
    quarter = max(1, len(counts) // 4)
    return min(counts[-quarter:]) - min(counts[:quarter])


def totals(processes: Iterable[Process]) -> tuple[float, int]:
    """(MiB of anonymous memory, open files) of several processes together.

    Without the pages of libraries: other programs share them, and each one's part changes as programs start and end.
    """
    processes = list(processes)
    return sum(process.proportional for process in processes), sum(process.files for process in processes)


def _parent(pid: int) -> int | None:
    try:
        return int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
