"""Around every command-line tool: exit codes, messages without traceback, any encoding, spelling of options."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TextIO

from passl_densecl.errors import InputError, RunError

P = ParamSpec("P")

OTHER_WORDS = {"--labelled": "--labeled", "--engine": "--toolbox", "--engine-dir": "--toolbox-dir"}


class Parser(argparse.ArgumentParser):
    """A parser that also accepts the older spellings of its options, which no help shows.

    Options are spelled with hyphens and in American English; `--list_file` and `--labelled` mean `--list-file` and
    `--labeled`.
    """

    def parse_known_args(  # type: ignore[override]
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([self._current_spelling(word) for word in words], namespace)

    def _current_spelling(self, word: str) -> str:
        option, equals, value = word.partition("=")
        if not option.startswith("--") or option in self._option_string_actions:
            return word
        current = option.replace("_", "-")
        current = OTHER_WORDS.get(current, current)
        known = any(name.startswith(current) for name in self._option_string_actions)  # may be abbreviated
        return current + equals + value if known else word


def command(main: Callable[P, int], *, named: bool = True) -> Callable[P, int]:
    """A tool's `main` that turns exceptions into exit codes, and prints on stderr what the user must know.

    2 for an `InputError`, 3 for a `RunError`, 130 for Ctrl-C, 143 for SIGTERM; 141 when the reader of the output is
    gone (``| head``), which is no mistake and prints nothing. Other exceptions are defects of this program and keep
    their traceback. `named`: whether messages begin with the tool's name.

    Of several processes under `paddle.distributed.launch`, the first one prints an `InputError`, which all of them have
    in common; each prints its own `RunError` and ends at once, because leaving Paddle's process group may hang or crash
    when the others are gone.
    """

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        print_anything()
        name = f"{Path(sys.argv[0]).name}: " if named else ""
        try:
            with _exit_on_sigterm():
                code = main(*args, **kwargs)
                sys.stdout.flush()
            return code
        except InputError as error:
            if os.environ.get("PADDLE_TRAINER_ID", "0") == "0":
                print(f"{name}{error}", file=sys.stderr)
            return 2
        except RunError as error:
            print(f"{name}{error}", file=sys.stderr, flush=True)
            if _one_of_several():
                sys.stdout.flush()
                os._exit(3)
            return 3
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:
            if _is_read(sys.stdout):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to print goes there at exit
            return 141

    return run


def print_anything() -> None:
    """Print characters that the terminal's encoding lacks (Chinese names in Latin-1) escaped from here on."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _one_of_several() -> bool:
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """SIGTERM raises SystemExit, so that unfinished files are removed; one of several processes it ends at once."""
    if _one_of_several() or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _is_read(stream: TextIO) -> bool:
    try:
        output = stream.fileno()
    except io.UnsupportedOperation:
        return True
    poll = select.poll()
    poll.register(output, 0)
    return not poll.poll(0)  # an error, which needs no asking for: nobody is at the other end
