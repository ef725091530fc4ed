"""`benchmarks/dense_pilot.py`, `pilot_table.py`: variants differ in the dense loss alone; seeds are joined."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks import dense_pilot, pilot_table
from tests.engine.runs import train_here, write_config


def test_variants_see_the_same_views_from_the_same_state(tmp_path, few_photos, monkeypatch, capsys):
    map_of_3 = {"data__transforms": [{"name": "RandomResizedCrop", "size": 48}], "model__last_stride": 1}
    config = write_config(tmp_path, few_photos, batch_size=8, epochs=1, model__loss_lambda_warmup_steps=1, **map_of_3)
    assert train_here(config) == 0
    checkpoint, figures = tmp_path / "run" / "checkpoints" / "epoch_0001", tmp_path / "pilot.json"
    words = [checkpoint, "--train", few_photos, "--val", few_photos, "--pairs", 8, "--json", figures]

    def pilot(*more: object) -> int:
        return dense_pilot.main(list(map(str, [*words, *more])))

    kinds = ["published", "moco", "lambda_0.8", "grid_1", "inner", "dense_match", "reflect", "geometry"]
    assert pilot("--steps", 1, "--variants", *kinds) == 0
    found = json.loads(figures.read_text())
    assert list(found) == kinds
    first = {kind: one["last_epoch"] for kind, one in found.items()}
    for kind in kinds:
        share = {"moco": 0.0, "lambda_0.8": 0.8}.get(kind, 0.5)
        expected = (1 - share) * first[kind]["global_loss"] + share * first[kind]["dense_loss"]
        assert first[kind]["loss"] == pytest.approx(expected, rel=1e-5)
        if kind != "reflect":  # another padding is another network
            assert first[kind]["global_loss"] == pytest.approx(first["published"]["global_loss"], rel=1e-5)
    for kind in ("grid_1", "inner", "dense_match", "reflect", "geometry"):
        assert first[kind]["dense_loss"] != pytest.approx(first["published"]["dense_loss"], rel=1e-3), kind

    monkeypatch.setattr(dense_pilot, "train", None)  # what is there is kept
    assert pilot("--steps", 1, "--variants", "published", "moco") == 0
    monkeypatch.undo()
    assert pilot("--steps", 0, "--variants", "published", "--label", "start") == 0
    assert list(json.loads(figures.read_text()))[-1] == "start"
    assert pilot("--variants", "published", "moco", "--label", "start") == 2
    assert "--label start: expected one of --variants with it, got 2" in capsys.readouterr().err

    config = write_config(tmp_path, few_photos, name="moco", batch_size=8, epochs=1, model__loss_lambda=0)
    assert train_here(config) == 0
    words[0] = tmp_path / "moco" / "checkpoints" / "epoch_0001"
    assert pilot("--variants", "cells") == 2
    assert "epoch_0001: its run has no dense head (model.loss_lambda is 0)" in capsys.readouterr().err


def test_the_table_joins_seeds_and_pairs_differences(tmp_path, capsys):
    files = []
    for seed, gain in enumerate((2, 4, 6)):
        figures = {}
        for kind, more in (("published", 0), ("geometry", gain), ("only_once", 0)):
            if kind == "only_once" and seed:
                continue
            pairs = [[20 + 10 * image + more, 100] for image in range(5)] * 2  # images differ, gains do not
            place = 0.8 - more / 100
            last = {"dense_loss": 1.5, "dense_top1": 0.9}
            share = sum(right for right, _ in pairs) / 1000
            figures[kind] = {"last_epoch": last, "share": share, "place": place, "per_pair": pairs}
        files.append(tmp_path / f"s{seed}.json")
        files[-1].write_text(json.dumps(figures))
    picture = tmp_path / "pilot.png"
    assert pilot_table.main([*map(str, files), "--images", "5", "--picture", str(picture)]) == 0
    said = capsys.readouterr().out
    assert "| published | 1.50, 90 % | 40.0 % |  |  | 0.800 |  |" in said
    error = 2 / 3**0.5  # of the mean of 2, 4 and 6; the images add nothing
    gain = f"+2.0, +4.0, +6.0 | +4.0 ± {error:.1f} | 0.760 | -0.040 ± {error / 100:.3f}"
    assert f"| geometry | 1.50, 90 % | 44.0 % | {gain} |" in said
    assert "only_once" not in said
    assert picture.stat().st_size > 1000
    assert pilot_table.main([*map(str, files), "--base", "cells"]) == 2
    assert re.search(r"expected the variant 'cells' in every file.*published, geometry", capsys.readouterr().err)
