"""Torch zip files written without torch."""

from __future__ import annotations

import io
import math
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from passl_densecl.disk import whole_file
from passl_densecl.errors import InputError
from passl_densecl.weights import card as cards
from passl_densecl.weights.plain import MAX_NESTING, as_array, not_plain
from passl_densecl.weights.reading import describe
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
    program = io.BytesIO()
    pickler = _TorchPickler(program)
    pickler.dump(content)
    with whole_file(path) as file, zipfile.ZipFile(file, "w") as archive:

        def record(name: str, data: bytes) -> None:
            info = zipfile.ZipInfo(f"{_ARCHIVE}/{name}", _ZIP_DATE)
            info.create_system, info.external_attr = 0, 0  # the same bytes on every system
            archive.writestr(info, data)

        record("data.pkl", program.getvalue())
        record("byteorder", b"little")
        for number, array in enumerate(pickler.arrays):
            record(f"data/{number}", array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        record("version", b"3\n")
        if card is not None:
            record(CARD_RECORD, cards.encode(card))


class _Name(str):
    """A name that torch looks up: module and attribute."""


class _Storage(tuple):
    """Where torch finds a tensor's values."""


_INTEGER_BITS = 255 * 8 - 1  # torch's own reader knows no longer ones
_PLAIN = (type(None), bool, int, float, str, list, tuple, dict, OrderedDict, _Name, _Storage)


_Pickler: Any = pickle._Pickler  # the type stubs lack its methods


class _TorchPickler(_Pickler):
    """Writes the pickle of protocol 2 that makes torch build a content; the arrays are collected beside it.

    The pickler written in Python rather than the one in C: it writes names of torch without importing torch.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)
        self.fast = True  # no memo: the file does not depend on which equal strings happen to be one object
        self.arrays: list[np.ndarray] = []
        self._nesting = 0

    def save(self, value: Any, save_persistent_id: bool = True) -> None:
        if self._nesting > MAX_NESTING:
            raise TypeError("only plain data can be written: this is nested too deep, or contains itself")
        array = as_array(value)
        if array is not None:
            self._save_tensor(array)
        elif type(value) is bytes:
            self._save_call("_codecs encode", value.decode("latin1"), "latin1")
        elif not _is_plain(value):
            raise not_plain(value)
        else:
            if type(value) is dict and value and all(as_array(item) is not None for item in value.values()):
                value = OrderedDict(value)  # as a module's state
            self._nesting += 1
            super().save(value, save_persistent_id)
            self._nesting -= 1

    def _save_tensor(self, array: np.ndarray) -> None:
        storage = _STORAGE_OF.get(array.dtype.newbyteorder("<").str)
        if storage is None:
            raise InputError(
                f"a torch file cannot hold {describe(array)}; convert it to one of {', '.join(_STORAGE_OF)}"
            )
        strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
        place = ("storage", _Name(storage.replace(".", " ")), str(len(self.arrays)), "cpu", array.size)
        self.arrays.append(array)
        self._save_call(
            "torch._utils _rebuild_tensor_v2", _Storage(place), 0, array.shape, strides, False, OrderedDict()
        )

    def _save_call(self, name: str, *arguments: Any) -> None:
        nesting, self._nesting = self._nesting, 0  # arguments are no containers of the content
        self._save_name(_Name(name))
        self.save(arguments)
        self.write(pickle.REDUCE)
        self._nesting = nesting

    def _save_name(self, name: _Name) -> None:
        module, _, attribute = name.partition(" ")
        self.write(pickle.GLOBAL + f"{module}\n{attribute}\n".encode())

    def _save_storage(self, storage: _Storage) -> None:
        self.save_tuple(tuple(storage))
        self.write(pickle.BINPERSID)

    dispatch: ClassVar = pickle._Pickler.dispatch | {_Name: _save_name, _Storage: _save_storage}


def _is_plain(value: Any) -> bool:
    too_long = isinstance(value, int) and value.bit_length() > _INTEGER_BITS
    return value is OrderedDict or (type(value) in _PLAIN and not too_long)
