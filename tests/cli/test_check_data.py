"""`tools/check_data.py` as a user types it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from passl_densecl.data.datasets import scan_images
from tests.commands import call_tool


def run(*words: str | Path | bytes, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The tool where Paddle cannot be imported."""
    return call_tool("check_data", *words, cwd=cwd, without="paddle")


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "photos"
    (root / "in").mkdir(parents=True)
    for number in range(5):
        Image.new("RGB", (30 + number, 20), (number, 0, 0)).save(root / "in" / f"{number}.png")
    return root


def test_all_fine(folder, tmp_path):
    done = run(folder, "--workers", "1", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    label, *rest = (line.split(None, 1) for line in done.stdout.splitlines())
    assert label == ["data", f"5 images under {folder} (5 png)"]
    found = dict(rest)
    assert found["checked"].startswith("5 images in ")
    assert "with 1 worker (" in found["checked"]
    assert found["sizes"].startswith("smallest 30×20, median 32×20, largest 34×20 px; ")
    assert found["kinds"] == "5 png; 5 RGB"
    assert not (tmp_path / "bad_images.txt").exists()


def test_bad_images_are_counted_named_and_listed(folder, tmp_path):
    """A name that is no UTF-8 comes out of the list as it is in the folder."""
    odd = os.path.join(os.fsencode(folder), b"caf\xe9.jpg")
    with open(odd, "wb") as file:
        file.write(b"no image")
    (folder / "in" / "3.png").write_bytes(b"")
    done = run(folder, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "bad      2 images: 1 damaged, cut short or no image, 1 the file is empty" in done.stdout
    assert "caf\\xe9.jpg: damaged" in done.stdout
    assert f"{folder}/in/3.png: the file is empty (0 bytes)" in done.stdout
    listing = (tmp_path / "bad_images.txt").read_bytes()
    lines = [line for line in listing.splitlines() if not line.startswith(b"#")]
    assert lines == [b"caf\xe9.jpg", b"in/3.png"]
    again = scan_images(folder, tmp_path / "bad_images.txt")
    assert [os.fsencode(again.path(i)) for i in range(2)] == [odd, os.fsencode(folder / "in" / "3.png")]

    rest = tmp_path / "fine.txt"
    rest.write_text("in/0.png dog\nin/3.png cat\nin/1.png cat\n")
    done = run(folder, "--list-file", rest, "--labeled", "--output", tmp_path / "list of bad.txt", cwd=tmp_path)
    assert done.returncode == 1
    assert "3 images in 2 classes listed in" in done.stdout
    assert (tmp_path / "list of bad.txt").read_text() == "# the file is empty (0 bytes)\nin/3.png\n"
    rest.write_text("in/0.png\n")
    words = ("--list-file", rest, "--output", tmp_path / "list of bad.txt")
    assert "exists already: choose another name, or add --overwrite" in run(folder, *words, cwd=tmp_path).stderr
    done = run(folder, *words, "--overwrite", cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "list of bad.txt").read_text() == ""  # what it said before is no longer true


def test_many_bad_ones(folder, tmp_path):
    for number in range(14):
        (folder / f"{number:02d}.jpg").write_bytes(b"no")
    done = run(folder, cwd=tmp_path)
    assert done.returncode == 1
    assert "09.jpg" in done.stdout
    assert "10.jpg" not in done.stdout
    assert "and 4 more" in done.stdout
    assert (tmp_path / "bad_images.txt").read_text().count("\n# ") == 13


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["photo"], "no folder 'photo'"),
        (["photos", "--workers", "0"], "--workers 0: expected at least 1"),
        (["photos", "--list-file", "gone.txt"], "gone.txt"),
        (["photos", "--output", "nowhere/bad.txt"], "nowhere/bad.txt: the folder nowhere does not exist"),
    ],
)
def test_a_mistake_is_named_without_a_traceback(folder, tmp_path, words, message):
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("check_data.py: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_left_out_and_sixteen_bits_are_said(folder, tmp_path):
    Image.fromarray(np.full((20, 30), 4095, np.uint16)).save(folder / "in" / "deep.png")
    (folder / "a.heic").write_bytes(b"")
    (folder / "pointer.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    done = run(folder, "--workers", "1", cwd=tmp_path)
    assert done.returncode == 1
    assert "left out: 1 .heic" in done.stdout.splitlines()[0]
    assert "note     1 have 16 bits a value: the upper 8 count, so the brightest value 4,095 becomes 15;" in done.stdout
    assert "bad      1 image: 1 a Git LFS pointer in place of the image: fetch it with git lfs pull" in done.stdout
