"""The recipe does not depend on the machine: one process × 4 micro-batches = 2 × 2 = 4 × 1."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.runs import arrays, metrics, train, write_config

STEPS = "epoch_0002"  # 2 epochs × 2 steps of 16 images; the queue of 24 wraps around


@pytest.fixture(scope="module")
def alone(tmp_path_factory, photos):
    folder = tmp_path_factory.mktemp("alone")
    train(write_config(folder, photos))
    return folder / "run"


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_micro_batches_without_changing_the_result(alone, tmp_path, photos, processes):
    train(write_config(tmp_path, photos), processes=processes)
    ours = metrics(tmp_path / "run")
    assert len(ours) == 4
    for line, expected in zip(ours, metrics(alone), strict=True):
        for key in ("global_loss", "dense_loss"):
            assert line[key] == pytest.approx(expected[key], abs=1e-5), (line["step"], key)
        assert line["global_top1"] == expected["global_top1"]
    ours, expected = arrays(tmp_path / "run", STEPS), arrays(alone, STEPS)
    assert ours.keys() == expected.keys()
    for name in expected:  # query and key weights, running statistics, queues and pointers
        np.testing.assert_allclose(ours[name], expected[name], atol=1e-5, rtol=1e-4, err_msg=name)
    velocity = arrays(tmp_path / "run", STEPS, "optimizer.pdopt")
    for name, value in arrays(alone, STEPS, "optimizer.pdopt").items():
        np.testing.assert_allclose(velocity[name], value, atol=1e-4, rtol=1e-3, err_msg=name)


def test_shuffling_changes_the_keys(alone, tmp_path, photos):
    """The comparison above would prove little if the order of the key images did not matter."""
    train(write_config(tmp_path, photos, seed=0, micro_batch_size=16))
    assert abs(metrics(tmp_path / "run")[0]["global_loss"] - metrics(alone)[0]["global_loss"]) > 1e-4
