"""What all kinds of input share: a case, a target, and what must hold after a case was read.

A case is a set of small files and a few arguments, so that a failing one can be kept, inspected and read again. Reading
it may succeed or raise InputError; ``guard.py`` says what it must not do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from passl_densecl.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
LONGEST_MESSAGE = 100_000
CONTROL = {chr(code) for code in (*range(32), *range(127, 160))} - {"\n"}


@dataclass(frozen=True)
class Case:
    """Files below the case's folder, and arguments of the function that reads them."""

    files: dict[str, bytes]
    arguments: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    @property
    def size(self) -> int:
        return sum(map(len, self.files.values())) + sum(map(len, self.arguments))


@dataclass(frozen=True)
class Target:
    """`cases(scratch)` is a strategy; `read(folder, output, arguments)` reads a case and may write below `output`."""

    name: str
    cases: Callable[[Path], st.SearchStrategy[Case]]
    read: Callable[[Path, Path, tuple[str, ...]], None]
    first: tuple[Case, ...] = ()  # cases that take every path which imports something late


class Violation(AssertionError):
    """A case was read without an unexpected exception, but the result is not valid."""


def check_text(text: str, what: str) -> None:
    """A text for people must be printable on every terminal and short enough to read."""
    if len(text) > LONGEST_MESSAGE:
        raise Violation(f"{what} of {len(text):,} characters")
    bad = next((c for c in text if c in CONTROL or 0xD800 <= ord(c) < 0xE000), None)
    if bad is not None:
        raise Violation(f"{what} contains {bad!r}")


@contextlib.contextmanager
def only_input_errors() -> Any:
    """Invalid input may raise InputError alone, with a printable message."""
    try:
        yield
    except InputError as error:
        check_text(str(error), "a message")
        check_causes(error)


def check_causes(error: BaseException) -> None:
    """No MemoryError may be the cause: it means that memory was requested before the file was checked."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            raise Violation("a MemoryError behind an InputError")
        cause = cause.__cause__ or cause.__context__


def try_each(*calls: Callable[[], object]) -> None:
    for call in calls:
        with only_input_errors():
            call()


def first_file(case: Case) -> bytes:
    return next(iter(case.files.values()))
