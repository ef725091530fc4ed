"""Pickles read as data, and written so that everybody can read them.

``paddle.save`` writes pickles, and ``paddle.load`` runs whatever a pickle asks for. Reading here goes through an
unpickler that knows arrays and plain containers and nothing else. No Paddle is needed to read or to write.

The identity card of a file that this project wrote is a text that its first three instructions push and drop again:
every reader of pickles passes over it, as over a comment.
"""

from __future__ import annotations

import os
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NoReturn, Protocol

import numpy as np

from passl_densecl.disk import BoundedReader, whole_file
from passl_densecl.errors import InputError
from passl_densecl.weights import card as cards
from passl_densecl.weights.plain import (
    ArrayStandIn,
    Budget,
    DictStandIn,
    DtypeStandIn,
    Finisher,
    ScalarStandIn,
    StandIn,
    UnfitError,
    as_array,
    describe,
    not_plain,
)

_START = pickle.PROTO + b"\x04"
_CARD_START = _START + pickle.BINUNICODE8

# How pickles of protocol 0 and 1 begin, which Python 2 wrote: they have no header.
_OLD_START = re.compile(rb"\(d|\}q|\(l|\]q|c(?:collections|__builtin__)\n", re.DOTALL)


class SupportsWrite(Protocol):
    """What a pickle can be written into."""

    def write(self, data: bytes, /) -> object: ...


def is_pickle(start: bytes) -> bool:
    """Whether the first bytes of a file are those of a pickle of a container."""
    return (start[:1] == pickle.PROTO and 2 <= (start + b"\x02")[1] <= 5) or bool(_OLD_START.match(start))


def load_pickle(path: Path, file: BinaryIO, size: int) -> object:
    """The plain data in a pickle of ``size`` bytes. Raises InputError; ``path`` is for its message."""
    budget = Budget(size)
    reader = BoundedReader(file, size)
    with explained(path, size):
        content = PlainUnpickler(reader, path, budget).load()
        check_end(path, reader)
        return Finisher(budget, paddle=True).finish(content)


def pickle_card(path: Path, file: BinaryIO, size: int) -> dict[str, Any] | None:
    """The identity card at the start of a pickle, without reading the rest; None when it has none."""
    if file.read(len(_CARD_START)) != _CARD_START:
        return None
    count = int.from_bytes(file.read(8), "little")
    if count > min(size, cards.MAX_BYTES):
        return None
    text = file.read(count)
    return cards.decode(path, text) if file.read(1) == pickle.POP else None


def write_pickle(
    path: str | os.PathLike[str], content: object, *, card: cards.Card | Mapping[str, Any] | None = None
) -> None:
    """Write plain containers, numbers, text, numpy arrays and Paddle tensors (as arrays) to ``path``, all or nothing.

    The file appears under its name only when it is complete and on the disk, and replaces a former one in the same
    instant. It is read by :func:`~passl_densecl.weights.files.read_pickle`, and by ``paddle.load`` and ``pickle.load``
    under numpy 1.23 to 2.x; these do not see the ``card``. Equal content and card give equal bytes. One array at a time
    is copied.

    Raises:
        InputError: the folder is missing or the file cannot be written there.
        TypeError: ``content`` holds something that is not plain data.
    """

    with whole_file(path) as file:
        dump_pickle(file, content, card=card)


def dump_pickle(file: SupportsWrite, content: object, *, card: cards.Card | Mapping[str, Any] | None = None) -> None:
    """What :func:`write_pickle` puts into a file, into anything with a `write`."""
    if card is not None:
        text = cards.encode(card)
        file.write(_CARD_START + struct.pack("<Q", len(text)) + text + pickle.POP)
    _PortablePickler(file).dump(content)


# Reading


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
    except Exception as error:  # a damaged file can fail in any way at all
        reason = str(error) if isinstance(error, UnfitError) else f"{type(error).__name__}: {error!s:.200}"
        raise InputError(f"{path}: the file is damaged or hostile: {reason}; nothing in it was run") from None


def check_end(path: Path, reader: BoundedReader) -> None:
    """Raises InputError when something follows the end of the data."""
    if reader.remaining:
        raise InputError(
            f"{path}: {reader.remaining:,} bytes follow the end of the data; "
            "the file is damaged, or several files were written into one"
        )


class Admitted:
    """One name that a file may use. It gets this wrapper, not the class behind it, and so cannot change the class."""

    __slots__ = ("_budget", "_make")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, make: Callable[..., object], budget: Budget) -> None:
        self._make, self._budget = make, budget

    def __repr__(self) -> str:
        return f"<{getattr(self._make, '__name__', 'name')}>"

    def __call__(self, *arguments: object) -> object:
        self._budget.charge(sum(len(a) for a in arguments if isinstance(a, _SIZED)))
        return self._make(*arguments)

    def __setstate__(self, state: object) -> NoReturn:
        raise UnfitError("an attempt to change a class")


_SIZED = (str, bytes, bytearray, list, tuple, dict, set, frozenset)


def _empty_array(_class: object, _shape: object, _typecode: object) -> ArrayStandIn:
    return ArrayStandIn((0,), "b1", b"")  # numpy's own pickles fill it in with __setstate__


def _array_of_buffer(data: object, dtype: object, shape: object, order: object = "C") -> ArrayStandIn:
    return ArrayStandIn(shape, dtype, data, order == "F")


