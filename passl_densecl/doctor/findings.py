"""What a check found, how it reads, and asking a process of its own, whose crash is an answer too."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "warning", "problem", "skipped"]
PACKAGE = Path(__file__).resolve().parents[1]
WIDTH = 118


@dataclass(frozen=True)
class Finding:
    """The answer of one check. The remedy counts unless it is ok; a line of it that begins with $ is a command.
    `figures` are for doctor.json. No text names a person, a host or a folder of theirs."""

    status: Status
    name: str
    found: str
    remedy: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """One line, and the remedy below it."""
        indent = " " * 24
        lines = textwrap.wrap(self.found, WIDTH - 24, break_long_words=False, break_on_hyphens=False)
        for line in self.remedy.splitlines():
            command = line.startswith("$ ")
            lines += [line] if command else textwrap.wrap(f"→ {line}", WIDTH - 24, break_on_hyphens=False)
        return f"{self.status:<8} {self.name:<15}" + f"\n{indent}".join(lines)

    def without_private(self) -> Finding:
        remedy = "" if self.status == "ok" else without_private(self.remedy)
        return Finding(self.status, self.name, without_private(self.found), remedy, self.figures)


def without_private(text: str) -> str:
    """The text with the home folder, the working folder, Python's folder, the user's and the host's name left out."""
    shown = {str(Path.cwd()): ".", str(Path.home()): "~", sys.prefix: "PYTHON", str(PACKAGE.parent): "PACKAGE"}
    with suppress(KeyError, OSError):  # a user without a name
        shown[getpass.getuser()] = "USER"
    shown[platform.node()] = "HOST"
    for private in sorted(shown, key=len, reverse=True):  # a folder before the one that it is in
        if len(private) > 3 and private != "root":
            text = re.sub(rf"(?<!\w){re.escape(private)}(?!\w)", shown[private], text)
    return text


def each(checks: Iterable[Callable[[], Iterable[Finding] | Finding]]) -> Iterator[Finding]:
    """What the checks find, in order. A check that fails itself is a problem with its error."""
    for check in checks:
        name = check.__name__.replace("_", " ")
        try:
            found = check()
            for finding in [found] if isinstance(found, Finding) else found:
                yield finding.without_private()
        except Exception as error:
            yield Finding("problem", name, f"{type(error).__name__}: {error}"[:300]).without_private()


def ask(code: str, seconds: float = 120, **environment: str) -> tuple[Any, str]:
    """(What the code prints as JSON on its last line, "") from a fresh Python; (None, a sentence) where that fails."""
    paths = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"PYTHONPATH": paths, "PYTHONWARNINGS": "ignore"} | environment
    try:
        # Not in the working folder: a file paddle.py there would be imported instead.
        done = subprocess.run(
            [sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else [sys.executable, "-c", code],
            env=env,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer for {seconds:.0f} s"
    if done.returncode == 0:
        with suppress(ValueError, IndexError):
            return json.loads(done.stdout.splitlines()[-1]), ""
    told = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    last = told[-1][:300] if told else "no message"
    if done.returncode < 0:
        return None, f"it crashed ({signal.Signals(-done.returncode).name}): {last}"
    return None, last
