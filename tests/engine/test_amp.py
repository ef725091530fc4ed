"""Mixed precision: the network may be coarse, losses and weights stay float32; the scaler survives a resume."""

from __future__ import annotations

import math
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle.amp import grad_scaler

from passl_densecl.config import AmpConfig, PretrainConfig, load_config
from passl_densecl.engine.learner import Learner, amp_context, restore_scaler, scaler_state
from passl_densecl.engine.pretrain import build_model, pretrain
from passl_densecl.models.losses import match
from passl_densecl.reliability.checkpoint import Checkpoint
from tests.engine.runs import arrays, metrics, write_config

TINY = {"model__hidden_dim": 16, "model__out_dim": 8, "batch_size": 8, "epochs": 1, "device": "cpu"}


@pytest.fixture
def config(tmp_path, photos) -> PretrainConfig:
    config = load_config(write_config(tmp_path, photos, **TINY))
    assert isinstance(config, PretrainConfig)
    return config


def test_off_is_no_context():
    assert isinstance(amp_context(AmpConfig()), nullcontext)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_on_hands_the_precision_to_paddle(monkeypatch, dtype):
    asked = {}
    monkeypatch.setattr(paddle.amp, "auto_cast", lambda **options: asked.update(options) or nullcontext())
    with amp_context(AmpConfig(enabled=True, dtype=dtype)):
        pass
    assert asked == {"enable": True, "level": "O1", "dtype": dtype}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_coarse_projections_become_float32_unit_vectors(config, dtype):
    """What the network gives in mixed precision is normalized, averaged and compared in float32."""
    encoder = build_model(config, 24).query_encoder
    features = paddle.to_tensor(np.random.default_rng(0).random((2, 512, 2, 2), dtype=np.float32))
    fine = encoder.project(features)
    encoder.global_head = Coarse(encoder.global_head, dtype)
    encoder.dense_head = Coarse(encoder.dense_head, dtype)
    coarse = encoder.project(features)
    for name in ("global_vector", "dense", "dense_mean"):
        ours, expected = getattr(coarse, name), getattr(fine, name)
        assert ours.dtype == paddle.float32, name
        np.testing.assert_allclose(np.linalg.norm(ours.numpy(), axis=1), 1, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(ours.numpy(), expected.numpy(), atol=0.02, err_msg=name)
    assert not np.array_equal(coarse.global_vector.numpy(), fine.global_vector.numpy())
    half = features.astype(dtype).flatten(2)
    assert (match(half, half).numpy() == np.arange(4)).all()


class Coarse(paddle.nn.Layer):
    """A layer whose result has lower precision."""

    def __init__(self, layer: paddle.nn.Layer, dtype: str) -> None:
        super().__init__()
        self.layer, self.dtype_name = layer, dtype

    def forward(self, values: paddle.Tensor) -> paddle.Tensor:
        return self.layer(values).astype(self.dtype_name)


def test_a_run_that_asks_for_it_ends_with_finite_float32(tmp_path, photos):
    path = write_config(tmp_path, photos, **TINY, amp={"enabled": True, "dtype": "bfloat16"})
    assert pretrain(load_config(path, ["data.transforms.0.size=32"])) == 0
    lines = metrics(tmp_path / "run")
    assert len(lines) == 5
    assert all(math.isfinite(line[key]) for line in lines for key in ("loss", "global_loss", "dense_loss"))
    for name, value in arrays(tmp_path / "run", "epoch_0001").items():
        assert value.dtype == (np.int64 if name.endswith("pointer") else np.float32), name
        assert np.isfinite(value).all(), name
    warning = "warning  amp.enabled: Paddle has mixed precision on GPUs only; this run is in float32 throughout"
    assert warning in (tmp_path / "run" / "train.log").read_text()


@pytest.fixture
def scalers_of_a_gpu(monkeypatch):
    """Paddle builds a GradScaler without function on a CPU; its arithmetic works there nevertheless."""
    place = SimpleNamespace(is_gpu_place=lambda: True)
    monkeypatch.setattr(grad_scaler, "_dygraph_tracer", lambda: SimpleNamespace(_expected_place=place))


def grown_scaler(steps: int) -> paddle.amp.GradScaler:
    """A scaler after some steps, of which the third had a gradient that overflowed."""
    scaler = paddle.amp.GradScaler(
        enable=True, init_loss_scaling=1024.0, incr_every_n_steps=100, decr_every_n_nan_or_inf=1
    )
    weight = paddle.create_parameter([1], "float32")
    optimizer = paddle.optimizer.SGD(0.1, parameters=[weight])
    for step in range(steps):
        scaler.scale((weight * (math.inf if step == 2 else 1.0)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.clear_grad()
    return scaler


@pytest.mark.usefixtures("scalers_of_a_gpu")
def test_the_scaler_of_float16_comes_back(config, tmp_path):
    scaler = grown_scaler(8)
    saved = scaler_state(scaler)
    assert saved == {"scale": 512.0, "incr_count": 5, "decr_count": 0}
    fresh = paddle.amp.GradScaler(enable=True)
    assert scaler_state(fresh) != saved
    restore_scaler(fresh, saved)
    assert scaler_state(fresh) == saved
    assert float(fresh.scale(paddle.ones([]))) == 512.0


def test_a_scaler_that_is_off_has_no_state(config, tmp_path):
    assert scaler_state(paddle.amp.GradScaler(enable=False)) == {}
    model = build_model(config, 24)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    learner = Learner.build(model, config, Checkpoint(tmp_path, 8, state, {}, {"scaler": {}}))
    assert float(learner.scaler.scale(paddle.ones([]))) == 1.0
