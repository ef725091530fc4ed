"""`make test-detectron2 SOURCE=DIR`: detectron2, and AdelaiDet where it is installed, load what `prepare` wrote.

Two environments take part, as at a user's. ``--reference`` runs where Paddle is, without torch: it writes weights,
prepares them for every model and depth, and keeps the maps of our own backbone. The rest runs where detectron2 is,
without Paddle: every tensor of the toolbox's backbone is compared with the weights that went in, its last map with
ours, and Mask R-CNN, FCOS and SOLOv2 train a few steps on the CPU.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
from steps import compare, image, random_weights, run

from passl_densecl.config import BackboneSpec
from passl_densecl.integrations.matching import Network
from passl_densecl.integrations.prepare import coco_layout, prepare
from passl_densecl.integrations.toolboxes import Kind
from passl_densecl.weights.files import read_arrays
from passl_densecl.weights.load import load_strict
from passl_densecl.weights.writing import write_pickle

DEPTHS = (50, 101)
MODELS: dict[Kind, tuple[str, ...]] = {"detectron2": ("mask_rcnn", "faster_rcnn_voc"), "adelaidet": ("fcos", "solov2")}
TOLERANCE = 1e-4  # of C5, as a share of its largest value
SMALL = {
    "INPUT.MIN_SIZE_TRAIN": "(128,)",
    "INPUT.MAX_SIZE_TRAIN": 192,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.MAX_ITER": 3,
    "SOLVER.WARMUP_ITERS": 1,
    "SOLVER.STEPS": "()",
    "SOLVER.IMS_PER_BATCH": 2,
    "TEST.PRECISE_BN.ENABLED": False,
    "DATASETS.TRAIN": ("small",),
    "DATASETS.TEST": "()",
    "SEED": 0,
}


def folder(scratch: Path, toolbox: str, model: str, depth: int) -> Path:
    return scratch / f"{toolbox}_{model}_{depth}"


# Where Paddle is


def write_reference(scratch: Path, source: Path, adelaidet: Path | None) -> None:
    """Weights in files of every model, and our maps of one image: C4 and C5."""
    import paddle

    from passl_densecl.models.resnet import build_backbone

    for depth in DEPTHS:
        weights = scratch / f"r{depth}.pdparams"
        arrays = random_weights(depth)
        write_pickle(weights, arrays)
        backbone = build_backbone(BackboneSpec(depth), seed=None)
        load_strict(backbone, arrays)
        backbone.eval()
        with paddle.no_grad():
            c4, c5 = backbone.extract_feat(paddle.to_tensor(image()), (2, 3))
        np.savez(scratch / f"r{depth}.npz", c4=c4.numpy(), c5=c5.numpy())
        for toolbox, clone in (("detectron2", source), ("adelaidet", adelaidet)):
            for model in MODELS[toolbox] if clone else ():
                output = folder(scratch, toolbox, model, depth)
                prepare(toolbox, weights, output, model=model, gpus=0, images_per_gpu=2, toolbox_dir=clone)
    print(
        f"reference: ResNet-{' and -'.join(map(str, DEPTHS))}, prepared with Paddle {paddle.__version__}, without torch"
    )


# Where detectron2 is


def configured(scratch: Path, toolbox: Kind, model: str, depth: int, settings: dict[str, Any] | None = None) -> Any:
    """The toolbox's own configuration from the file that `prepare` wrote."""
    if toolbox == "adelaidet":
        import adet.modeling  # noqa: F401  (registers the networks)
        from adet.config import get_cfg
    else:
        from detectron2.config import get_cfg
    config = get_cfg()
    config.merge_from_file(str(folder(scratch, toolbox, model, depth) / f"{model}_r{depth}.yml"))
    settings = {"MODEL.DEVICE": "cpu"} | (settings or {})
    config.merge_from_list([word for setting in settings.items() for word in setting])
    return config


def know_extra_norm() -> None:
    """The box head of the VOC recipe, as the authors' script registers it: a BatchNorm behind res5."""
    from detectron2.layers import get_norm
    from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads

    class Res5ROIHeadsExtraNorm(Res5ROIHeads):
        @classmethod
        def _build_res5_block(cls, cfg):
            block, channels = super()._build_res5_block(cfg)
            block.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
            return block, channels

    ROI_HEADS_REGISTRY.register(Res5ROIHeadsExtraNorm)


