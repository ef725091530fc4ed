"""A folder of images as they come: everything that is wrong with them is damaged for real, and nothing else changes."""

from __future__ import annotations

import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from passl_densecl import transforms as T
from passl_densecl.data import images as images_module
from passl_densecl.data.datasets import ImageSet, PairDataset, UndecodableImage, scan_images
from passl_densecl.data.images import EXTENSIONS, checked_size, decode, decode_bytes, decode_pixels
from passl_densecl.data.labeled import EvaluationLoader, LabeledLoader
from passl_densecl.data.loader import PairLoader
from passl_densecl.data.packing import pack_images
from passl_densecl.errors import InputError, RunError
from passl_densecl.text import one_line
from tests.data import damaged

ROOT = Path(__file__).resolve().parents[2]
RECIPE = (T.RandomResizedCrop(size=16), T.ColorJitter(), T.GaussianBlur(), T.RandomHorizontalFlip())
STEADY = (T.Resize(size=24), T.CenterCrop(size=16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return damaged.build(tmp_path_factory.mktemp("as they come"))


@pytest.fixture(scope="module")
def images(folder) -> ImageSet:
    return scan_images(folder)


def reasons(images: ImageSet, **options) -> dict[bytes, str]:
    """Path → why, of an epoch of training on all of the images."""
    found: dict[bytes, str] = {}
    for _, batch in PairLoader(images, RECIPE, seed=2, batch_size=len(images), **options).steps(0, 1):
        found |= {images.relative_path(index): why for index, why in batch.bad.items()}
    return found


def in_child(action: Callable[[], str]) -> str:
    """What the action says in a process of its own, whose user and limits it may change."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = action()
        except BaseException:
            said = traceback.format_exc()
        os.write(writer, said.encode("utf-8", "backslashreplace"))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as answers:
        said = answers.read()
    os.waitpid(child, 0)
    return said


def limit_memory(more: int) -> None:
    """This process may take so many bytes more than it has."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, now + more))


needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")


# --- the folder ----------------------------------------------------------------------------------------------------


def test_all_files_are_found_once_and_links_that_lead_nowhere_are_told(images):
    found = [images.relative_path(index) for index in range(len(images))]
    ordinary = [b"plain/%03d.jpg" % number for number in range(20)]
    readable = {name for name in damaged.odd_but_whole() if name.split(b".")[-1].decode() in EXTENSIONS}
    assert sorted(found) == sorted([*ordinary, *readable, *damaged.bad()])
    assert "2 links to missing files left out" in images.describe()


def test_the_bad_are_bad_for_their_reason_and_the_odd_are_fine(images):
    found = reasons(images)
    assert found.keys() == damaged.bad().keys()
    for name, (_, words) in damaged.bad().items():
        assert words in found[name], name


def test_every_image_that_is_no_square_or_is_tiny_trains_and_is_evaluated(folder):
    for name in (b"one pixel.png", b"one pixel.jpg", b"long.png", b"tall.jpg"):
        data = (Path(os.fsdecode(os.path.join(os.fsencode(folder), name)))).read_bytes()
        image = decode_bytes(data, "it")
        assert image.shape[:2] in ((1, 1), (1, 20_000), (20_000, 1))
        for recipe in (RECIPE, STEADY):
            assert T.apply(recipe, image, np.random.default_rng(0)).shape == (16, 16, 3)


def test_a_png_chunk_that_is_longer_than_the_file_takes_no_memory(monkeypatch):
    """OpenCV would take what the chunk's length says, up to 2 GB, before it finds that the file ends."""
    data = damaged.encoded(Image.fromarray(damaged.photograph(1)), "PNG")
    image = decode_bytes(data, "it")
    assert np.array_equal(decode_bytes(data + b"\xff" * 99, "it"), image)  # what follows the end is of no account
    assert data[37:41] == b"IDAT"
    long = data[:33] + (2**29).to_bytes(4, "big") + data[37:]
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("OpenCV was asked"))
    with pytest.raises(UndecodableImage, match="damaged, cut short or no image"):
        decode_bytes(long, "it")


def test_a_long_strip_is_not_blown_up():
    """With a shorter side of 256 pixels it would be 3.9 GB; the middle of it is the same."""
    strip = np.resize(damaged.photograph(3), (1, 20_000, 3))
    for image in (strip, strip.transpose(1, 0, 2)):
        assert max(T.Resize(size=256)(image, np.random.default_rng(0)).shape) == 25_600
        middle = T.apply((T.Resize(size=256), T.CenterCrop(size=224)), image, np.random.default_rng(0))
        few = image[:, 9_995:10_005] if image is strip else image[9_995:10_005]
        sides = (256, 2_560) if image is strip else (2_560, 256)
        assert np.abs(middle.astype(int) - T.center_crop(T.resize(few, *sides), 224)).max() <= 1
        assert np.ptp(middle) > 10
    ordinary = damaged.photograph(4, 50, 4_000)  # eighty times as long as wide: whole
    assert T.Resize(size=100)(ordinary, np.random.default_rng(0)).shape == (100, 8_000, 3)


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can become another user")
def test_files_and_folders_without_permission(tmp_path):
    damaged.build(tmp_path, ordinary=4)
    (tmp_path / "plain" / "002.jpg").chmod(0)
    tmp_path.chmod(0o755)
    os.chdir(tmp_path)  # as root; the other user need not be allowed to come here by name
    try:

        def read() -> str:
            os.setuid(65_534)
            why = reasons(scan_images("."))
            return f"{len(why)} {why.get(b'plain/002.jpg')}"

        assert in_child(read) == f"{len(damaged.bad()) + 1} cannot be read (Permission denied)"
        (tmp_path / "plain").chmod(0)

        def scan() -> str:
            os.setuid(65_534)
            try:
                return scan_images(".").describe()
            except InputError as error:
                return str(error)

        assert in_child(scan).startswith("cannot read the folder ./plain: Permission denied; change its permissions")
    finally:
        os.chdir(ROOT)
        (tmp_path / "plain").chmod(0o700)


# --- same seed, same result ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_and_damaged(tmp_path_factory) -> tuple[ImageSet, ImageSet]:
    """The same 40 images, and the same again with five damaged, two of them side by side."""
    root = tmp_path_factory.mktemp("pair")
    (root / "whole").mkdir()
    for number in range(40):
        Image.fromarray(damaged.photograph(number, 40, 48)).save(root / "whole" / f"{number:02d}.jpg")
    shutil.copytree(root / "whole", root / "damaged")
    for number, data in {3: b"", 17: b"text", 18: b"\xff\xd8\xff\xe0", 25: damaged.true_bomb()}.items():
        (root / "damaged" / f"{number:02d}.jpg").write_bytes(data)
    cut = root / "damaged" / "39.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    return scan_images(root / "whole"), scan_images(root / "damaged")


BAD = {3, 17, 18, 25, 39}


def pairs(images: ImageSet, ranks: int, workers: int) -> dict[tuple[int, int], tuple[bytes, str]]:
    """(step, image) → its two views and why it is bad, over two epochs."""
    found = {}
    for rank in range(ranks):
        loader = PairLoader(images, RECIPE, seed=5, batch_size=8, rank=rank, world_size=ranks, num_workers=workers)
        for step, batch in loader.steps(0, 10):
            for row, index in enumerate(batch.indices.tolist()):
                views = batch.query.numpy()[row].tobytes() + batch.key.numpy()[row].tobytes()
                found[step, index] = views, batch.bad.get(index, "")
    return found


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_whatever_is_bad_all_other_pairs_stay_the_same(whole_and_damaged, ranks, workers):
    whole, broken = whole_and_damaged
    expected, got = pairs(whole, 1, 0), pairs(broken, ranks, workers)
    assert got.keys() == expected.keys()
    assert {index for (_, index), (_, why) in got.items() if why} == BAD
    for key, (views, why) in expected.items():
        assert why == ""
        assert (got[key][0] == views) == (key[1] not in BAD)
    assert got == pairs(broken, 1, 0)  # the stand-ins and the reasons too


def test_the_packed_folder_trains_alike(folder, images, tmp_path):
    pytest.importorskip("lmdb")
    packing = pack_images(images, str(tmp_path / "it.lmdb"))
    assert packing.bad == []  # every byte is there
    packed = scan_images(tmp_path / "it.lmdb")
    assert reasons(packed) == reasons(images)
    one, other = (
        [
            (b.query.numpy().tobytes(), b.key.numpy().tobytes(), b.bad)
            for _, b in PairLoader(source, RECIPE, seed=1, batch_size=7, num_workers=workers).steps(0, 7)
        ]
        for source, workers in ((images, 0), (packed, 2))
    )
    assert one == other
    reduced = pack_images(images, str(tmp_path / "small.lmdb"), shorter_side=32, num_workers=2)
    assert {images.relative_path(index) for index, _ in reduced.bad} == damaged.bad().keys()
    assert reasons(scan_images(tmp_path / "small.lmdb")) == reasons(images)


def test_labels_go_with_the_pixels(tmp_path):
    """A set in which the label can be read off the pixels."""
    for number in range(24):
        path = tmp_path / "abc"[number % 3] / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), np.full((20, 20, 3), 50 * (number % 3), np.uint8))
    for name in ("a/03.png", "b/04.png", "c/23.png"):
        (tmp_path / name).write_bytes(b"no image")
    found = scan_images(tmp_path, labeled=True)
    seen = set()
    batches = [batch for _, batch in LabeledLoader(found, STEADY, seed=0, batch_size=24).steps(0, 1)]
    for batch in [*batches, *EvaluationLoader(found, STEADY, batch_size=24)]:
        assert (batch.images.numpy()[:, 5, 5, 0] == 50 * batch.labels.numpy()).all()
        seen |= {os.fsdecode(found.relative_path(index)) for index in batch.bad}
    assert seen == {"a/03.png", "b/04.png", "c/23.png"}


