"""Training on a damaged folder: it goes on, counts and lists what is bad, and stops past a share. Workers killed for
real.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from passl_densecl.config import PretrainConfig, load_config
from passl_densecl.data.datasets import scan_images
from passl_densecl.engine.linear import linear_eval
from passl_densecl.engine.pretrain import pretrain
from passl_densecl.errors import RunError
from passl_densecl.reliability.bad_images import BadImages, allowed, read_list
from passl_densecl.reliability.log import SilentLog
from passl_densecl.reliability.signals import StopRequest
from tests.data import damaged
from tests.engine.runs import ROOT, arrays, command, environment, metrics, train, train_here, write_config
from tests.engine.test_linear import linear_config

SMALL = {
    "batch_size": 16,
    "epochs": 2,
    "model__queue_len": 16,
    "checkpoint": {"every_epochs": 2},
    "data__transforms": [{"name": "RandomResizedCrop", "size": 32, "scale": [0.2, 1.0]}, {"name": "ColorJitter"}],
}
BAD = len(damaged.bad())


class Recorder(SilentLog):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, label: str, text: str) -> None:
        self.lines.append(f"{label} {text}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """62 images, 10 of them bad; three steps of 16, so that some wait for the next epoch."""
    return damaged.build(tmp_path_factory.mktemp("as they come"), ordinary=33)


def in_process(folder: Path, images: Path, *, resume: str | None = None, **changes: object) -> int:
    config = load_config(write_config(folder, images, **(SMALL | changes)), ["device=cpu"])
    assert isinstance(config, PretrainConfig)
    return pretrain(config, resume=resume)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, folder) -> Path:
    """The run, with two workers."""
    out = tmp_path_factory.mktemp("undisturbed")
    often = {"checkpoint": {"every_epochs": 1, "every_steps": 4}}
    assert train_here(write_config(out, folder, **(SMALL | often), data__num_workers=2)) == 0
    return out / "run"


def counted(run: Path) -> list[str]:
    """What the log says at the end of each epoch, without the number since the start, which a resumed run may know
    ahead.
    """
    lines = (run / "train.log").read_text(encoding="utf-8").splitlines()
    return [line.split(";")[0] for line in lines if line.startswith("bad ")]


def bad_seen(images: Path, epochs: int = 2, batch_size: int = 16) -> list[int]:
    """How many bad images each epoch's order holds; the rest of the set waits."""
    from passl_densecl.data.loader import epoch_order

    found = scan_images(images)
    bad = [index for index in range(len(found)) if found.relative_path(index).startswith(b"bad/")]
    taken = len(found) // batch_size * batch_size
    return [int(np.isin(epoch_order(len(found), 0, epoch)[:taken], bad).sum()) for epoch in range(epochs)]


# --- it goes on ----------------------------------------------------------------------------------------------------


def test_training_goes_on_counts_and_lists(undisturbed, folder):
    assert len(metrics(undisturbed)) == 2 * (len(scan_images(folder)) // 16)
    assert (undisturbed / "checkpoints" / "epoch_0002").is_dir()
    listed = read_list(undisturbed / "bad_images.txt")
    shown = {f"{folder}/" + escaped: words for escaped, words in ESCAPED.items()}
    assert set(listed) <= set(shown)
    assert len(listed) >= BAD - 1  # one may have waited in both epochs
    for path, why in listed.items():
        assert shown[path] in why
    lines = (undisturbed / "bad_images.txt").read_bytes().decode().split("\n")
    assert lines == [*sorted(lines[:-1]), ""]
    counts = [int(re.findall(r"epoch \d  (\d+) of", line)[0]) for line in counted(undisturbed)]
    assert counts == bad_seen(folder)
    log = (undisturbed / "train.log").read_text(encoding="utf-8")
    assert "cannot decode" in log
    assert "Traceback" not in log


ESCAPED = {
    "bad/empty.jpg": "0 bytes",
    "bad/cut.jpg": "cut short",
    "bad/cut.png": "cut short",
    "bad/text.jpg": "no image",
    "bad/bomb.jpg": "60,000×60,000",
    "bad/bomb.png": "60,000×60,000",
    "bad/true bomb.png": "20,000×20,000",
    "bad/new\\nline\\r.jpg": "0 bytes",
    "bad/坏 图.png": "cut short",
    "bad/caf\\xe9 \\\\x.jpg": "0 bytes",
}


def test_two_processes_list_and_count_the_same(undisturbed, tmp_path, folder):
    train(write_config(tmp_path, folder, **SMALL, data__num_workers=1), processes=2)
    assert (tmp_path / "run" / "bad_images.txt").read_bytes() == (undisturbed / "bad_images.txt").read_bytes()
    assert counted(tmp_path / "run") == counted(undisturbed)


def test_neither_what_is_bad_nor_who_loads_touches_the_rest_of_the_run(undisturbed, tmp_path, folder):
    """The same folder with the bad files bad in other ways, and without workers."""
    other = tmp_path / folder.name
    shutil.copytree(folder, other, symlinks=True)
    for path in (other / "bad").iterdir():
        path.write_bytes(b"bad in another way")
    assert in_process(tmp_path, other) == 0
    assert metrics(tmp_path / "run") == metrics(undisturbed)
    ours, expected = (arrays(run, "epoch_0002") for run in (tmp_path / "run", undisturbed))
    for key, value in expected.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key)


