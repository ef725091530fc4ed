"""Exported models in their runtimes, against the networks that train."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from passl_densecl.config import BackboneSpec, HeadSpec, dump_config, load_config
from passl_densecl.errors import InputError
from passl_densecl.export import write
from passl_densecl.export.layer import StageLayer
from passl_densecl.export.network import Network, read_network
from passl_densecl.export.target import require
from passl_densecl.export.write import export
from passl_densecl.models import DenseCL, Encoder, build_backbone, normalize
from passl_densecl.models.linear import LinearClassifier
from passl_densecl.transforms import MEAN, STD
from passl_densecl.weights.recorded import BackboneOptions
from passl_densecl.weights.writing import write_pickle
from tests.commands import call_tool

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[[np.ndarray], np.ndarray]
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="onnx and onnxruntime are not installed")
FORMATS = ["paddle", pytest.param("onnx", marks=needs_onnx)]
CLASSES = ("apple", "bread", "cherry")


def lived_in(layer: paddle.nn.Layer, seed: int = 0) -> paddle.nn.Layer:
    """The layer with biases and BatchNorm values as training leaves them, so that a forgotten one shows."""
    rng = np.random.default_rng(seed)
    for name, parameter in layer.named_parameters():
        if len(parameter.shape) == 1:
            low, high = (0.5, 1.5) if name.endswith(("_variance", "weight")) else (-0.3, 0.3)
            parameter.set_value(rng.uniform(low, high, parameter.shape).astype("float32"))
    layer.eval()
    return layer


def save_run(folder: Path, config: str, changes: list[str], layer: paddle.nn.Layer, prefix: str, state: Any) -> Path:
    """A run folder with one checkpoint of `layer` under `prefix`."""
    checkpoint = folder / "checkpoints" / "epoch_0001"
    checkpoint.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(load_config(ROOT / config, changes)))
    arrays = {prefix + name: np.asarray(value.numpy()) for name, value in layer.state_dict().items()}
    write_pickle(checkpoint / "model.pdparams", arrays)
    (checkpoint / "state.json").write_text(json.dumps({"step": 1, **state}))
    return folder


def pretrained(folder: Path, backbone: BackboneSpec, num_grid: int | None = None) -> tuple[Path, Encoder]:
    model = DenseCL(backbone, HeadSpec(hidden_dim=24, out_dim=8, num_grid=num_grid), queue_len=32)
    encoder = model.query_encoder
    lived_in(encoder)
    strides = [f"model.stem_stride={backbone.stem_stride}", f"model.last_stride={backbone.last_stride}"]
    changes = [*strides, f"model.num_grid={num_grid or 'null'}"]
    return save_run(folder, "configs/small/densecl_r18.yaml", changes, model, "", {}), encoder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Encoder]:
    """A pre-training run of the strides that the small recipe has."""
    return pretrained(tmp_path_factory.mktemp("run") / "densecl", BackboneSpec(18, last_stride=1))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LinearClassifier]:
    model = LinearClassifier(BackboneSpec(18), 3)
    lived_in(model)
    folder = tmp_path_factory.mktemp("run") / "linear"
    changes = ["model.last_stride=2"]
    return save_run(folder, "configs/small/linear_r18.yaml", changes, model, "", {"classes": CLASSES}), model


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3), np.uint8)


def as_floats(images: np.ndarray) -> np.ndarray:
    """What a float32 model wants, by the textbook."""
    scaled = (images / 255 - np.asarray(MEAN)) / np.asarray(STD)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2).astype("float32"))


def load(path: Path) -> Run:
    """The written model in its runtime, from the path alone."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda images: session.run(None, {"images": images})[0]
    from paddle.inference import Config, create_predictor

    (program,) = [path / name for name in ("inference.json", "inference.pdmodel") if (path / name).exists()]
    predictor = create_predictor(Config(str(program), str(path / "inference.pdiparams")))
    output = json.loads((path / "info.json").read_text())["output"]["name"]

    def run(images: np.ndarray) -> np.ndarray:
        predictor.get_input_handle("images").copy_from_cpu(images)
        predictor.run()
        return predictor.get_output_handle(output).copy_to_cpu()

    return run


