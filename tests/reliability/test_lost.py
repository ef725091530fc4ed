"""A process that is killed or stops answering ends the others, in time and with a sentence; the run goes on from there."""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest

from tests.engine.runs import arrays, metrics, train, write_config
from tests.reliability.trainers import said, start_trainers, wait_for_step

SHAPE = {
    "epochs": 3,
    "batch_size": 8,
    "checkpoint": {"every_epochs": 1, "every_steps": 2, "keep": 2},
    "dist_timeout": 5.0,
}
LAST = "epoch_0003"  # step 15


@pytest.fixture
def ended():
    started = []
    yield started
    for trainer in started:
        trainer.kill()
        trainer.wait()


def test_one_is_stopped_then_the_first_is_killed_and_the_run_ends_as_if_not(tmp_path, photos, ended):
    config = write_config(tmp_path, photos, **SHAPE)
    trainers = start_trainers(config)
    ended += trainers
    wait_for_step(tmp_path / "run", 4, trainers)
    trainers[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    assert trainers[0].wait(60) == 3
    assert 3 < time.monotonic() - began < 40  # 5 s of silence, and not gloo's 30
    assert "process 1 of 2 (host " in said(config, 0)
    assert "has given no sign of life for " in said(config, 0)
    assert "continue with --resume auto" in said(config, 0)
    assert "Traceback" not in said(config, 0)
    trainers[1].send_signal(signal.SIGCONT)
    assert trainers[1].wait(60) == 3  # awake again, it hears that the others have gone without it
    assert "has given no sign of life for " in said(config, 1)

    trainers = start_trainers(config, "--resume", "auto")
    ended += trainers
    wait_for_step(tmp_path / "run", 9, trainers)
    trainers[0].kill()
    assert trainers[1].wait(20) == 3
    assert "process 0 of 2 (host 127.0.0.1) is gone: killed, or crashed" in said(config, 1)
    assert "Traceback" not in said(config, 1)

    trainers = start_trainers(config, "--resume", "auto")
    ended += trainers
    assert [trainer.wait(200) for trainer in trainers] == [0, 0]
    (tmp_path / "whole").mkdir()
    train(write_config(tmp_path / "whole", photos, **SHAPE), processes=2)
    whole = tmp_path / "whole" / "run"
    assert metrics(tmp_path / "run") == metrics(whole)
    for file in ("model.pdparams", "optimizer.pdopt"):
        ours, expected = arrays(tmp_path / "run", LAST, file), arrays(whole, LAST, file)
        assert ours.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(ours[name], value, err_msg=name)
    kept = [sorted(entry.name for entry in (run / "checkpoints").iterdir()) for run in (tmp_path / "run", whole)]
    assert kept[0] == kept[1] == [LAST, "step_00000014"]
