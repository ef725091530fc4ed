"""Files of ``torch.save`` (.pth, .pt) read as data, without torch.

Since torch 1.6 such a file is a zip archive: ``data.pkl``, a pickle in which a tensor is a call of
``torch._utils._rebuild_tensor_v2`` on the key of a storage, and ``data/KEY``, the bytes of each storage, uncompressed.
Before, it was several pickles in a row and then the storages.

Checkpoints of Lightning, OpenMMLab and others hold objects beside the weights: settings, history buffers, paths. Those
of the packages in ``_BOOKKEEPING`` become a text with the name of their class; nothing is imported for them. What they
are made of (``typing.Any``, classes of their author) is only noted as well, whatever its name: it is refused where it
stands outside of such an object. None of them may hold a tensor: a weight would be lost.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

import numpy as np

from passl_densecl.errors import InputError
from passl_densecl.weights import card as cards
from passl_densecl.weights.pickles import NAMES, DataUnpickler, Note, unknown_program
from passl_densecl.weights.reading import (
    BoundedReader,
    UnfitError,
    check_end,
    checked_shape,
    decode_card,
    describe,
    empty_array,
    explained,
    widened,
)

CARD_RECORD = "passl_densecl_card.json"
ZIP_START = b"PK\x03\x04"

_BFLOAT16 = np.dtype("V2")  # numpy has no bfloat16; it is read as its bits and widened to float32, which is exact
STORAGES = {  # torch's types of storages → the dtype of their values
    "torch.FloatStorage": "float32",
    "torch.DoubleStorage": "float64",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.ByteStorage": "uint8",
    "torch.CharStorage": "int8",
    "torch.ShortStorage": "int16",
    "torch.IntStorage": "int32",
    "torch.LongStorage": "int64",
    "torch.BoolStorage": "bool",
    "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128",
}
DTYPES = {
    f"torch.{name}": _BFLOAT16 if name == "bfloat16" else np.dtype(name)
    for name in (*STORAGES.values(), "uint16", "uint32", "uint64")
}
_UNTYPED = ("torch.storage.UntypedStorage", "torch.UntypedStorage")  # bytes of any type
_NO_DTYPE = tuple(f"torch.{name}" for name in ("float8", "qint", "quint", "complex32", "bits"))
_TENSOR_MAKERS = tuple(
    f"torch._utils._rebuild_{name}"
    for name in ("tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state")
)
_NAMES = NAMES.union(
    ["builtins.getattr", *STORAGES, *DTYPES, *_UNTYPED, *_TENSOR_MAKERS],
    ["torch.Tensor", "torch.nn.Parameter", "torch.nn.parameter.Parameter"],
    ["torch._tensor._rebuild_from_type_v2", "torch.Size", "torch.device", "torch.serialization._get_layout"],
)
_BOOKKEEPING = (
    *("mmcls", "mmcv", "mmdet", "mmengine", "mmpretrain", "mmseg", "mmselfsup"),
    *("lightning", "lightning_fabric", "pytorch_lightning", "omegaconf"),
    *("addict", "easydict", "fvcore", "ml_collections", "munch", "yacs"),
    *("argparse", "datetime", "pathlib"),
)


def load(path: Path, file: BinaryIO, size: int) -> tuple[object, tuple[str, ...]]:
    """The plain data in a file of torch.save, and the classes of the objects that were not read. Raises InputError."""
    if not _is_zip(file):
        return _load_legacy(path, file, size)
    with _opened_archive(path, file, size) as archive:
        program = archive.read("data.pkl")
        reader = BoundedReader(io.BytesIO(program), len(program))
        unpickler = TorchUnpickler(path, reader, size, archive.read_storage)
        content = unpickler.load()
        check_end(path, reader)
        order = archive.read("byteorder") if archive.holds("byteorder") else b"little"
        if order not in (b"little", b"big"):
            raise UnfitError(f"byte order {describe(order)}")
        unpickler.byte_order = "<" if order == b"little" else ">"
        return unpickler.finish(content), tuple(sorted(unpickler.not_read))


def _load_legacy(path: Path, file: BinaryIO, size: int) -> tuple[object, tuple[str, ...]]:
    """As :func:`load`, of torch.save before 1.6, or with _use_new_zipfile_serialization=False."""
    with explained(path, size):
        reader, data = BoundedReader(file, size), {}
        unpickler = TorchUnpickler(path, reader, size, lambda key, _size: data[key])
        _magic, _protocol, system, content, keys = (unpickler.load() for _ in range(5))
        unpickler.byte_order = ">" if isinstance(system, dict) and system.get("little_endian") is False else "<"
        are_names = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if not are_names or sorted(keys) != sorted(unpickler.storages):
            raise UnfitError("a list of storages that are not those of the tensors")
        for key in keys:
            dtype, wanted = unpickler.storages[key]
            (count,) = struct.unpack(f"{unpickler.byte_order}q", reader.read(8))
            if count != wanted:
                raise UnfitError(f"storage {key!r} of {count:,} values instead of {wanted:,}")
            data[key] = reader.read(count * (1 if dtype is None else dtype.itemsize))
        check_end(path, reader)
        return unpickler.finish(content), tuple(sorted(unpickler.not_read))


def card(path: Path, file: BinaryIO, size: int) -> dict[str, Any] | None:
    """The identity card in a torch zip file; None when it has none."""
    if not _is_zip(file):
        return None
    with _opened_archive(path, file, size) as archive:
        if not archive.holds(CARD_RECORD) or archive.size_of(CARD_RECORD) > 2 * cards.MAX_BYTES:
            return None
        return decode_card(path, archive.read(CARD_RECORD))


class TorchUnpickler(DataUnpickler):
    """A pickle of torch.save, its tensors made of ``read_storage``: (key, size) → the bytes of a storage."""

    names: ClassVar[frozenset[str]] = _NAMES
    of_paddle: ClassVar[bool] = False

    def __init__(self, path: Path, reader: BoundedReader, size: int, read_storage: Callable[[str, int], bytes]) -> None:
        super().__init__(path, reader, size)
        self._read_storage = read_storage
        self.storages: dict[str, tuple[np.dtype | None, int]] = {}  # key → dtype (None: any) and count of values
        self.byte_order: Literal["<", ">"] = "<"  # of the storages
        self.not_read: set[str] = set()  # classes of bookkeeping
        self._last_storage: tuple[str | None, bytes] = (None, b"")
        self._without_tensor: dict[int, object] = {}  # id → object inside of bookkeeping

    def find_class(self, module: str, name: str) -> Note:
        note = Note(f"{'builtins' if module == '__builtin__' else module}.{name}")
        if _is_bookkeeping(note):
            self.not_read.add(note.name)
        elif note.name.startswith(_NO_DTYPE):
            raise self.refused(note)
        return note

    def is_foreign(self, note: Note) -> bool:
        """Whether it is neither data nor a maker of data: allowed in objects of bookkeeping only."""
        return super().is_foreign(note) and note.name != "storage"

    def why_refused(self, name: str) -> str:
        if name.startswith(_NO_DTYPE):
            return "a dtype that numpy does not have; convert the tensors to float32 in torch first"
        return unknown_program(name, "torch.load(…, weights_only=False)", "model.state_dict()")

    def persistent_load(self, pid: object) -> Note:
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise UnfitError(f"something outside of the file: {describe(pid)}")
        _, kind, key, _location, count, *view = pid
        name = kind.name if isinstance(kind, Note) else None
        if name not in (*STORAGES, *_UNTYPED) or not isinstance(key, str) or any(part is not None for part in view):
            raise UnfitError(f"a storage that is {describe(key)}, of {describe(kind)}")
        if type(count) is not int or count < 0:
            raise UnfitError(f"storage {key!r} of {describe(count)} values")
        dtype = None if name in _UNTYPED else DTYPES[f"torch.{STORAGES[name]}"]
        if self.storages.setdefault(key, (dtype, count)) != (dtype, count):
            raise UnfitError(f"storage {key!r} described in two ways")
        return Note("storage", (key,))

    def called(self, function: Note, arguments: tuple) -> object:
        if self.is_foreign(function):
            return Note(function.name, (function, *arguments), is_call=True)
        if function.name == "builtins.getattr":  # how protocol 2 spells a method of a class
            thing, name = arguments
            if not isinstance(thing, Note) or not self.is_foreign(thing) or not isinstance(name, str):
                raise UnfitError(f"it asks for builtins.getattr of {describe(thing)}, which is not data")
            self.charge(len(thing.name))  # which a chain of these makes longer and longer
            return Note(f"{thing.name}.{name[:80]}", (thing,), is_call=True)
        if function.name == "storage":
            raise UnfitError(f"a call of {describe(function)}")
        return super().called(function, arguments)

    def finish_note(self, note: Note, nesting: int) -> object:
        if _is_bookkeeping(note):
            return self._bookkeeping_text(note)
        if note.name in DTYPES and not note.is_call:
            return note.name
        match note.name.rpartition(".")[2] if note.is_call else "", note:
            case "_rebuild_tensor" | "_rebuild_tensor_v2", [storage, offset, shape, strides, *_]:
                return self._tensor(storage, offset, shape, strides)
            case "_rebuild_tensor_v3", [storage, offset, shape, strides, _gradient, _hooks, dtype, *_]:
                return self._tensor(storage, offset, shape, strides, DTYPES.get(getattr(dtype, "name", "")))
            case "_rebuild_parameter" | "_rebuild_parameter_with_state", [tensor, *_] if _is_tensor(tensor):
                return self.finish(tensor, nesting + 1)
            case "_rebuild_from_type_v2", [make, _type, tuple() as arguments, *_] if _is_tensor(make):
                # Attributes of the tensor are dropped.
                return self.finish(Note(make.name, arguments, is_call=True), nesting + 1)
            case "Size", [tuple() | list() as lengths]:
                return checked_shape(tuple(lengths))
            case "device" | "_get_layout", [str() as text, *_]:
                return text
        return super().finish_note(note, nesting)

    def _bookkeeping_text(self, note: Note) -> str:
        waiting: list[object] = [*note]
        while waiting:
            value = waiting.pop()
            if _is_tensor(value) or (isinstance(value, Note) and value.name == "storage"):
                raise UnfitError(
                    f"{note.name}, an object that holds a tensor, which cannot be read without running its class; "
                    "in the program that wrote it, save model.state_dict() alone"
                )
            if id(value) not in self._without_tensor and isinstance(value, (dict, list, tuple)):
                self._without_tensor[id(value)] = value
                waiting += value.values() if isinstance(value, dict) else value
        return f"({note.name}, not read)"

    def _tensor(
        self, storage: object, offset: object, shape: object, strides: object, dtype: np.dtype | None = None
    ) -> np.ndarray:
        """A contiguous array. Every value is checked to lie inside of the storage."""
        if not isinstance(storage, Note) or storage.name != "storage" or not storage:
            raise UnfitError(f"tensor whose storage is {describe(storage)}")
        key, shape, strides = storage[0], checked_shape(shape), checked_shape(strides)
        own_dtype, count = self.storages[key]
        dtype = dtype or own_dtype
        if dtype is None:
            raise UnfitError("tensor of unknown dtype")
        if len(shape) != len(strides) or type(offset) is not int or offset < 0:
            raise UnfitError(f"tensor {list(shape)} at {describe(offset)} with {describe(strides)} as strides")
        is_bfloat16 = dtype == _BFLOAT16
        values_dtype, result_dtype = (np.dtype("u2"), np.dtype("f4")) if is_bfloat16 else (dtype, dtype)
        if math.prod(shape) == 0:
            return empty_array(shape, result_dtype)
        end = 1 + offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        size = count * (1 if own_dtype is None else own_dtype.itemsize)
        available = size // dtype.itemsize
        if end > available:
            what = f"tensor {list(shape)} that ends at value {end:,} of storage {key!r}"
            raise UnfitError(f"{what}, which has {available:,}")
        self.charge(math.prod(shape) * result_dtype.itemsize)
        if self._last_storage[0] != key:
            self.charge(size)
            self._last_storage = (None, b"")  # freed before the next is read
            self._last_storage = (key, self._read_storage(key, size))
        values = np.frombuffer(self._last_storage[1], values_dtype.newbyteorder(self.byte_order), available)[offset:]
        in_bytes = [stride * dtype.itemsize for stride in strides]
        view = np.lib.stride_tricks.as_strided(values, shape, in_bytes, writeable=False)
        return widened(view) if is_bfloat16 else view.astype(dtype.newbyteorder("="), order="C", copy=True)


def _is_zip(file: BinaryIO) -> bool:
    start = file.read(len(ZIP_START))
    file.seek(0)
    return start == ZIP_START


def _is_tensor(value: object) -> bool:
    return isinstance(value, Note) and value.name in _TENSOR_MAKERS


def _is_bookkeeping(note: Note) -> bool:
    return note.name.partition(".")[0] in _BOOKKEEPING


class _Archive:
    """The records of a torch zip file of ``size`` bytes: all inside of it, none compressed, none overlapping."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, size: int) -> None:
        self._zip, entries = archive, archive.infolist()
        names = [entry.filename for entry in entries]
        for name in names:
            if name.startswith("/") or "\\" in name or ".." in name.split("/"):
                raise UnfitError(f"a record named {name!r}, which would lie outside of the archive")
        programs = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
        self._prefix = programs[0].removesuffix("data.pkl") if programs else ""
        if f"{self._prefix}constants.pkl" in names:
            raise InputError(
                f"{path}: a TorchScript archive, which is a program and not a table of weights; "
                "where it came from, save model.state_dict() with torch.save"
            )
        if len(programs) != 1:
            raise InputError(f"{path}: a zip file, but not one of torch.save; unpack it first?")
        if len(set(names)) != len(names):
            raise UnfitError("two records of one name")
        for entry in entries:
            record = f"record {entry.filename!r}"
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise UnfitError(f"{record} is compressed or encrypted, which torch.save never does")
            if entry.file_size != entry.compress_size or entry.header_offset + 30 + entry.file_size > size:
                raise UnfitError(f"{record} of {entry.file_size:,} bytes in a file of {size:,}")
            if entry.CRC == 0:  # torch can leave the checksum out; without the attribute zipfile compares none
                del entry.CRC
        if sum(entry.file_size for entry in entries) > size:
            raise UnfitError("records that overlap")

    def holds(self, name: str) -> bool:
        return self._prefix + name in self._zip.NameToInfo

    def size_of(self, name: str) -> int:
        return self._zip.getinfo(self._prefix + name).file_size

    def read(self, name: str) -> bytes:
        return self._zip.read(self._prefix + name)

    def read_storage(self, key: str, size: int) -> bytes:
        if not self.holds(f"data/{key}"):
            raise UnfitError(f"storage {key!r}, which is not in the archive")
        if self.size_of(f"data/{key}") != size:
            raise UnfitError(f"storage {key!r} of {size:,} bytes, which it does not have")
        return self.read(f"data/{key}")


@contextmanager
def _opened_archive(path: Path, file: BinaryIO, size: int) -> Iterator[_Archive]:
    with explained(path, size):
        try:
            archive = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            raise InputError(
                f"{path}: an incomplete or damaged zip file ({error}), perhaps a torch file that was cut off; "
                "copy or download it again"
            ) from None
        with archive:
            yield _Archive(path, archive, size)