def target(folder: Path, format: str) -> Path:
    return folder / ("model.onnx" if format == "onnx" else "model")


def close(found: np.ndarray, expected: paddle.Tensor) -> None:
    assert found.shape == tuple(expected.shape)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=2e-5 * float(expected.abs().max()))


# ---------------------------------------------------------------- outputs


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("stage", "kind"), [("backbone", "float32"), ("pooled", "uint8"), ("global", "float32"), ("dense", "uint8")]
)
def test_a_pretrained_network_gives_the_same_numbers_elsewhere(run_folder, tmp_path, format, stage, kind):
    folder, encoder = run_folder
    out = target(tmp_path, format)
    report = export(read_network(folder, stage), out, format, kind=kind, size=32)
    assert [len(d.images) for d in report.differences] == [4, 4, 4]
    assert 0 < report.worst.largest < 1e-5 * report.worst.scale

    run = load(out)
    for shape in ((1, 64, 64), (4, 33, 50)):
        images = noise(*shape)
        with paddle.no_grad():
            features = encoder.backbone(normalize(paddle.to_tensor(images)))
            projections = encoder.project(features)
        expected = {"backbone": features, "pooled": features.mean(axis=[2, 3]), "global": projections.global_vector}
        expected["dense"] = projections.dense.reshape([shape[0], 8, *features.shape[2:]])
        close(run(images if kind == "uint8" else as_floats(images)), expected[stage])


@pytest.mark.parametrize("format", FORMATS)
def test_a_classifier_gives_the_same_logits_and_keeps_its_class_names(classifier, tmp_path, format):
    folder, model = classifier
    out = target(tmp_path, format)
    report = export(read_network(folder), out, format, size=32)
    assert (report.info["stage"], report.info["classes"]) == ("classifier", list(CLASSES))
    images = noise(3, 50, 41)
    close(load(out)(images), model(paddle.to_tensor(images)))


@needs_onnx  # Paddle's format is traced from the real network, of whatever blocks
def test_bottlenecks_and_strides_that_the_file_does_not_record(tmp_path):
    backbone = lived_in(build_backbone(BackboneSpec(50, 4, 1), 0))
    weights = tmp_path / "w.pdparams"
    write_pickle(weights, {name: value for name, value in backbone.state_dict().items()})
    network = read_network(weights, options=BackboneOptions(last_stride=1))
    assert (network.backbone.depth, network.stage, network.recorded) == (50, "backbone", False)
    export(network, tmp_path / "model.onnx", "onnx", size=32)
    images = noise(1, 32, 39)
    close(load(tmp_path / "model.onnx")(images), backbone(normalize(paddle.to_tensor(images))))


@pytest.mark.parametrize("format", FORMATS)
def test_the_grid_of_the_dense_head_is_kept(tmp_path, format):
    folder, encoder = pretrained(tmp_path / "run", BackboneSpec(18, stem_stride=1), num_grid=3)
    network = read_network(folder, "dense")
    assert network.num_grid == 3
    export(network, target(tmp_path, format), format, size=32)
    run = load(target(tmp_path, format))
    for shape in ((1, 32, 32), (2, 40, 50)):  # maps of 4×4 and 5×7
        images = noise(*shape)
        dense = encoder(normalize(paddle.to_tensor(images))).dense
        close(run(images), dense.reshape([shape[0], 8, 3, 3]))


@needs_onnx
@pytest.mark.parametrize("cells", [1, 3, 7])
def test_pooling_to_a_grid_is_paddles_for_any_size(cells):
    import onnxruntime
    from onnx import TensorProto, helper

    from passl_densecl.export.onnx_graph import IR_VERSION, OPSET, _Graph

    graph = _Graph({})
    output = graph.pool_to_grid("x", cells)
    proto = helper.make_graph(
        graph.nodes,
        "pool",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 2, "h", "w"])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["b", 2, cells, cells])],
        graph.initializers,
    )
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for height, width in ((7, 7), (1, 2), (5, 12), (14, 3), (11, 8)):
        x = np.random.default_rng(height).standard_normal((2, 2, height, width), dtype=np.float32)
        expected = F.adaptive_avg_pool2d(paddle.to_tensor(x), cells).numpy()
        np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=0, atol=1e-6)


