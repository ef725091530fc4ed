"""Liveness of the other processes: each has a connection to the first, on which both sides send heartbeats.

A process that dies is noticed at once, because its connection breaks; one that hangs, or whose host or network is gone,
when it has been silent for too long. Heartbeats come from a thread of their own, so a process that computes, evaluates
or writes for an hour is not silent; only a native call that holds Python's lock is (see `hang`). Without this, the
others would wait in a collective: gloo (CPUs) gives up when any one of them is 30 seconds late, dead or only slow, and
nothing sets that time (PADDLE_PG_TIMEOUT, in milliseconds, 30 minutes unless set, is for NCCL only). So the connections
also serve as a barrier without a limit, before a gloo operation.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from passl_densecl.distributed.hang import HangWatch
from passl_densecl.errors import RunError

LEAVE_WITHIN = 10.0  # seconds for the main thread to end by itself when another process is lost
CONTINUE = "Whole checkpoints stay whole; continue with --resume auto when every process can be started again"


@dataclass
class _Connection:
    """The connection to one other process."""

    socket: socket.socket
    name: str  # process 1 of 2 (host a, pid 42)
    heard: float = field(default_factory=time.monotonic)
    arrived: int = 0  # the last barrier it has reached, or released us from
    rest: bytes = b""  # of a message that is not complete
    left: bool = False  # it has left in order


class Peers:
    """The connections of one process: the first process has one to every other, the others one to the first.

    Messages are short lines of text: `.` a heartbeat, `at N` and `go N` of a barrier, `bye`, `lost WHY`.
    """

    def __init__(
        self,
        connections: Sequence[tuple[socket.socket, str]],
        *,
        main: bool,
        limit: float,
        hang_watch: HangWatch,
        exit_with: Callable[[int], object] = os._exit,
    ) -> None:
        """Starts the thread.

        Args:
            connections: connected sockets, and what their processes are called in messages.
            main: whether this is the first process.
            limit: seconds of silence after which a process counts as lost.
            hang_watch: what ends this process where its threads cannot run.
        """
        self._connections = [_Connection(*each) for each in connections]
        self._main, self._limit, self._exit, self._hang_watch = main, limit, exit_with, hang_watch
        self._changed = threading.Condition()
        self.uninterrupted = threading.Lock()  # held while this process writes a result: nothing ends it then
        self._barriers = 0
        self._closed = False
        self.lost: str | None = None  # the message about the first process that was lost
        self._wake, self._wakes = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakes, selectors.EVENT_READ, None)
        for connection in self._connections:
            connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.socket.settimeout(limit)  # for sending: a full buffer means that the peer has not read for long
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def wait_for_all(self) -> None:
        """Wait until every process has called this, without a time limit. Raises RunError when one is lost."""
        self._barriers += 1
        if not self._main:
            self._send(f"at {self._barriers}")
        with self._changed:
            self._changed.wait_for(
                lambda: self.lost or all(each.arrived >= self._barriers for each in self._connections)
            )
        if self.lost:
            raise RunError(self.lost)
        if self._main:
            self._send(f"go {self._barriers}")

    def leave(self, error: BaseException | None = None) -> None:
        """Announce that this process ends, with the error if there is one; end the thread."""
        reason = (str(error) or type(error).__name__).splitlines()[0] if error else ""
        if not self.lost:
            self._send(f"lost an error: {reason}" if error else "bye")
        self._closed = True
        self._wake.close()  # the thread awakes
        self._thread.join(5)
        for connection in self._connections:
            connection.socket.close()
        self._selector.close()
        self._wakes.close()

    def lost_within(self, seconds: float) -> str | None:
        """The message about a lost process, if one is noticed soon: a collective may fail before the thread notices."""
        with self._changed:
            self._changed.wait_for(lambda: self.lost is not None, seconds)
        return self.lost

    def _send(self, message: str) -> None:
        for connection in self._connections:
            with contextlib.suppress(OSError):  # noticed where the answer is missing
                connection.socket.sendall(message.encode() + b"\n")

    def _watch(self) -> None:
        beat = min(5.0, self._limit / 10)
        beaten = 0.0
        while not self._closed and not self.lost:
            self._hang_watch.sign()
            if time.monotonic() - beaten >= beat:
                self._send(".")
                beaten = time.monotonic()
            before = time.monotonic()
            events = self._selector.select(beat)
            now = time.monotonic()
            for key, _ in events:
                if key.data is not None:
                    self._receive(key.data, now)
            for connection in self._connections:
                if now - before > self._limit / 2:  # this process was stopped, not the others
                    connection.heard = now
                if now - connection.heard > self._limit and not connection.left:
                    self._mark_lost(f"{connection.name} has sent no heartbeat for {now - connection.heard:.0f} s")
        if self.lost:
            self._exit_if_stuck()
        self._hang_watch.close()

    def _receive(self, connection: _Connection, now: float) -> None:
        try:
            data = connection.socket.recv(65536)
        except OSError:
            data = b""
        connection.heard = now
        *messages, connection.rest = (connection.rest + data).split(b"\n")
        for message in messages:
            word, _, rest = message.decode(errors="replace").partition(" ")
            if word == "bye":
                connection.left = True
                self._selector.unregister(connection.socket)
                return
            if word == "lost":
                self._mark_lost(f"{connection.name} has ended with {rest}" if rest.startswith("an error:") else rest)
            elif word in ("at", "go"):
                with self._changed:
                    connection.arrived = int(rest)
                    self._changed.notify_all()
        if not data:
            self._mark_lost(f"{connection.name} is gone: killed, or crashed (its own output may say why)")

    def _mark_lost(self, what: str) -> None:
        """Only the first loss counts; the first process announces it to the others."""
        if self.lost or self._closed:
            return
        if self._main:
            self._send(f"lost {what}")
        with self._changed:
            self.lost = what if what.endswith(CONTINUE) else f"{what}. {CONTINUE}"
            self._changed.notify_all()

    def _exit_if_stuck(self) -> None:
        """The main thread ends by its own exception, unless it hangs in native code."""
        deadline = time.monotonic() + LEAVE_WITHIN
        while not self._closed:
            self._hang_watch.sign()
            if time.monotonic() > deadline and self.uninterrupted.acquire(timeout=1) and not self._closed:
                print(self.lost, file=sys.stderr, flush=True)
                self._exit(3)
                return
            time.sleep(0.05)
