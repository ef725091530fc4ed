"""`densecl train --devices`: Paddle's launcher in a process of its own, signals, exit code and what it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import paddle
import pytest

from passl_densecl.cli.launch import Devices, parse_devices
from passl_densecl.errors import InputError
from tests.engine.runs import metrics, write_config

ROOT = Path(__file__).resolve().parents[2]


def start(folder: Path, *words: object) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "passl_densecl", "train", *map(str, words), "--devices", "cpu:2"]
    # What a machine with one GPU has: Paddle's launcher takes it as the number of devices.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "0"}
    return subprocess.Popen(
        line, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_ctrl_c_saves_and_a_resume_ends_the_run(photos, tmp_path):
    path = write_config(tmp_path, photos, epochs=40, checkpoint={"every_epochs": 40})
    process = start(tmp_path, path)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 1/40 "):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert out.count("stopped  on request") == 1
    assert "LAUNCH" not in out + err
    run = tmp_path / "run"
    assert not [*(run / "log").glob("envlog*"), *(run / "log").glob("backup_env*")]
    assert (run / "log" / "workerlog.1").is_file()
    done = metrics(run)[-1]["step"]
    longer = start(tmp_path, "--resume", run, "checkpoint.every_epochs=1", "epochs=41")
    deadline = time.monotonic() + 100
    while metrics(run)[-1]["step"] <= done + 1:
        assert longer.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    longer.send_signal(signal.SIGTERM)
    longer.communicate(timeout=120)
    assert longer.returncode == 143
    steps = [line["step"] for line in metrics(run)]
    assert steps == list(range(1, len(steps) + 1))


def test_a_refused_start_says_it_once_and_leaves_no_folder(photos, tmp_path):
    path = write_config(tmp_path, photos)
    process = start(tmp_path, path, "nowhere", "output_dir=new")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.count("no folder 'nowhere'") == err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_devices(monkeypatch):
    assert parse_devices("cpu") == Devices(processes=1)
    assert parse_devices("cpu:3") == Devices(processes=3)
    for text in ("cpu:0", "cuda", "0,,1", "gpu"):
        with pytest.raises(InputError, match="expected numbers of GPUs"):
            parse_devices(text)
    monkeypatch.setattr(paddle.device, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 1)
    assert parse_devices("all") == parse_devices("0") == Devices((0,))
    with pytest.raises(InputError, match="--devices 0,1: this Paddle sees 1 GPU; expected --devices 0, or cpu:2"):
        parse_devices("0,1")
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 4)
    with pytest.raises(InputError, match="sees 4 GPUs; expected different numbers from 0 to 3"):
        parse_devices("3,4")