# ---------------------------------------------------------------- what is written


@needs_onnx
def test_an_onnx_file_says_what_it_is_and_holds_the_sources_bits(classifier, tmp_path):
    import onnx
    from onnx import numpy_helper

    folder, layer = classifier
    export(read_network(folder), tmp_path / "a.onnx", "onnx", size=32)
    export(read_network(folder), tmp_path / "b.onnx", "onnx", size=64)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()

    model = onnx.load(str(tmp_path / "a.onnx"))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 13)]
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, value in layer.state_dict().items():
        assert held[name].tobytes() == value.numpy().tobytes(), name
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(said["classes"]) == list(CLASSES)
    assert (said["stage"], said["depth"], said["last_stride"]) == ("classifier", "18", "2")
    assert json.loads(said["mean"]) == [123.675, 116.28, 103.53]
    assert json.loads(said["input"])["axes"] == ["batch", "height", "width", "3"]
    assert re.fullmatch("[0-9a-f]{64}", said["source_sha256"])

    def dims(value: Any) -> list[Any]:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    (given,), (result,) = model.graph.input, model.graph.output
    assert (given.name, dims(given)) == ("images", ["batch", "height", "width", 3])
    assert (result.name, dims(result)) == ("logits", ["batch", 3])


def test_a_paddle_folder_says_what_it_is_and_nothing_of_this_machine(run_folder, tmp_path):
    folder, _ = run_folder
    export(read_network(folder, "dense"), tmp_path / "model", "paddle", kind="float32", size=32)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    program = {"inference.json", "inference.pdmodel"} & names
    assert len(program) == 1
    assert names - program - {"inference.pdiparams.info"} == {"inference.pdiparams", "info.json"}
    info = json.loads((tmp_path / "model" / "info.json").read_text())
    assert (info["stage"], info["depth"], info["last_stride"], info["paddle"]) == ("dense", 18, 1, paddle.__version__)
    assert info["input"]["dtype"] == "float32"
    for path in (tmp_path / "model").iterdir():
        assert str(ROOT).encode() not in path.read_bytes(), path
        assert str(tmp_path).encode() not in path.read_bytes(), path


# ---------------------------------------------------------------- what goes wrong


@needs_onnx
@pytest.mark.parametrize("damage", ["epsilon", "stride", "weight"])
def test_an_onnx_model_that_differs_is_not_written(run_folder, tmp_path, monkeypatch, damage):
    from passl_densecl.export import onnx_graph

    network = read_network(run_folder[0])
    if damage == "epsilon":
        monkeypatch.setattr(onnx_graph, "BATCH_NORM_EPSILON", 1e-3)
    elif damage == "stride":
        real = onnx_graph._block
        monkeypatch.setattr(
            onnx_graph, "_block", lambda graph, at, x, stride: real(graph, at, x, max(stride, 1 + ("4.0" in at)))
        )
    else:
        real_layer = StageLayer
        changed = {**network.arrays, "backbone.layer3.1.bn2.bias": network.arrays["backbone.layer3.1.bn2.bias"] + 0.1}
        monkeypatch.setattr(
            write, "StageLayer", lambda _, normalizing: real_layer(with_arrays(network, changed), normalizing)
        )
    message = (
        r"exported model gives \[1, 512, 1, 1\]" if damage == "stride" else r"onnxruntime gives outputs that differ"
    )
    with pytest.raises(InputError, match=message):
        export(network, tmp_path / "model.onnx", "onnx", size=32)
    assert list(tmp_path.iterdir()) == []


def test_a_paddle_model_that_differs_is_not_written(run_folder, tmp_path, monkeypatch):
    real = write.write_paddle

    def damaged(layer, folder, kind):
        bias = layer.backbone.bn1.bias
        before = bias.numpy()
        bias.set_value(before + 0.05)
        real(layer, folder, kind)
        bias.set_value(before)

    monkeypatch.setattr(write, "write_paddle", damaged)
    with pytest.raises(InputError, match=r"paddle.inference gives outputs that differ"):
        export(read_network(run_folder[0]), tmp_path / "model", "paddle", size=32)
    assert list(tmp_path.iterdir()) == []


