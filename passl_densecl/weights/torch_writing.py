"""Torch zip files written without torch."""

from __future__ import annotations

import math
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from passl_densecl.disk import whole_file
from passl_densecl.errors import InputError
from passl_densecl.weights import card as cards
from passl_densecl.weights.plain import MAX_NESTING, as_array, describe, not_plain
from passl_densecl.weights.torch_files import CARD_RECORD, DTYPES, STORAGES

_ARCHIVE = "archive"  # the folder in the zip files that are written here; any name will do
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)

_STORAGE_OF = {DTYPES[f"torch.{dtype}"].str: storage for storage, dtype in STORAGES.items() if dtype != "bfloat16"}


def write_torch(
    path: str | os.PathLike[str], content: object, *, card: cards.Card | Mapping[str, Any] | None = None
) -> None:
    """Write plain containers, numbers, text and arrays to ``path`` as torch.save would, all or nothing.

    ``torch.load`` reads it, also with ``weights_only=True``: arrays become tensors, a table of arrays an OrderedDict
    as a module's state. Equal content and card give equal bytes.

    Raises:
        InputError: the folder is missing, the file cannot be written there, or torch does not have an array's dtype.
        TypeError: ``content`` holds something that is not plain data.
    """
    program = _TorchProgram()
    data = program.of(content)

    with whole_file(path) as file, zipfile.ZipFile(file, "w") as archive:

        def record(name: str, data: bytes) -> None:
            info = zipfile.ZipInfo(f"{_ARCHIVE}/{name}", _ZIP_DATE)
            info.create_system, info.external_attr = 0, 0  # the same bytes on every system
            archive.writestr(info, data)

        record("data.pkl", data)
        record("byteorder", b"little")
        for number, array in enumerate(program.arrays):
            record(f"data/{number}", array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        record("version", b"3\n")
        if card is not None:
            record(CARD_RECORD, cards.encode(card))


class _TorchProgram:
    """The pickle of protocol 2 that makes torch build a content; the arrays are collected beside it."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []

    def of(self, content: object) -> bytes:
        return pickle.PROTO + b"\x02" + self._value(content, 0) + pickle.STOP

    def _value(self, value: Any, nesting: int) -> bytes:
        if nesting > MAX_NESTING:
            raise TypeError("only plain data can be written: this is nested too deep, or contains itself")
        array = as_array(value)
        if array is not None:
            return self._tensor(array)
        if value is None or isinstance(value, (bool, int, float, str)):
            return _plain(value)
        if type(value) is bytes:
            return _call("_codecs encode", _plain(value.decode("latin1")) + _plain("latin1"))
        if isinstance(value, (list, tuple)):
            if type(value) not in (list, tuple):
                raise not_plain(value)
            items = b"".join(self._value(item, nesting + 1) for item in value)
            if type(value) is tuple:
                return pickle.MARK + items + pickle.TUPLE
            return pickle.EMPTY_LIST + pickle.MARK + items + pickle.APPENDS
        if isinstance(value, dict) and type(value) in (dict, OrderedDict):
            is_state = type(value) is OrderedDict or (
                value and all(as_array(item) is not None for item in value.values())
            )
            start = _call("collections OrderedDict", b"") if is_state else pickle.EMPTY_DICT
            items = b"".join(_plain(key) + self._value(item, nesting + 1) for key, item in value.items())
            return start + pickle.MARK + items + pickle.SETITEMS
        raise not_plain(value)

    def _tensor(self, array: np.ndarray) -> bytes:
        storage = _STORAGE_OF.get(array.dtype.newbyteorder("<").str)
        if storage is None:
            raise InputError(
                f"a torch file cannot hold {describe(array)}; convert it to one of {', '.join(_STORAGE_OF)}"
            )
        key = str(len(self.arrays))
        self.arrays.append(array)
        strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
        place = (
            _plain("storage") + _global(storage.replace(".", " ")) + _plain(key) + _plain("cpu") + _plain(array.size)
        )
        return _call(
            "torch._utils _rebuild_tensor_v2",
            pickle.MARK
            + place
            + pickle.TUPLE
            + pickle.BINPERSID
            + _plain(0)
            + _tuple(array.shape)
            + _tuple(strides)
            + _plain(False)
            + _call("collections OrderedDict", b""),
        )


def _plain(value: Any) -> bytes:
    """Protocol 2 of None, a number or a text."""
    if value is None or type(value) is bool:
        return {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[value]
    if type(value) is int:
        if -(2**31) <= value < 2**31:
            return pickle.BININT + struct.pack("<i", value)
        data = pickle.encode_long(value)
        if len(data) > 255:
            raise not_plain(value)
        return pickle.LONG1 + bytes([len(data)]) + data
    if type(value) is float:
        return pickle.BINFLOAT + struct.pack(">d", value)
    if type(value) is str:
        text = value.encode("utf-8", "surrogatepass")
        return pickle.BINUNICODE + struct.pack("<I", len(text)) + text
    raise not_plain(value)


def _tuple(values: Any) -> bytes:
    return pickle.MARK + b"".join(_plain(value) for value in values) + pickle.TUPLE


def _global(name: str) -> bytes:
    module, _, attribute = name.partition(" ")
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


def _call(name: str, arguments: bytes) -> bytes:
    return _global(name) + pickle.MARK + arguments + pickle.TUPLE + pickle.REDUCE
