"""Finding image files, decoding them, and the data sets that training and evaluation read.

An :class:`ImageSet` is a list of paths, with labels where there are any, that stays small for a million files.
A data set pairs it with transforms. Its keys are (epoch, index) and every random draw comes from
(seed, epoch, index, view), so a sample does not depend on who computes it, when, or after what.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from passl_densecl import transforms
from passl_densecl.errors import InputError

__all__ = [
    "EXTENSIONS",
    "ImageSet",
    "LabelledDataset",
    "PairDataset",
    "UndecodableImage",
    "check_decodable",
    "decode",
    "scan_images",
]

EXTENSIONS = frozenset(
    ["jpg", "jpeg", "jpe", "png", "bmp", "dib", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"]
    + [extension for extension in ("webp", "jp2", "gif", "avif") if cv2.haveImageWriter("." + extension)]
)
"""Lower-case endings, without the dot, of the files that count as images: those that the installed OpenCV decodes."""

_READ_RGB = getattr(cv2, "IMREAD_COLOR_RGB", 0)  # from OpenCV 4.11 on: without a pass over the pixels to swap channels
_SPLIT_NAMES = frozenset(["train", "training", "val", "valid", "validation", "test", "testing", "unlabeled"])
_REPLACEMENT_TRIES = 20
_LISTED_FILES_CHECKED = 10_000


class UndecodableImage(InputError):
    """A file that is not a readable image. ``path`` and ``reason`` are attributes."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{_printable(path)}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[UndecodableImage], tuple[str, str]]:
        return type(self), (self.path, self.reason)


# --- a list of images ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Paths of images, in a fixed order.

    All paths lie in one ``bytes`` object, because a list of a million ``str`` would be copied, reference count by
    reference count, into every worker process.

    Attributes:
        root: the folder that the paths are relative to, as the user wrote it.
        labels: (N,) int64, indices into ``classes``; None when unlabelled.
        classes: class names in the order of the labels; empty when unlabelled.
    """

    root: str
    labels: np.ndarray | None
    classes: tuple[str, ...]
    _blob: bytes = field(repr=False)
    _offsets: np.ndarray = field(repr=False)  # (N + 1,) int64, path i is _blob[_offsets[i]:_offsets[i + 1]]
    _source: str  # how describe() names the origin
    _notes: tuple[str, ...] = ()

    @classmethod
    def from_paths(
        cls,
        root: str,
        paths: Sequence[bytes],
        labels: np.ndarray | None = None,
        classes: Iterable[str] = (),
        *,
        source: str | None = None,
        notes: Iterable[str] = (),
    ) -> ImageSet:
        """Pack ``paths`` (file-system bytes, absolute or relative to ``root``)."""
        offsets = np.zeros(len(paths) + 1, np.int64)
        np.cumsum(np.fromiter((len(path) for path in paths), np.int64, len(paths)), out=offsets[1:])
        if labels is not None:
            labels = np.asarray(labels, np.int64)
        return cls(root, labels, tuple(classes), b"".join(paths), offsets, source or f"under {root}", tuple(notes))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def path(self, index: int) -> str:
        """The path of image ``index`` (0 ≤ index < len), joined to the root; any file name survives ``open(path)``."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return os.path.join(self.root, os.fsdecode(self._relative(index)))

    def _relative(self, index: int) -> bytes:
        return self._blob[self._offsets[index] : self._offsets[index + 1]]

    def describe(self) -> str:
        """One line for the log: "12,418 images under photos (11,902 jpg, 516 png)"."""
        kinds = Counter(_extension(self._relative(index)) for index in range(len(self)))
        classes = ""
        if self.labels is not None:
            present = len(np.unique(self.labels))
            of_all = f"{present:,} of {len(self.classes):,}" if present < len(self.classes) else f"{present:,}"
            classes = f" in {of_all} {_plural(len(self.classes), 'class')}"
        line = f"{len(self):,} {_plural(len(self), 'image')}{classes} {_printable(self._source)} ({_counted(kinds)})"
        return "; ".join([line, *self._notes])


