"""The log of a run: lines on the terminal and in train.log, numbers in metrics.jsonl and VisualDL, environment.json.

Only the main process has a RunLog; the others have a SilentLog.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle

import passl_densecl
from passl_densecl.config import Config, dump_config
from passl_densecl.disk import make_writable, parse_json, whole_file
from passl_densecl.distributed import collectives as dist
from passl_densecl.errors import InputError, printable
from passl_densecl.reliability.logfile import LogFile
from passl_densecl.text import duration

if TYPE_CHECKING:
    from passl_densecl.reliability.loggers import Loggers


class SilentLog:
    """Drops everything: the log of every process but the main one."""

    def line(self, label: str, text: str) -> None:
        """A fact, a note or a result: 'data     12,418 images …'."""

    def progress(self, title: str, done: int, total: int, text: str, *, record: bool = False) -> None:
        """The progress bar on a terminal; with `record` also a line in the file (and on output that is no terminal)."""

    def metrics(self, values: Mapping[str, float | int | str]) -> None:
        """One object of metrics.jsonl; the loggers show its numbers over `step`."""

    def images(self, step: int, make: Callable[[], Mapping[str, np.ndarray]]) -> None:
        """Pictures for the loggers, by tag, uint8 (height, width, 3) RGB; `make` is called if there are any."""

    def record(self) -> None:
        """The run begins: from here on its folder is written."""

    def rewind(self, step: int) -> None:
        """Remove the metrics of later steps, which a resumed run will write again; -1 removes all. Opens the loggers,
        whose records continue after the same step.
        """

    def recorded(self, key: str) -> dict[int, dict[str, Any]]:
        """The objects of metrics.jsonl that have this number, by step."""
        return {}

    def sync(self) -> None:
        """Write everything logged so far to the disk, as far as the disk takes it."""

    def close(self) -> None:
        """Finish the bar and the files."""


class RunLog(SilentLog):
    """The log of a run folder.

    Output of Paddle's native code and Python warnings go to train.log only, so that the terminal stays readable.
    Nothing here ends a run: lines that a full disk refuses are kept and written later, a folder that was removed is
    made again, and without a terminal the run continues.
    """

    def __init__(
        self, run_dir: Path, documents: Mapping[str, str] | None = None, loggers: Loggers | None = None
    ) -> None:
        """`documents`: files of the run folder (name → text), written by `record` and whenever the folder is gone."""
        self.run_dir = run_dir
        self._loggers = loggers
        self._documents = dict(documents or {})
        sys.stdout.flush()
        sys.stderr.flush()
        self._saved = (os.dup(1), os.dup(2), sys.stdout, sys.stderr, warnings.showwarning)
        self._file = LogFile(run_dir / "train.log", on_open=self._redirect)
        self._metrics = LogFile(run_dir / "metrics.jsonl")
        sys.stdout, sys.stderr = (
            os.fdopen(saved, "w", buffering=1, closefd=False, errors="backslashreplace") for saved in self._saved[:2]
        )
        faulthandler.enable(sys.stderr)
        warnings.showwarning = self._warning
        self._bar: Any = None
        self._broken = False  # whether the disk has refused a line, and a warning was logged
        self._interactive = sys.stdout.isatty()

    def record(self) -> None:
        """Write the documents and the lines so far, and the following ones as they come.

        Raises InputError when the run folder cannot be written.
        """
        try:
            self._write_documents()
            self._file.settle()
            self._metrics.settle()
        except OSError as error:
            raise InputError(
                f"output_dir: {error.filename or self.run_dir} cannot be written: {error.strerror}"
            ) from error

    def line(self, label: str, text: str) -> None:
        text = printable(f"{label:<8} {text}")
        self._print(text)
        self._file.write(text + "\n")
        self._watch()

    def progress(self, title: str, done: int, total: int, text: str, *, record: bool = False) -> None:
        if self._interactive:
            with contextlib.suppress(OSError):
                self._show_bar(title, done, total, text)
        if record:
            line = f"{title} {done}/{total}  {text}"
            self._file.write(line + "\n")
            if not self._interactive:
                self._print(line)
            self._watch()

    def metrics(self, values: Mapping[str, float | int | str]) -> None:
        self._metrics.write(json.dumps(values) + "\n")
        self._watch()
        if self._loggers is not None:
            self._loggers.scalars(values)

    def images(self, step: int, make: Callable[[], Mapping[str, np.ndarray]]) -> None:
        if self._loggers is not None:
            self._loggers.images(step, make)

    def rewind(self, step: int) -> None:
        def is_kept(line: str) -> bool:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a line that was being written at a kill
                return parse_json(line)["step"] <= step
            return False

        self._metrics.keep(is_kept)
        if self._loggers is not None:
            self._loggers.open(step, self.line)

    def recorded(self, key: str) -> dict[int, dict[str, Any]]:
        try:
            lines = (self.run_dir / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
            return {one["step"]: one for one in (parse_json(line) for line in lines if f'"{key}"' in line)}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def sync(self) -> None:
        self._file.sync()
        self._metrics.sync()
        self._watch()

    def close(self) -> None:
        self._end_bar()
        if self._loggers is not None:
            self._loggers.close()
        self.sync()
        for file in (self._file, self._metrics):
            if n := file.waiting:
                self._print(f"warning  {file.path}: the last {n:,} lines could not be written: {file.problem}")
        self._metrics.close()
        faulthandler.disable()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        out, err, sys.stdout, sys.stderr, warnings.showwarning = self._saved
        for saved, number in ((out, 1), (err, 2)):
            os.dup2(saved, number)
            os.close(saved)
        self._file.close()

    def _print(self, line: str) -> None:
        """To stdout, which may be closed, or a file on the same full disk."""
        with contextlib.suppress(OSError):
            self._end_bar()
            print(line, file=sys.stdout)

    def _watch(self) -> None:
        """Warn once when lines cannot be written, and once when they can be again; notice a folder that was removed."""
        files = (self._file, self._metrics)
        problem = next((file for file in files if file.problem), None)
        if problem is not None and not self._broken:
            self._broken = True
            self.line(
                "warning",
                f"{problem.path} cannot be written: {problem.problem}; training continues. Its lines are kept in "
                "memory and written when there is room again",
            )
        elif problem is None and self._broken:
            self._broken = False
            lost = sum(file.lost for file in files)
            self.line("note", f"{self.run_dir} can be written again; {lost:,} lines of the logs are lost")
        if any(file.reopened for file in files):
            self._file.reopened = self._metrics.reopened = False
            with contextlib.suppress(OSError, InputError):
                self._write_documents()
            self.line(
                "warning",
                f"{self.run_dir} or its logs were removed while training; made again, with what the open logs held. "
                "Checkpoints that were in it are gone; the next one is written as planned",
            )

    def _write_documents(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        for name, text in self._documents.items():
            with whole_file(self.run_dir / name) as file:
                file.write(text.encode("utf-8"))

    @staticmethod
    def _redirect(descriptor: int) -> None:
        """Send what native code prints to train.log."""
        for number in (1, 2):
            os.dup2(descriptor, number)

    def _warning(self, message, category, filename, lineno, file=None, line=None) -> None:  # noqa: ANN001
        self._file.write(warnings.formatwarning(message, category, filename, lineno, line))

    def _show_bar(self, title: str, done: int, total: int, text: str) -> None:
        if self._bar is None or self._bar[0] != title:
            self._end_bar()
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
            )
            bar = Progress(*columns, console=Console(file=sys.stdout), auto_refresh=False)
            bar.start()
            self._bar = (title, bar, bar.add_task(title, total=total, text=text))
        _, bar, task = self._bar
        bar.update(task, completed=done, text=text, refresh=True)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar[1].stop()
            self._bar = None


def open_log(config: Config, *, resumed: bool) -> SilentLog:
    """The run's log in the main process (which `record` writes, with config.yaml and environment.json), silence in the
    others.

    Raises InputError when a logger is not installed, or when the run folder, or the folder of checkpoints in it, cannot
    be written.
    """
    loggers = None
    if config.loggers:
        from passl_densecl.reliability.loggers import Loggers, check_loggers

        check_loggers(config.loggers)
        loggers = Loggers(config)
    if not dist.is_main():
        return SilentLog()
    from passl_densecl.reliability.environment import environment  # the main process alone writes it

    make_writable(config.run_dir / "checkpoints", "output_dir")
    make_writable(config.run_dir, "output_dir")
    documents = {"config.yaml": dump_config(config), "environment.json": json.dumps(environment(), indent=1) + "\n"}
    log = RunLog(config.run_dir, documents, loggers)
    kind = "gpu" if paddle.get_device().startswith("gpu") else "cpu"
    how = "resumed" if resumed else "new run"
    title = f"passl_densecl {passl_densecl.__version__} · paddle {paddle.__version__} · {dist.world_size()} × {kind}"
    log.line(title, f"· {config.run_dir} ({how})")
    return log


def peak_memory_mb() -> float:
    """Peak memory in MiB: of the device when it is a GPU, else of this process."""
    if paddle.get_device().startswith("gpu"):
        return paddle.device.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Stopwatch:
    """Speed since the last reading, and the time a run still needs."""

    def __init__(self) -> None:
        self.skip()
        self._seconds_per_step: float | None = None

    def step(self, waited: float) -> None:
        """Count one step that waited `waited` seconds for its data."""
        self._steps += 1
        self._waited += waited

    def skip(self) -> None:
        """Start the next reading here, because the time since the last one was not only training."""
        self._mark, self._steps, self._waited = time.perf_counter(), 0, 0.0

    def read(self, batch_size: int, steps_left: int) -> tuple[float, float, str]:
        """(images/s, share of the time spent waiting for data, time left as text) since the last reading."""
        seconds = max(time.perf_counter() - self._mark, 1e-9)
        per_step = seconds / max(self._steps, 1)
        old = self._seconds_per_step
        self._seconds_per_step = per_step if old is None else 0.7 * old + 0.3 * per_step
        rate, share = self._steps * batch_size / seconds, min(1.0, self._waited / seconds)
        self.skip()
        return rate, share, duration(self._seconds_per_step * steps_left)
