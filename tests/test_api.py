"""The Python API: what a name gives, what goes in, and that what comes out is what the parts compute."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import paddle
import pytest

import passl_densecl
from passl_densecl import FeatureExtractor, ImageClassificationInferencer, get_model, inference_model, list_models
from passl_densecl.api import models
from passl_densecl.api.images import collect
from passl_densecl.cli.main import main
from passl_densecl.config import BackboneSpec, HeadSpec, dump_config, load_config
from passl_densecl.data.datasets import decode, scan_images
from passl_densecl.errors import InputError
from passl_densecl.evaluation.features import pooled_features
from passl_densecl.models import DenseCL, ResNetBackbone, build_backbone, normalize
from passl_densecl.models.linear import LinearClassifier
from passl_densecl.transforms import CenterCrop, Resize, apply
from passl_densecl.weights import hub
from passl_densecl.weights.convert import convert
from passl_densecl.weights.writing import write_pickle

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("docs/api.md", "docs/api_cn.md")
CLASSES = ["apple", "bee", "cat", "dog"]
VIEW = (Resize(size=73), CenterCrop(size=64))
SMALL = ["model.hidden_dim=16", "model.out_dim=8", "model.queue_len=32", "batch_size=16", "model.num_grid=2"]


def stirred(layer: paddle.nn.Layer, seed: int) -> dict[str, np.ndarray]:
    """The layer's state with every number changed, so that loading must be what brings it."""
    rng = np.random.default_rng(seed)
    state = {name: np.array(value.numpy()) for name, value in layer.state_dict().items()}
    return {
        name: value + 1 if value.dtype.kind == "i" else (value * rng.uniform(0.9, 1.1, value.shape)).astype("f4")
        for name, value in state.items()
    }


def write_run(folder: Path, arrays: dict[str, np.ndarray], config: Any, **state: Any) -> Path:
    checkpoint = folder / "checkpoints" / "epoch_0001"
    checkpoint.mkdir(parents=True)
    write_pickle(checkpoint / "model.pdparams", arrays)
    (checkpoint / "state.json").write_text(json.dumps({"step": 1, **state}))
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    return checkpoint


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory) -> SimpleNamespace:
    """A run folder of pre-training, with last_stride 1, 64 px and a grid of 2."""
    folder = tmp_path_factory.mktemp("pretraining") / "run"
    config = load_config(
        ROOT / "configs/small/densecl_r18.yaml", [*SMALL, f"output_dir={folder.parent}", f"name={folder.name}"]
    )
    model = DenseCL(BackboneSpec(18, last_stride=1), HeadSpec(hidden_dim=16, out_dim=8, num_grid=2), queue_len=32)
    arrays = stirred(model, 1)
    checkpoint = write_run(folder, arrays, config)
    return SimpleNamespace(folder=folder, checkpoint=checkpoint, arrays=arrays, config=config)


@pytest.fixture(scope="module")
def linear(tmp_path_factory) -> SimpleNamespace:
    """A run folder of linear evaluation, with last_stride 1, 64 px and four classes."""
    folder = tmp_path_factory.mktemp("linear") / "run"
    config = load_config(ROOT / "configs/small/linear_r18.yaml", [f"output_dir={folder.parent}", f"name={folder.name}"])
    arrays = stirred(LinearClassifier(BackboneSpec(18, last_stride=1), 4), 2)
    arrays["fc.weight"] *= 30  # so that scores differ
    checkpoint = write_run(folder, arrays, config, classes=CLASSES)
    return SimpleNamespace(folder=folder, checkpoint=checkpoint, arrays=arrays, config=config)


@pytest.fixture(scope="module")
def model(pretraining) -> Any:
    return get_model(pretraining.folder)


@pytest.fixture(scope="module")
def classifier(linear) -> Any:
    return get_model(linear.folder)


@pytest.fixture
def zoo(monkeypatch, pretraining) -> SimpleNamespace:
    """A zoo of two models instead of the published ones; what is asked of it is noted."""
    entries = {
        "densecl_r18_coco": SimpleNamespace(depth=18, kind="pretraining"),
        "densecl_r50_imagenet": SimpleNamespace(depth=50, kind="backbone"),
    }
    fake: Any = SimpleNamespace(asked=[])

    def named_file(name: str) -> Path | None:
        if name not in entries:
            return None
        fake.asked.append(name)
        return pretraining.checkpoint / "model.pdparams"

    fake.list_models = lambda pattern=None: [n for n in entries if pattern is None or pattern.strip("*") in n]
    fake.entry = entries.__getitem__
    monkeypatch.setattr(models, "zoo", fake)
    monkeypatch.setattr(hub, "named_file", named_file)
    return fake


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def same(layer: paddle.nn.Layer, arrays: dict[str, np.ndarray]) -> bool:
    state = {name: value.numpy() for name, value in layer.state_dict().items()}
    return state.keys() == arrays.keys() and all(np.array_equal(state[name], arrays[name]) for name in state)


