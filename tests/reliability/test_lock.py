"""One run per folder: a second one is rejected, a killed one leaves no lock, no run is overwritten by accident."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from passl_densecl.config import load_config
from passl_densecl.engine.pretrain import pretrain
from passl_densecl.errors import InputError
from passl_densecl.reliability import lock
from passl_densecl.reliability.lock import locked
from tests.engine.runs import ROOT, arrays, metrics, write_config

HOLDER = """
import sys, time
from pathlib import Path
from passl_densecl.reliability.lock import locked
with locked(Path(sys.argv[1])):
    if len(sys.argv) > 2:
        import os
        if os.fork() == 0:  # a data worker, which outlives the run
            time.sleep(60)
            os._exit(0)
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder():
    """Starts a process that holds the lock of a folder."""
    started = []

    def hold(*arguments: object) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, *(str(argument) for argument in arguments)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        return process

    yield hold
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_second_run_is_rejected_and_the_first_is_named(holder, tmp_path, photos):
    process = holder(tmp_path / "run")
    config = load_config(write_config(tmp_path, photos), ["device=cpu"])
    for options in ({}, {"resume": "auto"}, {"overwrite": True}):
        message = rf"run' is in use by a running process {process.pid} on .*, since 20"
        with pytest.raises(InputError, match=message):
            pretrain(config, **options)
    assert sorted(entry.name for entry in (tmp_path / "run").iterdir()) == [".lock"]  # and wrote nothing


def test_a_killed_run_leaves_no_lock_even_when_its_worker_lives_on(holder, tmp_path):
    process = holder(tmp_path / "run", "with a worker")
    with pytest.raises(InputError), locked(tmp_path / "run"):
        pass
    process.kill()
    process.wait()
    with locked(tmp_path / "run") as warning:
        assert warning is None
        assert json.loads((tmp_path / "run" / ".lock").read_text())["pid"] == os.getpid()


def test_a_file_system_without_locks_is_named_and_used(tmp_path, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", no_locks)
    with locked(tmp_path / "run") as warning:
        assert warning is not None
        assert "no file locks under" in warning


def test_other_processes_of_a_run_do_not_lock(holder, tmp_path, monkeypatch):
    holder(tmp_path / "run")
    monkeypatch.setenv("PADDLE_TRAINER_ID", "1")
    with locked(tmp_path / "run"):
        pass


def test_a_rejected_start_leaves_no_folder(tmp_path):
    with pytest.raises(InputError, match="later"), locked(tmp_path / "output" / "run"):
        raise InputError("later")
    assert not (tmp_path / "output" / "run").exists()


SHORT = {"epochs": 1, "checkpoint": {"every_epochs": 1, "every_steps": 1, "keep": 2}}  # 2 steps


@pytest.fixture
def finished(tmp_path, photos):
    """A finished run, as its config."""
    path = write_config(tmp_path, photos, **SHORT)
    assert pretrain(load_config(path, ["device=cpu"])) == 0
    return path


def test_a_run_is_replaced_only_with_overwrite_and_only_when_the_new_one_can_start(finished, tmp_path):
    run = tmp_path / "run"
    before = arrays(run, "epoch_0001")
    (run / "notes.txt").write_text("mine")
    (run / ".checkpoints.tmp" / "epoch_0009").mkdir(parents=True)  # from an --overwrite that was killed
    message = r"already holds a run \(epoch_0001\); continue it with resume, .* with overwrite"
    with pytest.raises(InputError, match=message):
        pretrain(load_config(finished, ["device=cpu"]))
    with pytest.raises(InputError, match="not both"):
        pretrain(load_config(finished, ["device=cpu"]), resume="auto", overwrite=True)
    with pytest.raises(InputError, match="no folder"):
        pretrain(load_config(finished, ["device=cpu", f"data.root={tmp_path}/nothing"]), overwrite=True)
    unchanged = arrays(run, "epoch_0001")
    assert list(unchanged) == list(before)
    assert all(unchanged[name].tobytes() == array.tobytes() for name, array in before.items())
    assert len(metrics(run)) == 2

    assert pretrain(load_config(finished, ["device=cpu", "seed=5"]), overwrite=True) == 0
    assert sorted(entry.name for entry in (run / "checkpoints").iterdir()) == ["epoch_0001", "step_00000001"]
    assert not [entry for entry in run.iterdir() if entry.name.endswith(".tmp")]
    assert (run / "notes.txt").read_text() == "mine"
    assert [line["step"] for line in metrics(run)] == [1, 2]
    after = arrays(run, "epoch_0001")
    assert any(not np.array_equal(after[name], before[name]) for name in before)


def test_metrics_without_a_checkpoint_are_a_run_too(finished, tmp_path):
    for name in ("epoch_0001", "step_00000001"):
        (tmp_path / "run" / "checkpoints" / name).rename(tmp_path / name)
    with pytest.raises(InputError, match=r"already holds a run \(no checkpoint yet\)"):
        pretrain(load_config(finished, ["device=cpu"]))
    assert pretrain(load_config(finished, ["device=cpu"]), resume="auto") == 0
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]  # not four lines


def test_a_resume_from_an_older_checkpoint_sets_the_later_ones_aside(finished, tmp_path):
    run = tmp_path / "run"
    later = (run / "checkpoints" / "epoch_0001" / "model.pdparams").read_bytes()
    first = run / "checkpoints" / "step_00000001"
    config = load_config(finished, ["device=cpu", "optimizer.lr=0.01"])
    assert pretrain(config, resume=str(first), accept_changes=True) == 0
    (aside,) = (run / "checkpoints").glob("*.superseded")
    assert (aside / "model.pdparams").read_bytes() == later
    assert (run / "checkpoints" / "epoch_0001" / "model.pdparams").read_bytes() != later
    assert "is of a later step than this run has reached" in (run / "train.log").read_text()
    assert [line["step"] for line in metrics(run)] == [1, 2]
