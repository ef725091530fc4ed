"""Joining the other processes: Paddle's group, and a connection of each to the first."""

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

from passl_densecl.distributed.collectives import any_process, gather_rows, is_main, rank, world_size
from passl_densecl.distributed.hang import HangWatch
from passl_densecl.distributed.peers import CONTINUE, LEAVE_WITHIN, Peers
from passl_densecl.errors import RunError
from passl_densecl.tensors import to_tensor

START_WITHIN = 600.0  # seconds for the first process to start; Paddle makes it wait 900 for the others


def join(limit: float) -> Peers | None:
    """Join the other processes; returns the watched connections, or None where they are impossible.

    Raises RunError when they cannot be reached.
    """
    _wait_for_first()
    # Paddle prints its flags, which nobody asked for.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), _interruptible():
        try:
            paddle.distributed.init_parallel_env()
        except (RuntimeError, SystemError) as error:  # after 900 s, or when one ends meanwhile
            why = str(error).strip().rpartition("\n")[2][:200]
            raise RunError(f"the {world_size()} processes could not connect: {why}") from error
    return _watch(limit)


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


def _watch(limit: float) -> Peers | None:
    """The connections with the first process; where they are impossible, warn and continue without watching."""
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
            f"processes cannot reach port {port} of the first one: one that dies may not be noticed", stacklevel=4
        )
        return None
    hang_watch = HangWatch(connections, limit=limit + LEAVE_WITHIN, advice=CONTINUE)
    return Peers(connections, main=is_main(), limit=limit, hang_watch=hang_watch)


def accept_all(server: socket.socket, secret: bytes, size: int, seconds: float) -> list[tuple[socket.socket, str]]:
    """For the first of `size` processes: the others that connect in time, with names; strangers are refused."""
    connections: dict[int, tuple[socket.socket, str]] = {}
    deadline = time.monotonic() + seconds
    with server:
        while len(connections) < size - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                client, _ = server.accept()
                client.settimeout(5)
                hello = b""
                while not hello.endswith(b"\n") and len(hello) < 1000 and (more := client.recv(1000)):
                    hello += more
                key, rank, host, pid = hello.decode("ascii").split()
                if key != secret.hex() or int(rank) not in set(range(1, size)) - set(connections):
                    raise ValueError
            except (OSError, ValueError):  # UnicodeDecodeError is one
                continue
            connections[int(rank)] = client, f"process {rank} of {size} (host {host}, pid {pid})"
    return list(connections.values())


def connect(host: str, port: int, secret: bytes, rank: int, seconds: float) -> socket.socket | None:
    """For the others: the socket to the first process, or None when it cannot be reached."""
    try:
        connection = socket.create_connection((host, port), timeout=seconds)
        own = "_".join(socket.gethostname().split()) or "?"
        connection.sendall(f"{secret.hex()} {rank} {own.encode('ascii', 'replace').decode()} {os.getpid()}\n".encode())
    except OSError:
        return None
    return connection
