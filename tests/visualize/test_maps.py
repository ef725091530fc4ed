"""Dense features come from the head of the encoder that was asked for."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from passl_densecl.config import BackboneSpec, HeadSpec
from passl_densecl.errors import InputError
from passl_densecl.evaluation.features import load_backbone
from passl_densecl.models import DenseCL, Encoder
from passl_densecl.visualize.maps import cells, load_map
from passl_densecl.weights.recorded import BackboneOptions
from passl_densecl.weights.writing import write_pickle


@pytest.fixture(scope="module")
def images() -> paddle.Tensor:
    return paddle.to_tensor(np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype("float32"))


def arrays_of(layer, prefix: str = "") -> dict[str, np.ndarray]:
    return {prefix + name: np.asarray(value) for name, value in layer.state_dict().items()}


def unit(features: paddle.Tensor) -> np.ndarray:
    values = features.flatten(2).numpy()
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.mark.parametrize("which", ["query", "key"])
def test_they_are_the_encoder_s_own(tmp_path, images, which):
    model = DenseCL(BackboneSpec(18), HeadSpec(hidden_dim=24, out_dim=12), queue_len=8, seed=1)
    for parameter in model.key_encoder.dense_head.parameters():
        parameter.set_value(parameter * 1.5 + 0.01)  # another one than the query's
    model.eval()
    path = tmp_path / "model.pdparams"
    write_pickle(path, arrays_of(model))
    encoder = model.query_encoder if which == "query" else model.key_encoder
    found = load_map(path, encoder=which, features="dense")(images)
    assert found.shape == [2, 12, 2, 2]
    np.testing.assert_allclose(unit(found), encoder(images).dense.numpy(), atol=1e-5)
    np.testing.assert_array_equal(load_map(path, encoder=which)(images).numpy(), encoder.backbone(images).numpy())


def test_a_passl_checkpoint_has_them_under_its_own_names(tmp_path, images):
    encoder = Encoder(BackboneSpec(18), HeadSpec(hidden_dim=24, out_dim=12), seed=2)
    encoder.eval()
    arrays = arrays_of(encoder.backbone, "encoder_q.0.") | arrays_of(encoder.backbone, "encoder_k.0.")
    arrays |= arrays_of(encoder.dense_head, "encoder_q.1.mlp2.")
    path = tmp_path / "passl.pdparams"
    write_pickle(path, arrays)
    np.testing.assert_allclose(unit(load_map(path, features="dense")(images)), encoder(images).dense.numpy(), atol=1e-5)


def test_random_ones_follow_the_seed(images):
    one, other = (
        load_map("random", BackboneOptions(18), seed=seed, features="dense")(images).numpy() for seed in (0, 1)
    )
    assert one.shape == (2, 128, 2, 2)
    assert not np.allclose(one, other)
    encoder = Encoder(BackboneSpec(18), seed=1)
    encoder.eval()
    unit_of = other.reshape(2, 128, 4) / np.linalg.norm(other.reshape(2, 128, 4), axis=1, keepdims=True)
    np.testing.assert_allclose(unit_of, encoder(images).dense.numpy(), atol=1e-5)


def test_weights_without_a_dense_head_are_refused(tmp_path):
    plain, moco = tmp_path / "plain.pdparams", tmp_path / "moco.pdparams"
    write_pickle(plain, arrays_of(load_backbone("random", BackboneOptions(18))))
    write_pickle(
        moco, arrays_of(DenseCL(BackboneSpec(18), HeadSpec(hidden_dim=8, out_dim=8, dense=False), queue_len=8))
    )
    with pytest.raises(InputError, match=r"plain\.pdparams: holds a backbone only.*use features='backbone'"):
        load_map(plain, features="dense")
    with pytest.raises(InputError, match=r"moco\.pdparams: has no dense head"):
        load_map(moco, features="dense")


def test_cells_are_rows_of_length_one():
    features = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32)
    found = cells(features)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(found[4], features[:, 1, 1] / np.linalg.norm(features[:, 1, 1]), rtol=1e-6)
