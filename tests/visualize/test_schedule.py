"""The plan is what the loop computes, jumps included."""

from __future__ import annotations

import numpy as np
import pytest

from passl_densecl.config import load_config
from passl_densecl.errors import InputError
from passl_densecl.visualize.schedule import draw_schedule, plan
from tests.visualize.conftest import pretrain_config


def test_every_step_is_as_in_the_loop(photos, tmp_path):
    config = pretrain_config(photos, tmp_path)
    found = plan(config, 5)
    assert found.steps.tolist() == list(range(30))
    expected = [config.base_lr * config.schedule(step, steps_per_epoch=5, epochs=6) for step in range(30)]
    np.testing.assert_array_equal(found.lr, expected)
    assert found.loss_lambda is not None
    assert found.loss_lambda.tolist() == [0.0] * 10 + [0.5] * 20


def test_a_long_run_keeps_its_jumps(photos, tmp_path):
    config = pretrain_config(photos, tmp_path, loss_lambda_warmup_steps=123_457)
    found = plan(config, 100_003)
    assert 4000 <= len(found.steps) < 4200
    assert found.loss_lambda is not None
    jump = int(np.flatnonzero(np.diff(found.loss_lambda))[0])
    assert found.steps[jump : jump + 2].tolist() == [123_456, 123_457]
    for epoch in range(1, 6):  # the rate has one value an epoch
        at = int(np.flatnonzero(found.steps == epoch * 100_003)[0])
        assert found.steps[at - 1] == epoch * 100_003 - 1
        assert found.lr[at] < found.lr[at - 1]


def test_the_picture_marks_warm_ups(photos, tmp_path):
    config = pretrain_config(photos, tmp_path)
    planned = plan(config, 5)
    figure = draw_schedule(config, planned, title="name")
    top, bottom = figure.axes[:2]
    np.testing.assert_array_equal(top.lines[0].get_ydata(), planned.lr)
    np.testing.assert_array_equal(top.lines[0].get_xdata(), planned.steps / 5)
    assert [text.get_text() for text in top.texts] == [" warm-up: 0.5 epochs "]
    assert [text.get_text() for text in bottom.texts] == [" λ = 0 for 10 steps "]
    assert "(0.3 for batch 256)" in figure.get_suptitle()


def test_linear_evaluation_has_no_lambda():
    from tests.visualize.conftest import ROOT

    config = load_config(ROOT / "configs/moco/moco_clas_r50.yaml")
    planned = plan(config, 11)
    assert planned.loss_lambda is None
    figure = draw_schedule(config, planned)
    assert len([axes for axes in figure.axes if axes.lines]) == 1
    assert "× 0.1 at epochs 60, 80" in figure.get_suptitle()


def test_no_step_at_all_is_refused(photos, tmp_path):
    with pytest.raises(InputError, match="0 steps per epoch: fewer images than batch_size 8"):
        plan(pretrain_config(photos, tmp_path), 0)
