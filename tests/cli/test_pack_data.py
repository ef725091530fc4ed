"""`tools/pack_data.py` as a user types it, and training from what it makes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from passl_densecl.data.datasets import scan_images
from tests.commands import call_tool

pytest.importorskip("lmdb")

ROOT = Path(__file__).resolve().parents[2]


def command(*words: str | Path) -> list[str]:
    """The tool in a process of its own where Paddle cannot be imported."""
    block = "import sys, runpy; sys.modules['paddle'] = None; sys.argv = sys.argv[1:]"
    block += "; runpy.run_path(sys.argv[0], run_name='__main__')"
    return [sys.executable, "-c", block, str(ROOT / "tools" / "pack_data.py"), *map(str, words)]


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return call_tool("pack_data", *words, cwd=cwd, without="paddle")


def test_packs_a_folder_and_says_what_became_of_it(photos, tmp_path):
    done = run(photos, "photos.lmdb", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"data     40 images under {photos} (40 png)" in done.stdout
    assert "packed   40 images, 0 of them reduced, in " in done.stdout
    assert "wrote    photos.lmdb · use it with -o data.root=photos.lmdb" in done.stdout
    expected, found = scan_images(photos), scan_images(tmp_path / "photos.lmdb")
    assert [found.read(i) for i in range(40)] == [expected.read(i) for i in range(40)]
    assert [path.name for path in tmp_path.iterdir()] == ["photos.lmdb"]

    again = run(photos, "photos.lmdb", cwd=tmp_path)
    assert again.returncode == 2
    assert "photos.lmdb exists already" in again.stderr


def test_reduces_a_labeled_folder(photos, tmp_path):
    done = run(photos, "small.lmdb", "--labeled", "--shorter-side", "32", "--quality", "90", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "40 images in 4 classes under" in done.stdout
    assert "packed   40 images, 40 of them reduced" in done.stdout
    assert "% smaller" in done.stdout
    assert "-o data.train.root=small.lmdb" in done.stdout
    found = scan_images(tmp_path / "small.lmdb", labeled=True)
    assert found.decode(0).shape == (32, 35, 3)
    assert np.bincount(found.labels).tolist() == [10, 10, 10, 10]  # type: ignore[arg-type]


def test_names_what_it_could_not_read(photos, tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    for number in range(6):
        (root / f"{number}.jpg").write_bytes(b"no image")
    done = run(root, "bad.lmdb", "--shorter-side", "32", cwd=tmp_path)
    assert done.returncode == 0
    assert "warning  6 cannot be read" in done.stdout
    assert f"{root}/2.jpg: damaged" in done.stdout
    assert "and 3 more; densecl data check names them all" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_on_the_way(tmp_path, number):
    """The signal comes when it has begun to write, with many images still to come."""
    root = tmp_path / "photos"
    root.mkdir()
    cv2.imwrite(str(root / "0.png"), np.zeros((9, 9, 3), np.uint8))
    (tmp_path / "list.txt").write_text("0.png\n" * 20_001)
    words = command(root, "new.lmdb", "--list-file", tmp_path / "list.txt", "--shorter-side", "4", "--workers", "1")
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        partial = tmp_path / "new.lmdb.partial"
        while not (partial.exists() and partial.stat().st_size):
            assert process.poll() is None
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.txt", "photos"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "new.lmdb"], "no folder 'nowhere'"),
        (["photos", "new"], "must end in .lmdb"),
        (["photos", "new.lmdb", "--shorter-side", "0"], "--shorter-side 0"),
        (["photos", "new.lmdb", "--quality", "101"], "--quality 101"),
        (["photos", "new.lmdb", "--workers", "0"], "--workers 0"),
        (["photos", "gone/new.lmdb"], "gone/new.lmdb"),
    ],
)
def test_a_mistake_is_named_without_a_traceback(photos, tmp_path, words, message):
    (tmp_path / "photos").symlink_to(photos)
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("pack_data.py: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
