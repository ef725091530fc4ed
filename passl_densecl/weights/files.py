"""Weight files read as data and written so that everybody can read them.

``paddle.save`` writes pickles, and ``paddle.load`` runs whatever a pickle asks for. Reading here goes through an
unpickler that knows arrays and plain containers and nothing else. Not even numpy is called while a file is being read:
``numpy.ndarray(shape, "O", some_bytes)`` would take the bytes for addresses of objects. The file's calls only fill
in stand-ins, which are checked afterwards and turned into arrays. No Paddle is needed to read or to write.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NoReturn

import numpy as np

from passl_densecl.errors import InputError

WEIGHTS_NAME = "model.pdparams"
STATE_NAME = "state.json"
MAX_NESTING = 64

# What paddle.save adds to a state: automatic names, which depend on what the process built before, and the list of
# arrays that protocols 2 and 3 could not hold in one piece (paddle/framework/io_utils.py).
_AUTOMATIC_NAMES = "StructuredToParameterName@@"
_BIG_ARRAYS = "UnpackBigParamInfor@@"

_ARRAY_KINDS = "biufcSU"  # bool, integers, floats, complex, text; never objects, never records
_DTYPE_TEXT = re.compile(rf"[<>=|]?[{_ARRAY_KINDS}]\d{{1,9}}")
_TORCH_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_REFUSAL = "is a torch file; converting torch files is not supported yet"


def read_pickle(path: str | os.PathLike[str]) -> object:
    """The content of a ``.pdparams``, ``.pdopt`` or ``.pd`` file: plain containers, numbers, text and numpy arrays.

    Tensors, which ``paddle.save`` writes as ``(name, array)``, become arrays; arrays that it split over several entries
    are joined; its table of automatic names is dropped. Ordered dictionaries become dictionaries. Arrays are
    writable, contiguous and owned by the caller. Nothing in the file is executed, whoever wrote it.

    Raises:
        InputError: the file is missing, incomplete, damaged, of another kind, or holds anything but plain data.
    """
    path = Path(path)
    with _open(path) as file:
        _check_kind(path, file)
        reader = _BoundedReader(file)
        content = _unpickle(path, reader)
        if type(content) is int and content == _TORCH_LEGACY_MAGIC:
            raise InputError(f"{path}: this {_TORCH_REFUSAL}")
        if reader.remaining:
            raise InputError(
                f"{path}: {reader.remaining:,} bytes follow the end of the data; "
                "the file is damaged, or several files were written into one"
            )
    try:
        return _Finisher().finish(content, 0)
    except _UnfitError as error:
        raise InputError(f"{path}: the file is damaged or hostile: {error}; nothing in it was run") from None


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Name → array of a weight file that is one flat table, as a layer's or an optimiser's state is.

    Raises:
        InputError: as :func:`read_pickle`, or the file holds something else than a flat table of arrays.
    """
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a table of names and arrays, the file holds {describe(content)}")
    strangers = [
        name for name, value in content.items() if not (isinstance(name, str) and isinstance(value, np.ndarray))
    ]
    if strangers:
        found = ", ".join(f"{name!r}: {describe(content[name])}" for name in strangers[:5])
        more = f" and {len(strangers) - 5} more" if len(strangers) > 5 else ""
        raise InputError(f"{path}: expected a table of names and arrays; these are no arrays: {found}{more}")
    return content