def scan_images(
    root: str | os.PathLike[str],
    list_file: str | os.PathLike[str] | None = None,
    labelled: bool = False,
    classes: Sequence[str] | None = None,
    *,
    minimum: int = 1,
) -> ImageSet:
    """Find the images under ``root``, in an order that depends on their names only.

    Unlabelled: every image of the folder and its sub-folders, whatever the layout. Labelled: ``root/CLASS/…``, classes
    numbered in the order of their names (bytes). Links to folders are followed, except back to a folder that they
    lie in; names that begin with a dot are left out (``._photo.jpg`` of macOS is no photo).

    With ``list_file``, exactly the files that it lists, in its order: one path relative to ``root`` on a line, and when
    ``labelled`` a blank and the label after it (a class number, or a class name without blanks). Blank lines and
    lines that begin with '#' are ignored.

    Args:
        classes: the class names to number by, for a validation set that must agree with a training set.
        minimum: fewer images than this are an error.

    Raises:
        InputError: no such folder or file, no image, too few, or labels that do not fit.
    """
    root = os.fspath(root)
    if not os.path.isdir(root):
        raise InputError(_no_such_folder(root))
    if list_file is not None:
        images = _from_list(root, os.fspath(list_file), labelled, classes)
    elif labelled:
        images = _from_class_folders(root, classes)
    else:
        images = _from_folder(root)
    if len(images) < minimum:
        raise InputError(
            f"{len(images):,} {_plural(len(images), 'image')} {_printable(images._source)}, expected at least "
            f"{minimum:,}: add images, or lower what asks for so many (a smaller batch_size)"
        )
    return images


# --- folders -------------------------------------------------------------------------------------------------------


@dataclass
class _Scan:
    """What a walk through a folder met."""

    paths: list[bytes] = field(default_factory=list)  # relative to the root, sorted
    folders: list[bytes] = field(default_factory=list)  # directly in the root, sorted
    others: Counter[str] = field(default_factory=Counter)  # extension → number of files that are no images
    hidden: int = 0
    broken_links: int = 0

    def notes(self) -> list[str]:
        notes = []
        if self.broken_links:
            notes.append(f"{self.broken_links:,} {_plural(self.broken_links, 'link')} to missing files left out")
        splits = [name for name in map(os.fsdecode, self.folders) if name.lower() in _SPLIT_NAMES]
        if len(splits) > 1:
            notes.append(f"the folders {_listed(splits)} count together: name one of them to leave the others out")
        return notes


def _walk(root: str) -> _Scan:
    scan = _Scan()
    top = os.fsencode(root)
    # The folders on the way down, by (device, inode): a link back to one of them would never end.
    pending: list[tuple[bytes, tuple[tuple[int, int], ...]]] = [(b"", (_identity(os.stat(top)),))]
    while pending:
        relative, ancestors = pending.pop()
        folder = os.path.join(top, relative) if relative else top
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise InputError(
                f"cannot read the folder {_printable(os.fsdecode(folder))}: {error.strerror or error}; "
                "change its permissions, or move it elsewhere"
            ) from error
        for entry in entries:
            path = os.path.join(relative, entry.name)
            if entry.name.startswith(b"."):
                scan.hidden += 1
            elif entry.is_dir():
                identity = _identity(entry.stat())
                if identity not in ancestors:
                    pending.append((path, (*ancestors, identity)))
                    if not relative:
                        scan.folders.append(path)
            elif _extension(entry.name) not in _COUNTED_AS:
                scan.others[_extension(entry.name)] += 1
            elif entry.is_file():
                scan.paths.append(path)
            else:
                scan.broken_links += 1
    scan.paths.sort()
    scan.folders.sort()
    return scan


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _from_folder(root: str) -> ImageSet:
    scan = _walk(root)
    if not scan.paths:
        raise InputError(_nothing_found(root, scan))
    return ImageSet.from_paths(root, scan.paths, notes=scan.notes())