def with_arrays(network: Network, arrays: dict[str, np.ndarray]) -> Network:
    import dataclasses

    return dataclasses.replace(network, arrays=arrays)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_output_that_is_no_number_is_enough(run_folder, tmp_path, monkeypatch, value):
    real = write.paddle_runtime

    def damaged(folder):
        runtime = real(folder)

        def run(images):
            output = runtime.run(images)
            output[0, 0] = value if len(images) == 2 else output[0, 0]
            return output

        return runtime._replace(run=run)

    monkeypatch.setattr(write, "paddle_runtime", damaged)
    with pytest.raises(InputError, match=r"not written: for images \[2, 32, 32, 3\]"):
        export(read_network(run_folder[0], "pooled"), tmp_path / "model", "paddle", size=32)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    require("paddle")
    with pytest.raises(InputError, match=r"needs onnx and onnxruntime: pip install onnx onnxruntime$"):
        require("onnx")


def test_stages_that_the_weights_do_not_have_are_refused(run_folder, classifier, tmp_path):
    with pytest.raises(InputError, match=r"stage classifier needs a classifier; this is a pre-training state"):
        read_network(run_folder[0], "classifier")
    with pytest.raises(
        InputError, match=r"stage dense needs a whole pre-training checkpoint; this is a linear evaluation state"
    ):
        read_network(classifier[0], "dense")
    model = DenseCL(BackboneSpec(18), HeadSpec(hidden_dim=24, out_dim=8, dense=False), queue_len=32)
    moco = save_run(tmp_path / "moco", "configs/small/densecl_r18.yaml", ["model.loss_lambda=0.0"], model, "", {})
    assert read_network(moco, "global").arrays["global_head.2.bias"].shape == (8,)
    with pytest.raises(InputError, match="MoCo-v2 checkpoint, without a dense projection head"):
        read_network(moco, "dense")


def test_class_names_that_do_not_fit_are_refused(tmp_path):
    folder = save_run(
        tmp_path / "linear",
        "configs/small/linear_r18.yaml",
        [],
        LinearClassifier(BackboneSpec(18), 3),
        "",
        {"classes": ["a", "b"]},
    )
    with pytest.raises(InputError, match="classifier of 3 classes, but 2 class names are recorded"):
        read_network(folder)


# ---------------------------------------------------------------- the tool


def tool(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return call_tool("export", *arguments, cwd=cwd)


@pytest.mark.parametrize(("format", "kind"), [("paddle", "uint8"), pytest.param("onnx", "float32", marks=needs_onnx)])
def test_the_lines_that_the_tool_prints_run(classifier, photos, tmp_path, format, kind):
    photo = photos / "class_1" / "01.png"
    out = target(tmp_path, format)
    done = tool(classifier[0], out, "--format", format, "--size", 64, "--check", photo, "--input", kind)
    assert done.returncode == 0, done.stderr
    assert f"photo    {photo}: " in done.stdout
    assert set(re.findall("apple|bread|cherry", done.stdout)) == set(CLASSES)
    assert len(re.findall(r"^compare .* largest difference [0-9.e-]+, largest output", done.stdout, re.MULTILINE)) == 4
    lines = done.stdout.split("run it so:\n\n")[1].replace("photo.jpg", str(photo))
    ran = subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.stdout.splitlines()[-1:] == ["(1, 3)"], ran.stderr


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("there", ["--format", "paddle"], "there exists; remove it or choose another name"),
        ("model", ["--format", "onnx"], "format onnx writes a file whose name ends in .onnx"),
        ("model.onnx", ["--format", "paddle"], "format paddle writes a new folder"),
        ("no/where", ["--format", "paddle"], "the folder no does not exist; create it first"),
        ("model", ["--format", "paddle", "--size", 8], "--size 8: expected at least 32"),
        ("model", ["--format", "paddle", "--check", "no.jpg"], "no.jpg"),
    ],
)
def test_mistakes_are_named(run_folder, tmp_path, out, options, message):
    (tmp_path / "there").mkdir()
    done = tool(run_folder[0], out, *options, cwd=tmp_path)
    assert done.returncode == 2
    assert "wrote" not in done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