# --- importing -----------------------------------------------------------------------------------------------------


def test_importing_the_package_imports_nothing_heavy():
    done = python(
        "import sys, passl_densecl\n"
        "assert 'get_model' in dir(passl_densecl)\n"
        "heavy = {'paddle', 'torch', 'cv2', 'numpy', 'pydantic', 'yaml', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "passl_densecl.load_config\n"
        "assert 'paddle' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr


def test_without_paddle_the_install_line_is_named():
    done = python("import sys; sys.modules['paddle'] = None; from passl_densecl import FeatureExtractor")
    assert "passl_densecl.FeatureExtractor needs PaddlePaddle, which is not installed: pip install" in done.stderr
    done = python(
        "import sys; sys.modules['paddle'] = None; from passl_densecl import load_config, InputError, list_models"
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there_and_no_other():
    for name in set(passl_densecl.__all__) - {"convert"}:
        assert getattr(passl_densecl, name).__module__ == passl_densecl._HOME[name]
    assert set(passl_densecl.__all__) == set(passl_densecl._HOME)
    with pytest.raises(AttributeError, match="no attribute 'get_modle'"):
        passl_densecl.get_modle  # noqa: B018


# --- get_model -----------------------------------------------------------------------------------------------------


def test_a_run_of_pretraining_is_the_whole_model(pretraining):
    for path in (pretraining.folder, str(pretraining.checkpoint / "model.pdparams")):
        model = get_model(path)
        assert isinstance(model, DenseCL)
        assert same(model, pretraining.arrays)
        assert not any(layer.training for layer in model.sublayers(include_self=True))
        assert (model.query_encoder.num_grid, model.temperature, model.momentum) == (2, 0.1, 0.99)  # the config's
        assert model.info.kind == "pre-training model"
        assert (model.info.depth, model.info.stem_stride, model.info.last_stride) == (18, 4, 1)
        assert model.info.transforms == VIEW
        assert model.info.classes is None


def test_a_bare_file_keeps_its_sizes_and_takes_the_stated_strides(pretraining, tmp_path):
    write_pickle(tmp_path / "w.pdparams", pretraining.arrays)
    published = get_model(tmp_path / "w.pdparams")
    assert (published.info.last_stride, published.info.transforms) == (2, (Resize(size=256), CenterCrop(size=224)))
    stated = get_model(tmp_path / "w.pdparams", last_stride=1)
    images = paddle.rand([1, 3, 64, 64])
    assert published.extract_feat(images)[0].shape == [1, 512, 2, 2]
    assert stated.extract_feat(images)[0].shape == [1, 512, 4, 4]
    assert same(stated, pretraining.arrays)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda a: a.pop("key_encoder.backbone.layer3.0.conv1.weight"),
            "behind 'key_encoder.backbone.': the names are closest to ResNet-18, but 1 missing: layer3.0",
        ),
        (lambda a: a.update({"key_encoder.global_head.0.weight": np.zeros((512, 9), "f4")}), "is [512, 9]"),
        (lambda a: a.pop("global_queue.keys"), "1 missing: global_queue.keys"),
        (lambda a: a.pop("dense_queue.pointer"), "1 missing: dense_queue.pointer"),
        (lambda a: a.pop("query_encoder.backbone.layer4.1.conv1.weight"), "1 missing"),
        (lambda a: a.update({"extra": np.zeros(1, "f4")}), "1 names left over: extra"),
    ],
)
def test_a_damaged_pretraining_model_is_refused(pretraining, tmp_path, damage, message):
    arrays = dict(pretraining.arrays)
    damage(arrays)
    write_pickle(tmp_path / "w.pdparams", arrays)
    with pytest.raises(InputError, match=re.escape(message)):
        get_model(tmp_path / "w.pdparams")


