"""Reading run folders, finished or not, and drawing what they logged."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from passl_densecl.errors import InputError
from passl_densecl.visualize.curves import cost_figures, draw_curves, key_figures, names_of, panels_of
from passl_densecl.visualize.runs import read_run, smoothed
from passl_densecl.visualize.style import data_uri
from tests.visualize.conftest import metrics, write_metrics


def test_a_finished_run_says_so(run_dir):
    run = read_run(run_dir)
    assert run.steps_per_epoch == 5
    assert run.state() == "finished: 6 epochs, 30 steps"
    steps, values = run.series("dense_top1")
    assert steps.tolist() == list(range(1, 31))
    assert values[-1] == 0.6


def test_a_running_one_is_read_as_far_as_it_is_written(tmp_path):
    rows = metrics(7)
    rows[3]["global_loss"] = float("nan")
    write_metrics(tmp_path / "run", rows, '{"step": 8, "loss"')
    run = read_run(tmp_path / "run")
    assert run.last_step == 7
    assert run.unread == 1
    assert run.state() == "at step 7"
    assert len(run.series("global_loss")[0]) == 6
    figure = draw_curves([run])
    assert "1 incomplete line of metrics.jsonl left out" in figure.get_suptitle()
    assert figure.axes[0].get_xlabel() == "step"


def test_lines_that_are_no_metrics_are_counted_and_repeats_are_not(tmp_path):
    rows = metrics(3)
    write_metrics(tmp_path, [*rows, rows[1] | {"loss": 99.0}], '[1]\n{"loss": 1}\n\n')
    run = read_run(tmp_path)
    assert run.unread == 2
    assert run.series("loss")[0].tolist() == [1, 2, 3]
    assert run.series("loss")[1][1] == 99.0


def test_steps_of_an_epoch_come_from_a_checkpoint_s_name_where_it_does_not_say_them(tmp_path):
    write_metrics(tmp_path, metrics(3))
    checkpoint = tmp_path / "checkpoints" / "epoch_0002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text('{"step": 146}')
    assert read_run(tmp_path).steps_per_epoch == 73


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: None, "no such folder"),
        (lambda path: path.mkdir(), "not a run folder: neither metrics.jsonl nor config.yaml"),
        (lambda path: write_metrics(path / "inner", metrics(1)), "it holds runs: inner"),
        (lambda path: path.write_text("x"), "this is a file"),
        (lambda path: write_metrics(path, []), "nothing logged in metrics.jsonl yet"),
    ],
)
def test_what_is_no_run_is_named(tmp_path, prepare, message):
    prepare(tmp_path / "run")
    with pytest.raises(InputError, match=message):
        read_run(tmp_path / "run")


def test_smoothing_is_the_mean_of_the_neighbors():
    values = np.random.default_rng(0).random(30)
    expected = [values[max(0, at - 2) : at + 3].mean() for at in range(30)]
    np.testing.assert_allclose(smoothed(values, 5), expected)
    np.testing.assert_array_equal(smoothed(values, 1), values)


def test_the_panels_show_what_was_logged_with_the_chance_line(run_dir):
    run = read_run(run_dir)
    keys = [panel.key for panel in panels_of([run])]
    assert keys == ["global_loss", "dense_loss", "global_top1", "dense_top1", "images_per_second", "data_share"]
    axes = draw_curves([run]).axes
    raw = axes[2].lines[0]
    np.testing.assert_allclose(raw.get_xdata(), np.arange(1, 31) / 5)
    np.testing.assert_allclose(raw.get_ydata(), np.arange(1, 31))  # percent
    chances = [text.get_text() for text in axes[0].texts if "chance" in text.get_text()]
    assert chances == ["chance ln(K+1) = 4.17"]
    assert [line.get_ydata()[0] for line in axes[0].lines if len(set(line.get_ydata())) == 1] == [4.174]
    assert math.isclose(4.174, math.log(65), abs_tol=1e-3)
    assert "λ = 0" in axes[1].get_xlabel()
    assert axes[0].get_xlabel() == "epoch"


def test_a_further_loss_term_is_drawn_by_its_name(run_dir, tmp_path):
    rows = [row | {"pixel_loss": 2.0 - row["step"] / 20, "pixel_top1": row["step"] / 40} for row in metrics(30)]
    write_metrics(tmp_path, rows)
    run = read_run(tmp_path)
    panels = {panel.key: panel.title for panel in panels_of([run])}
    terms = ("global", "dense", "pixel")
    assert list(panels)[:6] == [f"{term}_loss" for term in terms] + [f"{term}_top1" for term in terms]
    assert panels["pixel_loss"] == "Pixel loss"
    assert panels["pixel_top1"] == "Pixel head: positive beats all negatives"
    axes = draw_curves([run]).axes
    assert axes[2].get_title(loc="left") == "Pixel loss"
    np.testing.assert_allclose(axes[2].lines[0].get_ydata(), [row["pixel_loss"] for row in rows])
    assert any("chance" in text.get_text() for text in axes[2].texts)
    assert dict(key_figures(run))["Pixel loss"] == "0.50 nats (chance 4.17)"


def test_runs_are_compared_with_a_look_for_each(run_dir, tmp_path):
    write_metrics(tmp_path / "tiny", metrics(12))
    runs = [read_run(run_dir), read_run(tmp_path / "tiny")]
    assert names_of(runs) == [f"{run_dir.parent.name}/tiny", f"{tmp_path.name}/tiny"]
    figure = draw_curves(runs)
    assert figure.axes[0].get_xlabel() == "step"  # one of them does not tell its epochs
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[0].endswith("finished: 6 epochs, 30 steps")
    assert legend[1].endswith("at step 12")
    lines = figure.legends[0].get_lines()
    assert lines[0].get_color() != lines[1].get_color()
    assert lines[0].get_linestyle() != lines[1].get_linestyle()


def test_linear_evaluation_and_unknown_accuracies_are_drawn(tmp_path):
    rows = [
        {"step": n, "loss": 2.0, "train_top1": 0.3, "val_top1": n / 10, "knn_top1": 0.4, "place_r2": 0.9, "odd": 1.0}
        for n in range(1, 6)
    ]
    write_metrics(tmp_path, rows)
    run = read_run(tmp_path)
    assert [panel.key for panel in panels_of([run])] == ["loss", "train_top1", "val_top1", "knn_top1", "place_r2"]
    figures = dict(key_figures(run))
    assert figures["Validation top-1"] == "50.0 %, best 50.0 %"
    assert figures["k-NN top-1"] == "40.0 %, best 40.0 %"


def test_no_label_touches_another_or_a_curve(run_dir, tmp_path):
    """The name of a level, the last value and the axes keep apart, wherever the curve ends."""
    rows = [row | {"global_similarity": 0.9 - row["step"] / 100, "data_share": 0.0} for row in metrics(30)]
    write_metrics(tmp_path, rows)
    figure = draw_curves([read_run(tmp_path)])
    figure.draw_without_rendering()
    for axes in filter(lambda axes: axes.lines, figure.axes):
        *levels, last = sorted(axes.texts, key=lambda text: text.get_window_extent().x1)
        assert last.get_window_extent().x0 > axes.get_window_extent().x1  # beside the axes, where no line runs
        assert not any(level.get_window_extent().overlaps(last.get_window_extent()) for level in levels)
    similarity = next(axes for axes in figure.axes if axes.get_ylabel() == "cosine")
    assert similarity.get_ylim()[0] == 0


@pytest.mark.parametrize("value", [1e3, 1e5, 1e30])
def test_a_share_of_more_than_all_is_drawn(tmp_path, value):
    """A damaged metrics.jsonl: the label of the last value stays where a font can be drawn."""
    write_metrics(tmp_path, [row | {"global_top1": value, "global_similarity": value} for row in metrics(3)])
    data_uri(draw_curves([read_run(tmp_path)]))


def test_pale_lines_are_named_only_where_they_are(tmp_path):
    write_metrics(tmp_path / "few", metrics(20))
    write_metrics(tmp_path / "many", metrics(80))
    assert "pale" not in draw_curves([read_run(tmp_path / "few")]).get_suptitle()
    assert "pale" in draw_curves([read_run(tmp_path / "many")]).get_suptitle()


def test_cost_is_what_the_log_adds_up_to(tmp_path, run_dir):
    rows = [{"step": step, "images_per_second": 4.0, "peak_memory_mb": 500.0 + step} for step in (1, 10, 20)]
    rows += [{"step": 0, "knn_top1": 0.1, "seconds": 30.0}, {"step": 20, "knn_top1": 0.5, "seconds": 60.0}]
    write_metrics(tmp_path, [*rows, {"step": 20, "knn_top1": 0.5, "knn_standard_error": 0.02, "seconds": 60.0}])
    (tmp_path / "config.yaml").write_text((run_dir / "config.yaml").read_text())
    machine = {"device": "gpu:0", "devices": ["NVIDIA A100"], "processes": 2}
    (tmp_path / "environment.json").write_text(json.dumps(machine))
    run = read_run(tmp_path)
    found = dict(cost_figures(run))
    assert found["Device"] == "2 × NVIDIA A100"
    assert found["Training"] == "40 s for 20 steps, 160 images"  # batches of 8
    assert found["GPU time"] == "0.02 GPU hours"
    assert found["Peak memory"] == "520 MiB (main process)"
    assert dict(key_figures(run))["k-NN top-1"].startswith("50.0 ± 2.0 %, best 50.0 %, before training 10.0 %")


def test_nothing_to_draw_is_said(tmp_path):
    write_metrics(tmp_path, [{"step": 1, "odd": 2.0}])
    with pytest.raises(InputError, match="nothing to draw"):
        draw_curves([read_run(tmp_path)])
