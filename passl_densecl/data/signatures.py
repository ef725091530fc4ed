"""Images recognized by their first bytes, where the name does not say that a file is one."""

from __future__ import annotations

import os

from passl_densecl.data.images import EXTENSIONS, READERS

_BMP_HEADERS = frozenset(size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124))


def is_image(path: bytes) -> bool:
    """Whether the file begins like an image; False where it cannot be read."""
    if not os.path.isfile(path):  # a named pipe would wait for its other end
        return False
    try:
        with open(path, "rb", buffering=0) as file:
            return looks_like_image(file.read(32))
    except OSError:
        return False


def looks_like_image(start: bytes) -> bool:
    """Whether the first 32 bytes are those of an image of a kind that the installed OpenCV decodes."""
    if start.startswith(b"BM"):
        return start[14:18] in _BMP_HEADERS
    if start.startswith(b"P"):
        return start[:2] in READERS and start[2:3].isspace()
    if start[:4] == b"RIFF":
        return start[8:12] == b"WEBP" and "webp" in EXTENSIONS
    if start[4:8] == b"ftyp":
        return b"avif" in start[8:] and "avif" in EXTENSIONS
    return start.startswith(tuple(READERS)) and (start[:2] != b"\xff\xd8" or start[2:3] == b"\xff")
