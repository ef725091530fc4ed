"""Pickles read as data: those of Paddle, PASSL, numpy and detectron2; ``torch_files.py`` adds what torch's have.

``paddle.load`` and ``torch.load`` run whatever a pickle asks for. Here a file can call nothing but the makers of plain
containers in ``_CONTAINERS``. Every other allowed name, and a call of one, is only noted; when the whole pickle is
read, ``finish`` checks the notes and makes arrays of them. Any name not in ``_CONTAINERS`` or ``NAMES`` is refused.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NoReturn

import numpy as np

from passl_densecl.errors import InputError
from passl_densecl.weights import card as cards
from passl_densecl.weights.plain import ARRAY_KINDS, MAX_NESTING
from passl_densecl.weights.reading import (
    BoundedReader,
    UnfitError,
    check_end,
    checked_shape,
    decode_card,
    describe,
    empty_array,
    explained,
)

# What paddle.save adds to a state: automatic names, which depend on what the process built before, and the list of
# arrays that protocols 2 and 3 could not hold in one piece (paddle/framework/io_utils.py).
_AUTOMATIC_NAMES = "StructuredToParameterName@@"
_BIG_ARRAYS = "UnpackBigParamInfor@@"

NAMES = frozenset(
    [
        "numpy.ndarray",
        "numpy.dtype",
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
        *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),  # numpy 1 and 2
    ]
)
_DTYPE_TEXT = re.compile(rf"[<>=|]?[{ARRAY_KINDS}]\d{{1,9}}")
_MAX_TUPLE = 10_000  # entries of a tuple, those of tuples in it included


def load(path: Path, file: BinaryIO, size: int) -> tuple[object, tuple[str, ...]]:
    """The plain data in a pickle of ``size`` bytes. Raises InputError; ``path`` is for its message."""
    with explained(path, size):
        reader = BoundedReader(file, size)
        unpickler = DataUnpickler(path, reader, size)
        content = unpickler.load()
        check_end(path, reader)
        return unpickler.finish(content), ()


def card(path: Path, file: BinaryIO, size: int) -> dict[str, Any] | None:
    """The identity card at the start of a pickle, without reading the rest; None when it has none."""
    if file.read(len(cards.PICKLE_START)) != cards.PICKLE_START:
        return None
    count = int.from_bytes(file.read(8), "little")
    if count > min(size, cards.MAX_BYTES):
        return None
    text = file.read(count)
    return decode_card(path, text) if file.read(1) == pickle.POP else None


class Note(list):
    """A name in a file, and what the file calls it with and puts into it. A list, and therefore never a key."""

    def __init__(self, name: str, items: tuple = (), *, is_call: bool = False) -> None:
        super().__init__(items)
        self.name, self.is_call = name, is_call
        self.state: Any = None  # what BUILD sets: numpy's arrays and dtypes

    def __setitem__(self, key: object, item: object) -> None:
        self.append(item)

    add = list.append


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
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    names: ClassVar[frozenset[str]] = NAMES
    of_paddle: ClassVar[bool] = True  # whether paddle.save has written it, perhaps

    def __init__(self, path: Path, reader: BoundedReader, size: int) -> None:
        super().__init__(reader, encoding="latin1")
        self._path, self._size = path, size
        self._left = 8 * size + 2**20  # one weight under several names, bfloat16 widened, text re-encoded
        self._tuples: dict[int, tuple[int, tuple]] = {}  # id → (entries, the tuple, so that its id stays taken)
        self._finished: dict[int, tuple[object, object]] = {}  # id → (object, what became of it)

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
        if self.is_foreign(note):
            raise self.refused(note)
        return note

    def is_foreign(self, note: Note) -> bool:
        """Whether it is neither data nor a maker of data."""
        return note.name not in _CONTAINERS and note.name not in self.names

    def refused(self, note: Note) -> InputError:
        reason = self.why_refused(note.name)
        return InputError(f"{self._path}: the file asks for {note.name}, {reason}. Refused; nothing in it was run")

    def why_refused(self, name: str) -> str:
        """Why a name may not be used, and what to do."""
        if name.startswith("torch."):
            return "a torch tensor pickled on its own; write it with torch.save, or as numpy arrays"
        return unknown_program(name, "paddle.load", "the arrays")

    def get_extension(self, code: int) -> NoReturn:
        raise UnfitError(f"extension {code} of the process that wrote it")

    def call(self: Any, function: object, arguments: object) -> None:
        if not isinstance(arguments, tuple) or not isinstance(function, Note):
            raise UnfitError("a call of what cannot be called")  # Python's own message would hold the text of both
        self.charge(len(arguments) + sum(len(each) for each in arguments if hasattr(each, "__len__")))
        self.append(self.called(function, arguments))

    def called(self, function: Note, arguments: tuple) -> object:
        """A container that a function of the table makes, or the note of a call."""
        if function.name in _CONTAINERS:
            return _CONTAINERS[function.name](*arguments)
        if function.is_call:
            raise UnfitError(f"a call of {describe(function)}")
        return Note(function.name, arguments, is_call=True)

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
        if not isinstance(function, Note) or not self.is_foreign(function):
            raise UnfitError("an object made without its class's consent")
        self.call(function, arguments)

    def _instantiate(self, klass: object, args: list) -> None:  # for the instructions INST and OBJ
        self.call(klass, tuple(args))

    def load_build(self: Any) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if isinstance(built, Note) and self.is_foreign(built):
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
            result = self.finish_note(value, nesting)
            value.clear()  # the bytes of an array are freed
            value.state = None
            return result
        if isinstance(value, list):
            return [self.finish(item, nesting + 1) for item in value]
        if isinstance(value, tuple):
            items = tuple(self.finish(item, nesting + 1) for item in value)
            is_pair = len(items) == 2 and isinstance(items[0], str) and isinstance(items[1], np.ndarray)
            return items[1] if is_pair and self.of_paddle else items  # paddle.save writes a tensor as (name, array)
        if isinstance(value, dict):
            state = {key: self.finish(item, nesting + 1) for key, item in value.items()}
            return _tidy_paddle_state(state) if self.of_paddle else state
        raise UnfitError(f"a {type(value).__name__} where data is expected")

    def finish_note(self, note: Note, nesting: int) -> object:
        """The array, number or dtype that a note stands for."""
        if self.is_foreign(note):
            raise self.refused(note)
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
        what = ", ".join(each.name if isinstance(each, Note) else describe(each) for each in note[:4])
        raise UnfitError(f"a {note.name}{note.is_call * f' of {what}'} where data is expected")

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
            return empty_array(shape, dtype)
        return np.ndarray(shape, dtype, data, order="F" if is_fortran else "C").copy(order="C")


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


def unknown_program(name: str, load: str, part: str) -> str:
    """Why a name that nothing is known of may not be used, and what to do."""
    if name.startswith(("torch.nn.", "torchvision.")):
        return "a part of a model saved as an object, which is a program; where it was written, save model.state_dict()"
    return (
        f"which is not an array or a plain container: it may be any program at all. {load} would run it: "
        f"if you trust its author, load it there and save {part} alone"
    )
