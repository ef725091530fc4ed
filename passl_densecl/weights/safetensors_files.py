"""Safetensors files, read and written with the package of that name, and checked by it.

A header longer than the file or 100 MB, gaps, overlaps and wrong lengths are refused by the package before it copies
anything (https://github.com/huggingface/safetensors, section Format).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
from safetensors.numpy import save

from passl_densecl.disk import whole_file
from passl_densecl.errors import InputError
from passl_densecl.weights import card as cards
from passl_densecl.weights.plain import as_array
from passl_densecl.weights.reading import UnfitError, decode_card, describe, explained, widened

_CARD_KEY = "passl_densecl"  # in the file's metadata
_NUMBERS = re.compile("[FIUC](8|16|32|64)")


def load(path: Path, file: BinaryIO, size: int) -> tuple[object, tuple[str, ...]]:
    """Name → array, sorted by name; bfloat16 as float32. Raises InputError; ``path`` is for its message."""
    with _explained(path, size):
        tensors = dict(safetensors.deserialize(file.read()))
        return {name: _array(name, tensors[name]) for name in sorted(tensors)}, ()


def card(path: Path, file: BinaryIO, size: int) -> dict[str, Any] | None:
    """The identity card in the metadata; None when there is none."""
    with _explained(path, size), safetensors.safe_open(path, "numpy") as opened:
        text = (opened.metadata() or {}).get(_CARD_KEY)
    return None if text is None else decode_card(path, text.encode())


def write_safetensors(
    path: str | os.PathLike[str], arrays: object, *, card: cards.Card | Mapping[str, Any] | None = None
) -> None:
    """Write name → array to ``path``, all or nothing. Equal arrays and card give equal bytes.

    Raises:
        InputError: not a flat table of arrays, a dtype that the format lacks, or the file cannot be written there.
    """
    if not isinstance(arrays, Mapping):
        raise InputError(f"a safetensors file holds names and arrays, not {describe(arrays)}")
    table = {name: _checked(name, value) for name, value in arrays.items()}
    metadata = None if card is None else {_CARD_KEY: cards.encode(card).decode("ascii")}
    try:
        data = save(table, metadata)
    except safetensors.SafetensorError as error:  # older versions of the package know fewer dtypes
        raise InputError(f"{path}: a safetensors file cannot hold these arrays: {error}") from None
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def _explained(path: Path, size: int) -> Iterator[None]:
    with explained(path, size):
        try:
            yield
        except safetensors.SafetensorError as error:
            reason = str(error).partition(": ")[2] or str(error)  # without "Error while deserializing header"
            raise UnfitError(f"{reason} (if it was cut off, copy or download it again)") from None


def _array(name: str, tensor: Mapping[str, Any]) -> np.ndarray:
    kind, data, shape = tensor["dtype"], tensor["data"], tensor["shape"]
    if kind == "BF16":
        return widened(np.frombuffer(data, "<u2").reshape(shape))
    if kind != "BOOL" and not _NUMBERS.fullmatch(kind):
        raise UnfitError(f"tensor {name!r} of dtype {kind}, which numpy does not have")
    dtype = np.dtype("?" if kind == "BOOL" else f"<{kind[0].lower()}{int(kind[1:]) // 8}")
    return np.frombuffer(data, dtype).reshape(shape)  # in memory of its own


def _checked(name: object, value: object) -> np.ndarray:
    array = as_array(value)
    if not isinstance(name, str) or name == "__metadata__" or array is None:
        raise InputError(
            f"a safetensors file holds a flat table of names and arrays, not {name!r}: {describe(value)}; "
            "write .pdparams or .pth to keep it"
        )
    if array.dtype.kind not in "biufc" or array.dtype.itemsize > 8:
        raise InputError(
            f"{name}: a safetensors file cannot hold {describe(array)}; convert it to numbers of at most 64 bits"
        )
    return array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
