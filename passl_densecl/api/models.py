"""Models by name, by config or from any file of weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from passl_densecl.api.info import Kind, ModelInfo, reading_of
from passl_densecl.config import (
    DEPTHS,
    QUEUE_LEN_MAX,
    RANDOM,
    BackboneSpec,
    Config,
    HeadSpec,
    LinearConfig,
    PretrainConfig,
    load_config,
)
from passl_densecl.errors import InputError
from passl_densecl.text import closest
from passl_densecl.weights import zoo
from passl_densecl.weights.files import weights_file
from passl_densecl.weights.hub import PREFIX
from passl_densecl.weights.load import load_strict
from passl_densecl.weights.names import depth_of
from passl_densecl.weights.read import read_model
from passl_densecl.weights.recorded import BackboneOptions, recorded_backbone, recorded_classes, recorded_config

if TYPE_CHECKING:
    from passl_densecl.models import DenseCL, ResNetBackbone
    from passl_densecl.models.linear import LinearClassifier

    Model = DenseCL | LinearClassifier | ResNetBackbone

Arrays = Mapping[str, np.ndarray]
QUERY = "query_encoder."
ANCHOR = "layer1.0.conv1.weight"  # every ResNet has it
YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class _Stated:
    """The caller's statements about the model; None: as recorded with the weights."""

    backbone: BackboneOptions
    classes: tuple[str, ...] | int | None
    seed: int


def list_models(pattern: str | None = None) -> list[str]:
    """Names of published models that `get_model` downloads; with `pattern` ("*coco*") those that match it."""
    return zoo.list_models(pattern)


def get_model(
    model: str | os.PathLike[str] | Config,
    pretrained: bool | str | os.PathLike[str] = False,
    device: str | None = None,
    *,
    depth: int | None = None,
    stem_stride: Literal[4, 2, 1] | None = None,
    last_stride: Literal[2, 1] | None = None,
    prefix: str | None = None,
    classes: Sequence[str] | int | None = None,
    seed: int = 0,
) -> Model:
    """A model in eval mode, with its facts in ``model.info`` (`ModelInfo`).

    Args:
        model: determines the type of the result; a path that exists takes precedence over a name.

            - checkpoint, run folder or file of pre-training: ``DenseCL`` with both encoders, heads and queues
            - the same of linear evaluation, or any ResNet with ``fc``: ``LinearClassifier``
            - another file with a ResNet (extracted, PASSL's, …): a ``paddle.vision`` ResNet without pooling and ``fc``
            - YAML file, or result of ``load_config``: the model of the config
            - name of `list_models`: the model in the published file
            - ``hf:OWNER/NAME[/FILE][@REVISION]``: the model in a repository of the Hugging Face Hub, by its file
            - "random": an untrained ResNet of `depth`, initialized with `seed`
        pretrained: of a config: False leaves the model untrained (initialized with the config's seed), True loads the
            newest checkpoint of its run, a path loads that checkpoint, which must fit exactly. Of a name: True
            downloads its weights once, a path loads those instead, False gives an untrained ResNet of its depth.
            Not used with a file of weights.
        device: "cpu", "gpu" or "gpu:1", for the whole process. None: Paddle's current device.
        depth: of "random"; for weights it must agree with them.
        stem_stride, last_stride: of weights without a recorded config. 4 and 2 by default.
        prefix: what stands before the names of one backbone, of a file with several; "teacher." for example.
        classes: class names of a classifier whose file has none, or (config only) their number.

    Raises:
        InputError: unknown name, or files that do not fit; names them and what to do.
    """
    _choose_device(device)
    stated = _checked(BackboneOptions(depth, stem_stride, last_stride, prefix), classes, seed)
    if isinstance(model, PretrainConfig | LinearConfig):
        built = _of_config(model, f"config {model.name!r}", pretrained, stated)
    elif not isinstance(model, str | os.PathLike):
        raise InputError(f"expected a name, a path or a config, got {type(model).__name__}")
    elif os.fspath(model) == RANDOM:
        built = _untrained(depth, f"random weights (seed {seed})", stated)
    elif os.path.exists(model) and os.fspath(model).lower().endswith(YAML) and not os.path.isdir(model):
        built = _of_config(load_config(Path(model)), os.fspath(model), pretrained, stated)
    elif os.path.exists(model) or os.fspath(model).startswith(PREFIX):
        if not isinstance(pretrained, bool):
            other = os.fspath(pretrained)
            raise InputError(f"{model} is a file of weights itself; pass either it or pretrained={other!r}")
        built = _of_weights(weights_file(model), stated)
    else:
        built = _of_name(os.fspath(model), pretrained, stated)
    built.eval()
    return built


# --- by name or config ---------------------------------------------------------------------------------------------


