"""A log file whose lines wait in memory while the disk refuses them."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path

from passl_densecl.disk import whole_file

LIMIT = 16 * 2**20  # bytes of lines that wait for the disk; some 50,000 lines of metrics


class LogFile:
    """Lines are appended at once; those that the disk refuses wait in memory, in order, and are retried with the next.

    At first it is in no folder, so that a start that is refused leaves none behind; :meth:`settle` names its place.
    When the file is removed then it is made again with all its content, which exists as long as the file is open.
    """

    def __init__(self, path: Path, on_open: Callable[[int], None] | None = None) -> None:
        """`on_open` gets the descriptor whenever there is another one."""
        self.path = path
        self.problem: str | None = None  # why lines wait
        self.lost = 0  # lines dropped because too many were waiting
        self.reopened = False  # whether the file was made again; the reader resets it
        self.descriptor = -1
        self._settled = False
        self._on_open = on_open
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        if hasattr(os, "memfd_create"):  # in memory where the system can: there may be no folder that takes a file
            self._use(os.memfd_create(path.name))
        else:
            self._use(os.dup(tempfile.TemporaryFile().fileno()))  # noqa: SIM115

    def settle(self) -> None:
        """Move to `path`, with everything written so far, by native code too. Raises OSError when it cannot."""
        content = self._content()
        self._use(self._open())
        self._settled = True
        self.write(content)

    @property
    def waiting(self) -> int:
        """Lines that are not in the file yet."""
        return len(self._waiting)

    def write(self, text: str | bytes) -> None:
        """Append a line (or a record of bytes), now or when the disk takes it. Never raises OSError."""
        line = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text
        self._waiting.append(line)
        self._bytes += len(line)
        self._drain()
        if self._bytes > LIMIT:
            self._bytes -= len(self._waiting.pop())
            self.lost += 1

    def sync(self) -> None:
        """Write everything that the disk takes. Never raises OSError."""
        self._drain()
        with contextlib.suppress(OSError):
            os.fsync(self.descriptor)

    def keep(self, is_kept: Callable[[str], bool]) -> None:
        """Remove all other lines, whole or not at all. Raises InputError when the file cannot be written."""
        self._drain()
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        with whole_file(self.path) as file:
            file.write("".join(f"{line}\n" for line in lines if is_kept(line)).encode("utf-8"))
        self._use(self._open())

    def close(self) -> None:
        """Write waiting lines, as far as the disk takes them, and close the file."""
        self.sync()
        with contextlib.suppress(OSError):
            os.close(self.descriptor)

    def _open(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def _drain(self) -> None:
        try:
            self._find_again()
            while self._waiting:
                line = self._waiting[0]
                count = os.write(self.descriptor, line)  # on a full disk perhaps a part of it
                self._bytes -= count
                if count == len(line):
                    self._waiting.popleft()
                else:
                    self._waiting[0] = line[count:]
            self.problem = None
        except OSError as error:
            self.problem = error.strerror or str(error)

    def _find_again(self) -> None:
        """Reopen the file by its name when that names another file, or none."""
        if not self._settled:
            return
        mine = os.fstat(self.descriptor)
        try:
            there = os.stat(self.path)
            if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
                return
        except FileNotFoundError:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        # Removed, not renamed (as a log rotation does): what was in it is nowhere else any more.
        rescued = self._content() if mine.st_nlink == 0 else b""
        self._use(self._open())
        self.reopened = True
        if rescued:
            self._waiting.appendleft(rescued)
            self._bytes += len(rescued)

    def _use(self, descriptor: int) -> None:
        """Write there from now on."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = descriptor
        if self._on_open:
            self._on_open(descriptor)

    def _content(self) -> bytes:
        with contextlib.suppress(OSError):
            return os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0)
        return b""
