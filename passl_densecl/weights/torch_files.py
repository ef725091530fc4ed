"""Files of ``torch.save`` (.pth, .pt) read as data and written, without torch.

Since torch 1.6 such a file is a zip archive: ``data.pkl``, a pickle in which a tensor is a call of
``torch._utils._rebuild_tensor_v2`` on the name of a storage, and ``data/NAME``, the bytes of each storage, uncompressed.
Before, it was several pickles in a row and then the storages. Both go through the unpickler that knows nothing but plain
data; torch's names stand for tensors that are checked, then cut out of their storages.

Checkpoints of OpenMMLab and others hold objects beside the weights: history buffers, parsed arguments, paths. torch's own
``weights_only`` reader refuses such a file whole. Here the classes of a few libraries that are known to be used for
bookkeeping are stand-ins that do nothing and take everything; what they stood for is replaced by a text that says so, and
reported. Nothing is imported for them, so they are as safe as a refusal. Any other name is refused: a file with weights
does not ask for it, and who made it should be known. An object that holds a tensor is refused as well, whatever its class,
since to drop it might be to drop a weight.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal, NamedTuple

import numpy as np

from passl_densecl.errors import InputError
from passl_densecl.weights import card as cards
from passl_densecl.weights.disk import BoundedReader, write_whole
from passl_densecl.weights.pickles import ADMITTED, Admitted, PlainUnpickler, check_end, explained
from passl_densecl.weights.plain import (
    Budget,
    DictStandIn,
    Finisher,
    StandIn,
    UnfitError,
    as_array,
    check_shape,
    describe,
    empty_array,
    not_plain,
    widened,
)

ZIP_START = b"PK\x03\x04"
_LEGACY_MAGIC = b"\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little") + b"."

ByteOrder = Literal["<", ">"]

_ARCHIVE = "archive"  # the folder in the zip files that are written here; any name will do
_CARD_RECORD = "passl_densecl_card.json"
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)

# torch's dtype → numpy's. bfloat16, which numpy lacks, is read as its bits and widened to float32, which is exact.
_BFLOAT16 = np.dtype("V2")
_DTYPES = {
    "float32": "f4", "float64": "f8", "float16": "f2", "bfloat16": _BFLOAT16, "uint8": "u1", "int8": "i1", "int16": "i2",
    "int32": "i4", "int64": "i8", "bool": "b1", "complex64": "c8", "complex128": "c16", "uint16": "u2", "uint32": "u4",
    "uint64": "u8",
}  # fmt: skip
_STORAGES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16", "IntStorage": "int32", "LongStorage": "int64",
    "BoolStorage": "bool", "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128",
}  # fmt: skip
_STORAGE_OF = {np.dtype(_DTYPES[dtype]).str: storage for storage, dtype in _STORAGES.items() if dtype != "bfloat16"}
_OTHER_DTYPES = ("float8", "qint", "quint", "complex32", "bits")

# Packages whose objects stand beside weights in checkpoints. None of them is ever imported.
_BOOKKEEPING = (
    "addict", "argparse", "datetime", "easydict", "fvcore", "mmcls", "mmcv", "mmdet", "mmengine", "mmpretrain", "mmseg",
    "mmselfsup", "omegaconf", "pathlib", "yacs",
)  # fmt: skip


class TorchContent(NamedTuple):
    """What a torch file holds."""

    content: object
    not_read: tuple[str, ...]  # classes whose objects were replaced by a text, sorted


def is_legacy(start: bytes) -> bool:
    """Whether the first bytes of a file are those of torch.save before torch 1.6."""
    return _LEGACY_MAGIC in start[:32]


def load_torch(path: Path, file: BinaryIO, size: int) -> TorchContent:
    """The plain data in a torch zip file. Raises InputError; ``path`` is for its message."""
    with explained(path, size):
        archive = _Archive(path, file, size)
        program = archive.read("data.pkl")
        budget = Budget(size)
        reader = BoundedReader(io.BytesIO(program), len(program))
        unpickler = _TorchUnpickler(reader, path, budget, archive.storage)
        content = unpickler.load()
        check_end(path, reader)
        return TorchContent(Finisher(budget, paddle=False).finish(content), unpickler.not_read)


def load_legacy_torch(path: Path, file: BinaryIO, size: int) -> TorchContent:
    """The plain data in a file of torch.save before 1.6, or with _use_new_zipfile_serialization=False."""
    with explained(path, size):
        budget, reader, storages = Budget(size), BoundedReader(file, size), {}

        def storage(key: str, dtype: np.dtype | None, count: int) -> Storage:
            found = storages.setdefault(key, Storage(key, dtype, count))
            if (found.dtype, found.count) != (dtype, count):
                raise UnfitError(f"storage {key!r} described in two ways")
            return found

        def load() -> tuple[object, tuple[str, ...]]:
            unpickler = _TorchUnpickler(reader, path, budget, storage)
            return unpickler.load(), unpickler.not_read

        for _ in ("magic number", "version of the protocol"):
            load()
        system, _ = load()
        order: ByteOrder = ">" if isinstance(system, dict) and system.get("little_endian") is False else "<"
        content, not_read = load()
        keys, _ = load()
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
            raise UnfitError("a list of storages that are not those of the tensors")
        for key in keys:
            (count,) = struct.unpack(f"{order}q", reader.read(8))
            if count != storages[key].count:
                raise UnfitError(f"storage {key!r} of {count:,} values instead of {storages[key].count:,}")
            storages[key].fill(reader.read(count * storages[key].itemsize), order)
        check_end(path, reader)
        return TorchContent(Finisher(budget, paddle=False).finish(content), not_read)


def torch_card(path: Path, file: BinaryIO, size: int) -> dict[str, Any] | None:
    """The identity card in a torch zip file; None when it has none."""
    with explained(path, size):
        archive = _Archive(path, file, size)
        if not archive.holds(_CARD_RECORD) or archive.size_of(_CARD_RECORD) > 2 * cards.MAX_BYTES:
            return None
        return cards.decode(path, archive.read(_CARD_RECORD))


def write_torch(
    path: str | os.PathLike[str], content: object, *, card: cards.Card | Mapping[str, Any] | None = None
) -> None:
    """Write plain containers, numbers, text and arrays to ``path`` as torch.save would, all or nothing.

    ``torch.load`` reads it, with ``weights_only=True`` as well: arrays become tensors, a table of arrays an OrderedDict,
    as a module's state is one. Equal content and card give equal bytes.

    Raises:
        InputError: the folder is missing, the file cannot be written there, or an array is of a dtype torch does not have.
        TypeError: ``content`` holds something that is not plain data.
    """
    program = _TorchProgram()
    data = program.of(content)

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:

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
                record(_CARD_RECORD, cards.encode(card))

    write_whole(path, write)


# Storages


class Storage(StandIn):
    """A run of values in a file, of which tensors are views."""

    __slots__ = ("_data", "_load", "count", "dtype", "key", "order", "users")

    def __init__(
        self, key: str, dtype: np.dtype | None, count: int, load: Callable[[], tuple[bytes, ByteOrder]] | None = None
    ) -> None:
        self.key, self.dtype, self.count, self._load = key, dtype, count, load  # dtype None: bytes of any type
        self.users = 0
        self.order: ByteOrder = "<"
        self._data: bytes | None = None

    @property
    def itemsize(self) -> int:
        return 1 if self.dtype is None else self.dtype.itemsize

    def fill(self, data: bytes, order: ByteOrder) -> None:
        """Take its bytes, in ``order`` "<" or ">"."""
        if len(data) != self.count * self.itemsize:
            raise UnfitError(f"storage {self.key!r} of {self.count:,} values in {len(data):,} bytes")
        self._data, self.order = data, order

    def values(self, dtype: np.dtype) -> np.ndarray:
        """As many values as there are, read only; the bytes are let go when the last tensor has asked."""
        if self._data is None:
            assert self._load is not None
            self.fill(*self._load())
        self.users -= 1
        data, self._data = self._data, self._data if self.users > 0 else None
        assert data is not None
        return np.frombuffer(data, dtype.newbyteorder(self.order), len(data) // dtype.itemsize)


class TensorStandIn(StandIn):
    """What a file says about a tensor."""

    __slots__ = ("dtype", "offset", "shape", "storage", "strides")

    def __init__(self, storage: object, offset: object, shape: object, strides: object, dtype: object = None) -> None:
        if not isinstance(storage, Storage):
            raise UnfitError(f"tensor whose storage is {describe(storage)}")
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides
        own = dtype.dtype if isinstance(dtype, _TorchDtype) else storage.dtype
        if own is None:
            raise UnfitError("tensor of unknown dtype")
        self.dtype: np.dtype = own
        storage.users += 1

    def result(self, budget: Budget) -> np.ndarray:
        """The tensor as a contiguous array of its own. Every value is checked to lie inside of the storage."""
        shape, strides = check_shape(self.shape), check_shape(self.strides)
        if len(shape) != len(strides) or type(self.offset) is not int or self.offset < 0:
            raise UnfitError(f"tensor {list(shape)} at {describe(self.offset)} with {describe(strides)} as strides")
        is_bfloat16 = self.dtype == _BFLOAT16
        dtype: np.dtype = np.dtype("u2") if is_bfloat16 else self.dtype
        if math.prod(shape) == 0:
            return empty_array(shape, np.dtype("f4") if is_bfloat16 else dtype)
        last = self.offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        available = self.storage.count * self.storage.itemsize // dtype.itemsize
        if last >= available:
            raise UnfitError(
                f"tensor {list(shape)} that ends at value {last + 1:,} of storage {self.storage.key!r}, which has {available:,}"
            )
        budget.charge(math.prod(shape) * (4 if is_bfloat16 else dtype.itemsize))
        values = self.storage.values(dtype)
        view = np.lib.stride_tricks.as_strided(
            values[self.offset :], shape, [stride * dtype.itemsize for stride in strides], writeable=False
        )
        if is_bfloat16:
            return widened(view)
        return view.astype(dtype.newbyteorder("="), order="C", copy=True)


class _TorchDtype(StandIn):
    """torch.float32 and so on; as data a text."""

    __slots__ = ("dtype", "name")

    def __init__(self, name: str) -> None:
        self.name, self.dtype = name, np.dtype(_DTYPES[name])

    def result(self, budget: Budget) -> str:
        return f"torch.{self.name}"


class _StorageType(StandIn):
    """torch.FloatStorage and so on; without a dtype, bytes of any type."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: str | None) -> None:
        self.dtype = None if dtype is None else np.dtype(_DTYPES[dtype])