def write_pickle(path: str | os.PathLike[str], content: object) -> None:
    """Write plain containers, numbers, text, numpy arrays and Paddle tensors (as arrays) to ``path``, all or nothing.

    The file appears under its name only when it is complete and on the disk, and replaces a former one in the same
    instant. It is read by :func:`read_pickle`, and by ``paddle.load`` and ``pickle.load`` under numpy 1.23 to 2.x.
    Equal content gives equal bytes. One array at a time is copied.

    Raises:
        InputError: the folder is missing or the file cannot be written there.
        TypeError: ``content`` holds something that is not plain data.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(
            f"{path}: the folder {path.parent} does not exist{_did_you_mean(path.parent)}; create it first"
        )
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file in it")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            _PortablePickler(file).dump(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def weights_file(path: str | os.PathLike[str]) -> Path:
    """The file of weights that ``path`` means.

    A file is itself; a checkpoint folder means its ``model.pdparams``; a run folder, or the ``checkpoints`` folder in
    it, means its newest checkpoint: the largest ``step`` in ``state.json``, or the largest number in the folder's
    name where a checkpoint does not say its step.

    Raises:
        InputError: nothing is there, or nothing that holds weights.
    """
    path = Path(path)
    if not path.exists():
        hint = _did_you_mean(path) or "; give a checkpoint, a run folder or a file of weights"
        raise InputError(f"{path} does not exist{hint}")
    if not path.is_dir():
        return path
    if (path / WEIGHTS_NAME).is_file():
        return path / WEIGHTS_NAME
    checkpoints = path if path.name == "checkpoints" else path / "checkpoints"
    found = [folder for folder in _folders(checkpoints) if (folder / WEIGHTS_NAME).is_file()]
    if not found:
        raise InputError(
            f"{path}: no weights in this folder; expected {WEIGHTS_NAME} (a checkpoint), "
            f"or checkpoints/*/{WEIGHTS_NAME} (a run)"
        )
    steps = {folder: _step(folder) for folder in found}
    if None in steps.values():
        steps = {folder: _number(folder.name) for folder in found}
    return max(found, key=lambda folder: (steps[folder], folder.name)) / WEIGHTS_NAME


def describe(value: object) -> str:
    """A few words on what a value read from a file is, for messages."""
    if isinstance(value, np.ndarray):
        return f"an array {list(value.shape)} of {value.dtype}"
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


# Reading


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected a file such as {path / WEIGHTS_NAME}")
    if not path.exists():
        raise InputError(f"{path} does not exist{_did_you_mean(path)}")
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _check_kind(path: Path, file: BinaryIO) -> None:
    """Say what the file is when its first bytes are not those of a pickle of protocol 2 or later."""
    start = file.read(64)
    file.seek(0)
    if not start:
        raise InputError(f"{path}: the file is empty (0 bytes); copy or download it again")
    if start.startswith(b"PK\x03\x04"):
        raise InputError(f"{path}: {_describe_zip(path)}")
    if start[0] != 0x80 or (len(start) > 1 and not 2 <= start[1] <= 5):
        text = start[:40]
        shown = (
            f"a text file beginning {text.decode('latin1')!r}"
            if _is_text(text)
            else f"its first bytes are {text[:8].hex(' ')}"
        )
        raise InputError(f"{path}: not a file written by paddle.save ({shown})")


def _describe_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return "an incomplete zip file, perhaps a torch file that was cut off; expected a file written by paddle.save"
    if any(name.endswith("data.pkl") for name in names):
        return f"this {_TORCH_REFUSAL}"
    return "a zip file; expected a file written by paddle.save (unpack it first?)"


def _is_text(start: bytes) -> bool:
    return all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start)


def _unpickle(path: Path, reader: _BoundedReader) -> object:
    try:
        return _PlainUnpickler(reader, path).load()
    except InputError:
        raise
    except EOFError:
        raise InputError(
            f"{path}: the file ends too early, at {reader.size:,} bytes; it was cut off: copy or download it again"
        ) from None
    except Exception as error:  # a damaged pickle can fail in any way at all
        raise InputError(
            f"{path}: the file is damaged or hostile ({type(error).__name__}: {error!s:.200}); nothing in it was run"
        ) from None


class _BoundedReader:
    """A file of known size: asking for more than is left is an error before any memory is reserved."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size
        self.remaining = self.size

    def read(self, count: int) -> bytes:
        if count > self.remaining:
            raise EOFError
        data = self._file.read(count)
        self.remaining -= len(data)
        if len(data) != count:
            raise EOFError
        return data

    def readline(self) -> bytes:
        line = self._file.readline()
        self.remaining -= len(line)
        if not line.endswith(b"\n"):
            raise EOFError
        return line


class _UnfitError(Exception):
    """What the file describes is not the plain data it should be; becomes an InputError that names the file."""


class _DtypeStandIn:
    """What a file says about a dtype, checked."""

    __slots__ = ("dtype",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, text: object, *_: object) -> None:
        if isinstance(text, _DtypeStandIn):
            self.dtype: np.dtype = text.dtype
            return
        if not isinstance(text, str) or not _DTYPE_TEXT.fullmatch(text):
            raise _UnfitError(f"array of dtype {describe(text)}, which is no number or text")
        self.dtype = np.dtype(text)
        if self.dtype.itemsize == 0:
            raise _UnfitError(f"array of dtype {text!r}, which has no size")

    def __setstate__(self, state: tuple) -> None:
        order, subarray, fields = state[1:4]
        if subarray is not None or fields is not None or order not in ("<", ">", "=", "|"):
            raise _UnfitError("array of records")
        self.dtype = self.dtype.newbyteorder(order)


