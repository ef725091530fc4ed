"""What is around the `main` of a command-line tool: exit codes, messages that stand alone, names in any script."""

from __future__ import annotations

import functools
import inspect
import io
import os
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TextIO

from passl_densecl.errors import InputError, RunError

P = ParamSpec("P")


def command(main: Callable[P, int]) -> Callable[P, int]:
    """A tool's `main` that turns what happens to it into an exit code, and says on stderr what the user must know.

    2 for an `InputError`, 3 for a `RunError`, 130 for Ctrl-C; 141 when nobody reads any more (``| head``), which is no
    mistake and prints nothing. Other exceptions are mistakes of this program and keep their traceback.
    """
    tool = Path(inspect.getfile(main)).name

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        print_anything()
        try:
            code = main(*args, **kwargs)
            sys.stdout.flush()
            return code
        except (InputError, RunError) as error:
            print(f"{tool}: {error}", file=sys.stderr)
            return 2 if isinstance(error, InputError) else 3
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:
            if _is_read(sys.stdout):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to print goes there at exit
            return 141

    return run


def print_anything() -> None:
    """From here on what a terminal's encoding has no letter for (names in Chinese, where it is Latin-1) is printed escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_read(stream: TextIO) -> bool:
    try:
        output = stream.fileno()
    except io.UnsupportedOperation:
        return True
    poll = select.poll()
    poll.register(output, 0)
    return not poll.poll(0)  # an error, which needs no asking for: nobody is at the other end