def _scalar(dtype: object, data: object) -> ScalarStandIn:
    return ScalarStandIn((), dtype, data)


def _latin1_bytes(text: object, encoding: object) -> bytes:
    """How protocol 2 spells bytes: text and the name of a codec. No other codec is looked up."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnfitError(f"bytes in the codec {describe(encoding)}")
    return text.encode("latin1")


def _bytes(data: object = b"") -> bytes:
    if not isinstance(data, (bytes, bytearray)):  # bytes(10**12) would take all memory
        raise UnfitError(f"bytes made of {describe(data)}")
    return bytes(data)


def _tuple(items: object = ()) -> tuple:
    found = tuple(items) if isinstance(items, (list, tuple)) else None
    if found is None or any(isinstance(item, tuple) for item in found):  # see PlainUnpickler._nest
        raise UnfitError(f"a tuple made of {describe(items)}")
    return found


_NESTED = 10_000  # entries of a tuple, those of tuples inside of it included

ADMITTED: dict[str, Callable[..., object]] = {
    "numpy.ndarray": ArrayStandIn,
    "numpy.dtype": DtypeStandIn,
    "numpy.core.multiarray._reconstruct": _empty_array,
    "numpy._core.multiarray._reconstruct": _empty_array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _array_of_buffer,
    "numpy._core.numeric._frombuffer": _array_of_buffer,
    "_codecs.encode": _latin1_bytes,
    "collections.OrderedDict": DictStandIn,  # keeps its order as well, and has no attributes that a file could set
    "builtins.dict": dict,
    "builtins.list": list,
    "builtins.tuple": _tuple,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.complex": complex,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
}


class PlainUnpickler(pickle._Unpickler):
    """Builds stand-ins and plain containers.

    The unpickler in Python rather than the one in C: there a few bytes (``LONG_BINPUT``) make it reserve, and fill,
    gigabytes. A file of weights has a few thousand instructions, so it is as fast.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BoundedReader, path: Path, budget: Budget) -> None:
        super().__init__(file, encoding="latin1")
        self._path, self._budget = path, budget
        self._nested: dict[int, tuple[int, tuple]] = {}  # id of a tuple → (entries, the tuple)

    def find_class(self, module: str, name: str) -> Admitted | StandIn:
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        found = self.look_up(full)
        if found is None:
            raise InputError(
                f"{self._path}: the file asks for {full}, {self.refusal(full)}. Refused; nothing in it was run"
            )
        return found

    def look_up(self, full: str) -> Admitted | StandIn | None:
        """What the file gets for a name; None when it may not use it."""
        return Admitted(ADMITTED[full], self._budget) if full in ADMITTED else None

    def refusal(self, full: str) -> str:
        """Why a name may not be used, and what else to do."""
        if full.startswith("torch."):
            return "a torch tensor pickled on its own; write it with torch.save, or as numpy arrays"
        return (
            "which is not an array or a plain container: it may be any program at all. paddle.load and pickle.load would "
            "run it: if you trust its author, load it there and save the arrays alone"
        )

    def get_extension(self, code: int) -> NoReturn:
        raise UnfitError(f"extension {code} of the process that wrote it")

    def _nest(self, items: tuple) -> None:
        """Put a tuple on the stack. Eighty bytes of a file can double one forty times, and the first that asks for its
        hash or its text would never come back; lists cannot be hashed, and nothing asks for their text."""
        size = 1 + sum(self._nested.get(id(item), (1, None))[0] for item in items)
        if size > max(_NESTED, len(items) + 1):
            raise UnfitError(f"a tuple that unfolds to more than {_NESTED:,} entries")
        self._nested[id(items)] = (size, items)  # kept, so that its id stays its own
        self.append(items)  # type: ignore[attr-defined]

    def load_tuple(self: Any) -> None:
        self._nest(tuple(self.pop_mark()))

    def load_short_tuple(self: Any, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) != count:
            raise UnfitError("a tuple of more than there is")
        del self.stack[-count:]
        self._nest(items)

    def load_reduce(self: Any) -> None:
        arguments, make = self.stack.pop(), self.stack.pop()
        if not isinstance(arguments, tuple) or not callable(make):  # Python's own message would hold the text of both
            raise UnfitError("a call of what cannot be called")
        self.append(make(*arguments))

    dispatch[pickle.TUPLE[0]] = load_tuple
    dispatch[pickle.TUPLE1[0]] = lambda self: self.load_short_tuple(1)
    dispatch[pickle.TUPLE2[0]] = lambda self: self.load_short_tuple(2)
    dispatch[pickle.TUPLE3[0]] = lambda self: self.load_short_tuple(3)
    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_bytearray8(self: Any) -> None:
        (count,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(count))  # the original reserves and clears the memory first

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


# Writing


class _PortablePickler(pickle.Pickler):
    """Writes an array as ``numpy.ndarray(shape, dtype, bytes)``, names that every numpy knows."""

    def __init__(self, file: SupportsWrite) -> None:
        super().__init__(file, protocol=4)
        # Without a memo, the bytes of an array are let go as soon as they are written, and the file does not depend on
        # which equal strings happen to be one object.
        self.fast = True

    def reducer_override(self, value: Any) -> Any:
        array = as_array(value)
        if array is not None:
            return np.ndarray, (array.shape, array.dtype.str, array.tobytes())
        if type(value) is OrderedDict or value is OrderedDict or value is np.ndarray:
            return NotImplemented
        raise not_plain(value)
