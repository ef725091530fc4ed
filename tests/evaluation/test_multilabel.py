"""Images with several labels: VOC's folders and list files."""

from __future__ import annotations

import numpy as np
import pytest

from passl_densecl.errors import InputError
from passl_densecl.evaluation.multilabel import read_list, read_voc

OBJECTS = {"000001": [("dog", 0), ("person", 1)], "000002": [("cat", 0), ("dog", 1), ("dog", 0)], "000003": []}
CLASSES = ("cat", "dog", "person")
EXPECTED = [[-1, 1, 0], [1, 1, -1], [-1, -1, -1]]


@pytest.fixture
def voc(tmp_path):
    for folder in ("JPEGImages", "ImageSets/Main", "Annotations"):
        (tmp_path / folder).mkdir(parents=True)
    for name, objects in OBJECTS.items():
        (tmp_path / "JPEGImages" / f"{name}.jpg").write_bytes(b"not looked at")
        boxes = "".join(
            f"<object><name>{label}</name><difficult>{hard}</difficult></object>" for label, hard in objects
        )
        (tmp_path / "Annotations" / f"{name}.xml").write_text(f"<annotation>{boxes}</annotation>")
    (tmp_path / "ImageSets/Main/trainval.txt").write_text("".join(f"{name}\n" for name in OBJECTS))
    for label, column in zip(CLASSES, np.array(EXPECTED).T, strict=True):
        lines = [f"{name} {value:2d}\n" for name, value in zip(OBJECTS, column, strict=True)]
        (tmp_path / f"ImageSets/Main/{label}_trainval.txt").write_text("".join(lines))
    return tmp_path


def test_voc_lists(voc):
    found = read_voc(voc, "trainval")
    assert found.classes == CLASSES
    assert found.targets.tolist() == EXPECTED
    assert found.images.path(1) == str(voc / "JPEGImages" / "000002.jpg")


def test_voc_annotations_say_the_same(voc):
    for path in (voc / "ImageSets/Main").glob("*_trainval.txt"):
        path.unlink()
    found = read_voc(voc, "trainval")
    assert len(found.classes) == 20  # all of VOC's, in the order of their names
    assert found.targets[:, [found.classes.index(label) for label in CLASSES]].tolist() == EXPECTED
    assert (np.delete(found.targets, [found.classes.index(label) for label in CLASSES], axis=1) == -1).all()


def test_voc_mistakes_are_named(voc):
    with pytest.raises(InputError, match=r"no \*_trainvall\.txt.*did you mean 'trainval'"):
        read_voc(voc, "trainvall")
    with pytest.raises(InputError, match="expected a VOC folder"):
        read_voc(voc / "JPEGImages", "trainval")
    path = voc / "ImageSets/Main/dog_trainval.txt"
    path.write_text(path.read_text().replace("000002", "000009"))
    with pytest.raises(InputError, match="do not list the same images"):
        read_voc(voc, "trainval")
    path.write_text("000001 2\n")
    with pytest.raises(InputError, match="expected a name and 1, -1 or 0"):
        read_voc(voc, "trainval")


def test_list_files(voc, tmp_path):
    train = tmp_path / "train.txt"
    train.write_text(
        "# path labels\nJPEGImages/000001.jpg dog,?person\nJPEGImages/000002.jpg\tcat, dog\n\nJPEGImages/000003.jpg\n"
    )
    found = read_list(train, voc)
    assert found.classes == CLASSES
    assert found.targets.tolist() == EXPECTED
    test = tmp_path / "test.txt"
    test.write_text("JPEGImages/000002.jpg person\n")
    assert read_list(test, voc, found.classes).targets.tolist() == [[-1, -1, 1]]
    test.write_text("JPEGImages/000002.jpg person\n", encoding="utf-16")  # as PowerShell writes it
    assert read_list(test, voc, found.classes).targets.tolist() == [[-1, -1, 1]]
    test.write_text("JPEGImages/000002.jpg persn\n")
    with pytest.raises(InputError, match="'persn' is not a class of the training list; did you mean 'person'"):
        read_list(test, voc, found.classes)
    test.write_text("JPEGImages/4.jpg dog\n")
    with pytest.raises(InputError, match=r"lists 'JPEGImages/4\.jpg', which is not under"):
        read_list(test, voc, found.classes)
