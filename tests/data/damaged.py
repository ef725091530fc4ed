"""A folder of images as they come: whole ones of every kind, and everything that goes wrong with files, for real."""

from __future__ import annotations

import functools
import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

BOMB_SIDE = 60_000  # pixels, as the header of a bomb says: 10.8 GB of RGB


def photograph(seed: int, height: int = 72, width: int = 80) -> np.ndarray:
    """uint8 RGB: a smooth random picture."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def odd_but_whole() -> dict[bytes, bytes]:
    """Name → bytes of images that decode, each unusual in its own way."""
    frames = [Image.fromarray(photograph(seed)) for seed in (50, 51, 52)]
    image, jpeg = frames[0], encoded(frames[0], "JPEG")
    sideways = Image.Exif()
    sideways[0x112] = 6
    alpha = Image.fromarray(np.dstack([photograph(53), np.full((72, 80), 90, np.uint8)]))
    animation = {"save_all": True, "append_images": frames[1:], "duration": 40}
    return {
        b"cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        b"sixteen bits.png": cv2.imencode(".png", photograph(54).astype(np.uint16) * 257)[1].tobytes(),
        b"animated.gif": encoded(image, "GIF", **animation),
        b"animated.webp": encoded(image, "WEBP", **animation),
        b"animated.png": encoded(image, "PNG", **animation),
        b"alpha.png": encoded(alpha, "PNG"),
        b"alpha.webp": encoded(alpha, "WEBP"),
        b"turned.jpg": encoded(image, "JPEG", exif=sideways),
        b"one pixel.png": encoded(Image.fromarray(photograph(55)[:1, :1]), "PNG"),
        b"one pixel.jpg": encoded(Image.fromarray(photograph(55)[:1, :1]), "JPEG"),
        b"long.png": encoded(Image.fromarray(np.resize(photograph(56), (1, 20_000, 3))), "PNG"),
        b"tall.jpg": encoded(Image.fromarray(np.resize(photograph(57), (20_000, 1, 3))), "JPEG"),
        b"a png.jpg": encoded(image, "PNG"),
        b"new\nline.jpg": jpeg,
        b"tab\tand \\n.jpg": jpeg,
        b"escape \x1b[31m.jpg": jpeg,
        b" blanks .jpg ".strip() + b".png": encoded(image, "PNG"),
        "图像 é.png".encode(): encoded(image, "PNG"),
        b"caf\xe9.jpg": jpeg,
    }


def bad() -> dict[bytes, tuple[bytes, str]]:
    """Name → (bytes, words of the reason) of files that are named like images and cannot be decoded."""
    jpeg, png = (encoded(Image.fromarray(photograph(60, 200, 240)), kind) for kind in ("JPEG", "PNG"))
    return {
        b"bad/empty.jpg": (b"", "the file is empty (0 bytes)"),
        b"bad/cut.jpg": (jpeg[: len(jpeg) // 2], "cut short"),
        b"bad/cut.png": (png[: len(png) // 2], "cut short"),
        b"bad/text.jpg": (
            b"<html><body>404: no such image</body></html>\n" * 9,
            "a web page, no image: download it again (405 bytes)",
        ),
        b"bad/bomb.jpg": (huge_jpeg(jpeg), "too many pixels for an image (60,000×60,000"),
        b"bad/bomb.png": (huge_png(BOMB_SIDE, BOMB_SIDE, b""), "too many pixels for an image (60,000×60,000"),
        b"bad/true bomb.png": (true_bomb(), "too many pixels for an image (20,000×20,000"),
        b"bad/new\nline\r.jpg": (b"", "the file is empty"),
        "bad/坏 图.png".encode(): (png[:60], "cut short"),
        b"bad/caf\xe9 \\x.jpg": (b"", "the file is empty"),
    }


def huge_jpeg(jpeg: bytes) -> bytes:
    """The JPEG with a frame header that promises 60,000×60,000 pixels."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", BOMB_SIDE, BOMB_SIDE) + jpeg[at + 4 :]


def huge_png(height: int, width: int, pixels: bytes, depth: int = 8, color: int = 2) -> bytes:
    """A PNG whose header is right in every bit, whatever its pixels are."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels, 1)) + chunk(b"IEND", b"")
    )


@functools.cache
def true_bomb() -> bytes:
    """A PNG of some 200 kB with all of its 400 million pixels: 1.2 GB of RGB."""
    return huge_png(20_000, 20_000, bytes(20_000 * (1 + 20_000 // 8)), depth=1, color=0)


def tiff(pixels: np.ndarray) -> bytes:
    """A TIFF of one strip of any number and kind of bands, H×W×bands."""
    height, width, bands = pixels.shape
    kind, bits = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind], 8 * pixels.dtype.itemsize
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 2 if bands > 2 else 1, 277: bands, 278: height}
    tags |= {279: pixels.nbytes, 284: 1, 339: kind, 273: 0}
    lists = 8 + 2 + 12 * len(tags) + 4  # where the values of all bands stand, where they need more room than a tag has
    entries = b""
    for tag, value in sorted(tags.items()):
        count = bands if tag in (258, 339) else 1
        where = {258: lists, 339: lists + 2 * bands, 273: lists + 4 * bands}.get(tag, value)
        value = where if count > 2 or tag == 273 else value << 16 | value if count == 2 else value
        entries += struct.pack("<HHII", tag, 3 if tag in (258, 339) else 4, count, value)
    values = struct.pack(f"<{2 * bands}H", *[bits] * bands, *[kind] * bands)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + values
    return head + pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()


def build(root: Path, ordinary: int = 20) -> Path:
    """Write it all under `root`: `ordinary` small photographs, the odd ones, the bad ones, links that lead nowhere or
    round.
    """
    top = os.fsencode(root)
    files = {name: data for name, data in odd_but_whole().items()} | {name: data for name, (data, _) in bad().items()}
    files |= {b"plain/%03d.jpg" % seed: encoded(Image.fromarray(photograph(seed)), "JPEG") for seed in range(ordinary)}
    for name, data in files.items():
        path = os.path.join(top, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
    os.symlink(b"nowhere.jpg", os.path.join(top, b"gone.jpg"))
    os.symlink(b"itself.jpg", os.path.join(top, b"itself.jpg"))
    os.symlink(b"round", os.path.join(top, b"round"))
    os.symlink(b"..", os.path.join(top, b"plain", b"up"))
    return root
