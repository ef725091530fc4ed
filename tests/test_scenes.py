"""`benchmarks/scenes.py`: the table of two methods over seeds and images, from evaluations that are there."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import scenes


def write(path, shares: np.ndarray, place: float) -> None:
    """The three evaluations of one network on ten images of 100 pixels: the share of each image that is right."""
    right = np.round(shares * 100).astype(int)
    confusions = [[[50, 0], [100 - int(one), int(one) - 50]] for one in right]
    dense = {"miou": [0.0], "confusion_of_groups": confusions}
    pairs = {"share": right.mean() / 100, "per_pair": [[int(one), 100] for one in right]}
    for name, result in (
        ("dense", dense),
        ("dense_with_place", dense),
        ("segmenter", dense),
        ("correspondence", pairs | {"place": place, "place_error": 0.003}),
    ):
        content = {"images": 10, "results": {"baseline": {}, "network": result}}
        path(name).write_text(json.dumps(content))


def test_differences_are_paired_and_errors_are_over_seeds_and_images(tmp_path, capsys):
    output, rng = tmp_path / "judged", np.random.default_rng(0)
    output.mkdir()
    hard = rng.uniform(0.6, 0.9, 10)  # some images are harder than others, for every network
    write(lambda name: output / f"{name}_random.json", hard - 0.05, 0.9)
    for seed, gain in ((0, 0.02), (1, 0.04)):
        for method, more in (("moco", 0.0), ("densecl", gain)):
            (tmp_path / f"{method}_s{seed}" / "checkpoints" / "epoch_0009").mkdir(parents=True)
            write(lambda name, m=method, s=seed: output / f"{name}_{m}_s{s}_e0009.json", hard + more, 0.8)
    words = ["--runs", tmp_path, "--epoch", 9, "--data", tmp_path, "--output", output]
    assert scenes.main(list(map(str, words))) == 0
    found = json.loads((output / "scenes.json").read_text())["measures"]["correspondences, %"]
    gain = found["DenseCL − MoCo-v2"]
    assert gain["mean"] == pytest.approx(0.03, abs=0.002)
    assert gain["error_over_seeds"] == pytest.approx(0.01, abs=0.002)
    assert gain["error_over_images"] < 0.002  # the same images are hard for both
    assert found["MoCo-v2"]["error_over_images"] == pytest.approx(hard.std(ddof=1) / np.sqrt(10), rel=0.1)
    printed = capsys.readouterr().out
    assert "| place R², % | 90.00 ± 0.30 | 80.00 ± 0.30 | 80.00 ± 0.30 | +0.00 ± 0.42 |" in printed
    assert "seeds 0, 1" in printed
    assert (output / "scenes.png").is_file()

    (tmp_path / "moco_s1" / "checkpoints" / "epoch_0009").rmdir()
    assert scenes.main(list(map(str, words))) == 0
    assert "**one seed** (0): ± is over images only" in capsys.readouterr().out


def test_folders_of_classes_are_judged_without_masks(tmp_path, capsys):
    for method, top1 in (("random", 0.4), ("moco", 0.6), ("densecl", 0.55)):
        name = "random" if method == "random" else f"{method}_s0_e0002"
        (tmp_path / f"{method}_s0" / "checkpoints" / "epoch_0002").mkdir(parents=True)
        for verb, result in (
            ("knn", {"top1": {"20": top1}, "standard_error": {"20": 0.03}}),
            ("linear", {"top1": top1 + 0.1, "standard_error": 0.04}),
        ):
            (tmp_path / f"{verb}_{name}.json").write_text(json.dumps({"results": {"network": result}}))
    words = ["--runs", tmp_path, "--epoch", 2, "--data", tmp_path, "--output", tmp_path, "--measures", "knn", "linear"]
    assert scenes.main(list(map(str, words))) == 0
    said = capsys.readouterr().out
    assert (
        "| 20-NN top-1, % | 40.00 ± 3.00 | 60.00 ± 3.00 | 55.00 ± 3.00 | -5.00 ± 4.24 |" in said
    )  # √2 · 3: not paired
    assert "| linear top-1, % | 50.00 ± 4.00 | 70.00 ± 4.00 | 65.00 ± 4.00 | -5.00 ± 5.66 |" in said