class _TensorType(StandIn):
    """torch.Tensor or torch.nn.Parameter, which a file names beside a function that makes one."""

    __slots__ = ()


def _tensor(storage: object, offset: object, shape: object, strides: object, *_: object) -> TensorStandIn:
    return TensorStandIn(storage, offset, shape, strides)


def _tensor_of_dtype(
    storage: object, offset: object, shape: object, strides: object, _gradient: object, _hooks: object, dtype: object,
    *_: object,
) -> TensorStandIn:  # fmt: skip
    return TensorStandIn(storage, offset, shape, strides, dtype)


def _parameter(data: object, *_: object) -> TensorStandIn:
    if not isinstance(data, TensorStandIn):
        raise UnfitError(f"parameter made of {describe(data)}")
    return data


def _tensor_of_type(make: object, _type: object, arguments: object, _state: object) -> object:
    """A tensor with attributes; they are let go."""
    if not isinstance(make, Admitted) or not isinstance(arguments, tuple):
        raise UnfitError(f"tensor made by {describe(make)}")
    return _parameter(make(*arguments))


def _shown(value: object) -> str:
    if not isinstance(value, str):
        raise UnfitError(f"device or layout that is {describe(value)}")
    return value


def _device(kind: object, _index: object = None) -> str:
    return _shown(kind)


