"""Which files count as images, reading them, and pixels from their bytes."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator

import cv2
import numpy as np

from passl_densecl.data.headers import declared_size
from passl_densecl.errors import InputError, RunError
from passl_densecl.text import one_line, printable

__all__ = [
    "COUNTED_AS",
    "EXTENSIONS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "UndecodableImage",
    "counted",
    "decode",
    "decode_bytes",
    "extension",
    "memory_is_named",
    "read_file",
]

EXTENSIONS = frozenset(
    ["jpg", "jpeg", "jpe", "png", "bmp", "dib", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"]
    + [extension for extension in ("webp", "jp2", "gif", "avif") if cv2.haveImageWriter("." + extension)]
)
"""Lower-case endings, without the dot, of the files that count as images: those that the installed OpenCV decodes."""

COUNTED_AS = {extension: extension for extension in EXTENSIONS} | {"jpeg": "jpg", "jpe": "jpg", "tiff": "tif"}
"""Ending of an image file → the name that it is counted under."""

MAX_PIXELS = 2**28
"""An image of more pixels is refused unread. Phones take 200 million; these would be 800 MB of RGB in every worker."""

MAX_BYTES = 2**31 - 1
"""A longer file is refused unread: OpenCV counts in 32 bits."""

_READ_RGB = getattr(cv2, "IMREAD_COLOR_RGB", 0)  # from OpenCV 4.11 on: without a pass over the pixels to swap channels
_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}  # the bits that ask for it; with color, for gray is another bit


def extension(name: bytes) -> str:
    """Lower case, without the dot; "" without one."""
    return os.fsdecode(os.path.splitext(name)[1][1:]).lower()


def counted(kinds: Counter[str]) -> str:
    """Endings and their numbers, the most frequent first: "11,902 jpg, 516 png"."""
    merged: Counter[str] = Counter()
    for kind, count in kinds.items():
        merged[COUNTED_AS.get(kind, "." + kind if kind else "unnamed kind")] += count
    ordered = sorted(merged.items(), key=lambda item: (-item[1], item[0]))
    most = 5 if len(ordered) <= 5 else 4
    shown = [f"{count:,} {printable(kind)}" for kind, count in ordered[:most]]
    if len(ordered) > most:
        shown.append(f"{sum(count for _, count in ordered[4:]):,} others")
    return ", ".join(shown)


class UndecodableImage(InputError):
    """A file that is not a readable image. ``path`` and ``reason`` are attributes."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{one_line(path)}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[UndecodableImage], tuple[str, str]]:
        return type(self), (self.path, self.reason)


@contextlib.contextmanager
def memory_is_named(path: str) -> Iterator[None]:
    """Within it, running out of memory becomes a RunError that names the image. The image is not bad: in its place
    another one must not stand, or the result would depend on what else the machine does.
    """
    try:
        yield
    except (MemoryError, cv2.error) as error:
        if isinstance(error, cv2.error) and error.code != cv2.Error.StsNoMem:
            raise
        raise RunError(
            f"the memory ran out over {one_line(path)}: set fewer data.num_workers, or make the images smaller once "
            "(tools/pack_data.py --shorter_side 512). A training run continues with --resume auto"
        ) from error


def decode(path: str) -> np.ndarray:
    """An image file → uint8 H×W×3, RGB, upright as its EXIF orientation says.

    Gray, palette and CMYK images become RGB and 16 bits become 8. Alpha is dropped, as by ``convert("RGB")``
    of Pillow and so in torchvision's data sets (TIFF excepted: OpenCV multiplies its colors with alpha).

    Raises:
        UndecodableImage: the file cannot be read, is cut short, is no image or has more than :data:`MAX_PIXELS` pixels.
        RunError: the memory ran out.
    """
    return decode_bytes(read_file(path), path)


def read_file(path: str) -> bytes:
    """The bytes of a file, whatever its name. Raises :class:`UndecodableImage` when it cannot be read."""
    try:
        # Not cv2.imread, which fails on names that are no UTF-8.
        with memory_is_named(path), open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise UndecodableImage(path, f"too many bytes for an image ({size:,}; at most {MAX_BYTES:,} are read)")
            return file.readall()
    except OSError as error:
        raise UndecodableImage(path, f"cannot be read ({error.strerror or error})") from error


def decode_bytes(data: bytes, path: str, reduction: int = 1) -> np.ndarray:
    """The bytes of an image file → uint8 H×W×3, as by :func:`decode`; ``path`` is only named in the error.

    With a ``reduction`` of 2, 4 or 8 both sides are so many times shorter (rounded up), which a JPEG decoder does at
    less cost than decoding all of it; do not ask it of other formats.

    Raises:
        UndecodableImage: cut short, no image, or of more than :data:`MAX_PIXELS` pixels.
        RunError: the memory ran out.
    """
    if not data:
        raise UndecodableImage(path, "the file is empty (0 bytes)")
    height, width = declared_size(data) or (0, 0)
    if height * width > MAX_PIXELS:
        raise UndecodableImage(
            path, f"too many pixels for an image ({width:,}×{height:,}; at most {MAX_PIXELS:,} in all are decoded)"
        )
    try:
        flags = (_READ_RGB or cv2.IMREAD_COLOR) | _REDUCED[reduction]
        with memory_is_named(path):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise UndecodableImage(path, f"refused by OpenCV ({error.err})") from error
    if image is None:
        raise UndecodableImage(path, f"damaged, cut short or no image ({len(data):,} bytes, first {data[:4]!r})")
    return image if _READ_RGB else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
