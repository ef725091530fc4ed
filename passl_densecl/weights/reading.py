"""What the readers of all formats share: every length is checked against the file before memory is taken for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import ValidationError

from passl_densecl.disk import check_format
from passl_densecl.errors import InputError
from passl_densecl.weights.card import FORMAT, MAGIC, Card

_MAX_DIMENSIONS = 32
_MAX_LENGTH = 2**48  # of one dimension


def describe(value: object) -> str:
    """A value read from a file in a few words, for messages."""
    if isinstance(value, np.ndarray):
        return f"an array {list(value.shape)} of {value.dtype}"
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 2**128:  # Python refuses to print very large ones
        return f"int of {value.bit_length():,} bits"
    text = repr(value[:41] if isinstance(value, (str, bytes)) else value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


class UnfitError(Exception):
    """The file describes something other than plain data; :func:`explained` makes an InputError of it."""


@contextmanager
def explained(path: Path, size: int) -> Iterator[None]:
    """Around the reading of a file of ``size`` bytes: whatever is wrong with it is an InputError that names it."""
    try:
        yield
    except (InputError, OSError):
        raise
    except EOFError:
        raise InputError(
            f"{path}: the file ends too early, at {size:,} bytes; it was cut off: copy or download it again"
        ) from None
    except Exception as error:  # a damaged file can fail in any way
        reason = str(error) if isinstance(error, UnfitError) else f"{type(error).__name__}: {error!s:.200}"
        raise InputError(f"{path}: the file is damaged or hostile: {reason}; nothing in it was run") from None


class BoundedReader:
    """The next ``size`` bytes of a file: asking for more than is left is an error before any memory is reserved."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.size = size
        self.remaining = size

    def read(self, count: int) -> bytes:
        """Exactly ``count`` bytes. Raises EOFError."""
        if count > self.remaining:
            raise EOFError
        data = self._file.read(count)
        self.remaining -= len(data)
        if len(data) != count:
            raise EOFError
        return data

    def readline(self) -> bytes:
        """Up to the end of a line. Raises EOFError when the line has none."""
        line = self._file.readline(self.remaining)
        self.remaining -= len(line)
        if not line.endswith(b"\n"):
            raise EOFError
        return line


def check_end(path: Path, reader: BoundedReader) -> None:
    """Raises InputError when something follows the end of the data."""
    if reader.remaining:
        raise InputError(
            f"{path}: {reader.remaining:,} bytes follow the end of the data; "
            "the file is damaged, or several files were written into one"
        )


def checked_shape(shape: object) -> tuple[int, ...]:
    """``shape`` when it is a tuple of lengths. Raises UnfitError."""
    if not isinstance(shape, tuple) or len(shape) > _MAX_DIMENSIONS:
        raise UnfitError(f"array whose shape is {describe(shape)}")
    if not all(type(n) is int and 0 <= n < _MAX_LENGTH for n in shape):
        raise UnfitError(f"array whose shape is {describe(shape)}")
    return shape


def empty_array(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array without values: one of the lengths is 0, the others may be anything."""
    try:
        return np.zeros(shape, dtype)
    except (ValueError, MemoryError):
        raise UnfitError(f"array whose shape is {list(shape)}") from None


def widened(bits: np.ndarray) -> np.ndarray:
    """bfloat16, given as its bits in 16-bit integers, as float32: the upper half of the same bits."""
    wide = bits.astype("u4", order="C")
    np.left_shift(wide, np.uint32(16), out=wide)  # in place: an array without dimensions stays one
    return wide.view("f4")


def decode_card(path: Path, text: bytes) -> dict[str, Any] | None:
    """What ``card.encode`` was given; None for a text that is no card. Raises InputError for a damaged one."""
    if not text.startswith(MAGIC.encode()):
        return None
    try:
        values = json.loads(text[len(MAGIC) :])
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise InputError(f"{path}: the file is damaged: its identity card cannot be read")
    check_format(f"{path}: its identity card", values.get("format", 1), FORMAT)
    return values


def checked_card(values: Mapping[str, Any]) -> Card:
    """The card in a plain dictionary; unknown keys are kept. Raises InputError, which names the wrong entries."""
    try:
        return Card.model_validate(dict(values))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise InputError(f"the identity card is damaged, or of a version this one does not know ({wrong})") from None
