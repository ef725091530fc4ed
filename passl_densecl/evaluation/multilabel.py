"""Images with several labels each: a VOC folder, or a list file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from passl_densecl.data.datasets import ImageSet
from passl_densecl.errors import InputError
from passl_densecl.evaluation.svm import ABSENT, PRESENT, UNSURE
from passl_densecl.text import listed, quantity, suggestion, utf8

_VOC = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
)
VOC_CLASSES = tuple(_VOC.split())


@dataclass(frozen=True)
class MultiLabelSet:
    images: ImageSet
    targets: np.ndarray  # (N, classes) int8: PRESENT, ABSENT or UNSURE
    classes: tuple[str, ...]

    def describe(self) -> str:
        """ "5,011 images, 20 classes, 1.5 per image", for a log line."""
        each = (self.targets == PRESENT).sum() / len(self.images)
        return f"{quantity(len(self.images), 'image')}, {len(self.classes)} classes, {each:.1f} per image"


def read_voc(folder: str | os.PathLike[str], split: str) -> MultiLabelSet:
    """A VOC folder (JPEGImages and ImageSets/Main, as in VOC2007); `split` is trainval, test or another one.

    ImageSets/Main/CLASS_SPLIT.txt has a line per image: its name, and 1, -1, or 0 where the class is present but
    difficult. Where these files are missing, labels come from the objects (name, difficult) in Annotations.

    Raises:
        InputError: the folder has another layout, or its files disagree.
    """
    root = Path(folder)
    lists = root / "ImageSets" / "Main"
    if not lists.is_dir():
        raise InputError(f"{root}: expected a VOC folder with ImageSets/Main and JPEGImages, such as VOCdevkit/VOC2007")
    classes = sorted(path.name.removesuffix(f"_{split}.txt") for path in lists.glob(f"*_{split}.txt"))
    if classes:
        names, columns = [], []
        for name in classes:
            rows = [line.split() for line in _lines(lists / f"{name}_{split}.txt")]
            if any(len(row) != 2 or row[1] not in ("1", "-1", "0") for row in rows):
                raise InputError(f"{lists / f'{name}_{split}.txt'}: expected a name and 1, -1 or 0 on every line")
            if columns and names != [row[0] for row in rows]:
                raise InputError(
                    f"{lists}: {classes[0]}_{split}.txt and {name}_{split}.txt do not list the same images"
                )
            names, columns = [row[0] for row in rows], [*columns, [int(row[1]) for row in rows]]
        targets = np.array(columns, np.int8).T
    else:
        listing = lists / f"{split}.txt"
        if not listing.is_file():
            known = sorted({path.stem.rpartition("_")[2] for path in lists.glob("*.txt")})
            has = listed(known, len(known), quoted=False)
            raise InputError(f"{lists}: no *_{split}.txt and no {split}.txt{suggestion(split, known)}; has {has}")
        names = [line.split()[0] for line in _lines(listing)]
        targets, classes = _from_annotations(root / "Annotations", names)
    paths = [os.fsencode(os.path.join("JPEGImages", name + ".jpg")) for name in names]
    return MultiLabelSet(_image_set(str(root), paths, split), targets, tuple(classes))


def _from_annotations(folder: Path, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    from xml.etree import ElementTree

    labels: list[dict[str, int]] = []
    for name in names:
        try:
            objects = ElementTree.parse(folder / f"{name}.xml").getroot().iter("object")
        except (OSError, ValueError, ElementTree.ParseError) as error:
            raise InputError(f"{folder / f'{name}.xml'}: {error}") from None
        of_image: dict[str, int] = {}
        for one in objects:
            label = one.findtext("name", "").strip()
            easy = one.findtext("difficult", "0").strip() != "1"
            of_image[label] = PRESENT if easy else of_image.get(label, UNSURE)
        labels.append(of_image)
    named = {label for of_image in labels for label in of_image}
    classes = sorted(VOC_CLASSES if named <= set(VOC_CLASSES) else named)
    targets = [[of_image.get(label, ABSENT) for label in classes] for of_image in labels]
    return np.array(targets, np.int8).reshape(len(names), len(classes)), classes


def read_list(
    file: str | os.PathLike[str], root: str | os.PathLike[str], classes: Sequence[str] | None = None
) -> MultiLabelSet:
    """A text file with a line per image: a path below `root`, a tab (or a blank, if the path has none), and class names
    separated by commas. '?' before a name marks it as unsure; no names: no class is present. Blank lines and lines that
    start with '#' are ignored.

    Args:
        classes: of the training list, for a test list that must agree with it; None: all names in the file.

    Raises:
        InputError: no such file or image, or a class that the training list does not have.
    """
    rows = []
    for line in _lines(Path(file)):
        path, _, labels = line.partition("\t") if "\t" in line else line.partition(" ")
        rows.append((path.strip(), [label.strip() for label in labels.split(",") if label.strip()]))
    named = sorted({label.lstrip("?") for _, labels in rows for label in labels})
    if classes is None:
        classes = named
    unknown = [label for label in named if label not in classes]
    if unknown:
        raise InputError(f"{file}: {unknown[0]!r} is not a class of the training list{suggestion(unknown[0], classes)}")
    if not rows or not classes:
        raise InputError(f"{file}: lists no image with a label; expected lines such as 'images/1.jpg dog,person'")
    targets = np.full((len(rows), len(classes)), ABSENT, np.int8)
    number_of = {label: number for number, label in enumerate(classes)}
    for row, (_, labels) in enumerate(rows):
        for label in labels:
            targets[row, number_of[label.lstrip("?")]] = UNSURE if label.startswith("?") else PRESENT
    images = _image_set(os.fspath(root), [os.fsencode(path) for path, _ in rows], str(file))
    return MultiLabelSet(images, targets, tuple(classes))


def _image_set(root: str, paths: list[bytes], source: str) -> ImageSet:
    if not paths:
        raise InputError(f"{source}: lists no image")
    for path in (paths[0], paths[-1]):
        if not os.path.isfile(os.path.join(os.fsencode(root), path)):
            raise InputError(f"{source}: lists {os.fsdecode(path)!r}, which is not under {root!r}")
    return ImageSet.from_paths(root, paths, source=f"in {source}")


def _lines(path: Path) -> list[str]:
    try:
        text = utf8(path.read_bytes()).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from None
    return [line.strip("\r\n ") for line in text.splitlines() if line.strip() and not line.startswith("#")]
