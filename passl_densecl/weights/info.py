"""What is in a weight file of any program: format, identity card, and every array with a hash of its values."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from passl_densecl.disk import sha256_of
from passl_densecl.weights.files import read_weights, weights_file
from passl_densecl.weights.reading import describe

_SHOWN_HASH = 12  # hexadecimal digits
_WIDEST = 100  # letters of a column; a longer name stands out of it
_MANY = 8  # entries of a list of numbers, from which on it is summed up


@dataclass(frozen=True)
class TensorInfo:
    """One array of a file."""

    name: str  # with the containers it is in: "state_dict/conv1.weight"
    shape: tuple[int, ...]
    dtype: str  # as read: bfloat16 of torch and safetensors is float32
    sha256: str  # of the values alone, little-endian and in order, and so the same in every format


@dataclass(frozen=True)
class FileInfo:
    """What a file is and holds."""

    path: Path
    format: str
    size: int  # bytes
    sha256: str  # of the file's bytes
    card: dict[str, Any] | None
    tensors: tuple[TensorInfo, ...]
    others: tuple[tuple[str, str], ...]  # (name, a few words) of everything that is no array
    not_read: tuple[str, ...]  # classes of objects that were not read

    @property
    def number_count(self) -> int:
        """Numbers in all arrays together."""
        return sum(int(np.prod(tensor.shape, dtype=object)) for tensor in self.tensors)


def describe_file(path: str | os.PathLike[str]) -> FileInfo:
    """All about a weight file, or the one that a checkpoint or run folder means.

    Raises:
        InputError: as :func:`~passl_densecl.weights.files.read_weights`.
    """
    file = weights_file(path)
    read = read_weights(file)
    tensors, others = [], []
    for name, value in _leaves(read.content, "", {}):
        if isinstance(value, np.ndarray):
            tensors.append(TensorInfo(name, value.shape, str(value.dtype), values_sha256(value)))
        else:
            others.append((name, describe(value)))
    return FileInfo(
        file, read.format, file.stat().st_size, sha256_of(file), read.card, tuple(tensors), tuple(others), read.not_read
    )


def values_sha256(array: np.ndarray) -> str:
    """SHA-256 of an array's values, little-endian and in C order, in hexadecimal; shape and format do not enter."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(np.ascontiguousarray(little).tobytes()).hexdigest()


def render(info: FileInfo, *, arrays: bool = True) -> str:
    """The same for people to read, in aligned lines; on one page without the `arrays` and what is not one."""
    lines = [
        f"file     {info.path}",
        f"format   {info.format}, {info.size:,} bytes",
        f"sha256   {info.sha256}",
        *_card_lines(info.card),
        f"arrays   {len(info.tensors):,} with {info.number_count:,} numbers; sha256 is of the values",
    ]
    if not arrays:
        lines.append(f"others   {len(info.others):,} that are no arrays; --arrays lists everything")
        return "\n".join(map(_printable, lines))
    shown = [(each.name, str(list(each.shape)), each.dtype, each.sha256[:_SHOWN_HASH]) for each in info.tensors]
    widths = [min(_WIDEST, max((len(row[column]) for row in shown), default=0)) for column in range(4)]
    lines += ["  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in shown]
    if info.others:
        lines.append(f"others   {len(info.others):,} that are no arrays")
        width = min(_WIDEST, max(len(name) for name, _ in info.others))
        lines += [f"  {name:<{width}}  {words}" for name, words in info.others]
    if info.not_read:
        lines.append(f"not read objects of {', '.join(info.not_read)}: no program of a file is run here")
    return "\n".join(map(_printable, lines))


def _card_lines(card: dict[str, Any] | None) -> list[str]:
    """The card, the kind first; the config in one line a section."""
    if card is None:
        return ["card     none: passl_densecl did not write this file, or an older version did"]
    lines = [f"card     {card.get('kind', 'of no kind')}"]
    rest = {key: value for key, value in card.items() if key not in ("kind", "parents", "config", "classes")}
    lines += [f"  {key:<12} {value}" for key, value in rest.items()]
    if isinstance(classes := card.get("classes"), list):
        more = f" and {len(classes) - _MANY} more" if len(classes) > _MANY else ""
        lines.append(f"  {'classes':<12} {len(classes)}: {', '.join(map(str, classes[:_MANY]))}{more}")
    parents = card.get("parents")
    for parent in parents if isinstance(parents, list) else []:
        if isinstance(parent, dict):
            lines.append(
                f"  {'made from':<12} {parent.get('file')} ({parent.get('kind')}), sha256 {parent.get('sha256')}"
            )
    if isinstance(config := card.get("config"), dict):
        lines += [f"  config.{key} {value}" for key, value in config.items()]
    return lines


def _leaves(value: object, name: str, seen: dict[int, str]) -> Iterator[tuple[str, object]]:
    """Everything in nested containers with its path. Long lists of numbers are one leaf, and so is a container that is
    there for the second time: a small file can repeat one without end."""
    inside: list[tuple[object, object]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, (list, tuple)) and not _is_long_and_simple(value):
        inside = list(enumerate(value))
    if not inside:
        yield name, value
    elif id(value) in seen:
        yield name, f"(the same as {seen[id(value)] or 'the whole'})"
    else:
        seen[id(value)] = name
        for key, item in inside:
            yield from _leaves(item, f"{name}/{key}" if name else str(key), seen)


def _is_long_and_simple(value: list | tuple) -> bool:
    return len(value) > _MANY and not any(isinstance(item, (dict, list, tuple, np.ndarray)) for item in value)


def _printable(line: str) -> str:
    """Without what a hostile name could do to a terminal."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line.rstrip())
