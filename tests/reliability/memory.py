"""What processes hold, read from /proc, and how it grows: memory, open files, files of /dev/shm. Linux only."""

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
    anonymous: float  # pages that no file stands behind, shared or not: neither the page cache nor a fork changes it
    resident: float  # RSS
    proportional: (
        float  # of `anonymous`: shared pages divided by those who share, so that a sum over processes is honest
    )
    files: int  # open file descriptors
    shm: frozenset[str]  # files of /dev/shm that it has open or mapped


class Fit(NamedTuple):
    """A straight line through a series: its slope an hour and the standard error of that."""

    slope: float
    error: float

    @property
    def least(self) -> float:
        """The slope that the series shows beyond doubt (two standard errors)."""
        return self.slope - 2 * self.error


@dataclass(frozen=True)
class Limits:
    """What a run may grow by, and why."""

    # Two weeks, the length of a long run, are 336 hours: 3 MiB an hour are then 1 GiB, which a host with room for a
    # training can spare. A step of this soak takes a small part of a real one's time, so what leaks a step or an epoch
    # leaks here many times as fast as it would there.
    mib_an_hour: float = 3.0
    files: int = 0  # a file that stays open, stays open every time: none is too few to matter
    shm_files: int = 0  # and so for a file in shared memory, which outlives the run


def tree(root: int) -> list[Process]:
    """The process `root` and all that descend from it; one that ends meanwhile is left out."""
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
    """What a process holds now; None when it has ended."""
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
    """The files of /dev/shm, whoever made them."""
    return {SHM + name for name in os.listdir(SHM)}


def fit(hours: Sequence[float], values: Sequence[float], blocks: int = 20) -> Fit:
    """The slope of a series by least squares over the medians of `blocks` stretches of equal length.

    Samples near each other are alike (an epoch breathes: evaluation takes and gives back), so each alone would claim
    more certainty than there is; medians of stretches are nearly independent.
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
    """By how much the least of the last quarter exceeds the least of the first: what was opened and not closed."""
    quarter = max(1, len(counts) // 4)
    return min(counts[-quarter:]) - min(counts[:quarter])


def totals(processes: Iterable[Process]) -> tuple[float, int]:
    """(MiB of anonymous memory, open files) of several processes together.

    The pages of libraries are left out: others on the machine share them, and what each pays changes as they come and
    go.
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
