"""Pickles read as data: those of Paddle, PASSL, numpy and detectron2, and those inside torch's files.

``paddle.load`` and ``torch.load`` run whatever a pickle asks for. Here a file can call nothing but the makers of plain
containers in ``_CONTAINERS``. Every other allowed name, and a call of one, is only noted; when the whole pickle is
read, ``finish`` checks the notes and makes arrays of them. Any name not in ``_CONTAINERS`` or ``_NAMES`` is refused.

Checkpoints of Lightning, OpenMMLab and others hold objects beside the weights: settings, history buffers, paths. In
files of torch, objects of the packages in ``_BOOKKEEPING`` become a text with the name of their class; nothing is
imported for them. What they are made of (``typing.Any``, classes of their author) is only noted as well, whatever its
name: it is refused where it stands outside of such an object. None of them may hold a tensor: a weight would be lost.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal, NoReturn

import numpy as np

from passl_densecl.disk import BoundedReader
from passl_densecl.errors import InputError
from passl_densecl.weights import card as cards
from passl_densecl.weights.plain import ARRAY_KINDS, MAX_NESTING, UnfitError, describe, explained, widened

# How pickles of protocol 0 and 1 begin, which Python 2 wrote: they have no header.
_OLD_START = re.compile(rb"\(d|\}q|\(l|\]q|c(?:collections|__builtin__)\n", re.DOTALL)

# What paddle.save adds to a state: automatic names, which depend on what the process built before, and the list of
# arrays that protocols 2 and 3 could not hold in one piece (paddle/framework/io_utils.py).
_AUTOMATIC_NAMES = "StructuredToParameterName@@"
_BIG_ARRAYS = "UnpackBigParamInfor@@"

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
_NAMES = {
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),  # numpy 1 and 2
    "builtins.getattr",
    *STORAGES,
    *DTYPES,
    *_UNTYPED,
    *_TENSOR_MAKERS,
    *("torch.Tensor", "torch.nn.Parameter", "torch.nn.parameter.Parameter"),
    *("torch._tensor._rebuild_from_type_v2", "torch.Size", "torch.device", "torch.serialization._get_layout"),
}
_BOOKKEEPING = (
    *("mmcls", "mmcv", "mmdet", "mmengine", "mmpretrain", "mmseg", "mmselfsup"),
    *("lightning", "lightning_fabric", "pytorch_lightning", "omegaconf"),
    *("addict", "easydict", "fvcore", "ml_collections", "munch", "yacs"),
    *("argparse", "datetime", "pathlib"),
)

_DTYPE_TEXT = re.compile(rf"[<>=|]?[{ARRAY_KINDS}]\d{{1,9}}")
_MAX_DIMENSIONS = 32
_MAX_LENGTH = 2**48  # of one dimension
_MAX_TUPLE = 10_000  # entries of a tuple, those of tuples in it included


def is_pickle(start: bytes) -> bool:
    """Whether the first bytes of a file are those of a pickle of a container."""
    return (start[:1] == pickle.PROTO and 2 <= (start + b"\x02")[1] <= 5) or bool(_OLD_START.match(start))


def load_pickle(path: Path, file: BinaryIO, size: int) -> object:
    """The plain data in a pickle of ``size`` bytes. Raises InputError; ``path`` is for its message."""
    with explained(path, size):
        reader = BoundedReader(file, size)
        unpickler = DataUnpickler(path, reader, size)
        content = unpickler.load()
        check_end(path, reader)
        return unpickler.finish(content)


def pickle_card(path: Path, file: BinaryIO, size: int) -> dict[str, Any] | None:
    """The identity card at the start of a pickle, without reading the rest; None when it has none."""
    if file.read(len(cards.PICKLE_START)) != cards.PICKLE_START:
        return None
    count = int.from_bytes(file.read(8), "little")
    if count > min(size, cards.MAX_BYTES):
        return None
    text = file.read(count)
    return cards.decode(path, text) if file.read(1) == pickle.POP else None


def check_end(path: Path, reader: BoundedReader) -> None:
    """Raises InputError when something follows the end of the data."""
    if reader.remaining:
        raise InputError(
            f"{path}: {reader.remaining:,} bytes follow the end of the data; "
            "the file is damaged, or several files were written into one"
        )


class Note(list):
    """A name in a file, and what the file calls it with and puts into it. A list, and therefore never a key."""

    def __init__(self, name: str, items: tuple = (), *, is_call: bool = False) -> None:
        super().__init__(items)
        self.name, self.is_call = name, is_call
        self.state: Any = None  # what BUILD sets: numpy's arrays and dtypes

    def __setitem__(self, key: object, item: object) -> None:
        self.append(item)

    add = list.append

    @property
    def is_bookkeeping(self) -> bool:
        return self.name.partition(".")[0] in _BOOKKEEPING

    @property
    def is_foreign(self) -> bool:
        """Whether it is neither data nor a maker of data: allowed in objects of bookkeeping only."""
        return self.name not in _CONTAINERS and self.name not in _NAMES and self.name != "storage"


def _bytes(data: object = b"") -> bytes:
    if not isinstance(data, (bytes, bytearray)):  # bytes(10**12) would take all memory
        raise UnfitError(f"bytes made of {describe(data)}")
    return bytes(data)


def _latin1_bytes(text: object, encoding: object) -> bytes:
    """How protocol 2 spells bytes: text and the name of a codec. No other codec is looked up."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnfitError(f"bytes in the codec {describe(encoding)}")
    return text.encode("latin1")


