"""A pack stands for the folder that it was made from: same images, same replacements, whichever process reads."""

from __future__ import annotations

import io
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from passl_densecl import transforms as T
from passl_densecl.data import packs as pack_module
from passl_densecl.data.datasets import PairDataset, check_decodable, scan_images
from passl_densecl.data.image_set import ImageSet
from passl_densecl.data.labeled import EvaluationLoader, LabeledDataset
from passl_densecl.data.loader import PairLoader
from passl_densecl.data.packing import pack_images, reduced
from passl_densecl.errors import InputError

lmdb = pytest.importorskip("lmdb")

ROOT = Path(__file__).resolve().parents[2]
RECIPE = (T.RandomResizedCrop(size=16), T.ColorJitter(), T.RandomHorizontalFlip())


def refused(*words: str):
    """The error for users, with every one of these words in its message."""
    return pytest.raises(InputError, match="(?s)" + "".join(f"(?=.*{re.escape(word)})" for word in words))


def photograph(seed: int, height: int, width: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def folder(tmp_path) -> Path:
    """24 images of several kinds in three class folders; 4, 5 and 17 are no images, 9 is empty."""
    root = tmp_path / "photos"
    for number in range(24):
        path = root / ("ant", "cat", "dog")[number // 8] / f"{number:02d}.{('png', 'jpg', 'webp')[number % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(number, 30 + number, 40)).save(path)
    for number in (4, 5, 17):
        next(root.rglob(f"{number:02d}.*")).write_bytes(b"broken" * number)
    next(root.rglob("09.*")).write_bytes(b"")
    with open(os.path.join(os.fsencode(root), b"cat", b"caf\xe9.png"), "wb") as file:
        Image.fromarray(photograph(99, 20, 20)).save(file, "png")
    return root


def packed(images: ImageSet, output: Path, **options) -> str:
    pack_images(images, str(output), **options)
    return str(output)


def contents(images: ImageSet) -> list[tuple[bytes, bytes]]:
    return [(images.relative_path(i), images.read(i)) for i in range(len(images))]


# --- the same as the folder ----------------------------------------------------------------------------------------


def test_same_images_labels_and_line(folder, tmp_path):
    for labeled in (False, True):
        source = scan_images(folder, labeled=labeled)
        file = packed(source, tmp_path / f"labeled {labeled}.lmdb")
        for ask in {False, labeled}:
            expected, found = scan_images(folder, labeled=ask), scan_images(file, labeled=ask)
            assert contents(found) == contents(expected)
            assert found.classes == expected.classes
            assert (found.labels is None) == (expected.labels is None)
            if ask:
                assert found.labels is not None
                assert found.labels.tolist() == expected.labels.tolist()  # type: ignore[union-attr]
            line = expected.describe().replace(f"under {folder}", f"under {file}")
            assert found.describe() == line + "; a pack, as they were"
            assert len(pickle.dumps(found)) < len(pickle.dumps(expected)) + 1000
            check_decodable(found)


def test_a_subset_reads_its_own_records(folder, tmp_path):
    found = scan_images(packed(scan_images(folder), tmp_path / "it.lmdb"))
    part = pickle.loads(pickle.dumps(found.subset([7, 2, 23])))
    assert contents(part) == [contents(found)[index] for index in (7, 2, 23)]


def test_class_folders_are_known_without_labels_in_the_pack(folder, tmp_path):
    file = packed(scan_images(folder), tmp_path / "photos.lmdb")
    expected, found = scan_images(folder, labeled=True), scan_images(file, labeled=True)
    assert (found.labels.tolist(), found.classes) == (expected.labels.tolist(), expected.classes)  # type: ignore[union-attr]
    numbering = ("dog", "x", "ant", "cat")
    expected, found = (scan_images(root, labeled=True, classes=numbering) for root in (folder, file))
    assert found.labels.tolist() == expected.labels.tolist()  # type: ignore[union-attr]
    with refused(file, "'cat'", "not a class of the training set"):
        scan_images(file, labeled=True, classes=("ant", "dog"))


def test_a_packed_list_keeps_its_order_and_labels(folder, tmp_path):
    Image.fromarray(photograph(7, 20, 20)).save(tmp_path / "outside.png")
    listing = tmp_path / "list.txt"
    listing.write_text(f"dog/20.webp wolf\nant/00.png ant\n{tmp_path}/outside.png wolf\nant/00.png ant\n")
    source = scan_images(folder, listing, labeled=True)
    found = scan_images(packed(source, tmp_path / "list.lmdb"), labeled=True)
    assert contents(found) == contents(source)
    assert (found.labels.tolist(), found.classes) == ([1, 0, 1, 0], ("ant", "wolf"))  # type: ignore[union-attr]
    other = scan_images(tmp_path / "list.lmdb", labeled=True, classes=("wolf", "bee", "ant"))
    assert (other.labels.tolist(), other.classes) == ([0, 2, 0, 2], ("wolf", "bee", "ant"))  # type: ignore[union-attr]
    with refused("list.lmdb", "'wolf'", "'fox'"):
        scan_images(tmp_path / "list.lmdb", labeled=True, classes=("ant", "fox"))
    listing.write_text(f"ant/00.png\n{tmp_path}/outside.png\n")
    file = packed(scan_images(folder, listing), tmp_path / "unlabeled.lmdb")
    with refused(file, "outside.png", "--labeled"):
        scan_images(file, labeled=True)


def test_a_list_file_chooses_from_a_pack(folder, tmp_path):
    file = packed(scan_images(folder), tmp_path / "photos.lmdb")
    listing = tmp_path / "list.txt"
    listing.write_text("dog/20.webp 1\nant/00.png 0\n")
    expected, found = (scan_images(root, listing, labeled=True) for root in (folder, file))
    assert contents(found) == contents(expected)
    assert (found.decode(0) == expected.decode(0)).all()
    assert found.labels.tolist() == [1, 0]  # type: ignore[union-attr]
    listing.write_text("ant/00.png\nant/gone.png\n")
    with refused(f"{listing}:2", "'ant/gone.png'", file):
        scan_images(file, listing)


@pytest.mark.parametrize("kind", [PairDataset, LabeledDataset])
def test_same_samples_replacements_included(folder, tmp_path, kind):
    source = scan_images(folder, labeled=True)
    found = scan_images(packed(source, tmp_path / "photos.lmdb"), labeled=True)
    one, other = kind(source, RECIPE, seed=3), kind(found, RECIPE, seed=3)
    assert len(one) == len(other) == 25
    replaced = 0
    for index in range(len(one)):
        a, b = one[1, index], other[1, index]
        assert all((x == y).all() for x, y in zip(a, b, strict=True))
        replaced += a[3].item() != b""
    assert replaced == 4


def test_a_folder_with_data_mdb_is_a_pack_too(folder, tmp_path):
    packed(scan_images(folder), tmp_path / "photos.lmdb")
    (tmp_path / "copy").mkdir()
    (tmp_path / "photos.lmdb").rename(tmp_path / "copy" / "data.mdb")
    assert contents(scan_images(tmp_path / "copy")) == contents(scan_images(folder))


# --- processes -----------------------------------------------------------------------------------------------------


def fork() -> None:
    """Any fork closes what this process has open."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def test_any_number_of_workers_reads_the_same(folder, tmp_path):
    """The main process has read before it forks, and reads again afterwards, over several epochs."""
    source = scan_images(folder)
    found = scan_images(packed(source, tmp_path / "photos.lmdb"))

    def batches(images: ImageSet, workers: int) -> list[tuple[bytes, bytes, list[int], list[int]]]:
        loader = PairLoader(images, RECIPE, seed=1, batch_size=5, num_workers=workers)
        steps = loader.steps(0, 3 * loader.steps_per_epoch)
        return [(b.query.numpy().tobytes(), b.key.numpy().tobytes(), b.indices.tolist(), list(b.bad)) for _, b in steps]

    expected = batches(source, 0)
    for workers in (0, 1, 3, 2):
        found.decode(0)
        assert batches(found, workers) == expected
        assert contents(found) == contents(source)


def test_no_environment_lives_through_a_fork(folder, tmp_path):
    found = scan_images(packed(scan_images(folder), tmp_path / "photos.lmdb"))
    expected = found.read(3)
    assert str(tmp_path / "photos.lmdb") in pack_module._environments
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        inherited = len(pack_module._environments)
        same = found.read(3) == expected
        os.write(writer, f"{inherited} {same} {len(pack_module._environments)}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as answers:
        assert answers.read() == "0 True 1"
    assert pack_module._environments == {}
    assert found.read(3) == expected  # and the parent opens it again


def test_two_sets_of_one_file(folder, tmp_path):
    """LMDB must not open a file twice in a process."""
    file = packed(scan_images(folder), tmp_path / "photos.lmdb")
    one, other = scan_images(file), scan_images(file, labeled=True)
    assert contents(one) == contents(other)


def own_memory() -> int:
    """Bytes that belong to this process alone; mapped files, which the system drops when it likes, do not count."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"RssAnon:\s+(\d+) kB", status)[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_stays_flat_over_epochs(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "noise").mkdir()
    for number in range(40):
        cv2.imwrite(str(tmp_path / "noise" / f"{number}.png"), rng.integers(0, 256, (150, 150, 3), dtype=np.uint8))
    found = scan_images(packed(scan_images(tmp_path / "noise"), tmp_path / "noise.lmdb"))
    size = os.path.getsize(tmp_path / "noise.lmdb")

    def epoch() -> None:
        for batch in EvaluationLoader(found, (T.CenterCrop(size=150),), batch_size=8):
            assert not batch.bad

    for _ in range(3):
        epoch()
    before = own_memory()
    for _ in range(12):
        epoch()
    assert own_memory() - before < size  # 12 epochs read 12 times that
    assert size > 2_000_000


# --- reducing ------------------------------------------------------------------------------------------------------


def test_large_images_are_reduced_and_small_ones_kept(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    sizes = {"wide.jpg": (100, 260), "tall.png": (300, 120), "square.png": (64, 64), "small.jpg": (60, 900)}
    for seed, (name, (height, width)) in enumerate(sizes.items()):
        Image.fromarray(photograph(seed, height, width)).save(root / name)
    (root / "bad.jpg").write_bytes(b"no image")
    images = scan_images(root)
    seen: list[int] = []
    packing = pack_images(images, str(tmp_path / "64.lmdb"), shorter_side=64, num_workers=2, progress=seen.append)
    found = scan_images(tmp_path / "64.lmdb")
    assert found.describe().endswith("; a pack, shorter side at most 64 px")
    assert seen == [1, 2, 3, 4, 5]
    assert (packing.reduced, [index for index, _ in packing.bad]) == (2, [0])
    assert "no image (8 bytes" in packing.bad[0][1]
    assert packing.source_bytes == sum(path.stat().st_size for path in root.iterdir())
    assert packing.pack_bytes == os.path.getsize(tmp_path / "64.lmdb")
    by_name = {found.relative_path(i).decode(): i for i in range(len(found))}
    for name in ("square.png", "small.jpg", "bad.jpg"):
        assert found.read(by_name[name]) == (root / name).read_bytes(), name
    for name, shape in (("wide.jpg", (64, 166, 3)), ("tall.png", (160, 64, 3))):
        image = found.decode(by_name[name])
        assert image.shape == shape
        expected = T.Resize(size=64)(images.decode(by_name[name]), np.random.default_rng(0))
        assert np.abs(image.astype(int) - expected).mean() < 1.5


def test_reduced_images_keep_the_resolution_of_their_colors(tmp_path):
    """One red column in two: with colors at half the resolution they would all be the same."""
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2, 0] = 255
    blocks = np.ascontiguousarray(stripes.repeat(2, 0).repeat(2, 1))
    data = reduced(cv2.imencode(".png", blocks[..., ::-1])[1].tobytes(), "x", 128, 95)
    assert data is not None
    with Image.open(io.BytesIO(data)) as image:
        assert JpegImagePlugin.get_sampling(image) == 0  # 4:4:4
    worse = reduced(cv2.imencode(".png", blocks[..., ::-1])[1].tobytes(), "x", 128, 30)
    assert worse is not None
    assert len(worse) < len(data)


def test_reduced_images_are_upright(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    root = tmp_path / "photos"
    root.mkdir()
    Image.fromarray(photograph(1, 100, 200)).save(root / "large.jpg", exif=exif)
    Image.fromarray(photograph(1, 50, 60)).save(root / "small.jpg", exif=exif)
    source = scan_images(root)
    found = scan_images(packed(source, tmp_path / "64.lmdb", shorter_side=64))
    assert found.decode(0).shape == (128, 64, 3)
    expected = T.Resize(size=64)(source.decode(0), np.random.default_rng(0))
    assert np.abs(found.decode(0).astype(int) - expected).mean() < 3
    assert (found.decode(1) == source.decode(1)).all()
    assert found.decode(1).shape == (60, 50, 3)


def test_files_that_cannot_be_read_are_said_and_replaced(folder, tmp_path):
    source = scan_images(folder)
    os.unlink(source.path(0))
    packing = pack_images(source, str(tmp_path / "photos.lmdb"))
    assert packing.bad == [(0, "cannot be read (No such file or directory)")]
    assert (
        PairDataset(scan_images(tmp_path / "photos.lmdb"), (), seed=0)[0, 0][3].item() == b"the file is empty (0 bytes)"
    )


# --- writing -------------------------------------------------------------------------------------------------------


def test_grows_as_needed(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_module, "_MAP_BYTES", 2**16)
    monkeypatch.setattr(pack_module, "_COMMIT_BYTES", 2**14)
    source = scan_images(folder)
    file = packed(source, tmp_path / "photos.lmdb")
    assert os.path.getsize(file) > 2**16
    assert contents(scan_images(file)) == contents(source)


def test_refuses_to_overwrite(folder, tmp_path):
    source = scan_images(folder)
    (tmp_path / "old.lmdb").write_bytes(b"precious")
    with refused("old.lmdb", "exists already"):
        pack_images(source, str(tmp_path / "old.lmdb"))
    assert (tmp_path / "old.lmdb").read_bytes() == b"precious"
    with refused("nowhere", "No such file"):
        pack_images(source, str(tmp_path / "nowhere" / "new.lmdb"))


def test_nothing_is_left_of_an_interrupted_one(folder, tmp_path):
    source = scan_images(folder)

    def stop(done: int) -> None:
        assert (tmp_path / "new.lmdb.partial").exists()
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_images(source, str(tmp_path / "new.lmdb"), progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_killed_one_is_not_taken_for_finished(folder, tmp_path):
    code = """
        import os, signal, sys
        from passl_densecl.data import packs as pack
        from passl_densecl.data.datasets import scan_images
        from passl_densecl.data.packing import pack_images
        pack._COMMIT_BYTES = 1
        pack_images(scan_images(sys.argv[1]), sys.argv[2],
                    progress=lambda done: os.kill(os.getpid(), signal.SIGKILL) if done == 20 else None)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(folder), str(tmp_path / "new.lmdb")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.lmdb.partial", "photos"]
    with refused("new.lmdb.partial", "no finished pack"):
        scan_images(tmp_path / "new.lmdb.partial")
    source = scan_images(folder)
    assert contents(scan_images(packed(source, tmp_path / "new.lmdb"))) == contents(source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.lmdb", "photos"]


def test_two_at_once(folder, tmp_path):
    source = scan_images(folder)
    tried: list[int] = []

    def again(done: int) -> None:
        if done == 5:
            with refused("new.lmdb.partial", "another process"):
                pack_images(source, str(tmp_path / "new.lmdb"))
            tried.append(done)

    pack_images(source, str(tmp_path / "new.lmdb"), progress=again)
    assert tried == [5]
    assert contents(scan_images(tmp_path / "new.lmdb")) == contents(source)


# --- files that are no packs ---------------------------------------------------------------------------------------


def test_files_that_are_no_packs(folder, tmp_path):
    data = Path(packed(scan_images(folder), tmp_path / "photos.lmdb")).read_bytes()
    cases = {
        "junk": (b"junk" * 5000, "no LMDB file"),
        "empty": (b"", "no LMDB file"),
        "short": (data[: len(data) // 2], "cut short"),  # mapped as it is, it would kill the process
        "shorter": (data[:5000], "cut short"),
    }
    for name, (content, words) in cases.items():
        (tmp_path / f"{name}.lmdb").write_bytes(content)
        with refused(f"{name}.lmdb", words):
            scan_images(tmp_path / f"{name}.lmdb")
    foreign = lmdb.open(str(tmp_path / "foreign.lmdb"), subdir=False, lock=False)
    with foreign, foreign.begin(write=True) as transaction:
        transaction.put(b"key", b"value")
    with refused("foreign.lmdb", "no finished pack", "densecl data pack"):
        scan_images(tmp_path / "foreign.lmdb")
    with refused("no folder", "did you mean", "photos.lmdb"):
        scan_images(tmp_path / "photo.lmdb")


def test_a_pack_of_a_newer_format_is_refused_with_both_numbers(folder, tmp_path, monkeypatch):
    images = scan_images(str(folder), None, labeled=True)
    monkeypatch.setattr(pack_module, "FORMAT", 2)
    newer = packed(images, tmp_path / "newer.lmdb")
    assert len(scan_images(newer, None, labeled=True)) == len(images)  # the version that wrote it reads it
    monkeypatch.setattr(pack_module, "FORMAT", 3)
    assert len(scan_images(newer, None, labeled=True)) == len(images)  # and so does the next
    monkeypatch.setattr(pack_module, "FORMAT", 1)
    with refused("newer.lmdb has format 2, this passl_densecl reads formats up to 1", "upgrade passl_densecl"):
        scan_images(newer, None, labeled=True)


def test_a_file_that_was_replaced_meanwhile(folder, tmp_path):
    file = packed(scan_images(folder), tmp_path / "photos.lmdb")
    found = scan_images(file)
    fork()
    os.unlink(file)
    packed(scan_images(folder / "cat"), tmp_path / "photos.lmdb")
    with refused("photos.lmdb", "changed since"):
        found.read(0)
    source = scan_images(folder / "dog")
    for _ in range(2):  # the second time the old file is open
        other = scan_images(file)
        other.read(0)
        os.unlink(file)
        packed(source, tmp_path / "photos.lmdb")
    assert contents(scan_images(file)) == contents(source)
    with refused("photos.lmdb", "changed since"):
        other.read(0)


def test_without_lmdb(folder, tmp_path, monkeypatch):
    file = packed(scan_images(folder), tmp_path / "photos.lmdb")
    monkeypatch.setitem(sys.modules, "lmdb", None)
    for action in (lambda: scan_images(file), lambda: pack_images(scan_images(folder), str(tmp_path / "new.lmdb"))):
        with refused("lmdb", "pip install lmdb"):
            action()
    assert not (tmp_path / "new.lmdb.partial").exists()
