"""Images of 16 bits a value: noticed in a set, and read."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from passl_densecl.data.image_set import ImageSet
from passl_densecl.data.images import SixteenBit, UndecodableImage, checked_size, decoded


def sixteen_bit_note(image_set: ImageSet, indices: Sequence[int]) -> list[str]:
    """What the log should say where some of these images have 16 bits a value; nothing where none has."""
    brightest = [value for index in indices if (value := _brightest(image_set, index)) is not None]
    if not brightest:
        return []
    says = describe_sixteen_bit(image_set.sixteen_bit, max(brightest))
    return [f"{len(brightest)} of {len(indices)} files looked at have 16 bits a value: {says}"]


def _brightest(image_set: ImageSet, index: int) -> int | None:
    """The highest value of an image of 16 bits; None for others."""
    try:
        data, path = image_set.read(index), image_set.path(index)
        if not _may_have_sixteen_bits(data) or checked_size(data, path) is None:
            return None
        image = decode_all_bits(data, path)
    except UndecodableImage:
        return None
    return int(image.max()) if image.itemsize > 1 else None


def describe_sixteen_bit(sixteen_bit: SixteenBit, brightest: int) -> str:
    """What becomes of images of 16 bits whose brightest value this is."""
    if sixteen_bit == "stretch":
        return "each image's darkest to brightest value becomes 0 to 255 (sixteen_bit: stretch)"
    return (
        f"the upper 8 count, so the brightest value {brightest:,} becomes {brightest >> 8}; sixteen_bit: stretch would "
        "make it 255"
    )


def stretched(data: bytes, path: str) -> np.ndarray | None:
    """uint8 H×W×3, RGB, the darkest value 0 and the brightest 255; None for an image of 8 bits."""
    if not _may_have_sixteen_bits(data):
        return None
    image = decode_all_bits(data, path)
    if image.dtype == np.uint8:
        return None
    return cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)  # type: ignore[call-overload]


def decode_all_bits(data: bytes, path: str) -> np.ndarray:
    """As :func:`~passl_densecl.data.images.decode_bytes`, but uint16 where the file has 16 bits (int16 if signed)."""
    # In BGR: OpenCV 5.0 ignores IMREAD_COLOR_RGB for TIFF of 16 bits.
    image = decoded(data, path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    return np.ascontiguousarray(image[..., ::-1])


def _may_have_sixteen_bits(data: bytes) -> bool:
    """Whether the format allows for 16 bits a value; of a PNG, whether it has them."""
    if data.startswith(b"\x89PNG"):
        return data[24:25] == b"\x10"
    return data.startswith((b"II", b"MM", b"P", b"\0\0\0\x0c"))
