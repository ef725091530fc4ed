"""Nothing lost: stopped or killed within an epoch and resumed, a run ends with the bits of an undisturbed one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from passl_densecl.cli.main import main
from passl_densecl.weights.files import read_card
from tests.engine.runs import ROOT, arrays, command, environment, metrics, train, train_here, write_config

LAST = "epoch_0004"
# Two steps an epoch: the odd ones are within an epoch.
EVERY_STEP = {"checkpoint": {"every_epochs": 1, "every_steps": 1, "keep": 2}, "epochs": 4, "batch_size": 8}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, few_photos):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert train_here(write_config(folder, few_photos, **EVERY_STEP)) == 0
    return folder / "run"


def stop_at(config, step: int, how: int, *options: str) -> int:
    """Start the run, send the signal once the checkpoint of `step` is there, and give the exit code."""
    run = config.parent / "run"
    process = subprocess.Popen(
        command("tools/train.py", "-c", config, *options),
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


def test_stopped_killed_and_resumed_equals_undisturbed(undisturbed, tmp_path, few_photos):
    """Three times in one run, with no and with two workers."""
    config, log = write_config(tmp_path, few_photos, **EVERY_STEP), tmp_path / "run" / "train.log"
    assert stop_at(config, 1, signal.SIGTERM) == 143
    assert log.read_text().count("stopped  on request") == 1
    workers = ("-o", "data.num_workers=2")
    assert stop_at(config, 3, signal.SIGKILL, "--resume", "auto", *workers) == -signal.SIGKILL
    assert stop_at(config, 5, signal.SIGINT, "--resume", *workers) == 130
    assert log.read_text().count("stopped  on request") == 2
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
    assert (card.kind, card.depth, card.epoch, card.step) == ("pre-training checkpoint", 18, 4, 8)
    assert metrics(tmp_path / "run") == metrics(undisturbed)
    assert len(metrics(undisturbed)) == 8
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == [LAST, "step_00000007"]


def test_the_extensions_of_the_dense_loss_are_resumed_to_the_bit(tmp_path, few_photos):
    """Matches by geometry and single cells as negatives, both of which are drawn anew."""
    extensions = {"model__dense_matches": "geometry", "model__dense_negatives": "cells"}
    config = write_config(tmp_path, few_photos, **(EVERY_STEP | extensions | {"epochs": 2}))
    assert train_here(config) == 0
    run = tmp_path / "run"
    expected, lines = arrays(run, "epoch_0002"), metrics(run)
    shutil.rmtree(run / "checkpoints" / "epoch_0002")
    assert train_here(config, "--resume", "auto", "-o", "data.num_workers=2") == 0
    assert metrics(run) == lines
    assert len(lines) == 4
    ours = arrays(run, "epoch_0002")
    for name in expected:
        np.testing.assert_array_equal(ours[name], expected[name], err_msg=name)


def test_a_new_run_does_not_write_into_an_old_one(undisturbed, capsys):
    assert train_here(undisturbed.parent / "run.yaml") == 2
    refused = capsys.readouterr().err
    assert "already holds a run" in refused
    assert "--resume" in refused


def test_a_copied_run_goes_on_in_its_own_folder_and_leaves_the_original_alone(undisturbed, tmp_path, capsys):
    copy, step = tmp_path / "copy", "step_00000007"
    shutil.copytree(undisturbed, copy)
    shutil.rmtree(copy / "checkpoints" / LAST)
    before = {path: path.read_bytes() for path in undisturbed.rglob("[!.]*") if path.is_file()}
    config = undisturbed / "config.yaml"
    assert main(["train", "-c", str(config), "--resume", str(copy / "checkpoints" / step)]) == 2
    assert f"belongs to the run in '{copy}', but output_dir and name say" in capsys.readouterr().err
    assert main(["train", "--resume", str(copy)]) == 0
    assert {path: path.read_bytes() for path in undisturbed.rglob("[!.]*") if path.is_file()} == before
    for file in ("model.pdparams", "optimizer.pdopt"):
        ours, expected = arrays(copy, LAST, file), arrays(undisturbed, LAST, file)
        assert all(np.array_equal(ours[name], expected[name]) for name in expected)


def test_a_checkpoint_of_another_depth_is_refused(undisturbed, tmp_path, few_photos, capsys):
    config = write_config(tmp_path, few_photos, model__depth=34)
    assert train_here(config, "--resume", undisturbed / "checkpoints" / LAST) == 2
    assert "18 → 34   (the network: cannot change)" in capsys.readouterr().err
