"""Around every verb: its parser and help, exit codes, messages without traceback, any encoding."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import re
import select
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TextIO

from passl_densecl.errors import InputError, RunError, options_of_commands, printable
from passl_densecl.text import suggestion

P = ParamSpec("P")

PLACES = "the same as the options of these names"
WIDTH = 80  # columns of a help text
OLD_SPELLINGS = {"--labelled": "--labeled", "--engine": "--toolbox", "--engine-dir": "--toolbox-dir"}


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help in 80 columns; paragraphs are filled, tables stay as they are; every option names its default."""

    def __init__(self, prog: str, width: int = WIDTH) -> None:
        super().__init__(prog, max_help_position=26, width=width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        filled = [
            part if re.search(r"^\S+ {2,}|^ ", part, re.MULTILINE) else textwrap.fill(" ".join(part.split()), width)
            for part in textwrap.dedent(text).strip().split("\n\n")
        ]
        return "\n\n".join(filled)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)  # options and names stay whole

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, value = action.help or "", action.default
        if action.nargs == 0 or action.required or not action.option_strings or "default" in text:
            return text
        several = isinstance(value, (list, tuple))
        shown = " ".join(map(str, value)) if several and value else "none" if value in (None, []) else str(value)
        return f"{text} (default: {shown})"


