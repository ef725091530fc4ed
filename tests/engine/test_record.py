"""A run is continued as what its record says: what differs is refused, or accepted and recorded."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from passl_densecl.config import load_config
from passl_densecl.engine.pretrain import pretrain
from passl_densecl.errors import InputError, NewerFormat
from tests.engine.runs import metrics, write_config


@pytest.fixture(scope="module")
def run(tmp_path_factory, photos):
    """A finished run of two epochs of two steps, and its config."""
    folder = tmp_path_factory.mktemp("recorded")
    path = write_config(folder, photos, epochs=2)
    assert pretrain(load_config(path, ["device=cpu"])) == 0
    return folder / "run", path


def content(folder: Path) -> dict[str, tuple[int, int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.stem_stride=2", r"model\.stem_stride +4 → 2 +\(the network: cannot change\)"),
        ("model.last_stride=1", r"model\.last_stride +2 → 1 +\(the network: cannot change\)"),
        ("model.temperature=0.5", r"model\.temperature +[\d.]+ → 0\.5"),
        ("seed=9", r"seed +\d → 9"),
        ("optimizer.lr=0.9", r"optimizer\.lr +[\d.]+ → 0\.9"),
        ("model.loss_lambda=0", r"model\.dense +true → false +\(the network"),
        ("data.transforms.0.size=48", r"data\.transforms\.0\.size +40 → 48"),
        ("data.root=/tmp", r"data\.root .* → /tmp"),
        ("epochs=1", r"epochs +2 → 1"),
    ],
)
def test_other_settings_are_refused_and_nothing_changes(run, override, said):
    folder, path = run
    config = load_config(path, ["device=cpu", "epochs=4", override])
    before = content(folder)
    with pytest.raises(InputError, match=said):
        pretrain(config, resume="auto")
    assert content(folder) == before


def test_an_accepted_change_is_logged_recorded_and_the_old_config_stays(run, tmp_path):
    path, folder = run[1], tmp_path / "run"
    shutil.copytree(run[0], folder)
    longer = ["device=cpu", f"output_dir={tmp_path}", "epochs=3", "log_every_steps=2", "optimizer.lr=0.001"]
    longer += ["model.dense_matches=geometry", "model.dense_negatives=cells"]  # of the loss, not of the network
    old = (folder / "config.yaml").read_text()
    lr = re.search(r"^ +lr: (\S+)$", old, re.MULTILINE)
    assert lr
    with pytest.raises(InputError, match="add accept_changes"):
        pretrain(load_config(path, longer), resume="auto")
    with pytest.raises(
        InputError, match=r"set what it was trained with \(model\.loss_lambda=0\.5\); or start another run"
    ):
        pretrain(load_config(path, [*longer, "model.loss_lambda=0"]), resume="auto", accept_changes=True)
    assert pretrain(load_config(path, longer), resume="auto", accept_changes=True) == 0
    steps = 4  # two an epoch
    assert metrics(folder)[-1]["step"] == 6
    assert f"changed  optimizer.lr {lr[1]} → 0.001, from step {steps} on" in (folder / "train.log").read_text()
    for key in ("dense_matches features → geometry", "dense_negatives image_mean → cells"):
        assert f"changed  model.{key}, from step {steps} on" in (folder / "train.log").read_text()
    assert (folder / "config_from_step_00000000.yaml").read_text() == old
    assert load_config(folder / "config.yaml") == load_config(path, longer)
    state = json.loads((folder / "checkpoints" / "epoch_0003" / "state.json").read_text())
    assert {"step": steps, "key": "optimizer.lr", "before": lr[1], "now": "0.001"} in state["changes"]
    assert state["config_since"] == steps
    # Training longer is no change of the recipe.
    assert pretrain(load_config(path, [*longer, "epochs=4"]), resume="auto") == 0
    assert (folder / f"config_from_step_{steps:08d}.yaml").is_file()


def test_a_checkpoint_of_a_newer_version_is_refused_and_no_older_one_taken(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    state = folder / "checkpoints" / "epoch_0002" / "state.json"
    tree = json.loads(state.read_text())
    checksums = folder / "checkpoints" / "epoch_0002" / "checksums.json"
    tree["format"] = 7
    before = state.read_bytes()
    state.write_text(json.dumps(tree, indent=1))
    written = checksums.read_text()
    old, new = (hashlib.sha256(each).hexdigest() for each in (before, state.read_bytes()))
    checksums.write_text(written.replace(old, new).replace(str(len(before)), str(len(state.read_bytes()))))
    with pytest.raises(NewerFormat, match="has format 7, this passl_densecl reads formats up to 1"):
        pretrain(load_config(run[1], ["device=cpu", f"output_dir={tmp_path}", "epochs=3"]), resume="auto")


def test_a_refused_first_start_leaves_no_folder(tmp_path, photos):
    path = write_config(tmp_path, photos, epochs=1)
    config = load_config(path, ["device=cpu", f"output_dir={tmp_path / 'new'}", f"data.root={tmp_path / 'nowhere'}"])
    with pytest.raises(InputError, match="nowhere"):
        pretrain(config)
    assert not (tmp_path / "new").exists()
    steps = load_config(path, ["device=cpu", f"output_dir={tmp_path / 'new'}", "model.loss_lambda_warmup_epochs=9"])
    with pytest.raises(InputError, match="the dense loss would never count"):
        pretrain(steps)
    assert not (tmp_path / "new").exists()
