"""Files of ``torch.save`` (.pth, .pt) read as data, without torch.

Since torch 1.6 such a file is a zip archive: ``data.pkl``, a pickle in which a tensor is a call of
``torch._utils._rebuild_tensor_v2`` on the key of a storage, and ``data/KEY``, the bytes of each storage, uncompressed.
Before, it was several pickles in a row and then the storages.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from passl_densecl.disk import BoundedReader
from passl_densecl.errors import InputError
from passl_densecl.weights import card as cards
from passl_densecl.weights.pickles import DataUnpickler, check_end
from passl_densecl.weights.plain import UnfitError, describe, explained

CARD_RECORD = "passl_densecl_card.json"


def load_torch(path: Path, file: BinaryIO, size: int) -> tuple[object, tuple[str, ...]]:
    """The plain data in a torch zip file, and the classes of the objects that were not read. Raises InputError."""
    with _opened_archive(path, file, size) as archive:
        program = archive.read("data.pkl")
        reader = BoundedReader(io.BytesIO(program), len(program))
        unpickler = DataUnpickler(path, reader, size, archive.read_storage)
        content = unpickler.load()
        check_end(path, reader)
        order = archive.read("byteorder") if archive.holds("byteorder") else b"little"
        if order not in (b"little", b"big"):
            raise UnfitError(f"byte order {describe(order)}")
        unpickler.byte_order = "<" if order == b"little" else ">"
        return unpickler.finish(content), tuple(sorted(unpickler.not_read))


def load_legacy_torch(path: Path, file: BinaryIO, size: int) -> tuple[object, tuple[str, ...]]:
    """As :func:`load_torch`, of torch.save before 1.6, or with _use_new_zipfile_serialization=False."""
    with explained(path, size):
        reader, data = BoundedReader(file, size), {}
        unpickler = DataUnpickler(path, reader, size, lambda key, _size: data[key])
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


def torch_card(path: Path, file: BinaryIO, size: int) -> dict[str, Any] | None:
    """The identity card in a torch zip file; None when it has none."""
    with _opened_archive(path, file, size) as archive:
        if not archive.holds(CARD_RECORD) or archive.size_of(CARD_RECORD) > 2 * cards.MAX_BYTES:
            return None
        return cards.decode(path, archive.read(CARD_RECORD))


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
