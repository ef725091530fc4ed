"""A list of images that stays small for a million of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

import numpy as np

from passl_densecl.data.images import SixteenBit, UndecodableImage, counted, decode_bytes, extension, read_file
from passl_densecl.errors import InputError
from passl_densecl.text import plural, printable


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in a fixed order: files of a folder, or records of a pack (an .lmdb file).

    All paths lie in one ``bytes`` object, because a list of a million ``str`` would be copied, reference count by
    reference count, into every worker process.

    Attributes:
        root: the folder that the paths are relative to, or the pack, as the user wrote it.
        labels: (N,) int64, indices into ``classes``; None when unlabeled.
        classes: class names in the order of the labels; empty when unlabeled.
        sixteen_bit: what :meth:`decode` makes of 16 bits a value.
    """

    root: str
    labels: np.ndarray | None
    classes: tuple[str, ...]
    _blob: bytes = field(repr=False)
    _offsets: np.ndarray = field(repr=False)  # (N + 1,) int64, path i is _blob[_offsets[i]:_offsets[i + 1]]
    _source: str  # how describe() names the origin
    _notes: tuple[str, ...] = ()
    sixteen_bit: SixteenBit = "high_byte"
    _record: Callable[[int], bytes] | None = None  # index → bytes of the file, where there are no files to open

    @classmethod
    def from_paths(
        cls,
        root: str,
        paths: Sequence[bytes],
        labels: np.ndarray | None = None,
        classes: Iterable[str] = (),
        *,
        source: str | None = None,
        notes: Iterable[str] = (),
    ) -> ImageSet:
        """Pack ``paths`` (file-system bytes, absolute or relative to ``root``)."""
        offsets = np.zeros(len(paths) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, paths), np.int64, len(paths)), out=offsets[1:])
        if labels is not None:
            labels = np.asarray(labels, np.int64)
        return cls(root, labels, tuple(classes), b"".join(paths), offsets, source or f"under {root}", tuple(notes))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @property
    def source(self) -> str:
        """Where the images come from, for a message: "under photos", "listed in train.txt"."""
        return printable(self._source)

    def relative_path(self, index: int) -> bytes:
        """The path of image ``index`` (0 ≤ index < len) below the root, in the bytes of the file system."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self._blob[self._offsets[index] : self._offsets[index + 1]]

    def path(self, index: int) -> str:
        """The path of image ``index`` (0 ≤ index < len), joined to the root; any file name survives ``open(path)``.

        Of a pack it is a name for messages and cannot be opened: :meth:`read` and :meth:`decode` give the contents.
        """
        return os.path.join(self.root, os.fsdecode(self.relative_path(index)))

    def read(self, index: int) -> bytes:
        """The bytes of the image file. Raises :class:`UndecodableImage` when it cannot be read."""
        return read_file(self.path(index)) if self._record is None else self._record(index)

    def decode(self, index: int) -> np.ndarray:
        """Image ``index`` as uint8 H×W×3, RGB, upright; see :func:`~passl_densecl.data.images.decode`.

        Raises:
            UndecodableImage: it cannot be read, is cut short, or is no image.
        """
        return decode_bytes(self.read(index), self.path(index), self.sixteen_bit)

    def subset(self, indices: Sequence[int]) -> ImageSet:
        """The images ``indices``, in this order."""
        labels = None if self.labels is None else self.labels[list(indices)]
        paths = [self.relative_path(index) for index in indices]
        part = self.from_paths(self.root, paths, labels, self.classes, source=self._source, notes=self._notes)
        record = None if self._record is None else partial(_of_part, self._record, tuple(indices))
        return replace(part, sixteen_bit=self.sixteen_bit, _record=record)

    def describe(self) -> str:
        """One line for the log: "12,418 images under photos (11,902 jpg, 516 png)"."""
        kinds = Counter(extension(self._blob[start:end]) for start, end in pairwise(self._offsets.tolist()))
        classes = ""
        if self.labels is not None:
            present = len(np.unique(self.labels))
            of_all = f"{present:,} of {len(self.classes):,}" if present < len(self.classes) else f"{present:,}"
            classes = f" in {of_all} {plural(len(self.classes), 'class')}"
        line = f"{len(self):,} {plural(len(self), 'image')}{classes} {self.source} ({counted(kinds)})"
        return "; ".join([line, *self._notes])


def _of_part(record: Callable[[int], bytes], indices: tuple[int, ...], index: int) -> bytes:
    return record(indices[index])


def check_decodable(image_set: ImageSet, sample: int = 16) -> None:
    """Try ``sample`` images spread over the set; when not one of them decodes, the folder is not what it seems.

    Raises:
        InputError: none could be decoded; the message names a few and why.
    """
    failures: list[UndecodableImage] = []
    for index in spread(len(image_set), sample):
        try:
            image_set.decode(index)
            return
        except UndecodableImage as failure:
            failures.append(failure)
    named = "".join(f"\n  {failure}" for failure in failures[:3])
    raise InputError(
        f"no image could be decoded {image_set.source}; tried {len(failures):,} of {len(image_set):,}:{named}"
    )


def spread(count: int, most: int) -> Iterator[int]:
    """At most ``most`` indices below ``count``, the first and the last among them, evenly apart."""
    if count <= most:
        return iter(range(count))
    return iter(np.linspace(0, count - 1, most).round().astype(int).tolist())
