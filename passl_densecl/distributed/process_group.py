"""The process group: joining the other processes, watching that they stay alive, and leaving them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator

import numpy as np
import paddle
import paddle.distributed

from passl_densecl.distributed import collectives
from passl_densecl.distributed import peers as peer_lines
from passl_densecl.distributed.collectives import any_process, barrier, gather_rows, is_main, rank, world_size
from passl_densecl.errors import RunError
from passl_densecl.tensors import to_tensor

START_WITHIN = 600.0  # seconds that the first process may take to come; it waits for the others for 900 (Paddle)


def start(limit: float = 60) -> None:
    """Join the other processes (NCCL on GPUs, gloo on CPUs), and watch that they stay. Alone: nothing.

    A process that dies, or gives no sign of life for `limit` seconds, ends the others: with a RunError, or with exit code 3
    where they hang in something that cannot be interrupted.
    """
    if world_size() > 1 and not paddle.distributed.is_initialized():
        _wait_for_first()
        # Paddle prints its flags; a run's log has moved sys.stdout away.
        with contextlib.redirect_stdout(sys.__stdout__), _mortal():
            try:
                paddle.distributed.init_parallel_env()
            except (RuntimeError, SystemError) as error:  # after 900 s, or when one ends meanwhile
                raise RunError(f"the {world_size()} processes have not come together: {_short(error)}") from error
        _watch(limit)


def stop() -> None:
    """Leave the other processes, after all have come here."""
    if world_size() > 1 and paddle.distributed.is_initialized():
        barrier()
        _leave()
        paddle.distributed.destroy_process_group()


@contextlib.contextmanager
def session(limit: float) -> Iterator[None]:
    """From `start` to `stop`. An error here is told to the others; one that another process's end caused names that end."""
    start(limit)
    try:
        yield
    except Exception as error:
        # A collective throws whatever its library does (RuntimeError, mostly), and may do so before the line breaks.
        foreign = isinstance(error, (RuntimeError, OSError, SystemError)) and not isinstance(error, RunError)
        lost = collectives.peers.lost_within(3) if collectives.peers and foreign else None
        _leave(error)
        if lost:
            raise RunError(lost) from error
        if foreign and "gloo" in str(error) and "TIMEOUT" in str(error):
            raise RunError(
                "another process was more than 30 s late for a collective operation on CPUs, though it is alive: it is "
                "too slow, or waits for its disk. Whole checkpoints stay whole; continue with --resume auto"
            ) from error
        raise
    stop()


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][:200] if str(error).strip() else type(error).__name__


def _wait_for_first() -> None:
    """Until the first process listens. Paddle itself would wait for ever, and in native code that nothing interrupts."""
    host, _, port = os.environ.get("PADDLE_MASTER", "").rpartition(":")
    deadline = time.monotonic() + START_WITHIN
    while host and not is_main():
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise RunError(
                    f"process 0 of {world_size()} cannot be reached at {host}:{port} ({error.strerror or error}) for "
                    f"{START_WITHIN:.0f} s: it has ended (its own output says why), or the network is not as it should be. "
                    "Start all processes again, with --resume auto"
                ) from None
            time.sleep(0.2)


@contextlib.contextmanager
def _mortal() -> Iterator[None]:
    """Within it SIGTERM and SIGINT end the process at once: Paddle waits for the others without letting Python obey."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(limit: float) -> None:
    """Connect with the first process; without a watch, and with a warning, where that is not possible."""
    seconds = min(limit, 30.0)
    server, port, secret = peer_lines.invite() if is_main() else (None, 0, bytes(16))
    told = np.asarray([port, *secret], "int64")
    port, *letters = (int(value) for value in gather_rows(to_tensor(told[None])).numpy()[0])
    if server is not None:
        lines, names = peer_lines.receive(server, secret, set(range(1, world_size())), world_size(), seconds)
    else:
        first = os.environ.get("PADDLE_TRAINER_ENDPOINTS", os.environ.get("PADDLE_MASTER", "")).split(",")[0]
        host = first.rpartition(":")[0] or "127.0.0.1"
        line = peer_lines.call(host, port, bytes(letters), rank(), seconds)
        lines, names = {0: line} if line else {}, {0: f"process 0 of {world_size()} (host {host})"}
    if any_process(len(lines) < (world_size() - 1 if is_main() else 1)):
        for line in lines.values():
            line.close()
        warnings.warn(
            f"processes cannot reach port {port} of the first one: one that dies may not be noticed", stacklevel=3
        )
        return
    collectives.peers = peer_lines.Peers(lines, names, main=is_main(), limit=limit)


def _leave(error: BaseException | None = None) -> None:
    if collectives.peers is not None:
        collectives.peers.leave(error)
        collectives.peers = None
