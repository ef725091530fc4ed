"""SIGTERM and SIGINT: the run ends at once where there is nothing to save, else with a checkpoint at the next step. A
second signal ends it at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.engine.runs import ROOT, command, environment, metrics, train_here, write_config
from tests.reliability.trainers import wait_for_step

SHAPE = {"epochs": 2, "batch_size": 8, "checkpoint": {"every_epochs": 1, "keep": 2}}

# Makes a function of a run slow; the file `here` beside the config shows that it was called.
SLOW = """
import runpy, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
import {module} as owner
{setup}
inner = owner.{name}
def slow(*args, **kwargs):
    Path({here!r}).touch()
    for _ in range({seconds} * 50):
        time.sleep(0.02)
    return inner(*args, **kwargs)
owner.{name} = slow
sys.argv = ["tools/train.py", "-c", {config!r}]
runpy.run_path("tools/train.py", run_name="__main__")
"""


def start_slow(config: Path, module: str, name: str, seconds: int, setup: str = "") -> subprocess.Popen:
    """Start a run that spends `seconds` in a function; returns when the function is called."""
    here = config.with_name("here")
    paths = {"root": str(ROOT), "here": str(here), "config": str(config)}
    code = SLOW.format(**paths, module=module, setup=setup, name=name, seconds=seconds)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment(), text=True, **pipes)
    deadline = time.monotonic() + 100
    while not here.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_before_the_first_step_it_ends_at_once(tmp_path, few_photos, how, code):
    process = start_slow(
        write_config(tmp_path, few_photos, **SHAPE), "passl_densecl.engine.pretrain", "build_model", 60
    )
    process.send_signal(how)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert errors.strip().endswith("stopped  before the first step: nothing to save")
    assert "Traceback" not in errors
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_checkpoint_is_completed_and_the_run_stops_after_the_next_step(tmp_path, few_photos):
    config = write_config(tmp_path, few_photos, **SHAPE, report=True)
    process = start_slow(config, "passl_densecl.reliability.checkpoint", "dump_pickle", 1)
    for _ in range(3):  # as the launcher sends it
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    assert process.wait(60) == 143
    names = sorted(entry.name for entry in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["epoch_0001", "step_00000003"]
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3]
    assert not (tmp_path / "run" / "report.html").exists()  # that is for complete runs


def test_a_second_signal_ends_it_at_once_even_in_native_code(tmp_path, few_photos):
    """Python's own handlers wait for the main thread, which is in a native call here."""
    setup = "import ctypes\nlock = ctypes.CDLL(None).pthread_mutex_lock\n"
    setup += "mutex = ctypes.create_string_buffer(64)\nlock(mutex)\n"
    setup += "owner.dump_pickle = lambda *args, **kwargs: lock(mutex)"  # forever, and no signal interrupts it
    config = write_config(tmp_path, few_photos, **SHAPE)
    process = start_slow(config, "passl_densecl.reliability.checkpoint", "dump_pickle", 0, setup=setup)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None, process.communicate()
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert time.monotonic() - began < 5
    _, errors = process.communicate()
    assert "stopped  asked again: nothing more is saved" in errors


def test_an_evaluation_is_completed_and_the_run_stops_after_the_next_step(tmp_path, few_photos):
    halves = {"train": str(few_photos), "val": str(few_photos), "size": 32, "k": 3}
    config = write_config(tmp_path, few_photos, **SHAPE, evaluation=halves)
    process = start_slow(config, "passl_densecl.engine.knn", "pooled_features", 0)
    deadline = time.monotonic() + 100
    while not (tmp_path / "run" / "checkpoints" / "epoch_0001").is_dir():  # the evaluation of step 2 comes next
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    steps = [line["step"] for line in metrics(tmp_path / "run")]
    assert train_here(config, "--resume") == 0
    again = metrics(tmp_path / "run")
    assert [line["step"] for line in again] == [0, 1, 2, 2, 3, 4, 4]
    assert [line["step"] for line in again][: len(steps)] == steps


def test_the_launcher_forwards_a_request_and_nothing_is_lost(tmp_path, few_photos):
    """It sends SIGTERM three times; the trainers save once, wait for the first one's checkpoint and end together."""
    config = write_config(tmp_path, few_photos, **(SHAPE | {"epochs": 99, "checkpoint": {"every_epochs": 99}}))
    with open(tmp_path / "out", "w") as out:
        launcher = subprocess.Popen(
            command("tools/train.py", "-c", config, processes=2, logs=tmp_path / "launch"),
            cwd=ROOT,
            env=environment(),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for_step(tmp_path / "run", 2, [launcher])
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(100) == 15  # the launcher's own exit code
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
    assert "stopped  on request, at step" in (tmp_path / "run" / "train.log").read_text()
    (kept,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert kept.name.startswith(("step_", "epoch_"))
    assert "asked again" not in "".join(path.read_text() for path in (tmp_path / "launch").glob("workerlog.*"))
