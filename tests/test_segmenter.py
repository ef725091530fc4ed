"""`benchmarks/segmenter.py`: it learns, judges every image, and gives the same figures again."""

from __future__ import annotations

import json

import cv2
import numpy as np

from benchmarks import segmenter


def test_a_segmenter_learns_what_color_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(segmenter, "HEIGHT", 33)
    monkeypatch.setattr(segmenter, "WIDTH", 33)
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for folder in (part, f"{part}_masks"):
            (tmp_path / folder).mkdir()
        for number in range(4):
            mask = np.zeros((72, 96), np.uint8)
            mask[:, int(rng.integers(32, 64)) :] = 1
            image = np.where(mask[..., None] == 1, (40, 90, 220), (200, 80, 30)) + rng.integers(-20, 20, (72, 96, 1))
            mask[:9] = 255
            cv2.imwrite(str(tmp_path / part / f"{number}.png"), image.astype(np.uint8))
            cv2.imwrite(str(tmp_path / f"{part}_masks" / f"{number}.png"), mask)
    words = ["--weights", "random", "--depth", "18", "--last-stride", "1", "--epochs", "30", "--batch-size", "4"]
    assert segmenter.main([*words, "--data", str(tmp_path), "--json", str(tmp_path / "f.json")]) == 0
    found = json.loads((tmp_path / "f.json").read_text())["results"]["random"]
    assert found["miou"][0] > 0.8
    assert np.sum(found["confusion_of_groups"], axis=(1, 2)).tolist() == [63 * 96] * 4  # all labeled pixels
