"""The one exception for mistakes of the user."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave does not fit: a configuration, a folder, a list file, a weight file.

    The message stands alone: it names the value that was given, what was expected and what to do. Command-line
    tools print it without a traceback and exit with code 2; library callers may catch it as a ``ValueError``.
    """
