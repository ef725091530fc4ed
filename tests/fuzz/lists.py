"""Hostile lists of images and labels, annotations of other projects, and cached files."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.fuzz import runs
from tests.fuzz.cases import Case, check_text, only_input_errors, try_each
from tests.fuzz.mutate import json_file, mutated_bytes, weighted, words
from tests.fuzz.packs import read_images
from tests.fuzz.pickles import programs

LABELS = ["0", "1", "cat", "dog", "99999999999", "-1", "²", "9" * 5000, "\x1b[31m", "1.0", "?cat"]
PATHS = ["a.png", "class_0/b.png", "../images/a.png", "/etc/passwd", "", "."]
COCO = {
    "categories": [
        {"id": 1, "name": "cat", "supercategory": "animal"},
        {"id": 2, "name": "dog", "supercategory": "animal"},
    ],
    "annotations": [{"file_name": "a.png", "segments_info": [{"id": 1, "category_id": 1}]}],
}
_ENTITIES = "".join(f'<!ENTITY {name} "{f"&{inner};" * 8}">' for name, inner in zip("yzwvu", "xyzwv", strict=True))
ANNOTATIONS = [
    "<annotation><object><name>cat</name><difficult>0</difficult></object><object><name>dog</name></object></annotation>",
    f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "1234567890">{_ENTITIES}]>'
    "<annotation><object><name>&u;&u;&u;</name></object></annotation>",
    '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><object><name>&x;</name></object></annotation>',
    "<annotation><object><name>\x1b[31m</name></object></annotation>",
    "<a>" * 2000,
]


@st.composite
def _lines(draw: Any, line: st.SearchStrategy[str], good: list[str]) -> bytes:
    rows = draw(st.lists(weighted((2, st.sampled_from(good)), (1, line)), max_size=8))
    text = draw(st.sampled_from(["\n", "\n", "\r\n", "\r", "\x0b", ""])).join(rows)
    codec = draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le"]))
    data = text.encode(codec, "surrogatepass")
    return draw(mutated_bytes(data)) if draw(st.integers(0, 3)) == 0 else data


_label = st.one_of(st.sampled_from(LABELS), words)
_separator = st.sampled_from([" ", "\t", "  ", "", ",", ", ", ";"])
_plain = st.one_of(st.sampled_from(PATHS), words)
_path = st.one_of(_plain, _plain.map('"{}"'.format), _plain.map("images/{}".format))
_row = st.one_of(st.tuples(_path, _separator, _label).map("".join), words)
_row_path = st.sampled_from(["a.png\t", "class_0/b.png ", "class_1/c d.png\t", "x\t", ""])
_multi_row = st.tuples(_row_path, st.lists(_label, max_size=4).map(",".join)).map("".join)
_voc_flag = st.sampled_from(["1", "-1", "0", "2", "x", "\u0661"])
_voc_name = st.one_of(st.sampled_from(["a", "b"]), words)
_voc_row = st.tuples(_voc_name, st.sampled_from([" ", "  "]), _voc_flag).map("".join)


@st.composite
def _voc_files(draw: Any) -> dict[str, bytes]:
    names = draw(st.lists(st.sampled_from(["cat", "dog", "\x1b[31m", "a b"]), max_size=2, unique=True))
    files = {f"ImageSets/Main/{name}_train.txt": draw(_lines(_voc_row, ["a 1", "b -1", "a  0"])) for name in names}
    files["ImageSets/Segmentation/train.txt"] = draw(_lines(words, ["a", "b"]))
    return {"ImageSets/Main/x.txt": b"", "JPEGImages/a.jpg": b"x", **files}


_annotation = st.sampled_from([annotation.encode() for annotation in ANNOTATIONS])
_FORMS = [
    ["a.png", "class_0/b.png", "class_1/c d.png"],
    ["a.png 0", "class_0/b.png 1", "class_1/c d.png 0"],
    ["path,label", "a.png,1", "class_0/b.png,2", '"class_1/c d.png",1'],
    ["a.png;cat", "class_1/c d.png;dog"],
    ["class_0\\b.png", "class_1\\c d.png"],
    ['"a.png" 1', '"class_1\\c d.png" 2'],
    ["images/a.png\t-1", ".\\images\\class_0\\b.png\t0"],
]
_ROWS = ["a.png", "class_0/b.png", "a.png 0", "class_0/b.png 1", "# x", "class_1/c d.png cat"]
_MULTI_ROWS = ["a.png\tcat,dog", "class_0/b.png cat", "class_1/c d.png\t?dog"]
FILES: dict[str, st.SearchStrategy[dict[str, bytes]]] = {
    "list": st.fixed_dictionaries(
        {"list.txt": st.one_of(_lines(_row, _ROWS), st.sampled_from(_FORMS).flatmap(lambda form: _lines(_row, form)))}
    ),
    "multi": st.fixed_dictionaries({"list.txt": _lines(_multi_row, _MULTI_ROWS)}),
    "voc": _voc_files(),
    "xml": st.fixed_dictionaries(
        {
            "ImageSets/Main/train.txt": _lines(words, ["a", "a"]),
            "Annotations/a.xml": st.one_of(_annotation, _annotation.flatmap(mutated_bytes)),
        }
    ),
    "coco": st.fixed_dictionaries({"coco.json": json_file(COCO)}),
    "cache": st.fixed_dictionaries(
        {
            "model.pdparams": programs(),
            "model.pdparams.sha256": _lines(words, ["0" * 64 + "  x"]),
            "small.converted.json": json_file({"source": "0", "version": "1", "result": "2"}),
        }
    ),
}


def list_cases(scratch: Path) -> st.SearchStrategy[Case]:
    make_images(scratch / "images")
    weights = {"list": 2, "multi": 1, "voc": 1, "xml": 1, "coco": 1, "cache": 1}
    return weighted(
        *((weight, st.builds(Case, FILES[kind], st.just((kind,)))) for kind, weight in weights.items()),
        (3, runs.run_cases()),
        (2, runs.checkpoint_cases()),
    )


def make_images(folder: Path) -> None:
    """The images that lists name."""
    import cv2

    for name in ("a.png", "class_0/b.png", "class_1/c d.png", "JPEGImages/a.jpg", "JPEGImages/b.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), np.full((40, 40, 3), 99, np.uint8))


def read_list(folder: Path, output: Path, arguments: tuple[str, ...]) -> None:
    kind, *rest = arguments
    if kind == "run":
        runs.read_run_folder(folder, output, draw="draw" in rest)
    elif kind == "checkpoint":
        runs.read_checkpoint(folder, output, rest[0])
    else:
        {"list": _images, "multi": _multi, "voc": _voc, "xml": _voc, "coco": _coco, "cache": _cache}[kind](folder)


def _images(folder: Path) -> None:
    images, file = folder.parent / "images", folder / "list.txt"
    try_each(
        lambda: read_images(images, list_file=file),
        lambda: read_images(images, list_file=file, labeled=True),
        lambda: read_images(images, list_file=file, labeled=True, classes=["cat", "dog"]),
        lambda: read_images(images, list_file=file, labeled=True, classes=["1", "2", "3"], sixteen_bit="stretch"),
        lambda: read_images(images, list_file=file, labeled=True, labels="names", extensions="any"),
    )


def _multi(folder: Path) -> None:
    from passl_densecl.evaluation import multilabel

    for classes in (None, ["cat", "dog"]):
        with only_input_errors():
            images = multilabel.read_list(folder / "list.txt", folder.parent / "images", classes)
            check_text(images.describe(), "the description of a data set")


def _voc(folder: Path) -> None:
    from passl_densecl.evaluation.masks import read_voc_masks
    from passl_densecl.evaluation.multilabel import read_voc

    try_each(lambda: read_voc(folder, "train").describe(), lambda: read_voc_masks(folder, "train"))


def _coco(folder: Path) -> None:
    from passl_densecl.evaluation.masks import _read_categories
    from passl_densecl.integrations.prepare import _categories

    path = folder / "coco.json"
    try_each(
        lambda: _read_categories(path, False, ()), lambda: _read_categories(path, True, (1,)), lambda: _categories(path)
    )


def _cache(folder: Path) -> None:
    from passl_densecl.weights import zoo
    from passl_densecl.weights.download import DownloadError, UnfitError

    entry = zoo.Entry("small", "model.pdparams", "backbone", 18, "x", "x", ())
    with contextlib.suppress(UnfitError, DownloadError):
        zoo._check(entry, folder / "model.pdparams", folder / "model.pdparams")
