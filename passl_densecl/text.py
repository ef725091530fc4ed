"""Words for messages: names that are no UTF-8, lists, plurals, suggestions."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence

from passl_densecl.errors import shown

__all__ = ["listed", "one_line", "plural", "printable", "suggestion"]


def listed(names: Sequence[str], limit: int = 3) -> str:
    """The first ``limit`` names in quotes, and how many more there are."""
    shown = ", ".join(repr(printable(name)) for name in names[:limit])
    return shown + (f" and {len(names) - limit:,} more" if len(names) > limit else "")


def plural(count: int, word: str) -> str:
    """``word``, with an ending unless ``count`` is 1."""
    return word if count == 1 else word + ("es" if word.endswith("s") else "s")


def suggestion(word: str, known: Iterable[str]) -> str:
    """ "; did you mean …?", or "" when nothing is close."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def printable(path: str) -> str:
    """File names may hold bytes that are no UTF-8, and what a terminal obeys; a message shows both as escapes."""
    return shown(path.encode("utf-8", "backslashreplace").decode("utf-8"))


def one_line(name: str) -> str:
    """Any file name as one line of text in which no two names look alike: control characters, line ends among them, bytes
    that are no UTF-8, and the backslash that escapes them, become ``\\n``, ``\\xe9``, ``\\\\``.
    """
    return "".join(_escaped(letter) for letter in name)


def _escaped(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # how Python carries a byte that is no UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    if letter == "\\" or unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp"):
        return letter.encode("unicode_escape").decode("ascii")
    return letter
