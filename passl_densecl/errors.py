"""The two exceptions with a message that stands alone: the user's mistakes, and what befalls a run."""

from __future__ import annotations


def shown(text: str) -> str:
    """The text with everything escaped that is no visible character, a space or the end of a line.

    Names come from files and folders of others, and a terminal obeys what some of them hold (``ESC ] 0 ; title BEL``).
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)


class InputError(ValueError):
    """Something the user gave does not fit: a configuration, a folder, a list file, a weight file.

    The message stands alone: it names the value that was given, what was expected and what to do. Command-line
    tools print it without a traceback and exit with code 2; library callers may catch it as a ``ValueError``. Printed,
    it has no control characters, whatever it quotes.
    """

    def __str__(self) -> str:
        return shown(super().__str__())


class RunError(RuntimeError):
    """A run cannot go on, and not because of what it was given: the disk is full, another process is gone, a worker was
    killed, the numbers are no longer finite.

    The message says what happened, what is kept and how to continue. Command-line tools print it without a traceback
    and exit with code 3; `--resume auto` continues from the newest whole checkpoint. Printed,
    it has no control characters, whatever it quotes.
    """

    def __str__(self) -> str:
        return shown(super().__str__())
