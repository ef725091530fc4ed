"""tools/benchmark.py at tiny sizes: what it says follows from what it timed, and its baselines do the same work."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import random
import re
import shlex
import statistics
import subprocess
from pathlib import Path

import numpy as np
import paddle
import pytest

from benchmarks import memory
from passl_densecl.config import BackboneSpec, HeadSpec
from passl_densecl.data.datasets import scan_images
from passl_densecl.data.packing import pack_images
from passl_densecl.models import Encoder
from passl_densecl.transforms import RandomResizedCrop
from tests.commands import call_tool

ROOT = Path(__file__).resolve().parent.parent
TINY_STEP = ("--depth", 18, "--size", 32, "--batch", 2, "--queue-len", 32, "--rounds", 1)
COMMON = {"benchmark", "version", "options", "machine", "clock", "results", "ratios"}


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    return call_tool("benchmark", *arguments)


def measure(folder: Path, *arguments: object) -> tuple[str, dict]:
    """The printed text and the JSON."""
    file = folder / "figures.json"
    done = call(*arguments, "--json", file)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert figures.keys() >= COMMON
    assert figures["benchmark"] == arguments[0]
    assert figures["machine"]["cores"] >= 1
    return done.stdout, figures


def seconds(figures: dict, name: str) -> list[float]:
    """Of every round, on the clock that the figures name."""
    clock = "wall" if "wall" in figures["clock"] else "cpu"
    return figures["results"][name]["rounds"][clock]


def check_ratio(figures: dict, ratio: str, above: str, below: str) -> None:
    pairs = zip(seconds(figures, above), seconds(figures, below), strict=True)
    quotients = [a / b for a, b in pairs]
    found = figures["ratios"][ratio]
    assert found["median"] == pytest.approx(statistics.median(quotients))
    assert (found["min"], found["max"]) == pytest.approx((min(quotients), max(quotients)))
    for name in (above, below):
        assert figures["results"][name]["seconds"]["median"] == pytest.approx(statistics.median(seconds(figures, name)))


@pytest.fixture
def recipes():
    pytest.importorskip("PIL")
    return importlib.import_module("benchmarks.recipes")


# --- the verbs -----------------------------------------------------------------------------------------------------


def test_data(tmp_path, photos):
    pytest.importorskip("PIL")
    (photos / "class_0" / "broken.jpg").write_bytes(b"no image")
    try:
        text, figures = measure(
            tmp_path, "data", "--root", photos, "--images", 99, "--rounds", 2, "--baseline", "pillow"
        )
    finally:
        (photos / "class_0" / "broken.jpg").unlink()
    assert figures["images"] == 40  # without the broken one
    assert "1 unreadable" in text
    assert figures["baseline"] == "Pillow"
    assert "CPU time" in figures["clock"]
    check_ratio(figures, "speed_over_baseline", "Pillow", "passl_densecl")
    check_ratio(figures, "speed_over_decoding", "decoding alone", "passl_densecl")
    rate = figures["results"]["Pillow"]["images_per_second"]
    assert rate["median"] == pytest.approx(statistics.median(40 / value for value in seconds(figures, "Pillow")))
    parts = figures["seconds_per_image"]
    assert {"read and decode", "RandomResizedCrop", "ColorJitter", "GaussianBlur"} <= parts["Pillow"].keys()
    assert parts["Pillow"].keys() == parts["passl_densecl"].keys()
    assert all(value >= 0 for one in parts.values() for value in one.values())
    assert "RandomResizedCrop" in text


def test_a_pack_is_read_as_its_folder_is(tmp_path, photos):
    pytest.importorskip("PIL")
    pytest.importorskip("lmdb")
    pack_images(scan_images(photos), str(tmp_path / "photos.lmdb"))
    options = ("--images", 7, "--rounds", 1, "--baseline", "pillow")
    text, figures = measure(tmp_path, "data", "--root", tmp_path / "photos.lmdb", *options)
    assert figures["images"] == 7
    assert "the first is 80×72" in text
    check_ratio(figures, "speed_over_decoding", "decoding alone", "passl_densecl")
    _, figures = measure(
        tmp_path, "loader", "--root", tmp_path / "photos.lmdb", "--workers", 1, "--epochs", 1, "--batch", 4
    )
    assert figures["images"] == 40


def test_loss(tmp_path):
    text, figures = measure(tmp_path, "loss", "--queries", 512, "--keys", 32768, "--dim", 16, "--rounds", 2)
    check_ratio(figures, "time", "streamed", "concatenated")
    memory = figures["memory"]
    for one in memory.values():
        assert one["extra_mb"] == pytest.approx(one["peak_mb"] - one["before_mb"])
    logits_mb = 512 * 32768 * 4 / 2**20
    assert memory["concatenated"]["extra_mb"] > 2 * logits_mb  # at least the logits and their softmax
    assert memory["streamed"]["extra_mb"] < logits_mb
    assert figures["ratios"]["extra_memory"]["median"] == pytest.approx(
        memory["streamed"]["extra_mb"] / memory["concatenated"]["extra_mb"]
    )
    assert figures["difference"]["gradient"] < 1e-6 < figures["difference"]["largest"]
    assert figures["difference"]["loss"] < 1e-5
    assert "streamed / concatenated" in text


def test_memory():
    text, figures = memory.run(argparse.Namespace(config="small/densecl_r18", devices=2))
    parts = {what: part["bytes"] for what, part in figures["results"].items()}
    assert f"{sum(parts.values()) / 2**20:,.0f}" in text
    assert parts["views"] == 2 * 16 * 3 * 64**2
    assert parts["queues"] == 2 * 512 * 128 * 4


def test_the_maps_counted_are_those_that_paddle_keeps():
    model, kept = Encoder(BackboneSpec(50), HeadSpec(hidden_dim=16, out_dim=8)), {}

    def keep(tensor):
        if tensor.stop_gradient or tensor.name not in weights:
            kept[tensor.data_ptr()] = tensor  # held, so that no other takes its place
        return tensor

    weights = {weight.name for weight in model.parameters()}
    with paddle.autograd.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(paddle.zeros([2, 3, 64, 64]))
    assert memory.kept_numbers(model, 64) == pytest.approx(sum(tensor.size for tensor in kept.values()) / 2, rel=0.05)


def test_step(tmp_path):
    several = len(os.sched_getaffinity(0)) > 1
    text, figures = measure(tmp_path, "step", *TINY_STEP, "--profile", *(["--processes", 2] if several else []))
    check_ratio(figures, "time", "densecl", "moco_v2")
    memory = figures["memory"]
    assert figures["ratios"]["memory"]["median"] == pytest.approx(
        memory["densecl"]["extra_mb"] / memory["moco_v2"]["extra_mb"]
    )
    assert memory["densecl"]["extra_mb"] > memory["moco_v2"]["extra_mb"] > 50
    parts = figures["profile"]
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1)
    assert parts.keys() >= {
        "backward",
        "key encoder: backbone forward",
        "key encoder: moving average",
        "query encoder: backbone forward",
        "global loss",
        "dense loss: contrast",
        "dense loss: match",
        "optimizer",
        "queues",
    }
    assert 0 < parts["the rest"]["share"] < 0.2
    assert "DenseCL" in text
    if several:
        one, two = ([*r["rounds"]["wall"]] for r in figures["processes"]["results"].values())
        quotients = [a / b for a, b in zip(one, two, strict=True)]
        assert figures["ratios"]["processes"]["median"] == pytest.approx(statistics.median(quotients))
        assert "sched_setaffinity" in figures["processes"]["how"]


def test_loader(tmp_path, photos):
    text, figures = measure(
        tmp_path, "loader", "--root", photos, "--workers", "0,2", "--epochs", 2, "--batch", 8, "--images", 16
    )
    for number in (0, 2):
        one, ratio = figures["results"][str(number)], figures["ratios"][f"workers_{number}"]
        rates = one["images_per_second"]["epochs"]
        assert len(rates) == len(one["resident_mb"]["main"]) == len(one["resident_mb"]["workers"]) == 2
        assert ratio["median"] == pytest.approx(statistics.median(rates) / (max(1, number) * one["one_core"]))
        assert one["growth_mb"]["main"] == pytest.approx(one["resident_mb"]["main"][1] - one["resident_mb"]["main"][0])
    assert figures["results"]["0"]["resident_mb"]["workers"] == [0, 0]
    assert min(figures["results"]["2"]["resident_mb"]["workers"]) > 10
    assert "2 workers" in text


def test_torch_step_trains_as_many_weights():
    """The yardstick is the same network."""
    pytest.importorskip("torch")
    yardstick = importlib.import_module("benchmarks.torch_step")
    from passl_densecl.models import Encoder

    for depth in (18, 50):
        ours = sum(int(np.prod(p.shape)) for p in Encoder(BackboneSpec(depth)).parameters() if not p.stop_gradient)
        assert sum(p.numel() for p in yardstick.Encoder(depth).parameters()) == ours


# --- the Pillow baseline -------------------------------------------------------------------------------------------


def test_pillow_draws_the_same_crops(recipes):
    crop = RandomResizedCrop(size=8, scale=(0.2, 1.0))
    rng, draw = np.random.default_rng(0), random.Random(0)
    width, height, count = 300, 200, 10000
    ours = np.array([crop.draw(rng, height, width) for _ in range(count)], float)  # top, left, height, width
    boxes = np.array([recipes.crop_box((width, height), crop, draw) for _ in range(count)], float)
    theirs = np.stack([boxes[:, 1], boxes[:, 0], boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]], axis=1)
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= (width, height)).all()
    for statistic in (np.mean, np.std):
        areas = [statistic(box[:, 2] * box[:, 3]) / (width * height) for box in (ours, theirs)]
        assert areas[0] == pytest.approx(areas[1], rel=0.03)
        for column in range(4):
            assert statistic(ours[:, column]) == pytest.approx(statistic(theirs[:, column]), rel=0.05)
    assert recipes.crop_box((100, 1), crop, draw)[3] == 1  # nothing fits: the middle


def test_pillow_views_look_like_ours(recipes):
    """Over many views: as many gray and mirrored ones, and the same colors and contrasts on average."""
    from PIL import Image

    from passl_densecl.config import load_config

    transforms = load_config(ROOT / "configs/densecl/densecl_r50.yaml").data.transforms
    y, x = np.mgrid[0:64, 0:64]
    image = np.stack([40 + 3 * x, 60 + 2 * y, 200 - x - y], axis=2).astype(np.uint8)  # red grows to the right
    small = [t.model_copy(update={"size": 24}) if t.name == "RandomResizedCrop" else t for t in transforms]

    def figures(recipe, source):
        views = np.stack([recipe.view(source) for _ in range(1500)]).astype(float)
        assert views.shape[1:] == (24, 24, 3)
        gray = (np.ptp(views, axis=3) == 0).all(axis=(1, 2))
        falls = views[~gray, :, 0, 0].mean(axis=1) > views[~gray, :, -1, 0].mean(axis=1)
        return gray.mean(), falls.mean(), views.mean(axis=(0, 1, 2)), views.std(axis=(1, 2)).mean(axis=0)

    ours = figures(recipes.own(small), image)
    theirs = figures(recipes.pillow(small), Image.fromarray(image))
    assert ours[0] == pytest.approx(theirs[0], abs=0.05)
    assert ours[1] == pytest.approx(theirs[1], abs=0.07)
    np.testing.assert_allclose(ours[2], theirs[2], atol=4)
    np.testing.assert_allclose(ours[3], theirs[3], atol=2)


# --- what it cannot do ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("data", "--root", "no_such_folder"), "no folder 'no_such_folder'"),
        (("data", "--root", "tests", "--images", 0), "--images 0: expected at least 1"),
        (("data", "--root", "tests", "--config", "configs/moco/moco_clas_r50.yaml"), "pre-training config"),
        (("loss", "--keys", 0), "--keys 0: expected at least 1"),
        (("loss", "--json", "no_such_folder/f.json"), "the folder no_such_folder does not exist"),
        (("step", "--depth", 19), "--depth 19: expected one of 18, 34, 50"),
        (("step", "--processes", 4096, "--queue-len", 65536), "--processes 4096: only"),
        (("step", "--batch", 64, "--queue-len", 32), "--queue-len 32: expected at least 64"),
        (("loader", "--root", "tests", "--workers", "1,x"), "--workers '1,x': expected"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, said):
    done = call(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_a_missing_torch_is_said():
    if importlib.util.find_spec("torch") is not None:
        pytest.skip("torch is installed")
    done = call("step", *TINY_STEP, "--torch")
    assert done.returncode == 2
    assert "pip install torch" in done.stderr


def test_too_few_images_for_a_batch(photos):
    done = call("loader", "--root", photos, "--batch", 64)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "only 40 images" in done.stderr


# --- the page ------------------------------------------------------------------------------------------------------


def test_every_command_of_the_page_is_accepted():
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in re.findall(r"^python tools/benchmark\.py .+$", page, re.MULTILINE)]
    assert {command[2] for command in commands} == {"data", "loss", "step", "loader", "memory", "device"}
    for verb in {command[2] for command in commands}:
        known = set(re.findall(r"--[\w-]+", call(verb, "--help").stdout))
        used = {word for command in commands if command[2] == verb for word in command if word.startswith("--")}
        assert used <= known