def _of_name(name: str, pretrained: bool | str | os.PathLike[str], stated: _Stated) -> Model:
    if name not in list_models():
        raise InputError(_unknown(name))
    depth = zoo.entry(name).depth
    if pretrained is False:
        return _untrained(depth, f"{name}, untrained", stated)
    file = weights_file(name if pretrained is True else pretrained)
    built = _of_weights(file, stated)
    if built.info.depth != depth:
        raise InputError(f"{file} holds a ResNet-{built.info.depth}, {name} is a ResNet-{depth}")
    return built


def _of_config(config: Config, source: str, pretrained: bool | str | os.PathLike[str], stated: _Stated) -> Model:
    """The model of a config, untrained or with a checkpoint that fits it."""
    model = config.model
    for key in ("depth", "stem_stride", "last_stride"):
        if getattr(stated.backbone, key) not in (None, getattr(model, key)):
            raise InputError(f"{source} says model.{key} {getattr(model, key)}; omit {key}, or change the config")
    file: Path | None = None
    arrays: Arrays = {}
    if pretrained is not False:
        if pretrained is True and not config.run_dir.is_dir():
            raise InputError(f"{source} was not run yet: no folder {config.run_dir}; pass pretrained=CHECKPOINT")
        file = weights_file(config.run_dir if pretrained is True else pretrained)
        arrays = read_model(file, prefix=stated.backbone.prefix)
    classes = None
    if isinstance(config, PretrainConfig):
        from passl_densecl.engine.pretrain import build_model

        auto = len(arrays.get("global_queue.keys", ())) or QUEUE_LEN_MAX
        built = build_model(config, auto if config.model.queue_len == "auto" else config.model.queue_len)
    else:
        from passl_densecl.models.linear import LinearClassifier

        count, classes = _class_names(config, arrays, file, stated)
        built = LinearClassifier(model.backbone, count, config.seed)
    if file is not None:
        load_strict(built, arrays, source=file)
    kind: Kind = "classifier" if isinstance(config, LinearConfig) else "pre-training model"
    origin = str(file or f"{source}, untrained")
    return _with_info(built, ModelInfo(kind, origin, model.backbone, **reading_of(config), classes=classes))


def _untrained(depth: int | None, source: str, stated: _Stated) -> Model:
    from passl_densecl.evaluation.features import load_backbone

    options = stated.backbone
    if options.depth not in (None, depth):
        raise InputError(f"{source}: a ResNet-{depth}, not a ResNet-{options.depth}: omit the depth")
    backbone = load_backbone(RANDOM, replace(options, depth=depth), seed=stated.seed)
    assert depth is not None  # or load_backbone would have raised
    return _with_info(backbone, ModelInfo("backbone", source, options.resolve(depth), **reading_of(None)))


# --- from a file of weights ----------------------------------------------------------------------------------------


def _of_weights(file: Path, stated: _Stated) -> Model:
    arrays = read_model(file, prefix=stated.backbone.prefix)
    if f"{QUERY}backbone.{ANCHOR}" in arrays:
        return _densecl(file, arrays, stated)
    return _classifier(file, arrays, stated) if "fc.weight" in arrays else _backbone(file, arrays, stated)


def _backbone(file: Path, arrays: Arrays, stated: _Stated) -> Model:
    from passl_densecl.models import build_backbone

    spec = _backbone_spec(file, arrays, "", stated)
    backbone = build_backbone(spec, seed=None)
    load_strict(backbone, arrays, source=file)
    return _with_info(backbone, ModelInfo("backbone", str(file), spec, **reading_of(recorded_config(file))))


def _densecl(file: Path, arrays: Arrays, stated: _Stated) -> Model:
    """The pre-training model in the shapes of its arrays; the rest comes from its run's config."""
    from passl_densecl.models import DenseCL

    spec = _backbone_spec(file, arrays, f"{QUERY}backbone.", stated)
    config = recorded_config(file)
    heads = HeadSpec(
        hidden_dim=arrays[f"{QUERY}global_head.0.weight"].shape[1],
        out_dim=arrays[f"{QUERY}global_head.2.weight"].shape[1],
        dense=any(name.startswith(f"{QUERY}dense_head.") for name in arrays),
    )
    queue_len = arrays["global_queue.keys"].shape[0]
    if isinstance(config, PretrainConfig):
        heads, recipe = replace(heads, num_grid=config.model.num_grid), config.model
        model = DenseCL(spec, heads, queue_len=queue_len, temperature=recipe.temperature, momentum=recipe.momentum)
    else:
        model = DenseCL(spec, heads, queue_len=queue_len)
    load_strict(model, arrays, source=file)
    return _with_info(model, ModelInfo("pre-training model", str(file), spec, **reading_of(config)))