def _from_class_folders(root: str, classes: Sequence[str] | None) -> ImageSet:
    scan = _walk(root)
    found = {os.fsdecode(folder): number for number, folder in enumerate(scan.folders)}
    splits = [name for name in found if name.lower() in _SPLIT_NAMES]
    if splits and len(splits) == len(found):
        raise InputError(
            f"{_printable(root)} holds the {_plural(len(splits), 'folder')} {_listed(splits)} where one folder for "
            f"each class was expected; name one of them: {_printable(os.path.join(root, splits[0]))}"
        )
    if not scan.paths:
        raise InputError(_nothing_found(root, scan))
    loose = [path for path in scan.paths if b"/" not in path]
    if loose:
        example = _printable(os.fsdecode(loose[0]))
        raise InputError(
            f"{len(loose):,} {_plural(len(loose), 'image')} ({example}{', …' if len(loose) > 1 else ''}) directly in "
            f"{_printable(root)}, where only folders named after their class were expected "
            "(root/CLASS/image.jpg); move them into such folders, or write the labels into a list_file"
        )
    folder_of = [os.fsdecode(path[: path.index(b"/")]) for path in scan.paths]
    if classes is None:
        empty = sorted(set(found) - set(folder_of))
        if empty:
            raise InputError(
                f"no image in the class {_plural(len(empty), 'folder')} {_listed(empty)} of {_printable(root)}; "
                "add images or remove the folder"
            )
        classes = list(found)
    number_of = {name: number for number, name in enumerate(classes)}
    unknown = [name for name in found if name not in number_of]
    if unknown:
        raise InputError(
            f"{len(unknown):,} of the {len(found):,} {_plural(len(found), 'folder')} in {_printable(root)} "
            f"{'is' if len(unknown) == 1 else 'are'} no class of the training set: {_listed(unknown)}; expected "
            f"{len(number_of):,} {_plural(len(number_of), 'name')} such as {_listed(list(number_of))}"
            f"{_suggestion(unknown[0], number_of)}"
        )
    labels = np.fromiter((number_of[name] for name in folder_of), np.int64, len(folder_of))
    return ImageSet.from_paths(root, scan.paths, labels, classes, notes=scan.notes())


def _no_such_folder(root: str) -> str:
    if os.path.exists(root):
        return (
            f"{_printable(root)} is a file, expected the folder that holds the images; a text file that lists images "
            "goes into list_file, with the folder that its paths start from as root"
        )
    if not root:
        return "the folder of images is empty text; name the folder"
    present, missing = os.path.split(os.path.abspath(root))
    while not os.path.isdir(present):
        present, missing = os.path.split(present)
    try:
        siblings = [entry.name for entry in os.scandir(present) if entry.is_dir()]
    except OSError:
        siblings = []
    close = difflib.get_close_matches(missing, siblings, n=1)
    hint = "give the folder that holds the images"
    if close:
        hint = f"did you mean {_printable(_with_component(root, missing, close[0]))!r}?"
    return f"no folder {_printable(root)!r} ({_printable(present)} has no {_printable(missing)!r}); {hint}"


def _with_component(path: str, old: str, new: str) -> str:
    """``path`` with its component ``old`` (the last one of that name) replaced."""
    pieces = path.split(os.sep)
    last = len(pieces) - 1 - pieces[::-1].index(old) if old in pieces else None
    return new if last is None else os.sep.join([*pieces[:last], new, *pieces[last + 1 :]])


def _nothing_found(root: str, scan: _Scan) -> str:
    met = []
    if scan.others:
        met.append(f"{_counted(scan.others)} {_plural(scan.others.total(), 'file')}")
    if scan.hidden:
        met.append(f"{scan.hidden:,} hidden {_plural(scan.hidden, 'name')} (left out)")
    if scan.broken_links:
        met.append(f"{scan.broken_links:,} {_plural(scan.broken_links, 'link')} to missing files")
    if scan.folders:
        names = [os.fsdecode(name) for name in scan.folders]
        met.append(f"the {_plural(len(names), 'folder')} {_listed(names)}")
    archives = sorted(kind for kind in scan.others if kind in ("zip", "tar", "gz", "tgz", "xz", "rar", "7z"))
    advice = "unpack the archive first" if archives else "give a folder that holds " + ", ".join(sorted(EXTENSIONS))
    return f"no images under {_printable(root)!r}; found {' and '.join(met) or 'nothing at all'}; {advice}"


# --- list files ----------------------------------------------------------------------------------------------------


def _from_list(root: str, list_file: str, labelled: bool, classes: Sequence[str] | None) -> ImageSet:
    try:
        with open(list_file, "rb") as file:
            lines = file.read().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise InputError(
            f"cannot read the list file {_printable(list_file)}: {error.strerror or error}; give a text file with one "
            "image path on a line"
        ) from error
    paths: list[bytes] = []
    words: list[str] = []
    numbers: list[int] = []  # of the lines, from 1
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith(b"#"):
            continue
        if labelled:
            pieces = text.rsplit(None, 1)
            if len(pieces) != 2:
                raise InputError(
                    f"{_printable(list_file)}:{number}: expected 'path label', got {_printable(os.fsdecode(text))!r}; "
                    "add a class number or class name after the path"
                )
            text = pieces[0]
            words.append(os.fsdecode(pieces[1]))
        paths.append(text)
        numbers.append(number)
    if not paths:
        raise InputError(
            f"{_printable(list_file)} lists no image; expected one path, relative to {_printable(root)}, on a line"
        )
    _check_listed(root, list_file, paths, numbers)
    source = f"listed in {list_file}"
    if not labelled:
        return ImageSet.from_paths(root, paths, source=source)
    labels, names = _read_labels(list_file, words, numbers, classes)
    return ImageSet.from_paths(root, paths, labels, names, source=source)