def loaded(config: Any, toolbox: Kind) -> tuple[Any, Any, str]:
    """(model with the file of the config in it, what the toolbox calls missing or unexpected, its log)."""
    from detectron2.modeling import build_model

    if toolbox == "adelaidet":
        from adet.checkpoint import AdetCheckpointer as Checkpointer
    else:
        from detectron2.checkpoint import DetectionCheckpointer as Checkpointer

    class Telling(Checkpointer):
        def _log_incompatible_keys(self, incompatible):
            self.told = incompatible
            super()._log_incompatible_keys(incompatible)

    log = io.StringIO()
    for name in ("detectron2", "fvcore"):
        logging.getLogger(name).setLevel(logging.INFO)
        logging.getLogger(name).addHandler(logging.StreamHandler(log))
    model = build_model(config)
    checkpointer = Telling(model)
    checkpointer.load(config.MODEL.WEIGHTS)
    print(log.getvalue())
    return model, checkpointer.told, log.getvalue()


def last_map(model: Any, in_head: bool) -> np.ndarray:
    """The toolbox's C5 of the image; behind it, C4 networks have a BatchNorm of their own that is left out."""
    import torch

    model.eval()
    with torch.no_grad():
        values = torch.from_numpy(image())
        if not in_head:
            return model.backbone.bottom_up(values)["res5"].numpy()
        values = model.backbone(values)["res4"]
        for name, block in model.roi_heads.res5.named_children():
            values = values if name == "norm" else block(values)
    return values.numpy()


def network_of(toolbox: Kind, model: str, depth: int) -> Network:
    is_c4 = model == "faster_rcnn_voc"
    return Network(toolbox, depth, has_fpn=not is_c4, res5_in_head=is_c4)


def prove_backbone(scratch: Path, toolbox: Kind, model: str, depth: int) -> str:
    """Every tensor and the last map, loaded by the toolbox's checkpointer; only its FPN and heads are missing."""
    if model == "faster_rcnn_voc":
        know_extra_norm()
    built, told, log = loaded(configured(scratch, toolbox, model, depth), toolbox)
    network, arrays = network_of(toolbox, model, depth), read_arrays(scratch / f"r{depth}.pdparams")
    equal, total = compare(built.state_dict(), arrays, network), len(arrays)
    modules = next(line for line in log.splitlines() if "Total num: " in line).split("Total num: ")[1]
    missing = set(told.missing_keys) & set(network.shapes())
    difference, size = distance(built, network, scratch)
    assert equal == total, f"{equal} of {total} tensors"
    assert not missing, f"missing from the backbone: {sorted(missing)[:5]}"
    assert not told.unexpected_keys, f"unexpected: {told.unexpected_keys[:5]}"
    assert not told.incorrect_shapes, f"shapes: {told.incorrect_shapes[:5]}"
    assert difference < TOLERANCE * size, f"C5 differs by {difference} of {size}"
    return (
        f"{toolbox} {model} ResNet-{depth}: {equal}/{total} tensors equal ({modules} modules), 0 of the backbone "
        f"missing, 0 unexpected; largest difference of C5 {difference:.1e}, its largest value {size:.2f}"
    )


def distance(model: Any, network: Network, scratch: Path) -> tuple[float, float]:
    """(largest difference from our C5, largest value of ours)."""
    ours = np.load(scratch / f"r{network.depth}.npz")["c5"]
    return float(np.abs(last_map(model, network.res5_in_head) - ours).max()), float(np.abs(ours).max())


def prove_stride(scratch: Path, toolbox: Kind, model: str, depth: int) -> str:
    """The comparison can fail: with the toolbox's default stride the same file loads as silently and C5 is another."""
    built, told, _ = loaded(configured(scratch, toolbox, model, depth, {"MODEL.RESNETS.STRIDE_IN_1X1": True}), toolbox)
    network, arrays = network_of(toolbox, model, depth), read_arrays(scratch / f"r{depth}.pdparams")
    equal = compare(built.state_dict(), arrays, network)
    assert equal == len(arrays), f"{equal} of {len(arrays)} tensors"
    assert not told.unexpected_keys + told.incorrect_shapes, "it says something after all"
    difference, size = distance(built, network, scratch)
    assert difference > 0.01 * size, f"C5 differs by {difference} of {size} only"
    return (
        f"control: with STRIDE_IN_1X1 True {equal}/{len(arrays)} load as well, without a word, and C5 differs by up to "
        f"{difference:.2f}, its largest value {size:.2f}"
    )


def prove_names(scratch: Path, toolbox: Kind, model: str, depth: int) -> str:
    """The comparison can fail: of a file in paddle.vision's names nothing is loaded, and the toolbox does not mind."""
    foreign = scratch / "foreign.pkl"
    write_pickle(foreign, {"model": read_arrays(scratch / f"r{depth}.pdparams"), "__author__": "test"})
    config = configured(scratch, toolbox, model, depth, {"MODEL.WEIGHTS": str(foreign)})
    built, told, _ = loaded(config, toolbox)
    network, arrays = network_of(toolbox, model, depth), read_arrays(scratch / f"r{depth}.pdparams")
    equal = compare(built.state_dict(), arrays, network)
    assert equal == 0, f"{equal} tensors of a file with foreign names were loaded"
    unexpected = len(told.unexpected_keys)
    return f"control: of a file with paddle.vision's names 0/{len(arrays)}, {unexpected} unexpected, no error"


