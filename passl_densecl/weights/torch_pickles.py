"""The pickle inside of a torch file: torch's names stand for tensors that are checked, then cut out of their storages.

Checkpoints of OpenMMLab and others hold objects beside the weights: history buffers, parsed arguments, paths. torch's own
``weights_only`` reader refuses such a file whole. Here the classes of a few libraries that are known to be used for
bookkeeping are stand-ins that do nothing and take everything; what they stood for is replaced by a text that says so, and
reported. Nothing is imported for them, so they are as safe as a refusal. Any other name is refused: a file with weights
does not ask for it, and who made it should be known. An object that holds a tensor is refused as well, whatever its class,
since to drop it might be to drop a weight.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from passl_densecl.disk import BoundedReader
from passl_densecl.weights.pickles import ADMITTED, Admitted, PlainUnpickler
from passl_densecl.weights.plain import (
    Budget,
    DictStandIn,
    StandIn,
    UnfitError,
    check_shape,
    describe,
    empty_array,
    widened,
)

ByteOrder = Literal["<", ">"]

# torch's dtype → numpy's. bfloat16, which numpy lacks, is read as its bits and widened to float32, which is exact.
_BFLOAT16 = np.dtype("V2")
DTYPES = {
    "float32": "f4",
    "float64": "f8",
    "float16": "f2",
    "bfloat16": _BFLOAT16,
    "uint8": "u1",
    "int8": "i1",
    "int16": "i2",
    "int32": "i4",
    "int64": "i8",
    "bool": "b1",
    "complex64": "c8",
    "complex128": "c16",
    "uint16": "u2",
    "uint32": "u4",
    "uint64": "u8",
}
STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
_OTHER_KINDS = ("float8", "qint", "quint", "complex32", "bits")

# Packages whose objects stand beside weights in checkpoints. None of them is ever imported.
_BOOKKEEPING = (
    "addict",
    "argparse",
    "datetime",
    "easydict",
    "fvcore",
    "mmcls",
    "mmcv",
    "mmdet",
    "mmengine",
    "mmpretrain",
    "mmseg",
    "mmselfsup",
    "omegaconf",
    "pathlib",
    "yacs",
)


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
        self.name, self.dtype = name, np.dtype(DTYPES[name])

    def result(self, budget: Budget) -> str:
        return f"torch.{self.name}"


class _StorageType(StandIn):
    """torch.FloatStorage and so on; without a dtype, bytes of any type."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: str | None) -> None:
        self.dtype = None if dtype is None else np.dtype(DTYPES[dtype])


class _TensorType(StandIn):
    """torch.Tensor or torch.nn.Parameter, which a file names beside a function that makes one."""

    __slots__ = ()


def _tensor(storage: object, offset: object, shape: object, strides: object, *_: object) -> TensorStandIn:
    return TensorStandIn(storage, offset, shape, strides)


def _tensor_of_dtype(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    _gradient: object,
    _hooks: object,
    dtype: object,
    *_: object,
) -> TensorStandIn:
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


class TorchUnpickler(PlainUnpickler):
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
        if package == "torch" and name in STORAGES:
            return _StorageType(STORAGES[name])
        if package == "torch" and name in DTYPES:
            return _TorchDtype(name)
        if full == "builtins.getattr":
            return Admitted(_attribute, self._budget)
        if package in _BOOKKEEPING:
            self._inert.add(full)
            return Inert(full)
        return None

    def refusal(self, full: str) -> str:
        package, _, name = full.partition(".")
        if package == "torch" and name.startswith(_OTHER_KINDS):
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
