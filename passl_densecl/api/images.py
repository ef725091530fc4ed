"""Batches for a network from paths, arrays, Pillow images, lists of these, folders or packs."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from passl_densecl.data.datasets import ImageSet, UndecodableImage, decode, scan_images
from passl_densecl.data.workers import Death, in_processes
from passl_densecl.errors import InputError
from passl_densecl.text import printable, suggestion
from passl_densecl.transforms import apply

if TYPE_CHECKING:
    from passl_densecl.data.images import SixteenBit
    from passl_densecl.transforms import Transform

WANTED = (
    "a path, a Pillow image or a uint8 array (height, width, 3) in RGB order; a list of these; or a folder of images"
)


@dataclass(frozen=True)
class Images:
    """N images, decoded on demand.

    Attributes:
        single: the user passed one image, not a list or a folder.
        pixels: index → uint8 RGB (height, width, 3); raises UndecodableImage.
        name: index → its name in messages and tables.
    """

    count: int
    single: bool
    pixels: Callable[[int], np.ndarray]
    name: Callable[[int], str]

    def __len__(self) -> int:
        return self.count


class Batch(NamedTuple):
    """Consecutive images, without those that cannot be decoded."""

    views: np.ndarray  # uint8 RGB (B, height, width, 3); B is 0 when none could be decoded
    indices: list[int]  # of the B images
    bad: list[tuple[int, str]]  # (index, reason) of the others


# --- inputs --------------------------------------------------------------------------------------------------------


def collect(inputs: Any, sixteen_bit: SixteenBit = "high_byte") -> Images:
    """Any supported input → Images. `sixteen_bit`: how files with 16 bits a value are read.

    An array is uint8, RGB (``cv2.imread`` gives BGR: reverse it with ``[..., ::-1]``), (height, width, 3); gray ones
    (height, width[, 1]) become three equal channels and an alpha channel is dropped, as for files. Four
    dimensions are N images. Files and Pillow images are turned upright as their EXIF orientation says.

    Raises:
        InputError: another type of input, no image, or an array of another dtype or shape.
    """
    if isinstance(inputs, str | os.PathLike):
        root = os.fsdecode(inputs)
        if os.path.isdir(root) or root.endswith(".lmdb"):
            return of_set(scan_images(root, sixteen_bit=sixteen_bit))
    if isinstance(inputs, np.ndarray) and inputs.ndim == 4:
        inputs = list(inputs)
    single = not isinstance(inputs, list | tuple)
    given: Sequence[Any] = [inputs] if single else inputs
    if not given:
        raise InputError(f"an empty list: expected {WANTED}")
    where = ["" if single else f"image {number} of the list: " for number in range(len(given))]
    readers = [_reader(one, place, sixteen_bit) for one, place in zip(given, where, strict=True)]
    names = [
        printable(os.fsdecode(one)) if isinstance(one, str | os.PathLike) else f"image {number}"
        for number, one in enumerate(given)
    ]
    return Images(len(readers), single, lambda index: readers[index](), names.__getitem__)


def of_set(image_set: ImageSet) -> Images:
    """The images of a folder or pack, by their paths below it."""
    return Images(
        len(image_set), False, image_set.decode, lambda index: printable(os.fsdecode(image_set.relative_path(index)))
    )


def _reader(one: Any, where: str, sixteen_bit: SixteenBit) -> Callable[[], np.ndarray]:
    """A function that returns the pixels of one image; all but the content of files is checked at once."""
    if isinstance(one, str | os.PathLike):
        path = os.fsdecode(one)
        _check_path(path, where)
        return lambda: decode(path, sixteen_bit)
    if isinstance(one, np.ndarray):
        pixels = _rgb(one, where)
        return lambda: pixels
    if _is_pillow(one):
        return lambda: _from_pillow(one, where)
    hint = ""
    if hasattr(one, "numpy"):
        hint = "; convert a tensor to an array: uint8, channels last, on the CPU"
    elif hasattr(one, "__next__"):
        hint = "; convert a generator with list(…)"
    raise InputError(f"{where}expected {WANTED}; got {type(one).__module__}.{type(one).__qualname__}{hint}")


def _check_path(path: str, where: str) -> None:
    if os.path.isdir(path):
        raise InputError(f"{where}{printable(path)} is a folder; pass it alone, not in a list")
    if os.path.exists(path):
        return
    if "://" in path:
        raise InputError(f"{where}{printable(path)} is a URL; download the image and pass its path")
    try:
        siblings = os.listdir(os.path.dirname(path) or ".")
    except OSError:
        siblings = []
    hint = suggestion(os.path.basename(path), siblings) or f"; expected {WANTED}"
    raise InputError(f"{where}no file or folder {printable(path)!r}{hint}")


def _rgb(array: np.ndarray, where: str = "") -> np.ndarray:
    """uint8 (height, width[, 1, 2, 3 or 4]) → uint8 RGB (height, width, 3)."""
    shape = "×".join(map(str, array.shape)) or "no dimensions"
    if array.dtype != np.uint8:
        advice = "convert it with .astype(np.uint8)"
        if array.dtype.kind == "f" and array.size:
            low, high = float(np.min(array)), float(np.max(array))
            advice = f"its values are from {low:g} to {high:g}; for 0 to 1 use (255 * x).round().astype(np.uint8)"
        elif array.dtype == np.uint16:
            advice = "for 16 bits use the upper byte: (x >> 8).astype(np.uint8)"
        raise InputError(f"{where}an array of {array.dtype} ({shape}): expected uint8, 0 to 255; {advice}")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or not array.size or array.shape[2] not in (1, 2, 3, 4):
        advice = "expected (height, width, 3), RGB, or (height, width) for a gray image"
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            advice += "; channels come last: x.transpose(1, 2, 0)"
        raise InputError(f"{where}an array of shape {shape}: {advice}")
    channels = array.shape[2]
    return np.ascontiguousarray(np.repeat(array[..., :1], 3, axis=2) if channels < 3 else array[..., :3])


def _is_pillow(one: Any) -> bool:
    return any(cls.__module__.partition(".")[0] == "PIL" for cls in type(one).__mro__)


def _from_pillow(image: Any, where: str) -> np.ndarray:
    from PIL import ImageOps  # installed, because the image was made with it

    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):  # convert("RGB") would clip at 255
            values = np.asarray(upright).astype(np.int64)
            if values.min() < 0 or values.max() > 65535:
                raise InputError(f"{where}a Pillow image of mode I with values beyond 16 bits; convert it to RGB first")
            return _rgb((values >> 8).astype(np.uint8), where)
        if upright.mode == "F":
            raise InputError(f"{where}a Pillow image of mode F (floats); convert it to RGB first")
        return _rgb(np.asarray(upright.convert("RGB")), where)
    except OSError as error:  # decoded only now
        raise UndecodableImage(str(getattr(image, "filename", "") or "a Pillow image"), str(error)) from error


# --- batches -------------------------------------------------------------------------------------------------------


def batches(
    images: Images, transforms: Sequence[Transform], batch_size: int, num_workers: int = 0
) -> Generator[Batch, None, None]:
    """All images once, in order, transformed, up to `batch_size` at a time.

    Random transforms draw as in epoch 0 with seed 0. With `num_workers` ≥ 1 that many processes decode, and an image
    that kills its decoder is reported as bad.

    Raises:
        InputError: the transforms give images of different sizes, or batch_size is not a positive whole number.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size {batch_size!r}: expected a whole number, at least 1")
    with closing(_views(images, transforms, num_workers)) as loaded:
        views: list[np.ndarray] = []
        indices: list[int] = []
        bad: list[tuple[int, str]] = []
        for index, one in enumerate(loaded):
            if isinstance(one, str):
                bad.append((index, one))
            else:
                if views and one.shape != views[0].shape:
                    raise InputError(
                        f"the transforms give images of different sizes, {views[0].shape[:2]} and {one.shape[:2]} "
                        "pixels, which cannot form a batch; pass a size"
                    )
                views.append(one)
                indices.append(index)
            if len(views) + len(bad) == batch_size or index == len(images) - 1:
                yield Batch(np.stack(views) if views else np.empty((0, 0, 0, 3), np.uint8), indices, bad)
                views, indices, bad = [], [], []


def _views(
    images: Images, transforms: Sequence[Transform], num_workers: int
) -> Generator[np.ndarray | str, None, None]:
    """Every image, transformed, or the reason why it cannot be decoded."""

    def load(index: int) -> np.ndarray | str:
        try:
            pixels = images.pixels(index)
        except UndecodableImage as failure:
            return failure.reason
        return apply(transforms, pixels, np.random.default_rng([0, 0, index, 0]))

    if num_workers < 1:
        for index in range(len(images)):
            yield load(index)
        return
    with closing(in_processes(load, range(len(images)), num_workers)) as loaded:
        for one in loaded:
            yield f"kills the decoder ({one.cause})" if isinstance(one, Death) else one
