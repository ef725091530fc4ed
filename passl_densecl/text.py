"""How messages say things: lists cut short, plurals, sizes, suggestions, file names as text."""

from __future__ import annotations

import codecs
import difflib
import unicodedata
from collections.abc import Collection, Iterable
from itertools import islice

from passl_densecl.errors import printable


def listed(names: Collection[str], limit: int = 3, *, quoted: bool = True) -> str:
    """The first ``limit`` names and how many more there are: "'a', 'b', 'c' and 4 more"; "" for no names."""
    first = [printable(name) for name in islice(names, limit)]
    return ", ".join(repr(name) if quoted else name for name in first) + and_more(len(names), limit)


def and_more(total: int, shown: int) -> str:
    """ " and 4 more" where a list of ``total`` entries is cut after ``shown``; "" where it is not."""
    return f" and {total - shown:,} more" if total > shown else ""


def plural(count: int, word: str) -> str:
    """``word``, with an ending unless ``count`` is 1."""
    return word if count == 1 else word + ("es" if word.endswith("s") else "s")


def quantity(count: int, word: str) -> str:
    """ "1 image", "12,418 images"."""
    return f"{count:,} {plural(count, word)}"


def megabytes(count: float) -> str:
    """Bytes as text: "1,234.5 MB" (10^6 bytes), "1.2 kB" below one MB."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def duration(seconds: float) -> str:
    """'1 d 4 h', '3 h 12 min', '4 min 10 s' or '9 s'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    units = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next((i for i, (value, _) in enumerate(units) if value), 3)
    return " ".join(f"{value} {unit}" for value, unit in units[first : first + 2])


def closest(word: str, known: Iterable[str]) -> str | None:
    """The word among ``known`` that is spelled most like ``word``; None when none is close."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def suggestion(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?", or "" when no known word is close."""
    close = closest(word, known)
    return f"; did you mean {close!r}?" if close else ""


def first_line(error: BaseException) -> str:
    """The first line of what an exception says; the name of its class where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def one_line(name: str) -> str:
    """Any file name as one line of text, different for every name.

    Control characters (line ends among them), bytes that are not UTF-8, and the backslash that escapes them become
    ``\\n``, ``\\xe9``, ``\\\\``.
    """
    return "".join(_escaped(letter) for letter in name)


def _escaped(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # how Python represents a byte that is not UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    if letter == "\\" or unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp"):
        return letter.encode("unicode_escape").decode("ascii")
    return letter


def utf8(data: bytes) -> bytes:
    """A text file's bytes without byte order mark; UTF-16 that begins with one (PowerShell, Notepad) becomes UTF-8.

    Raises UnicodeDecodeError.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16").encode("utf-8")
    return data.removeprefix(codecs.BOM_UTF8)