def test_a_file_that_is_cut_off_says_so(pretraining, linear, tmp_path):
    whole = (pretraining.checkpoint / "model.pdparams").read_bytes()
    (tmp_path / "w.pdparams").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="ends too early"):
        get_model(tmp_path / "w.pdparams")
    with pytest.raises(InputError, match="ends too early"):
        get_model(pretraining.config, pretrained=tmp_path / "w.pdparams")


def test_a_run_of_linear_evaluation_is_the_classifier_with_its_names(linear):
    for path in (linear.checkpoint, linear.checkpoint / "model.pdparams"):
        model = get_model(path)
        assert isinstance(model, LinearClassifier)
        assert same(model, linear.arrays)
        assert model.info.classes == tuple(CLASSES)
        assert (model.info.kind, model.info.transforms) == ("classifier", VIEW)


def test_class_names_come_from_the_caller_where_the_file_has_none(linear, tmp_path):
    write_pickle(tmp_path / "w.pdparams", linear.arrays)
    assert get_model(tmp_path / "w.pdparams").info.classes is None
    assert get_model(tmp_path / "w.pdparams", classes=list("abcd")).info.classes == tuple("abcd")
    with pytest.raises(InputError, match="a classifier of 4 classes, classes= says 3"):
        get_model(tmp_path / "w.pdparams", classes=["a", "b", "c"])
    with pytest.raises(InputError, match="expected a list of names"):
        get_model(tmp_path / "w.pdparams", classes="abcd")


def test_names_that_do_not_belong_to_the_classifier_are_an_error(linear, tmp_path):
    write_pickle(tmp_path / "model.pdparams", linear.arrays)
    (tmp_path / "state.json").write_text('{"classes": ["a", "b"]}')
    with pytest.raises(InputError, match="4 classes, but 2 class names are recorded"):
        get_model(tmp_path)


def test_other_files_give_their_resnet(pretraining, tmp_path):
    arrays = stirred(build_backbone(BackboneSpec(18)), 3)
    write_pickle(tmp_path / "plain.pdparams", arrays)
    convert(tmp_path / "plain.pdparams", tmp_path / "w.pkl", "detectron2")
    convert(tmp_path / "plain.pdparams", tmp_path / "w.pth", "torchvision")
    for name in ("plain.pdparams", "w.pkl", "w.pth"):
        model = get_model(tmp_path / name)
        assert isinstance(model, ResNetBackbone)
        assert isinstance(model, paddle.vision.models.ResNet)
        assert same(model, arrays)
        assert (model.info.kind, model.info.depth) == ("backbone", 18)
    with pytest.raises(InputError, match="expected ResNet-50"):
        get_model(tmp_path / "plain.pdparams", depth=50)
    write_pickle(tmp_path / "no.pdparams", {"a": np.zeros(1)})
    with pytest.raises(InputError, match="no ResNet backbone"):
        get_model(tmp_path / "no.pdparams")


def test_foreign_states_and_classifiers_are_recognized(pretraining, linear, tmp_path):
    """Converted files hold the same; their card still records strides, sizes and classes."""
    convert(pretraining.checkpoint, tmp_path / "state.pth", "mmpretrain-state")
    model = get_model(tmp_path / "state.pth")
    assert (model.info.kind, model.info.last_stride) == ("pre-training model", 1)
    assert same(model, pretraining.arrays)
    assert model.query_encoder.num_grid == pretraining.config.model.num_grid
    convert(linear.checkpoint, tmp_path / "linear.pth", "mmpretrain")
    classifier = get_model(tmp_path / "linear.pth")
    assert same(classifier, linear.arrays)
    assert classifier.info.transforms == get_model(linear.folder).info.transforms
    assert classifier.info.classes == tuple(CLASSES)


def test_a_resnet_with_its_layer_is_a_classifier(tmp_path):
    whole = paddle.vision.models.resnet18(num_classes=7)
    arrays = stirred(whole, 4)
    write_pickle(tmp_path / "resnet18.pdparams", arrays)
    model = get_model(tmp_path / "resnet18.pdparams")
    assert isinstance(model, LinearClassifier)
    whole.set_state_dict(arrays)
    whole.eval()
    pixels = paddle.to_tensor(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8))
    with paddle.no_grad():
        np.testing.assert_allclose(model(pixels).numpy(), whole(normalize(pixels)).numpy(), rtol=1e-4, atol=1e-4)


