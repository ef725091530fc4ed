"""Checkpoints: written whole or not at all, the newest kept, and recognized when they are damaged.

`checkpoints/epoch_0010/` (or `step_00001234/` within an epoch) holds `model.pdparams`, `optimizer.pdopt`, `state.json`
and `checksums.json`. It is written under a temporary name, synced and renamed, so a folder without `.tmp` in its name
is complete; only then an older one is removed. Checksums show later damage.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from passl_densecl.disk import HashedFile, check_format, parse_json, sync_folder
from passl_densecl.distributed import collectives as dist
from passl_densecl.errors import InputError, NewerFormat, RunError
from passl_densecl.reliability.log import SilentLog
from passl_densecl.text import megabytes
from passl_densecl.weights.card import OPTIMIZER as OPTIMIZER_STATE
from passl_densecl.weights.card import Card
from passl_densecl.weights.checkpoints import (
    CHECKSUMS,
    FILES,
    MODEL,
    OPTIMIZER,
    REPLACED,
    STATE,
    SUPERSEDED,
    by_age,
    check_size,
    checkpoints_in,
    checksum_text,
    checksums,
    recorded_step,
)
from passl_densecl.weights.pickle_writing import dump_pickle

FORMAT = 1  # of state.json; a checkpoint with a larger number is refused
TOLERATED = 2  # failed writes in a row that do not stop a run


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint as read: arrays by structured name, and what else the run must know."""

    path: Path
    step: int  # optimizer steps taken
    model: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]
    state: dict[str, Any]
    verified: bool = True  # compared with its checksums; False where an older version wrote none
    damaged: tuple[tuple[Path, str], ...] = ()  # newer ones that were skipped, and why


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint is written from."""

    step: int  # optimizer steps taken
    model: Mapping[str, paddle.Tensor | np.ndarray]
    optimizer: Mapping[str, np.ndarray]
    state: Mapping[str, Any]
    card: Card  # what the model is; travels with its file and the optimizer's


class Checkpoints:
    """The checkpoints of one run folder; only the main process writes."""

    def __init__(self, run_dir: Path, keep: int, log: SilentLog | None = None) -> None:
        self.folder = run_dir / "checkpoints"
        self.keep = keep
        self.log = log or SilentLog()
        self._failures = 0  # in a row

    def save(self, name: str, snapshot: Snapshot, *, keep_also: str | None = None, must: bool = False) -> Path | None:
        """Write one, then remove the oldest beyond `keep`; `keep_also` names one that stays whatever its age.

        When the disk refuses, what is half written is removed, a warning is logged and None is returned: the run may
        continue, and the checkpoints before stay.

        Raises:
            RunError: the disk refused, and it was one that `must` be written, or the third in a row.
        """
        self.log.sync()  # what was logged until here is on the disk before the checkpoint is
        arrays = {key: np.asarray(value) for key, value in snapshot.model.items()}
        try:
            final = self._write(name, arrays, snapshot)
        except OSError as error:
            self._failures += 1
            size = sum(array.nbytes for array in (*arrays.values(), *snapshot.optimizer.values()))
            message = (
                f"checkpoint {self.folder / name} cannot be written: {error.strerror or error} (it needs "
                f"{megabytes(size)}{self._free()}; {self._failures} failed in a row); {self._kept()}"
            )
            if must or self._failures > TOLERATED:
                raise RunError(f"{message}. Make room there, then continue with --resume auto") from error
            self.log.line("warning", f"{message}; training continues, and the run stops at {TOLERATED + 1} in a row")
            return None
        self._failures = 0
        try:
            self.tidy(snapshot.step, keep_also, name)
        except (OSError, InputError) as error:
            self.log.line("warning", f"an old checkpoint cannot be removed: {error}; {final} is saved")
        return final

    def newest(self) -> Path | None:
        """The whole checkpoint of the latest step, or None."""
        found = complete(self.folder)
        return found[-1] if found else None

    def present(self) -> list[Path]:
        """All checkpoints, whole or not."""
        return checkpoints_in(self.folder)

    def set_aside(self, old: Path, suffix: str) -> Path:
        """Rename one so that it is ignored from now on, and nothing overwrites it. Raises OSError."""
        names = (f"{old.name}{suffix}{number}" for number in chain([""], (f".{n}" for n in count(2))))
        aside = next(path for path in map(old.with_name, names) if not path.exists())
        os.replace(old, aside)
        sync_folder(self.folder)
        return aside

    def tidy(self, step: int, *keep_also: str | None) -> None:
        """Leave what a run that continues from `step` would have: what a kill during `save` interrupted is finished,
        the oldest beyond `keep` are removed; `keep_also` names some that stay whatever their age.

        Those of later steps, which the run has abandoned, are set aside. Otherwise they would count as the newest:
        `keep` would remove the run's own, and a resume would take them.
        """
        self._prepare()
        for later in [path for path in complete(self.folder) if (recorded_step(path) or 0) > step]:
            aside = self.set_aside(later, SUPERSEDED)
            self.log.line(
                "note",
                f"{later} is of a later step than this run has reached; it is {aside.name} now, delete it at will",
            )
        for old in complete(self.folder)[: -self.keep]:
            if old.name not in keep_also:
                self._remove(old)

    def clear(self) -> None:
        """Remove all at once; if killed afterwards, the rest is removed by the next save."""
        self._prepare()
        os.replace(self.folder, self.folder.with_name(f".{self.folder.name}.tmp"))
        self._prepare()

    def check_room(self, size: int, *, also: int = 0) -> None:
        """Warn when the disk has no room for `keep` checkpoints of `size` bytes, `also` more, and the one being
        written.
        """
        if not dist.is_main():
            return
        missing = max(self.keep + also + 1 - len(complete(self.folder)), 1)
        free = shutil.disk_usage(self.folder).free
        if free < missing * size:
            self.log.line(
                "warning",
                f"{self.folder} has {megabytes(free)} free, but checkpoint.keep {self.keep} needs "
                f"{megabytes(missing * size)} ({missing} × {megabytes(size)}, the one being written included); make "
                "room, or set a smaller checkpoint.keep or another output_dir",
            )

    def _write(self, name: str, model: Mapping[str, np.ndarray], snapshot: Snapshot) -> Path:
        """The checkpoint under its name, on the disk. Raises OSError; the checkpoints before are as they were."""
        final, temporary = self.folder / name, self.folder / f".{name}.tmp"
        self._prepare()
        temporary.mkdir()
        card, state = snapshot.card, {"format": FORMAT, "step": snapshot.step, **snapshot.state, "checksums": CHECKSUMS}
        try:
            with HashedFile(temporary / MODEL) as model_file:
                dump_pickle(model_file, model, card=card)
            with HashedFile(temporary / OPTIMIZER) as optimizer_file:
                dump_pickle(optimizer_file, dict(snapshot.optimizer), card=card.replace(kind=OPTIMIZER_STATE))
            with HashedFile(temporary / STATE) as state_file:
                state_file.write(json.dumps(state, indent=1).encode())
            files = dict(zip(FILES, (model_file, optimizer_file, state_file), strict=True))
            with HashedFile(temporary / CHECKSUMS) as file:
                file.write(checksum_text({part: (one.size, one.sha256) for part, one in files.items()}))
            sync_folder(temporary)
            if final.exists():  # the same step again: the old one has another name until the new one is there
                os.replace(final, final.with_name(name + REPLACED))
            os.replace(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)  # the disk may be full of it
            raise
        sync_folder(self.folder)
        return final

    def _prepare(self) -> None:
        """The folder is there, without leftovers of writing that was cut short."""
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
            for made in (self.folder.parent, self.folder.parent.parent):
                sync_folder(made)
        for leftover in [*self.folder.glob(".*.tmp"), *self.folder.parent.glob(f".{self.folder.name}.tmp")]:
            shutil.rmtree(leftover)
        for replaced in self.folder.glob(f"*{REPLACED}"):
            plain = replaced.with_name(replaced.name.removesuffix(REPLACED))
            if plain.exists():
                self._remove(replaced)
            else:
                os.replace(replaced, plain)

    def _remove(self, old: Path) -> None:
        """Remove one; if killed half-way, the rest has a temporary name and is removed by the next save."""
        doomed = old.with_name(f".{old.name}.old.tmp")
        os.replace(old, doomed)
        shutil.rmtree(doomed)

    def _free(self) -> str:
        try:
            return f", {megabytes(shutil.disk_usage(self.folder).free)} free"
        except OSError:
            return ""

    def _kept(self) -> str:
        try:
            newest = self.newest()
        except InputError as error:
            return str(error)
        return f"{newest} (step {recorded_step(newest):,}) is kept" if newest else "none was written before"


def complete(folder: Path) -> list[Path]:
    """The checkpoints in a folder that lack nothing, oldest step first: all files, of the sizes that were written."""
    return by_age(path for path in checkpoints_in(folder) if lacks(path) is None)


def bytes_of(model: paddle.nn.Layer) -> int:
    """About how many bytes a checkpoint has: every tensor of the model, and SGD's velocity of every trained one."""
    saved = [*model.state_dict().values(), *(each for each in model.parameters() if not each.stop_gradient)]
    return sum(int(np.prod(tensor.shape)) * tensor.element_size() for tensor in saved)


def lacks(path: Path) -> str | None:
    """What can be seen to be wrong with a checkpoint without reading its arrays."""
    try:
        for part in FILES:
            check_size(path / part)
        if "checksums" in read_state(path) and checksums(path) is None:
            return f"{path / CHECKSUMS} is missing"
    except InputError as error:
        raise_refusal(error)
        return str(error)
    return None


def raise_refusal(error: InputError) -> None:
    """Raise it again unless it says damage: to go on from an older checkpoint because the newest may not be read, or is
    of a newer version, would be wrong.
    """
    if isinstance(error, NewerFormat) or isinstance(error.__cause__, PermissionError):
        raise error


def read_state(path: Path) -> dict[str, Any]:
    """What a checkpoint's state.json says. Raises InputError."""
    try:
        state = parse_json((path / STATE).read_text(encoding="utf-8"))
        if type(state["step"]) is not int or not 0 <= state["step"] < 2**53:
            raise ValueError(f"step: {state['step']!r:.100}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path / STATE} is damaged ({type(error).__name__}: {error!s:.100})") from error
    check_format(str(path / STATE), state.pop("format", 1), FORMAT)
    return state
