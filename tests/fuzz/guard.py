"""What a hostile input must not do, watched from inside the process that reads it.

The process that fuzzes installs an audit hook (PEP 578), a limit of its address space and a limit of processor time.
While a case is watched, an exception that no ``except Exception`` catches stops anything that runs code, writes outside
the allowed folder, or takes too much memory or time. It is also recorded, in case a bare ``except`` catches it.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS = 4.0  # of processor time, for one case
MEMORY = 2**30  # bytes of address space that a case may add to what the process has before it
RISE = 200 * 2**20  # bytes of memory in use that one case may add

# Events that run code or prepare it. Every import raises `exec` and `compile`: all modules are imported before.
_RUNS_TEXT = """
os.system os.exec os.posix_spawn os.spawn os.fork os.forkpty os.putenv os.chdir os.kill subprocess.Popen pty.spawn
exec compile import pickle.find_class code.__new__ marshal.loads marshal.load signal.pthread_kill webbrowser.open
ctypes.dlopen ctypes.dlsym ctypes.call_function ctypes.cdata shutil.make_archive shutil.unpack_archive
"""
_CHANGES_TEXT = """
os.rename os.remove os.rmdir os.mkdir os.link os.symlink os.truncate os.chmod os.chown os.utime os.setxattr
os.removexattr os.mkfifo os.mknod shutil.rmtree shutil.move shutil.copyfile tempfile.mkstemp tempfile.mkdtemp
sqlite3.connect
"""
_RUNS, _CHANGES = frozenset(_RUNS_TEXT.split()), frozenset(_CHANGES_TEXT.split())
_REACHES_OUT = ("socket.", "urllib.", "http.", "ftplib.", "smtplib.", "poplib.", "imaplib.", "telnetlib.")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Escape(BaseException):
    """A case did what no input may cause."""


class Guard:
    """Watches cases; one per process, and it cannot be removed.

    Args:
        allowed: folders in which a case may write.
    """

    def __init__(self, *allowed: Path) -> None:
        self._allowed = tuple(os.path.realpath(folder) + os.sep for folder in allowed)
        self._armed, self._late = False, 0
        self.escapes: list[str] = []
        sys.addaudithook(self._audit)
        signal.signal(signal.SIGVTALRM, self._too_long)

    @contextmanager
    def watch(self, seconds: float = SECONDS) -> Iterator[None]:
        """Watch one case. Raises Escape for a forbidden act, even where the first exception was caught."""
        self.escapes = []
        _forget_peak()
        before = _memory("VmHWM")
        self._late = 0
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1.0)
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + MEMORY, hard))
        self._armed = True
        try:
            yield
        except MemoryError:
            self._armed = False
            self.escapes.append("memory: requested more than the limit")
        finally:
            self._armed = False
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))  # making cases needs memory as well
        rise = _memory("VmHWM") - before
        if rise > RISE:
            self.escapes.append(f"memory: {rise >> 20} MiB more")
        if self.escapes:
            raise Escape(self.escapes[0])

    def _stop(self, what: str) -> None:
        self.escapes.append(what)
        raise Escape(what)

    def _too_long(self, *_: object) -> None:
        if not self._armed:
            return
        self._late += 1
        if self._late > 2:  # native code continues nevertheless
            os.write(2, b"time: more than a case may take\n")
            os._exit(70)
        self._stop("time: more processor time than a case may take")

    def _audit(self, event: str, arguments: tuple) -> None:
        if not self._armed:
            return
        if event == "open":
            path, mode, flags = arguments
            if (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & _WRITING):
                self._check_path(event, path)
        elif event in _CHANGES:
            for path in arguments[:2] if event in ("os.rename", "os.link", "os.symlink") else arguments[:1]:
                self._check_path(event, path)
        elif event == "compile" and arguments[1] == "<unknown>":  # ast.parse, which runs nothing
            return
        elif event in _RUNS or event.startswith(_REACHES_OUT):
            self._armed = False  # repr may import
            what = f"{event} {str(arguments)[:100]}"
            self._armed = True
            self._stop(what)

    def _check_path(self, event: str, path: object) -> None:
        if isinstance(path, int) or path is None:  # an open descriptor
            return
        full = os.path.realpath(os.fsdecode(path))  # type: ignore[arg-type]
        if not (full + os.sep).startswith(self._allowed):
            self._stop(f"{event} {full!r}, outside the output folder")


def listing(*folders: Path) -> dict[str, tuple[int, int]]:
    """Path → (size, modification time) of everything below the folders: native code writes without audit events."""
    found = {}
    for folder in folders:
        for path in [folder, *folder.rglob("*")]:
            status = path.lstat()
            found[str(path)] = (status.st_size, status.st_mtime_ns)
    return found


def _memory(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(key)


def _forget_peak() -> None:
    """Reset the peak of memory in use."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
