"""Is every other process still there? A line between each of them and the first, on which all give signs of life.

A process that dies is noticed at once, because its connection breaks; one that hangs, or whose host or network is gone, when
it has been silent for too long. Signs of life come from a thread of their own, so a process that computes, evaluates or
writes for an hour is not silent. Without this, the others would wait in a collective: gloo (CPUs) gives up when any one of
them is 30 seconds late, dead or only slow, and nothing sets that time (PADDLE_PG_TIMEOUT, in milliseconds, 30 minutes
unless set, is NCCL's alone). So the line also serves to wait for each other without a limit, before gloo is asked.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from passl_densecl.errors import RunError

LEAVE_WITHIN = 10.0  # seconds that the main thread has to end by itself when another process is lost
_CONTINUE = "Whole checkpoints stay whole; continue with --resume auto when every process can be started again"


@dataclass
class _Line:
    """The connection to one other process."""

    socket: socket.socket
    name: str  # process 1 of 2 (host a, pid 42)
    heard: float = field(default_factory=time.monotonic)
    arrived: int = 0  # the last meeting it has come to, or has opened for us
    rest: bytes = b""  # of a message that has not come whole
    left: bool = False  # it has said goodbye


class Peers:
    """The lines of one process: the first has one to every other, the others one to the first.

    Messages are short lines of text: `.` a sign of life, `at N` and `go N` of a meeting, `bye`, `lost WHY`.
    """

    def __init__(
        self,
        lines: dict[int, socket.socket],
        names: dict[int, str],
        *,
        main: bool,
        limit: float,
        exit_with: Callable[[int], object] = os._exit,
    ) -> None:
        """Starts the thread.

        Args:
            lines: connected sockets by rank.
            names: what to call their processes in a message.
            main: whether this is the first process.
            limit: seconds of silence after which a process counts as lost.
        """
        self._lines = {rank: _Line(line, names[rank]) for rank, line in lines.items()}
        self._main, self._limit, self._exit = main, limit, exit_with
        self._changed = threading.Condition()
        self._uninterrupted = threading.Lock()
        self._meeting = 0
        self._closed = False
        self.lost: str | None = None  # the sentence about the first process that was lost
        self._wake, self._wakes = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakes, selectors.EVENT_READ, None)
        for line in self._lines.values():
            line.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line.socket.settimeout(limit)  # for sending: a full buffer means that nobody has read for long
            self._selector.register(line.socket, selectors.EVENT_READ, line)
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def wait_for_all(self) -> None:
        """Wait until every process has come here, however long it takes. Raises RunError when one is lost."""
        self._meeting += 1
        if not self._main:
            self._tell(f"at {self._meeting}")
        with self._changed:
            while not self.lost and any(line.arrived < self._meeting for line in self._lines.values()):
                self._changed.wait()
        if self.lost:
            raise RunError(self.lost)
        if self._main:
            self._tell(f"go {self._meeting}")

    @contextlib.contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Within it, this process is not ended because of another: it is writing what that one has helped to make."""
        with self._uninterrupted:
            yield

    def leave(self, error: BaseException | None = None) -> None:
        """Say that this process ends, and why when it is an error; end the thread."""
        reason = (str(error) or type(error).__name__).splitlines()[0] if error else ""
        if not self.lost:
            self._tell(f"lost an error: {reason}" if error else "bye")
        self._closed = True
        self._wake.close()  # the thread awakes
        self._thread.join(5)
        for line in self._lines.values():
            line.socket.close()
        self._selector.close()
        self._wakes.close()

    def lost_within(self, seconds: float) -> str | None:
        """The sentence about a lost process, if it comes up soon: a collective may notice before the thread does."""
        with self._changed:
            self._changed.wait_for(lambda: self.lost is not None, seconds)
        return self.lost

    def _tell(self, message: str) -> None:
        for line in self._lines.values():
            with contextlib.suppress(OSError):  # it is found out where the answer is missing
                line.socket.sendall(message.encode() + b"\n")

    def _watch(self) -> None:
        beat = min(5.0, self._limit / 10)
        beaten = 0.0
        while not self._closed and not self.lost:
            if time.monotonic() - beaten >= beat:
                self._tell(".")
                beaten = time.monotonic()
            before = time.monotonic()
            events = self._selector.select(beat)
            now = time.monotonic()
            for key, _ in events:
                if key.data is not None:
                    self._hear(key.data, now)
            for line in self._lines.values():
                if now - before > self._limit / 2:  # we were stopped, not they
                    line.heard = now
                if now - line.heard > self._limit and not line.left:
                    self._lose(f"{line.name} has given no sign of life for {now - line.heard:.0f} s")
        if self.lost:
            self._leave_in_time()

    def _hear(self, line: _Line, now: float) -> None:
        try:
            data = line.socket.recv(65536)
        except OSError:
            data = b""
        line.heard = now
        *messages, line.rest = (line.rest + data).split(b"\n")
        for message in messages:
            word, _, rest = message.decode(errors="replace").partition(" ")
            if word == "bye":
                line.left = True
                self._selector.unregister(line.socket)
                return
            if word == "lost":
                self._lose(f"{line.name} has ended with {rest}" if rest.startswith("an error:") else rest)
            elif word in ("at", "go"):
                with self._changed:
                    line.arrived = int(rest)
                    self._changed.notify_all()
        if not data:
            self._lose(f"{line.name} is gone: killed, or crashed (its own output may say why)")

    def _lose(self, what: str) -> None:
        """The first loss counts; the first process tells the others."""
        if self.lost or self._closed:
            return
        if self._main:
            self._tell(f"lost {what}")
        with self._changed:
            self.lost = what if what.endswith(_CONTINUE) else f"{what}. {_CONTINUE}"
            self._changed.notify_all()

    def _leave_in_time(self) -> None:
        """The main thread ends by its own exception, unless it hangs in something that knows none."""
        deadline = time.monotonic() + LEAVE_WITHIN
        while time.monotonic() < deadline:
            if self._closed:
                return
            time.sleep(0.05)
        if self._uninterrupted.acquire(timeout=600) and not self._closed:
            print(self.lost, file=sys.stderr, flush=True)
            self._exit(3)


