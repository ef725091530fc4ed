"""Images with a class per pixel: a VOC folder, COCO's panoptic or semantic masks, or any two folders."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from passl_densecl.data.datasets import EXTENSIONS, UndecodableImage, decode
from passl_densecl.data.images import read_file
from passl_densecl.disk import parse_json
from passl_densecl.errors import InputError, option
from passl_densecl.evaluation.multilabel import VOC_CLASSES
from passl_densecl.text import listed, quantity, utf8

UNLABELED = -1
VOID = 255
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class MaskSet:
    """N images, each with a mask, in the order of their names."""

    names: tuple[str, ...]  # path of the mask below its folder, without suffix
    images: tuple[str, ...]
    masks: tuple[str, ...]
    classes: tuple[str, ...]
    number_of: dict[int, int] = field(repr=False)  # value in the mask → index into classes; other values are unlabeled
    segments: dict[str, dict[int, int]] | None = field(default=None, repr=False)  # panoptic: mask file → id → value
    left_out: Counter[str] = field(default_factory=Counter)  # reason → number of files that are not used

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> np.ndarray:
        """uint8 RGB (height, width, 3). Raises UndecodableImage."""
        return decode(self.images[index])

    def mask(self, index: int) -> np.ndarray:
        """(height, width) int16 indices into `classes`, or UNLABELED. Raises InputError for another kind of file."""
        values = read_mask(self.masks[index])
        lookup = self.number_of
        if self.segments is not None:
            name = os.path.basename(self.masks[index])
            if name not in self.segments:
                raise InputError(f"{self.masks[index]}: the annotations do not name this mask")
            lookup = {one: self.number_of[kind] for one, kind in self.segments[name].items() if kind in self.number_of}
        elif values.max(initial=0) > 65535:
            raise InputError(
                f"{self.masks[index]}: a color image, like COCO's panoptic masks: give their JSON "
                f"({option('categories')}), or masks with one channel"
            )
        unique, place = np.unique(values, return_inverse=True)
        numbers = np.array([lookup.get(int(value), UNLABELED) for value in unique], np.int16)
        return numbers[place].reshape(values.shape)

    def only(self, classes: Sequence[int]) -> MaskSet:
        """The same images with these classes only; pixels of other classes become unlabeled."""
        new = {old: number for number, old in enumerate(classes)}
        number_of = {value: new[old] for value, old in self.number_of.items() if old in new}
        return replace(self, classes=tuple(self.classes[old] for old in classes), number_of=number_of)

    def describe(self) -> str:
        rest = f" ({self.without()})" if self.left_out else ""
        return f"{quantity(len(self), 'image')} with masks, {len(self.classes)} classes{rest}"

    def without(self) -> str:
        """The unused files, as text; empty if there are none."""
        return ", ".join(f"{count:,} {what}" for what, count in self.left_out.items())


def join(first: MaskSet, second: MaskSet) -> MaskSet:
    """The images of both, in order, with the classes of both by name.

    Raises InputError when only one is panoptic, or one value has two names.
    """
    if (first.segments is None) != (second.segments is None):
        raise InputError("training and validation masks must both be panoptic, or neither")
    classes = tuple(dict.fromkeys([*first.classes, *second.classes]))
    number_of: dict[int, int] = {}
    for one in (first, second):
        for value, number in one.number_of.items():
            if number_of.setdefault(value, classes.index(one.classes[number])) != classes.index(one.classes[number]):
                raise InputError(
                    f"the value {value} is {one.classes[number]!r} in one set and another class in the other"
                )
    segments = None
    if first.segments is not None and second.segments is not None:
        segments = first.segments | second.segments
    files = first.names + second.names, first.images + second.images, first.masks + second.masks
    return MaskSet(*files, classes, number_of, segments, first.left_out + second.left_out)


def presence(masks: MaskSet, progress: Callable[[int, int], None] | None = None) -> np.ndarray:
    """(N, classes) int64: the number of pixels of each class in every image."""
    counts = np.zeros((len(masks), len(masks.classes)), np.int64)
    for index in range(len(masks)):
        mask = masks.mask(index)
        counts[index] = np.bincount(mask[mask >= 0].ravel(), minlength=len(masks.classes))
        if progress is not None:
            progress(index + 1, len(masks))
    return counts


def fold_of(names: Sequence[str], folds: int, seed: int) -> np.ndarray:
    """(N,) int: the fold of every image, by a hash of seed and name; folds are equally large."""
    order = sorted(range(len(names)), key=lambda index: hashlib.sha256(f"{seed}:{names[index]}".encode()).digest())
    fold = np.empty(len(names), np.int64)
    fold[order] = np.arange(len(names)) % folds
    return fold


# ---------------------------------------------------------------- finding them


def read_folders(
    images: str | os.PathLike[str],
    masks: str | os.PathLike[str],
    *,
    categories: str | os.PathLike[str] | None = None,
    group: bool = False,
    ignore: Sequence[int] = (VOID,),
) -> MaskSet:
    """Two folders whose files have the same names up to the suffix, sub-folders included.

    Args:
        masks: PNG with one channel or a palette, whose values (indices) are classes; or COCO's panoptic masks.
        categories: a JSON file with COCO's "categories" (id, name, supercategory), which names the values; panoptic
            masks also need its panoptic "annotations". Without it every value that occurs is a class.
        group: COCO's 27 supercategories are the classes.
        ignore: values that are not a class.

    Raises:
        InputError: no image has a mask, or a file has another format.
    """
    image_of = {_name(path, images): path for path in _files(Path(images), EXTENSIONS)}
    mask_of = {_name(path, masks): path for path in _files(Path(masks), {"png", "bmp", "tif", "tiff"})}
    names = sorted(set(image_of) & set(mask_of))
    if not names:
        raise InputError(
            f"no image under {str(images)!r} has the name of a mask under {str(masks)!r} (sub-folders included): "
            f"{listed(sorted(image_of), 1) or 'no images'} and {listed(sorted(mask_of), 1) or 'no masks'}"
        )
    unused = {"images have no mask": len(image_of) - len(names), "masks no image": len(mask_of) - len(names)}
    left_out = +Counter(unused)
    paths = tuple(str(image_of[name]) for name in names), tuple(str(mask_of[name]) for name in names)
    if categories is not None:
        titles, number_of, segments = _read_categories(Path(categories), group, ignore)
        if not _in_color(paths[1][0]):  # semantic masks, named by the JSON of panoptic ones
            segments = None
        return MaskSet(tuple(names), *paths, titles, number_of, segments, left_out)
    if group:
        raise InputError(f"supercategories need the JSON file that names them: {option('categories')}")
    values = sorted(set[int]().union(*(np.unique(_one_channel(path)).tolist() for path in paths[1])) - set(ignore))
    if not values:
        raise InputError(f"no mask under {str(masks)!r} has a value other than the ignored ones, {list(ignore)}")
    number_of = {value: number for number, value in enumerate(values)}
    return MaskSet(tuple(names), *paths, tuple(f"class {value}" for value in values), number_of, None, left_out)


def read_voc_masks(folder: str | os.PathLike[str], split: str) -> MaskSet:
    """A VOC folder (JPEGImages, SegmentationClass, ImageSets/Segmentation): 20 classes and background, 255 ignored.

    Raises InputError for another layout.
    """
    root = Path(folder)
    listing = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not listing.is_file():
        raise InputError(f"{root}: expected a VOC folder with {listing.relative_to(root)}, such as VOCdevkit/VOC2012")
    try:
        names = tuple(sorted(utf8(listing.read_bytes()).decode().split()))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{listing}: cannot be read as text ({error})") from None
    images = tuple(str(root / "JPEGImages" / f"{name}.jpg") for name in names)
    masks = tuple(str(root / "SegmentationClass" / f"{name}.png") for name in names)
    missing = [path for path in (*images, *masks) if not os.path.isfile(path)]
    if missing or not names:
        absent = listed([os.path.basename(path) for path in missing], 1) or "nothing"
        raise InputError(f"{listing}: lists {absent}, not found under {root}")
    return MaskSet(names, images, masks, ("background", *VOC_CLASSES), {value: value for value in range(21)})


def _read_categories(
    path: Path, group: bool, ignore: Sequence[int]
) -> tuple[tuple[str, ...], dict[int, int], dict[str, dict[int, int]] | None]:
    try:
        tree: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        kinds = sorted(tree["categories"], key=lambda kind: kind["id"])
        key = "supercategory" if group else "name"
        titles = list(dict.fromkeys(str(kind[key]) for kind in kinds if kind["id"] not in ignore))
        number_of = {int(kind["id"]): titles.index(str(kind[key])) for kind in kinds if kind["id"] not in ignore}
        segments = None
        if any("segments_info" in one for one in tree.get("annotations", [])[:1]):
            segments = {
                one["file_name"]: {int(part["id"]): int(part["category_id"]) for part in one["segments_info"]}
                for one in tree["annotations"]
            }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: expected JSON with COCO's categories ({type(error).__name__}: {error})") from None
    return tuple(titles), number_of, segments


def _files(folder: Path, endings: set[str] | frozenset[str]) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"no folder {str(folder)!r}")
    return [path for path in sorted(folder.rglob("*")) if path.suffix[1:].lower() in endings and path.is_file()]


def _name(path: Path, root: str | os.PathLike[str]) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


# ---------------------------------------------------------------- reading them


def read_mask(path: str) -> np.ndarray:
    """(height, width) int64: gray values, palette indices (not colors), or R + 256·G + 65536·B of a color image.

    Raises UndecodableImage.
    """
    data = read_file(path)
    pixels = cv2.imdecode(np.frombuffer(_without_palette(data), np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if pixels is None:
        raise UndecodableImage(path, f"damaged, cut short or not an image ({len(data):,} bytes)")
    if pixels.ndim == 2:
        bits = data[24] if data.startswith(_PNG) else 8
        step = 255 // (2**bits - 1) if bits < 8 else 1  # OpenCV spreads fewer than 8 bits over 0..255
        return pixels.astype(np.int64) // step
    blue, green, red = (pixels[..., channel].astype(np.int64) for channel in range(3))
    return red + 256 * green + 65536 * blue


def _in_color(path: str) -> bool:
    """Whether a mask is a PNG of three or four channels."""
    header = read_file(path)[:26]
    return header.startswith(_PNG) and len(header) == 26 and header[25] in (2, 6)


def _one_channel(path: str) -> np.ndarray:
    values = read_mask(path)
    if values.max(initial=0) > 65535:
        raise InputError(f"{path}: a mask in color: give the JSON that names its values: {option('categories')}")
    return values


def _without_palette(data: bytes) -> bytes:
    """A PNG with a palette → a gray PNG of its indices, because OpenCV reads colors only; other data is unchanged."""
    if not data.startswith(_PNG) or len(data) < 33 or data[25] != 3:
        return data
    header = data[16:25] + b"\0" + data[26:29]  # width, height, bits; color type gray; compression, filter, interlace
    parts, at = [_PNG, _chunk(b"IHDR", header)], 33
    while at + 8 <= len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind in (b"IDAT", b"IEND"):
            parts.append(data[at : at + size + 12])
        at += size + 12
    return b"".join(parts)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
