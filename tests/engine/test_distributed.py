"""The recipe does not depend on the machine: one process × 4 micro-batches = 2 × 2 = 4 × 1."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import paddle
import pytest

from passl_densecl.distributed import collectives as dist
from tests.engine.runs import ROOT, arrays, command, metrics, train, train_here, write_config

# A freshly initialized network amplifies rounding: moving every weight by 1e-7 of itself changes a gradient by up to
# 0.3 % and, at a learning rate of 0.003, the loss of the third step by 1e-2 (measured, one process, 32 images of 128
# px). So the gradients are compared after the first step, where they are exact, and the rest at a rate that hardly
# amplifies (at 0.0001 the dense loss of the fourth step already differs by 2e-5).
SETTINGS = {
    "batch_size": 32,
    "micro_batch_size": 8,
    "epochs": 3,
    "model__queue_len": 48,  # 3 steps: the queue wraps around
    "optimizer": {"lr": 0.00003, "reference_batch_size": 32},
    "checkpoint": {"every_epochs": 1, "keep": 9},
    "data__transforms": [
        {"name": "RandomResizedCrop", "size": 64, "scale": [0.2, 1.0]},
        {"name": "ColorJitter"},
        {"name": "RandomHorizontalFlip"},
    ],
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, photos):
    folder = tmp_path_factory.mktemp("alone")
    assert train_here(write_config(folder, photos, **SETTINGS)) == 0
    return folder / "run"


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_micro_batches_without_changing_the_result(alone, tmp_path, photos, processes):
    monitor = {"images": 8, "every_epochs": 3}  # of the first process alone
    train(write_config(tmp_path, photos, **SETTINGS, monitor=monitor), processes=processes, launcher=True)
    logged = metrics(tmp_path / "run")
    assert [line["step"] for line in logged if "place_r2" in line] == [0, 3]
    ours = [line for line in logged if "loss" in line]
    assert len(ours) == 3
    for line, expected in zip(ours, metrics(alone), strict=True):
        for key in ("global_loss", "dense_loss"):
            assert line[key] == pytest.approx(expected[key], abs=1e-5), (line["step"], key)
        assert line["global_top1"] == expected["global_top1"]
    gradients = arrays(tmp_path / "run", "epoch_0001", "optimizer.pdopt")
    for name, value in arrays(alone, "epoch_0001", "optimizer.pdopt").items():
        np.testing.assert_allclose(gradients[name], value, atol=1e-5, rtol=1e-3, err_msg=name)
        assert np.abs(value).max() > 1e-4, name
    for checkpoint in ("epoch_0001", "epoch_0003"):
        ours, expected = arrays(tmp_path / "run", checkpoint), arrays(alone, checkpoint)
        assert ours.keys() == expected.keys()
        for name in expected:  # query and key weights, running statistics, queues and pointers
            np.testing.assert_allclose(ours[name], expected[name], atol=1e-5, rtol=1e-4, err_msg=name)


def test_nor_with_matches_by_geometry_and_single_cells_as_negatives(alone, tmp_path, photos):
    settings = SETTINGS | {"epochs": 1, "model__dense_matches": "geometry", "model__dense_negatives": "cells"}
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        train(write_config(folder, photos, **settings), processes=processes, launcher=processes > 1)
        found.append((metrics(folder / "run")[0], arrays(folder / "run", "epoch_0001")))
    (line, expected), (other, ours) = found
    for key in ("global_loss", "dense_loss"):
        assert other[key] == pytest.approx(line[key], abs=1e-5), key
    for name in expected:
        np.testing.assert_allclose(ours[name], expected[name], atol=1e-5, rtol=1e-4, err_msg=name)
    assert abs(line["dense_loss"] - metrics(alone)[0]["dense_loss"]) > 1e-3


def test_shuffling_changes_the_keys(alone, tmp_path, photos):
    """The comparison above would prove little if the order of the key images did not matter."""
    assert train_here(write_config(tmp_path, photos, **(SETTINGS | {"micro_batch_size": 32, "epochs": 1}))) == 0
    assert abs(metrics(tmp_path / "run")[0]["global_loss"] - metrics(alone)[0]["global_loss"]) > 1e-4


COLLECTIVES = """
import numpy as np
import paddle
from passl_densecl.distributed import collectives as dist, process_group
from passl_densecl.reliability.signals import StopRequest

process_group.start()
size = dist.world_size()
for share, seed in ((1, 0), (2, 1), (8, 2)):
    order = np.random.default_rng(seed).permutation(share * size)
    for trailing, dtype in (((5, 3), "uint8"), ((7,), "float32")):
        whole = np.arange(share * size * int(np.prod(trailing))).reshape(-1, *trailing).astype(dtype)
        mine = paddle.to_tensor(whole[dist.own_rows(len(order))])
        got = dist.exchange_rows(mine, order)
        np.testing.assert_array_equal(got.numpy(), whole[order][dist.own_rows(len(order))])
        back = dist.exchange_rows(got, np.argsort(order))
        np.testing.assert_array_equal(back.numpy(), mine.numpy())

stop, seen = StopRequest(), []
for step in range(5):
    if step == 2 and dist.rank() == 1:
        stop.signal = 15
    seen.append(stop.requested())
assert seen == [False, False, False, True, True], (dist.rank(), seen)
assert stop.exit_code == 143
process_group.stop()
"""


def launch(code: str, folder: Path, processes: int) -> None:
    """Run the code in so many processes; all must end well."""
    script = folder / "script.py"
    script.write_text(code)
    done = subprocess.run(
        command(script, processes=processes, logs=folder / "logs"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_rows_go_to_the_process_that_wants_them_and_all_stop_when_one_is_asked(tmp_path):
    launch(COLLECTIVES, tmp_path, 3)


def test_rows_travel_by_all_gather_alone_and_no_index_array_is_empty(monkeypatch):
    """On Paddle 2.6 with NCCL, what batch_isend_irecv receives is read before it has arrived, and gather fails on an
    empty index array: of the published recipe's 256 images, 8 % of the steps leave a process none of its own."""
    whole, gather, indices = paddle.arange(256), paddle.gather, []
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "8")
    monkeypatch.setattr(paddle.distributed, "batch_isend_irecv", None)
    monkeypatch.setattr(paddle.distributed, "all_gather", lambda parts, rows: parts.extend(paddle.split(whole, 8)))
    monkeypatch.setattr(paddle, "gather", lambda rows, index: (indices.append(index), gather(rows, index))[1])
    for step in range(16):  # a process is left alone in the last one
        order = np.random.default_rng([0, step, 0x5AFF1E]).permutation(256)
        for process in range(8):
            monkeypatch.setenv("PADDLE_TRAINER_ID", str(process))
            own = dist.own_rows(256)
            assert dist.exchange_rows(whole[own], order).tolist() == order[own].tolist()
    assert {len(index) for index in indices} == {32}
