"""`make test-gpu` on a CPU, at its smallest: the page that it writes."""

from __future__ import annotations

import subprocess
import sys

from tests.gpu import ROOT, TESTS


def test_the_page(tmp_path):
    page = tmp_path / "gpu.md"
    command = [sys.executable, "-m", "tests.gpu", "--device", "cpu", "--small", "--output", str(page)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    text = page.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## This machine",
        "## Tests",
        "## A training step",
    ]
    for expected in (
        "python         3.",
        "passed in",
        "DenseCL (λ = 0.5), float32",
        "MoCo-v2 (λ = 0), float32",
        "2^24",
    ):
        assert expected in text, text
    assert text.count("Exit code 0") >= 2  # the doctor may find problems of this machine
    assert done.returncode == int("Exit code 1" in text), done.stdout + done.stderr
    assert (tmp_path / "gpu.doctor.json").is_file()


def test_it_names_tests_that_exist():
    assert [name for name in TESTS if not (ROOT / name).exists()] == []
