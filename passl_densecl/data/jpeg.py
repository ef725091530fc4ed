"""What the header of a JPEG file tells before its pixels are decoded."""

from __future__ import annotations

_NO_FRAME = (0xC4, 0xC8, 0xCC)  # among 0xC0 to 0xCF: tables and a reserved marker
_START_OF_SCAN, _END_OF_IMAGE, _APP1, _FILL = 0xDA, 0xD9, 0xE1, 0xFF
_ORIENTATION_TAG = 0x0112
_LONG = 4  # a TIFF type: four bytes; orientations and small sizes are of two


def upright_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) in pixels of the image as it stands upright, from the header alone; None when that does not tell.

    Source: ITU-T T.81, annex B (segments and frame header); Exif 2.3, 4.6 (orientation).
    """
    if data[:2] != b"\xff\xd8":
        return None
    position, orientation = 2, 1
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == _FILL:
            position += 1
            continue
        if marker in (_START_OF_SCAN, _END_OF_IMAGE):
            return None
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            height, width = _number(data, position + 5), _number(data, position + 7)
            if not height or not width:
                return None
            return (width, height) if orientation >= 5 else (height, width)
        length = _number(data, position + 2)
        if marker == _APP1 and data[position + 4 : position + 10] == b"Exif\0\0":
            orientation = _orientation(data[position + 10 : position + 2 + length])
        position += 2 + length
    return None


def _orientation(tiff: bytes) -> int:
    """1 to 8; from 5 on height and width change places. 1 where nothing is said."""
    value = tiff_value(tiff, _ORIENTATION_TAG)
    return value if value is not None and 1 <= value <= 8 else 1


def tiff_value(tiff: bytes, tag: int) -> int | None:
    """The first number under a tag in the first directory of TIFF or Exif data; None when it is not there.

    Source: TIFF 6.0, section 2.
    """
    order = "little" if tiff[:2] == b"II" else "big"
    directory = int.from_bytes(tiff[4:8], order)
    for entry in range(int.from_bytes(tiff[directory : directory + 2], order)):
        start = directory + 2 + 12 * entry
        if int.from_bytes(tiff[start : start + 2], order) == tag:
            size = 4 if int.from_bytes(tiff[start + 2 : start + 4], order) == _LONG else 2
            return int.from_bytes(tiff[start + 8 : start + 8 + size], order)
    return None


def _number(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 2], "big")
