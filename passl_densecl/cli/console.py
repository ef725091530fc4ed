"""What verbs print: progress bars, tables, lists that are cut short."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from passl_densecl.text import and_more

Bar = Callable[..., None]
_LINE_SECONDS = 30.0  # between lines of progress


@contextlib.contextmanager
def progress(title: str) -> Iterator[Bar]:
    """A progress bar on the terminal, removed at the end; where there is none, a line every half minute.

    Yields a function of (done, total) and an optional note; total may be None as long as it is unknown. The bar draws
    itself in that call, at most five times a second: a thread that draws would be copied into forked workers.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    name, note = TextColumn("{task.description}"), TextColumn("{task.fields[note]}")
    columns = (name, BarColumn(), MofNCompleteColumn(), note, TimeRemainingColumn())
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, auto_refresh=False, disable=hidden) as bars:
        task = bars.add_task(title, total=None, note="")
        drawn = time.monotonic() if hidden else -math.inf

        def show(done: int, total: int | None, note: str = "") -> None:
            nonlocal drawn
            if hidden and time.monotonic() - drawn > _LINE_SECONDS:
                print(
                    f"{title}  {done:,}{f' of {total:,}' if total else ''}  {note}".rstrip(),
                    file=sys.stderr,
                    flush=True,
                )
                drawn = time.monotonic()
            elif not hidden and time.monotonic() - drawn > 0.2:
                bars.update(task, completed=done, total=total, note=note, refresh=True)
                drawn = time.monotonic()

        yield show


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns under a line; the first row is the head, the first column is aligned to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([row[0].ljust(len(first)), *others]).rstrip())
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines)


def print_first(lines: Sequence[str], limit: int, advice: str = "") -> None:
    """The first lines, indented below the label of the line before, and how many there are more."""
    for line in lines[:limit]:
        print(f"         {line}")
    if len(lines) > limit:
        print(f"        {and_more(len(lines), limit)}{advice}")