class _ArrayStandIn:
    """What a file says about an array; nothing is trusted until :meth:`array`."""

    __slots__ = ("data", "dtype", "fortran", "shape")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, shape: object, dtype: object, data: object, fortran: object = False) -> None:
        self.shape, self.dtype, self.data, self.fortran = shape, dtype, data, fortran

    def __setstate__(self, state: tuple) -> None:
        _version, self.shape, self.dtype, self.fortran, self.data = state

    def array(self) -> np.ndarray:
        """The array, in memory of its own; the file's bytes are let go."""
        shape, data = self.shape, self.data
        self.data = None
        dtype = _DtypeStandIn(self.dtype).dtype
        if isinstance(data, str):  # Python 2 wrote bytes as text
            data = data.encode("latin1")
        if not isinstance(data, (bytes, bytearray)):
            raise _UnfitError(f"array whose values are {describe(data)}, not bytes")
        if not isinstance(shape, tuple) or len(shape) > 32 or not all(type(n) is int and n >= 0 for n in shape):
            raise _UnfitError(f"array whose shape is {describe(shape)}")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise _UnfitError(f"array {list(shape)} of {dtype} in {len(data):,} bytes")
        if not data:
            return np.zeros(shape, dtype)
        return np.ndarray(shape, dtype, data, order="F" if self.fortran else "C").copy(order="C")


class _ScalarStandIn(_ArrayStandIn):
    """A numpy number: an array of no dimension."""

    __slots__ = ()


class _Admitted:
    """One name that a file may use. It gets this wrapper, not the class behind it, and so cannot change the class."""

    __slots__ = ("_make",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, make: Callable[..., object]) -> None:
        self._make = make

    def __call__(self, *arguments: object) -> object:
        return self._make(*arguments)

    def __setstate__(self, state: object) -> NoReturn:
        raise _UnfitError("an attempt to change a class")


def _empty_array(_class: object, _shape: object, _typecode: object) -> _ArrayStandIn:
    return _ArrayStandIn((0,), "b1", b"")  # numpy's own pickles fill it in with __setstate__


def _array_of_buffer(data: object, dtype: object, shape: object, order: object = "C") -> _ArrayStandIn:
    return _ArrayStandIn(shape, dtype, data, order == "F")


def _latin1_bytes(text: object, encoding: object) -> bytes:
    """How protocol 2 spells bytes: text and the name of a codec. No other codec is looked up."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _UnfitError(f"bytes in the codec {describe(encoding)}")
    return text.encode("latin1")


def _bytes(data: object = b"") -> bytes:
    if not isinstance(data, (bytes, bytearray)):  # bytes(10**12) would take all memory
        raise _UnfitError(f"bytes made of {describe(data)}")
    return bytes(data)


_ADMITTED: dict[str, Callable[..., object]] = {
    "numpy.ndarray": _ArrayStandIn,
    "numpy.dtype": _DtypeStandIn,
    "numpy.core.multiarray._reconstruct": _empty_array,
    "numpy._core.multiarray._reconstruct": _empty_array,
    "numpy.core.multiarray.scalar": lambda dtype, data: _ScalarStandIn((), dtype, data),
    "numpy._core.multiarray.scalar": lambda dtype, data: _ScalarStandIn((), dtype, data),
    "numpy.core.numeric._frombuffer": _array_of_buffer,
    "numpy._core.numeric._frombuffer": _array_of_buffer,
    "_codecs.encode": _latin1_bytes,
    "collections.OrderedDict": dict,  # keeps its order as well, and has no attributes that a file could set
    "builtins.dict": dict,
    "builtins.list": list,
    "builtins.tuple": tuple,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.complex": complex,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
}


class _PlainUnpickler(pickle._Unpickler):
    """Builds stand-ins and plain containers.

    The unpickler in Python rather than the one in C: there a few bytes (``LONG_BINPUT``) make it reserve, and fill,
    gigabytes. A file of weights has a few thousand instructions, so it is as fast.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: _BoundedReader, path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> _Admitted:
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full in _ADMITTED:
            return _Admitted(_ADMITTED[full])
        if module.split(".")[0] == "torch":
            raise InputError(f"{self._path}: this {_TORCH_REFUSAL} (it asks for {full})")
        raise InputError(
            f"{self._path}: the file asks for {full}, which is not an array or a plain container; "
            "it was refused and nothing in it was run. paddle.load would run it: use that only if you trust the author"
        )

    def load_bytearray8(self: Any) -> None:
        (count,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(count))  # the original reserves and clears the memory first

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


