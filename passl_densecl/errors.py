"""The two exceptions that the user sees without a traceback: invalid input, and a run that cannot go on."""

from __future__ import annotations


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


class RunError(RuntimeError):
    """A run cannot go on although its input is valid: the disk is full, another process has ended, a worker was killed,
    the numbers are no longer finite.

    The message says what happened, what is kept and how to continue. Commands print it without a traceback and exit
    with code 3; ``--resume auto`` continues from the newest whole checkpoint. ``str(error)`` has no control characters.
    """

    def __str__(self) -> str:
        return printable(super().__str__())