def test_a_config_gives_its_model(pretraining, linear):
    path = pretraining.folder / "config.yaml"
    untrained = get_model(path)
    reference = DenseCL(BackboneSpec(18, last_stride=1), HeadSpec(hidden_dim=16, out_dim=8, num_grid=2), queue_len=32)
    assert same(untrained, {name: value.numpy() for name, value in reference.state_dict().items()})
    assert "untrained" in untrained.info.source
    assert same(get_model(path, pretrained=True), pretraining.arrays)
    assert same(get_model(pretraining.config, pretrained=pretraining.checkpoint), pretraining.arrays)
    assert same(get_model(linear.folder / "config.yaml", pretrained=True), linear.arrays)
    assert get_model(linear.config, pretrained=True).info.classes == tuple(CLASSES)
    assert get_model(linear.config, classes=3).fc.weight.shape == [512, 3]


def test_the_length_of_an_automatic_queue_is_the_checkpoints(pretraining):
    config = load_config(pretraining.folder / "config.yaml", ["model.queue_len=auto"])
    assert get_model(config, pretrained=pretraining.folder).global_queue.length == 32


def test_a_config_and_weights_that_do_not_belong_together(pretraining, linear, tmp_path):
    config = load_config(pretraining.folder / "config.yaml", [f"output_dir={tmp_path}", "name=never"])
    with pytest.raises(InputError, match="was not run yet"):
        get_model(config, pretrained=True)
    with pytest.raises(InputError, match="do not fit DenseCL"):
        get_model(pretraining.config, pretrained=linear.folder)
    with pytest.raises(InputError, match="holds no classifier"):
        get_model(linear.config, pretrained=pretraining.folder)
    with pytest.raises(InputError, match=r"says model\.last_stride 1"):
        get_model(pretraining.config, last_stride=2)
    with pytest.raises(InputError, match=r"how many classes\?.*no folder.*or pass classes="):
        get_model(load_config(linear.folder / "config.yaml", [f"data.train.root={tmp_path}/gone"]))
    with pytest.raises(InputError, match="is a file of weights itself"):
        get_model(linear.folder, pretrained=pretraining.folder)


def test_random_is_the_seeded_backbone():
    model = get_model("random", depth=18, seed=3)
    assert same(
        model, {name: value.numpy() for name, value in build_backbone(BackboneSpec(18), seed=3).state_dict().items()}
    )
    with pytest.raises(InputError, match="need a depth"):
        get_model("random")


@pytest.mark.parametrize(
    "wrong", [{"depth": 20}, {"stem_stride": 3}, {"last_stride": 4}, {"device": "tpu"}, {"device": "cpu:x"}]
)
def test_wrong_settings_are_named(wrong):
    (key, value) = next(iter(wrong.items()))
    with pytest.raises(InputError, match=f"{key} '?{value}'?: expected"):
        get_model("random", **{"depth": 18, **wrong})


def test_a_gpu_that_is_not_there(monkeypatch):
    if paddle.device.is_compiled_with_cuda():
        pytest.skip("this Paddle may have one")
    with pytest.raises(InputError, match="expected a GPU"):
        get_model("random", depth=18, device="gpu:1")
    assert get_model("random", depth=18, device="cpu").conv1.weight.place.is_cpu_place()


def test_a_published_name_is_downloaded_and_loaded(zoo, pretraining):
    assert list_models("*coco*") == ["densecl_r18_coco"]
    assert zoo.asked == []
    model = get_model("densecl_r18_coco", pretrained=True)
    assert same(model, pretraining.arrays)
    assert zoo.asked == ["densecl_r18_coco"]
    untrained = get_model("densecl_r18_coco")
    assert isinstance(untrained, ResNetBackbone)
    assert "untrained" in untrained.info.source
    with pytest.raises(InputError, match="holds a ResNet-18, densecl_r50_imagenet is a ResNet-50"):
        get_model("densecl_r50_imagenet", pretrained=pretraining.folder)
    assert len(zoo.asked) == 1


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("densecl_r18_coko", "did you mean 'densecl_r18_coco'"),
        ("densecl_r101", "configs/densecl/densecl_r101.yaml"),
        ("configs/moco/moco_clas_r5.yaml", "configs/moco/moco_clas_r50.yaml"),
        ("{folder}/checkpoint", "{folder}/checkpoints"),
        ("zzz", "list_models() gives the names"),
    ],
)
def test_an_unknown_name_gets_the_closest(zoo, pretraining, name, suggested):
    name, suggested = (text.format(folder=pretraining.folder) for text in (name, suggested))
    with pytest.raises(InputError, match="no model, config or file of weights called") as caught:
        get_model(name)
    assert suggested in str(caught.value)