# --- headers and bombs ---------------------------------------------------------------------------------------------


def formats() -> dict[str, bytes]:
    """One 80×72 image in every format whose header is read."""
    image = Image.fromarray(damaged.photograph(9))
    known = {kind: damaged.encoded(image, kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM")}
    if "jp2" in EXTENSIONS:
        known["JP2"] = cv2.imencode(".jp2", damaged.photograph(9))[1].tobytes()
    return known


def enlarged(kind: str, data: bytes) -> bytes:
    """The header says 60,000×60,000 instead; all else stays."""
    side = damaged.BOMB_SIDE
    if kind == "JPEG":
        return damaged.huge_jpeg(data)
    if kind == "PNG":
        return damaged.huge_png(side, side, b"")
    if kind == "PPM":
        return data.replace(b"80 72", b"60000 60000")
    if kind == "TIFF":
        for tag, size in ((256, 80), (257, 72)):
            for kind_number, form in ((3, "<HHIHxx"), (4, "<HHII")):
                old = struct.pack(form, tag, kind_number, 1, size)
                data = data.replace(old, struct.pack("<HHII", tag, 4, 1, side))
        return data
    pair, form = {"GIF": ((80, 72), "<HH"), "BMP": ((80, 72), "<II"), "JP2": ((72, 80), ">II")}[kind]
    old = struct.pack(form, *pair)
    assert old in data
    return data.replace(old, struct.pack(form, side, side))


@pytest.mark.parametrize("kind", formats())
def test_the_declared_size_is_the_size(kind):
    data = formats()[kind]
    assert checked_size(data, "it") == (72, 80)
    if kind != "GIF" or "gif" in EXTENSIONS:
        assert decode_bytes(data, "it").shape[:2] == (72, 80)
    for length in range(1, 60):  # whatever is cut off, it answers
        assert checked_size(data[:length], "it") in (None, (72, 80))


def test_sizes_of_rarer_headers():
    upside = bytearray(formats()["BMP"])
    upside[22:26] = struct.pack("<i", -72)
    assert checked_size(bytes(upside), "it") == (72, 80)
    tags = {256: 80, 257: 72, 258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: 72, 279: 80 * 72}
    entries = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    big_endian = b"MM\0*" + struct.pack(">IH", 8, len(tags)) + entries + bytes(4)
    assert checked_size(big_endian, "it") == (72, 80)
    assert checked_size(b"P5 # made by hand\n80 # wide\n72\n255\n", "it") == (72, 80)
    sideways = Image.Exif()
    sideways[0x112] = 6
    assert checked_size(damaged.encoded(Image.new("RGB", (80, 72)), "JPEG", exif=sideways), "it") == (80, 72)
    assert checked_size(b"hello", "it") is checked_size(b"P5", "it") is None


@needs_proc
@pytest.mark.parametrize("kind", formats())
def test_a_bomb_is_refused_before_it_takes_memory(kind):
    data = enlarged(kind, formats()[kind])

    def try_it() -> str:
        limit_memory(64 * 2**20)
        try:
            decode_bytes(data, "bomb")
        except UndecodableImage as failure:
            return failure.reason
        return "decoded"

    assert in_child(try_it) == "too many pixels for an image (60,000×60,000; at most 268,435,456 in all are decoded)"


def test_the_largest_photographs_of_phones_are_no_bombs():
    assert images_module.MAX_PIXELS > 16_320 * 12_240
    assert images_module.MAX_PIXELS < 20_000 * 20_000


def test_a_file_of_gigabytes_is_not_read(tmp_path):
    with open(tmp_path / "long.jpg", "wb") as file:
        file.truncate(2**31)  # a hole: it takes no room
    with pytest.raises(UndecodableImage, match=r"too many bytes for an image \(2,147,483,648"):
        decode(str(tmp_path / "long.jpg"))


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_whether_a_jpeg_is_cut_does_not_depend_on_the_reduction(reduction):
    """Otherwise an image would be bad in one epoch and good in the next."""
    data = damaged.encoded(Image.fromarray(damaged.photograph(8, 300, 400)), "JPEG")
    for missing in (1, 2, 3, 5, 10, 50, 500):
        verdicts = []
        for each in (1, reduction):
            try:
                decode_pixels(data[:-missing], "it", each)
                verdicts.append(True)
            except UndecodableImage:
                verdicts.append(False)
        assert verdicts[0] == verdicts[1], missing


# --- memory --------------------------------------------------------------------------------------------------------


@needs_proc
@pytest.mark.parametrize("workers", [0, 1])
def test_out_of_memory_is_no_bad_image(tmp_path, workers):
    """With another one in its place the result would depend on what else the machine does."""
    side = 16_000  # 768 MB of RGB
    large = damaged.huge_png(side, side, bytes(side * (1 + side // 8)), depth=1, color=0)
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(large if number else damaged.encoded(Image.new("RGB", (9, 9)), "PNG"))
    images = scan_images(tmp_path)

    def try_it() -> str:
        limit_memory(500 * 2**20)
        steps = PairLoader(images, RECIPE, seed=0, batch_size=4, num_workers=workers).steps(0, 1)
        try:
            return f"trained, {[batch.bad for _, batch in steps]}"
        except RunError as error:
            return str(error)

    said = in_child(try_it)
    assert re.match(r"the memory ran out over .*/[123]\.png: set fewer data\.num_workers.*--resume auto", said), said


def test_no_room_for_batches_and_no_room_for_processes(images, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("passl_densecl.data.loader.mmap.mmap", refuse)
    with pytest.raises(RunError, match=r"no memory for a batch.*Cannot allocate memory.*smaller batch_size"):
        next(PairLoader(images, RECIPE, seed=0, batch_size=8, num_workers=1).steps(0, 1))
    monkeypatch.undo()
    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(RunError, match=r"cannot start 2 worker processes.*fewer workers.*data\.num_workers"):
        next(PairLoader(images, RECIPE, seed=0, batch_size=8, num_workers=2).steps(0, 1))


def test_what_a_transform_needs_counts_too(images):
    def greedy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        raise MemoryError

    with pytest.raises(RunError, match="the memory ran out over"):
        PairDataset(images, (greedy,), seed=0)[0, len(images) - 1]


# --- names ---------------------------------------------------------------------------------------------------------


def test_every_name_becomes_one_line_and_no_two_the_same():
    names = [
        "a b",
        "a\nb",
        "a\\nb",
        "a\tb",
        "a\rb",
        "a\x85b",
        "a\u2028b",
        "a\x1b[31mb",
        "caf\udce9",
        "caf\\xe9",
        "café",
        "坏 图",
    ]
    lines = [one_line(name) for name in names]
    assert len(set(lines)) == len(names)
    for line in lines:
        assert line.splitlines() == [line]
        assert line.isprintable()
        line.encode("utf-8")
    assert lines[:3] == ["a b", "a\\nb", "a\\\\nb"]
    assert lines[-5:] == ["a\\x1b[31mb", "caf\\xe9", "caf\\\\xe9", "café", "坏 图"]


TOOLS = {
    "check": ["tools/check_data.py", "{images}", "--workers", "1", "--output", "{out}/bad.txt"],
    "pack": ["tools/pack_data.py", "{images}", "{out}/packed.lmdb", "--shorter-side", "32", "--workers", "1"],
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_tools_take_the_folder_whatever_the_terminal_can_show(folder, tmp_path, tool, encoding):
    command = [part.format(images=folder, out=tmp_path) for part in TOOLS[tool]]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )
    said = done.stdout.decode(encoding)
    assert done.returncode == (1 if tool == "check" else 0), done.stderr
    assert b"Traceback" not in done.stderr
    assert f"{len(damaged.bad())} " in said
    if tool == "check":
        lines = (tmp_path / "bad.txt").read_bytes().split(b"\n")
        assert b"bad/caf\xe9 \\x.jpg" in lines
        assert "bad/坏 图.png".encode() in lines
        assert rb"# escaped: bad/new\nline\r.jpg" in lines
        listed = scan_images(folder, tmp_path / "bad.txt")  # it is still a list file
        assert len(listed) == len(damaged.bad()) - 1