def _tuple(items: object = ()) -> tuple:
    if not isinstance(items, (list, tuple)) or any(isinstance(item, tuple) for item in items):  # see load_tuple
        raise UnfitError(f"a tuple made of {describe(items)}")
    return tuple(items)


_CONTAINERS: dict[str, Callable[..., object]] = {
    "builtins.dict": dict,
    "builtins.list": list,
    "builtins.tuple": _tuple,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.complex": complex,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "_codecs.encode": _latin1_bytes,
    "collections.OrderedDict": dict,
    "collections.Counter": dict,
    "collections.defaultdict": lambda *_: {},
}


class DataUnpickler(pickle._Unpickler):
    """Builds plain containers and notes (``load``), then makes arrays of the notes (``finish``).

    The unpickler written in Python rather than the one in C: there a few bytes (``LONG_BINPUT``) make it reserve, and
    fill, gigabytes. A file of weights has a few thousand instructions, so it is as fast.

    Args:
        path: for messages.
        reader: where the pickle begins.
        size: bytes of the whole file, which limit what it may unfold to.
        read_storage: (key, size) → the bytes of a torch storage. Without it the pickle may not use torch's names.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(
        self, path: Path, reader: BoundedReader, size: int, read_storage: Callable[[str, int], bytes] | None = None
    ) -> None:
        super().__init__(reader, encoding="latin1")
        self._path, self._size, self._read_storage, self._is_torch = path, size, read_storage, read_storage is not None
        self._left = 8 * size + 2**20  # one weight under several names, bfloat16 widened, text re-encoded
        self.storages: dict[str, tuple[np.dtype | None, int]] = {}  # key → dtype (None: any) and count of values
        self.byte_order: Literal["<", ">"] = "<"  # of the storages
        self.not_read: set[str] = set()  # classes of bookkeeping
        self._last_storage: tuple[str | None, bytes] = (None, b"")
        self._tuples: dict[int, tuple[int, tuple]] = {}  # id → (entries, the tuple, so that its id stays taken)
        self._finished: dict[int, tuple[object, object]] = {}  # id → (object, what became of it)
        self._without_tensor: dict[int, object] = {}  # id → object inside of bookkeeping

    def load(self: Any) -> Any:
        content = super().load()
        self.memo.clear()
        self._tuples.clear()
        return content

    def charge(self, count: int) -> None:
        """Note that ``count`` bytes, or entries of a container, are about to be copied. Raises UnfitError.

        A few bytes of a file can name the same megabyte a thousand times.
        """
        self._left -= count
        if self._left < 0:
            raise UnfitError(f"a file of {self._size:,} bytes that unfolds to more than 8 times its size")

    # Instructions that look up or call names, and those that could take memory or time without end

    def find_class(self, module: str, name: str) -> Note:
        note = Note(f"{'builtins' if module == '__builtin__' else module}.{name}")
        if self._is_torch and note.is_bookkeeping:
            self.not_read.add(note.name)
        elif note.name.startswith(_NO_DTYPE if self._is_torch else "torch.") or (
            note.is_foreign and not self._is_torch
        ):
            raise self._refused(note)
        return note

    def _refused(self, note: Note) -> InputError:
        reason = _refusal(note.name, self._is_torch)
        return InputError(f"{self._path}: the file asks for {note.name}, {reason}. Refused; nothing in it was run")

    def get_extension(self, code: int) -> NoReturn:
        raise UnfitError(f"extension {code} of the process that wrote it")

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

    def call(self: Any, function: object, arguments: object) -> None:
        """Push a container that a function of the table makes, or the note of a call."""
        if not isinstance(arguments, tuple) or not isinstance(function, Note):
            raise UnfitError("a call of what cannot be called")  # Python's own message would hold the text of both
        self.charge(len(arguments) + sum(len(each) for each in arguments if hasattr(each, "__len__")))
        if function.is_foreign:
            self.append(Note(function.name, (function, *arguments), is_call=True))
        elif function.name == "builtins.getattr":  # how protocol 2 spells a method of a class
            thing, name = arguments
            if not isinstance(thing, Note) or not thing.is_foreign or not isinstance(name, str):
                raise UnfitError(f"it asks for builtins.getattr of {describe(thing)}, which is not data")
            self.charge(len(thing.name))  # which a chain of these makes longer and longer
            self.append(Note(f"{thing.name}.{name[:80]}", (thing,), is_call=True))
        elif function.name in _CONTAINERS:
            self.append(_CONTAINERS[function.name](*arguments))
        elif function.name in _NAMES and not function.is_call:
            self.append(Note(function.name, arguments, is_call=True))
        else:
            raise UnfitError(f"a call of {describe(function)}")

    def load_tuple(self: Any, load: Callable[[Any], None]) -> None:
        """Eighty bytes of a file can double a tuple forty times, and the first that asks for its hash or its text would
        never come back; lists cannot be hashed, and nothing asks for their text."""
        load(self)
        items = self.stack[-1]
        size = 1 + sum(self._tuples.get(id(item), (1, None))[0] for item in items)
        if size > max(_MAX_TUPLE, len(items) + 1):
            raise UnfitError(f"a tuple that unfolds to more than {_MAX_TUPLE:,} entries")
        self._tuples[id(items)] = (size, items)

    def load_reduce(self: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.call(function, arguments)

    def load_newobj(self: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Note) or not function.is_foreign:
            raise UnfitError("an object made without its class's consent")
        self.call(function, arguments)

    def _instantiate(self, klass: object, args: list) -> None:  # for the instructions INST and OBJ
        self.call(klass, tuple(args))

    def load_build(self: Any) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if isinstance(built, Note) and built.is_foreign:
            built.append(state)
        elif isinstance(built, Note) and built.is_call and built.name.endswith((".dtype", "._reconstruct")):
            built.state = state
        elif not isinstance(built, dict):  # its attributes, such as a torch state's _metadata, are dropped
            raise UnfitError("an attempt to change what was read")

    def load_bytearray8(self: Any) -> None:
        (count,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(count))  # the original reserves and clears the memory first

    for _code in (pickle.TUPLE[0], pickle.TUPLE1[0], pickle.TUPLE2[0], pickle.TUPLE3[0]):
        dispatch[_code] = lambda self, load=dispatch[_code]: self.load_tuple(load)
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    # From notes to plain data

    def finish(self, value: object, nesting: int = 0) -> object:
        """The plain data that was read, every object visited once. Raises UnfitError."""
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes, set, frozenset)):
            return value  # a set cannot hold notes
        if id(value) not in self._finished:
            if nesting > MAX_NESTING:
                raise UnfitError(f"containers nested more than {MAX_NESTING} deep")
            self._finished[id(value)] = (value, self)  # self: not finished yet
            self._finished[id(value)] = (value, self._finish(value, nesting))
        result = self._finished[id(value)][1]
        if result is self:
            raise UnfitError("something that contains itself")
        return result

    def _finish(self, value: object, nesting: int) -> object:
        if isinstance(value, Note):
            result = self._finish_note(value, nesting)
            value.clear()  # the bytes of an array are freed
            value.state = None
            return result
        if isinstance(value, list):
            return [self.finish(item, nesting + 1) for item in value]
        if isinstance(value, tuple):
            items = tuple(self.finish(item, nesting + 1) for item in value)
            is_pair = len(items) == 2 and isinstance(items[0], str) and isinstance(items[1], np.ndarray)
            return items[1] if is_pair and not self._is_torch else items  # paddle.save writes a tensor as (name, array)
        if isinstance(value, dict):
            state = {key: self.finish(item, nesting + 1) for key, item in value.items()}
            return state if self._is_torch else _tidy_paddle_state(state)
        raise UnfitError(f"a {type(value).__name__} where data is expected")

    def _finish_note(self, note: Note, nesting: int) -> object:
        if note.is_bookkeeping:
            return self._bookkeeping_text(note)
        if note.is_foreign:
            raise self._refused(note)
        if note.name in DTYPES and not note.is_call:
            return note.name
        match note.name.rpartition(".")[2] if note.is_call else "", note:
            case "ndarray", [shape, dtype, data]:
                return self._array(shape, dtype, data)
            case "_reconstruct", _:  # numpy's own pickles make an empty array and set the rest with BUILD
                _version, shape, dtype, is_fortran, data = note.state or (1, (0,), "b1", False, b"")
                return self._array(shape, dtype, data, is_fortran)
            case "_frombuffer", [data, dtype, shape, *order]:
                return self._array(shape, dtype, data, order == ["F"])
            case "scalar", [dtype, data]:
                return self._array((), dtype, data)[()]
            case "dtype", _:
                return _checked_dtype(note)
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
        what = ", ".join(each.name if isinstance(each, Note) else describe(each) for each in note[:4])
        raise UnfitError(f"a {note.name}{note.is_call * f' of {what}'} where data is expected")

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

    def _array(self, shape: object, dtype: object, data: object, is_fortran: object = False) -> np.ndarray:
        shape, dtype = checked_shape(shape), _checked_dtype(dtype)
        if isinstance(data, str):  # Python 2 wrote bytes as text
            data = data.encode("latin1")
        if not isinstance(data, (bytes, bytearray)):
            raise UnfitError(f"array whose values are {describe(data)}, not bytes")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise UnfitError(f"array {list(shape)} of {dtype} in {len(data):,} bytes")
        self.charge(len(data))
        if not data:
            return _empty_array(shape, dtype)
        return np.ndarray(shape, dtype, data, order="F" if is_fortran else "C").copy(order="C")

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
            return _empty_array(shape, result_dtype)
        end = 1 + offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        size = count * (1 if own_dtype is None else own_dtype.itemsize)
        available = size // dtype.itemsize
        if end > available:
            what = f"tensor {list(shape)} that ends at value {end:,} of storage {key!r}"
            raise UnfitError(f"{what}, which has {available:,}")
        self.charge(math.prod(shape) * result_dtype.itemsize)
        if self._last_storage[0] != key:
            assert self._read_storage is not None
            self.charge(size)
            self._last_storage = (None, b"")  # freed before the next is read
            self._last_storage = (key, self._read_storage(key, size))
        values = np.frombuffer(self._last_storage[1], values_dtype.newbyteorder(self.byte_order), available)[offset:]
        in_bytes = [stride * dtype.itemsize for stride in strides]
        view = np.lib.stride_tricks.as_strided(values, shape, in_bytes, writeable=False)
        return widened(view) if is_bfloat16 else view.astype(dtype.newbyteorder("="), order="C", copy=True)


def _is_tensor(value: object) -> bool:
    return isinstance(value, Note) and value.name in _TENSOR_MAKERS


def checked_shape(shape: object) -> tuple[int, ...]:
    """``shape`` when it is a tuple of lengths. Raises UnfitError."""
    if not isinstance(shape, tuple) or len(shape) > _MAX_DIMENSIONS:
        raise UnfitError(f"array whose shape is {describe(shape)}")
    if not all(type(n) is int and 0 <= n < _MAX_LENGTH for n in shape):
        raise UnfitError(f"array whose shape is {describe(shape)}")
    return shape


def _checked_dtype(value: object) -> np.dtype:
    """A dtype of numbers or text: with objects ("O"), bytes of the file would be taken for addresses."""
    state = None
    if isinstance(value, Note) and value.name == "numpy.dtype" and value:
        value, state = value[0], value.state
    if not isinstance(value, str) or not _DTYPE_TEXT.fullmatch(value):
        raise UnfitError(f"array of dtype {describe(value)}, which is no number or text")
    dtype = np.dtype(value)
    if dtype.itemsize == 0:
        raise UnfitError(f"array of dtype {value!r}, which has no size")
    if state is None:
        return dtype
    order, subarray, fields = state[1:4]
    if subarray is not None or fields is not None or order not in ("<", ">", "=", "|"):
        raise UnfitError("array of records")
    return dtype.newbyteorder(order)


def _empty_array(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array without values: one of the lengths is 0, the others may be anything."""
    try:
        return np.zeros(shape, dtype)
    except (ValueError, MemoryError):
        raise UnfitError(f"array whose shape is {list(shape)}") from None


