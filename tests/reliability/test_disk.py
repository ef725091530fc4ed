"""A disk that is full, read-only or gone: the run reports it, continues while it can, and loses nothing."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from passl_densecl.config import PretrainConfig
from passl_densecl.engine.linear import linear_eval
from passl_densecl.engine.pretrain import pretrain
from passl_densecl.errors import InputError, RunError
from passl_densecl.reliability import logfile
from passl_densecl.reliability.checkpoint import Checkpoints, Snapshot
from passl_densecl.reliability.log import RunLog
from passl_densecl.reliability.logfile import LogFile
from passl_densecl.reliability.restore import read_newest
from passl_densecl.weights.card import PRETRAINING, Card
from passl_densecl.weights.checkpoints import MODEL, OPTIMIZER, STATE
from tests.engine.runs import metrics, train, train_here, write_config
from tests.engine.test_linear import linear_config, write_images
from tests.engine.test_messages import Recorder
from tests.engine.test_start import in_this_process
from tests.reliability.disks import Disk, flip, small_disk

# One step an epoch and a checkpoint after each: 135 MB every time.
SETTINGS = {
    "batch_size": 8,
    "model__queue_len": 8,
    "epochs": 4,
    "optimizer__lr": 0.001,
    "data__transforms": [
        {"name": "RandomResizedCrop", "size": 32, "scale": [0.2, 1.0]},
        {"name": "RandomHorizontalFlip"},
    ],
    "checkpoint": {"every_epochs": 1, "keep": 2},
}
LAST = "epoch_0004"


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    """Eight megabytes."""
    with small_disk(tmp_path / "disk", 8) as made:
        yield made


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: a disk that refuses, for anybody and anywhere."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def save(checkpoints: Checkpoints, step: int, log: Recorder, **options) -> Path | None:
    """A checkpoint of 1.5 MB."""
    arrays = {"a": np.full(300_000, step, "f4")}
    velocity = {"v": np.full(75_000, step, "f4")}
    card = Card(kind=PRETRAINING)
    checkpoints.log = log
    return checkpoints.save(f"step_{step:08d}", Snapshot(step, arrays, velocity, {}, card), **options)


# Checkpoints


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(disk):
    checkpoints, log = Checkpoints(disk.path / "run", 2), Recorder()
    assert save(checkpoints, 1, log) is not None
    disk.fill()
    assert save(checkpoints, 2, log) is None
    assert save(checkpoints, 3, log) is None
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step_00000001"]  # nothing half-written takes room
    disk.free()
    assert save(checkpoints, 4, log) is not None
    disk.fill()
    for step in (5, 6):
        assert save(checkpoints, step, log) is None  # counted anew
    with pytest.raises(RunError) as caught:
        save(checkpoints, 7, log)
    kept = checkpoints.folder / "step_00000004"
    assert str(caught.value) == (
        f"checkpoint {checkpoints.folder / 'step_00000007'} cannot be written: No space left on device (it needs 1.5 "
        f"MB, 0.0 kB free; 3 failed in a row); {kept} (step 4) is kept. Make room there, then continue with "
        "--resume auto"
    )
    assert [label for label, _ in log.lines] == ["warning"] * 4
    assert log.lines[0][1] == (
        f"checkpoint {checkpoints.folder / 'step_00000002'} cannot be written: No space left on device (it needs 1.5 "
        f"MB, 0.0 kB free; 1 failed in a row); {checkpoints.folder / 'step_00000001'} (step 1) is kept; training "
        "continues, and the run stops at 3 in a row"
    )
    found = read_newest(checkpoints.folder)
    assert found is not None
    assert np.all(found.model["a"] == 4)


@pytest.mark.parametrize("room", [8_192, 600_000, 1_204_224, 1_400_000, 1_507_328, 1_511_424])
def test_the_disk_fills_in_the_middle_of_a_file(disk, room):
    """In the model, between files, in the optimizer, and when only the two small files are left (pages of 4,096)."""
    checkpoints, log = Checkpoints(disk.path / "run", 9), Recorder()
    save(checkpoints, 1, log)
    disk.fill(leave=room)
    assert save(checkpoints, 2, log) is None
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step_00000001"]
    disk.free()
    disk.fill(leave=1_515_520)
    assert save(checkpoints, 3, log) is not None  # one page more is enough
    found = read_newest(checkpoints.folder)
    assert found is not None
    assert (found.step, found.damaged) == (3, ())


def test_a_file_that_may_not_grow(tmp_path):
    """As a quota does it; needs no root."""
    checkpoints, log = Checkpoints(tmp_path, 1), Recorder()
    assert save(checkpoints, 1, log) is not None
    for size in (0, 4096):
        with largest_file(size):
            assert save(checkpoints, 2, log) is None
        assert [path.name for path in checkpoints.folder.iterdir()] == ["step_00000001"]
    with largest_file(1_000_000), pytest.raises(RunError, match=r"File too large .* 3 failed in a row"):
        save(checkpoints, 3, log)
    assert save(checkpoints, 4, log) is not None


def test_the_last_one_must_be_written(tmp_path):
    checkpoints, log = Checkpoints(tmp_path, 1), Recorder()
    with largest_file(1000), pytest.raises(RunError) as caught:
        save(checkpoints, 1, log, must=True)
    assert "1 failed in a row); none was written before. Make room there" in str(caught.value)
    assert log.lines == []
    assert list(checkpoints.folder.iterdir()) == []


def test_too_little_room_is_said_beforehand_with_figures(disk):
    checkpoints, log = Checkpoints(disk.path / "run", 3), Recorder()
    checkpoints.folder.mkdir(parents=True)
    checkpoints.log = log
    checkpoints.check_room(1_900_000)  # 4 × 1.9 MB fit
    assert log.lines == []
    checkpoints.check_room(2_500_000)
    ((label, text),) = log.lines
    assert label == "warning"
    assert "has 8.4 MB free, but checkpoint.keep 3 needs 10.0 MB (4 × 2.5 MB, the one being written included)" in text
    save(checkpoints, 1, log)
    checkpoints.check_room(2_000_000)  # one of the four is there
    assert len(log.lines) == 1
    checkpoints.check_room(2_000_000, also=1)
    assert len(log.lines) == 2


# Logs


def lines_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_wait_for_the_disk_in_order_and_none_is_torn(disk):
    file = LogFile(disk.path / "metrics.jsonl")
    file.settle()
    for step in range(500):
        if step == 100:
            disk.fill()
        if step == 400:
            assert 150 < file.waiting <= 300  # what was left of the last block took some
            assert file.problem == "No space left on device"
            disk.free()
        file.write(json.dumps({"step": step, "loss": "x" * 50}) + "\n")
    assert (file.waiting, file.lost, file.problem) == (0, 0, None)
    file.close()
    assert lines_of(file.path) == list(range(500))


def test_more_lines_than_may_wait_are_counted(disk, monkeypatch):
    monkeypatch.setattr(logfile, "LIMIT", 1000)
    file = LogFile(disk.path / "metrics.jsonl")
    file.settle()
    disk.fill()
    for step in range(300):
        file.write(f'{{"step": {step}, "filler": "{"x" * 73}"}}\n')  # about 100 bytes
    waiting = file.waiting
    assert 5 < waiting <= 11
    assert file.lost + waiting <= 300
    disk.free()
    file.write('{"step": 300}\n')
    assert file.waiting == 0
    file.close()
    written = lines_of(file.path)
    assert len(written) == 301 - file.lost
    assert written == sorted(written)
    assert written[-1] == 300


def test_a_removed_log_is_made_again_with_what_was_in_it(tmp_path):
    (tmp_path / "run").mkdir()
    file = LogFile(tmp_path / "run" / "metrics.jsonl")
    file.settle()
    for step in range(10):
        if step == 5:
            shutil.rmtree(tmp_path / "run")
        file.write(f'{{"step": {step}}}\n')
    assert file.reopened
    assert lines_of(file.path) == list(range(10))
    file.path.rename(
        tmp_path / "run" / "metrics.jsonl.1"
    )  # as a log rotation: what was in it is there, under that name
    file.write('{"step": 10}\n')
    file.close()
    assert lines_of(file.path) == [10]


def test_a_run_log_says_once_that_it_cannot_be_written_and_once_that_it_can(disk, capfd):
    log = RunLog(disk.path / "run", {"config.yaml": "a: 1\n"})
    log.record()
    try:
        for step in range(60):
            if step == 20:
                disk.fill()
            if step == 50:
                disk.free()
            log.metrics({"step": step, "loss": 1.5, "filler": "x" * 400})
            log.progress("epoch 1/1", step, 60, "loss 1.5", record=True)
            if step == 30:
                log.line("note", "said while the disk was full")
    finally:
        log.close()
    assert lines_of(disk.path / "run" / "metrics.jsonl") == list(range(60))
    written = (disk.path / "run" / "train.log").read_text()
    assert [line for line in written.splitlines() if line.startswith("epoch")] == [
        f"epoch 1/1 {step}/60  loss 1.5" for step in range(60)
    ]
    assert "note     said while the disk was full" in written
    terminal = capfd.readouterr().out
    for text in (terminal, written):
        assert text.count("cannot be written: No space left on device; training continues") == 1
        assert text.count("can be written again; 0 lines of the logs are lost") == 1


def test_a_terminal_on_the_same_full_disk_ends_nothing(disk):
    """`tools/train.py … > full_disk/out.txt`."""
    terminal = os.dup(1)
    with open(disk.path / "out.txt", "w") as out:
        os.dup2(out.fileno(), 1)
    try:
        log = RunLog(disk.path / "run")
        log.record()
        log.line("note", "the first line")
        disk.fill()
        for step in range(300):
            log.line("note", f"line {step} {'x' * 100}")
        log.close()
        os.fstat(1)
    finally:
        os.dup2(terminal, 1)
        os.close(terminal)
    disk.free()
    assert (disk.path / "out.txt").read_text().startswith("note     the first line\n")
    assert "line 0 " in (disk.path / "run" / "train.log").read_text()


# Runs


@pytest.fixture(scope="module")
def photos(tmp_path_factory, photos) -> Path:
    """Ten of them."""
    folder = tmp_path_factory.mktemp("ten")
    for path in sorted(photos.rglob("*.png"))[:10]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, photos) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert pretrain(in_this_process(write_config(folder, photos, **SETTINGS))) == 0
    assert [line["step"] for line in metrics(folder / "run")] == [1, 2, 3, 4]
    return folder / "run"


def disturbed(monkeypatch: pytest.MonkeyPatch, before_save: dict[int, Callable[[], object]]) -> None:
    """Have something happen just before the checkpoint of a step is written; the run itself goes as always."""
    real = Checkpoints.save

    def save(self: Checkpoints, name: str, snapshot: Snapshot, **options):
        before_save.get(snapshot.step, lambda: None)()
        return real(self, name, snapshot, **options)

    monkeypatch.setattr(Checkpoints, "save", save)


def equals(run: Path, undisturbed: Path) -> None:
    """The same bits at the end, and no line of metrics lost or twice."""
    for file in (MODEL, OPTIMIZER):
        assert (run / "checkpoints" / LAST / file).read_bytes() == (
            undisturbed / "checkpoints" / LAST / file
        ).read_bytes()
    assert metrics(run) == metrics(undisturbed)


def run_on(disk: Path, photos: Path, tmp_path: Path, **changes) -> PretrainConfig:
    tree = {**SETTINGS, **changes, "output_dir": str(disk)}
    return in_this_process(write_config(tmp_path, photos, **tree)).model_copy(update={"output_dir": str(disk)})


def test_a_run_on_a_disk_that_is_full_for_a_while_ends_as_if_nothing_had_been(
    undisturbed, tmp_path, photos, monkeypatch
):
    with small_disk(tmp_path / "disk", 460) as disk:
        config = run_on(disk.path, photos, tmp_path)
        disturbed(monkeypatch, {2: disk.fill, 3: disk.free})
        assert pretrain(config) == 0
        equals(disk.path / "run", undisturbed)
        kept = sorted(path.name for path in (disk.path / "run" / "checkpoints").iterdir())
        assert kept == ["epoch_0003", LAST]
        log = (disk.path / "run" / "train.log").read_text()
        assert log.count("epoch_0002 cannot be written: No space left on device (it needs 13") == 1
        assert "epoch_0001 (step 1) is kept" in log


def test_a_run_on_a_disk_that_became_read_only_stops_and_goes_on(undisturbed, tmp_path, photos, monkeypatch, capfd):
    with small_disk(tmp_path / "disk", 460) as disk:
        config = run_on(disk.path, photos, tmp_path, checkpoint={"every_epochs": 1, "keep": 1})
        # A file that is open for writing forbids a read-only file system; a read-only view of the folder does not care.
        disturbed(monkeypatch, {2: lambda: read_only(disk.path / "run" / "checkpoints")})
        with pytest.raises(RunError, match=r"epoch_0004 cannot be written: Read-only file system .* Make room there"):
            pretrain(config)
        writable(disk.path / "run" / "checkpoints")
        monkeypatch.undo()
        assert capfd.readouterr().out.count("cannot be written: Read-only file system") == 2
        assert pretrain(config, resume="auto") == 0
        equals(disk.path / "run", undisturbed)


def read_only(folder: Path) -> None:
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)


def writable(folder: Path) -> None:
    subprocess.run(["umount", str(folder)], check=True)


def test_a_run_whose_folder_is_removed_makes_it_again(undisturbed, tmp_path, photos, monkeypatch):
    config = in_this_process(write_config(tmp_path, photos, **SETTINGS))
    disturbed(monkeypatch, {3: lambda: shutil.rmtree(tmp_path / "run")})
    assert pretrain(config) == 0
    run = tmp_path / "run"
    equals(run, undisturbed)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["epoch_0003", LAST]
    assert {"config.yaml", "environment.json", "metrics.jsonl", "train.log", "vdl"} < {
        path.name for path in run.iterdir()
    }
    log = (run / "train.log").read_text()
    assert "recipe   4 epochs" in log  # from before it was removed
    assert log.count("were removed while training; made again, with what the open logs held") == 1
    shutil.rmtree(run / "checkpoints" / LAST)
    assert pretrain(config, resume="auto") == 0
    equals(run, undisturbed)


def test_a_damaged_newest_checkpoint_is_passed_over_by_every_process(undisturbed, tmp_path, photos, capsys):
    config = write_config(tmp_path, photos, **SETTINGS)
    shutil.copytree(undisturbed, tmp_path / "run")
    damaged = tmp_path / "run" / "checkpoints" / LAST / MODEL
    flip(damaged, 30_000_000, 5)
    assert train_here(config, "--resume", damaged.parent) == 2
    refused = capsys.readouterr().err
    assert f"{damaged} is damaged: its SHA-256 is" in refused
    assert f"--resume {tmp_path / 'run' / 'checkpoints' / 'epoch_0003'}, or --resume auto" in refused
    train(config, "--resume", "auto", processes=2)
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["epoch_0003", LAST, f"{LAST}.damaged"]
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4]
    log = (tmp_path / "run" / "train.log").read_text()
    assert f"checkpoint {LAST} is skipped and kept as {LAST}.damaged" in log
    assert "epoch_0003, step 3" in log
    assert metrics(tmp_path / "run")[3]["loss"] == pytest.approx(metrics(undisturbed)[3]["loss"], rel=1e-2)


def test_resumed_from_the_one_before_the_damaged_a_run_ends_with_the_same_bits(undisturbed, tmp_path, photos):
    shutil.copytree(undisturbed, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / LAST / OPTIMIZER).unlink()
    config = in_this_process(write_config(tmp_path, photos, **SETTINGS))
    with pytest.raises(InputError, match="already holds a run"):
        pretrain(config)
    assert pretrain(config, resume="auto") == 0
    equals(tmp_path / "run", undisturbed)
    assert (tmp_path / "run" / "checkpoints" / f"{LAST}.damaged" / MODEL).is_file()
    for checkpoint in ("epoch_0003", LAST):
        (tmp_path / "run" / "checkpoints" / checkpoint / STATE).write_text("")
    with pytest.raises(InputError, match="none of the 2 checkpoints is whole"):
        pretrain(config, resume="auto")
    assert metrics(tmp_path / "run") == metrics(undisturbed)  # nothing was touched


def test_a_read_only_output_folder_is_said_before_anything_is_trained(tmp_path, photos, capsys):
    with small_disk(tmp_path / "disk", 8) as disk:
        disk.remount("ro")
        assert train_here(write_config(tmp_path, photos), "-o", f"output_dir={disk.path}") == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert said.startswith(f"output_dir: {disk.path}/run")
    assert "cannot be written: Read-only file system; choose another place" in said


def test_a_full_disk_at_the_start_is_said(disk, tmp_path, photos):
    disk.fill()
    config = in_this_process(write_config(tmp_path, photos)).model_copy(update={"output_dir": str(disk.path)})
    with pytest.raises(InputError, match="No space left on device; choose another place"):
        pretrain(config)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"output_dir: .*file/run cannot be written: Not a directory"):
        pretrain(config.model_copy(update={"output_dir": str(tmp_path / "file")}))


# Linear evaluation


def test_linear_evaluation_calls_only_a_saved_epoch_the_best(tmp_path, monkeypatch):
    root = tmp_path / "images"
    write_images(root / "train", 14, seed=1)
    write_images(root / "val", 7, seed=2)
    config = linear_config(tmp_path, root, epochs=3, checkpoint={"every_epochs": 1, "keep": 1})
    monkeypatch.setattr("passl_densecl.engine.linear.evaluate", lambda *_, **__: (tops.pop(0), 1.0, 7))
    limit = contextlib.ExitStack()
    tops = [0.2, 0.9, 0.5]
    disturbed(monkeypatch, {2: lambda: limit.enter_context(largest_file(10**6)), 3: limit.close})
    with limit:
        assert linear_eval(config, pretrained="random") == 0
    log = (tmp_path / "run" / "train.log").read_text()
    assert "epoch_0002 cannot be written: File too large" in log
    assert "best top-1 50.00% in epoch 3" in log
    found = read_newest(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert found.state["best"]["name"] == "epoch_0003"
    flip(tmp_path / "run" / "checkpoints" / "epoch_0003" / MODEL, 1_000_000, 1)
    with pytest.raises(InputError, match="none of the 1 checkpoints is whole"):
        linear_eval(config, pretrained="random", resume="auto")