# --- it is resumed -------------------------------------------------------------------------------------------------


def test_asked_to_stop_within_an_epoch_and_resumed(undisturbed, tmp_path, folder, monkeypatch):
    """What the first part of an epoch met is neither forgotten nor counted twice."""
    asked = iter([False, True])
    monkeypatch.setattr(StopRequest, "requested", lambda self: next(asked, False))
    assert in_process(tmp_path, folder) == 128 + signal.SIGTERM
    run = tmp_path / "run"
    state = json.loads((run / "checkpoints" / "step_00000002" / "state.json").read_text())
    assert state["bad_in_epoch"] == len(read_list(run / "bad_images.txt")) > 0
    assert in_process(tmp_path, folder, resume="auto") == 0
    assert (run / "bad_images.txt").read_bytes() == (undisturbed / "bad_images.txt").read_bytes()
    assert counted(run) == counted(undisturbed)
    assert metrics(run) == metrics(undisturbed)


@pytest.mark.parametrize("step", [3, 4])
def test_killed_and_resumed_from_an_older_checkpoint(undisturbed, tmp_path, folder, step):
    """At the end of an epoch and within one; the list is ahead of the checkpoint then."""
    shutil.copytree(undisturbed, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        if json.loads((path / "state.json").read_text())["step"] > step:
            shutil.rmtree(path)
    assert in_process(tmp_path, folder, resume="auto") == 0
    assert (tmp_path / "run" / "bad_images.txt").read_bytes() == (undisturbed / "bad_images.txt").read_bytes()
    added = counted(tmp_path / "run")[len(counted(undisturbed)) :]
    assert added == counted(undisturbed)[1:]


def test_a_list_without_a_checkpoint_is_of_another_run(tmp_path, folder):
    images = scan_images(folder)
    file = tmp_path / "bad_images.txt"
    file.write_text("/some/image.jpg\tthe file is empty\n")
    BadImages(tmp_path, images, 0.1, Recorder(), resumed=True).collect(1, 100, ends=True)
    assert file.read_text() == "/some/image.jpg\tthe file is empty\n"
    found = BadImages(tmp_path, images, 0.1, Recorder(), resumed=True)
    found.add({0: "first\nreason"})
    found.collect(1, 100, ends=True)
    found.add({0: "second reason"})
    found.collect(2, 100, ends=True)
    ours = f"{images.path(0)}\tfirst reason\n"
    assert sorted(file.read_text().splitlines(True)) == sorted([ours, "/some/image.jpg\tthe file is empty\n"])
    BadImages(tmp_path, images, 0.1, Recorder(), resumed=False)
    assert not file.exists()


# --- it stops ------------------------------------------------------------------------------------------------------


def test_how_many_are_allowed():
    assert allowed(0.1, 5) == allowed(0.1, 100) == 10
    assert allowed(0.1, 1000) == 100
    assert allowed(0.0, 1000) == 0
    assert allowed(1.0, 48) == 48


def test_past_the_share_the_run_stops_and_saves_nothing_of_the_epoch(tmp_path, folder, capsys):
    images = tmp_path / "photos"
    shutil.copytree(folder, images, symlinks=True)
    for number in range(24):  # of 33
        (images / "plain" / f"{number:03d}.jpg").write_bytes(b"")
    config = write_config(tmp_path, images, **(SMALL | {"checkpoint": {"every_epochs": 1}, "log_every_steps": 100}))
    assert train_here(config) == 3
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "cannot be decoded" in line]
    count = int(re.match(r"epoch 1: (\d+) of 48 images under ", said)[1])  # type: ignore[index]
    assert count == bad_seen_with(images, 24)
    for part in (
        f"({count / 48:.1%})",
        "data.max_bad_share is 0.1",
        "run/bad_images.txt lists them",
        f"densecl data check {images}",
        "--resume auto",
    ):
        assert part in said
    assert len(read_list(tmp_path / "run" / "bad_images.txt")) == count
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    advised = re.findall(r"-o (data\.max_bad_share=[\d.]+)", said)
    accepted = load_config(config, ["device=cpu", "epochs=1", *advised])
    assert isinstance(accepted, PretrainConfig)
    assert pretrain(accepted, resume="auto") == 0  # the advice holds


def bad_seen_with(images: Path, plain: int) -> int:
    from passl_densecl.data.loader import epoch_order

    found = scan_images(images)
    names = [found.relative_path(index) for index in range(len(found))]
    bad = [
        i
        for i, name in enumerate(names)
        if name.startswith(b"bad/") or name in {b"plain/%03d.jpg" % n for n in range(plain)}
    ]
    return int(np.isin(epoch_order(len(found), 0, 0)[:48], bad).sum())


