"""Loggers show what metrics.jsonl says, in one record that a resumed run continues; none of them can stop a run."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import paddle
import pytest

from passl_densecl.config import BackboneSpec, Config, HeadSpec, parse_config
from passl_densecl.engine.pretrain import pretrain
from passl_densecl.errors import InputError
from passl_densecl.models import DenseCL, Keys
from passl_densecl.models.densecl import Projections
from passl_densecl.reliability import loggers, pictures
from passl_densecl.reliability.log import RunLog, open_log
from passl_densecl.reliability.loggers import Loggers
from passl_densecl.reliability.loggers.base import Logger, tag_of
from passl_densecl.tensors import to_tensor
from tests.engine.runs import PRETRAIN, metrics, write_config
from tests.engine.test_start import in_this_process
from tests.reliability.disks import small_disk
from tests.reliability.test_disk import SETTINGS

RED = np.full((32, 64, 3), (255, 0, 0), "uint8")


def config(folder: Path, *names: str) -> Config:
    tree = {**json.loads(json.dumps(PRETRAIN)), "output_dir": str(folder), "loggers": list(names)}
    tree["data"]["root"] = "photos"
    return parse_config(tree)


def log_steps(made: Config, after: int, last: int) -> str:
    """A process that continues after a step, logs up to `last` and a picture then; returns train.log."""
    log = RunLog(made.run_dir, {}, Loggers(made))
    log.record()
    try:
        log.rewind(after)
        for step in range(after + 1, last + 1):
            log.metrics({"step": step, "loss": 10.0 - step, "knn_top1": 0.5})
        log.images(last, lambda: {"images/views": RED})
    finally:
        log.close()
    return (made.run_dir / "train.log").read_text()


def viewer(folder: Path) -> Callable[..., object]:
    """What VisualDL's server, started now, answers: (method, arguments) → data."""
    from visualdl.reader import reader
    from visualdl.server.api import create_api_call
    from visualdl.server.data_manager import DataManager

    reader.default_data_manager = DataManager()  # one for the process otherwise, with all that it ever read
    call = create_api_call(str(folder), "", 0)

    def answer(method: str, **arguments: object) -> object:
        data, kind, _ = call(method, {"run": str(folder), **arguments})
        return json.loads(data)["data"] if kind == "application/json" else data

    return answer


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every tag that VisualDL's server lists."""
    answer = viewer(folder)
    (tags,) = answer("scalar/tags")["tags"]
    return {tag: [(step, value) for _, step, value in answer("scalar/list", tag=tag)] for tag in tags}


# VisualDL, for real


def test_after_two_resumes_the_viewer_shows_the_whole_run(tmp_path, photos):
    """Each resume repeats steps that had been logged; metrics.jsonl and the viewer have each of them once."""
    few = tmp_path / "few"
    few.mkdir()
    for photo in sorted(photos.rglob("*.png"))[:8]:
        shutil.copy(photo, few)
    changes = {**SETTINGS, "epochs": 3, "checkpoint": {"every_epochs": 1, "keep": 3}}
    made = in_this_process(write_config(tmp_path, few, **changes))
    assert pretrain(made) == 0
    for lost in ((3,), (2, 3)):
        for epoch in lost:
            shutil.rmtree(made.run_dir / "checkpoints" / f"epoch_{epoch:04d}")
        assert pretrain(made, resume="auto") == 0
    shown, lines = points(made.run_dir / "vdl"), metrics(made.run_dir)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for name in lines[0].keys() - {"step"}:
        steps, values = zip(*shown[tag_of(name)], strict=True)
        assert steps == (1, 2, 3)
        np.testing.assert_allclose(values, [line[name] for line in lines], rtol=1e-6)
    assert {"speed/images_per_second", "loss/global", "top1/dense", "training/lr"} < shown.keys()
    answer = viewer(made.run_dir / "vdl")
    assert answer("image/tags")["tags"] == [["images/views", "images/matches"]]
    assert answer("image/list", tag="images/views")[0]["step"] == 1
    (trial,) = answer("hparams/list")
    assert (trial["hparams"]["model.depth"], trial["hparams"]["optimizer.name"]) == (18, "SGD")


