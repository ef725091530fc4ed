"""The process group: joining the other processes, watching that they stay alive, and leaving them."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator

import numpy as np
import paddle
import paddle.distributed

from passl_densecl.distributed import collectives
from passl_densecl.distributed.collectives import any_process, barrier, gather_rows, is_main, rank, world_size
from passl_densecl.distributed.hang import HangWatch
from passl_densecl.distributed.peers import CONTINUE, LEAVE_WITHIN, Peers, accept_all, connect
from passl_densecl.errors import RunError
from passl_densecl.tensors import to_tensor

START_WITHIN = 600.0  # seconds for the first process to start; Paddle makes it wait 900 for the others


def start(limit: float = 60) -> None:
    """Join the other processes (NCCL on GPUs, gloo on CPUs) and watch that they stay alive. A single process: nothing.

    A process that dies, or sends no heartbeat for `limit` seconds, ends the others: with a RunError, with exit code 3
    where they hang in native code, and by SIGKILL where that native code holds Python's lock.
    """
    if world_size() > 1 and not paddle.distributed.is_initialized():
        _wait_for_first()
        # Paddle prints its flags, which nobody asked for.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), _interruptible():
            try:
                paddle.distributed.init_parallel_env()
            except (RuntimeError, SystemError) as error:  # after 900 s, or when one ends meanwhile
                why = str(error).strip().rpartition("\n")[2][:200]
                raise RunError(f"the {world_size()} processes could not connect: {why}") from error
        _watch(limit)


def stop() -> None:
    """Leave the group, after all processes have called this."""
    if world_size() > 1 and paddle.distributed.is_initialized():
        barrier()
        _leave()
        paddle.distributed.destroy_process_group()


@contextlib.contextmanager
def running(limit: float) -> Iterator[None]:
    """From `start` to `stop`. Errors are announced to the others; one caused by the end of another names it."""
    start(limit)
    try:
        yield
    except Exception as error:
        # A collective raises whatever its library does (RuntimeError, mostly), perhaps before the connection breaks.
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


def _wait_for_first() -> None:
    """Wait until the first process listens. Paddle would wait forever, in native code that nothing interrupts."""
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
                    f"{START_WITHIN:.0f} s: it has ended (its own output says why), or the network is broken. "
                    "Start all processes again, with --resume auto"
                ) from None
            time.sleep(0.2)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Within it SIGTERM, SIGINT and SIGHUP end the process at once: Paddle waits in native code."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopping = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    numbers = [one for one in stopping if signal.getsignal(one) is not signal.SIG_IGN]  # nohup ignores SIGHUP
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(limit: float) -> None:
    """Connect with the first process; where that is impossible, warn and continue without watching."""
    seconds = min(limit, 30.0)
    server = socket.create_server(("", 0), backlog=1024) if is_main() else None
    address = np.asarray([[server.getsockname()[1] if server else 0, *os.urandom(16)]], "int64")
    port, *values = gather_rows(to_tensor(address)).numpy()[0].tolist()
    secret = bytes(values)  # of the first process; the others must send it
    if server is not None:
        connections = accept_all(server, secret, world_size(), seconds)
    else:
        first = os.environ.get("PADDLE_TRAINER_ENDPOINTS", os.environ.get("PADDLE_MASTER", "")).split(",")[0]
        host = first.rpartition(":")[0] or "127.0.0.1"
        connection = connect(host, port, secret, rank(), seconds)
        connections = [(connection, f"process 0 of {world_size()} (host {host})")] if connection else []
    if any_process(len(connections) < (world_size() - 1 if is_main() else 1)):
        for connection, _ in connections:
            connection.close()
        warnings.warn(
            f"processes cannot reach port {port} of the first one: one that dies may not be noticed", stacklevel=3
        )
        return
    hang_watch = HangWatch(connections, limit=limit + LEAVE_WITHIN, advice=CONTINUE)
    collectives.peers = Peers(connections, main=is_main(), limit=limit, hang_watch=hang_watch)


def _leave(error: BaseException | None = None) -> None:
    if collectives.peers is not None:
        collectives.peers.leave(error)
        collectives.peers = None
