"""Which files count as images, reading them, and pixels from their bytes."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Literal

import cv2
import numpy as np
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Image import Exif
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile

from passl_densecl.errors import InputError, RunError
from passl_densecl.text import one_line, printable

_MAIN = ["jpg", "png", "bmp", "tif", "ppm", "pgm", "pbm", "pnm"]
_MAIN += [extension for extension in ("webp", "jp2", "gif", "avif") if cv2.haveImageWriter("." + extension)]
_JPEG = ["jpeg", "jpe", "jfif", "jfi", "jif", "pjpeg", "pjp"]
_SIZES = [mark + size for mark in "_-" for size in ("large", "medium", "small", "thumb", "orig")]  # Twitter: .jpg_large

COUNTED_AS = {extension: extension for extension in _MAIN} | dict.fromkeys(_JPEG, "jpg")
COUNTED_AS |= {"tiff": "tif", "dib": "bmp", "apng": "png"}
COUNTED_AS |= {extension + size: COUNTED_AS[extension] for extension in ("jpg", "jpeg", "png") for size in _SIZES}
"""Lower-case ending of an image file, without the dot → the name that it is counted under."""

EXTENSIONS = frozenset(COUNTED_AS)
"""The endings of the files that count as images: those that the installed OpenCV decodes."""

SixteenBit = Literal["high_byte", "stretch"]
"""What 16 bits a value become: their upper 8; or 0 for an image's darkest value, 255 for its brightest."""

MAX_PIXELS = 2**28
"""An image whose header declares more pixels is not decoded: these would be 800 MB of RGB in every worker. Phones take
up to 200 million. Where the header cannot be read, OpenCV's own limit of 2**30 holds."""

MAX_BYTES = 2**31 - 1
"""A longer file is not read: OpenCV counts in 32 bits."""

_READ_RGB = getattr(cv2, "IMREAD_COLOR_RGB", 0)  # from OpenCV 4.11 on: without a pass over the pixels to swap channels
# The reduction's bits only; gray is a bit of its own.
_REDUCED = {1: 0, **{factor: getattr(cv2, f"IMREAD_REDUCED_GRAYSCALE_{factor}") for factor in (2, 4, 8)}}
_ORIENTATION_TAG = 0x0112
READERS: dict[bytes, type[ImageFile]] = {
    b"\xff\xd8": JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"GIF8": GifImageFile,
    b"BM": BmpImageFile,
    b"II*\0": TiffImageFile,
    b"MM\0*": TiffImageFile,
    b"\0\0\0\x0cjP  ": Jpeg2KImageFile,
    **{b"P%d" % number: PpmImageFile for number in range(1, 7)},
}
"""First bytes → Pillow's class for the format, which reads the header only. ``PIL.Image.open`` would apply a limit on
pixels that holds for the whole program. WebP is left out: Pillow takes memory for its pixels at once, and a side has at
most 16,383 pixels. AVIF is left out: its decoder has limits of its own.
"""
# Corrupt EXIF data is common in photographs and changes nothing here; what is wrong with a TIFF is said by us.
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", "Corrupt EXIF data|Truncated File Read", module="PIL")


def extension(name: bytes) -> str:
    """Lower case, without the dot; "" without one."""
    return os.fsdecode(os.path.splitext(name)[1][1:]).lower()


def counted(kinds: Counter[str]) -> str:
    """Endings and their numbers, the most frequent first: "11,902 jpg, 516 png"."""
    merged: Counter[str] = Counter()
    for kind, count in kinds.items():
        merged[COUNTED_AS.get(kind, "." + kind if kind else "extensionless")] += count
    ordered = sorted(merged.items(), key=lambda item: (-item[1], item[0]))
    if len(ordered) > 5:
        ordered[4:] = [("others", sum(count for _, count in ordered[4:]))]
    return ", ".join(f"{count:,} {printable(kind)}" for kind, count in ordered)


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
    """Within it, running out of memory becomes a RunError that names the image. The image is not bad and must not be
    replaced by another one, or the result would depend on what else the machine does.
    """
    try:
        yield
    except (MemoryError, cv2.error) as error:
        if isinstance(error, cv2.error) and error.code != cv2.Error.StsNoMem:
            raise
        raise RunError(
            f"the memory ran out over {one_line(path)}: set fewer data.num_workers, or make the images smaller once "
            "(densecl data pack --shorter-side 512). A training run continues with --resume auto"
        ) from error


