"""Weight files of every format read as data, recognized by their content; `writing.py` writes them.

Formats: pickles (.pdparams and .pdopt of Paddle, .pd of PASSL, .pkl of detectron2), torch's zip files and what torch
wrote before (.pth, .pt), safetensors. Reading never runs anything of a file and needs neither Paddle nor torch.
"""

from __future__ import annotations

import os
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, Literal

import numpy as np

from passl_densecl.disk import did_you_mean, opened, sha256_of
from passl_densecl.errors import InputError
from passl_densecl.text import listed
from passl_densecl.weights import checkpoints
from passl_densecl.weights.card import Card
from passl_densecl.weights.reading import checked_card, describe

Format = Literal["pickle", "torch", "torch (legacy)", "safetensors"]

# How pickles of protocol 0 and 1 begin, which Python 2 wrote: they have no header.
_OLD_PICKLE = re.compile(rb"\(d|\}q|\(l|\]q|c(?:collections|__builtin__)\n", re.DOTALL)
_ZIP_START = b"PK\x03\x04"
_LEGACY_TORCH = b"\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little") + b"."  # torch's magic number, pickled


@dataclass(frozen=True)
class WeightFile:
    """A weight file as read."""

    path: Path
    format: Format
    content: object  # plain containers, numbers, text, numpy arrays, in the file's own structure
    card: dict[str, Any] | None  # identity card of files this project wrote
    not_read: tuple[str, ...] = ()  # classes of objects beside the weights that a text stands for: "(NAME, not read)"


def read_weights(path: str | os.PathLike[str]) -> WeightFile:
    """What a weight file of any format holds; a checkpoint or run folder means what :func:`weights_file` says.

    The format is recognized by content, never by suffix. Tensors become contiguous arrays in memory of their own;
    bfloat16 of torch and safetensors becomes float32, exactly; ordered dictionaries become dictionaries. Nothing in the
    file is executed, whoever wrote it. A file of a checkpoint is compared with the checksums beside it first.

    Raises:
        InputError: missing, incomplete, damaged, of another kind, or it asks for anything but plain data.
    """
    path = weights_file(path)
    check_weights(path)
    return _read_weights(path)


def _read_weights(path: Path) -> WeightFile:
    with opened(path) as (file, size):
        format = recognize(path, file, size)
        card = _reader(format).card(path, file, size)
        file.seek(0)
        content, not_read = _reader(format).load(path, file, size)
    return WeightFile(path, format, content, card, not_read)


def read_card(path: str | os.PathLike[str]) -> Card | None:
    """The identity card in a file or folder that :func:`read_weights` reads; None for files of other programs.

    Raises:
        InputError: nothing there, not a weight file, or the card is damaged.
    """
    path = weights_file(path)
    with opened(path) as (file, size):
        card = _reader(recognize(path, file, size)).card(path, file, size)
    try:
        return None if card is None else checked_card(card)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_arrays(path: str | os.PathLike[str], *, checked: bool = False) -> dict[str, np.ndarray]:
    """Name → array of a weight file that is one flat table, as a layer's or an optimizer's state is.

    `checked` says that the caller has compared the file with its checksums.

    Raises:
        InputError: as :func:`read_weights`, or the file holds something else than a flat table of arrays.
    """
    content = (_read_weights(Path(path)) if checked else read_weights(path)).content
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a table of names and arrays, the file holds {describe(content)}")
    others = [
        f"{name!r}: {describe(value)}"
        for name, value in content.items()
        if not isinstance(name, str) or not isinstance(value, np.ndarray)
    ]
    if others:
        raise InputError(
            f"{path}: expected a table of names and arrays; these are no arrays: {listed(others, 5, quoted=False)}"
        )
    return content


