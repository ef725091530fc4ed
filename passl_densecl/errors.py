"""The exceptions that the user sees without a traceback (invalid input, and a run that cannot go on), and how their
messages spell options: as the caller writes them, in Python or for a command.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_for_command: ContextVar[bool] = ContextVar("messages are for the user of a command", default=False)


@contextmanager
def options_of_commands() -> Iterator[None]:
    """Inside, :func:`option` spells options as a command takes them; outside, as keywords of Python."""
    token = _for_command.set(True)
    try:
        yield
    finally:
        _for_command.reset(token)


def option(name: str, *value: object) -> str:
    """An option as its caller writes it: ``prefix='teacher.'`` in Python, ``--prefix teacher.`` for a command.

    Without a value the name alone: ``prefix``, ``--prefix``.
    """
    if not _for_command.get():
        return "=".join([name, *map(repr, value)])
    return " ".join([f"--{name.rstrip('_').replace('_', '-')}", *(shlex.quote(str(each)) for each in value)])


def printable(text: str) -> str:
    """The text with every character escaped that is not visible, a space or a line feed.

    File names may hold bytes that are not UTF-8, and control sequences that a terminal obeys (``ESC ] 0 ; title BEL``).
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)


class InputError(ValueError):
    """Invalid input from the user: a configuration, a folder, a list file, a weight file.

    The message names the value that was given, what was expected and what to do. Commands print it without a traceback
    and exit with code 2; library callers may catch it as a ``ValueError``. ``str(error)`` has no control characters.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class NewerFormat(InputError):
    """A file that a newer version of this project wrote: not damaged, but not to be read."""


class RunError(RuntimeError):
    """A run cannot go on although its input is valid: the disk is full, another process has ended, a worker was killed,
    the numbers are no longer finite.

    The message says what happened, what is kept and how to continue. Commands print it without a traceback and exit
    with code 3; ``--resume auto`` continues from the newest whole checkpoint. ``str(error)`` has no control characters.
    """

    def __str__(self) -> str:
        return printable(super().__str__())
