"""Hostile packs: images in LMDB."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.fuzz.cases import Case, check_text, only_input_errors, try_each
from tests.fuzz.mutate import mutated_bytes, mutated_tree, weighted, words

PAGE = 4096
LISTS = [b"class_0/0.png\n", b"class_0/0.png 0\nclass_1/1.png 1\n"]
HEADER = {"format": 1, "images": 3, "classes": ["class_0", "class_1"], "shorter_side": None}


def make_packs(folder: Path) -> list[bytes]:
    """Packs of a few small images, without and with labels, records inside pages and longer than a page."""
    import cv2

    from passl_densecl.data.packs import write_pack

    folder.mkdir(parents=True, exist_ok=True)
    small = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    large = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (50, 50, 3), np.uint8))[1].tobytes()
    found = []
    for records, labels in (([small, large, small], None), ([small] * 70 + [large] * 2, np.arange(72) % 2)):
        path = folder / "seed.lmdb"
        path.unlink(missing_ok=True)
        paths = [b"class_%d/%d.png" % (n % 2, n) for n in range(len(records))]
        classes = () if labels is None else ("class_0", "class_1")
        write_pack(str(path), records, paths, labels=labels, classes=classes)
        found.append(path.read_bytes())
    return found


def pack_cases(scratch: Path) -> st.SearchStrategy[Case]:
    seeds = make_packs(scratch / "seeds")
    seed, changed = st.sampled_from(seeds), scratch / "seeds" / "changed.lmdb"
    data = weighted(
        (1, seed.flatmap(lambda pack: mutated_bytes(pack, seeds))),
        (2, seed.flatmap(_with_page_headers)),
        (1, seed.flatmap(lambda pack: _with_records(pack, changed))),
    )
    return st.fixed_dictionaries({"images.lmdb": data, "list.txt": st.sampled_from(LISTS)}).map(Case)


@st.composite
def _with_page_headers(draw: Any, data: bytes) -> bytes:
    """Changes LMDB's own numbers, in the first bytes of pages."""
    large = [2**15, 2**16 - 1, 2**31, 2**40, 2**63, 2**64 - 1, len(data) // PAGE]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data) // PAGE - 1)) * PAGE + draw(st.integers(0, 200))
        size = draw(st.sampled_from([1, 2, 4, 8]))
        number = draw(st.one_of(st.integers(0, 300), st.sampled_from(large)))
        data = data[:at] + (number & (2 ** (8 * size) - 1)).to_bytes(size, "little") + data[at + size :]
    return data


_INT64 = st.integers(-(2**63), 2**63 - 1)
_LABELS = st.lists(_INT64, max_size=3).map(lambda row: np.array(row, "<i8").tobytes())
_PATHS = st.lists(words, max_size=4).map(lambda row: "\0".join(row).encode("utf-8", "surrogatepass"))


@st.composite
def _with_records(draw: Any, data: bytes, path: Path) -> bytes:
    """Changes the pack's header, labels and paths through LMDB, and removes an image."""
    import lmdb

    header = json.dumps(draw(mutated_tree(HEADER))).encode()
    if draw(st.integers(0, 3)) == 0:
        header = draw(mutated_bytes(header))
    path.write_bytes(data)
    with (
        lmdb.open(str(path), subdir=False, lock=False, map_size=2**22) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.put(b"passl_densecl", header)
        for key, content in ((b"passl_densecl.labels", _LABELS), (b"passl_densecl.paths", _PATHS)):
            if draw(st.booleans()):
                transaction.put(key, draw(st.one_of(st.binary(max_size=40), content)))
        transaction.delete(draw(st.integers(0, 5)).to_bytes(8, "big"))
    return path.read_bytes()


def read_pack(folder: Path, output: Path, arguments: tuple[str, ...]) -> None:
    pack = folder / "images.lmdb"
    try_each(
        lambda: read_images(pack),
        lambda: read_images(pack, labeled=True),
        lambda: read_images(pack, labeled=True, classes=["class_0", "class_1"]),
        lambda: read_images(pack, list_file=folder / "list.txt"),
    )


def read_images(root: Path, **options: Any) -> None:
    """Find images, describe them and decode some."""
    from passl_densecl.data.datasets import check_decodable, scan_images

    images = scan_images(root, **options)
    check_text(images.describe(), "the description of a data set")
    check_decodable(images)
    for index in range(min(4, len(images))):
        with only_input_errors():
            images.decode(index)
    if images.labels is not None and len(images):
        for label in np.unique(images.labels).tolist():
            images.classes[label]