def _size(lengths: object = ()) -> tuple:
    return check_shape(tuple(lengths) if isinstance(lengths, list) else lengths)


def _default_dict(*_: object) -> DictStandIn:
    return DictStandIn()


_TORCH_ADMITTED: dict[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _tensor_of_type,
    "torch.Size": _size,
    "torch.device": _device,
    "torch.serialization._get_layout": _shown,
    "collections.Counter": DictStandIn,
    "collections.defaultdict": _default_dict,
}
_TENSOR_TYPES = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.Parameter")


# Reading


class _Archive:
    """The records of a torch zip file of ``size`` bytes, all of them inside of it, none compressed, none overlapping.

    ``zipfile`` reads the table of contents only. The records are read here: torch can leave out checksums, which
    ``zipfile`` takes for damage.
    """

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._file = file
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
        except zipfile.BadZipFile as error:
            raise InputError(
                f"{path}: an incomplete or damaged zip file ({error}), perhaps a torch file that was cut off; "
                "copy or download it again"
            ) from None
        names = [entry.filename for entry in entries]
        for name in names:
            if name.startswith("/") or "\\" in name or ".." in name.split("/"):
                raise UnfitError(f"a record named {name!r}, which would lie outside of the archive")
        programs = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
        self._prefix = programs[0][: -len("data.pkl")] if programs else ""
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
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise UnfitError(
                    f"record {entry.filename!r} is compressed or encrypted, which torch.save never does "
                    f"({entry.compress_size:,} bytes that would unfold to {entry.file_size:,})"
                )
            if entry.file_size != entry.compress_size or entry.header_offset + 30 + entry.file_size > size:
                raise UnfitError(f"record {entry.filename!r} of {entry.file_size:,} bytes in a file of {size:,}")
        if sum(entry.file_size for entry in entries) > size:
            raise UnfitError("records that overlap")
        self._entries = {entry.filename: entry for entry in entries}
        order = self.read("byteorder") if self.holds("byteorder") else b"little"
        if order not in (b"little", b"big"):
            raise UnfitError(f"byte order {describe(order)}")
        self._order: ByteOrder = "<" if order == b"little" else ">"
        self._storages: dict[str, Storage] = {}

    def holds(self, name: str) -> bool:
        return self._prefix + name in self._entries

    def size_of(self, name: str) -> int:
        return self._entries[self._prefix + name].file_size

    def read(self, name: str) -> bytes:
        """The bytes of a record. Raises UnfitError or EOFError when it is not whole."""
        entry = self._entries[self._prefix + name]
        self._file.seek(entry.header_offset)
        header = self._file.read(30)
        if len(header) != 30 or header[:4] != ZIP_START:
            raise UnfitError(f"record {entry.filename!r} is not where the table of contents says")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        if self._file.read(name_length) != entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437"):
            raise UnfitError(f"record {entry.filename!r} has another name where it lies")
        self._file.seek(extra_length, os.SEEK_CUR)
        data = self._file.read(entry.file_size)
        if len(data) != entry.file_size:
            raise EOFError
        if entry.CRC and zlib.crc32(data) != entry.CRC:  # 0: torch was told to leave it out
            raise UnfitError(f"the checksum of record {entry.filename!r} is wrong")
        return data

    def storage(self, key: str, dtype: np.dtype | None, count: int) -> Storage:
        """The storage of a name. Raises UnfitError when there is none, or none of this kind."""
        if not self.holds(f"data/{key}"):
            raise UnfitError(f"storage {key!r}, which is not in the archive")
        if key not in self._storages:
            self._storages[key] = Storage(key, dtype, count, lambda: (self.read(f"data/{key}"), self._order))
        found = self._storages[key]
        if (found.dtype, found.count) != (dtype, count) or self.size_of(f"data/{key}") != count * found.itemsize:
            raise UnfitError(f"storage {key!r} of {count:,} values, which it does not have")
        return found