class _Finisher:
    """Turns what the unpickler built into plain data, visiting every object once."""

    def __init__(self) -> None:
        self._done: dict[
            int, tuple[object, object]
        ] = {}  # id → (object, kept alive so that its id stays taken; result)
        self._open: set[int] = set()

    def finish(self, value: object, nesting: int) -> object:
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
            return value
        if id(value) in self._done:
            return self._done[id(value)][1]
        if id(value) in self._open:
            raise _UnfitError("something that contains itself")
        if nesting > MAX_NESTING:
            raise _UnfitError(f"containers nested more than {MAX_NESTING} deep")
        self._open.add(id(value))
        result = self._finish_new(value, nesting)
        self._open.discard(id(value))
        self._done[id(value)] = (value, result)
        return result

    def _finish_new(self, value: object, nesting: int) -> object:
        if isinstance(value, _ScalarStandIn):
            return value.array()[()]
        if isinstance(value, _ArrayStandIn):
            return value.array()
        if isinstance(value, _DtypeStandIn):
            return value.dtype
        if isinstance(value, dict):
            return _tidy_state({key: self.finish(item, nesting + 1) for key, item in value.items()})
        if isinstance(value, list):
            return [self.finish(item, nesting + 1) for item in value]
        if isinstance(value, tuple):
            items = tuple(self.finish(item, nesting + 1) for item in value)
            is_tensor = len(items) == 2 and isinstance(items[0], str) and isinstance(items[1], np.ndarray)
            return items[1] if is_tensor else items
        if isinstance(value, (set, frozenset)):
            return value  # stand-ins cannot be hashed, so there is none inside
        raise _UnfitError(f"a {type(value).__name__.lstrip('_')} where data is expected")


def _tidy_state(state: dict) -> dict:
    """Undo what ``paddle.save`` does to a state: join split arrays, drop the automatic names."""
    state.pop(_AUTOMATIC_NAMES, None)
    table = state.pop(_BIG_ARRAYS, {})
    try:
        for name, split in table.items():
            parts = [state.pop(part) for part in split["slices"]]
            if not all(isinstance(part, np.ndarray) for part in parts):
                raise _UnfitError(f"the parts of {describe(name)} are no arrays")
            state[name] = np.concatenate(parts).reshape(split["OriginShape"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _UnfitError(f"the parts of a large array do not fit together ({type(error).__name__})") from None
    return state


# Writing


class _PortablePickler(pickle.Pickler):
    """Writes an array as ``numpy.ndarray(shape, dtype, bytes)``, names that every numpy knows."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, protocol=4)
        # Without a memo, the bytes of an array are let go as soon as they are written, and the file does not depend on
        # which equal strings happen to be one object.
        self.fast = True

    def reducer_override(self, value: Any) -> Any:
        if hasattr(value, "numpy") and callable(value.numpy):
            value = np.asarray(value.numpy())
        if isinstance(value, np.ndarray) and value.dtype.kind in _ARRAY_KINDS:
            return np.ndarray, (value.shape, value.dtype.str, value.tobytes())
        if type(value) is OrderedDict or value is OrderedDict or value is np.ndarray:
            return NotImplemented
        raise TypeError(
            f"only plain data can be written, not {type(value).__module__}.{type(value).__name__}: {value!r:.80}"
        )


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable, where the system can (Windows cannot open folders)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Folders


def _did_you_mean(path: Path) -> str:
    """'; did you mean …?' with a neighbour of the missing ``path`` that is spelled alike, or nothing."""
    folder = path.parent
    if not folder.is_dir():
        return f" (nor does its folder {folder})" if folder != folder.parent else ""
    close = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=1)
    return f"; did you mean '{folder / close[0]}'?" if close else ""


def _folders(folder: Path) -> list[Path]:
    """Finished checkpoints have plain names; hidden and temporary ones are still being written."""
    if not folder.is_dir():
        return []
    return [entry for entry in folder.iterdir() if entry.is_dir() and not re.search(r"^\.|tmp|partial", entry.name)]


def _step(folder: Path) -> int | None:
    try:
        step = json.loads((folder / STATE_NAME).read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if type(step) is int else None


def _number(name: str) -> int:
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else -1
