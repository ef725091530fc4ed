"""tools/transfer.py as a user runs it, the shipped configs, and the plug-in for PaddleSeg. No toolbox is needed."""

from __future__ import annotations

import io
import json
import math
import pickle
import re
import runpy
import shlex
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks.demo_detect import draw_detections
from passl_densecl.config import BackboneSpec
from passl_densecl.errors import InputError
from passl_densecl.integrations.check import check
from passl_densecl.integrations.matching import Network, count_matches
from passl_densecl.integrations.prepare import prepare
from passl_densecl.integrations.toolboxes import CONFIGS, TOOLBOXES, Kind
from passl_densecl.integrations.yaml_files import Tagged, dump, find, put, read_yaml, resolve
from passl_densecl.weights.convert import convert
from passl_densecl.weights.files import read_weights
from passl_densecl.weights.vocabulary import backbone_shapes
from passl_densecl.weights.writing import write_pickle
from tests.commands import call_tool, understood
from tests.integrations.coco import write_coco

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = [(toolbox.name, model) for toolbox in TOOLBOXES.values() for model in toolbox.models]
Config = dict[str, Any]

# What the toolboxes' base files say where ours stand on them, as far as a check looks: their own defaults.
PPDET_READER = {
    part: {
        "sample_transforms": [
            {"Decode": {}},
            {"NormalizeImage": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "is_scale": True}},
        ]
    }
    for part in ("TrainReader", "EvalReader")
}


