"""How far a download is: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

__all__ = ["Display", "display", "megabytes"]


def megabytes(count: int) -> str:
    """Bytes as text in MB (10^6), kB below one."""
    return f"{count / 1e6:,.1f} MB" if count >= 1_000_000 else f"{count / 1e3:.1f} kB"


class Display:
    """Nothing at all; the base of the two that show something."""

    def begin(self, done: int, total: int | None) -> None:
        """A body starts at byte ``done`` of ``total``."""

    def update(self, done: int) -> None:
        """So many bytes have come in all."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def close(self) -> None:
        """The end, good or bad."""


class _Lines(Display):
    """A line now and then, for log files."""

    every = 15.0  # seconds

    def __init__(self, name: str) -> None:
        self._name = name
        self._total: int | None = None
        self._start = (time.monotonic(), 0)
        self._last = self._start[0]

    def begin(self, done: int, total: int | None) -> None:
        self._total = total
        self._start = (time.monotonic(), done)
        self._last = self._start[0]
        size = megabytes(total) if total is not None else "size not told"
        self.note(f"downloading, {size}" + (f", {megabytes(done)} are here already" if done else ""))

    def update(self, done: int) -> None:
        now = time.monotonic()
        finished = done == self._total
        if now - self._last < self.every and not finished:
            return
        self._last = now
        speed = (done - self._start[1]) / max(now - self._start[0], 1e-3)
        of = f" of {megabytes(self._total)}" if self._total is not None else ""
        left = f", eta {(self._total - done) / speed:.0f} s" if self._total and speed and not finished else ""
        self.note(f"{megabytes(done)}{of}, {megabytes(round(speed))}/s{left}")

    def note(self, text: str) -> None:
        print(f"{self._name}: {text}", file=sys.stderr, flush=True)


class _Bar(Display):
    """A bar with bytes, speed and time left, for terminals."""

    def __init__(self, name: str) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._name = name
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(20),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
        )
        self._progress.start()
        self._task = None

    def begin(self, done: int, total: int | None) -> None:
        if self._task is not None:  # a new task: the speed is that of this connection
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(self._name, total=total, completed=done)

    def update(self, done: int) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=done)

    def note(self, text: str) -> None:
        self._progress.console.print(f"{self._name}: {text}", markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


@contextlib.contextmanager
def display(name: str, progress: bool) -> Iterator[Display]:
    """A bar on a terminal, lines elsewhere, nothing where none is wanted; on stderr."""
    shown = Display() if not progress else _Bar(name) if sys.stderr.isatty() else _Lines(name)
    try:
        yield shown
    finally:
        shown.close()