def _tidy_paddle_state(state: dict) -> dict:
    """Undo what ``paddle.save`` does to a state: join split arrays, drop the automatic names."""
    state.pop(_AUTOMATIC_NAMES, None)
    table = state.pop(_BIG_ARRAYS, {})
    try:
        for name, split in table.items():
            parts = [state.pop(part) for part in split["slices"]]
            if not all(isinstance(part, np.ndarray) for part in parts):
                raise UnfitError(f"the parts of {describe(name)} are no arrays")
            state[name] = np.concatenate(parts).reshape(split["OriginShape"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnfitError(f"the parts of a large array do not fit together ({type(error).__name__})") from None
    return state


def _refusal(name: str, is_torch: bool) -> str:
    """Why a name may not be used, and what to do."""
    if name.startswith("torch.") and not is_torch:
        return "a torch tensor pickled on its own; write it with torch.save, or as numpy arrays"
    if name.startswith(_NO_DTYPE):
        return "a dtype that numpy does not have; convert the tensors to float32 in torch first"
    if name.startswith(("torch.nn.", "torchvision.")):
        return "a part of a model saved as an object, which is a program; where it was written, save model.state_dict()"
    load, part = (
        ("torch.load(…, weights_only=False)", "model.state_dict()") if is_torch else ("paddle.load", "the arrays")
    )
    return (
        f"which is not an array or a plain container: it may be any program at all. {load} would run it: "
        f"if you trust its author, load it there and save {part} alone"
    )
