"""tools/model_info.py, run as a user runs it."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.commands import call_tool

SMALL = ["configs/small/densecl_r18.yaml", "-o", "model.queue_len=256"]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return call_tool("model_info", *arguments)


def rows(output: str) -> dict[str, list[str]]:
    """Name of a row → its columns; names and columns are at least two spaces apart."""
    split = [[cell.strip() for cell in line.strip().split("  ") if cell.strip()] for line in output.splitlines()]
    return {cells[0]: cells[1:] for cells in split if cells}


def test_densecl_r50_has_the_published_figures(tmp_path):
    done = run("configs/densecl/densecl_r50.yaml", "--json", tmp_path / "info.json")
    assert done.returncode == 0, done.stderr
    table = rows(done.stdout)
    assert done.stdout.startswith("configs/densecl/densecl_r50.yaml at 224×224 pixels: ResNet-50, last map 2048×7×7\n")
    assert table["backbone"] == ["23,508,032", "4.109 G"]
    assert table["one encoder"][0] == "32,425,280"
    assert table["both encoders"] == ["64,850,560"]
    assert table["trained"] == ["32,425,280"]
    assert "two queues of 65,536×128 (16,777,216 numbers)" in done.stdout

    figures = json.loads((tmp_path / "info.json").read_text())
    assert figures["weights"] == 64_850_560
    assert figures["multiply_adds"]["backbone"] == 4_109_364_224
    assert figures["training_multiply_adds"] == sum(figures["training"].values())


def test_overrides_and_size_change_what_is_counted():
    own = rows(run(*SMALL).stdout)  # 64 pixels, as its transforms say; last_stride 1
    plain = rows(run(*SMALL, "-o", "model.last_stride=2", "--size", 96).stdout)
    assert own["backbone"] == ["11,176,512", "249.176 M"]
    assert plain["backbone"] == ["11,176,512", "334.015 M"]  # 1,818,528,768 of 224 px, times (3/7)²
    assert own["dense head"][1] == "5.243 M"  # 16 positions × (512 × 512 + 512 × 128)
    assert plain["dense head"][1] == "2.949 M"  # 9 positions


def test_a_linear_config_and_a_queue_that_depends_on_the_images():
    linear = run("configs/small/linear_r18.yaml", "--classes", 10)
    assert rows(linear.stdout)["trained"] == ["5,130"]
    assert "10 classes\n" in linear.stdout
    auto = run("configs/small/densecl_r18.yaml", "-o", "model.queue_len=auto")
    assert "queue_len auto: 65,536 is the maximum" in auto.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["configs/nothing.yaml"], "configs/nothing.yaml"),
        ([*SMALL, "-o", "model.dept=50"], "unknown key; did you mean 'depth'?"),
        ([*SMALL, "--size", 16], "--size 16: expected at least 32"),
        ([*SMALL, "--classes", 10], "--classes 10: expected 1 or more, with a config of task linear"),
        ([*SMALL, "--json", "no/where.json"], "the folder no does not exist"),
    ],
)
def test_mistakes_are_named(arguments, message):
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
