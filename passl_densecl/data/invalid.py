"""Messages for invalid input: a file that is no image, a path that is no folder."""

from __future__ import annotations

import io
import os

from PIL.TiffImagePlugin import ImageFileDirectory_v2

from passl_densecl.text import closest, printable, quantity

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


def no_such_folder(root: str) -> str:
    """What is at ``root`` instead, or which name was meant."""
    if os.path.exists(root):
        return (
            f"{printable(root)} is a file, expected the folder that holds the images; a text file that lists images "
            "goes into list_file, with the folder that its paths start from as root"
        )
    if not root:
        return "the folder of images is empty text; name the folder"
    present, missing = os.path.split(os.path.abspath(root))
    while not os.path.isdir(present):
        present, missing = os.path.split(present)
    try:
        siblings = [entry.name for entry in os.scandir(present) if entry.is_dir() or entry.name.endswith(".lmdb")]
    except OSError:
        siblings = []
    close = closest(missing, siblings)
    hint = "give the folder that holds the images"
    if close:
        hint = f"did you mean {printable(_with_component(root, missing, close))!r}?"
    return f"no folder {printable(root)!r} ({printable(present)} has no {printable(missing)!r}); {hint}"


def _with_component(path: str, old: str, new: str) -> str:
    """``path`` with its component ``old`` (the last one of that name) replaced."""
    pieces = path.split(os.sep)
    last = len(pieces) - 1 - pieces[::-1].index(old) if old in pieces else None
    return new if last is None else os.sep.join([*pieces[:last], new, *pieces[last + 1 :]])