class Inert(StandIn):
    """An object of a bookkeeping class: takes whatever the file puts into it, does nothing, and ends as a text."""

    __slots__ = ("_held", "name")

    def __init__(self, name: str, *held: object) -> None:
        self.name = name
        self._held: list[object] = list(held)

    def __call__(self, *arguments: object) -> Inert:
        return Inert(self.name, self, *arguments)

    def __setstate__(self, state: object) -> None:
        self._held.append(state)

    def append(self, item: object) -> None:
        self._held.append(item)

    add = append

    def extend(self, items: object) -> None:
        self._held.append(items)

    def __setitem__(self, key: object, item: object) -> None:
        self._held.append(item)

    def result(self, budget: Budget) -> str:
        waiting, seen = [*self._held], {id(self)}
        while waiting:
            value = waiting.pop()
            if isinstance(value, (TensorStandIn, Storage)):
                raise UnfitError(
                    f"{self.name}, an object that holds a tensor, which cannot be read without running its class; "
                    "in the program that wrote it, save model.state_dict() alone"
                )
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, dict):
                waiting += value.values()
            elif isinstance(value, (list, tuple)):
                waiting += value
            elif isinstance(value, Inert):
                waiting += value._held
        return f"({self.name}, not read)"


def _attribute(thing: object, name: object) -> Inert:
    """getattr, which protocol 2 uses for a method of a class; of nothing but a stand-in."""
    if not isinstance(thing, Inert) or not isinstance(name, str):
        raise UnfitError(f"it asks for builtins.getattr of {describe(thing)}, an attempt to reach what is not data")
    return Inert(f"{thing.name}.{name[:80]}", thing)