def test_the_files_of_an_older_version_become_one_record(tmp_path):
    """It began a file at each resume, and its tags had no groups; one of its runs was killed within a record."""
    from visualdl import LogWriter

    made = config(tmp_path, "visualdl")
    folder = made.run_dir / "vdl"
    for name, steps in {"vdlrecords.1000000000.log": range(6), "vdlrecords.9000000000.log": range(4, 9)}.items():
        with LogWriter(logdir=str(folder), file_name=name) as writer:
            for step in steps:
                writer.add_scalar("loss", 10.0 - step, step)
                writer.add_scalar("global_loss", 1.0, step)
    torn = folder / "vdlrecords.9000000000.log"
    torn.write_bytes(torn.read_bytes()[:-5])
    log_steps(made, 7, 9)
    assert len(list(folder.iterdir())) == 1
    shown = points(folder)
    assert shown["loss/total"] == [(step, 10.0 - step) for step in range(10)]
    assert [step for step, _ in shown["loss/global"]] == list(range(8))
    assert "loss" not in shown


def test_a_record_that_loses_nothing_is_appended_to_and_a_new_run_begins_another(tmp_path):
    made = config(tmp_path, "visualdl")
    folder = made.run_dir / "vdl"
    log_steps(made, -1, 3)
    (first,) = folder.iterdir()
    inode = first.stat().st_ino
    log_steps(made, 3, 5)
    assert [file.stat().st_ino for file in folder.iterdir()] == [inode]  # a viewer that has it open goes on
    assert points(folder)["loss/total"] == [(step, 10.0 - step) for step in range(6)]
    log_steps(made, -1, 1)
    assert points(folder)["loss/total"] == [(0, 10.0), (1, 9.0)]


def test_a_disk_that_was_full_leaves_no_gap(tmp_path):
    with small_disk(tmp_path / "disk", 8) as disk:
        made = config(disk.path, "visualdl")
        log = RunLog(made.run_dir, {}, Loggers(made))
        log.record()
        log.rewind(-1)
        for step in range(60):
            if step in (20, 50):
                disk.fill() if step == 20 else disk.free()
            log.metrics({"step": step, "loss": 1.5, "filler": "x" * 400})
        log.close()
        assert [step for step, _ in points(made.run_dir / "vdl")["loss/total"]] == list(range(60))


# The others, by stand-ins


@pytest.fixture
def packages(monkeypatch) -> MagicMock:
    """tensorboardX, wandb and mlflow, which record what is asked of them."""
    made = MagicMock()
    made.wandb.Error = type("Error", (Exception,), {})
    made.mlflow.MlflowClient.return_value.create_run.return_value.info.run_id = "41"
    for name in ("tensorboardX", "tensorboardX.proto", "wandb", "mlflow", "mlflow.entities"):
        part = made
        for attribute in name.split("."):
            part = getattr(part, attribute)
        monkeypatch.setitem(sys.modules, name, part)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return made


def test_each_logger_gets_everything_and_continues_its_own_record(tmp_path, packages):
    made = config(tmp_path, "tensorboard", "wandb", "mlflow")
    for after, last in ((-1, 3), (2, 4)):
        assert "warning" not in log_steps(made, after, last)

    begun, resumed = (call.kwargs for call in packages.wandb.init.call_args_list)
    assert begun == resumed  # the same id, whose record `resume` continues
    assert (begun["resume"], begun["name"], begun["config"]["model.depth"]) == ("allow", "run", 18)
    run = packages.wandb.init.return_value
    assert [call.kwargs["step"] for call in run.log.call_args_list] == [0, 1, 2, 3, 3, 3, 4, 4]
    assert run.log.call_args_list[0].args == ({"loss/total": 10.0, "knn/top1": 0.5},)
    assert run.finish.call_count == 2

    client = packages.mlflow.MlflowClient.return_value
    assert packages.mlflow.MlflowClient.call_args.kwargs == {"tracking_uri": str(tmp_path / "mlruns")}
    assert client.create_run.call_count == 1
    assert {call.args[0] for call in client.log_batch.call_args_list} == {"41"}
    assert [call.kwargs["key"] for call in client.log_image.call_args_list] == ["images/views"] * 2

    board = packages.tensorboardX
    purges = [
        call.kwargs["step"] for call in board.proto.event_pb2.Event.call_args_list if "session_log" in call.kwargs
    ]
    assert purges == [3]  # the first step that the second process writes again
    assert board.summary.hparams.call_args.args[1].keys() == {"loss/total"}


