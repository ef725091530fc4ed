"""A new run may start from a whole training state or from a backbone; what does not fit is named first."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from passl_densecl.config import PretrainConfig, load_config
from passl_densecl.engine.pretrain import build_model, pretrain
from passl_densecl.engine.start import load_backbones, load_state
from passl_densecl.errors import InputError
from passl_densecl.weights.convert import convert_content
from passl_densecl.weights.files import read_card
from passl_densecl.weights.vocabulary import backbone_shapes, translate
from passl_densecl.weights.writing import write_weights
from tests.engine.runs import arrays, metrics, train, write_config

Arrays = dict[str, np.ndarray]
QUEUE_LEN = 24  # what the config of these tests says


@pytest.fixture
def config(tmp_path, photos) -> PretrainConfig:
    return in_this_process(write_config(tmp_path, photos))


def state_of(model) -> Arrays:
    return {name: np.array(tensor.numpy()) for name, tensor in model.state_dict().items()}


def trained_state(config: PretrainConfig, **changes) -> Arrays:
    """A state that no new model has: key and query encoders differ, statistics and pointers have moved."""
    model = build_model(config.model_copy(update={"seed": 7, **changes}), QUEUE_LEN)
    rng = np.random.default_rng(1)
    arrays = state_of(model)
    for name, array in arrays.items():
        if name.endswith("pointer"):
            array[:] = 8
        elif not name.endswith("keys"):
            array *= rng.uniform(0.98, 1.02, array.shape).astype("f4")
    return arrays


def same(a: Arrays, b: Arrays) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in b)


@pytest.fixture
def mmpretrain_file(config, tmp_path):
    path = tmp_path / "mmpretrain.pdparams"
    write_weights(path, convert_content(trained_state(config), "mmpretrain-state")[0])
    return path


def test_a_state_of_another_project_fills_the_whole_model(config, mmpretrain_file):
    model = build_model(config, QUEUE_LEN)
    described = load_state(model, str(mmpretrain_file), config.model)
    assert same(state_of(model), trained_state(config))
    assert described == (
        f"{mmpretrain_file}: mmpretrain pre-training checkpoint, ResNet-18, global and dense, hidden_dim 64, out_dim "
        "16, queue_len 24; into a new run"
    )


@pytest.mark.parametrize("vocabulary", ["paddle", "torchvision", "detectron2", "paddledetection"])
def test_a_backbone_goes_into_both_encoders_and_nowhere_else(config, tmp_path, vocabulary):
    rng = np.random.default_rng(0)
    backbone = {name: rng.uniform(0.5, 1, shape).astype("f4") for name, shape in backbone_shapes(18).items()}
    write_weights(tmp_path / "w.pdparams", translate(backbone, vocabulary, 18))
    model = build_model(config, QUEUE_LEN)
    before = state_of(model)
    described = load_backbones(model, str(tmp_path / "w.pdparams"), config.model.backbone)
    after = state_of(model)
    for encoder in ("query", "key"):
        prefix = f"{encoder}_encoder.backbone."
        assert same({n.removeprefix(prefix): a for n, a in after.items() if n.startswith(prefix)}, backbone)
    rest = [name for name in after if "backbone" not in name]
    assert len(rest) == 20
    assert all(np.array_equal(after[name], before[name]) for name in rest)
    assert "into both encoders; heads and queues are random" in described


def test_a_state_that_does_not_fit_names_both_values(config, tmp_path):
    model = build_model(config, QUEUE_LEN)
    before = state_of(model)

    def refused(arrays: Arrays) -> str:
        write_weights(tmp_path / "state.pdparams", arrays)
        with pytest.raises(InputError) as caught:
            load_state(model, str(tmp_path / "state.pdparams"), config.model)
        assert same(state_of(model), before)
        return str(caught.value)

    model_config = config.model
    other = model_config.model_copy(update={"hidden_dim": 32, "out_dim": 8, "depth": 34})
    message = refused(trained_state(config, model=other))
    assert (
        "model.depth is 34 there and 18 here; model.hidden_dim is 32 there and 64 here; model.out_dim is 8 there"
        in message
    )
    assert "Set model.depth=34 model.hidden_dim=32 model.out_dim=8, or choose" in message
    longer = trained_state(config)
    for queue in ("global_queue.keys", "dense_queue.keys"):
        longer[queue] = np.concatenate([longer[queue]] * 2)
    assert "model.queue_len is 48 there and 24 here. Set model.queue_len=48," in refused(longer)
    moco = trained_state(config, model=model_config.model_copy(update={"loss_lambda": 0.0}))
    assert "no dense head and queue (as MoCo-v2), the config has model.loss_lambda 0.5: set it to 0" in refused(moco)
    backbone = {
        n.removeprefix("query_encoder.backbone."): a for n, a in moco.items() if n.startswith("query_encoder.b")
    }
    assert "no whole training state" in refused(backbone)


def test_a_moco_state_starts_a_run_without_a_dense_branch(config, tmp_path):
    moco = config.model_copy(update={"model": config.model.model_copy(update={"loss_lambda": 0.0})})
    state = trained_state(moco)
    write_weights(tmp_path / "moco.pdparams", convert_content(state, "moco-state")[0])
    model = build_model(moco, QUEUE_LEN)
    load_state(model, str(tmp_path / "moco.pdparams"), moco.model)
    assert same(state_of(model), state)
    dense = build_model(config, QUEUE_LEN)
    with pytest.raises(InputError, match="take only the state's backbone, with pretrained"):
        load_state(dense, str(tmp_path / "moco.pdparams"), config.model)
    load_backbones(dense, str(tmp_path / "moco.pdparams"), config.model.backbone)
    assert np.array_equal(dense.key_encoder.backbone.conv1.weight.numpy(), state["query_encoder.backbone.conv1.weight"])


def test_known_strides_must_fit(config, tmp_path, photos):
    folder = tmp_path / "other"
    (folder / "checkpoints" / "epoch_0001").mkdir(parents=True)
    path = write_config(tmp_path, photos, model__last_stride=1, name="other")
    shutil.move(path, folder / "config.yaml")
    write_weights(folder / "checkpoints" / "epoch_0001" / "model.pdparams", trained_state(config))
    model = build_model(config, QUEUE_LEN)
    for option, start, expected in (
        ("load", load_state, config.model),
        ("pretrained", load_backbones, config.model.backbone),
    ):
        with pytest.raises(
            InputError, match=rf"{option}=.* was trained with model\.last_stride 1, the config says 2; set model"
        ):
            start(model, str(folder), expected)


def test_one_start_only(config):
    with pytest.raises(InputError, match=r"give load .* or pretrained .*, not both"):
        pretrain(config, load="a", pretrained="b")
    with pytest.raises(InputError, match=r"no\.pdparams does not exist"):
        pretrain(config, pretrained="no.pdparams")


SETTINGS = {
    "batch_size": 32,
    "micro_batch_size": 16,
    "checkpoint": {"every_epochs": 1, "keep": 9},
    "optimizer": {"lr": 0.0003, "reference_batch_size": 32},
    "model__queue_len": 32,
}


def in_this_process(path: Path) -> PretrainConfig:
    config = load_config(path, ["device=cpu"])
    assert isinstance(config, PretrainConfig)
    return config


def test_a_run_from_a_state_resumes_to_the_same_bits_and_needs_no_second_process(config, tmp_path, photos):
    """One step an epoch: the run as a whole, the same resumed after the first step, and the same by two processes."""
    state = trained_state(config)
    for queue in ("global_queue", "dense_queue"):
        keys = np.random.default_rng(3).normal(size=(32, 16)).astype("f4")
        state[f"{queue}.keys"] = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    write_weights(tmp_path / "state.pdparams", convert_content(state, "passl-state")[0])
    folders = {name: tmp_path / name for name in ("whole", "resumed", "shared")}
    for folder in folders.values():
        folder.mkdir()
    load = str(tmp_path / "state.pdparams")
    assert pretrain(in_this_process(write_config(folders["whole"], photos, **SETTINGS)), load=load) == 0
    whole = folders["whole"] / "run"
    log = (whole / "train.log").read_text()
    assert "PASSL pre-training checkpoint" in log
    assert "the queues were loaded with the weights" in log

    first = arrays(whole, "epoch_0001")
    moved = first["query_encoder.backbone.conv1.weight"] - state["query_encoder.backbone.conv1.weight"]
    assert 0 < np.abs(moved).max() < 0.01  # one small step from the loaded weights, not from random ones
    assert np.array_equal(first["global_queue.pointer"], [8])  # 8 + 32, round a queue of 32
    assert [line["step"] for line in metrics(whole)] == [1, 2]
    for checkpoint in ("epoch_0001", "epoch_0002"):
        card = read_card(whole / "checkpoints" / checkpoint / "model.pdparams")
        assert card is not None
        assert [parent.file for parent in card.parents] == ["state.pdparams"]

    path = write_config(folders["resumed"], photos, **SETTINGS)
    shutil.copytree(whole, folders["resumed"] / "run")
    shutil.rmtree(folders["resumed"] / "run" / "checkpoints" / "epoch_0002")
    assert pretrain(in_this_process(path), load=load, resume="auto") == 0
    shutil.copy(whole / "checkpoints" / "epoch_0001" / "model.pdparams", tmp_path / "other.pdparams")
    with pytest.raises(InputError, match=r"load .*other\.pdparams.*started from state\.pdparams"):
        pretrain(in_this_process(path), load=str(tmp_path / "other.pdparams"), resume="auto")
    for file in ("model.pdparams", "optimizer.pdopt"):
        assert same(arrays(folders["resumed"] / "run", "epoch_0002", file), arrays(whole, "epoch_0002", file))
    assert metrics(folders["resumed"] / "run") == metrics(whole)
    card = read_card(folders["resumed"] / "run" / "checkpoints" / "epoch_0002" / "model.pdparams")
    assert card is not None
    assert [parent.file for parent in card.parents] == ["state.pdparams"]

    train(write_config(folders["shared"], photos, **SETTINGS, epochs=1), "--load", load, processes=2)
    ours = arrays(folders["shared"] / "run", "epoch_0001")
    for name, expected in first.items():
        np.testing.assert_allclose(ours[name], expected, atol=1e-5, rtol=1e-3, err_msg=name)
    losses = [line["loss"] for line in metrics(folders["shared"] / "run")]
    assert losses[0] == pytest.approx(metrics(whole)[0]["loss"], abs=1e-5)


def test_training_continued_from_a_state_starts_at_the_loss_where_that_state_ended(tmp_path, photos):
    """Real keys in the queues from the first step on: random weights are near chance, ln 17 = 2.8, at that point."""
    settings = {
        "batch_size": 8,
        "micro_batch_size": 8,
        "optimizer": {"lr": 0.03, "reference_batch_size": 8},
        "model__queue_len": 16,
    }
    for name in ("random", "continued"):
        (tmp_path / name).mkdir()
    pretrain(in_this_process(write_config(tmp_path / "random", photos, **settings)))
    state = tmp_path / "random" / "run" / "checkpoints" / "epoch_0002" / "model.pdparams"
    pretrain(in_this_process(write_config(tmp_path / "continued", photos, **settings, epochs=1)), load=str(state))
    losses = {name: [line["loss"] for line in metrics(tmp_path / name / "run")] for name in ("random", "continued")}
    first_with_real_keys, last = losses["random"][2], np.mean(losses["random"][-3:])
    assert last < 0.75 * first_with_real_keys
    assert losses["continued"][0] < (last + first_with_real_keys) / 2
    assert np.mean(losses["continued"]) < 1.1 * last
