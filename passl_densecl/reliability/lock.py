"""One run in one output folder: a lock that the operating system drops when the process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from passl_densecl.disk import make_writable
from passl_densecl.distributed import collectives as dist
from passl_densecl.errors import InputError

NAME = ".lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[str | None]:
    """The run folder, made if need be, for this process alone. Does nothing in a process that is not the main one.

    Yields a warning where the file system has no locks. A POSIX record lock, not flock: data workers, which are forked
    and may outlive a killed run by a moment, do not inherit it, and over NFS it holds between hosts. Raises InputError
    naming the process that holds it.
    """
    if not dist.is_main():
        yield None
        return
    made_parent = not run_dir.parent.exists()
    make_writable(run_dir, "output_dir")
    with open(run_dir / NAME, "a+b", buffering=0) as file:  # closing it gives the lock back
        warning = _acquire(file.fileno(), run_dir)
        try:
            yield warning
        finally:
            _leave_no_trace(run_dir, made_parent)


def _leave_no_trace(run_dir: Path, made_parent: bool) -> None:
    """Of a run that was refused before it began, nothing stays; in the folder of a run nothing is touched."""
    with contextlib.suppress(OSError):  # not empty
        if not (run_dir / "config.yaml").exists():
            with contextlib.suppress(FileNotFoundError):
                (run_dir / "checkpoints").rmdir()
            if {entry.name for entry in run_dir.iterdir()} <= {NAME, "log"}:  # log: of the launcher, which removes it
                (run_dir / NAME).unlink()
                run_dir.rmdir()
            if made_parent:
                run_dir.parent.rmdir()


def _acquire(file: int, run_dir: Path) -> str | None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return f"no file locks under {run_dir} ({error.strerror}): make sure that no second run uses this folder"
        raise InputError(
            f"output_dir {str(run_dir)!r} is in use by {_holder(file)}; wait for it, stop it, or start another run "
            "with -o name=NAME"
        ) from None
    own = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    os.truncate(file, 0)
    os.write(file, json.dumps(own).encode())
    return None


def _holder(file: int) -> str:
    try:
        holder = json.loads(os.pread(file, 4096, 0))
        return f"a running process {holder['pid']} on {holder['host']}, since {holder['started']}"
    except (ValueError, KeyError, TypeError):  # it has the lock and has not written yet
        return "a run that is starting"