# --- extract_feat --------------------------------------------------------------------------------------------------


def test_maps_of_every_stage(model, classifier):
    images = paddle.rand([2, 3, 64, 64])
    for one, backbone in ((model, model.query_encoder.backbone), (classifier, classifier.backbone)):
        with paddle.no_grad():
            (last,) = one.extract_feat(images)
            maps = one.extract_feat(images, out_indices=(3, 0, 1, 2))
            np.testing.assert_array_equal(last.numpy(), backbone(images).numpy())
            np.testing.assert_array_equal(maps[-1].numpy(), last.numpy())
            inner = backbone.layer2(maps[0])
        assert [tuple(one.shape[1:]) for one in maps] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 4, 4)]
        np.testing.assert_array_equal(maps[1].numpy(), inner.numpy())
    for wrong in ((), (4,), (-1,)):
        with pytest.raises(InputError, match="out_indices"):
            model.extract_feat(images, wrong)


def test_gradients_pass_through_extract_feat(tmp_path):
    backbone = get_model("random", depth=18)
    backbone.extract_feat(paddle.rand([1, 3, 64, 64]))[0].sum().backward()
    assert float(backbone.conv1.weight.grad.abs().sum()) > 0


# --- classes -------------------------------------------------------------------------------------------------------


def images_of(photos: Path) -> list[str]:
    return sorted(str(path) for path in photos.rglob("*.png"))[:5]


def test_a_result_is_the_classifiers_softmax(classifier, photos):
    path = images_of(photos)[0]
    result = inference_model(classifier, path)
    pixels = apply(VIEW, decode(path), np.random.default_rng(0))
    with paddle.no_grad():
        logits = classifier(paddle.to_tensor(pixels[None])).numpy()[0].astype("f8")
    scores = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert set(result) == {"pred_label", "pred_score", "pred_class", "pred_scores"}
    assert [type(result[key]) for key in ("pred_label", "pred_score", "pred_class")] == [int, float, str]
    assert (result["pred_scores"].shape, result["pred_scores"].dtype) == ((4,), np.float32)
    np.testing.assert_allclose(result["pred_scores"], scores, rtol=1e-4, atol=1e-6)
    assert result["pred_label"] == scores.argmax()
    assert result["pred_class"] == CLASSES[result["pred_label"]]
    assert result["pred_score"] == result["pred_scores"].max()
    assert result["pred_scores"].max() - result["pred_scores"].min() > 0.01  # a constant would pass most of the above


def test_many_images_in_their_order_whatever_the_batch(classifier, photos, linear):
    paths = images_of(photos)
    single = np.stack([inference_model(classifier, path)["pred_scores"] for path in paths])
    assert np.abs(single[0] - single[1]).max() > 1e-4
    inferencer = ImageClassificationInferencer(linear.folder)
    for batch_size in (1, 2, 5, 64):
        results = inferencer(paths, batch_size=batch_size)
        np.testing.assert_allclose([one["pred_scores"] for one in results], single, rtol=1e-4, atol=1e-6)
    assert len(inferencer(photos)) == 40
    with pytest.raises(InputError, match="batch_size 0"):
        inferencer(paths, batch_size=0)


def test_names_are_left_out_where_nobody_knows_them(linear, photos, tmp_path):
    write_pickle(tmp_path / "w.pdparams", linear.arrays)
    result = inference_model(get_model(tmp_path / "w.pdparams", last_stride=1), images_of(photos)[0], size=64)
    assert set(result) == {"pred_label", "pred_score", "pred_scores"}
    named = ImageClassificationInferencer(tmp_path / "w.pdparams", classes=list("wxyz"), size=64)
    assert named(images_of(photos)[0])[0]["pred_class"] in "wxyz"
    with pytest.raises(InputError, match="expected a list of 4 names, got 3"):
        ImageClassificationInferencer(tmp_path / "w.pdparams", classes=["a", "b", "c"])


def test_what_is_no_classifier_says_what_to_do(model, classifier, photos):
    with pytest.raises(InputError, match="has no classifier: train one"):
        inference_model(model, images_of(photos)[0])
    for several in (images_of(photos), photos, np.zeros((2, 8, 8, 3), np.uint8)):
        with pytest.raises(InputError, match="ImageClassificationInferencer"):
            inference_model(classifier, several)


