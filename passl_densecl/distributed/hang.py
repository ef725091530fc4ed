"""A process beside every trainer that ends it where it hangs in a native call that holds Python's lock.

No thread of the trainer can run then, so nobody sends heartbeats or notices that another process has died. The trainer
sends signs of life through a pipe; when there are none, this file, run as a program, kills it. It loads nothing but the
standard library: 10 MB of memory.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence


class HangWatch:
    """Starts the process; `sign` must be called every few seconds until `close`."""

    def __init__(self, connections: Sequence[tuple[socket.socket, str]], *, limit: float, advice: str) -> None:
        """`connections` as of `Peers`; the trainer is killed after `limit` seconds without a sign, or a quarter of it
        when the connection to another process is broken. `advice` ends the message, which goes to stderr.
        """
        words = [word for connection, name in connections for word in (str(connection.fileno()), name)]
        stream = None
        with contextlib.suppress(OSError, ValueError):  # stderr without a file: the process inherits this one's
            stream = sys.stderr.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(limit), advice, *words],
            stdin=subprocess.PIPE,
            stderr=stream,
            pass_fds=[int(number) for number in words[::2]],
            start_new_session=True,  # Ctrl-C is not for it
            bufsize=0,
        )

    def sign(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has been killed: the run continues without it
            self._process.stdin.write(b".")

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._process.stdin.write(b"q")  # data workers have inherited the pipe: closing it here alone ends nothing
            self._process.wait(5)
        self._process.stdin.close()


def watch(limit: float, advice: str, names: Mapping[int, str]) -> None:
    """Kill the parent when it is silent for too long; return when it says `q` or has ended."""
    trainer, heard = os.getppid(), time.monotonic()
    connections = select.poll()
    for number in names:
        connections.register(number, select.POLLRDHUP)
    while os.getppid() == trainer:
        before = time.monotonic()
        said = select.select([0], [], [], min(1.0, limit / 10))[0]
        if said and (os.read(0, 65536) or b"q").endswith(b"q"):
            return
        now = time.monotonic()
        if said or _is_stopped(trainer) or now - before > limit / 2:  # Ctrl-Z, of the trainer or of this process
            heard = now
        silent = now - heard
        gone = [names[number] for number, _ in connections.poll(0)] if silent > limit / 4 else []
        if gone or silent > limit:
            cause = f"{' and '.join(gone)} is gone: killed, or crashed (its own output may say why)"
            what = f"{cause if gone else 'no answer'}. This process waits in a native call that holds Python's lock"
            print(f"{what}; killed after {silent:.0f} s. {advice}", file=sys.stderr, flush=True)
            os.kill(trainer, signal.SIGKILL)
            return


def _is_stopped(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:
        return False


if __name__ == "__main__":
    _limit, _advice, *_words = sys.argv[1:]
    watch(float(_limit), _advice, {int(one): name for one, name in zip(_words[::2], _words[1::2], strict=True)})
