"""A checkpoint is whole or it is not there, and whatever the disk does to it afterwards is seen."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from passl_densecl.errors import InputError
from passl_densecl.reliability.checkpoint import Checkpoint, Checkpoints, Snapshot, complete
from passl_densecl.reliability.restore import read, read_newest, report_start
from passl_densecl.weights.card import PRETRAINING, Card
from passl_densecl.weights.checkpoints import CHECKSUMS, FILES, MODEL, OPTIMIZER, STATE, checksums
from passl_densecl.weights.files import read_card, read_weights, weights_file
from passl_densecl.weights.read import read_backbone
from tests.engine.test_messages import Recorder
from tests.reliability.disks import flip

CARD = Card(kind=PRETRAINING, depth=18)


def save(
    run: Path, step: int, *, keep: int = 9, name: str | None = None, value: float | None = None, log=None, **options
) -> Path | None:
    """A checkpoint whose arrays hold its step, or `value`."""
    fill = step if value is None else value
    model = {"weight": np.full((40, 5), fill, "f4"), "bias": np.arange(7, dtype="f4") + fill}
    velocity = {"weight.velocity": np.full((40, 5), -fill, "f4")}
    state = {"task": "pretrain", "steps_per_epoch": 5}
    snapshot = Snapshot(step, model, velocity, state, CARD)
    return Checkpoints(run, keep, log).save(name or f"step_{step:08d}", snapshot, **options)


@pytest.fixture
def run(tmp_path) -> Path:
    """Three checkpoints, of the steps 7, 8 and 9."""
    for step in (7, 8, 9):
        save(tmp_path / "run", step)
    return tmp_path / "run"


def newest(run: Path) -> Checkpoint:
    found = read_newest(run / "checkpoints")
    assert found is not None
    assert np.array_equal(found.model["weight"], np.full((40, 5), found.step, "f4"))
    assert np.array_equal(found.optimizer["weight.velocity"], np.full((40, 5), -found.step, "f4"))
    return found


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


# What is written


def test_checksums_are_those_of_the_files(run):
    folder = run / "checkpoints" / "step_00000009"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, CHECKSUMS])
    content = json.loads((folder / CHECKSUMS).read_text())
    for name in FILES:
        data = (folder / name).read_bytes()
        assert content[name] == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    card = read_card(folder)
    assert card is not None
    assert card.kind == PRETRAINING
    start = newest(run)
    assert (start.path, start.step, start.verified, start.damaged) == (folder, 9, True, ())
    assert start.state == {"task": "pretrain", "steps_per_epoch": 5}


def test_every_file_and_folder_is_synced_before_the_name_appears_and_the_oldest_goes(run, monkeypatch):
    calls: list[tuple[str, str]] = []
    fsync, replace, rmtree = os.fsync, os.replace, shutil.rmtree

    def synced(descriptor: int) -> None:
        calls.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(old: Path, new: Path) -> None:
        calls.append(("rename", str(new)))
        replace(old, new)

    def removed(path: Path, **options: bool) -> None:
        calls.append(("remove", str(path)))
        rmtree(path, **options)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    monkeypatch.setattr(shutil, "rmtree", removed)
    save(run, 10, keep=3)
    folder = (run / "checkpoints").resolve()
    temporary, doomed = folder / ".step_00000010.tmp", folder / ".step_00000007.old.tmp"
    assert calls == [
        *(("sync", str(temporary / name)) for name in (*FILES, CHECKSUMS)),
        ("sync", str(temporary)),
        ("rename", str(folder / "step_00000010")),
        ("sync", str(folder)),
        ("rename", str(doomed)),
        ("remove", str(doomed)),
    ]


@pytest.mark.parametrize(("keep", "again"), [(1, False), (1, True), (3, False), (3, True)])
def test_killed_at_any_call_a_whole_checkpoint_of_the_newest_step_is_there(tmp_path, monkeypatch, keep, again):
    """The process really ends, at every call that changes the disk in turn; `again` writes a step that is there
    already.
    """
    monkeypatch.setattr(
        os, "fsync", lambda _: None
    )  # a process that ends leaves what it wrote; syncing is for power cuts
    for number in range(1, 40):
        run = tmp_path / f"run{number}"
        for step in (7, 8, 9):
            save(run, step, keep=keep)
        step = 9 if again else 10
        code = killed_at(number, lambda run=run, step=step: save(run, step, keep=keep))
        found = read_newest(run / "checkpoints")
        assert found is not None
        assert found.step in (9, step)
        assert found.damaged == ()
        assert np.all(found.model["weight"] == found.step)
        assert weights_file(run).parent == found.path  # every reader finds the same one
        if code == 0:
            break
        save(run, step, keep=keep)  # and the next one puts everything in order
        assert names(run) == [f"step_{number:08d}" for number in range(step - keep + 1, step + 1)]
    assert code == 0
    assert number > 12


def killed_at(number: int, action: Callable[[], object]) -> int:
    """Run `action` in a process that ends without a word at its `number`-th system call that changes a disk."""
    child = os.fork()
    if child == 0:
        left = number

        def counted(function: Callable) -> Callable:
            def call(*arguments, **options):
                nonlocal left
                left -= 1
                if left == 0:
                    os._exit(9)
                return function(*arguments, **options)

            return call

        try:
            for module, name in ((os, "fsync"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "mkdir")):
                setattr(module, name, counted(getattr(module, name)))
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code


def test_a_failed_write_leaves_nothing_and_takes_nothing(run, monkeypatch):
    before = names(run)

    def refuse(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    assert save(run, 10, keep=1) is None
    monkeypatch.undo()
    assert names(run) == before
    assert newest(run).step == 9


def test_going_back_keeps_what_was_later(run):
    """A run resumed from an older checkpoint writes its own future; the former one is neither taken for it nor lost."""
    log = Recorder()
    save(run, 3, keep=2, log=log)
    assert names(run) == ["step_00000003", *(f"step_0000000{step}.superseded" for step in (7, 8, 9))]
    assert [label for label, _ in log.lines] == ["note"] * 3
    assert newest(run).step == 3
    assert weights_file(run).parent.name == "step_00000003"
    assert read(run / "checkpoints" / "step_00000009.superseded").step == 9


# Damage


def damage_is_seen(run: Path, file: str, *, why: str) -> None:
    """The newest one of `run` is damaged in `file`: it is skipped, and refused by name."""
    folder = run / "checkpoints" / "step_00000009"
    start = newest(run)
    assert start.step == 8
    ((path, reason),) = start.damaged
    assert path == folder
    assert str(folder / file) in reason
    assert re.search(why, reason), reason
    with pytest.raises(InputError) as caught:
        read(folder)
    assert str(folder / file) in str(caught.value)
    assert f"--resume {run / 'checkpoints' / 'step_00000008'}" in str(caught.value)


@pytest.mark.parametrize("file", [*FILES, CHECKSUMS])
def test_a_flipped_bit_anywhere_is_seen(run, file):
    path = run / "checkpoints" / "step_00000009" / file
    content = path.read_bytes()
    rng = np.random.default_rng(sum(file.encode()))
    positions = {0, len(content) - 1, *rng.integers(0, len(content), 30).tolist()}
    for position in positions:
        flip(path, position, int(rng.integers(0, 8)))
        start = newest(run)
        assert start.step == 8, f"byte {position}"
        ((damaged, reason),) = start.damaged
        assert damaged == path.parent
        assert str(path.parent) in reason
        path.write_bytes(content)
    assert newest(run).step == 9
    flip(path, len(content) // 2, 1)
    damage_is_seen(run, file if file != CHECKSUMS else "", why="damaged")


def test_a_bit_of_any_byte_of_the_checksums_is_seen(run):
    path = run / "checkpoints" / "step_00000009" / CHECKSUMS
    content, expected = path.read_bytes(), checksums(path.parent)
    assert expected is not None
    for position in range(len(content)):
        flip(path, position, position % 8)
        with contextlib.suppress(InputError):
            assert checksums(path.parent) != expected, position
        flip(path, position, position % 8)
    assert path.read_bytes() == content


@pytest.mark.parametrize("file", [*FILES, CHECKSUMS])
def test_a_cut_file_is_seen(run, file):
    path = run / "checkpoints" / "step_00000009" / file
    content = path.read_bytes()
    for size in (0, 1, len(content) // 3, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        damage_is_seen(run, file, why=rf"it has {size:,} bytes, [\d,]+ were written; it was cut off|damaged \(")
    path.write_bytes(content + b"\0")
    damage_is_seen(run, file, why=r"it has [\d,]+ bytes, [\d,]+ were written$|damaged \(")


@pytest.mark.parametrize("file", [*FILES, CHECKSUMS])
def test_a_missing_file_is_seen(run, file):
    path = run / "checkpoints" / "step_00000009" / file
    path.unlink()
    damage_is_seen(run, file, why="is missing")
    assert [each.name for each in complete(run / "checkpoints")] == ["step_00000007", "step_00000008"]


def test_an_empty_folder_is_seen(run):
    folder = run / "checkpoints" / "step_00000009"
    shutil.rmtree(folder)
    folder.mkdir()
    damage_is_seen(run, MODEL, why="is missing")


def test_several_damaged_ones_are_named_and_the_newest_whole_one_is_taken(run):
    save(run, 10)
    (run / "checkpoints" / "step_00000010" / STATE).write_text("{")
    flip(run / "checkpoints" / "step_00000009" / OPTIMIZER, 300, 2)
    start = newest(run)
    assert start.step == 8
    assert [path.name for path, _ in start.damaged] == ["step_00000010", "step_00000009"]


def test_where_none_is_whole_nothing_starts_silently(run):
    for step in (7, 8, 9):
        flip(run / "checkpoints" / f"step_{step:08d}" / MODEL, 500, 0)
    with pytest.raises(InputError, match="none of the 3 checkpoints is whole, and a run is not silently") as caught:
        read_newest(run / "checkpoints")
    assert str(caught.value).count(f"{MODEL} is damaged: its SHA-256 is") == 3
    assert "name=NAME" in str(caught.value)
    assert read_newest(run / "nothing") is None


def test_a_damaged_one_is_kept_aside_and_counts_for_nothing(run):
    log = Recorder()
    checkpoints = Checkpoints(run, 2, log)
    path = run / "checkpoints" / "step_00000009" / MODEL
    for expected in ("step_00000009.damaged", "step_00000009.damaged.2"):
        flip(path, 200, 3)
        evidence = path.read_bytes()
        report_start(newest(run), checkpoints)
        assert (run / "checkpoints" / expected / MODEL).read_bytes() == evidence
        assert not path.exists()
        assert newest(run).damaged == ()
        save(run, 9, keep=2)
        assert names(run) == sorted({"step_00000008", "step_00000009", "step_00000009.damaged", expected})
    assert weights_file(run) == path
    (label, text), _ = log.lines
    assert label == "warning"
    assert re.search(r"SHA-256 is \w+…, \w+… was written", text)
    assert "checkpoint step_00000009 is skipped and kept as step_00000009.damaged; delete it" in text


def test_what_lies_in_another_run_is_not_renamed(run, tmp_path):
    (run / "checkpoints" / "step_00000009" / MODEL).unlink()
    start, log = read(run), Recorder()
    report_start(start, Checkpoints(tmp_path / "mine", 3, log))
    assert start.step == 8
    assert "is missing; checkpoint step_00000009 is skipped" in log.lines[0][1]
    assert names(run) == ["step_00000007", "step_00000008", "step_00000009"]


def test_checkpoints_of_older_versions_are_read_with_a_note(run):
    for step in (7, 8, 9):
        folder = run / "checkpoints" / f"step_{step:08d}"
        (folder / CHECKSUMS).unlink()
        state = json.loads((folder / STATE).read_text())
        del state["checksums"]
        (folder / STATE).write_text(json.dumps(state))
    start, log = newest(run), Recorder()
    assert (start.step, start.verified) == (9, False)
    report_start(start, Checkpoints(run, 3, log))
    ((label, text),) = log.lines
    assert label == "note"
    assert "older version, without checksums" in text
    for file in (MODEL, OPTIMIZER):  # what can be seen without them still is
        path = run / "checkpoints" / "step_00000009" / file
        content = path.read_bytes()
        path.write_bytes(content[:-20])
        assert newest(run).step == 8
        path.write_bytes(content)


def test_a_file_that_may_not_be_read_is_no_damage(run, monkeypatch):
    """Continuing from an older checkpoint because of a permission would be wrong. (Root reads all: simulated.)"""
    import builtins

    real = builtins.open

    def refuse(path, *arguments, **options):
        if str(path).endswith(f"step_00000009/{MODEL}"):
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **options)

    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(InputError, match=rf"step_00000009/{MODEL}: cannot be read: Permission denied"):
        read_newest(run / "checkpoints")


# Other readers


def test_every_reader_of_weights_sees_damage_and_names_the_newest_whole_one(run):
    path = run / "checkpoints" / "step_00000009" / MODEL
    content = path.read_bytes()
    flip(path, 700, 6)
    flip(run / "checkpoints" / "step_00000008" / MODEL, 700, 6)
    for reader in (read_weights, read_backbone):
        for source in (run, path.parent, path):
            with pytest.raises(InputError, match=rf"{MODEL} is damaged: its SHA-256 .* is whole is .*step_00000007"):
                reader(source)
    path.unlink()
    with pytest.raises(InputError, match=rf"step_00000009/{MODEL} is missing; .* is whole is .*step_00000007"):
        read_weights(run)
    path.write_bytes(content)
    assert read_weights(run).path == path
