"""The two exceptions with a message that stands alone: the user's mistakes, and what befalls a run."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave does not fit: a configuration, a folder, a list file, a weight file.

    The message stands alone: it names the value that was given, what was expected and what to do. Command-line
    tools print it without a traceback and exit with code 2; library callers may catch it as a ``ValueError``.
    """


class RunError(RuntimeError):
    """A run cannot go on, and not because of what it was given: the disk is full, another process is gone, a worker was
    killed, the numbers are no longer finite.

    The message says what happened, what is kept and how to continue. Command-line tools print it without a traceback
    and exit with code 3; `--resume auto` continues from the newest whole checkpoint.
    """
