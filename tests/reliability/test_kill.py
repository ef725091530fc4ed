"""A run that is killed at critical places and resumed equals an undisturbed run. `make test-kill` tries 20 moments."""

from __future__ import annotations

import signal

import pytest

from tests.engine.runs import metrics, write_config
from tests.reliability.kill import Moment, differences, finish, kill_at

# Two steps with a checkpoint each, of which one is kept, and an evaluation before and after.
SHORT = {"epochs": 1, "batch_size": 8, "checkpoint": {"every_epochs": 1, "every_steps": 1, "keep": 1}}
KILLS = [
    ("metrics", 2),  # after the line of step 1, which is in no checkpoint: the next start is from scratch
    ("rename", 2),  # the second checkpoint is written but not renamed yet
    ("renamed", 1),  # the last checkpoint has its name; the older one still exists, no evaluation yet
]


@pytest.fixture
def config(tmp_path, few_photos):
    def config(name: str):
        (tmp_path / name).mkdir()
        halves = {"train": str(few_photos), "val": str(few_photos), "size": 32, "k": 3}
        return write_config(tmp_path / name, few_photos, **SHORT, evaluation=halves)

    return config


def test_a_run_killed_three_times_equals_an_undisturbed_one(config):
    whole, killed = config("whole"), config("killed")
    finish(whole, 1)
    assert [line["step"] for line in metrics(whole.parent / "run")] == [0, 1, 2, 2]
    for place, number in KILLS:
        assert kill_at(killed, Moment(1, "self", None, place, number)) == -signal.SIGKILL
    finish(killed, 1)
    assert differences(killed.parent / "run", whole.parent / "run") == []


def test_differences_are_found(tmp_path):
    """The comparison above proves something only if it can fail."""
    run, other = tmp_path / "run", tmp_path / "other"
    for one in (run, other):
        (one / "checkpoints" / "epoch_0001").mkdir(parents=True)
        (one / "checkpoints" / "epoch_0001" / "model.pdparams").write_bytes(b"weights")
        (one / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5, "images_per_second": 3}\n')
    (other / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5, "images_per_second": 4}\n')
    assert differences(run, other) == []
    (run / "checkpoints" / "epoch_0001" / "model.pdparams").write_bytes(b"weight5")
    (run / "checkpoints" / ".epoch_0002.tmp").mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n' * 2)
    found = "; ".join(differences(run, other))
    assert "model.pdparams: other bytes" in found
    assert "checkpoints: ['.epoch_0002.tmp', 'epoch_0001'] instead of ['epoch_0001']" in found
    assert "metrics.jsonl: [(1, 'loss'), (1, 'loss')] instead of [(1, 'loss')]" in found