def prove_training(scratch: Path, toolbox: Kind, model: str, depth: int, data: str) -> str:
    """Three steps of the toolbox's own trainer start from the weights, and no part of the backbone stays frozen."""
    from coco import write_coco
    from detectron2.data.datasets import register_coco_instances
    from detectron2.engine import DefaultTrainer

    root = Path(data) if data else write_coco(scratch / "coco")
    images, annotations = coco_layout(root)[0]
    register_coco_instances("small", {}, str(root / annotations), str(root / images))
    count = len(json.loads((root / annotations).read_text())["categories"])
    output = scratch / f"trained_{toolbox}_{model}"
    classes = {"mask_rcnn": "ROI_HEADS", "fcos": "FCOS", "solov2": "SOLOV2"}[model]
    settings = SMALL | {f"MODEL.{classes}.NUM_CLASSES": count, "OUTPUT_DIR": str(output)}
    config = configured(scratch, toolbox, model, depth, settings)
    output.mkdir(exist_ok=True)
    (output / "metrics.json").unlink(missing_ok=True)
    trainer = DefaultTrainer(config)
    trainer.resume_or_load(resume=False)
    network, arrays = network_of(toolbox, model, depth), read_arrays(scratch / f"r{depth}.pdparams")
    before = compare(trainer.model.state_dict(), arrays, network)
    losses = watched(trainer)
    trainer.train()
    after = compare(trainer.model.state_dict(), arrays, network)
    assert before == len(arrays), f"{before} of {len(arrays)} tensors at the first step"
    assert len(losses) == 3, f"{len(losses)} steps"
    assert np.isfinite(losses).all(), f"losses {losses}"
    assert after == 0, f"{after} of {len(arrays)} tensors did not move: something is frozen"
    told = " ".join(f"{loss:.3f}" for loss in losses)
    return (
        f"{toolbox} {model} trains: {before}/{len(arrays)} tensors at the first step, losses {told}, all of them moved"
    )


def watched(trainer: Any) -> list[float]:
    """A list that the trainer's steps fill with their losses."""
    losses: list[float] = []
    inner = trainer._trainer
    write = inner._write_metrics

    def keep(loss_dict: dict, *others: Any, **named: Any) -> None:
        losses.append(float(sum(value.detach() for value in loss_dict.values())))
        write(loss_dict, *others, **named)

    inner._write_metrics = keep
    return losses


STEPS: dict[str, tuple] = {
    f"{toolbox}_{model}_{depth}": (prove_backbone, toolbox, model, depth)
    for toolbox, models in MODELS.items()
    for model in models
    for depth in DEPTHS
}
STEPS |= {
    "stride": (prove_stride, "detectron2", "mask_rcnn", 50),
    "names": (prove_names, "detectron2", "mask_rcnn", 50),
    "train_mask_rcnn": (prove_training, "detectron2", "mask_rcnn", 50),
    "train_fcos": (prove_training, "adelaidet", "fcos", 50),
    "train_solov2": (prove_training, "adelaidet", "solov2", 50),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, required=True, help="a folder for weights, configs and logs")
    parser.add_argument("--reference", action="store_true", help="write what the rest compares with (Paddle's side)")
    parser.add_argument("--source", type=Path, help="a checkout of detectron2, with --reference")
    parser.add_argument("--adelaidet", type=Path, help="a checkout of AdelaiDet, which must be installed too")
    parser.add_argument("--data", type=Path, help="a folder in COCO's layout (default: drawn shapes)")
    parser.add_argument("--step", choices=tuple(STEPS), help="run one step here, in this process")
    parser.add_argument("--time-limit", type=float, default=900, help="seconds a step may take")
    args = parser.parse_args()
    scratch, data = args.scratch.resolve(), str(args.data.resolve()) if args.data else ""
    scratch.mkdir(parents=True, exist_ok=True)
    if args.reference:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
        write_reference(scratch, args.source, args.adelaidet)
        return 0
    if args.step:
        sys.modules["paddle"] = None  # pyright: ignore[reportArgumentType]
        step, toolbox, model, depth = STEPS[args.step]
        more = (data,) if step is prove_training else ()
        print(f"proved {step(scratch, toolbox, model, depth, *more)}", flush=True)
        return 0
    names = [name for name, (_, toolbox, *_) in STEPS.items() if toolbox == "detectron2" or args.adelaidet]
    arguments = ["--data", data] if data else []
    return 1 if [name for name in names if not run(__file__, name, scratch, arguments, args.time_limit)] else 0


if __name__ == "__main__":
    sys.exit(main())