def arrays(depth: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(0.1, 1, shape).astype("f4") for name, shape in backbone_shapes(depth).items()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.pdparams"
    write_pickle(path, arrays(18))
    return path


@pytest.fixture(scope="module")
def weights50(tmp_path_factory) -> dict[str, Path]:
    """The files of all targets for a ResNet-50, written once."""
    folder = tmp_path_factory.mktemp("weights50")
    write_pickle(folder / "r50.pdparams", arrays(50))
    files = {"paddle": folder / "r50.pdparams"}
    for target, suffix in (("paddledetection", ".pdparams"), ("paddleclas", ".pdparams"), ("detectron2", ".pkl")):
        files[target] = folder / f"{target}{suffix}"
        convert(files["paddle"], files[target], target)
    return files


@pytest.fixture(scope="module")
def clones(tmp_path_factory) -> Path:
    """Stand-ins for the toolboxes' clones: the base files that ours name, with the toolboxes' settings in short."""
    root = tmp_path_factory.mktemp("clones")
    for toolbox in TOOLBOXES.values():
        for model in toolbox.models:
            content = read_yaml(toolbox.config(model)[1])
            bases = content.get("_BASE_", content.get("_base_", []))
            for base in [bases] if isinstance(bases, str) else bases:
                path = (root / toolbox.name / toolbox.place / base).resolve()
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(dump(stand_in(toolbox.name, path)))
        (root / toolbox.name / toolbox.place).parent.mkdir(parents=True, exist_ok=True)
    return root


def stand_in(toolbox: Kind, path: Path) -> Config:
    name = path.stem
    if toolbox == "paddledetection" and name.endswith(("_r50", "_r50_fpn")):
        kind = {"fcos": "FCOS", "solo": "SOLOv2", "fast": "FasterRCNN", "mask": "MaskRCNN"}[name[:4]]
        resnet = {} if kind == "MaskRCNN" else {"freeze_at": 0}  # the toolbox's default, once said and once not
        head = {"BBoxHead": {"head": "TwoFCHead"}} if "rcnn" in name else {}
        return {"architecture": kind, kind: {"backbone": "ResNet", "neck": "FPN"}, "ResNet": resnet, **head}
    if toolbox == "paddledetection" and "reader" in name:
        return PPDET_READER
    return {
        "Base-RCNN-C4": {"MODEL": {"META_ARCHITECTURE": "GeneralizedRCNN", "ROI_HEADS": {"NAME": "Res5ROIHeads"}}},
        "Base-RCNN-FPN": {"MODEL": {"BACKBONE": {"NAME": "build_resnet_fpn_backbone"}}},
        "Base-FCOS": {
            "MODEL": {"META_ARCHITECTURE": "OneStageDetector", "BACKBONE": {"NAME": "build_fcos_resnet_fpn_backbone"}}
        },
        "Base-SOLOv2": {"MODEL": {"META_ARCHITECTURE": "SOLOv2", "BACKBONE": {"NAME": "build_resnet_fpn_backbone"}}},
    }.get(name, {"comment": "nothing that a check looks at"})


def placed(toolbox: Kind, model: str, clones: Path, change: Callable[[Config], object] = lambda _: None) -> Path:
    """A shipped config in its place in the toolbox's clone, with a change."""
    content = read_yaml(TOOLBOXES[toolbox].config(model)[1])
    change(content)
    path = clones / toolbox / TOOLBOXES[toolbox].place / f"{model}.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump(content))
    return path


# The shipped configs


def test_every_config_belongs_to_a_model_and_every_model_has_one():
    there = {path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yml")}
    assert there == {Path(toolbox, TOOLBOXES[toolbox].models[model]) for toolbox, model in SHIPPED}


@pytest.mark.parametrize(("toolbox", "model"), SHIPPED)
def test_shipped_configs_keep_the_protocol(toolbox, model, clones, weights50):
    gpus = {"paddleseg": 4}.get(toolbox, 8)
    checked = check(placed(toolbox, model, clones), weights50[TOOLBOXES[toolbox].target], gpus)
    assert (checked.toolbox, checked.findings) == (toolbox, ())
    assert checked.match is not None
    assert (checked.match.matched, checked.match.total) == (265, 265)
    head = TOOLBOXES[toolbox].config(model)[1].read_text().split("\n_")[0]
    assert "# Published" in head
    assert f"--toolbox {toolbox}" in head


@pytest.mark.parametrize(("toolbox", "model"), SHIPPED)
def test_shipped_configs_are_plain_yaml_without_traps(toolbox, model):
    """PyYAML reads 1e-4 as text; a repeated key silently wins."""
    text = TOOLBOXES[toolbox].config(model)[1].read_text()
    keys = [line.split(":")[0] for line in text.splitlines() if line[:1].isalpha()]
    assert len(keys) == len(set(keys))

    def numbers(value: object) -> None:
        if isinstance(value, dict):
            for entry in value.values():
                numbers(entry)
        elif isinstance(value, list):
            for entry in value:
                numbers(entry)
        elif isinstance(value, str):
            with pytest.raises(ValueError, match="could not convert"):
                float(value or "empty")

    numbers(read_yaml(TOOLBOXES[toolbox].config(model)[1]))


# What the check flags: each setting, damaged, is named; nothing else is

PPDET = "paddledetection", "mask_rcnn"
DET2 = "detectron2", "mask_rcnn"
DAMAGES = [
    (PPDET, ("ResNet", "freeze_norm"), True, "ResNet.freeze_norm"),
    (PPDET, ("ResNet", "freeze_norm"), None, "ResNet.freeze_norm"),
    (PPDET, ("ResNet", "freeze_at"), 0, "ResNet.freeze_at"),
    (PPDET, ("ResNet", "freeze_at"), None, "ResNet.freeze_at"),
    (PPDET, ("ResNet", "variant"), "a", "ResNet.variant"),
    (PPDET, ("ResNet", "lr_mult_list"), [0.05, 0.05, 0.1, 0.15], "ResNet.lr_mult_list"),
    (PPDET, ("norm_type",), None, "norm_type"),
    (PPDET, ("FPN",), None, "FPN.norm_type"),
    (PPDET, ("BBoxHead",), None, "BBoxHead.head"),
    (PPDET, ("LearningRate", "base_lr"), 0.04, "LearningRate.base_lr"),
    (
        PPDET,
        ("EvalReader",),
        {"sample_transforms": [{"NormalizeImage": {"mean": [0.5, 0.5, 0.5]}}]},
        "EvalReader.NormalizeImage",
    ),
    (
        PPDET,
        ("EvalReader",),
        {"sample_transforms": [{"NormalizeImage": {"is_scale": False}}]},
        "EvalReader.NormalizeImage",
    ),
    (PPDET, ("EvalReader",), {"sample_transforms": [{"Decode": {}}]}, "EvalReader.NormalizeImage"),
    (DET2, ("MODEL", "RESNETS", "STRIDE_IN_1X1"), None, "MODEL.RESNETS.STRIDE_IN_1X1"),
    (DET2, ("MODEL", "RESNETS", "NORM"), "BN", "MODEL.RESNETS.NORM"),
    (DET2, ("MODEL", "BACKBONE", "FREEZE_AT"), None, "MODEL.BACKBONE.FREEZE_AT"),
    (DET2, ("MODEL", "PIXEL_MEAN"), None, "MODEL.PIXEL_MEAN"),
    (DET2, ("MODEL", "PIXEL_STD"), "(1.0, 1.0, 1.0)", "MODEL.PIXEL_STD"),
    (DET2, ("INPUT", "FORMAT"), None, "INPUT.FORMAT"),
    (DET2, ("MODEL", "FPN"), None, "MODEL.FPN.NORM"),
    (DET2, ("MODEL", "ROI_BOX_HEAD", "NORM"), "", "MODEL.ROI_BOX_HEAD.NORM"),
    (DET2, ("MODEL", "ROI_MASK_HEAD", "NORM"), "GN", "MODEL.ROI_MASK_HEAD.NORM"),
    (DET2, ("SOLVER", "BASE_LR"), 0.002, "SOLVER.BASE_LR"),
    (("detectron2", "faster_rcnn_voc"), ("MODEL", "ROI_HEADS", "NAME"), "Res5ROIHeads", "MODEL.ROI_HEADS.NAME"),
    (("paddleseg", "fcn_voc"), ("model", "backbone", "type"), "ResNet50_vd", "model.backbone.type"),
    (("paddleseg", "fcn_voc"), ("val_dataset", "transforms"), [{"type": "Normalize"}], "val_dataset.Normalize"),
    (("paddleseg", "fcn_voc"), ("lr_scheduler", "learning_rate"), 0.1, "lr_scheduler.learning_rate"),
    (("paddleclas", "finetune"), ("Arch", "pretrained"), True, "Arch.pretrained"),
]


@pytest.mark.parametrize(("config", "keys", "value", "flagged"), DAMAGES, ids=lambda value: str(value)[:40])
def test_each_departure_is_flagged_alone(config, keys, value, flagged, clones, weights50):
    toolbox, model = config

    def damage(content: Config) -> None:
        if value is None:
            section = find(content, *keys[:-1])
            del section[keys[-1]]
        else:
            put(content, keys, value)

    path = placed(toolbox, model, clones, damage)
    findings = check(path, weights50[TOOLBOXES[toolbox].target], 4 if toolbox == "paddleseg" else 8).findings
    assert [finding.key for finding in findings] == [flagged]
    assert findings[0].cost
    assert findings[0].remedy


def test_the_rate_must_follow_the_batch(clones, weights50):
    """Eight images a step are a departure; the full rate with them is another."""
    for gpus, flagged in ((8, []), (4, ["TrainReader.batch_size", "LearningRate.base_lr"])):
        findings = check(placed("paddledetection", "fcos", clones), weights50["paddledetection"], gpus).findings
        assert [finding.key for finding in findings] == flagged
    halved = placed("paddledetection", "fcos", clones, lambda c: put(c, ("LearningRate", "base_lr"), 0.005))
    assert [f.key for f in check(halved, weights50["paddledetection"], 4).findings] == ["TrainReader.batch_size"]


@pytest.mark.parametrize(
    ("toolbox", "model", "keys", "value", "matched"),
    [
        ("paddledetection", "fcos", ("ResNet", "variant"), "c", 260),
        ("paddledetection", "fcos", ("ResNet", "variant"), "d", 245),
        ("paddleclas", "finetune", ("Arch", "name"), "ResNet50_vd", 260),
    ],
)
def test_deep_stems_are_counted(toolbox, model, keys, value, matched, clones, weights50):
    """Counts seen in the toolboxes: their variants c and d have 275 tensors, these many under our names."""
    path = placed(toolbox, model, clones, lambda content: put(content, keys, value))
    checked = check(path, weights50[toolbox])
    assert checked.match is not None
    assert checked.match.matched == matched
    assert [finding.key for finding in checked.findings] == ["weights", ".".join(keys)]


@pytest.mark.parametrize("toolbox", ["paddledetection", "paddleclas", "detectron2", "adelaidet"])
def test_weights_in_foreign_names_match_nothing(toolbox, clones, weights50):
    model = next(iter(TOOLBOXES[toolbox].models))
    checked = check(placed(toolbox, model, clones), weights50["paddle"])
    assert checked.match is not None
    assert checked.match.matched == 0
    assert [finding.key for finding in checked.findings] == ["weights"]
    assert f"--to {TOOLBOXES[toolbox].target}" in checked.findings[0].remedy


def test_detectron2_matches_whole_names_where_the_file_does_not_ask_for_more(tmp_path, weights50):
    content = read_weights(weights50["detectron2"]).content
    write_pickle(tmp_path / "plain.pkl", {"model": content["model"]})
    network = Network("detectron2", 50)
    assert count_matches(weights50["detectron2"], network).matched == 265
    assert count_matches(tmp_path / "plain.pkl", network).matched == 0


@pytest.mark.parametrize(
    ("toolbox", "written", "taken"),
    [("paddledetection", "float16", 105), ("paddleseg", "float16", 100), ("detectron2", "float64", 100)],
)
def test_toolboxes_that_convert_numbers_take_any_dtype(toolbox, written, taken, weights, tmp_path):
    model = "mask_rcnn" if toolbox == "detectron2" else None
    done = prepare(toolbox, weights, tmp_path, model=model, dtype=written)
    assert (done.match.matched, done.match.total, done.match.reason) == (taken, taken, "")
    assert f"dtype    float32 → {written}" in "\n".join(done.lines())


def test_paddleclas_takes_nothing_of_another_dtype(weights, tmp_path):
    """As paddle.nn.Layer.set_state_dict, which is what it calls."""
    import paddle

    half = tmp_path / "half.pdparams"
    write_pickle(half, {name: array.astype("f2") for name, array in arrays(18).items()})
    network = paddle.vision.models.resnet18(num_classes=0, with_pool=False)
    with pytest.raises(AssertionError, match="dtype not match"):
        network.set_state_dict(read_weights(half).content)
    done = prepare("paddleclas", half, tmp_path / "out")
    assert done.match.whole
    assert "dtype    float16 → float32, 100 arrays" in done.lines()
    done = prepare("paddleclas", half, tmp_path / "out", dtype="float16")
    assert "it will use 0 of 105: float16: it stops at numbers that are not float32)" in "\n".join(done.lines())


@pytest.mark.parametrize("toolbox", ["paddledetection", "paddleclas", "detectron2"])
def test_tensors_of_another_shape_are_not_counted(toolbox, weights50, tmp_path):
    """A Wide ResNet has a ResNet-50's names; the toolboxes pass over what has other shapes."""
    content: Any = read_weights(weights50[toolbox]).content
    table = content.get("model", content)
    for name in [name for name in table if name.startswith(("blocks.3.", "res3.res3a.", "res3.0."))]:
        table[name] = table[name][:8]
    path = tmp_path / weights50[toolbox].name
    write_pickle(path, content)
    assert count_matches(path, Network(toolbox, 50)).matched == 265 - 20


def test_our_plug_in_for_paddleseg_reads_any_file_of_its_depth(weights50, weights):
    for name in ("paddledetection", "detectron2", "paddle"):
        assert count_matches(weights50[name], Network("paddleseg", 50)).whole
    other = count_matches(weights, Network("paddleseg", 50))
    assert (other.matched, other.total, other.reason) == (0, 265, "a ResNet-18, not a ResNet-50")


def test_a_detector_of_another_depth_takes_what_has_its_names(weights50):
    match = count_matches(weights50["paddledetection"], Network("paddledetection", 101))
    assert match.total == 520
    assert 0 < match.matched < 265


def test_c4_finds_res5_in_its_head(weights50):
    names = Network("paddledetection", 50, res5_in_head=True).shapes()
    assert sum(name.startswith("bbox_head.head.res5.") for name in names) == 50
    assert count_matches(weights50["paddledetection"], Network("paddledetection", 50, res5_in_head=True)).whole


def test_c4_is_refused_where_its_head_cannot_take_the_weights(clones, weights, tmp_path):
    """detectron2 builds res5 in the head from bottleneck blocks even for ResNet-18: names match, shapes do not."""
    with pytest.raises(InputError, match="ResNet-18 have no place there"):
        prepare("detectron2", weights, tmp_path, model="faster_rcnn_voc")
    path = placed("detectron2", "faster_rcnn_voc", clones, lambda c: put(c, ("MODEL", "RESNETS", "DEPTH"), 18))
    assert "MODEL.RESNETS.DEPTH" in [finding.key for finding in check(path).findings]


def test_a_config_with_other_weights_is_flagged(clones):
    path = placed("paddledetection", "fcos", clones, lambda c: put(c, ("pretrain_weights",), "https://x/y.pdparams"))
    assert [finding.key for finding in check(path).findings] == ["pretrain_weights"]


# YAML


def test_bases_are_merged_as_the_toolboxes_do(tmp_path):
    (tmp_path / "a.yml").write_text("x: {one: 1, two: 2}\nlist: [1, 2]\n")
    (tmp_path / "b.yml").write_text("x: {two: 3}\ny: !Linear {steps: 5}\n")
    (tmp_path / "c.yml").write_text("_BASE_: [a.yml, b.yml]\nx: {three: 4}\nlist: [3]\n")
    assert resolve(tmp_path / "c.yml") == {
        "x": {"one": 1, "two": 3, "three": 4},
        "list": [3],
        "y": Tagged("Linear", {"steps": 5}),
    }
    (tmp_path / "d.yml").write_text("_base_: a.yml\nx: {_inherited_: false, three: 4}\n")
    assert resolve(tmp_path / "d.yml")["x"] == {"three": 4}
    text = dump(resolve(tmp_path / "c.yml"))
    (tmp_path / "e.yml").write_text(text)
    assert resolve(tmp_path / "e.yml") == resolve(tmp_path / "c.yml")


def test_tags_are_never_looked_up(tmp_path):
    (tmp_path / "x.yml").write_text("a: !python/object/apply:os.system ['false']\n")
    assert read_yaml(tmp_path / "x.yml") == {"a": Tagged("python/object/apply:os.system", ["false"])}
    (tmp_path / "x.yml").write_text("a: !!python/object/apply:os.system ['false']\n")
    with pytest.raises(InputError, match="not YAML: could not determine a constructor"):
        read_yaml(tmp_path / "x.yml")


def test_mistakes_in_files_are_named(tmp_path):
    (tmp_path / "circle.yml").write_text("_BASE_: circle.yml\n")
    (tmp_path / "alone.yml").write_text("_BASE_: ../nowhere.yml\n")
    (tmp_path / "bad.yml").write_text("a: [1\n")
    (tmp_path / "list.yml").write_text("- 1\n")
    (tmp_path / "other.yml").write_text("a: 1\n")
    for name, told in (
        ("circle", "includes itself"),
        ("alone", "nowhere.yml"),
        ("bad", "not YAML"),
        ("list", "expected keys"),
        ("other", "not a config of these toolboxes"),
        ("missing", "does not exist"),
    ):
        with pytest.raises(InputError, match=told):
            check(tmp_path / f"{name}.yml")


# Prepare


@pytest.mark.parametrize(("toolbox", "model"), SHIPPED)
def test_what_prepare_writes_passes_its_own_check(toolbox, model, clones, weights, weights50, tmp_path):
    depth = 50 if model == "faster_rcnn_voc" and toolbox == "detectron2" else 18  # C4 is for bottleneck blocks
    start = weights if depth == 18 else weights50["paddle"]
    done = prepare(toolbox, start, tmp_path, model=model, gpus=4, toolbox_dir=clones / toolbox)
    checked = check(done.config, gpus=4)
    assert checked.findings == ()
    assert checked.match == done.match
    assert done.match.whole
    assert checked.network is not None
    assert checked.network.depth == depth
    assert str(done.config) in done.command
    assert f"r{depth}.yml ({model})" in "\n".join(done.lines())
    assert any("shortcut convolution" in note for note in done.notes) == (toolbox == "paddledetection")


@pytest.mark.parametrize(
    ("gpus", "images", "total", "rate", "steps"),
    [
        (8, None, 16, 0.02, 90_000),
        (4, None, 16, 0.02, 90_000),
        (2, None, 8, 0.01, 180_000),
        (1, None, 4, 0.005, 360_000),
        (1, 16, 16, 0.02, 90_000),
        (16, 2, 32, 0.04, 45_000),
    ],
)
def test_rate_and_steps_follow_the_batch(gpus, images, total, rate, steps, weights, tmp_path):
    done = prepare("detectron2", weights, tmp_path, model="mask_rcnn", gpus=gpus, images_per_gpu=images)
    solver = read_yaml(done.config)["SOLVER"]
    assert (solver["IMS_PER_BATCH"], solver["MAX_ITER"]) == (total, steps)
    assert math.isclose(solver["BASE_LR"], rate)
    assert solver["STEPS"] == [round(steps * 2 / 3), round(steps * 8 / 9)]
    assert bool([note for note in done.notes if "images a step" in note]) == (total < 16)


def test_paddledetection_scales_warm_up_but_no_epochs(weights, tmp_path):
    content = read_yaml(prepare("paddledetection", weights, tmp_path, model="fcos", gpus=1).config)
    decay, warm_up = content["LearningRate"]["schedulers"]
    assert (decay.tag, decay.value["milestones"], content["epoch"]) == ("PiecewiseDecay", [8, 11], 12)
    assert (warm_up.tag, warm_up.value["steps"]) == ("LinearWarmup", 4000)
    assert content["LearningRate"]["base_lr"] == 0.0025


def test_own_coco_data(weights, tmp_path):
    root = tmp_path / "own"
    for name in ("train", "val"):
        (root / name).mkdir(parents=True)
        (root / "annotations").mkdir(exist_ok=True)
        table = {"images": [], "annotations": [], "categories": [{"id": i, "name": str(i)} for i in range(3)]}
        (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(table))
    content = read_yaml(prepare("paddledetection", weights, tmp_path / "out", data=root, gpus=0).config)
    assert content["num_classes"] == 3
    assert content["TrainDataset"]["anno_path"] == "annotations/instances_train.json"
    assert content["EvalDataset"] == {
        "dataset_dir": str(root),
        "image_dir": "val",
        "anno_path": "annotations/instances_val.json",
    }
    assert content["use_gpu"] is False
    (root / "annotations" / "instances_val.json").unlink()
    with pytest.raises(InputError, match="COCO's layout"):
        prepare("paddledetection", weights, tmp_path / "out", data=root)


def test_mistakes_of_prepare_are_named(weights, tmp_path):
    (tmp_path / "empty").mkdir()
    for told, arguments in (
        ("there are fcos", {"model": "yolo"}),
        ("is not a folder", {"data": tmp_path / "nowhere"}),
        ("not a clone of PaddleDetection", {"toolbox_dir": tmp_path / "empty"}),
        ("expected 0 or more", {"gpus": -1}),
    ):
        with pytest.raises(InputError, match=told):
            prepare("paddledetection", weights, tmp_path / "out", **arguments)
    (tmp_path / "empty" / "configs").mkdir()
    with pytest.raises(InputError, match="is missing; is the clone complete"):
        prepare("paddledetection", weights, tmp_path / "out", toolbox_dir=tmp_path / "empty")


def test_without_a_clone_the_command_copies_the_config(weights, tmp_path):
    done = prepare("adelaidet", weights, tmp_path, model="solov2", gpus=8)
    assert done.command.startswith("mkdir -p PATH/TO/AdelaiDet/configs/densecl && cp ")
    assert read_yaml(done.config)["_BASE_"] == "../SOLOv2/Base-SOLOv2.yaml"


class OldNumpy(pickle.Unpickler):
    """An unpickler as in an environment with numpy 1.23: no `numpy._core`, Paddle, torch or this project."""

    def find_class(self, module: str, name: str) -> Any:
        assert module.split(".")[0] in ("numpy", "builtins", "collections", "_codecs"), f"{module}.{name}"
        assert not module.startswith("numpy._core"), f"{module}.{name}"
        return super().find_class(module, name)


@pytest.mark.parametrize("toolbox", TOOLBOXES)
def test_weights_load_where_numpy_is_old_and_nothing_else_is_there(toolbox, weights, tmp_path):
    done = prepare(toolbox, weights, tmp_path, model="mask_rcnn" if toolbox == "detectron2" else None)
    table = OldNumpy(io.BytesIO(done.conversion.output.read_bytes())).load()
    table = table.get("model", table)
    values = [value for value in table.values() if isinstance(value, np.ndarray)]
    assert len(values) >= done.match.total
    expected = arrays(18)["conv1.weight"]
    assert any(value.shape == expected.shape and np.array_equal(value, expected) for value in values)


# The tool


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return call_tool("transfer", *arguments)


def test_the_tool_prepares_and_checks(clones, weights, tmp_path):
    clone = clones / "paddledetection"
    done = run(
        "prepare", "--toolbox", "paddledetection", "--weights", weights, "--output", tmp_path, "--toolbox-dir", clone
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "recipe   8 × GPU, 2 images each: 16 a step (published: 16), learning rate 0.01" in done.stdout
    assert "--gpus 0,1,2,3,4,5,6,7 tools/train.py -c " in done.stdout
    good = run("check", tmp_path / "fcos_r18.yml")
    assert good.returncode == 0
    assert good.stdout.splitlines()[-1] == "nothing departs from the protocol"
    text = (tmp_path / "fcos_r18.yml").read_text()
    assert "freeze_at: -1" in text
    (tmp_path / "fcos_r18.yml").write_text(text.replace("freeze_at: -1", "freeze_at: 0"))
    bad = run("check", tmp_path / "fcos_r18.yml")
    assert bad.returncode == 1
    assert "departs  ResNet.freeze_at: 0" in bad.stdout
    missing = run("check", tmp_path / "nothing.yml")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert missing.stderr == f"transfer.py check: {tmp_path / 'nothing.yml'} does not exist\n"


def test_preparing_needs_neither_paddle_nor_torch(weights, tmp_path):
    code = (
        "import sys; sys.modules['paddle'] = sys.modules['torch'] = None\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from passl_densecl.integrations.prepare import prepare\n"
        "from passl_densecl.integrations.check import check\n"
        f"print(prepare('detectron2', {str(weights)!r}, {str(tmp_path)!r}, model='mask_rcnn').match.whole)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_the_pages_show_the_same_commands_and_the_tools_accept_them():
    pages = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("downstream.md", "downstream_cn.md")]
    english, chinese = (re.findall(r"```bash\n(.*?)```", page, re.DOTALL) for page in pages)
    assert english == chinese
    makefile = (ROOT / "Makefile").read_text()
    seen = set()
    for line in "".join(english).splitlines():
        words = shlex.split(line)
        if words[0] == "make":
            assert f"\n{words[1]}:" in makefile
            continue
        if words[1] == "tests/integrations/prove_files.py":
            assert (ROOT / words[1]).is_file()
            continue
        verb, args = understood(words)
        if verb == "transfer prepare":
            TOOLBOXES[args.toolbox].config(args.model)
            seen.add(args.toolbox)
    assert seen == set(TOOLBOXES)


@pytest.mark.parametrize("tool", ["transfer", "demo_detect"])
def test_help_needs_no_toolbox_and_no_paddle(tool):
    code = (
        "import sys, runpy; sys.modules['paddle'] = sys.modules['ppdet'] = sys.modules['torch'] = None\n"
        f"sys.argv = ['{tool}.py', '--help']; runpy.run_path({str(ROOT / 'tools' / f'{tool}.py')!r}, "
        "run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--weights" in done.stdout or "prepare" in done.stdout


def test_the_demo_draws_truth_and_the_best_boxes(tmp_path):
    import cv2

    root = write_coco(tmp_path / "coco", train=2, val=4)
    args = types.SimpleNamespace(data=root, output=tmp_path)
    boxes = [{"image_id": 1, "category_id": 1, "bbox": [30 * i, 100, 20, 60], "score": i / 10} for i in range(1, 6)]
    for start, found in (("pretrained", boxes), ("random", [])):
        (tmp_path / start).mkdir()
        (tmp_path / start / "bbox.json").write_text(json.dumps(found))
    draw_detections(args, tmp_path / "seen.png")
    seen = cv2.imread(str(tmp_path / "seen.png"))
    assert seen.shape == (3 * 240, 4 * 320, 3)

    def count(row: int, color: tuple[int, int, int]) -> int:
        """Columns of the first image in a row where a box's left or right side runs, at half its height."""
        line = seen[row * 240 + 162, :320].astype(int)
        return int((np.abs(line - color).max(axis=1) < 60).sum())

    assert 3 * 2 <= count(1, (40, 160, 255)) <= 3 * 2 * 4  # three boxes of five: two sides each, some pixels wide
    assert count(2, (40, 160, 255)) == 0


# The plug-in


@pytest.mark.parametrize("depth", [18, 50])
def test_the_dilated_backbone_holds_the_plain_one(depth, tmp_path):
    """Strides become dilations: at every second, or fourth, position the maps are the plain network's."""
    import paddle

    from passl_densecl.integrations.paddleseg_backbone import DenseCLResNet
    from passl_densecl.models.resnet import build_backbone

    plain = build_backbone(BackboneSpec(depth), seed=5)
    path = tmp_path / "plain.pdparams"
    write_pickle(path, {name: tensor.numpy() for name, tensor in plain.state_dict().items()})
    image = paddle.to_tensor(np.random.default_rng(0).standard_normal((1, 3, 64, 96)).astype("f4"))
    plain.eval()
    with paddle.no_grad():
        expected = [m.numpy() for m in plain.extract_feat(image, (0, 1, 2, 3))]
        for stride, steps in ((32, (1, 1, 1, 1)), (16, (1, 1, 1, 2)), (8, (1, 1, 2, 4))):
            network = DenseCLResNet(depth, stride, str(path))
            network.eval()
            maps = [m.numpy() for m in network(image)]
            assert [m.shape[1] for m in maps] == network.feat_channels
            assert maps[3].shape[2:] == (64 // stride, 96 // stride)
            for ours, theirs, step in zip(maps, expected, steps, strict=True):
                assert np.allclose(ours[:, :, ::step, ::step], theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


def test_the_backbone_refuses_what_does_not_fit(weights, tmp_path):
    from passl_densecl.integrations.paddleseg_backbone import DenseCLResNet

    for told, arguments in (
        ("depth 20", {"depth": 20}),
        ("output_stride 4", {"output_stride": 4}),
        ("in_channels 4", {"in_channels": 4}),
        ("ResNet-18|missing|expected", {"depth": 34, "pretrained": str(weights)}),
    ):
        with pytest.raises(InputError, match=told):
            DenseCLResNet(**arguments)


def test_the_plug_in_registers_before_the_tool_starts(tmp_path, monkeypatch, capsys):
    """With a stand-in for PaddleSeg: a registry of classes, and a tool that asks it."""
    (tmp_path / "paddleseg").mkdir()
    (tmp_path / "paddleseg" / "__init__.py").touch()
    (tmp_path / "paddleseg" / "cvlibs.py").write_text(
        "class Components:\n"
        "    def __init__(self): self.components_dict = {}\n"
        "    def add_component(self, c):\n"
        "        assert c.__name__ not in self.components_dict\n"
        "        self.components_dict[c.__name__] = c\n"
        "class manager: BACKBONES = Components()\n"
    )
    (tmp_path / "tools").mkdir()
    tool = tmp_path / "tools" / "train.py"
    tool.write_text(
        "import sys\nfrom paddleseg.cvlibs import manager\nprint(*manager.BACKBONES.components_dict, *sys.argv[1:])\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    plugin = ROOT / "passl_densecl" / "integrations" / "paddleseg_backbone.py"
    monkeypatch.setattr(sys, "argv", [str(plugin), str(tool), "--config", "x.yml"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(plugin), run_name="__main__")
    assert left.value.code == 0
    assert capsys.readouterr().out == "DenseCLResNet --config x.yml\n"
    for name in [name for name in sys.modules if name.split(".")[0] == "paddleseg"]:
        del sys.modules[name]


def test_without_paddleseg_the_plug_in_says_so(monkeypatch):
    from passl_densecl.integrations import paddleseg_backbone

    monkeypatch.setitem(sys.modules, "paddleseg", types.ModuleType("paddleseg"))
    with pytest.raises(InputError, match="PaddleSeg cannot be imported"):
        paddleseg_backbone.register()


def test_safe_yaml_reads_what_prepare_writes(weights, tmp_path):
    """PaddleSeg and detectron2 read with plain loaders: no tags of ours may be left."""
    for toolbox, model in (("paddleseg", None), ("detectron2", "mask_rcnn"), ("adelaidet", None), ("paddleclas", None)):
        assert yaml.safe_load(prepare(toolbox, weights, tmp_path / toolbox, model=model).config.read_text())