def _check_listed(root: str, list_file: str, paths: Sequence[bytes], numbers: Sequence[int]) -> None:
    """Every listed file, or of a long list an even sample (on a network a million questions would take minutes)."""
    top = os.fsencode(root)
    for index in _spread(len(paths), _LISTED_FILES_CHECKED):
        if os.path.isfile(os.path.join(top, paths[index])):
            continue
        shown = _printable(os.fsdecode(paths[index]))
        hint = f"paths are relative to {_printable(root)}"
        pieces = paths[index].rsplit(None, 1)
        if len(pieces) == 2 and os.path.isfile(os.path.join(top, pieces[0])):
            hint = f"is {_printable(os.fsdecode(pieces[1]))!r} a label? Labels are not expected here; leave them out"
        raise InputError(f"{_printable(list_file)}:{numbers[index]}: no file {shown!r}; {hint}")


def _read_labels(
    list_file: str, words: Sequence[str], numbers: Sequence[int], classes: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(N,) int64 and the class names. Without ``classes``, labels are all numbers or else all names."""
    if classes is None:
        if all(_is_number(word) for word in words):
            largest = max(range(len(words)), key=lambda index: int(words[index]))
            if int(words[largest]) > 10 * len(words) + 1000:
                raise InputError(
                    f"{_printable(list_file)}:{numbers[largest]}: label {words[largest]} among {len(words):,} images; "
                    "labels count from 0 without large gaps"
                )
            classes = [str(number) for number in range(int(words[largest]) + 1)]
        else:
            classes = sorted(set(words))
    number_of = {name: number for number, name in enumerate(classes)}
    labels = np.empty(len(words), np.int64)
    for index, word in enumerate(words):
        label = number_of.get(word)
        if label is None and _is_number(word) and int(word) < len(classes):
            label = int(word)
        if label is None:
            raise InputError(
                f"{_printable(list_file)}:{numbers[index]}: unknown label {_printable(word)!r}; expected a number from "
                f"0 to {len(classes) - 1} or one of {_listed(list(classes))}{_suggestion(word, number_of)}"
            )
        labels[index] = label
    return labels, tuple(classes)


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit()


# --- words for messages --------------------------------------------------------------------------------------------

_COUNTED_AS = {extension: extension for extension in EXTENSIONS} | {"jpeg": "jpg", "jpe": "jpg", "tiff": "tif"}


def _extension(name: bytes) -> str:
    """Lower case, without the dot; "" without one."""
    return os.fsdecode(os.path.splitext(name)[1][1:]).lower()


def _counted(kinds: Counter[str]) -> str:
    merged: Counter[str] = Counter()
    for kind, count in kinds.items():
        merged[_COUNTED_AS.get(kind, "." + kind if kind else "unnamed kind")] += count
    ordered = sorted(merged.items(), key=lambda item: (-item[1], item[0]))
    most = 5 if len(ordered) <= 5 else 4
    shown = [f"{count:,} {_printable(kind)}" for kind, count in ordered[:most]]
    if len(ordered) > most:
        shown.append(f"{sum(count for _, count in ordered[4:]):,} others")
    return ", ".join(shown)


def _listed(names: Sequence[str], limit: int = 3) -> str:
    shown = ", ".join(repr(_printable(name)) for name in names[:limit])
    return shown + (f" and {len(names) - limit:,} more" if len(names) > limit else "")


def _plural(count: int, word: str) -> str:
    return word if count == 1 else word + ("es" if word.endswith("s") else "s")


def _suggestion(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _printable(path: str) -> str:
    """File names may hold bytes that are no UTF-8; a message must not fail because of them."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def _spread(count: int, most: int) -> Iterator[int]:
    """At most ``most`` indices below ``count``, the first and the last among them, evenly apart."""
    if count <= most:
        return iter(range(count))
    return iter(np.linspace(0, count - 1, most).round().astype(int).tolist())


# --- pixels --------------------------------------------------------------------------------------------------------


def decode(path: str) -> np.ndarray:
    """An image file → uint8 H×W×3, RGB, upright as its EXIF orientation says.

    Grey, palette and CMYK images become RGB and 16 bits become 8. Alpha is dropped, as by ``convert("RGB")``
    of Pillow and so in torchvision's data sets (TIFF excepted: OpenCV multiplies its colours with alpha).

    Raises:
        UndecodableImage: the file cannot be read, is cut short, or is no image.
    """
    try:
        with open(path, "rb", buffering=0) as file:  # not cv2.imread, which fails on names that are no UTF-8
            data = file.readall()
    except OSError as error:
        raise UndecodableImage(path, f"cannot be read ({error.strerror or error})") from error
    if not data:
        raise UndecodableImage(path, "the file is empty (0 bytes)")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _READ_RGB or cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise UndecodableImage(path, f"refused by OpenCV ({error.err})") from error
    if image is None:
        raise UndecodableImage(path, f"damaged, cut short or no image ({len(data):,} bytes, first {data[:4]!r})")
    return image if _READ_RGB else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def check_decodable(image_set: ImageSet, sample: int = 16) -> None:
    """Try ``sample`` images spread over the set; when not one of them decodes, the folder is not what it seems.

    Raises:
        InputError: none could be decoded; the message names a few and why.
    """
    failures: list[UndecodableImage] = []
    for index in _spread(len(image_set), sample):
        try:
            decode(image_set.path(index))
        except UndecodableImage as failure:
            failures.append(failure)
        else:
            return
    if failures:
        named = "".join(f"\n  {failure}" for failure in failures[:3])
        raise InputError(
            f"no image could be decoded {_printable(image_set._source)}; tried {len(failures):,} of {len(image_set):,}:"
            + named
        )


# --- data sets -----------------------------------------------------------------------------------------------------

Transforms = Sequence[Callable[[np.ndarray, np.random.Generator], np.ndarray]]


class PairDataset:
    """Two views of every image, for pre-training.

    ``dataset[epoch, index]`` → (query, key, index, bad): two uint8 H×W×3 arrays, and two int64 numbers. ``bad`` is -1,
    or ``index`` when that image could not be decoded and the next one that can stands in for it.

    Raises (on access):
        UndecodableImage: neither the image nor the 19 after it can be decoded.
    """

    def __init__(self, image_set: ImageSet, transforms: Transforms, seed: int) -> None:
        self.image_set = image_set
        self.transforms = tuple(transforms)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.int64, np.int64]:
        epoch, index = key
        image, used = _decode_or_next(self.image_set, index)
        query, key_view = (
            transforms.apply(self.transforms, image, np.random.default_rng([self.seed, epoch, index, view]))
            for view in (0, 1)
        )
        return query, key_view, np.int64(index), np.int64(-1 if used == index else index)


