"""List files of spreadsheets, PowerShell and Windows; and what their labels mean."""

from __future__ import annotations

import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from passl_densecl.data import lists
from passl_densecl.data.datasets import scan_images
from passl_densecl.errors import InputError

NAMES = ["a.png", "cat/b c.png", "dog/d,e.png", "照片/猫.png"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "photos"
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tofile(root / name)
    return root


@pytest.fixture
def scan(photos, tmp_path):
    """The images of a list, given as text (UTF-8) or bytes."""

    def scan(content: str | bytes, **options):
        (tmp_path / "list.txt").write_bytes(content.encode() if isinstance(content, str) else content)
        return scan_images(photos, tmp_path / "list.txt", **options)

    return scan


def found(images) -> list[str]:
    return [os.fsdecode(images.relative_path(index)) for index in range(len(images))]


def refused(*words: str):
    return pytest.raises(InputError, match="(?s)" + "".join(f"(?=.*{re.escape(word)})" for word in words))


# --- forms ---------------------------------------------------------------------------------------------------------

PLAIN = "".join(f"{name}\n" for name in NAMES)
BACKSLASHES = PLAIN.replace("/", "\\").replace("\n", "\r\n")
QUOTED = "".join(f'"{name}"\n' for name in NAMES)
UNLABELED = {  # what the log says of it → contents of the list
    "": [PLAIN, "\ufeff" + PLAIN, PLAIN.encode("utf-16"), b"\xfe\xff" + PLAIN.encode("utf-16-be"), "# x\n\n" + PLAIN],
    "backslashes": [BACKSLASHES, BACKSLASHES.encode("utf-16")],
    "quotes": [QUOTED, QUOTED.replace('"', "'")],
    "the root in front of paths": [PLAIN.replace("\n", "\nphotos/").removesuffix("photos/")],
    "quotes and backslashes": [QUOTED.replace("/", "\\")],
    "backslashes and the root in front of paths": [re.sub("(?m)^(?=.)", r".\\photos\\", PLAIN).replace("/", "\\")],
    "columns separated by commas": ['a.png,\ncat/b c.png,2\n"dog/d,e.png",x\n照片/猫.png,0\n'],
    "columns separated by tabs": [PLAIN.replace("\n", "\tx\n")],
    "line 1 of the list left out": ["filename\n" + PLAIN, "path,label\n" + re.sub("(?m)(.+)", r'"\1",7', PLAIN)],
}
LABELED = {
    "": [PLAIN.replace("\n", " cat\n"), PLAIN.replace("\n", "\tcat\n")],
    "columns separated by commas": [re.sub("(?m)(.+)", r'"\1",cat', PLAIN), re.sub("(?m)(.+)", r'"\1", cat', PLAIN)],
    "columns separated by semicolons": [PLAIN.replace("\n", ";cat\n"), "Image;Label\n" + PLAIN.replace("\n", ";cat\n")],
    "quotes and backslashes": [QUOTED.replace("/", "\\").replace("\n", " cat\n")],
    "columns separated by commas and backslashes": [re.sub("(?m)(.+)", r'"\1",cat', PLAIN).replace("/", "\\")],
}


@pytest.mark.parametrize("labeled", [False, True])
def test_the_forms_of_lists(scan, labeled):
    for said, contents in (LABELED if labeled else UNLABELED).items():
        for content in contents:
            images = scan(content, labeled=labeled)
            assert found(images) == NAMES, content
            assert said in images.describe()
            assert images.classes == (("cat",) if labeled else ())
            if not said:
                assert "the list has" not in images.describe()


def test_labels_with_blanks_in_columns(scan):
    assert scan("a.png,big cat\ncat/b c.png,owl\n", labeled=True).classes == ("big cat", "owl")


def test_a_plain_path_is_never_mended(scan, photos):
    """Whatever is there under the very name that is listed."""
    for name in (b"x\\y.png", b'"q".png', b"a.png,0", b"photos/a.png", b"caf\xe9.png", b"filename"):
        path = os.path.join(os.fsencode(photos), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb"):
            pass
        images = scan(name)
        assert images.relative_path(0) == name
        assert images.describe().endswith("png)") or not name.endswith(b".png")
        os.unlink(path)


@pytest.mark.parametrize(
    ("content", "labeled", "words"),
    [
        (
            PLAIN.encode("utf-16")[2:],
            False,
            ["list.txt:1: UTF-16 without its byte order mark", "save the list as UTF-8"],
        ),
        (PLAIN.encode("utf-16")[:-1], False, ["cannot read the list file", "utf-16"]),
        ("a.png\nhttps://x.org/b.png\n", False, ["list.txt:2: 'https://x.org/b.png' is an address", "download"]),
        ("0,a.png,3\n", True, ["list.txt:1: 3 columns, expected a path and a label"]),
        ("a.png,3,x\n", False, ["list.txt:1: 3 columns, expected a path (and a label at most)"]),
        ("A.PNG\n", False, ["list.txt:1: no file 'A.PNG'", "did you mean 'a.png'?"]),
        ("cat\\b c.jpg\n", False, ["no file 'cat\\\\b c.jpg'", "did you mean 'b c.png'?"]),
        ("a.png,0\ncat/b c.png 1\n", True, ["list.txt:2"]),  # one form holds for the whole list
        ('"a.png"\ngone.png\n', False, ["list.txt:2: no file 'gone.png'; paths are relative to"]),
        ("a.png 0\n", False, ["is '0' a label?"]),
        ("a.png\n", True, ["expected 'path label'"]),
    ],
)
def test_the_cause_is_named(scan, content, labeled, words):
    with refused(*words):
        scan(content, labeled=labeled)


def test_only_a_sample_is_looked_for(scan, photos, monkeypatch):
    """A million files on a network drive take minutes; and the form is settled before."""
    monkeypatch.setattr(lists, "_FILES_CHECKED", 5)
    looked = []
    isfile = os.path.isfile
    monkeypatch.setattr(os.path, "isfile", lambda path: looked.append(path) or isfile(path))
    assert len(scan("cat\\b c.png\n" * 300)) == 300
    assert len(looked) < 60


# --- labels --------------------------------------------------------------------------------------------------------


def labels(images) -> list[int]:
    assert images.labels is not None
    return images.labels.tolist()


LINES = "a.png {}\ncat/b c.png {}\ndog/d,e.png {}\n"


def test_labels_are_read_one_way_in_the_whole_list(scan):
    def read(*words: object, **options):
        return scan(LINES.format(*words), labeled=True, **options)

    images = read(0, 1, 2, classes=("1", "2", "3"))  # 0 is no name, so all are numbers
    assert labels(images) == [0, 1, 2]
    assert images.describe().endswith("labels are class numbers")
    images = read(1, 2, 3, classes=("1", "2", "3"))  # 3 is no number of a class, so all are names
    assert labels(images) == [0, 1, 2]
    assert images.describe().endswith("labels are class names")
    assert labels(read(0, 2, 1, classes=("0", "1", "2"))) == [0, 2, 1]  # both readings mean the same
    with refused("list.txt:1: label '1' is both the name of class 0 and the number of the class '2'", "labels: names"):
        read(1, 2, 1, classes=("1", "2", "3"))
    assert labels(read(1, 2, 1, classes=("1", "2", "3"), labels="names")) == [0, 1, 0]
    assert labels(read(1, 2, 1, classes=("1", "2", "3"), labels="numbers")) == [1, 2, 1]
    with refused("list.txt:2: label '1' is unknown", "in all lines a number", "in all one of 'cat', 'owl'"):
        read("cat", 1, "owl", classes=("cat", "owl"))
    with refused("list.txt:3: label '2' is unknown"):
        read(0, 1, 2, classes=("cat", "owl"))
    with refused("label '3' is unknown"):
        read(0, 1, 3, classes=("0", "1", "3", "4"), labels="numbers") and read(0, 1, 3, classes="abc")


def test_labels_that_make_the_classes(scan):
    assert scan(LINES.format(10, 9, 0), labeled=True).classes == tuple(map(str, range(11)))
    images = scan(LINES.format(10, 9, 0), labeled=True, labels="names")
    assert (images.classes, labels(images)) == (("0", "10", "9"), [1, 2, 0])
    assert scan(LINES.format(10, "x", 0), labeled=True).classes == ("0", "10", "x")


def test_minus_one_is_no_class(scan):
    for options in ({}, {"classes": ("cat", "owl")}, {"labels": "numbers"}):
        with refused("list.txt:2: label '-1' is no class"):
            scan(LINES.format(0, -1, 1), labeled=True, **options)
    assert scan(LINES.format(0, -1, 1), labeled=True, labels="names").classes == ("-1", "0", "1")


def test_the_labels_of_a_pack_keep_their_reading(photos, tmp_path):
    """A pack of class folders has names; one of a list of numbers has numbers."""
    pytest.importorskip("lmdb")
    from passl_densecl.data.packs import write_pack

    def pack(name: str, classes: tuple[str, ...], numbers: list[int]) -> Path:
        paths = [b"%d.png" % index for index in range(len(numbers))]
        write_pack(str(tmp_path / name), [b""] * len(paths), paths, labels=np.array(numbers), classes=classes)
        return tmp_path / name

    names = pack("names.lmdb", ("1", "2"), [0, 1])
    assert labels(scan_images(names, labeled=True, classes=("1", "2", "3"))) == [0, 1]
    numbers = pack("numbers.lmdb", ("0", "1", "2"), [0, 1, 2])
    assert labels(scan_images(numbers, labeled=True, classes=("1", "2", "3"))) == [0, 1, 2]
    assert labels(scan_images(numbers, labeled=True, classes=("cat", "dog", "owl"))) == [0, 1, 2]
    with refused("set labels"):
        scan_images(pack("both.lmdb", ("0", "1", "2"), [1, 2]), labeled=True, classes=("1", "2", "3"))
