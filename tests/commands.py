"""Command lines of pages and programs, understood by the parsers that they are for."""

from __future__ import annotations

import argparse
import io
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from passl_densecl.cli.main import parse

ROOT = Path(__file__).resolve().parents[1]


def call_tool(
    name: str, *words: object, cwd: Path = ROOT, without: str | None = None
) -> subprocess.CompletedProcess[str]:
    """tools/NAME.py as a user types it, but in this process, which spares the start of another one. `without` names a
    package that cannot be imported meanwhile.
    """
    script, streams = str(ROOT / "tools" / f"{name}.py"), [io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [script, *(os.fsdecode(w) if isinstance(w, bytes) else str(w) for w in words)])
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        if without:
            patch.setitem(sys.modules, without, None)
        with pytest.raises(SystemExit) as end:
            runpy.run_path(script, run_name="__main__")
    said = []
    for stream in streams:
        stream.flush()
        said.append(stream.detach().getvalue().decode())
    return subprocess.CompletedProcess([name, *words], int(end.value.code or 0), *said)


def understood(words: Sequence[str]) -> tuple[str, argparse.Namespace]:
    """(Verb, options) of `densecl …` or `[python] tools/NAME.py …`; leaves the program where the parser refuses."""
    words = list(words[1:] if words[0] == "python" else words)
    if words[0] == "densecl":
        return parse(words[1:])
    found = re.search(r'tool\("([a-z ]+)"\)', (ROOT / words[0]).read_text(encoding="utf-8"))
    assert found, words[0]
    return parse([*found[1].split(), *words[1:]])
