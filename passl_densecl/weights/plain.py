"""Plain data, which is all that a weight file may hold: containers, numbers, text and numpy arrays.

While a file is read, its own calls only fill in stand-ins; not even numpy is called, for ``numpy.ndarray(shape, "O",
some_bytes)`` would take the bytes for addresses of objects. The stand-ins are checked afterwards and turned into arrays.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

MAX_NESTING = 64
ARRAY_KINDS = "biufcSU"  # bool, integers, floats, complex, text; never objects, never records

# What paddle.save adds to a state: automatic names, which depend on what the process built before, and the list of
# arrays that protocols 2 and 3 could not hold in one piece (paddle/framework/io_utils.py).
_AUTOMATIC_NAMES = "StructuredToParameterName@@"
_BIG_ARRAYS = "UnpackBigParamInfor@@"

_DTYPE_TEXT = re.compile(rf"[<>=|]?[{ARRAY_KINDS}]\d{{1,9}}")
_MAX_DIMENSIONS = 32
_MAX_LENGTH = 2**48  # of one dimension


def describe(value: object) -> str:
    """A few words on what a value read from a file is, for messages."""
    if isinstance(value, np.ndarray):
        return f"an array {list(value.shape)} of {value.dtype}"
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 2**128:  # Python refuses to print very large ones
        return f"int of {value.bit_length():,} bits"
    text = repr(value[:41] if isinstance(value, (str, bytes)) else value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def as_array(value: Any) -> np.ndarray | None:
    """The array that a numpy array or a tensor of Paddle or torch stands for; None for anything else."""
    if not isinstance(value, np.ndarray) and hasattr(value, "numpy") and callable(value.numpy):
        value = np.asarray(value.numpy())
    return value if isinstance(value, np.ndarray) and value.dtype.kind in ARRAY_KINDS else None


def not_plain(value: object) -> TypeError:
    """The error for something that cannot be written."""
    return TypeError(
        f"only plain data can be written, not {type(value).__module__}.{type(value).__name__}: {value!r:.80}"
    )


class UnfitError(Exception):
    """What the file describes is not the plain data it should be; becomes an InputError that names the file."""


class Budget:
    """How much memory a file may ask for. A few bytes can name the same megabyte a thousand times."""

    def __init__(self, file_size: int) -> None:
        self.file_size = file_size
        self.left = 8 * file_size + 2**20  # one weight under several names, bfloat16 widened, text re-encoded

    def charge(self, count: int) -> None:
        """Note that ``count`` bytes, or entries of a container, are about to be copied. Raises UnfitError."""
        self.left -= count
        if self.left < 0:
            raise UnfitError(f"a file of {self.file_size:,} bytes that unfolds to more than 8 times its size")


class StandIn:
    """Something that a file describes; nothing about it is trusted until :meth:`result`."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __setstate__(self, state: Any) -> None:
        raise UnfitError("an attempt to change what was read")

    def result(self, budget: Budget) -> object:
        """The plain data it stands for. Raises UnfitError."""
        raise UnfitError(f"a {type(self).__name__.removesuffix('StandIn').lower()} where data is expected")


class DictStandIn(dict):
    """A dictionary of the file. Attributes, such as the ``_metadata`` of a torch state, are let go."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class DtypeStandIn(StandIn):
    """What a file says about a dtype, checked."""

    __slots__ = ("dtype",)

    def __init__(self, text: object, *_: object) -> None:
        if isinstance(text, DtypeStandIn):
            self.dtype: np.dtype = text.dtype
            return
        if not isinstance(text, str) or not _DTYPE_TEXT.fullmatch(text):
            raise UnfitError(f"array of dtype {describe(text)}, which is no number or text")
        self.dtype = np.dtype(text)
        if self.dtype.itemsize == 0:
            raise UnfitError(f"array of dtype {text!r}, which has no size")

    def __setstate__(self, state: Any) -> None:
        order, subarray, fields = state[1:4]
        if subarray is not None or fields is not None or order not in ("<", ">", "=", "|"):
            raise UnfitError("array of records")
        self.dtype = self.dtype.newbyteorder(order)

    def result(self, budget: Budget) -> np.dtype:
        return self.dtype


class ArrayStandIn(StandIn):
    """What a file says about an array."""

    __slots__ = ("data", "dtype", "fortran", "shape")

    def __init__(self, shape: object, dtype: object, data: object, fortran: object = False) -> None:
        self.shape, self.dtype, self.data, self.fortran = shape, dtype, data, fortran

    def __setstate__(self, state: Any) -> None:
        _version, self.shape, self.dtype, self.fortran, self.data = state

    def result(self, budget: Budget) -> object:
        """The array, in memory of its own; the file's bytes are let go."""
        shape, data = check_shape(self.shape), self.data
        self.data = None
        dtype = DtypeStandIn(self.dtype).dtype
        if isinstance(data, str):  # Python 2 wrote bytes as text
            data = data.encode("latin1")
        if not isinstance(data, (bytes, bytearray)):
            raise UnfitError(f"array whose values are {describe(data)}, not bytes")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise UnfitError(f"array {list(shape)} of {dtype} in {len(data):,} bytes")
        budget.charge(len(data))
        if not data:
            return empty_array(shape, dtype)
        return np.ndarray(shape, dtype, data, order="F" if self.fortran else "C").copy(order="C")


class ScalarStandIn(ArrayStandIn):
    """A numpy number: an array of no dimension."""

    __slots__ = ()

    def result(self, budget: Budget) -> object:
        array = super().result(budget)
        assert isinstance(array, np.ndarray)
        return array[()]


def check_shape(shape: object) -> tuple[int, ...]:
    """``shape`` when it is one. Raises UnfitError."""
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


class Finisher:
    """Turns what was read into plain data, visiting every object once.

    Args:
        budget: what the arrays may take.
        paddle: undo what ``paddle.save`` does: tensors as ``(name, array)``, split arrays, automatic names.
    """

    def __init__(self, budget: Budget, *, paddle: bool) -> None:
        self._budget, self._paddle = budget, paddle
        # id → (object, kept alive so that its id stays taken; result)
        self._done: dict[int, tuple[object, object]] = {}
        self._open: set[int] = set()

    def finish(self, value: object, nesting: int = 0) -> object:
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
            return value
        if id(value) in self._done:
            return self._done[id(value)][1]
        if id(value) in self._open:
            raise UnfitError("something that contains itself")
        if nesting > MAX_NESTING:
            raise UnfitError(f"containers nested more than {MAX_NESTING} deep")
        self._open.add(id(value))
        result = self._finish_new(value, nesting)
        self._open.discard(id(value))
        self._done[id(value)] = (value, result)
        return result

    def _finish_new(self, value: object, nesting: int) -> object:
        if isinstance(value, StandIn):
            return value.result(self._budget)
        if isinstance(value, dict):
            state = {key: self.finish(item, nesting + 1) for key, item in value.items()}
            return _tidy_state(state) if self._paddle else state
        if isinstance(value, list):
            return [self.finish(item, nesting + 1) for item in value]
        if isinstance(value, tuple):
            items = tuple(self.finish(item, nesting + 1) for item in value)
            is_tensor = len(items) == 2 and isinstance(items[0], str) and isinstance(items[1], np.ndarray)
            return items[1] if is_tensor and self._paddle else items
        if isinstance(value, (set, frozenset)):
            return value  # stand-ins cannot be hashed, so there is none inside
        raise UnfitError(f"a {type(value).__name__} where data is expected")


def _tidy_state(state: dict) -> dict:
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
