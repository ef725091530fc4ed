"""`tools/evaluate.py knn` as a user types it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "evaluate.py"), "knn", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_a_bank_that_holds_the_queries_names_them_all(photos, tmp_path):
    result = tmp_path / "knn.json"
    done = run("--weights", "random", "--depth", 18, "--train", photos, "--val", photos, "--size", 32, "--k", 1,
               "--output", result)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1-NN    top-1 100.00%  (40 images, bank of 40, 32 px) · random" in done.stdout
    assert json.loads(result.read_text())["top1"] == 1.0


def test_labels_follow_the_bank_and_not_the_order_of_the_queries(photos, tmp_path):
    """Each query carries the name of another class: none is right."""
    val = tmp_path / "val"
    for label in range(4):
        shutil.copytree(photos / f"class_{label}", val / f"class_{(label + 1) % 4}")
    done = run("--weights", "random", "--depth", 18, "--train", photos, "--val", val, "--size", 32, "--k", 1)
    assert done.returncode == 0, done.stderr
    assert "top-1 0.00%" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--k", 41], "--k 41: "),
        (["--size", 4], "expected --size of at least 8"),
        (["--val", "nowhere"], "no folder 'nowhere'"),
        (["--weights", "gone.pdparams"], "gone.pdparams"),
        (["--weights", "random"], "depth"),
    ],
)
def test_a_mistake_is_named_without_a_traceback(photos, words, message):
    done = run("--weights", "random", "--train", photos, "--val", photos, *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
