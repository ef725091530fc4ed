"""Reads a run folder, finished or not: config, metrics, environment, results. Needs no Paddle."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel

from passl_densecl.config import Config, load_config
from passl_densecl.disk import parse_json
from passl_densecl.errors import InputError
from passl_densecl.text import listed, quantity

_LARGEST = 1e300  # larger values are not measurements and overflow in a figure
CONFIG, METRICS, ENVIRONMENT, LOG = "config.yaml", "metrics.jsonl", "environment.json", "train.log"


@dataclass(frozen=True)
class RecordedRun:
    """The content of a run folder; the run may still be going on."""

    path: Path
    name: str  # of the folder
    config: Config | None  # its relative paths made absolute, as `located` does
    metrics: list[dict[str, Any]] = field(repr=False)  # the objects of metrics.jsonl, by step
    unread: int  # number of its lines that are not an object with a step, such as one being written
    steps_per_epoch: int | None
    environment: dict[str, Any] = field(repr=False)
    results: dict[str, dict[str, Any]] = field(repr=False)  # file name → content, of evaluations in the folder

    @property
    def last_step(self) -> int:
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run, if known."""
        return self.config.epochs * self.steps_per_epoch if self.config and self.steps_per_epoch else None

    def state(self) -> str:
        """Progress of the run: "finished: 18 epochs, 5,310 steps" or "at step 310 of 5,310"."""
        if not self.metrics:
            return "no step logged yet"
        total = self.total_steps
        if total is not None and self.last_step >= total and self.config:
            return f"finished: {quantity(self.config.epochs, 'epoch')}, {quantity(total, 'step')}"
        return f"at step {self.last_step:,}" + (f" of {total:,}" if total else "")

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of a metric wherever it was logged as a finite number."""
        rows = [(row["step"], row[key]) for row in self.metrics if _is_number(row.get(key))]
        steps, values = zip(*rows, strict=True) if rows else ((), ())
        return np.asarray(steps, np.float64), np.asarray(values, np.float64)

    def keys(self) -> list[str]:
        """Names of all metrics, in order of first appearance."""
        return list(dict.fromkeys(key for row in self.metrics for key in row))


def read_run(path: Path, *, need_metrics: bool = True) -> RecordedRun:
    """Read a run folder.

    Raises:
        InputError: no such folder, not a run folder, or (with `need_metrics`) nothing logged yet.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such folder; expected a run folder, output_dir/NAME of its config")
    if not path.is_dir():
        raise InputError(f"{path}: this is a file; pass its run folder")
    if not (path / METRICS).is_file() and not (path / CONFIG).is_file():
        inside = [entry.name for entry in sorted(path.iterdir()) if (entry / METRICS).is_file()]
        hint = f"; it holds runs: {listed(inside, quoted=False)}" if inside else ""
        raise InputError(f"{path}: not a run folder: neither {METRICS} nor {CONFIG} is in it{hint}")
    environment = _read_object(path / ENVIRONMENT)
    config = load_config(path / CONFIG) if (path / CONFIG).is_file() else None
    if config is not None and isinstance(folder := environment.get("working_directory"), str):
        config = located(config, folder)
    metrics, unread = _read_metrics(path / METRICS)
    if need_metrics and not metrics:
        every = f"; the run logs every {config.log_every_steps} steps" if config else ""
        raise InputError(f"{path}: nothing logged in {METRICS} yet{every}. Try again after some steps")
    return RecordedRun(
        path, path.resolve().name, config, metrics, unread, _steps_per_epoch(path), environment, _results(path)
    )


_PATHS = ("root", "list_file", "train", "val")  # settings that are paths of files or folders to read
M = TypeVar("M", bound=BaseModel)


def located(section: M, folder: str) -> M:
    """A config whose relative paths are looked for in the folder where its run was started.

    A path that is not there stays as it is: the run may have been moved together with its images.
    """
    changes: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            changes[name] = located(value, folder)
        elif name in _PATHS and isinstance(value, str) and os.path.exists(os.path.join(folder, value)):
            changes[name] = os.path.join(folder, value)
    return section.model_copy(update=changes)


def _read_metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    if not path.is_file():
        return [], 0
    rows: dict[tuple[float, tuple[str, ...]], dict[str, Any]] = {}
    unread = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = parse_json(line)
        except ValueError:
            unread += bool(line.strip())
            continue
        if isinstance(row, dict) and _is_number(row.get("step")):
            rows[row["step"], tuple(row)] = row  # a step that was written twice counts once
        else:
            unread += 1
    return sorted(rows.values(), key=lambda row: row["step"]), unread


def _steps_per_epoch(path: Path) -> int | None:
    """From a checkpoint's state, or from its name `epoch_0010` and its step."""
    for file in sorted(path.glob("checkpoints/*/state.json")):
        state = _read_object(file)
        value = state.get("steps_per_epoch")
        word, _, number = file.parent.name.partition("_")
        if value is None and word == "epoch" and number.isdigit() and int(number) and _is_number(state.get("step")):
            value, rest = divmod(state["step"], int(number))
            value = None if rest else value
        if isinstance(value, int) and value > 0:
            return value
    return None


def _results(path: Path) -> dict[str, dict[str, Any]]:
    """Every JSON file in the folder except environment.json: results of evaluations."""
    files = [file for file in sorted(path.glob("*.json")) if file.name != ENVIRONMENT]
    return {file.name: content for file in files if (content := _read_object(file))}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST


def read_result(path: Path) -> dict[str, Any]:
    """The object in a JSON file of results. Raises InputError."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; pass the JSON of an evaluation")
    content = _read_object(path)
    if not content:
        raise InputError(f"{path}: expected a JSON object of results")
    return content


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """(N,) → (N,): the mean over `window` neighbors, fewer at both ends."""
    if window <= 1 or len(values) < 3:
        return values
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    half = window // 2
    first, last = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def config_and_run(path: Path) -> tuple[Config, RecordedRun | None]:
    """The experiment that a config file or a run folder describes. Raises InputError."""
    path = Path(path)
    if path.is_dir():
        run = read_run(path, need_metrics=False)
        if run.config is None:
            raise InputError(f"{path}: this run folder has no {CONFIG}")
        return run.config, run
    return load_config(path), None
