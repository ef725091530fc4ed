"""Numbers that are not finite: the step changes nothing, in no process; it is kept, counted and can be run again."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest

from passl_densecl.config import BackboneSpec, PretrainConfig, load_config
from passl_densecl.data.datasets import scan_images
from passl_densecl.data.loader import PairLoader
from passl_densecl.engine import guard as guards
from passl_densecl.engine.finetune import Recipe, finetune
from passl_densecl.engine.guard import Guard
from passl_densecl.engine.learner import optimizer_state, scaler_state
from passl_densecl.engine.linear import linear_eval
from passl_densecl.engine.pretrain import pretrain
from passl_densecl.engine.replay import replay
from passl_densecl.errors import InputError, RunError
from passl_densecl.models import DenseCL, densecl
from passl_densecl.reliability import checkpoint as checkpoint_files
from passl_densecl.reliability import restore
from passl_densecl.transforms import CenterCrop
from tests.engine.runs import arrays, metrics, train_here, write_config
from tests.engine.test_amp import scalers_of_a_gpu  # noqa: F401
from tests.engine.test_distributed import launch
from tests.engine.test_linear import linear_config

TINY = {
    "model__hidden_dim": 16,
    "model__out_dim": 8,
    "model__dense_matches": "geometry",  # which the kept batches must hold
    "batch_size": 8,
    "micro_batch_size": 4,
    "epochs": 2,
    "device": "cpu",
    "data__transforms": [
        {"name": "RandomResizedCrop", "size": 32, "scale": [0.2, 1.0]},
        {"name": "RandomHorizontalFlip"},
    ],
    "optimizer": {"lr": 0.05, "reference_batch_size": 8},
}
# Step (from 0) → what is damaged in it. 5 steps an epoch: after step 4 a checkpoint is due.
DAMAGES = {1: "gradient", 3: "query image", 4: "key image", 6: "dense key", 7: "loss", 8: "statistic"}
LAST_DAMAGE = max(DAMAGES)


class Damage:
    """While installed, breaks one number of the chosen steps, and notes the whole state before and after them."""

    def __init__(self, monkeypatch, steps: dict[int, str], only_rank: int | None = None) -> None:
        self.steps, self.step, self.kind = steps, -1, None
        self.before: dict[int, dict[str, bytes]] = {}
        self.after: dict[int, dict[str, bytes]] = {}
        self.reports: dict[int, np.ndarray] = {}
        self.monkeypatch, self.here = monkeypatch, only_rank is None or guards.dist.rank() == only_rank
        self.optimizer: paddle.optimizer.Optimizer | None = None
        self._patch_loader()
        self._patch_model()
        self._patch_guard()

    def _patch_loader(self) -> None:
        steps = PairLoader.steps

        def noted(loader, start, stop):
            for step, batch in steps(loader, start, stop):
                self.step, self.kind = step, self.steps.get(step)
                yield step, batch

        self.monkeypatch.setattr(PairLoader, "steps", noted)

    def _patch_model(self) -> None:
        encode, forward, normalize = DenseCL.encode_keys, DenseCL.forward, densecl.normalize

        def encode_keys(model, *arguments, **options):
            if self.kind and self.optimizer is not None:
                self.before[self.step] = state_of(model, self.optimizer)
            self.image = self.kind == "key image"
            keys = encode(model, *arguments, **options)
            self.image = self.kind == "query image"
            if self.kind == "dense key":  # of the whole batch's, which go into the queue: no loss sees it
                keys = replace(keys, dense_mean=spoiled(keys.dense_mean))
            return keys

        def forwards(model, *arguments, **options):
            losses = forward(model, *arguments, **options)
            if self.here and self.kind == "statistic":
                statistic = model.query_encoder.backbone.bn1._variance
                statistic.set_value(np.full(statistic.shape, np.inf, "float32"))
            if self.here and self.kind == "loss":
                return losses | {name: losses[name] * math.nan for name in ("loss", "global_loss")}
            if self.here and self.kind == "top-1":  # no gradient comes from it
                return losses | {"global_top1": losses["global_top1"] * math.nan}
            if self.here and self.kind == "gradient" and not getattr(self, "hook", None):
                weight = model.query_encoder.backbone.layer1[0].conv1.weight
                self.hook = weight.register_hook(lambda gradient: gradient * math.inf)
            return losses

        def normalized(images):
            values = normalize(images)
            if self.here and self.image:
                self.image = False  # one image of one micro-batch
                values = spoiled(values)
            return values

        self.image = False
        self.monkeypatch.setattr(DenseCL, "encode_keys", encode_keys)
        self.monkeypatch.setattr(DenseCL, "forward", forwards)
        self.monkeypatch.setattr(densecl, "normalize", normalized)

    def _patch_guard(self) -> None:
        init, finite, skip = Guard.__init__, Guard._finite, Guard._skip

        def initialized(guard, run, learner, *arguments):
            self.optimizer, self.guard = learner.optimizer, guard
            init(guard, run, learner, *arguments)

        def asked(guard, losses, keys):
            self.reports[self.step] = np.array([[float(value) for value in each.values()] for each in losses])
            if getattr(self, "hook", None):
                self.hook.remove()
                self.hook = None
            return finite(guard, losses, keys)

        def skipped(guard, *arguments):
            try:
                skip(guard, *arguments)
            finally:
                self.after[self.step] = state_of(guard._model, guard._learner.optimizer)

        self.monkeypatch.setattr(Guard, "__init__", initialized)
        self.monkeypatch.setattr(Guard, "_finite", asked)
        self.monkeypatch.setattr(Guard, "_skip", skipped)


def spoiled(rows: paddle.Tensor) -> paddle.Tensor:
    """The same with a NaN in row 1."""
    values = rows.numpy().copy()
    values[1].flat[0] = np.nan
    return paddle.to_tensor(values)


def state_of(model: DenseCL, optimizer: paddle.optimizer.Optimizer) -> dict[str, bytes]:
    """Every bit that a step may change."""
    state = {name: value.numpy().tobytes() for name, value in model.state_dict().items()}
    return state | {f"velocity of {name}": value.tobytes() for name, value in optimizer_state(optimizer, model).items()}


def omit(monkeypatch, missing) -> None:
    """The loader leaves these steps out."""
    steps = PairLoader.steps

    def others(loader, start, stop):
        return ((step, batch) for step, batch in steps(loader, start, stop) if step not in missing)

    monkeypatch.setattr(PairLoader, "steps", others)


def differing(one: dict, other: dict) -> list[str]:
    assert one.keys() == other.keys()
    assert len(one) > 200  # both encoders, both queues, the velocities
    return [name for name in one if not np.array_equal(one[name], other[name])]


@pytest.fixture(scope="module")
def skipping(tmp_path_factory, photos):
    """A run that never sees the steps that the others must not feel."""
    folder = tmp_path_factory.mktemp("skipping")
    with pytest.MonkeyPatch.context() as patch:
        omit(patch, DAMAGES)
        assert pretrain(tiny(folder, photos)) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def damaged(tmp_path_factory, photos):
    """A run that meets all damages, of which it tolerates one less: (its config, what was noted, how it ended)."""
    folder = tmp_path_factory.mktemp("damaged")
    config = tiny(folder, photos, guard={"max_nonfinite_steps": len(DAMAGES) - 1, "keep_dumps": 2})
    with pytest.MonkeyPatch.context() as patch:
        damage = Damage(patch, DAMAGES)
        with pytest.raises(RunError) as error:
            pretrain(config)
    return config, damage, str(error.value)


def tiny(folder: Path, photos: Path, **changes) -> PretrainConfig:
    config = load_config(write_config(folder, photos, **(TINY | changes)))
    assert isinstance(config, PretrainConfig)
    return config


@pytest.mark.parametrize("step", DAMAGES, ids=DAMAGES.values())
def test_nothing_of_the_step_stays(damaged, step):
    _, damage, _ = damaged
    assert list(damage.after) == list(DAMAGES)  # these steps, and no others, were skipped
    assert not differing(damage.before[step], damage.after[step])
    # What no loss shows is caught all the same; a NaN in an image is such a thing where ReLU makes zeros of it (on a
    # CPU).
    assert np.isfinite(damage.reports[step]).all() == (DAMAGES[step] != "loss") or DAMAGES[step].endswith("image")


def test_the_steps_between_are_felt(damaged):
    """The comparison above would prove little if states did not differ anyway."""
    _, damage, _ = damaged
    changed = differing(damage.before[1], damage.before[3])
    assert {name.split(".")[0] for name in changed} >= {
        "query_encoder",
        "key_encoder",
        "global_queue",
        "dense_queue",
        "velocity of query_encoder",
    }
    assert {"global_queue.pointer", "key_encoder.backbone.bn1._mean", "key_encoder.backbone.conv1.weight"} <= set(
        changed
    )


def test_too_many_end_the_run_and_a_resumed_one_equals_one_that_never_saw_them(damaged, skipping, tmp_path, photos):
    config, damage, message = damaged
    run = config.run_dir
    assert message.startswith(
        f"step {LAST_DAMAGE + 1}: BatchNorm statistics are not finite, as in 6 steps of this run; at most "
        "guard.max_nonfinite_steps 5 are tolerated. Nothing of these steps is in the weights; see "
    )
    assert message.endswith(
        "All steps since 7 were like that, so the weights had diverged by then: continue from a checkpoint well before "
        f"it (resume='PATH'; the newest is {run}/checkpoints/epoch_0001) with a lower optimizer.lr (the rate is "
        f"{config.base_lr * config.schedule(8, steps_per_epoch=5, epochs=2):g} now)"
    )
    start = restore.read(run)
    assert (start.step, start.state["nonfinite_steps"]) == (5, 3)  # saved just after the third of them
    assert {name: value.tobytes() for name, value in start.model.items()}.items() <= damage.after[4].items()
    more = tiny(run.parent, photos, guard={"max_nonfinite_steps": len(DAMAGES)})
    with pytest.MonkeyPatch.context() as patch:
        again = Damage(patch, DAMAGES)
        assert pretrain(more, resume="auto") == 0
    assert list(again.after) == [6, 7, 8]
    assert again.guard._run.skipped == len(DAMAGES)
    for file in ("model.pdparams", "optimizer.pdopt"):
        ours, expected = arrays(run, "epoch_0002", file), arrays(skipping, "epoch_0002", file)
        assert [name for name in expected if not np.array_equal(ours[name], expected[name])] == []
        assert ours.keys() == expected.keys()
        # The card too: neither the limit nor the skipped steps are part of the recipe.
        assert (run / "checkpoints/epoch_0002" / file).read_bytes() == (
            skipping / "checkpoints/epoch_0002" / file
        ).read_bytes()
    lines = {line["step"]: line for line in metrics(run)}
    assert len(lines) == len(metrics(run)) == 10
    assert [line["nonfinite_steps"] for line in lines.values()] == [0, 1, 1, 2, 3, 3, 4, 5, 6, 6]
    for line in metrics(skipping):
        assert lines[line["step"]] == line | {"nonfinite_steps": lines[line["step"]]["nonfinite_steps"]}
    assert all("loss" not in lines[step + 1] for step in DAMAGES)


def test_what_is_kept(damaged):
    config, damage, _ = damaged
    folders = sorted((config.run_dir / "nonfinite").iterdir())
    assert [folder.name for folder in folders] == [f"step_{step + 1:08d}" for step in DAMAGES]
    assert [(folder / "batch.npz").is_file() for folder in folders] == [True, True, False, False, False, False]
    reports = [json.loads((folder / "report.json").read_text()) for folder in folders]
    found = [{kind for kind, names in report["nonfinite"].items() if names} for report in reports]
    assert found[0] == {"gradients"}
    assert reports[0]["nonfinite"]["gradients"] == ["query_encoder.backbone.layer1.0.conv1.weight"]
    assert found[1] >= {"gradients", "BatchNorm statistics"}
    assert "key_encoder.backbone.bn1._mean" in reports[2]["nonfinite"]["BatchNorm statistics"]
    assert found[3] == {"keys"}
    assert reports[3]["nonfinite"]["keys"] == ["dense_mean"]
    assert found[4] == {"losses", "gradients"}
    assert [(loss["micro_batch"], loss["global_loss"]) for loss in reports[4]["nonfinite"]["losses"]] == [
        (0, "nan"),
        (1, "nan"),
    ]
    assert found[5] == {"BatchNorm statistics"}
    assert reports[5]["nonfinite"]["BatchNorm statistics"] == ["query_encoder.backbone.bn1._variance"]
    report = reports[1]
    assert (report["step"], report["epoch"], report["processes"], report["nonfinite_steps"]) == (4, 1, 1, 2)
    assert report["lr"] == pytest.approx(config.base_lr * config.schedule(3, steps_per_epoch=5, epochs=2))
    assert report["loss_lambda"] == 0.5
    assert [Path(image["path"]).is_file() for image in report["images"]] == [True] * 8
    with np.load(folders[1] / "batch.npz", allow_pickle=False) as batch:
        assert batch["query"].shape == batch["key"].shape == (8, 32, 32, 3)
        assert batch["query"].dtype == np.uint8
        assert batch["matches"].shape == (8, 1)  # one cell a map
        assert batch["indices"].tolist() == [image["index"] for image in report["images"]]
    kept = restore.read(folders[1])
    assert kept.step == 3
    assert {name: value.tobytes() for name, value in kept.model.items()}.items() <= damage.before[3].items()


def test_the_warning_says_what_and_where(damaged):
    config, _, _ = damaged
    log = (config.run_dir / "train.log").read_text()
    folder = config.run_dir / "nonfinite"
    assert (
        "warning  step 2: gradients are not finite; the step was skipped and changed nothing (1 of at most 5 in a "
        "run); kept "
        f"for --replay: {folder}/step_00000002" in log
    )
    assert f"(3 of at most 5 in a run); see {folder}/step_00000005/report.json" in log
    assert "  2 not finite  " not in log.split("step 4:")[0]


def test_replay_finds_where_it_begins(damaged):
    config, _, _ = damaged
    folder = config.run_dir / "nonfinite/step_00000004"
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        damage = Damage(patch, {})
        damage.kind = "query image"
        assert replay(config, folder, say=said.append) == 0
    text = "\n".join(said)
    path = json.loads((folder / "report.json").read_text())["images"][1]["path"]
    assert said[0].startswith(
        f"replay   step 4 of epoch 1, from {folder}: 8 images in 2 micro-batches, loss_lambda 0.5"
    )
    assert "state    all 220 arrays are finite before the step" in said
    assert (
        "forward  first not finite: the output of query_encoder.backbone.conv1, in micro-batch 0, for 1 of 4 images "
        f"({path}); its input was not finite either" in said
    )
    assert "of 68 gradients are not finite: query_encoder." in text
    assert "result" not in text


def test_replay_computes_what_the_run_computed(damaged):
    """The losses of step 2 were finite; without the broken gradient everything is."""
    config, damage, _ = damaged
    said: list[str] = []
    assert replay(config, config.run_dir / "nonfinite/step_00000002", say=said.append) == 0
    losses = [line for line in said if line.startswith("losses")]
    for line, row in zip(losses, damage.reports[1], strict=True):
        names = ("loss", "global_loss", "global_top1", "dense_loss", "dense_top1")
        assert line.split(": ")[1] == "  ".join(f"{name} {value:.6g}" for name, value in zip(names, row, strict=True))
    assert "forward  every output of every layer is finite" in said
    assert said[-1].startswith("result   everything is finite this time")


def test_replay_refuses_what_does_not_fit(damaged, tmp_path):
    config, _, _ = damaged
    folder = config.run_dir / "nonfinite"
    with pytest.raises(InputError, match=r"report\.json is missing; give a folder such as RUN/nonfinite/step_00001234"):
        replay(config, tmp_path)
    with pytest.raises(InputError, match=r"batch\.npz is missing; .*only the report is kept"):
        replay(config, folder / "step_00000005")
    other = config.model_copy(update={"batch_size": 4})
    with pytest.raises(InputError, match="a batch of 8, the config says 4"):
        replay(other, folder / "step_00000002")
    model = config.model.model_copy(update={"dense_matches": "features"})
    with pytest.raises(InputError, match=r"with model\.dense_matches geometry, the config says features"):
        replay(config.model_copy(update={"model": model}), folder / "step_00000002")
    broken = tmp_path / "step"
    broken.mkdir()
    (broken / "report.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot be read"):
        replay(config, broken)


def test_weights_that_blow_up_end_a_real_run_with_exit_code_3(tmp_path, photos, capsys):
    """A weight decay that no network survives: from the second step on nothing is finite any more."""
    config = write_config(
        tmp_path,
        photos,
        **(
            TINY
            | {
                "optimizer": {"lr": 1e6, "weight_decay": 1e14, "reference_batch_size": 8},
                "epochs": 1,
                "checkpoint": {"every_steps": 1, "keep": 9},
            }
        ),
        guard={"max_nonfinite_steps": 1, "keep_dumps": 1},
    )
    assert train_here(config) == 3
    said = capsys.readouterr().err
    assert "at most guard.max_nonfinite_steps 1 are tolerated" in said
    assert "All steps since 2 were like that, so the weights had diverged by then" in said
    run = tmp_path / "run"
    assert [path.name for path in checkpoint_files.complete(run / "checkpoints")] == ["step_00000001", "step_00000002"]
    first, second = (restore.read(run / f"checkpoints/step_0000000{step}") for step in (1, 2))
    assert not differing(first.model, second.model)
    assert all(np.isfinite(value).all() for value in second.model.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # of NumPy, about the numbers
        assert train_here(config, "--replay", run / "nonfinite/step_00000002") == 0
    assert "forward  first not finite: the output of " in capsys.readouterr().out


def test_weights_that_overflow_are_not_saved(tmp_path, photos):
    """Gradients are finite, learning rate times gradient is not."""
    config = tiny(tmp_path, photos, checkpoint={"every_steps": 1})
    optimizer = {"lr": 3e38, "reference_batch_size": 1}  # more than a file may ask for
    config = config.model_copy(update={"optimizer": config.optimizer.model_copy(update=optimizer)})
    with pytest.raises(RunError, match=r"step 1: weights are not finite \(.* more\)") as error:
        pretrain(config)
    assert "they were not saved. There is no checkpoint yet" in str(error.value)
    assert not list(config.run_dir.glob("checkpoints/*"))


def test_a_disk_that_does_not_take_the_dump_ends_no_run(tmp_path, photos):
    config = tiny(tmp_path, photos, epochs=1)
    config.run_dir.mkdir()
    (config.run_dir / "nonfinite").write_text("in the way")
    with pytest.MonkeyPatch.context() as patch:
        damage = Damage(patch, {1: "gradient"})
        assert pretrain(config) == 0
    assert not differing(damage.before[1], damage.after[1])
    assert (
        "changed nothing (1 of at most 10 in a run); what it was could not be kept: "
        in (config.run_dir / "train.log").read_text()
    )


@pytest.mark.usefixtures("scalers_of_a_gpu")
@pytest.mark.parametrize("at_floor", [False, True])
def test_an_overflow_of_float16_is_the_scalers_affair_until_its_floor(tmp_path, photos, monkeypatch, at_floor):
    config = tiny(tmp_path, photos, epochs=1, amp={"enabled": True, "dtype": "float16"})
    if at_floor:
        monkeypatch.setattr(guards, "SCALE_FLOOR", 1e9)
    scales = []
    damage = Damage(monkeypatch, {2: "gradient"})
    enqueue = DenseCL.enqueue
    monkeypatch.setattr(DenseCL, "enqueue", lambda model, keys: (enqueue(model, keys), scales.append(damage.step))[0])
    assert pretrain(config) == 0
    start = restore.read(config.run_dir)
    assert start.state["nonfinite_steps"] == at_floor
    assert list(damage.after) == ([2] if at_floor else [])
    # The scaler lowers its scale and leaves the optimizer out; the keys were good and are queued.
    assert start.state["scaler"]["scale"] == (65536.0 if at_floor else 32768.0)
    assert scales == ([0, 1, 3, 4] if at_floor else [0, 1, 2, 3, 4])
    assert scaler_state(damage.guard._learner.scaler) == start.state["scaler"]
    assert int(start.model["global_queue.pointer"][0]) == (4 if at_floor else 5) * 8 % 24


@pytest.mark.usefixtures("scalers_of_a_gpu")
def test_a_loss_that_is_not_finite_counts_with_float16_too(tmp_path, photos):
    config = tiny(tmp_path, photos, epochs=1, amp={"enabled": True, "dtype": "float16"})
    with pytest.MonkeyPatch.context() as patch:
        damage = Damage(patch, {2: "query image"})
        assert pretrain(config) == 0
    assert list(damage.after) == [2]
    assert not differing(damage.before[2], damage.after[2])
    assert restore.read(config.run_dir).state["scaler"]["scale"] == 65536.0  # not the scaler's business


TWO = """
from pathlib import Path

