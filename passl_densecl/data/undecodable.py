"""What a file is that OpenCV does not decode, and what to do."""

from __future__ import annotations

import io

from PIL.TiffImagePlugin import ImageFileDirectory_v2

from passl_densecl.text import quantity

_BITS, _STRIPS, _BANDS, _TILES, _SAMPLE_FORMAT = 258, 273, 277, 324, 339  # tags of TIFF
_SOMETHING_ELSE = {
    b"version https://git-lfs": "a Git LFS pointer in place of the image: fetch it with git lfs pull",
    b"<!doctype html": "a web page, no image: download it again",
    b"<html": "a web page, no image: download it again",
    b"<?xml": "XML such as SVG: convert it to PNG",
    b"<svg": "an SVG drawing: convert it to PNG",
    b"%pdf": "a PDF document: convert its pages to PNG",
    b"8bps": "a Photoshop file: save it as PNG or TIFF",
    b"\xff\x0a": "JPEG XL, which OpenCV does not decode: convert it to JPEG",
    b"\0\0\0\x0cjxl ": "JPEG XL, which OpenCV does not decode: convert it to JPEG",
    b"pk\3\4": "a ZIP archive: unpack it",
}  # first bytes, in lower case → what it is, and what to do
_HEIC = frozenset([b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"])
_SAMPLE_FORMATS = {2: "signed ", 3: "floating-point ", 5: "complex ", 6: "complex "}  # TIFF 6.0, section 19


def what_it_is(data: bytes) -> str:
    """What a file is that OpenCV does not decode, as far as its first bytes tell, and what to do."""
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    what = next((what for first, what in _SOMETHING_ELSE.items() if start.startswith(first)), None)
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC and b"avif" not in data[8:64]:
        what = "HEIC, which OpenCV does not decode: convert it to JPEG"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        what = _why_tiff(data)
    if what is None:
        return f"damaged, cut short or no image ({len(data):,} bytes, first {data[:4]!r})"
    return f"{what} ({len(data):,} bytes)"


def _why_tiff(data: bytes) -> str | None:
    try:
        tags = ImageFileDirectory_v2(data[: 16 if b"+" in data[2:4] else 8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        bits, kind = tags.get(_BITS, (1,))[0], _SAMPLE_FORMATS.get(tags.get(_SAMPLE_FORMAT, (1,))[0], "")
        bands = tags.get(_BANDS, 1)
        strip = tags.get(_STRIPS, tags.get(_TILES, (0,)))[0]
        whole = strip < len(data)
    except Exception:  # a damaged directory can fail in any way
        return None
    if not whole or (bands <= 4 and bits <= 16 and kind != "floating-point "):
        return None
    return f"TIFF of {quantity(bands, 'band')} of {bits}-bit {kind}numbers: write 1 or 3 bands of 8 or 16 bits"
