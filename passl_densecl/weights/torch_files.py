"""Files of ``torch.save`` (.pth, .pt) read as data and written, without torch.

Since torch 1.6 such a file is a zip archive: ``data.pkl``, a pickle in which a tensor is a call of
``torch._utils._rebuild_tensor_v2`` on the name of a storage, and ``data/NAME``, the bytes of each storage, uncompressed.
Before, it was several pickles in a row and then the storages. Both go through the unpickler that knows nothing but plain
data; torch's names stand for tensors that are checked, then cut out of their storages.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from passl_densecl.disk import BoundedReader
from passl_densecl.errors import InputError
from passl_densecl.weights import card as cards
from passl_densecl.weights.pickles import check_end, explained
from passl_densecl.weights.plain import Budget, Finisher, UnfitError, describe
from passl_densecl.weights.torch_pickles import ByteOrder, Storage, TorchUnpickler
from passl_densecl.weights.torch_writing import CARD_RECORD, write_torch

__all__ = ["ZIP_START", "TorchContent", "is_legacy", "load_legacy_torch", "load_torch", "torch_card", "write_torch"]

ZIP_START = b"PK\x03\x04"
_LEGACY_MAGIC = b"\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little") + b"."


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
        unpickler = TorchUnpickler(reader, path, budget, archive.storage)
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
            unpickler = TorchUnpickler(reader, path, budget, storage)
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
        if not archive.holds(CARD_RECORD) or archive.size_of(CARD_RECORD) > 2 * cards.MAX_BYTES:
            return None
        return cards.decode(path, archive.read(CARD_RECORD))


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
