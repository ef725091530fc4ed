"""Stopping on request: the first SIGTERM, SIGINT or SIGHUP asks the loop to save and stop, a second one stops at once.

Before the loop there is nothing to save, and the first one stops at once. A thread of its own handles signals, because
Python's handlers run in the main thread only, which may be blocked in a collective by another process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

import paddle

from passl_densecl.distributed import collectives as dist

# paddle.distributed.launch hands a SIGTERM on three times, 0.2 s apart, and kills after 30 s: that is one request.
ONE_REQUEST = 3.0  # seconds
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # SIGHUP: the terminal, or its connection, has gone


class StopRequest:
    """Within it, a signal to any process makes `requested` true in every process at the same step."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.asked_anywhere: bool | None = None  # of all processes, where the loop exchanges that with other numbers
        self._flags: paddle.Tensor | None = None
        self._begun = False
        self._asked_at = 0.0

    def __enter__(self) -> StopRequest:
        paddle.disable_signal_handler()  # Paddle's own prints a native stack trace and dies
        self._told, hears = socket.socketpair()
        self._told.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        # Where nohup has a run ignore SIGHUP, it stays ignored.
        numbers = [one for one in STOPPING if signal.getsignal(one) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, _leave_to_thread) for number in numbers}
        threading.Thread(target=self._listen, args=(hears,), name="signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._told.close()  # ends the thread

    @contextlib.contextmanager
    def at_steps(self) -> Iterator[None]:
        """Around the loop: from here on a request waits for the end of a step, where `requested` is called."""
        self._begun = True
        yield

    def requested(self) -> bool:
        """Whether any process was asked to stop; every process must call it at the same place, once per step.

        Several processes exchange flags and read those of the call before, unless the loop has set `asked_anywhere`.
        """
        if dist.world_size() == 1:
            return self.signal is not None
        if self.asked_anywhere is not None:
            return self.asked_anywhere
        before, self._flags = self._flags, dist.all_reduce(paddle.full([], float(self.signal is not None)))
        return before is not None and bool(before.numpy() > 0)

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as a shell gives it; SIGTERM's where another process was asked."""
        return 128 + (self.signal or signal.SIGTERM)

    def _listen(self, hears: socket.socket) -> None:
        with hears:
            while numbers := hears.recv(64):
                for number in numbers:
                    if number in self._before:
                        self._asked(number)

    def _asked(self, number: int) -> None:
        now = time.monotonic()
        if self._begun and self.signal is None:
            self.signal, self._asked_at = number, now
            return
        repeated = number == signal.SIGTERM == self.signal and now - self._asked_at < ONE_REQUEST
        if not repeated:
            what = "asked again: nothing more is saved" if self._begun else "before the first step: nothing to save"
            print(f"stopped  {what}", file=sys.stderr, flush=True)
            os._exit(128 + number)


def _leave_to_thread(number: int, frame: FrameType | None) -> None:
    """Python writes the number to the thread's socket before it calls this."""