class LabelledDataset:
    """One view of every image and its label, for linear evaluation, k-NN and the like.

    ``dataset[epoch, index]`` → (image, label, index, bad): a uint8 H×W×3 array and three int64 numbers. ``label`` is -1
    when the set has no labels. An image that cannot be decoded is replaced, label and all, by the next one that can;
    ``bad`` is then ``index``, else -1. With deterministic transforms use epoch 0 throughout.

    Raises (on access):
        UndecodableImage: neither the image nor the 19 after it can be decoded.
    """

    def __init__(self, image_set: ImageSet, transforms: Transforms, seed: int) -> None:
        self.image_set = image_set
        self.transforms = tuple(transforms)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.image_set)

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, np.int64, np.int64, np.int64]:
        epoch, index = key
        image, used = _decode_or_next(self.image_set, index)
        image = transforms.apply(self.transforms, image, np.random.default_rng([self.seed, epoch, index, 0]))
        label = -1 if self.image_set.labels is None else self.image_set.labels[used]
        return image, np.int64(label), np.int64(index), np.int64(-1 if used == index else index)


def _decode_or_next(image_set: ImageSet, index: int) -> tuple[np.ndarray, int]:
    """The image, or the first of those after it (around the end) that decodes; and which one it is."""
    first: UndecodableImage | None = None
    tries = min(_REPLACEMENT_TRIES, len(image_set))
    for step in range(tries):
        used = (index + step) % len(image_set)
        try:
            return decode(image_set.path(used)), used
        except UndecodableImage as failure:
            first = first or failure
    assert first is not None
    raise UndecodableImage(first.path, f"{first.reason}; nor can any of the {tries - 1} images after it be decoded")
