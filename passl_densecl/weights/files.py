"""Weight files of every format read as data, recognized by their content, and written by their suffix.

Formats: pickles (.pdparams and .pdopt of Paddle, .pd of PASSL, .pkl of detectron2), torch's zip files and what torch wrote
before (.pth, .pt), safetensors. Reading never runs anything of a file and needs neither Paddle nor torch; each format has a
module of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from passl_densecl.disk import did_you_mean, opened
from passl_densecl.errors import InputError
from passl_densecl.weights import checkpoints
from passl_densecl.weights.card import Card
from passl_densecl.weights.pickles import is_pickle, load_pickle, pickle_card, write_pickle
from passl_densecl.weights.plain import describe
from passl_densecl.weights.safetensors_files import (
    is_safetensors,
    load_safetensors,
    safetensors_card,
    write_safetensors,
)
from passl_densecl.weights.torch_files import (
    ZIP_START,
    TorchContent,
    is_legacy,
    load_legacy_torch,
    load_torch,
    torch_card,
    write_torch,
)

__all__ = [
    "SUFFIXES",
    "WeightFile",
    "describe",
    "read_arrays",
    "read_card",
    "read_pickle",
    "read_weights",
    "weights_file",
    "write_pickle",
    "write_weights",
]

Format = Literal["pickle", "torch", "torch (legacy)", "safetensors"]

_WRITERS: dict[str, Callable[..., None]] = {
    ".pdparams": write_pickle,
    ".pdopt": write_pickle,
    ".pd": write_pickle,
    ".pkl": write_pickle,
    ".pth": write_torch,
    ".pt": write_torch,
    ".safetensors": write_safetensors,
}
SUFFIXES = tuple(_WRITERS)
_CARDS = {"pickle": pickle_card, "torch": torch_card, "safetensors": safetensors_card}


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

    The format is recognized by content, never by suffix. Tensors become arrays that are contiguous and the caller's own;
    bfloat16 of torch and safetensors becomes float32, exactly; ordered dictionaries become dictionaries. Nothing in the
    file is executed, whoever wrote it. A file of a checkpoint is compared with the checksums beside it first.

    Raises:
        InputError: nothing there, incomplete, damaged, of another kind, or it asks for anything but plain data; says what.
    """
    path = weights_file(path)
    checkpoints.check_weights(path)
    return _read_weights(path)


def _read_weights(path: Path) -> WeightFile:
    with opened(path) as (file, size):
        format = recognize(path, file, size)
        card = _card(path, format, file, size)
        file.seek(0)
        if format == "pickle":
            content = TorchContent(load_pickle(path, file, size), ())
        elif format == "torch":
            content = load_torch(path, file, size)
        elif format == "torch (legacy)":
            content = load_legacy_torch(path, file, size)
        else:
            content = TorchContent(load_safetensors(path, file, size), ())
    return WeightFile(path, format, content.content, card, content.not_read)


def read_card(path: str | os.PathLike[str]) -> Card | None:
    """The identity card in a file or folder that :func:`read_weights` reads, without its weights; None for foreign files.

    Raises:
        InputError: nothing there, not a weight file, or the card is damaged.
    """
    path = weights_file(path)
    with opened(path) as (file, size):
        card = _card(path, recognize(path, file, size), file, size)
    try:
        return None if card is None else Card.from_dict(card)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def write_weights(
    path: str | os.PathLike[str], content: object, *, card: Card | Mapping[str, Any] | None = None
) -> None:
    """Write plain data in the format that the suffix of ``path`` says, all or nothing.

    ``.pdparams``, ``.pd``, ``.pdopt`` and ``.pkl`` are pickles, ``.pth`` and ``.pt`` torch zip files; ``.safetensors``
    holds flat tables of arrays only. Paddle's tensors are written as arrays. Equal content and card give equal bytes.

    Raises:
        InputError: another suffix, content that the format cannot hold, or the file cannot be written there.
        TypeError: ``content`` holds something that is not plain data.
    """
    write = _WRITERS.get(Path(path).suffix)
    if write is None:
        raise InputError(f"{path}: the name must end in one of {', '.join(SUFFIXES)}, which says the format")
    write(path, content, card=card)


def read_pickle(path: str | os.PathLike[str]) -> object:
    """The content of a ``.pdparams``, ``.pdopt``, ``.pd`` or ``.pkl`` file: plain containers, numbers, text and arrays.

    Tensors, which ``paddle.save`` writes as ``(name, array)``, become arrays; arrays that it split over several entries
    are joined; its table of automatic names is dropped. Ordered dictionaries become dictionaries. Arrays are
    writable, contiguous and owned by the caller. Nothing in the file is executed, whoever wrote it.

    Raises:
        InputError: the file is missing, incomplete, damaged, of another kind, or holds anything but plain data.
    """
    path = Path(path)
    with opened(path) as (file, size):
        format = recognize(path, file, size)
        if format != "pickle":
            raise InputError(f"{path}: a {format} file; expected a pickle, as paddle.save writes")
        return load_pickle(path, file, size)


def read_arrays(path: str | os.PathLike[str], *, checked: bool = False) -> dict[str, np.ndarray]:
    """Name → array of a weight file that is one flat table, as a layer's or an optimizer's state is.

    `checked` says that the caller has compared the file with its checksums.

    Raises:
        InputError: as :func:`read_weights`, or the file holds something else than a flat table of arrays.
    """
    content = (_read_weights(Path(path)) if checked else read_weights(path)).content
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
        hint = did_you_mean(path) or "; give a checkpoint, a run folder or a file of weights"
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
        raise InputError(f"{file} is missing; {checkpoints.other_weights(file)}")
    return file


# Formats


def recognize(path: Path, file: BinaryIO, size: int) -> Format:
    """The format of an open file by its first bytes; the file is left at its start. Raises InputError saying what it is."""
    start = file.read(64)
    file.seek(0)
    if not start:
        raise InputError(f"{path}: the file is empty (0 bytes); copy or download it again")
    if start.startswith(ZIP_START):
        return "torch"
    # A safetensors file may begin like a pickle, but no pickle says a header that fits into the file.
    if is_safetensors(start, size):
        return "safetensors"
    if is_legacy(start):
        return "torch (legacy)"
    if is_pickle(start):
        return "pickle"
    if start[8:9] == b"{" and not _is_text(start[:8]):
        return "safetensors"  # with a header that is longer than the file: its reader says so
    text = start[:40]
    shown = (
        f"a text file beginning {text.decode('latin1')!r}"
        if _is_text(text)
        else f"its first bytes are {text[:8].hex(' ')}"
    )
    raise InputError(f"{path}: not a file of weights ({shown}); known are pickles, torch files and safetensors")


def _card(path: Path, format: Format, file: BinaryIO, size: int) -> dict[str, Any] | None:
    return _CARDS[format](path, file, size) if format in _CARDS else None


def _is_text(start: bytes) -> bool:
    return all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start)
