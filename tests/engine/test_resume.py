"""Nothing lost: killed in the middle of an epoch and resumed, a run ends with the bits of an undisturbed one."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import numpy as np
import pytest

from passl_densecl.weights import read_card
from tests.engine.runs import ROOT, arrays, command, environment, metrics, train, write_config

LAST = "epoch_0003"
EVERY_STEP = {"checkpoint": {"every_epochs": 1, "every_steps": 1, "keep": 2}, "epochs": 3, "batch_size": 8}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, photos):
    folder = tmp_path_factory.mktemp("undisturbed")
    train(write_config(folder, photos, **EVERY_STEP))
    return folder / "run"


def stop_at(config, step: int, how: int) -> int:
    """Start the run, send the signal once the checkpoint of `step` is there, and give the exit code."""
    run = config.parent / "run"
    process = subprocess.Popen(
        command("tools/train.py", "-c", config),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    deadline = time.monotonic() + 200
    while not (run / "checkpoints" / f"step_{step:08d}").is_dir():
        assert process.poll() is None, process.stdout.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, how)
    return process.wait(timeout=100)


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_resumed_equals_undisturbed(undisturbed, tmp_path, photos, workers):
    config = write_config(tmp_path, photos, data__num_workers=workers, **EVERY_STEP)
    assert stop_at(config, 7, signal.SIGKILL) == -signal.SIGKILL  # 5 steps an epoch: in the second one
    assert not (tmp_path / "run" / "checkpoints" / LAST).exists()
    train(config, "--resume", "auto")
    for file in ("model.pdparams", "optimizer.pdopt"):
        ours, expected = arrays(tmp_path / "run", LAST, file), arrays(undisturbed, LAST, file)
        assert ours.keys() == expected.keys()
        assert len(expected) > 60
        for name in expected:
            np.testing.assert_array_equal(ours[name], expected[name], err_msg=name)
        both = [run / "checkpoints" / LAST / file for run in (tmp_path / "run", undisturbed)]
        assert both[0].read_bytes() == both[1].read_bytes()  # card and all
    card = read_card(undisturbed)
    assert card is not None
    assert (card.kind, card.depth, card.epoch, card.step) == ("pre-training checkpoint", 18, 3, 15)
    assert metrics(tmp_path / "run") == metrics(undisturbed)
    assert len(metrics(undisturbed)) == 15
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == [LAST, "step_00000014"]


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop_saves_and_can_go_on(undisturbed, tmp_path, photos, how, code):
    config = write_config(tmp_path, photos, **EVERY_STEP)
    assert stop_at(config, 3, how) == code
    assert "stopped  on request" in (tmp_path / "run" / "train.log").read_text()
    train(config, "--resume")
    expected = arrays(undisturbed, LAST)
    for name, value in arrays(tmp_path / "run", LAST).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert metrics(tmp_path / "run") == metrics(undisturbed)


def test_a_new_run_does_not_write_into_an_old_one(undisturbed):
    config = undisturbed.parent / "run.yaml"
    refused = train(config, check=False)
    assert refused.returncode == 2
    assert "already holds a run" in refused.stderr
    assert "--resume" in refused.stderr


def test_a_checkpoint_of_another_depth_is_refused(undisturbed, tmp_path, photos):
    config = write_config(tmp_path, photos, model__depth=34)
    refused = train(config, "--resume", undisturbed / "checkpoints" / LAST, check=False)
    assert refused.returncode == 2
    assert "18 → 34   (the network: cannot change)" in refused.stderr
