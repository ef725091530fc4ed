"""Backbones from files and folders, maps and pooled vectors."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest

from passl_densecl.cli.main import main
from passl_densecl.config import BackboneSpec, dump_config, load_config
from passl_densecl.data.datasets import scan_images
from passl_densecl.errors import InputError
from passl_densecl.evaluation.features import feature_map, load_backbone, pooled_features, stage_maps, untrained_like
from passl_densecl.models import build_backbone
from passl_densecl.transforms import CenterCrop
from passl_densecl.weights.card import run_card
from passl_densecl.weights.recorded import BackboneOptions
from passl_densecl.weights.writing import write_pickle

ROOT = Path(__file__).resolve().parents[2]
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def trained() -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in build_backbone(BackboneSpec(18), seed=7).state_dict().items()}


def in_a_run(folder: Path, trained: dict[str, np.ndarray], stem_stride: int) -> Path:
    checkpoint = folder / "checkpoints" / "epoch_0001"
    checkpoint.mkdir(parents=True)
    write_pickle(checkpoint / "model.pdparams", {f"backbone.{name}": value for name, value in trained.items()})
    config = load_config(ROOT / "configs/demo/densecl_r18.yaml", [f"model.stem_stride={stem_stride}"])
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    return checkpoint


def test_a_run_brings_its_stem_and_a_file_keeps_the_published_one(tmp_path, trained):
    checkpoint = in_a_run(tmp_path / "run", trained, stem_stride=2)
    for path in (tmp_path / "run", checkpoint, checkpoint / "model.pdparams"):
        assert feature_map(load_backbone(path), IMAGE).shape == (512, 4, 4)
    assert feature_map(load_backbone(checkpoint, BackboneOptions(stem_stride=4)), IMAGE).shape == (512, 2, 2)
    write_pickle(tmp_path / "w.pdparams", trained)
    assert feature_map(load_backbone(tmp_path / "w.pdparams"), IMAGE).shape == (512, 2, 2)


def test_a_file_with_a_card_brings_its_strides(tmp_path, trained):
    config = load_config(ROOT / "configs/demo/densecl_r18.yaml", ["model.stem_stride=4", "model.last_stride=1"])
    path = tmp_path / "epoch_0001.pdparams"  # in no run folder
    write_pickle(path, {f"backbone.{k}": v for k, v in trained.items()}, card=run_card(config, epoch=1, step=9))
    assert main(["extract", str(path), "--output", str(tmp_path / "w.pdparams"), "--remove_prefix"]) == 0
    for file in (path, tmp_path / "w.pdparams"):
        assert feature_map(load_backbone(file), IMAGE).shape == (512, 4, 4)
    assert feature_map(load_backbone(path, BackboneOptions(last_stride=2)), IMAGE).shape == (512, 2, 2)
    elsewhere = in_a_run(tmp_path / "run", trained, stem_stride=2)  # the file knows better than the folder it lies in
    path.replace(elsewhere / "model.pdparams")
    assert feature_map(load_backbone(elsewhere), IMAGE).shape == (512, 4, 4)


def test_weights_are_those_of_the_file_and_the_layer_is_in_eval_mode(tmp_path, trained):
    backbone = load_backbone(in_a_run(tmp_path, trained, stem_stride=4))
    assert not backbone.training
    for name, value in backbone.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), trained[name])
    assert not np.array_equal(
        load_backbone("random", BackboneOptions(18)).conv1.weight.numpy(), trained["conv1.weight"]
    )


def test_depth_is_asked_for_and_checked(tmp_path, trained):
    with pytest.raises(InputError, match="random weights need a depth"):
        load_backbone("random")
    write_pickle(tmp_path / "w.pdparams", trained)
    with pytest.raises(InputError, match="holds a ResNet-18, expected ResNet-50"):
        load_backbone(tmp_path / "w.pdparams", BackboneOptions(50))


def test_pooled_vectors_are_the_means_of_the_maps_in_order(tmp_path):
    for label, name in enumerate(["a", "b"]):
        (tmp_path / name).mkdir()
        for number in range(2 + label):
            image = np.random.default_rng([label, number]).integers(0, 256, (64, 64, 3)).astype(np.uint8)
            cv2.imwrite(str(tmp_path / name / f"{number}.png"), image)
    (tmp_path / "a" / "1.png").write_bytes(b"broken")
    images = scan_images(tmp_path, labeled=True)
    backbone = load_backbone("random", BackboneOptions(18))
    seen = []
    found = pooled_features(backbone, images, (CenterCrop(size=64),), 2, progress=lambda *counts: seen.append(counts))
    assert found.vectors.shape == (5, 512)
    assert found.vectors.dtype == np.float32
    assert found.bad == [1]
    assert found.labels.tolist() == [0, 1, 1, 1, 1]  # the broken one has its stand-in's label
    assert seen == [(2, 5), (4, 5), (5, 5)]
    third = np.random.default_rng([1, 0]).integers(0, 256, (64, 64, 3)).astype(np.uint8)[..., ::-1]
    np.testing.assert_allclose(found.vectors[2], feature_map(backbone, third).mean(axis=(1, 2)), rtol=1e-3, atol=1e-4)


def test_untrained_weights_are_those_that_training_starts_from(tmp_path, trained):
    """Statistics and biases of BatchNorm included, and with the strides of the trained one."""
    moved = {name: value + np.float32(0.1) for name, value in trained.items()}
    backbone = load_backbone(in_a_run(tmp_path, moved, stem_stride=2))
    fresh, expected = untrained_like(backbone, seed=3), build_backbone(BackboneSpec(18), seed=3).state_dict()
    for name, value in fresh.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), expected[name].numpy(), err_msg=name)
    assert feature_map(fresh, IMAGE).shape == (512, 4, 4)
    assert not fresh.training
    np.testing.assert_array_equal(backbone.bn1._mean.numpy(), moved["bn1._mean"])  # the trained one is left alone


def test_the_maps_of_the_stages_end_with_the_backbones():
    backbone = load_backbone("random", BackboneOptions(18))
    maps = stage_maps(backbone, paddle.to_tensor(IMAGE[None]))
    assert [tuple(one.shape[1:]) for one in maps] == [(64, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
    np.testing.assert_array_equal(maps[-1][0].numpy(), feature_map(backbone, IMAGE))


def test_shares_of_several_processes_are_the_whole(photos):
    images, backbone = scan_images(photos, labeled=True), load_backbone("random", BackboneOptions(18))
    whole = pooled_features(backbone, images, (CenterCrop(size=32),), 16)
    parts = [pooled_features(backbone, images, (CenterCrop(size=32),), 16, rank=r, world_size=3) for r in range(3)]
    np.testing.assert_array_equal(np.concatenate([part.labels for part in parts]), whole.labels)
    np.testing.assert_allclose(np.concatenate([part.vectors for part in parts]), whole.vectors, rtol=1e-4, atol=1e-5)