class _TorchUnpickler(PlainUnpickler):
    """The plain unpickler with torch's names for tensors, and stand-ins for bookkeeping."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(PlainUnpickler.dispatch)

    def __init__(
        self, file: BoundedReader, path: Path, budget: Budget, storage: Callable[[str, np.dtype | None, int], Storage]
    ) -> None:
        super().__init__(file, path, budget)
        self._storage = storage
        self._inert: set[str] = set()

    @property
    def not_read(self) -> tuple[str, ...]:
        return tuple(sorted(self._inert))

    def look_up(self, full: str) -> Admitted | StandIn | None:
        if full in ADMITTED or full in _TORCH_ADMITTED:
            return Admitted(_TORCH_ADMITTED.get(full) or ADMITTED[full], self._budget)
        if full in _TENSOR_TYPES:
            return _TensorType()
        package, _, name = full.partition(".")
        if full in ("torch.storage.UntypedStorage", "torch.UntypedStorage"):
            return _StorageType(None)
        if package == "torch" and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        if package == "torch" and name in _DTYPES:
            return _TorchDtype(name)
        if full == "builtins.getattr":
            return Admitted(_attribute, self._budget)
        if package in _BOOKKEEPING:
            self._inert.add(full)
            return Inert(full)
        return None

    def refusal(self, full: str) -> str:
        package, _, name = full.partition(".")
        if package == "torch" and name.startswith(_OTHER_DTYPES):
            return "a dtype that numpy does not have; convert the tensors to float32 in torch first"
        if full.startswith(("torch.nn.", "torchvision.")):
            return (
                "a part of a model that was saved as an object, which is a program; in the one that wrote it, save "
                "model.state_dict()"
            )
        return (
            "which is not a tensor or a plain container: it may be any program at all. torch.load(…, weights_only=False) "
            "would run it: if you trust its author, load it there and save model.state_dict() alone"
        )

    def persistent_load(self, pid: object) -> Storage:
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise UnfitError(f"something outside of the file: {describe(pid)}")
        _, kind, key, _location, count, *view = pid
        if not isinstance(kind, _StorageType) or not isinstance(key, str) or any(part is not None for part in view):
            raise UnfitError(f"a storage that is {describe(key)}, of {describe(kind)}")
        if type(count) is not int or count < 0:
            raise UnfitError(f"storage {key!r} of {describe(count)} values")
        return self._storage(key, kind.dtype, count)

    def load_newobj(self: Any) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        if not isinstance(cls, Inert):
            raise UnfitError("an object made without its class's consent")
        self.append(cls(arguments))

    dispatch[pickle.NEWOBJ[0]] = load_newobj


# Writing


class _TorchProgram:
    """The pickle of protocol 2 that makes torch build a content; the arrays are collected beside it."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []

    def of(self, content: object) -> bytes:
        return pickle.PROTO + b"\x02" + self._value(content, 0) + pickle.STOP

    def _value(self, value: Any, nesting: int) -> bytes:
        if nesting > 64:
            raise TypeError("only plain data can be written: this is nested more than 64 deep, or contains itself")
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
        place = _plain("storage") + _global(f"torch {storage}") + _plain(key) + _plain("cpu") + _plain(array.size)
        return _call(
            "torch._utils _rebuild_tensor_v2",
            pickle.MARK + place + pickle.TUPLE + pickle.BINPERSID
            + _plain(0) + _tuple(array.shape) + _tuple(strides) + _plain(False)
            + _call("collections OrderedDict", b""),
        )  # fmt: skip


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
