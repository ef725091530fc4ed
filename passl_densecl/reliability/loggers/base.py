"""What a logger is, and what it knows of the run."""

from __future__ import annotations

import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from passl_densecl.config import Config
from passl_densecl.disk import whole_file
from passl_densecl.errors import InputError


@dataclass(frozen=True)
class LoggedRun:
    """A run, as its loggers see it."""

    config: Config
    step: int  # the record continues after this step; -1: it begins

    @property
    def folder(self) -> Path:
        return self.config.run_dir

    @property
    def settings(self) -> dict[str, str | int | float | bool]:
        """The config as hyper-parameters, by dotted key: `{"model.depth": 50, …}`; lists as JSON."""

        def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
            found = {}
            for key, value in tree.items():
                if isinstance(value, dict):
                    found |= flat(value, f"{prefix}{key}.")
                elif value is not None:
                    found[prefix + key] = json.dumps(value) if isinstance(value, list) else value
            return found

        return flat(self.config.model_dump(mode="json"))

    @property
    def results(self) -> list[str]:
        """The tags that say how good the run is, for tables of hyper-parameters."""
        if self.config.task == "linear":
            return ["val/top1"]
        return ["loss/total"] if self.config.evaluation is None else ["loss/total", "knn/top1"]

    def remembered(self, service: str, make: Callable[[], str]) -> tuple[str, bool]:
        """(The run's id at a service, whether it is a new one): the one in the run folder when the run continues."""
        file = self.folder / f"{service}.id"
        if self.step >= 0 and file.is_file():
            return file.read_text(encoding="utf-8").strip(), False
        made = make()
        with whole_file(file) as opened:
            opened.write(f"{made}\n".encode())
        return made, True


class Logger(ABC):
    """Shows a run's numbers and pictures. The constructor continues the record of the run, or begins it.

    Any method may raise anything: the run then goes on without this logger.
    """

    package: ClassVar[str]  # what it imports
    install: ClassVar[str]  # what pip installs
    remote: ClassVar[bool] = False  # whether it may wait for a network; it gets a thread of its own then

    @abstractmethod
    def __init__(self, run: LoggedRun) -> None: ...

    @classmethod
    def check(cls) -> None:
        """Raises InputError when the logger cannot be used: its package is not installed, or what else it needs."""
        try:
            importlib.import_module(cls.package)
        except ImportError as error:
            raise InputError(
                f"loggers: {cls.package} is not installed: pip install '{cls.install}' ({error})"
            ) from None

    @abstractmethod
    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by tag, after `step` optimizer steps."""

    @abstractmethod
    def image(self, tag: str, pixels: np.ndarray, step: int) -> None:
        """RGB, uint8 (height, width, 3)."""

    @abstractmethod
    def close(self) -> None:
        """Write what is not written yet."""


def tag_of(name: str) -> str:
    """The tag of a number of metrics.jsonl: `global_loss` → `loss/global`. A tag is its own."""
    if "/" in name:
        return name
    if name in ("loss", "chance"):
        return {"loss": "loss/total"}.get(name, f"loss/{name}")
    if name in ("images_per_second", "data_share", "peak_memory_mb"):
        return f"speed/{name}"
    if name == "seconds":  # of an evaluation
        return "knn/seconds"
    first, _, last = name.partition("_")
    if first in ("knn", "val", "correspondence", "place"):
        return f"{first}/{last}"
    if last in ("loss", "top1", "similarity"):
        return f"{last}/{first}"
    return f"training/{name}"
