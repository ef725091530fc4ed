"""Checkpoints read again, every byte compared with the checksums: what a run that is resumed continues from."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from passl_densecl.errors import InputError, option
from passl_densecl.reliability.checkpoint import Checkpoint, Checkpoints, complete, lacks, raise_refusal, read_state
from passl_densecl.weights.checkpoints import DAMAGED, FILES, MODEL, OPTIMIZER, checkpoints_in
from passl_densecl.weights.files import check_content, read_arrays


def find(run_dir: Path, checkpoints: Checkpoints, resume: str) -> Checkpoint | None:
    """The checkpoint that `resume` names; of "auto" the newest of the run, None when it has none yet.

    Raises InputError as :func:`read` does, or when the checkpoint is another run's and the folder holds one already.
    """
    if resume == "auto":
        return read_newest(checkpoints.folder)
    found = read(Path(resume))
    named = found.path.resolve().parent.parent  # RUN/checkpoints/NAME
    if checkpoints.present() and named != run_dir.resolve():
        raise InputError(
            f"{option('resume', resume)} belongs to the run in {str(named)!r}, but output_dir and name say "
            f"{str(run_dir)!r}, which holds another run; set name=NAME for a new folder, or give no config to "
            "continue in the checkpoint's own"
        )
    return found


def read(path: Path) -> Checkpoint:
    """Read a checkpoint folder, or the newest one in a run folder that is whole.

    Raises:
        InputError: nothing there, or damaged; names the file, what was expected, and the newest one that is whole.
    """
    if not path.exists():
        raise InputError(f"checkpoint {str(path)!r}: no such folder")
    if path.is_file():
        path = path.parent
    folder = path if path.name == "checkpoints" else path / "checkpoints"
    if folder.is_dir():
        newest = read_newest(folder)
        if newest is None:
            raise InputError(f"run folder {str(path)!r} holds no checkpoint")
        return newest
    try:
        return _read(path)
    except InputError as error:
        raise_refusal(error)
        raise InputError(f"checkpoint {str(path)!r}: {error}; {_advice(path)}") from None


def read_newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint in a folder that is whole and undamaged; None when there is none at all.

    Raises:
        InputError: there are checkpoints, and all are damaged; or one cannot be read for want of permission.
    """
    damaged = [(path, why) for path in checkpoints_in(folder) if (why := lacks(path))]
    for path in reversed(complete(folder)):
        try:
            return replace(_read(path), damaged=tuple(damaged))
        except InputError as error:
            raise_refusal(error)
            damaged.append((path, str(error)))
    if damaged:
        reasons = "".join(f"\n  {path.name}  {why}" for path, why in damaged)
        raise InputError(
            f"{folder}: none of the {len(damaged)} checkpoints is whole, and a run is not silently started "
            f"again:{reasons}\nrestore one from a copy, or start another run with -o name=NAME"
        )
    return None


def report_start(start: Checkpoint, checkpoints: Checkpoints) -> None:
    """Log which damaged checkpoints were skipped, and set those of this run aside; the main process does, when all have
    read.
    """
    log = checkpoints.log
    if not start.verified:
        log.line(
            "note", f"{start.path} was written by an older version, without checksums: damage to it may go unnoticed"
        )
    for path, why in start.damaged:
        kept = ""
        if path.parent == checkpoints.folder:
            try:
                kept = f" and kept as {checkpoints.set_aside(path, DAMAGED).name}; delete it at will"
            except OSError as error:
                kept = f"; it cannot be renamed ({error.strerror})"
        log.line("warning", f"{why}; checkpoint {path.name} is skipped{kept}")


def _read(path: Path) -> Checkpoint:
    """One folder, every byte of it compared with the checksums. Raises InputError naming the file."""
    if why := lacks(path):
        raise InputError(why)
    for part in FILES:
        check_content(path / part)
    found = read_state(path)
    step = found.pop("step")
    verified = found.pop("checksums", None) is not None
    model, optimizer = (read_arrays(path / part, checked=True) for part in (MODEL, OPTIMIZER))
    return Checkpoint(path, step, model, optimizer, found, verified)


def _advice(path: Path) -> str:
    """Which checkpoint beside a damaged one to take."""
    with contextlib.suppress(InputError):
        if found := read_newest(path.parent):
            return f"the newest one that is whole is {found.path}: --resume {found.path}, or --resume auto"
    return "choose another checkpoint of the run: beside it there is no whole one"
