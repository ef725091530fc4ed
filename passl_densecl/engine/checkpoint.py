"""Checkpoints: written whole or not at all, the newest kept, found again.

`checkpoints/epoch_0010/` (or `step_00001234/` within an epoch) holds `model.pdparams`, `optimizer.pdopt` and `state.json`.
It is written under a temporary name, synced and renamed, so a folder without `.tmp` in its name is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from passl_densecl.disk import sync_folder, whole_file
from passl_densecl.errors import InputError
from passl_densecl.weights import Card, read_arrays, write_pickle
from passl_densecl.weights.card import OPTIMIZER as OPTIMIZER_STATE

MODEL, OPTIMIZER, STATE = "model.pdparams", "optimizer.pdopt", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint as read: arrays by structured name, and what else the run must know."""

    path: Path
    step: int  # optimiser steps taken
    model: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run folder; only the main process writes."""

    def __init__(self, run_dir: Path, keep: int) -> None:
        self.folder = run_dir / "checkpoints"
        self.keep = keep

    def save(
        self, name: str, step: int, model: Mapping[str, paddle.Tensor | np.ndarray],
        optimizer: Mapping[str, np.ndarray], state: Mapping[str, Any], *, card: Card, keep_also: str | None = None,
    ) -> Path:  # fmt: skip
        """Write one, then drop the oldest beyond `keep`; `keep_also` names one that stays whatever its age.

        `card` says what the model is, and travels with its file and the optimiser's.
        """
        final, temporary = self.folder / name, self.folder / f".{name}.tmp"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._clean()
        temporary.mkdir()
        write_pickle(temporary / MODEL, {key: np.asarray(value) for key, value in model.items()}, card=card)
        write_pickle(temporary / OPTIMIZER, dict(optimizer), card=card.replace(kind=OPTIMIZER_STATE))
        with whole_file(temporary / STATE) as file:
            file.write(json.dumps({"step": step, **state}, indent=1).encode())
        sync_folder(temporary)
        if final.exists():  # the same step again, after a resume from an older checkpoint
            self._remove(final)
        os.replace(temporary, final)
        sync_folder(self.folder)
        self._prune(keep_also)
        return final

    def tidy(self, keep_also: str | None = None) -> None:
        """Do what a run did not come to when it was killed in `save`."""
        self._clean()
        self._prune(keep_also)

    def set_aside(self, step: int) -> Path | None:
        """Move those of later steps, which a run that goes on from `step` has given up, to a folder; it, or None.

        Left where they are, they would count as the newest: `keep` would drop the run's own, and a resume take them.
        """
        later = [path for path in complete(self.folder) if _step(path) > step]
        if not later:
            return None
        aside = self.folder / f"set_aside_{time.strftime('%Y%m%d-%H%M%S')}"
        aside.mkdir(exist_ok=True)
        for path in reversed(later):
            os.replace(path, aside / path.name)
        sync_folder(self.folder)
        return aside

    def clear(self) -> None:
        """Remove all of them in one instant; killed after it, what remains on the disk goes with the next save."""
        self._clean()
        if self.folder.is_dir():
            os.replace(self.folder, self.folder.with_name(f".{self.folder.name}.tmp"))
            self._clean()

    def _clean(self) -> None:
        for leftover in [*self.folder.glob(".*.tmp"), *self.folder.parent.glob(f".{self.folder.name}.tmp")]:
            shutil.rmtree(leftover)

    def _prune(self, keep_also: str | None) -> None:
        for old in complete(self.folder)[: -self.keep]:
            if old.name != keep_also:
                self._remove(old)

    def _remove(self, old: Path) -> None:
        """Drop one; killed half-way, what remains is under a temporary name and goes with the next save."""
        doomed = old.with_name(f".{old.name}.old.tmp")
        os.replace(old, doomed)
        shutil.rmtree(doomed)

    def newest(self) -> Path | None:
        """The complete checkpoint of the latest step, or None."""
        found = complete(self.folder)
        return found[-1] if found else None


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest step first."""
    steps = []
    for path in folder.glob("*"):
        if path.name.startswith(".") or not (path / MODEL).is_file() or not (path / STATE).is_file():
            continue
        try:
            steps.append((_step(path), path))
        except (ValueError, KeyError, TypeError, OSError):
            continue
    return [path for _, path in sorted(steps)]


def _step(path: Path) -> int:
    return int(json.loads((path / STATE).read_text(encoding="utf-8"))["step"])


def read(path: Path) -> Checkpoint:
    """Read a checkpoint folder, or the newest in a run folder. Raises InputError saying what is missing or broken."""
    if not path.exists():
        raise InputError(f"checkpoint {str(path)!r}: no such folder")
    if path.is_file():
        path = path.parent
    if (path / "checkpoints").is_dir():
        found = complete(path / "checkpoints")
        if not found:
            raise InputError(f"run folder {str(path)!r} holds no complete checkpoint")
        path = found[-1]
    for part in (MODEL, OPTIMIZER, STATE):
        if not (path / part).is_file():
            raise InputError(f"checkpoint {str(path)!r}: {part} is missing; choose another checkpoint of the run")
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        step = int(state.pop("step"))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"checkpoint {str(path)!r}: {STATE} cannot be read ({error})") from None
    return Checkpoint(path, step, read_arrays(path / MODEL), read_arrays(path / OPTIMIZER), state)