def decode(path: str, sixteen_bit: SixteenBit = "high_byte") -> np.ndarray:
    """An image file → uint8 H×W×3, RGB, upright as its EXIF orientation says.

    Gray, palette and CMYK images become RGB, and 16 bits become 8 as `sixteen_bit` says. Alpha is dropped, as by
    ``convert("RGB")`` of Pillow and so in torchvision's data sets (TIFF excepted: OpenCV multiplies its colors with
    alpha).

    Raises:
        UndecodableImage: the file cannot be read, is cut short, is no image or has more than :data:`MAX_PIXELS` pixels.
        RunError: the memory ran out.
    """
    return decode_bytes(read_file(path), path, sixteen_bit)


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


def header(data: bytes) -> ImageFile | None:
    """The header of an image file as Pillow reads it, nothing decoded; None for WebP, AVIF and what it cannot read."""
    reader = next((reader for start, reader in READERS.items() if data.startswith(start)), None)
    if reader is None:
        return None
    try:
        return reader(io.BytesIO(data))
    except Exception:  # a damaged header can fail in any way; whether the image decodes is OpenCV's decision
        return None


def checked_size(data: bytes, path: str) -> tuple[int, int] | None:
    """(height, width) in pixels, upright, by the header of an image file; None when the header cannot be read.

    Raises:
        UndecodableImage: no bytes, or more than :data:`MAX_PIXELS` pixels; ``path`` is named.
    """
    if not data:
        raise UndecodableImage(path, "the file is empty (0 bytes)")
    image = header(data)
    if image is None:
        return None
    width, height = image.size
    if height * width > MAX_PIXELS:
        raise UndecodableImage(
            path, f"too many pixels for an image ({width:,}×{height:,}; at most {MAX_PIXELS:,} in all are decoded)"
        )
    return (width, height) if isinstance(image, JpegImageFile) and _is_turned(image) else (height, width)


def _is_turned(image: JpegImageFile) -> bool:
    """Whether its EXIF orientation exchanges height and width (Exif 2.3, 4.6: from 5 to 8)."""
    exif = Exif()
    try:
        exif.load(image.info["exif"])
        return exif.get(_ORIENTATION_TAG) in range(5, 9)
    except Exception:  # not given, or damaged
        return False


def decode_bytes(data: bytes, path: str, sixteen_bit: SixteenBit = "high_byte") -> np.ndarray:
    """As :func:`decode`, of the bytes of an image file; ``path`` is only named in the error."""
    checked_size(data, path)
    return decode_pixels(data, path, sixteen_bit=sixteen_bit)


def decode_pixels(data: bytes, path: str, reduction: int = 1, sixteen_bit: SixteenBit = "high_byte") -> np.ndarray:
    """As :func:`decode_bytes`, of bytes that :func:`checked_size` has accepted.

    With a ``reduction`` of 2, 4 or 8 both sides are so many times shorter (rounded up), which a JPEG decoder does at
    less cost than decoding all of it; use it for JPEG only.
    """
    if sixteen_bit == "stretch" and may_have_sixteen_bits(data):
        image = decode_all_bits(data, path)
        return image if image.dtype == np.uint8 else cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)  # type: ignore[call-overload]
    image = _decoded(data, path, (_READ_RGB or cv2.IMREAD_COLOR) | _REDUCED[reduction])
    return image if _READ_RGB else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def decode_all_bits(data: bytes, path: str) -> np.ndarray:
    """As :func:`decode_bytes`, but uint16 where the file has 16 bits (int16 if signed)."""
    # In BGR: OpenCV 5.0 ignores IMREAD_COLOR_RGB for TIFF of 16 bits.
    image = _decoded(data, path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    return np.ascontiguousarray(image[..., ::-1])


def may_have_sixteen_bits(data: bytes) -> bool:
    """Whether the format allows for 16 bits a value; of a PNG, whether it has them."""
    if data.startswith(b"\x89PNG"):
        return data[24:25] == b"\x10"
    return data.startswith((b"II", b"MM", b"P", b"\0\0\0\x0c"))


def _decoded(data: bytes, path: str, flags: int) -> np.ndarray:
    """What OpenCV makes of the bytes, of 8 or 16 bits. Raises as :func:`decode_bytes`."""
    try:
        with memory_is_named(path):
            image = None if _is_cut_png(data) else cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise UndecodableImage(path, f"refused by OpenCV ({error.err})") from error
    if image is None or image.dtype.itemsize > 2:
        from passl_densecl.data.undecodable import what_it_is  # images that decode need none of it

        raise UndecodableImage(path, what_it_is(data))
    return image


def _is_cut_png(data: bytes) -> bool:
    """Whether a chunk of a PNG does not fit into the file: OpenCV would take memory for all of it, up to 2 GB."""
    position = 8 if data.startswith(b"\x89PNG") else len(data)
    while position + 8 <= len(data) and data[position + 4 : position + 8] != b"IEND":
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        if end > len(data):
            return True
        position = end + 4  # behind its checksum
    return False
