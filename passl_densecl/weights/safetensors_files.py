"""Safetensors files read and written, without the package of that name.

Eight bytes say how long the header is; the header is JSON: name → dtype, shape and where the values lie in the bytes that
follow, without gaps or overlaps (https://github.com/huggingface/safetensors, section Format).
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from passl_densecl.disk import BoundedReader, whole_file
from passl_densecl.errors import InputError
from passl_densecl.weights import card as cards
from passl_densecl.weights.pickles import explained
from passl_densecl.weights.plain import UnfitError, as_array, check_shape, describe, empty_array, widened

MAX_HEADER = 100_000_000  # the format's own limit
_METADATA, _CARD_KEY = "__metadata__", "passl_densecl"
_DTYPES = {
    "F32": "<f4",
    "F64": "<f8",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
    "C64": "<c8",
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class _Place(NamedTuple):
    """Where a tensor's values are, in bytes from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def is_safetensors(start: bytes, size: int) -> bool:
    """Whether a file of ``size`` bytes begins as a safetensors file whose header is inside of it."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8


def load_safetensors(path: Path, file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    """Name → array, in the header's order; bfloat16 as float32. Raises InputError; ``path`` is for its message."""
    with explained(path, size):
        reader = BoundedReader(file, size)
        places, _ = _header(reader)
        arrays = {}
        for place in sorted(places, key=lambda place: (place.begin, place.end)):
            arrays[place.name] = _array(place, reader.read(place.end - place.begin))
        return {place.name: arrays[place.name] for place in places}


def safetensors_card(path: Path, file: BinaryIO, size: int) -> dict[str, Any] | None:
    """The identity card in the metadata; None when there is none."""
    with explained(path, size):
        _, metadata = _header(BoundedReader(file, size))
        text = metadata.get(_CARD_KEY)
        return None if text is None else cards.decode(path, text.encode())


def write_safetensors(
    path: str | os.PathLike[str], arrays: Mapping[str, Any], *, card: cards.Card | Mapping[str, Any] | None = None
) -> None:
    """Write name → array to ``path``, all or nothing. Equal arrays and card give equal bytes.

    Raises:
        InputError: not a flat table of arrays, a dtype that the format lacks, or the file cannot be written there.
    """
    table = {name: _checked(name, value) for name, value in _flat(arrays)}
    # Wide values first, so that each lies at a multiple of its size; the header keeps the order of the table.
    laid_out = sorted(table, key=lambda name: -table[name].dtype.itemsize)
    ends, end = {}, 0
    for name in laid_out:
        end += table[name].nbytes
        ends[name] = end
    header: dict[str, Any] = {}
    if card is not None:
        header[_METADATA] = {_CARD_KEY: cards.encode(card).decode("ascii")}
    for name, array in table.items():
        place = [ends[name] - array.nbytes, ends[name]]
        header[name] = {"dtype": _NAMES[array.dtype.str], "shape": list(array.shape), "data_offsets": place}
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)

    with whole_file(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in laid_out:
            file.write(table[name].tobytes())


# Reading


def _header(reader: BoundedReader) -> tuple[list[_Place], dict[str, str]]:
    """The tensors in the header's order, and the metadata. Raises UnfitError or EOFError."""
    length = int.from_bytes(reader.read(8), "little")
    if length > min(MAX_HEADER, reader.remaining):
        raise UnfitError(f"a header of {length:,} bytes in a file of {reader.size:,}")
    try:
        header = json.loads(reader.read(length), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UnfitError(f"a header that is no JSON ({error!s:.100})") from None
    if not isinstance(header, dict):
        raise UnfitError(f"a header that is {describe(header)}")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UnfitError(f"metadata that is {describe(metadata)}")
    places = [_place(name, entry) for name, entry in header.items()]
    end = 0
    for place in sorted(places, key=lambda place: (place.begin, place.end)):
        if place.begin != end:
            raise UnfitError(
                f"tensor {place.name!r} at {place.begin:,}, where {end:,} is expected: a gap or an overlap"
            )
        end = place.end
    if end > reader.remaining:
        raise EOFError
    if end < reader.remaining:
        raise UnfitError(f"{reader.remaining - end:,} bytes that belong to no tensor")
    return places, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name is given twice")
    return table


def _place(name: str, entry: Any) -> _Place:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise UnfitError(f"tensor {name!r} described by {describe(entry)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or (dtype not in _DTYPES and dtype != "BF16"):
        raise UnfitError(f"tensor {name!r} of dtype {describe(dtype)}; known: BF16, {', '.join(_DTYPES)}")
    shape = check_shape(tuple(shape) if isinstance(shape, list) else shape)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        raise UnfitError(f"tensor {name!r} at {describe(offsets)}")
    itemsize = 2 if dtype == "BF16" else np.dtype(_DTYPES[dtype]).itemsize
    if offsets[1] - offsets[0] != math.prod(shape) * itemsize:
        raise UnfitError(f"tensor {name!r}, {list(shape)} of {dtype}, in {offsets[1] - offsets[0]:,} bytes")
    return _Place(name, dtype, shape, offsets[0], offsets[1])


def _array(place: _Place, data: bytes) -> np.ndarray:
    is_bfloat16 = place.dtype == "BF16"
    dtype = np.dtype("<u2" if is_bfloat16 else _DTYPES[place.dtype])
    if not data:
        return empty_array(place.shape, np.dtype("f4") if is_bfloat16 else dtype.newbyteorder("="))
    values = np.frombuffer(data, dtype).reshape(place.shape)
    if is_bfloat16:
        return widened(values)
    return values.astype(dtype.newbyteorder("="), copy=True)


# Writing


def _flat(arrays: Any) -> list[tuple[str, Any]]:
    if not isinstance(arrays, Mapping):
        raise InputError(f"a safetensors file holds names and arrays, not {describe(arrays)}")
    return list(arrays.items())


def _checked(name: object, value: object) -> np.ndarray:
    array = as_array(value)
    if not isinstance(name, str) or name == _METADATA or array is None:
        raise InputError(
            f"a safetensors file holds a flat table of names and arrays, not {name!r}: {describe(value)}; "
            "write .pdparams or .pth to keep it"
        )
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if array.dtype.str not in _NAMES:
        raise InputError(
            f"{name}: a safetensors file cannot hold {describe(array)}; convert it to {', '.join(_DTYPES)}"
        )
    return array
