"""Is every image of a set readable, and what is in it?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from passl_densecl.data.image_set import ImageSet
from passl_densecl.data.images import COUNTED_AS, UndecodableImage, checked_size, decode_all_bits, extension, header
from passl_densecl.data.workers import Death, in_processes
from passl_densecl.errors import RunError


class _Found(NamedTuple):
    kind: str
    colors: str
    width: int
    height: int
    size: int
    brightest: int | None  # value, where the image has 16 bits


@dataclass
class Report:
    """What a check found in N images.

    Attributes:
        bad: (index, reason) of every image that cannot be decoded, in the order of the set.
        kinds: format by the contents → number of images.
        colors: "RGB", "gray", "alpha", "palette", "CMYK" → number of images.
        sixteen_bit: images with 16 bits a value.
        brightest: the highest value of these, up to 65,535.
        misnamed: images whose name ends like another format; they decode all the same.
        sizes: (M, 2) int64, width and height in pixels of the images that decode, upright.
        file_bytes: of those images together.
    """

    bad: list[tuple[int, str]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    colors: Counter[str] = field(default_factory=Counter)
    sixteen_bit: int = 0
    brightest: int = 0
    misnamed: int = 0
    sizes: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))
    file_bytes: int = 0

    def reasons(self) -> Counter[str]:
        """Why images are bad, without the details in parentheses → number of images."""
        return Counter(reason.split(" (")[0] for _, reason in self.bad)

    def quantiles(self) -> list[tuple[int, int]]:
        """(width, height) of the smallest, the median and the largest image, by their number of pixels."""
        order = np.argsort(self.sizes.prod(axis=1), kind="stable")
        return [tuple(self.sizes[order[at]].tolist()) for at in (0, len(order) // 2, -1)] if len(order) else []


def check_images(images: ImageSet, num_workers: int, progress: Callable[[int, int], None]) -> Report:
    """Decode every image in ``num_workers`` ≥ 1 processes; ``progress(done, bad)`` is called after each of them.

    An image that kills its decoder is bad like any other.
    """

    def look(index: int) -> _Found | str:
        try:
            data = images.read(index)
            checked_size(data, images.path(index))
            pixels = decode_all_bits(data, images.path(index))
        except UndecodableImage as failure:
            return failure.reason
        except RunError:
            return "needs more memory than there is"
        brightest = int(pixels.max()) if pixels.itemsize > 1 else None
        return _Found(*contents(data), pixels.shape[1], pixels.shape[0], len(data), brightest)

    report = Report()
    sizes = np.zeros((len(images), 2), np.int64)
    for index, found in enumerate(in_processes(look, range(len(images)), num_workers)):
        if isinstance(found, Death):
            report.bad.append((index, f"kills the decoder ({found.cause})"))
        elif isinstance(found, str):
            report.bad.append((index, found))
        else:
            report.kinds[found.kind] += 1
            report.colors[found.colors] += 1
            report.misnamed += _kind_of(images.relative_path(index)) not in (found.kind, None)
            report.file_bytes += found.size
            report.sixteen_bit += found.brightest is not None
            report.brightest = max(report.brightest, found.brightest or 0)
            sizes[index] = found.width, found.height
        progress(index + 1, len(report.bad))
    report.sizes = sizes[sizes.any(axis=1)]
    return report


_KINDS = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "JPEG2000": "jp2", "PPM": "pnm"}
_COLORS = {"P": "palette", "CMYK": "CMYK", **dict.fromkeys(("LA", "PA", "RGBA"), "alpha")}
_COLORS |= dict.fromkeys(("1", "L", "I", "I;16", "I;16B", "F"), "gray")
_ALIKE = {"dib": "bmp", "pgm": "pnm", "pbm": "pnm", "ppm": "pnm"}


def contents(data: bytes) -> tuple[str, str]:
    """(format, colors) by the header of an image file; "other" for an unknown format and "RGB" for unknown colors."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp", "alpha" if data[12:16] == b"VP8X" and data[20] & 0x10 else "RGB"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif", "RGB"
    image = header(data)
    if image is None:
        return "other", "RGB"
    kind = _KINDS.get(image.format or "", "other")
    return kind, "palette" if kind == "gif" else _COLORS.get(image.mode, "RGB")


def _kind_of(path: bytes) -> str | None:
    """The format that a name promises; None when it promises none."""
    kind = COUNTED_AS.get(extension(path))
    return _ALIKE.get(kind, kind) if kind else None
