"""List files: which images, in which order and with which labels, whatever editor or spreadsheet wrote them."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

from passl_densecl.data.image_set import ImageSet, spread
from passl_densecl.errors import InputError
from passl_densecl.text import listed, printable, suggestion, utf8

Reading = Literal["auto", "names", "numbers"]
"""How labels read: as class names, as class numbers, or as whichever fits all of them."""

_FILES_CHECKED = 10_000
_TITLES = frozenset(["", "path", "file", "filename", "file_name", "image", "image_path", "name"])
_TITLES |= frozenset(["label", "labels", "class", "class_name", "category", "target"])
_DELIMITERS = {b",": "commas", b";": "semicolons", b"\t": "tabs"}


class Listed(NamedTuple):
    """What a list file holds: N paths, N labels (none when unlabeled), the lines they stand in, from 1; and what the
    log should say of how they were read.
    """

    paths: list[bytes]
    labels: list[str]
    lines: list[int]
    notes: list[str]


def listed_images(
    root: str,
    list_file: str | os.PathLike[str],
    labeled: bool,
    classes: Sequence[str] | None,
    labels: Reading,
    exists: Callable[[bytes], bool] | None = None,
) -> ImageSet:
    """The images that a list file names, in its order: one path relative to ``root`` per line, and when ``labeled`` a
    blank and the label after it (a class number, or a class name without blanks). Blank lines and lines that begin with
    '#' are ignored.

    Args:
        exists: whether a listed path exists, for a root that is a pack.

    Raises:
        InputError: as :func:`read_list` and :func:`read_labels`.
    """
    list_file = os.fspath(list_file)
    found = read_list(root, list_file, labeled, exists)
    source = f"listed in {list_file}"
    if not labeled:
        return ImageSet.from_paths(root, found.paths, source=source, notes=found.notes)
    numbers, names, note = read_labels(list_file, found.labels, found.lines, classes, labels)
    return ImageSet.from_paths(root, found.paths, numbers, names, source=source, notes=[*found.notes, note])


def read_list(root: str, list_file: str, labeled: bool, exists: Callable[[bytes], bool] | None = None) -> Listed:
    """Read a list file in the plain form (a path a line; when ``labeled`` a blank and the label after it) where that
    names files, else in the first other form that does: columns separated by commas, semicolons or tabs; paths in
    quotes, with backslashes, or with the root in front. One form holds for the whole list.

    Args:
        exists: whether a listed path exists, for a root that is a pack.

    Raises:
        InputError: it cannot be read, lists nothing, or lists a file that is not there.
    """
    top = os.fsencode(root)
    present = exists or (lambda path: os.path.isfile(os.path.join(top, path)))
    rows = [(number, line) for number, line in enumerate(_lines(list_file), start=1) if line and line[:1] != b"#"]
    notes = []
    if rows and _is_title(rows[0][1]) and not present(rows[0][1]):
        notes.append(f"line {rows.pop(0)[0]} of the list left out: titles of columns")
    if not rows:
        raise InputError(
            f"{printable(list_file)} lists no image; expected one path per line, relative to {printable(root)}"
        )
    # Every path of a pack; of a folder an even sample, because a million files on a network drive take minutes.
    sample = [rows[index] for index in spread(len(rows), len(rows) if exists else _FILES_CHECKED)]
    form, problem = _find_form(top, labeled, sample, present)
    paths, labels = [], []
    for number, line in [problem] if problem else rows:
        row = form.read(line, labeled, top)
        if problem or row is None:
            raise InputError(f"{printable(list_file)}:{number}: {_cause(top, labeled, line, present)}")
        paths.append(row[0])
        labels.append(os.fsdecode(row[1]))
    return Listed(paths, labels, [number for number, _ in rows], notes + form.notes(labeled))


def _lines(list_file: str) -> list[bytes]:
    try:
        with open(list_file, "rb") as file:
            return [line.strip() for line in utf8(file.read()).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the list file {printable(list_file)}: {getattr(error, 'strerror', None) or error}; give a "
            "text file with one image path per line"
        ) from error


def _is_title(line: bytes) -> bool:
    return {word.strip('"') for word in re.split("[,;\\s]", os.fsdecode(line).lower())} <= _TITLES


# --- forms of a line -----------------------------------------------------------------------------------------------


def _without_quotes(path: bytes, top: bytes) -> bytes:
    return path[1:-1] if len(path) > 2 and path[:1] == path[-1:] and path[:1] in (b'"', b"'") else path


def _with_slashes(path: bytes, top: bytes) -> bytes:
    return path.replace(b"\\", b"/")


def _below_root(path: bytes, top: bytes) -> bytes:
    """The path without the root, or the last folders of it, in front."""
    folders = os.path.normpath(top).split(b"/")
    path = os.path.normpath(path)
    fronts = (b"/".join(folders[first:]) + b"/" for first in range(len(folders)))
    return next((path[len(front) :] for front in fronts if path.startswith(front)), path)


_MENDING: dict[Callable[[bytes, bytes], bytes], str] = {
    _without_quotes: "quotes",
    _with_slashes: "backslashes",
    _below_root: "the root in front of paths",
}


class _Form(NamedTuple):
    """One way to read a line."""

    delimiter: bytes = b""  # of columns; empty: the label is the last word
    mending: tuple[Callable[[bytes, bytes], bytes], ...] = ()

    def read(self, line: bytes, labeled: bool, top: bytes) -> tuple[bytes, bytes] | None:
        """(path, label) in a line; None when it does not have this form."""
        columns = line.rsplit(None, 1) if labeled else [line]
        if self.delimiter:
            columns = _columns(line, self.delimiter)
        if len(columns) != 2 and (labeled or len(columns) != 1):
            return None
        path = columns[0]
        for mend in self.mending:
            path = mend(path, top)
        return path, columns[-1]

    def notes(self, labeled: bool = True) -> list[str]:
        """What the log should say of this form."""
        words = [f"columns separated by {_DELIMITERS[self.delimiter]}"] if self.delimiter else []
        words += [_MENDING[mend] for mend in self.mending]
        unused = "" if labeled or not self.delimiter else "; only the first column counts, labels are not needed"
        return [f"the list has {' and '.join(words)}{unused}"] if words else []


def _columns(line: bytes, delimiter: bytes) -> list[bytes]:
    try:
        row = next(csv.reader([os.fsdecode(line)], delimiter=delimiter.decode(), skipinitialspace=True), [])
    except csv.Error:
        return []
    return [os.fsencode(column.strip()) for column in row]


def _find_form(
    top: bytes, labeled: bool, sample: Sequence[tuple[int, bytes]], present: Callable[[bytes], bool]
) -> tuple[_Form, tuple[int, bytes] | None]:
    """The form, the plain one first, in which every line of the sample names a file; or the line that has none."""

    def misfits(form: _Form, rows: Sequence[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
        read = ((row, form.read(row[1], labeled, top)) for row in rows)
        return (row for row, found in read if found is None or not present(found[0]))

    missing = next(misfits(_Form(), sample), None)
    if missing is None:
        return _Form(), None
    mendings = [mending for count in range(len(_MENDING) + 1) for mending in combinations(_MENDING, count)]
    forms = [_Form(delimiter, mending) for delimiter in (b"", *_DELIMITERS) for mending in mendings]
    nearest = _Form(), missing
    for form in sorted(forms, key=lambda form: bool(form.delimiter) + len(form.mending)):  # fewest changes first
        if any(misfits(form, [missing])):
            continue
        other = next(misfits(form, sample), None)
        if other is None:
            return form, None
        nearest = form, other
    return nearest


def _cause(top: bytes, labeled: bool, line: bytes, present: Callable[[bytes], bool]) -> str:
    """Why a line names no file, as far as can be told."""
    pieces = line.rsplit(None, 1)
    path = pieces[0] if labeled else line
    wide = [columns for mark in _DELIMITERS if len(columns := _columns(line, mark)) > 2]
    if b"\0" in line:
        return "UTF-16 without its byte order mark, or no text at all; save the list as UTF-8"
    if b"://" in line:
        return f"{_shown(line)} is an address; download the images, and list paths relative to {_shown(top)}"
    if any(present(column) for columns in wide for column in columns):
        return f"{len(wide[0])} columns, expected a path" + (" and a label" if labeled else " (and a label at most)")
    if labeled and len(pieces) < 2:
        return f"expected 'path label', got {_shown(line)}; add a class number or class name after the path"
    if not labeled and len(pieces) == 2 and present(pieces[0]):
        return f"no file {_shown(line)}; is {_shown(pieces[1])} a label? Labels are not expected here; leave them out"
    close = _same_but_for_case_or_ending(os.path.join(top, path))
    hint = f"; did you mean {_shown(close)}?" if close else ""
    return f"no file {_shown(path)}; paths are relative to {printable(os.fsdecode(top))}{hint}"


def _shown(text: bytes) -> str:
    return repr(printable(os.fsdecode(text)))


def _same_but_for_case_or_ending(path: bytes) -> bytes | None:
    folder, name = os.path.split(path.replace(b"\\", b"/"))

    def stem(name: bytes) -> str:
        return unicodedata.normalize("NFC", os.fsdecode(os.path.splitext(name)[0])).casefold()

    try:
        return next((entry.name for entry in os.scandir(folder) if stem(entry.name) == stem(name)), None)
    except (OSError, ValueError):
        return None


# --- labels --------------------------------------------------------------------------------------------------------


def read_labels(
    source: str, words: Sequence[str], lines: Sequence[int], classes: Sequence[str] | None, reading: Reading = "auto"
) -> tuple[np.ndarray, tuple[str, ...], str]:
    """(N,) int64 indices into the class names; these; and how the labels were read, which is the same way for all.

    Args:
        source, lines: the list file, and the line of each label in it, for messages.
        classes: the class names to number by; None: the labels themselves make them, numbers if all of them are.
        reading: "auto": whichever fits, and where both do they must mean the same.

    Raises:
        InputError: a label fits neither reading, or all fit both and mean different classes; -1 is no class.
    """

    def refused(word: str, why: str) -> InputError:
        return InputError(f"{printable(source)}:{lines[words.index(word)]}: label {printable(word)!r} {why}")

    distinct = list(dict.fromkeys(words))
    negative = next((word for word in distinct if re.fullmatch("-[0-9]+", word)), None)
    if negative is not None and reading != "names":
        raise refused(negative, "is no class: leave out what has none, or set labels: names if it is a name")
    if classes is None:
        if reading == "names" or not all(map(_is_number, distinct)):
            reading, classes = "names" if reading == "auto" else reading, sorted(distinct)
        else:
            largest = max(distinct, key=int)
            if int(largest) > 10 * len(words) + 1000:
                raise refused(largest, f"among {len(words):,} images; labels count from 0 without large gaps")
            reading, classes = "numbers", [str(number) for number in range(int(largest) + 1)]
    by_name = {name: number for number, name in enumerate(classes)}
    by_number = {word: int(word) for word in distinct if _is_number(word) and int(word) < len(classes)}
    readings = {"names": by_name, "numbers": by_number}
    fitting = [kind for kind, meaning in readings.items() if meaning.keys() >= set(distinct)]
    different = next((word for word in distinct if by_name.get(word) != by_number.get(word)), None)
    if reading != "auto":
        fitting = [kind for kind in fitting if kind == reading]
    elif len(fitting) == 2 and different is not None:
        raise refused(
            different,
            f"is both the name of class {by_name[different]} and the number of the class "
            f"{printable(classes[by_number[different]])!r}; set labels: names or labels: numbers beside the list",
        )
    if not fitting:
        known = by_name | by_number if reading == "auto" else readings[reading]
        unknown = [word for word in distinct if word not in known]
        mixed = [word for word in distinct if word not in (by_name if distinct[0] in by_name else by_number)]
        word = [*unknown, *mixed][0]
        raise refused(
            word,
            f"is unknown; expected in all lines a number from 0 to {len(classes) - 1}, or in all one of "
            f"{listed(classes)}{suggestion(word, classes) if unknown else ''}",
        )
    meaning = readings[fitting[0]]
    numbers = np.fromiter((meaning[word] for word in words), np.int64, len(words))
    return numbers, tuple(classes), f"labels are class {'numbers' if different is None else fitting[0]}"


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 19
