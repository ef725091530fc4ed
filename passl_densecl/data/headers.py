"""How many pixels an image file promises, before any memory is taken for them."""

from __future__ import annotations

import re
from collections.abc import Callable

from passl_densecl.data.jpeg import tiff_value, upright_size

Size = tuple[int, int]


def declared_size(data: bytes) -> Size | None:
    """(height, width) in pixels that the header says (of a JPEG upright); None where it says nothing or is not known.

    WebP is left out because its format allows no more than 16,383 pixels a side, AVIF because its decoder sets bounds.
    """
    for start, size_of in _FORMATS.items():
        if data.startswith(start):
            return size_of(data)
    return _of_pnm(data) if data[:1] == b"P" else None


def _numbers(data: bytes, order: str, *places: tuple[int, int]) -> Size | None:
    """The whole numbers (height, width) at (position, bytes); None when they are not all there."""
    if any(at < 0 or at + size > len(data) for at, size in places):
        return None
    height, width = (int.from_bytes(data[at : at + size], order) for at, size in places)  # type: ignore[arg-type]
    return height, width


def _of_bmp(data: bytes) -> Size | None:
    if data[14:18] == b"\x0c\0\0\0":  # OS/2
        return _numbers(data, "little", (20, 2), (18, 2))
    size = _numbers(data, "little", (22, 4), (18, 4))
    return size and (min(size[0], 2**32 - size[0]), size[1])  # a negative height: the top row comes first


def _of_tiff(data: bytes) -> Size | None:
    height, width = tiff_value(data, 257), tiff_value(data, 256)
    return None if height is None or width is None else (height, width)


def _of_jpeg_2000(data: bytes) -> Size | None:
    box = data.find(b"ihdr", 0, 256)
    return None if box < 0 else _numbers(data, "big", (box + 4, 4), (box + 8, 4))


def _of_pnm(data: bytes) -> Size | None:
    header = re.match(rb"P[1-6](?:\s|#[^\n]*\n)+(\d{1,10})(?:\s|#[^\n]*\n)+(\d{1,10})", data[:4096])
    return None if header is None else (int(header[2]), int(header[1]))


_FORMATS: dict[bytes, Callable[[bytes], Size | None]] = {
    b"\xff\xd8": upright_size,
    b"\x89PNG\r\n\x1a\n": lambda data: _numbers(data, "big", (20, 4), (16, 4)),
    b"GIF8": lambda data: _numbers(data, "little", (8, 2), (6, 2)),
    b"BM": _of_bmp,
    b"II*\0": _of_tiff,
    b"MM\0*": _of_tiff,
    b"\0\0\0\x0cjP  ": _of_jpeg_2000,
}
