"""Where a run's numbers and pictures are shown, beside metrics.jsonl: VisualDL, TensorBoard, Weights & Biases, MLflow.

None of them can stop a run, or make it wait: what one raises is a warning, and the run goes on without it.
"""

from __future__ import annotations

import importlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from passl_densecl.config import Config
from passl_densecl.reliability.loggers.base import LoggedRun, Logger, tag_of
from passl_densecl.text import first_line

# Name in the config → module and class, imported by the runs that have this logger.
KINDS = {
    "visualdl": ("visualdl_records", "VisualDL"),
    "tensorboard": ("tensorboard_events", "TensorBoard"),
    "wandb": ("wandb_run", "WandB"),
    "mlflow": ("mlflow_run", "MLflow"),
}
WAITING = 1000  # entries that a slow service may be behind
CLOSING = 60.0  # seconds that the end of a run waits for one


def logger_class(name: str) -> type[Logger]:
    """The logger that a config calls `name`."""
    module, kind = KINDS[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), kind)


def check_loggers(names: Sequence[str]) -> None:
    """Raises InputError when a logger's package is not installed, or the logger cannot be used as things are."""
    for name in dict.fromkeys(names):
        logger_class(name).check()


class Loggers:
    """The loggers of a run, which `open` opens."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._open: list[_Guarded] = []
        self._warn: Callable[[str, str], None]

    def open(self, step: int, warn: Callable[[str, str], None]) -> None:
        """Continue the records after `step`, what is later removed where that is possible; -1 begins new ones.

        `warn` writes a line of the log: (label, text).
        """
        self._warn = warn
        run = LoggedRun(self._config, step)
        self._open = [_Guarded(name, logger_class(name), run) for name in dict.fromkeys(self._config.loggers)]
        self._drop()

    def scalars(self, values: Mapping[str, float | int | str]) -> None:
        """The numbers of one object of metrics.jsonl, at its `step`."""
        step = int(values["step"])
        tagged = {tag_of(key): float(v) for key, v in values.items() if isinstance(v, int | float) and key != "step"}
        self._each(lambda logger: logger.scalars(tagged, step))

    def images(self, step: int, make: Callable[[], Mapping[str, np.ndarray]]) -> None:
        """The pictures by tag, uint8 (height, width, 3) RGB, that `make` returns; it is called if there are loggers."""
        if not self._open:
            return
        try:
            pictures = make()
        except Exception as error:
            self._warn("warning", f"the pictures for the loggers could not be made: {first_line(error)}")
            return
        for tag, pixels in pictures.items():
            self._each(lambda logger, tag=tag, pixels=pixels: logger.image(tag, pixels, step))

    def close(self) -> None:
        for each in self._open:
            each.close()
        self._drop()
        self._open = []

    def _each(self, task: Callable[[Logger], object]) -> None:
        for each in self._open:
            each.do(task)
        self._drop()

    def _drop(self) -> None:
        for each in [each for each in self._open if each.problem is not None]:
            self._open.remove(each)
            self._warn("warning", f"{each.name} is not written any more: {each.problem}; training continues")


class _Guarded:
    """One logger. What it raises becomes its `problem`; a remote one works in a thread of its own."""

    def __init__(self, name: str, kind: type[Logger], run: LoggedRun) -> None:
        self.name = name
        self.problem: str | None = None
        self._logger: Logger
        self._tasks: queue.Queue[Callable[[], object] | None] = queue.Queue(WAITING)  # None: no more
        self._thread = threading.Thread(target=self._work, daemon=True) if kind.remote else None
        self._run(partial(self._begin, kind, run))
        if self._thread is not None:
            self._thread.start()

    def do(self, task: Callable[[Logger], object]) -> None:
        """Now, or in turn in the logger's thread."""
        self._run(lambda: task(self._logger))

    def close(self) -> None:
        self.do(lambda logger: logger.close())
        if self._thread is not None and self.problem is None:
            self._run(None)
            self._thread.join(CLOSING)
            if self._thread.is_alive():
                self.problem = f"it did not finish within {CLOSING:.0f} s"

    def _begin(self, kind: type[Logger], run: LoggedRun) -> None:
        self._logger = kind(run)

    def _run(self, action: Callable[[], object] | None) -> None:
        if self._thread is None:
            self._guarded(action)
            return
        try:
            self._tasks.put_nowait(action)
        except queue.Full:
            self.problem = self.problem or f"it is {WAITING:,} entries behind"

    def _guarded(self, action: Callable[[], object] | None) -> None:
        if self.problem is None and action is not None:
            try:
                action()
            except Exception as error:
                self.problem = first_line(error)

    def _work(self) -> None:
        while self.problem is None and (action := self._tasks.get()) is not None:
            self._guarded(action)