import pytest

from passl_densecl.distributed import collectives as dist, process_group
from passl_densecl.config import load_config
from passl_densecl.engine.pretrain import pretrain
from tests.engine.test_guard import Damage, differing, omit, state_of

config, steps = load_config(CONFIG), STEPS
process_group.stop = dist.barrier  # both runs share the processes
with pytest.MonkeyPatch.context() as patch:
    damage = Damage(patch, steps, only_rank=1)
    assert pretrain(config) == 0
    ours = state_of(damage.guard._model, damage.guard._learner.optimizer)
assert list(damage.after) == list(steps), (dist.rank(), list(damage.after))
for step in steps:
    assert not differing(damage.before[step], damage.after[step]), (dist.rank(), step)
with pytest.MonkeyPatch.context() as patch:
    omit(patch, steps)
    other = Damage(patch, {})
    assert pretrain(config.model_copy(update={"name": "skipping"})) == 0
    expected = state_of(other.guard._model, other.guard._learner.optimizer)
assert not differing(ours, expected), dist.rank()
assert differing(ours, damage.after[min(steps)])  # it went on
Path(OUT, str(dist.rank())).write_text(str(damage.guard._run.skipped))
"""


def test_two_processes_skip_what_only_one_of_them_met(tmp_path, photos):
    """Rank 1 alone has the NaN; "top-1" shows in no gradient, so only the common decision tells rank 0 of it."""
    steps = {1: "loss", 2: "top-1", 3: "gradient"}
    config = write_config(tmp_path, photos, **(TINY | {"epochs": 1}))
    code = TWO.replace("CONFIG", repr(str(config))).replace("STEPS", repr(steps)).replace("OUT", repr(str(tmp_path)))
    launch(code, tmp_path, 2)
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["3", "3"]
    folders = sorted((tmp_path / "run" / "nonfinite").iterdir())
    reports = [json.loads((folder / "report.json").read_text()) for folder in folders]
    assert [report["step"] for report in reports] == [2, 3, 4]
    assert [[loss["micro_batch"] for loss in report["nonfinite"]["losses"]] for report in reports] == [[1], [1], []]
    assert [image["process"] for image in reports[0]["images"]] == [0] * 4 + [1] * 4
    with np.load(folders[0] / "batch.npz", allow_pickle=False) as batch:
        assert batch["query"].shape == (8, 32, 32, 3)
    said: list[str] = []
    loaded = load_config(config)
    assert isinstance(loaded, PretrainConfig)
    assert replay(loaded, folders[0], say=said.append) == 0  # one process takes what two had
    assert said[-1].startswith("result   everything is finite this time")
    assert len([line for line in said if line.startswith("losses")]) == 2


def test_linear_evaluation_ends_before_it_saves(tmp_path, photos):
    """It skips no steps: only one layer is trained, so a loss that is not finite is the learning rate's doing."""
    for name in ("train", "val"):
        (tmp_path / name).symlink_to(photos)
    for name, checkpoint, message in (
        ("weights", {"every_steps": 1}, r"step 1: weights are not finite \(fc\.weight.*\); they were not saved"),
        (
            "loss",
            {},
            r"step 2: the loss is not finite \(nan\) and was not saved\. There is no checkpoint yet: start again",
        ),
    ):
        config = linear_config(tmp_path, tmp_path, name=name, checkpoint=checkpoint)
        config = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"lr": 1e38})})
        with pytest.raises(RunError, match=message):
            linear_eval(config, pretrained="random")
        assert not list((config.run_dir).glob("checkpoints/*"))


def test_fine_tuning_ends_too(photos):
    images = scan_images(str(photos), None, labeled=True)
    backbone = densecl.build_backbone(BackboneSpec(18, 4, 2), 0)
    with pytest.raises(
        RunError,
        match=r"step 2: the loss is not finite \((nan|inf)\) .*\. Lower the learning rates \(now 0\.01 and 1e\+38\)",
    ):
        finetune(
            backbone, images, images, [CenterCrop(size=32)], [CenterCrop(size=32)], Recipe(batch_size=8, head_lr=1e38)
        )
