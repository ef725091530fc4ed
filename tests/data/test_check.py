"""Checking a set: every image decoded, what is in it counted, a decoder that dies named."""

from __future__ import annotations

import faulthandler
import io
import os
import select
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from passl_densecl.data.check import check_images, contents
from passl_densecl.data.datasets import EXTENSIONS, scan_images
from passl_densecl.data.workers import Death, in_processes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def nothing_is_left():
    """No test leaves a process behind."""
    yield
    assert active_children() == []


# --- processes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100])
def test_results_come_in_order(workers, count):
    assert list(in_processes(lambda number: number * number, range(count), workers)) == [n * n for n in range(count)]


def fatal(numbers: dict[int, Callable[[], object]]) -> Callable[[int], int]:
    def function(number: int) -> int:
        if number in numbers:
            numbers[number]()
        return number

    return function


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash() -> None:
    faulthandler.disable()  # pytest's would print the stack
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_death_costs_its_own_result_only(workers):
    deadly = {n: kill for n in (0, 7, 8, 9, 10, 49)} | {23: crash, 30: lambda: os._exit(3)}
    results = list(in_processes(fatal(deadly), range(50), workers))
    assert len(results) == 50
    for number, result in enumerate(results):
        if number not in deadly:
            assert result == number
    assert {results[n] for n in (0, 7, 8, 9, 10, 49)} == {Death(-9)}
    assert (results[23], results[30]) == (Death(-11), Death(3))


def test_an_exception_is_no_death():
    def divide(number: int) -> float:
        return 1 / (number - 20)

    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(in_processes(divide, range(50), 2))


def test_leaving_early_ends_the_processes():
    results = in_processes(lambda number: number, range(1000), 3)
    assert next(results) == 0
    assert len(active_children()) == 3
    results.close()
    assert active_children() == []


def test_they_end_when_the_main_process_is_killed():
    """All of them hold one end of a pipe; it is closed when the last one has ended."""
    code = """
        import os, signal
        from passl_densecl.data.workers import in_processes
        results = in_processes(lambda number: number, range(1000), 3)
        for _ in range(60):
            next(results)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    reader, writer = os.pipe()
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=ROOT, pass_fds=[writer], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    os.close(writer)
    assert select.select([reader], [], [], 30)[0]
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_few_results_wait(tmp_path):
    """Nothing far ahead of the consumer is computed: memory stays flat."""

    def mark(number: int) -> int:
        (tmp_path / str(number)).touch()
        return number

    results = in_processes(mark, range(10_000), 2)
    for _ in range(3):
        next(results)
    results.close()
    assert 3 <= len(list(tmp_path.iterdir())) < 200


def test_few_results_wait_for_a_slow_one(tmp_path):
    def slow_first(number: int) -> int:
        if number > 0:
            (tmp_path / str(number)).touch()
            return number
        while not (tmp_path / "60").exists():
            pass
        for _ in range(500):  # time enough for the other process to go on, if it may
            os.listdir(tmp_path)
        return len(os.listdir(tmp_path))

    results = in_processes(slow_first, range(10_000), 2, window=64)
    assert next(results) < 64  # type: ignore[operator]
    results.close()


# --- contents ------------------------------------------------------------------------------------------------------


def encoded(mode: str, kind: str, size: tuple[int, int] = (20, 10), **options) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind", "options", "expected"),
    [
        ("RGB", "JPEG", {}, ("jpg", "RGB")),
        ("RGB", "JPEG", {"progressive": True}, ("jpg", "RGB")),
        ("L", "JPEG", {}, ("jpg", "gray")),
        ("CMYK", "JPEG", {}, ("jpg", "CMYK")),
        ("RGB", "PNG", {}, ("png", "RGB")),
        ("L", "PNG", {}, ("png", "gray")),
        ("P", "PNG", {}, ("png", "palette")),
        ("RGBA", "PNG", {}, ("png", "alpha")),
        ("LA", "PNG", {}, ("png", "alpha")),
        ("RGB", "WEBP", {}, ("webp", "RGB")),
        ("RGBA", "WEBP", {}, ("webp", "alpha")),
        ("RGB", "BMP", {}, ("bmp", "RGB")),
        ("RGB", "TIFF", {}, ("tif", "RGB")),
        ("RGB", "PPM", {}, ("pnm", "RGB")),
        ("L", "PPM", {}, ("pnm", "gray")),
        ("P", "GIF", {}, ("gif", "palette")),
    ],
)
def test_contents(mode, kind, options, expected):
    data = encoded(mode, kind, **options)
    assert contents(data) == expected
    for length in (0, 1, 3, 9, 21, 26):  # whatever is cut off, it answers
        contents(data[:length])


def test_report(tmp_path):
    files = {
        "a.jpg": encoded("RGB", "JPEG", (30, 20)),
        "b.jpg": encoded("L", "JPEG", (8, 4)),
        "c.jpg": encoded("RGBA", "PNG", (50, 40)),  # not what its name says
        "d.jpeg": encoded("CMYK", "JPEG", (16, 16)),
        "e.png": encoded("RGB", "PNG", (10, 10))[:-30],
        "f.png": b"",
        "g.png": b"hello" * 100,
        "h.png": b"hello" * 90,
        "i.tif": encoded("RGB", "TIFF", (12, 12)),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    seen: list[tuple[int, int]] = []
    report = check_images(scan_images(tmp_path), 2, lambda done, bad: seen.append((done, bad)))
    assert [index for index, _ in report.bad] == [4, 5, 6, 7]
    assert report.reasons() == Counter({"damaged, cut short or no image": 3, "the file is empty": 1})
    assert "450 bytes" in report.bad[3][1]
    assert report.kinds == {"jpg": 3, "png": 1, "tif": 1}
    assert report.colors == {"RGB": 2, "gray": 1, "alpha": 1, "CMYK": 1}
    assert report.misnamed == 1
    assert report.quantiles() == [(8, 4), (16, 16), (50, 40)]
    assert report.file_bytes == sum(len(files[name]) for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpeg", "i.tif"))
    assert seen == [(n + 1, min(max(n - 3, 0), 4)) for n in range(9)]


def test_no_kind_is_misnamed(tmp_path):
    kinds = {
        "jpg": "JPEG",
        "jpeg": "JPEG",
        "jpe": "JPEG",
        "png": "PNG",
        "bmp": "BMP",
        "dib": "BMP",
        "tif": "TIFF",
        "tiff": "TIFF",
        "ppm": "PPM",
        "pnm": "PPM",
        "webp": "WEBP",
        "gif": "GIF",
    }
    for ending, kind in kinds.items():
        if ending in EXTENSIONS:
            (tmp_path / f"x.{ending}").write_bytes(encoded("RGB", kind))
    report = check_images(scan_images(tmp_path), 1, lambda done, bad: None)
    assert (report.misnamed, report.bad) == (0, [])


def test_an_image_that_kills_the_decoder_is_named(tmp_path):
    for number in range(20):
        (tmp_path / f"{number:02d}.png").write_bytes(encoded("RGB", "PNG"))
    images = scan_images(tmp_path)

    def read(index: int) -> bytes:
        if index == 13:
            crash()
        return Path(images.path(index)).read_bytes()

    report = check_images(replace(images, _record=read), 2, lambda done, bad: None)
    assert report.bad == [(13, "kills the decoder (signal 11)")]
    assert len(report.sizes) == 19


def test_a_set_without_a_good_image(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no")
    report = check_images(scan_images(tmp_path), 1, lambda done, bad: None)
    assert report.quantiles() == []
    assert report.sizes.shape == (0, 2)
    assert report.sizes.dtype == np.int64
