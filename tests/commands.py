"""Command lines of pages and programs, understood by the parsers that they are for."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from passl_densecl.cli.main import parse

ROOT = Path(__file__).resolve().parents[1]


def understood(words: Sequence[str]) -> tuple[str, argparse.Namespace]:
    """(Verb, options) of `densecl …` or `[python] tools/NAME.py …`; leaves the program where the parser refuses."""
    words = list(words[1:] if words[0] == "python" else words)
    if words[0] == "densecl":
        return parse(words[1:])
    found = re.search(r'tool\("([a-z ]+)"\)', (ROOT / words[0]).read_text(encoding="utf-8"))
    assert found, words[0]
    return parse([*found[1].split(), *words[1:]])
