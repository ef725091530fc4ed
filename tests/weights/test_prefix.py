"""A file with two backbones: whatever reads weights takes a prefix, and asks for it in its caller's words."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from passl_densecl import FeatureExtractor, get_model, linear_eval, pretrain
from passl_densecl.config import BackboneSpec
from passl_densecl.engine.start import load_backbones, load_classifier, load_pretrained
from passl_densecl.errors import InputError, option, options_of_commands
from passl_densecl.evaluation.features import load_backbone
from passl_densecl.export.network import read_network
from passl_densecl.integrations.paddleseg_backbone import DenseCLResNet
from passl_densecl.integrations.prepare import prepare
from passl_densecl.models import DenseCL
from passl_densecl.models.linear import LinearClassifier
from passl_densecl.visualize.maps import load_map
from passl_densecl.weights.convert import convert
from passl_densecl.weights.read import read_backbone, read_classifier, read_model
from passl_densecl.weights.recorded import BackboneOptions
from passl_densecl.weights.vocabulary import backbone_shapes
from passl_densecl.weights.writing import write_pickle

ANCHOR = "layer1.0.conv1.weight"
SPEC = BackboneSpec(18)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """Everything is 0.1 in the student and 0.2 in the teacher, each with a classifier of three classes."""
    path = tmp_path_factory.mktemp("two") / "two.pdparams"
    shapes = {f"backbone.{name}": shape for name, shape in backbone_shapes(18).items()}
    shapes |= {"fc.weight": (512, 3), "fc.bias": (3,)}
    values = {"student.": 0.1, "teacher.": 0.2}
    write_pickle(path, {f"{p}{n}": np.full(s, v, "f4") for p, v in values.items() for n, s in shapes.items()})
    return path


def first(layer: paddle.nn.Layer) -> np.ndarray:
    return dict(layer.named_parameters())[ANCHOR].numpy()


@cache
def built(classifier: bool) -> LinearClassifier | DenseCL:
    return LinearClassifier(SPEC, 3) if classifier else DenseCL(SPEC, queue_len=8)


def loaded(load: Callable[..., object], classifier: bool = False) -> Callable[[str, str | None], np.ndarray]:
    """What one of the engine's functions puts into a model."""

    def read(path: str, prefix: str | None) -> np.ndarray:
        model = built(classifier)
        load(model, path, SPEC, prefix)
        return first(model.backbone if isinstance(model, LinearClassifier) else model.query_encoder.backbone)

    return read


READERS: dict[str, Callable[[Any, Any, Path], np.ndarray]] = {
    "read_backbone": lambda file, prefix, _: read_backbone(file, prefix=prefix).backbone[ANCHOR],
    "read_model": lambda file, prefix, _: read_model(file, prefix=prefix)[f"backbone.{ANCHOR}"],
    "read_classifier": lambda file, prefix, _: read_classifier(file, prefix=prefix)[f"backbone.{ANCHOR}"],
    "evaluate": lambda file, prefix, _: first(load_backbone(file, BackboneOptions(prefix=prefix))),
    "visualize": lambda file, prefix, _: first(load_map(file, BackboneOptions(prefix=prefix))),  # type: ignore[arg-type]
    "export": lambda file, prefix, _: read_network(file, "backbone", options=BackboneOptions(prefix=prefix)).arrays[
        f"backbone.{ANCHOR}"
    ],
    "export a classifier": lambda file, prefix, _: read_network(
        file, "classifier", options=BackboneOptions(prefix=prefix)
    ).arrays[f"backbone.{ANCHOR}"],
    "get_model": lambda file, prefix, _: first(get_model(file, prefix=prefix).backbone),
    "FeatureExtractor": lambda file, prefix, _: first(FeatureExtractor(file, prefix=prefix).model.backbone),
    "pretrain": lambda file, prefix, _: loaded(load_backbones)(str(file), prefix),
    "linear_eval": lambda file, prefix, _: loaded(load_pretrained, classifier=True)(str(file), prefix),
    "linear_eval, load": lambda file, prefix, _: loaded(load_classifier, classifier=True)(str(file), prefix),
    "convert": lambda file, prefix, out: read_backbone(
        convert(file, out / "w.pth", "torchvision", prefix=prefix).output
    ).backbone[ANCHOR],
    "transfer": lambda file, prefix, out: read_backbone(
        prepare("detectron2", file, out, model="mask_rcnn", prefix=prefix).conversion.output
    ).backbone[ANCHOR],
    "PaddleSeg": lambda file, prefix, _: first(DenseCLResNet(18, pretrained=str(file), prefix=prefix)),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_prefix_chooses_the_backbone_wherever_weights_are_read(two, tmp_path, reader):
    assert (READERS[reader](two, "teacher.backbone", tmp_path) == np.float32(0.2)).all()
    with options_of_commands(), pytest.raises(InputError) as caught:
        READERS[reader](two, None, tmp_path)
    choices = "choose one by its prefix: --prefix student.backbone., --prefix teacher.backbone."
    assert str(caught.value) == f"{two}: the file holds 2 backbones; {choices}"


def test_a_prefix_without_a_file_of_several_backbones_is_refused(two):
    for function in (pretrain, linear_eval):
        assert "prefix" in inspect.signature(function).parameters
    with pytest.raises(InputError, match="random weights have no names: leave out prefix='teacher'"):
        load_backbone("random", BackboneOptions(18, prefix="teacher"))


def test_options_are_spelled_as_their_caller_writes_them():
    values = [("prefix", "a b."), ("images_per_gpu", 2), ("from_",), ("prefix", "")]
    assert [option(*value) for value in values] == ["prefix='a b.'", "images_per_gpu=2", "from_", "prefix=''"]
    with options_of_commands():
        spelled = [option(*value) for value in values]
    assert spelled == ["--prefix 'a b.'", "--images-per-gpu 2", "--from", "--prefix ''"]