def weights_file(path: str | os.PathLike[str]) -> Path:
    """The file of weights that ``path`` means, or that it names: what weights are called, anywhere, comes through here.

    A file is itself; a checkpoint folder means its ``model.pdparams``; a run folder, or the ``checkpoints`` folder in
    it, means its newest checkpoint: the largest ``step`` in ``state.json``, or the largest number in the folder's
    name where a checkpoint does not say its step. What does not exist may be a name: of the model zoo, or
    ``hf:OWNER/NAME[@REVISION]`` (:mod:`passl_densecl.weights.hub`); its file is downloaded at the first use.

    Raises:
        InputError: nothing is there, or nothing that holds weights.
    """
    path = Path(path)
    if not path.exists():
        from passl_densecl.weights.hub import named_file  # only here: what lies on this machine needs none of it

        if (named := named_file(str(path))) is not None:
            return named
        hint = did_you_mean(path) or "; give a checkpoint, a run folder, a file of weights or a name"
        raise InputError(f"{path} does not exist{hint}")
    if not path.is_dir():
        return path
    if (path / checkpoints.MODEL).is_file():
        return path / checkpoints.MODEL
    folder = path if path.name == "checkpoints" else path / "checkpoints"
    found = [each for each in checkpoints.checkpoints_in(folder) if any(each.iterdir())]
    if not found:
        raise InputError(
            f"{path}: no weights in this folder; expected {checkpoints.MODEL} (a checkpoint), "
            f"or checkpoints/*/{checkpoints.MODEL} (a run)"
        )
    file = checkpoints.by_age(found)[-1] / checkpoints.MODEL
    if not file.is_file():  # an older one may be whole, but nobody asked for it
        raise InputError(f"{file} is missing; {other_weights(file)}")
    return file


def check_content(file: Path) -> None:
    """Raises InputError when a file of a checkpoint is not, byte for byte, what was written. Reads it once.

    A file without checksums beside it passes, and so does any that is no checkpoint's.
    """
    checkpoints.check_size(file)
    expected = checkpoints.written_as(file)
    if expected and (digest := sha256_of(file)) != expected[1]:
        digests = f"its SHA-256 is {digest[:12]}…, {expected[1][:12]}… was written ({checkpoints.CHECKSUMS})"
        raise InputError(f"{file} is damaged: {digests}; the size is right")


def check_weights(file: Path) -> None:
    """As :func:`check_content`, with the newest checkpoint beside it whose weights are whole in the message."""
    try:
        check_content(file)
    except InputError as error:
        raise InputError(f"{error}; {other_weights(file)}") from None


def other_weights(file: Path) -> str:
    """Which checkpoint beside this file's holds the same file whole, in words."""
    for other in reversed(checkpoints.by_age(checkpoints.checkpoints_in(file.parent.parent))):
        if other.name == file.parent.name:
            continue
        try:
            check_content(other / file.name)
        except InputError:
            continue
        return f"the newest other checkpoint whose {file.name} is whole is {other}"
    return f"there is no other checkpoint with a whole {file.name} beside it"


def recognize(path: Path, file: BinaryIO, size: int) -> Format:
    """The format of an open file by its first bytes, and the file at its start again. Raises InputError for others."""
    start = file.read(64)
    file.seek(0)
    if not start:
        raise InputError(f"{path}: the file is empty (0 bytes); copy or download it again")
    if start.startswith(_ZIP_START):
        return "torch"
    # A safetensors file may begin like a pickle, but no pickle says a header that fits into the file.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        return "safetensors"
    if _LEGACY_TORCH in start[:32]:
        return "torch (legacy)"
    if (start[:1] == pickle.PROTO and 2 <= (start + b"\x02")[1] <= 5) or _OLD_PICKLE.match(start):
        return "pickle"
    if start[8:9] == b"{" and not _is_text(start[:8]):
        return "safetensors"  # with a header that is longer than the file: its reader says so
    shown = f"its first bytes are {start[:8].hex(' ')}"
    if _is_text(start[:40]):
        shown = f"a text file beginning {start[:40].decode('latin1')!r}"
    raise InputError(f"{path}: not a file of weights ({shown}); known are pickles, torch files and safetensors")


def _reader(format: Format) -> ModuleType:
    """The module that reads a format: its `load` and `card` take the path, the open file and its size."""
    if format == "pickle":
        from passl_densecl.weights import pickles as reader
    elif format == "safetensors":
        from passl_densecl.weights import safetensors_files as reader
    else:
        from passl_densecl.weights import torch_files as reader
    return reader


def _is_text(start: bytes) -> bool:
    return all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start)