def test_past_the_share_it_does_not_wait_for_the_end_of_the_epoch(tmp_path, folder):
    log, images = Recorder(), scan_images(folder)
    found = BadImages(tmp_path, images, 0.1, log, resumed=False)
    found.add(dict.fromkeys(range(20), "why"))
    found.collect(3, 200, ends=False)
    found.add({20: "why"})
    with pytest.raises(RunError, match=r"^epoch 3: 21 of 200 images .* \(10\.5%\).*data\.max_bad_share=0\.15;"):
        found.collect(3, 200, ends=False)
    assert len(read_list(tmp_path / "bad_images.txt")) == 21
    assert len([line for line in log.lines if line.startswith("warning")]) == 10
    assert "further ones only go to" in log.lines[9]


def test_a_new_epoch_counts_anew(tmp_path, folder):
    found = BadImages(tmp_path, scan_images(folder), 0.1, Recorder(), resumed=False)
    for epoch in range(1, 5):
        found.add(dict.fromkeys(range(10), "why"))
        found.collect(epoch, 50, ends=True)
    zero = BadImages(tmp_path, scan_images(folder), 0.0, Recorder(), resumed=False)
    zero.collect(1, 50, ends=True)
    zero.add({3: "why"})
    with pytest.raises(RunError, match="1 of 50 images"):
        zero.collect(2, 50, ends=False)


# --- linear evaluation ---------------------------------------------------------------------------------------------


@pytest.fixture
def labeled(tmp_path) -> Path:
    """train and val of 24 and 9 images in three classes; 3 and 2 of them are bad."""
    for split, count in (("train", 24), ("val", 9)):
        for number in range(count):
            path = tmp_path / split / "abc"[number % 3] / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(damaged.huge_png(36, 36, (b"\0" + bytes([80 * (number % 3)]) * 108) * 36))
    for name in ("train/a/00.png", "train/b/04.png", "train/c/23.png", "val/a/03.png", "val/c/08.png"):
        (tmp_path / name).write_bytes(b"no image")
    return tmp_path


def test_linear_training_lists_both_and_judges_only_what_decodes(tmp_path, labeled, capsys):
    config = linear_config(tmp_path, labeled, epochs=1, model__last_stride=2)
    assert linear_eval(config, pretrained="random") == 0
    listed = read_list(tmp_path / "run" / "bad_images.txt")
    assert {os.path.relpath(path, labeled) for path in listed} == {
        "train/a/00.png",
        "train/b/04.png",
        "train/c/23.png",
        "val/a/03.png",
        "val/c/08.png",
    }
    log = (tmp_path / "run" / "train.log").read_text()
    assert "bad      epoch 1  3 of 24 images could not be decoded" in log
    assert "(2 more cannot be decoded and are left out)" in log
    top1 = metrics(tmp_path / "run")[-1]["val_top1"]
    assert top1 * 7 == pytest.approx(round(top1 * 7))  # of the seven that decode
    assert linear_eval(config, load=str(tmp_path / "run"), evaluate_only=True) == 0
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (result["images"], result["bad_images"], result["top1"]) == (7, 2, top1)
    assert result["top5"] == 1.0  # of three classes; with stand-ins counted it would be 9 of 7
    assert read_list(tmp_path / "run" / "bad_images.txt") == listed
    assert "on 7 images of 3 classes (2 more cannot be decoded and are left out)" in capsys.readouterr().out


def test_linear_evaluation_stops_past_the_share(tmp_path, labeled):
    config = linear_config(tmp_path, labeled, epochs=1, data__max_bad_share=0.0)
    with pytest.raises(RunError, match=r"epoch 1: \d of 24 images under .*train cannot be decoded"):
        linear_eval(config, pretrained="random")
    for name in ("train/a/00.png", "train/b/04.png", "train/c/23.png"):
        shutil.copy(labeled / "train/a/03.png", labeled / name)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(RunError, match=r"^2 of 9 images under .*val cannot be decoded \(22\.2%\)"):
        linear_eval(config, pretrained="random")


# --- a worker is killed --------------------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    """The processes that it started and that live."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if entry.name.isdigit() and int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_worker_killed_by_the_system(tmp_path, folder):
    """As the system does it when the memory runs out; with two workers, in the middle of a run."""
    config = write_config(tmp_path, folder, **(SMALL | {"epochs": 500}), data__num_workers=2)
    process = subprocess.Popen(
        command("tools/train.py", "-c", config),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    saved = tmp_path / "run" / "checkpoints" / "epoch_0002"
    deadline = time.monotonic() + 120
    while not saved.is_dir():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers: set[int] = set()
    while process.poll() is None:  # a worker that has given its last batch of an epoch is not missed: kill the next too
        assert time.monotonic() < deadline
        for pid in children(process.pid)[:1]:
            workers.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    _, said = process.communicate(timeout=60)
    assert workers
    assert process.returncode == 3, said
    assert re.search(r"a data worker was killed \(signal 9\).*memory.*data\.num_workers than 2.*--resume auto", said)
    assert "Traceback" not in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert saved.is_dir()