# --- features ------------------------------------------------------------------------------------------------------


def test_features_are_what_the_parts_compute(model, photos):
    paths = images_of(photos)
    extract = FeatureExtractor(model)
    pixels = np.stack([apply(VIEW, decode(path), np.random.default_rng(0)) for path in paths])
    for name, encoder in (("query", model.query_encoder), ("key", model.key_encoder)):
        with paddle.no_grad():
            maps = encoder.backbone(normalize(paddle.to_tensor(pixels)))
            expected = encoder.project(maps)
        found = {stage: extract(paths, stage, encoder=name) for stage in ("backbone", "pooled", "global", "dense")}
        np.testing.assert_allclose(found["backbone"], maps.numpy(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found["pooled"], maps.numpy().mean(axis=(2, 3)), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found["global"], expected.global_vector.numpy(), rtol=1e-5, atol=1e-5)
        assert found["dense"].shape == (5, 8, 2, 2)  # the grid of the neck, not the map's 4×4
        for row in range(2):
            for column in range(2):
                cell = expected.dense.numpy()[:, :, 2 * row + column]
                np.testing.assert_allclose(found["dense"][:, :, row, column], cell, rtol=1e-5, atol=1e-5)
        for stage in ("global", "dense"):
            np.testing.assert_allclose(np.linalg.norm(found[stage], axis=1), 1, rtol=1e-5)
        assert all(array.dtype == np.float32 for array in found.values())
    assert np.abs(extract(paths, "global") - extract(paths, "global", encoder="key")).max() > 1e-3
    np.testing.assert_array_equal(extract(paths[0]), extract([paths[0]]))


def test_pooled_features_are_those_of_the_nearest_neighbors(model, photos):
    reference = pooled_features(model.query_encoder.backbone, scan_images(photos), VIEW, 16)
    extract = FeatureExtractor(model)
    np.testing.assert_array_equal(extract(photos, batch_size=16), reference.vectors)
    np.testing.assert_array_equal(extract(photos, batch_size=16, num_workers=2), reference.vectors)
    assert not np.allclose(FeatureExtractor(model, size=48)(photos, batch_size=16), reference.vectors, atol=1e-3)


def test_the_map_has_its_own_size_without_a_grid(pretraining, photos):
    config = load_config(pretraining.folder / "config.yaml", ["model.num_grid=null"])
    model = get_model(config, pretrained=pretraining.folder)
    assert FeatureExtractor(model)(images_of(photos)[0], "dense").shape == (1, 8, 4, 4)
    assert FeatureExtractor(model)(images_of(photos)[0], "backbone").shape == (1, 512, 4, 4)


def test_what_the_weights_do_not_have_is_refused(model, classifier, pretraining, photos, tmp_path):
    path = images_of(photos)[0]
    backbone = get_model("random", depth=18)
    for one in (classifier, backbone):
        assert FeatureExtractor(one, size=64)(path).shape == (1, 512)
        for stage in ("global", "dense"):
            with pytest.raises(InputError, match="these weights have no projection head"):
                FeatureExtractor(one)(path, stage)
        with pytest.raises(InputError, match="one backbone only"):
            FeatureExtractor(one)(path, encoder="key")
    moco = {name: value for name, value in pretraining.arrays.items() if "dense" not in name}
    write_pickle(tmp_path / "moco.pdparams", moco)
    moco_v2 = get_model(tmp_path / "moco.pdparams", last_stride=1)
    assert FeatureExtractor(moco_v2, size=64)(path, "global").shape == (1, 8)
    with pytest.raises(InputError, match="trained without a dense branch"):
        FeatureExtractor(moco_v2)(path, "dense")
    with pytest.raises(InputError, match="expected one of backbone, pooled, global, dense; did you mean 'pooled'"):
        FeatureExtractor(model)(path, "pool")
    with pytest.raises(InputError, match="this ResNet does not return a map"):
        FeatureExtractor(paddle.vision.models.resnet18())(path)
    plain = paddle.vision.models.resnet18(num_classes=0, with_pool=False)
    assert FeatureExtractor(plain, size=64)(path, "backbone").shape == (1, 512, 2, 2)
    with pytest.raises(InputError, match="expected 'query' or 'key'"):
        FeatureExtractor(model)(path, encoder="keys")
    with pytest.raises(InputError, match="size 4"):
        FeatureExtractor(model, size=4)


def test_looking_does_not_move_a_model_in_training(pretraining, photos):
    model = get_model(pretraining.folder)
    expected = FeatureExtractor(model)(images_of(photos))
    model.train()
    model.key_encoder.eval()
    before = {id(layer): layer.training for layer in model.sublayers(include_self=True)}
    np.testing.assert_array_equal(FeatureExtractor(model)(images_of(photos)), expected)
    assert same(model, pretraining.arrays)
    assert {id(layer): layer.training for layer in model.sublayers(include_self=True)} == before


def test_a_bar_is_shown_for_many_images_on_a_terminal(model, photos, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("passl_densecl.api.inference.MANY", 3)
    for images, shown in ((images_of(photos), True), (images_of(photos)[:2], False)):
        monkeypatch.setattr(sys, "stderr", Terminal())
        FeatureExtractor(model)(images)
        assert ("features" in sys.stderr.getvalue()) is shown  # type: ignore[attr-defined]


# --- images --------------------------------------------------------------------------------------------------------


def pixels_of(one: Any) -> np.ndarray:
    return collect(one).pixels(0)


def test_one_image_in_many_clothes(photos, tmp_path):
    from PIL import Image

    path = Path(images_of(photos)[0])
    pixels = decode(str(path))
    alpha = np.dstack([pixels, np.zeros(pixels.shape[:2], np.uint8)])
    with Image.open(path) as image:
        same_pixels = [str(path), path, pixels, alpha, image, Image.fromarray(pixels), Image.fromarray(alpha, "RGBA")]
        for one in same_pixels:
            np.testing.assert_array_equal(pixels_of(one), pixels)
    assert not np.array_equal(pixels_of(pixels[..., ::-1]), pixels)
    gray = pixels[..., 0]
    for one in (
        gray,
        gray[..., None],
        np.dstack([gray, gray]),
        Image.fromarray(gray),
        Image.fromarray(gray).convert("LA"),
    ):
        np.testing.assert_array_equal(pixels_of(one), np.dstack([gray] * 3))
    assert len(collect(np.stack([pixels, pixels]))) == 2
    assert (collect(path).single, collect([path]).single) == (True, False)


def test_a_pillow_image_is_seen_as_the_file_it_came_from(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    turned = Image.fromarray(rng.integers(0, 256, (8, 12, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.resize((48, 32)).save(tmp_path / "turned.jpg", exif=exif, quality=100, subsampling=0)
    cv2.imwrite(str(tmp_path / "deep.png"), rng.integers(0, 2**16, (8, 12)).astype(np.uint16))
    for name in ("turned.jpg", "deep.png"):
        with Image.open(tmp_path / name) as image:
            from_file = decode(str(tmp_path / name))
            assert pixels_of(image).shape == from_file.shape  # 48×32 for the turned one
            np.testing.assert_allclose(pixels_of(image).astype(int), from_file.astype(int), atol=2)
    assert from_file.std() > 20


def test_sixteen_bits_are_read_as_in_the_run_of_the_weights(pretraining, tmp_path, capsys):
    """12 bits in 16: the upper 8 would be nearly black. In Python and in a command, from the weights' own record."""
    deep = np.random.default_rng(0).integers(0, 4096, (80, 80, 3)).astype(np.uint16)
    (tmp_path / "photos").mkdir()
    path = tmp_path / "photos" / "deep.png"
    cv2.imwrite(str(path), deep)
    config = load_config(pretraining.folder / "config.yaml", ["data.sixteen_bit=stretch"])
    stretch = write_run(tmp_path / "run", pretraining.arrays, config)
    extractor = FeatureExtractor(stretch)
    assert extractor.model.info.sixteen_bit == "stretch"
    expected = extractor(decode(str(path), "stretch"))
    for given in (path, [path], path.parent):
        assert np.array_equal(extractor(given), expected)
    assert not np.allclose(FeatureExtractor(pretraining.checkpoint)(path), expected)

    output = tmp_path / "vectors.npz"
    assert main(["embed", str(stretch), str(path.parent), "--output", str(output), "--workers", "0"]) == 0
    assert np.allclose(np.load(output)["features"], expected, atol=1e-6)
    both = ["eval", "correspondence", str(stretch), str(pretraining.folder), "--images", str(path.parent)]
    assert main(both) == 2
    assert "read 16-bit images differently" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((8, 8, 3)), "an array of float64 (8×8×3): expected uint8, 0 to 255; its values are from 0 to 0"),
        (np.zeros((8, 8, 3), np.uint16), "(x >> 8).astype(np.uint8)"),
        (np.zeros((8, 8, 3), bool), "expected uint8"),
        (np.zeros((3, 8, 8), np.uint8), "channels come last: x.transpose(1, 2, 0)"),
        (np.zeros((8, 8, 5), np.uint8), "an array of shape 8×8×5"),
        (np.zeros((0, 8, 3), np.uint8), "an array of shape 0×8×3"),
        (np.zeros(8, np.uint8), "an array of shape 8"),
        (np.uint8(3), "expected a path, a Pillow image or a uint8 array"),
        ([], "an empty list"),
        (None, "got builtins.NoneType"),
        (42, "got builtins.int"),
        (iter([]), "convert a generator with list(…)"),
        (paddle.zeros([2]), "convert a tensor to an array"),
        ("https://example.org/a.jpg", "download the image"),
        ([np.zeros((8, 8, 3), np.uint8), 3], "image 1 of the list: expected a path"),
        ([np.zeros((8, 8, 3), np.uint8), "gone.png"], "image 1 of the list: no file or folder 'gone.png'"),
        (["."], "image 0 of the list: . is a folder; pass it alone"),
    ],
)
def test_what_is_no_image_is_named(given, message):
    with pytest.raises(InputError, match=re.escape(message)):
        collect(given)


def test_a_wrong_path_gets_the_closest_and_a_bad_file_is_named(model, photos, tmp_path):
    path = images_of(photos)[0]
    with pytest.raises(InputError, match=r"did you mean '00\.png'"):
        FeatureExtractor(model)(path.replace("00.png", "00.pgn"))
    (tmp_path / "bad.png").write_bytes(b"broken")
    for inputs in ([path, str(tmp_path / "bad.png")], tmp_path):
        with pytest.raises(InputError, match=r"bad\.png: damaged"):
            FeatureExtractor(model)(inputs)


# --- the page ------------------------------------------------------------------------------------------------------


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_both_pages_hold_the_same_code():
    english, chinese = ([re.sub(r" *#.*", "", code) for code in blocks(page, "python")] for page in PAGES)
    assert len(english) >= 3
    assert english == chinese
    for language in ("bash", "text"):
        assert blocks(PAGES[0], language) == blocks(PAGES[1], language)


def test_the_quick_start_runs_and_prints_what_the_page_says(photos, tmp_path, monkeypatch, capsys):
    """The first block, in a folder with the runs that it names; weights and images are others than the page's."""
    code, shown = blocks(PAGES[0], "python")[0], blocks(PAGES[0], "text")[0]
    assert len([line for line in code.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    model = DenseCL(BackboneSpec(18, last_stride=1), HeadSpec(hidden_dim=512), queue_len=512)
    config = load_config(ROOT / "configs/small/densecl_r18.yaml")
    write_run(tmp_path / "output/small_densecl_r18", stirred(model, 1), config)
    config = load_config(ROOT / "configs/small/linear_r18.yaml")
    arrays = stirred(LinearClassifier(BackboneSpec(18, last_stride=1), 4), 2)
    write_run(tmp_path / "output/small_linear_r18", arrays, config, classes=CLASSES)
    (tmp_path / "photos").mkdir()
    for number, path in enumerate(images_of(photos)):
        (tmp_path / "photos" / f"{number}.png").write_bytes(Path(path).read_bytes())
    cv2.imwrite("photo.jpg", cv2.imread(images_of(photos)[0]))
    exec(compile(code, PAGES[0], "exec"), {})
    printed, expected = capsys.readouterr().out.splitlines(), shown.splitlines()
    assert len(printed) == len(expected)
    for line, example in zip(printed, expected, strict=True):
        if example.startswith("n01440764"):
            name, score = line.split()
            assert name in CLASSES
            assert 0.25 <= float(score) <= 1  # the highest of four
        else:
            assert line == example.replace("72", "5")


def test_the_other_blocks_of_the_page_run(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for code in blocks(PAGES[0], "python")[1:]:
        exec(compile(code, PAGES[0], "exec"), {})
    assert capsys.readouterr().out.splitlines() == ["pre-training model 18", "[64, 128, 256, 512]"]