def _classifier(file: Path, arrays: Arrays, stated: _Stated) -> Model:
    from passl_densecl.models.linear import LinearClassifier

    spec = _backbone_spec(file, arrays, "backbone.", stated)
    count, classes = _class_names(None, arrays, file, stated)
    model = LinearClassifier(spec, count)
    load_strict(model, arrays, source=file)
    info = ModelInfo("classifier", str(file), spec, **reading_of(recorded_config(file)), classes=classes)
    return _with_info(model, info)


def _backbone_spec(file: Path, arrays: Arrays, prefix: str, stated: _Stated) -> BackboneSpec:
    """Depth from the names of the arrays; strides as stated, else as recorded, else as published."""
    depth = depth_of(name[len(prefix) :] for name in arrays if name.startswith(prefix))
    if depth is None:
        raise InputError(f"{file}: no known ResNet under {prefix!r}; the file is incomplete, or not from this project")
    if stated.backbone.depth not in (None, depth):
        raise InputError(f"{file} holds a ResNet-{depth}, expected ResNet-{stated.backbone.depth}: omit the depth")
    return stated.backbone.resolve(depth, recorded_backbone(file))


def _class_names(
    config: LinearConfig | None, arrays: Arrays, file: Path | None, stated: _Stated
) -> tuple[int, tuple[str, ...] | None]:
    """Number of classes, and their names if known: from the caller, the checkpoint, or the training folder."""
    given = stated.classes
    names = given if isinstance(given, tuple) else None
    if file is None:
        if given is None and config is not None:
            names = _classes_of_training(config)
        count = given if isinstance(given, int) else len(names or ())
        if count < 1:
            raise InputError(f"classes {given!r}: expected the names of the classes, or their number")
        return count, names
    if "fc.weight" not in arrays or arrays["fc.weight"].ndim != 2:
        raise InputError(f"{file} holds no classifier (no fc.weight); use get_model({str(file)!r})")
    count = arrays["fc.weight"].shape[1]
    if given is not None and count != (given if isinstance(given, int) else len(given)):
        number = given if isinstance(given, int) else len(given)
        raise InputError(f"{file} is a classifier of {count} classes, classes= says {number}")
    return count, names or recorded_classes(file, count)


def _classes_of_training(config: LinearConfig) -> tuple[str, ...]:
    from passl_densecl.data.datasets import scan_images

    try:
        return scan_images(**config.data.train.source(), labeled=True).classes
    except InputError as error:
        raise InputError(f"how many classes? They are not in the config, and: {error}; or pass classes=") from None


# --- parts ---------------------------------------------------------------------------------------------------------


def _checked(backbone: BackboneOptions, classes: Any, seed: int) -> _Stated:
    for key, allowed in {"depth": DEPTHS, "stem_stride": (4, 2, 1), "last_stride": (2, 1)}.items():
        if getattr(backbone, key) not in (None, *allowed):
            expected = ", ".join(map(str, allowed))
            raise InputError(f"{key} {getattr(backbone, key)!r}: expected one of {expected}")
    if isinstance(classes, Sequence) and not isinstance(classes, str) and all(isinstance(one, str) for one in classes):
        return _Stated(backbone, tuple(classes), seed)
    if classes is None or (isinstance(classes, int) and not isinstance(classes, bool)):
        return _Stated(backbone, classes, seed)
    raise InputError(f"classes {classes!r}: expected a list of names, or their number")


def _with_info(model: Model, info: ModelInfo) -> Model:
    model.info = info
    return model


def _choose_device(device: str | None) -> None:
    if device is None:
        return
    kind, _, number = device.partition(":") if isinstance(device, str) else (device, "", "")
    if kind not in ("cpu", "gpu") or (number and not (kind == "gpu" and number.isdigit())):
        raise InputError(f"device {device!r}: expected 'cpu', 'gpu' or 'gpu:1'")
    import paddle

    from passl_densecl.distributed.device import set_device

    set_device(kind)
    if number:
        count = paddle.device.cuda.device_count()
        if int(number) >= count:
            raise InputError(f"device {device!r}: this machine has {count} GPUs, numbered from 0")
        paddle.set_device(device)


def _unknown(name: str) -> str:
    """The message for an unknown name, with the closest known one."""
    known = {model: model for model in list_models()}
    folders = [Path("configs"), Path(__file__).resolve().parents[2] / "configs"]
    for config in [path for folder in folders for path in sorted(folder.rglob("*.yaml"))]:
        known.setdefault(config.stem, str(config))
        known.setdefault(str(config), str(config))
    parent = Path(name).parent
    if parent.is_dir():
        known.update({str(path): str(path) for path in parent.iterdir() if not path.name.startswith(".")})
    close = closest(name, known)
    hint = f"did you mean {known[close]!r}?" if close else "list_models() gives the names"
    return f"no model, config or file of weights called {name!r}; {hint}"