@pytest.mark.parametrize(
    ("name", "package"), [("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("mlflow", "mlflow")]
)
def test_a_missing_package_is_named_before_anything_is_written(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"loggers: {package} is not installed: pip install '{package}.*>="):
        open_log(config(tmp_path, "visualdl", name), resumed=False)
    assert list(tmp_path.iterdir()) == []


def test_wandb_without_a_key_is_refused_rather_than_asked_for(tmp_path, packages):
    packages.wandb.login.side_effect = packages.wandb.Error("No API key configured.")
    with pytest.raises(InputError, match=r"No API key configured.*WANDB_API_KEY, or WANDB_MODE=offline"):
        open_log(config(tmp_path, "wandb"), resumed=False)


# None can stop a run


class Failing(Logger):
    package, install = "json", ""
    fails_at = 3

    def __init__(self, run) -> None:
        self.fail_at(-1)

    def fail_at(self, step: int) -> None:
        if step == self.fails_at:
            raise ConnectionError("the service is gone\nand more")

    def scalars(self, values, step) -> None:
        self.fail_at(step)

    def image(self, tag, pixels, step) -> None:
        self.fail_at(step)

    def close(self) -> None:
        self.fail_at(99)


class FailingRemote(Failing):
    remote = True


class Stuck(Failing):
    remote = True
    released = threading.Event()

    def fail_at(self, step: int) -> None:
        self.released.wait(20)


def use_for_mlflow(monkeypatch, kind: type[Logger]) -> None:
    monkeypatch.setitem(loggers.KINDS, "mlflow", ("stand_in", "Kind"))
    monkeypatch.setitem(sys.modules, f"{loggers.__name__}.stand_in", MagicMock(Kind=kind))


@pytest.mark.parametrize("kind", [Failing, FailingRemote])
@pytest.mark.parametrize("fails_at", [-1, 3, 99])
def test_a_logger_that_fails_is_dropped_with_one_warning(tmp_path, monkeypatch, kind, fails_at):
    use_for_mlflow(monkeypatch, kind)
    monkeypatch.setattr(kind, "fails_at", fails_at)
    made = config(tmp_path, "mlflow", "visualdl")
    written = log_steps(made, -1, 9)
    assert written.count("warning") == 1
    assert "mlflow is not written any more: the service is gone; training continues" in written
    assert len(points(made.run_dir / "vdl")["loss/total"]) == 10


def test_a_logger_that_hangs_is_not_waited_for(tmp_path, monkeypatch):
    use_for_mlflow(monkeypatch, Stuck)
    monkeypatch.setattr(loggers, "CLOSING", 0.1)
    try:
        assert "did not finish within" in log_steps(config(tmp_path / "a", "mlflow"), -1, 9)
        monkeypatch.setattr(loggers, "WAITING", 5)
        assert "warning  mlflow is not written any more: it is 5 entries behind" in log_steps(
            config(tmp_path / "b", "mlflow"), -1, 9
        )
    finally:
        Stuck.released.set()


def test_pictures_that_cannot_be_made_are_a_warning(tmp_path):
    made = config(tmp_path, "visualdl")
    log = RunLog(made.run_dir, {}, Loggers(made))
    log.record()
    log.rewind(-1)
    log.images(1, lambda: {"images/views": RED[:, :, 5]})
    log.close()
    assert "warning  the pictures for the loggers could not be made" in (made.run_dir / "train.log").read_text()


# Tags and pictures


def test_tags():
    expected = "loss/total loss/dense loss/chance knn/top1 knn/seconds val/top5 top1/train similarity/global "
    expected += "speed/data_share training/lr training/queue_fill correspondence/accuracy place/r2"
    names = "loss dense_loss chance knn_top1 seconds val_top5 train_top1 global_similarity data_share lr queue_fill"
    names += " correspondence_accuracy place_r2"
    assert [tag_of(name) for name in names.split()] == expected.split()
    assert [tag_of(tag) for tag in expected.split()] == expected.split()


def test_pictures_show_the_matches_of_the_step_and_change_nothing():
    model = DenseCL(BackboneSpec(18, 2, 1), HeadSpec(16, 8), queue_len=8)
    views = np.random.default_rng(0).integers(0, 255, (2, 4, 32, 32, 3), dtype="uint8")
    query, key = (to_tensor(view) for view in views)
    keys = model.encode_keys(query, micro_batch_size=4)  # of the same images: every position matches itself
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    made = pictures.first_pictures(model, query, key, keys, 4)
    np.testing.assert_array_equal(made["images/views"][:32, :32], views[0, 0])
    np.testing.assert_array_equal(made["images/views"][32:, -32:], views[1, 3])
    own = np.tile(np.arange(16), (4, 1))
    np.testing.assert_array_equal(made["images/matches"], pictures.match_lines(views[0], views[1], own))
    assert made["images/matches"].shape == (4 * 224, 2 * 224, 3)
    assert (made["images/matches"] != pictures.match_lines(views[0], views[1], own[:, ::-1])).any()
    assert all((model.state_dict()[name].numpy() == value).all() for name, value in before.items())
    assert paddle.is_grad_enabled()
    moco = Keys(Projections(keys.global_vector), keys.global_vector, None)
    assert pictures.first_pictures(model, query, key, moco, 4).keys() == {"images/views"}