class Parser(argparse.ArgumentParser):
    """A parser whose options can also be given by position, and in older spellings that no help shows.

    Options are spelled with hyphens and in American English; `--list_file` and `--labelled` mean `--list-file` and
    `--labeled`. `add_place` adds an option whose value may also stand alone: the words without an option fill the
    places in order, those whose option is given left out.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": HelpFormatter, **kwargs})
        self.places: list[tuple[argparse.Action, bool]] = []  # (option, required)
        self.aliases: dict[str, str] = {}  # older option → option
        self.raises = False  # an InputError where the program would end
        self.advice: dict[str, str] = {}  # what people type → what to write

    def add_place(self, option: str, *, required: bool = True, **kwargs: Any) -> None:
        """Add an option that may also be given by position; with nargs "+" or "*" it takes all words that are left."""
        self.places.append((self.add_argument(option, **kwargs), required))

    @property
    def place_names(self) -> str:
        return " ".join(str(action.metavar or action.dest) for action, _ in self.places)

    def parse_known_args(  # type: ignore[override]
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        words = list(sys.argv[1:] if args is None else args)
        for number, word in enumerate(words):
            words[number] = self._current_spelling(word)
            number_follows = number + 1 < len(words) and words[number + 1].isdigit()
            if word == "--images" and number_follows and "--count" in self._option_string_actions:
                words[number] = "--count"  # before 0.2.0 some verbs took a number here
        return super().parse_known_args(words, namespace)

    def _current_spelling(self, word: str) -> str:
        option, equals, value = word.partition("=")
        if not option.startswith("--") or option in self._option_string_actions:
            return word
        current = option.replace("_", "-")
        current = self.aliases.get(current, OLD_SPELLINGS.get(current, current))
        known = any(name.startswith(current) for name in self._option_string_actions)  # may be abbreviated
        return current + equals + value if known else word

    def read(self, words: Sequence[str] | None) -> argparse.Namespace:
        """The options and places in `words`. A wrong word ends the program with exit code 2 and a message."""
        args = self.parse_intermixed_args(words)
        if not self.places:
            return args
        left = args._places
        delattr(args, "_places")
        for action, required in self.places:
            if getattr(args, action.dest) in (None, action.default):
                count = len(left) if action.nargs in ("+", "*") else 1
                taken, left = left[:count], left[count:]
                if taken:
                    values = [self._get_value(action, word) for word in taken]
                    setattr(args, action.dest, values if action.nargs in ("+", "*") else values[0])
                elif required:
                    option = action.option_strings[0]
                    self.error(f"{option} {action.metavar} is missing: {action.help}")
        if left:
            self.error(f"unexpected {printable(left[0])!r}; the values without an option are {self.place_names}")
        return args

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--?[^ =]+)", message)
        if unknown:
            option = unknown[1]
            known = [name for name in self._option_string_actions if name.startswith("--")]
            advice = self.advice.get(option.lstrip("-").replace("-", "_"))
            hint = f"; write {advice}" if advice else suggestion(option.replace("_", "-"), known)
            message = f"unknown option {printable(option)}{hint}"
        if self.raises:
            raise InputError(f"{self.prog}: {message}")
        print(f"{self.prog}: {message}\n(options and examples: {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


@dataclass(frozen=True)
class Verb:
    """One verb of the command: its options, and what it does. Called with words, it returns the exit code."""

    text: str | None  # what the verb does; the first line stands alone
    add_options: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], Any]  # what it returns is the exit code where it is a number, else that is 0
    examples: tuple[str, ...] = ()  # without the word "densecl"
    outputs: tuple[str, ...] = ("output", "json", "picture")  # options that name files to write
    advice: Mapping[str, str] = field(default_factory=dict)  # wrong option → what to write instead
    named: bool = True  # whether messages begin with the program's name

    def parser(self, prog: str | None = None) -> Parser:
        lines = "\n".join(f"  densecl {example}" for example in self.examples)
        parser = Parser(prog=prog, description=self.text, epilog=lines and f"examples:\n{lines}")
        self.add_options(parser)
        parser.advice = dict(self.advice)
        if parser.places:
            parser.add_argument("_places", nargs="*", metavar=parser.place_names, help=PLACES)
        if any(hasattr(action, "dest") and action.dest in self.outputs for action in parser._actions):
            parser.add_argument("--overwrite", action="store_true", help="replace files that exist already")
        return parser

    def __call__(self, words: Sequence[str] | None = None, prog: str | None = None) -> int:
        parser = self.parser(prog)

        def checked() -> int:
            args = parser.read(words)
            check_outputs(args, self.outputs)
            code = self.run(args)
            return code if isinstance(code, int) else 0

        return run_command(checked, f"{parser.prog}: " if self.named else "")


def check_outputs(args: argparse.Namespace, names: Iterable[str]) -> None:
    """Raises InputError when a file to write exists and --overwrite is not given, or when its folder does not exist."""
    for name in names:
        path = getattr(args, name, None)
        if path is None:
            continue
        option = f"--{name.replace('_', '-')} {printable(str(path))}"
        if not Path(path).resolve().parent.is_dir():
            raise InputError(f"{option}: the folder {Path(path).parent} does not exist; create it first")
        if os.path.lexists(path) and not getattr(args, "overwrite", True):
            raise InputError(f"{option} exists already: choose another name, or add --overwrite")


def command(main: Callable[P, int]) -> Callable[P, int]:
    """A program's `main` with the exit codes and messages of `run_command`, after the program's name."""

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        return run_command(lambda: main(*args, **kwargs), f"{Path(sys.argv[0]).name}: ")

    return run


def run_command(main: Callable[[], int], name: str = "") -> int:
    """Call `main`; turn exceptions into exit codes, and print on stderr, after `name`, what the user must know.

    2 for an `InputError`, 3 for a `RunError`, 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP; 141 when the reader of
    the output is gone (``| head``), which is no mistake and prints nothing. Other exceptions are defects and keep their
    traceback.

    Of several processes under `paddle.distributed.launch`, the first one prints an `InputError`, which all of them have
    in common; each prints its own `RunError` and ends at once, because leaving Paddle's process group may hang or crash
    when the others are gone.
    """
    print_anything()
    try:
        with _exit_on_sigterm(), options_of_commands():
            code = main()
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


def print_anything() -> None:
    """Print characters that the terminal's encoding lacks (Chinese names in Latin-1) escaped from here on.

    What was closed (``>&-``) is /dev/null from here on: a file that is opened must not take its number.
    """
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _one_of_several() -> bool:
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit, so that unfinished files are removed; one of several processes they end."""
    if _one_of_several() or threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is not signal.SIG_IGN]
    before = {one: signal.signal(one, lambda number, _: sys.exit(128 + number)) for one in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _is_read(stream: TextIO) -> bool:
    try:
        output = stream.fileno()
    except io.UnsupportedOperation:
        return True
    poll = select.poll()
    poll.register(output, 0)
    return not poll.poll(0)  # an error, which needs no asking for: nobody is at the other end
