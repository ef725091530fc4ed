"""A process that is killed or stops answering ends the others, in time and with a sentence; the run goes on from there."""

from __future__ import annotations

import signal
import time

import pytest

from passl_densecl.engine.checkpoint import Checkpoints, read
from tests.engine.runs import metrics, write_config
from tests.reliability.trainers import said, start_trainers, steps_of, wait_for_step

SHAPE = {
    "epochs": 3,
    "batch_size": 8,
    "checkpoint": {"every_epochs": 1, "every_steps": 2, "keep": 2},
    "dist_timeout": 5.0,
}


@pytest.fixture
def ended():
    started = []
    yield started
    for trainer in started:
        trainer.kill()
        trainer.wait()


def test_one_is_stopped_and_after_a_resume_the_first_is_killed(tmp_path, photos, ended):
    config = write_config(tmp_path, photos, **SHAPE)
    trainers = start_trainers(config)
    ended += trainers
    wait_for_step(tmp_path / "run", 4, trainers)
    trainers[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    assert trainers[0].wait(60) == 3
    assert time.monotonic() - began > 3  # it had 5 s to answer
    assert "process 1 of 2 (host " in said(config, 0)
    assert "has given no sign of life for " in said(config, 0)
    assert "continue with --resume auto" in said(config, 0)
    assert "Traceback" not in said(config, 0)
    trainers[1].send_signal(signal.SIGCONT)
    assert trainers[1].wait(60) == 3  # awake again, it hears that the others have gone without it
    assert "has given no sign of life for " in said(config, 1)

    trainers = start_trainers(config, "--resume", "auto")
    ended += trainers
    wait_for_step(tmp_path / "run", 7, trainers)
    trainers[0].kill()
    assert trainers[1].wait(20) == 3
    assert "process 0 of 2 (host 127.0.0.1) is gone: killed, or crashed" in said(config, 1)
    assert "Traceback" not in said(config, 1)

    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, steps_of(tmp_path / "run") + 1))
    newest = Checkpoints(tmp_path / "run", keep=2).newest()
    assert newest is not None
    assert read(newest).step >= 6  # whole