# ---------------------------------------------------------------- getting connected


def invite() -> tuple[socket.socket, int, bytes]:
    """For the first process: (where the others will call, its port, a secret that they must know)."""
    server = socket.create_server(("", 0), backlog=1024)
    return server, server.getsockname()[1], os.urandom(16)


def receive(server: socket.socket, secret: bytes, ranks: set[int], size: int, seconds: float) -> tuple[dict, dict]:
    """For the first process: lines and names of all others, as far as they have called in time. Strangers are sent away."""
    lines: dict[int, socket.socket] = {}
    names: dict[int, str] = {}
    deadline = time.monotonic() + seconds
    with server:
        while ranks - set(lines) and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                caller, _ = server.accept()
                caller.settimeout(5)
                told = b""
                while not told.endswith(b"\n") and len(told) < 1000 and (more := caller.recv(1000)):
                    told += more
                key, rank, host, pid = told.decode("ascii").split()
                if key != secret.hex() or int(rank) not in ranks - set(lines):
                    raise ValueError
            except (OSError, ValueError):  # UnicodeDecodeError is one
                continue
            lines[int(rank)], names[int(rank)] = caller, f"process {rank} of {size} (host {host}, pid {pid})"
    return lines, names


def call(host: str, port: int, secret: bytes, rank: int, seconds: float) -> socket.socket | None:
    """For the others: the line to the first process, or None when it cannot be reached."""
    try:
        line = socket.create_connection((host, port), timeout=seconds)
        own = "_".join(socket.gethostname().split()) or "?"
        line.sendall(f"{secret.hex()} {rank} {own.encode('ascii', 'replace').decode()} {os.getpid()}\n".encode())
    except OSError:
        return None
    return line
