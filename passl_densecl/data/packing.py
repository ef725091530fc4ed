"""From an image set to a pack, large images reduced on the way where that is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np

from passl_densecl.data.image_set import ImageSet
from passl_densecl.data.images import SixteenBit, UndecodableImage, decode_bytes
from passl_densecl.data.packs import write_pack
from passl_densecl.data.workers import Death, in_processes
from passl_densecl.transforms import Resize


@dataclass
class Packed:
    """What became of N images.

    Attributes:
        reduced: how many were made smaller and encoded anew; all others are stored byte for byte.
        bad: (index, reason) of those that cannot be read (stored empty) or, when reducing, not decoded (stored as they
            are). Training treats them like undecodable files of a folder.
        source_bytes: of the image files.
        pack_bytes: of the pack.
    """

    reduced: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)
    source_bytes: int = 0
    pack_bytes: int = 0


class _Stored(NamedTuple):
    data: bytes
    source_bytes: int
    reduced: bool = False
    bad: str = ""


def pack_images(
    images: ImageSet,
    output: str,
    *,
    shorter_side: int | None = None,
    quality: int = 95,
    num_workers: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> Packed:
    """Write the images, with their paths and labels, to the pack ``output``; ``progress(done)`` after each of them.

    Args:
        shorter_side: images whose shorter side is longer than this many pixels are reduced to it; None keeps all bytes.
        quality: of the JPEG encoding (1 to 100) of reduced images; their colors keep the full resolution (4:4:4).
        num_workers: ≥ 1 processes that reduce; without ``shorter_side`` none is needed.

    Raises:
        InputError: as :func:`~passl_densecl.data.packs.write_pack`.
    """

    def store(index: int) -> _Stored:
        try:
            data = images.read(index)
        except UndecodableImage as failure:
            return _Stored(b"", 0, bad=failure.reason)
        if shorter_side is None:
            return _Stored(data, len(data))
        try:
            smaller = reduced(data, images.path(index), shorter_side, quality, images.sixteen_bit)
        except UndecodableImage as failure:
            return _Stored(data, len(data), bad=failure.reason)
        return _Stored(data, len(data)) if smaller is None else _Stored(smaller, len(data), reduced=True)

    packed = Packed()

    def records() -> Iterator[bytes]:
        stored = map(store, range(len(images)))
        if shorter_side is not None:
            stored = in_processes(store, range(len(images)), num_workers)
        for index, one in enumerate(stored):
            if isinstance(one, Death):
                one = _Stored(b"", 0, bad=f"kills the decoder ({one.cause})")
            packed.reduced += one.reduced
            packed.source_bytes += one.source_bytes
            if one.bad:
                packed.bad.append((index, one.bad))
            progress(index + 1)
            yield one.data

    packed.pack_bytes = write_pack(
        output,
        records(),
        [images.relative_path(index) for index in range(len(images))],
        labels=images.labels,
        classes=images.classes,
        shorter_side=shorter_side,
    )
    return packed


def reduced(
    data: bytes, path: str, shorter_side: int, quality: int, sixteen_bit: SixteenBit = "high_byte"
) -> bytes | None:
    """A JPEG of the image with its shorter side at ``shorter_side`` pixels; None when it is no longer than that.

    The image is upright, as its EXIF orientation says, and carries no EXIF data.

    Raises:
        UndecodableImage: the bytes are cut short or no image; ``path`` is named.
    """
    image = decode_bytes(data, path, sixteen_bit)
    if min(image.shape[:2]) <= shorter_side:
        return None
    image = Resize(size=shorter_side)(image, np.random.default_rng(0))  # Resize draws nothing
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    done, jpeg = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    return jpeg.tobytes() if done else None  # longer than a JPEG can be
