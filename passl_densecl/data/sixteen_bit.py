"""Images of 16 bits a value: noticed in a set."""

from __future__ import annotations

from collections.abc import Sequence

from passl_densecl.data.image_set import ImageSet
from passl_densecl.data.images import SixteenBit, UndecodableImage, checked_size, decode_all_bits, may_have_sixteen_bits


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
        if not may_have_sixteen_bits(data) or checked_size(data, path) is None:
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
