"""Weights in a toolbox's names and a config scaled to the devices: everything that the training command needs."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from passl_densecl.disk import parse_json
from passl_densecl.errors import InputError, option
from passl_densecl.integrations.matching import Match, Network, count_matches
from passl_densecl.integrations.toolboxes import TOOLBOXES, Kind, Toolbox
from passl_densecl.integrations.yaml_files import BASES, Tagged, dump, find, put, read_yaml
from passl_densecl.weights.convert import TARGETS, Conversion, convert
from passl_densecl.weights.tables import Dtype
from passl_densecl.weights.vocabulary import BOTTLENECK_DEPTHS

PLUGIN = Path(__file__).resolve().parent / "paddleseg_backbone.py"
COCO_NAMES = (("train2017", "val2017"), ("train", "val"))


@dataclass(frozen=True)
class Scale:
    """How many images a step: `devices` × `images`; the recipe is written for `reference` of them."""

    devices: int  # 0 is the CPU, which counts as one
    images: int
    reference: int

    @property
    def total(self) -> int:
        return max(self.devices, 1) * self.images

    @property
    def factor(self) -> float:
        """What the learning rate is multiplied by, and the number of steps divided by."""
        return self.total / self.reference

    def rate(self, value: float) -> float:
        return float(f"{value * self.factor:.6g}")

    def steps(self, count: int) -> int:
        return max(round(count / self.factor), 1)


@dataclass(frozen=True)
class Prepared:
    """What was written, and how to go on; printed by :meth:`lines`."""

    conversion: Conversion
    toolbox: Toolbox
    model: str
    config: Path
    scale: Scale
    rate: float
    match: Match
    command: str
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """A report for people."""
        told, scale = self.conversion.report, self.scale
        device = f"{scale.devices} × GPU" if scale.devices else "CPU"
        weights = str(self.conversion.output)
        proof = self.toolbox.proof.format(count=self.match.total, weights=weights)
        return [
            f"read     {self.conversion.source} ({told.kind}): {told.kept}",
            *([f"dtype    {told.converted}"] if told.converted else []),
            f"wrote    {weights} ({self.toolbox.title}'s names; it will use {self.match.matched} of "
            f"{self.match.total}{f': {self.match.reason}' if self.match.reason else ''})",
            f"wrote    {self.config} ({self.model})",
            f"recipe   {device}, {scale.images} images each: {scale.total} a step (published: {scale.reference}), "
            f"learning rate {self.rate:g}",
            *(f"note     {note}" for note in self.notes),
            f"proof    in its log: {proof}",
            f"run      {self.command}",
        ]


def prepare(
    toolbox: Kind,
    weights: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: str | None = None,
    gpus: int = 8,
    images_per_gpu: int | None = None,
    data: str | os.PathLike[str] | None = None,
    toolbox_dir: str | os.PathLike[str] | None = None,
    prefix: str | None = None,
    dtype: Dtype = "float32",
) -> Prepared:
    """Write `output`/{weights, config} for a toolbox.

    Args:
        weights: a file, checkpoint or run folder of any kind that this project reads.
        model: a key of the toolbox's `models`; None is the first.
        gpus: devices to train on; 0 is the CPU. The learning rate follows the whole batch in proportion, and the number
            of images seen stays the recipe's.
        images_per_gpu: None takes as many as make the published batch, at most the toolbox's `images_per_device`.
        data: the data set's folder, in the toolbox's layout; COCO's categories are counted.
        toolbox_dir: a clone of the toolbox. With it the config stands where it is written; without, it must be copied.
        prefix: what stands before the wanted backbone's names, where the file cannot say.
        dtype: of the written weights.

    Raises:
        InputError: anything given does not fit; nothing is written before weights and config are read.
    """
    what = TOOLBOXES[toolbox]
    model, template = what.config(model)
    if gpus < 0 or (images_per_gpu is not None and images_per_gpu < 1):
        both = f"{option('gpus', gpus)}, {option('images_per_gpu', images_per_gpu)}"
        raise InputError(f"{both}: expected 0 or more, and 1 or more")
    images = images_per_gpu or max(min(what.total_batch // max(gpus, 1), what.images_per_device), 1)
    scale = Scale(gpus, images, what.total_batch)
    clone = _clone(what, toolbox_dir)
    root = _folder(data) if data is not None else None
    content = read_yaml(template)

    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    file = output / f"{Path(weights).stem or 'weights'}_{toolbox}{what.suffix}"
    conversion = convert(weights, file, what.target, prefix=prefix, dtype=dtype)
    depth = conversion.report.depth
    if _has_c4(toolbox, content) and depth not in BOTTLENECK_DEPTHS:
        raise InputError(
            f"{option('model', model)}: {what.title} builds res5 in the head from bottleneck blocks, whatever the "
            f"depth; weights of a ResNet-{depth} have no place there. Take {option('model', 'mask_rcnn')}, or weights "
            "of a ResNet-50 or deeper"
        )
    rate = _WRITERS[toolbox](content, conversion.output.resolve(), depth, scale, root)
    _place_bases(content, clone / what.place if clone else None)

    config = output / f"{model}_r{depth}.yml"
    config.write_text(_comments(template) + dump(content), encoding="utf-8")
    match = count_matches(conversion.output, _network(toolbox, content, depth))
    command = _command(what, config.resolve(), scale, clone, model)
    notes = (*conversion.notes, *_notes(toolbox, depth, scale))
    return Prepared(conversion, what, model, config, scale, rate, match, command, notes)


def _notes(toolbox: Kind, depth: int, scale: Scale) -> Iterator[str]:
    if (
        toolbox == "paddledetection" and depth not in BOTTLENECK_DEPTHS
    ):  # the other toolboxes have a setting, and it is set
        yield from TARGETS[TOOLBOXES[toolbox].target].shallow
    if scale.images < 2:
        yield "one image per device: BatchNorm depends entirely on the synchronization over devices"
    elif scale.total < scale.reference:
        yield f"{scale.total} images a step instead of {scale.reference}: BatchNorm sees fewer; results may be lower"


def _network(toolbox: Kind, content: dict[str, Any], depth: int) -> Network:
    is_c4 = _has_c4(toolbox, content)
    return Network(toolbox, depth, has_fpn=not is_c4, res5_in_head=is_c4)


def _has_c4(toolbox: Kind, content: dict[str, Any]) -> bool:
    return toolbox == "detectron2" and "Res5" in str(find(content, "MODEL", "ROI_HEADS", "NAME", default=""))


def _clone(toolbox: Toolbox, folder: str | os.PathLike[str] | None) -> Path | None:
    if folder is None:
        return None
    path = _folder(folder)
    if not (path / toolbox.place).parent.is_dir():
        raise InputError(
            f"{option('toolbox_dir', str(path))}: not a clone of {toolbox.title}, there is no folder "
            f"{Path(toolbox.place).parent}"
        )
    return path


def _folder(path: str | os.PathLike[str]) -> Path:
    path = Path(path).expanduser().resolve()
    if not path.is_dir():
        raise InputError(f"{path} is not a folder")
    return path


def _place_bases(content: dict[str, Any], place: Path | None) -> None:
    """Absolute paths to the toolbox's base files, so that the config may lie anywhere; as they are without a clone."""
    for key in BASES:
        if place is None or key not in content:
            continue
        bases = content[key]
        found = [os.path.normpath(place / base) for base in ([bases] if isinstance(bases, str) else bases)]
        missing = [base for base in found if not Path(base).is_file()]
        if missing:
            raise InputError(
                f"{option('toolbox_dir')}: {', '.join(missing)} is missing; is the clone complete, of a known version?"
            )
        content[key] = found[0] if isinstance(bases, str) else found


def _comments(template: Path) -> str:
    lines = template.read_text(encoding="utf-8").splitlines()
    head = [line for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]]
    return "\n".join([*head, f"# Written by densecl transfer prepare from {template.name}.", ""])


def _command(toolbox: Toolbox, config: Path, scale: Scale, clone: Path | None, model: str) -> str:
    place = str(clone) if clone else f"PATH/TO/{toolbox.title}"
    used = str(config) if clone else f"{toolbox.place}/{config.name}"
    configs = f"{place}/{toolbox.place}"
    steps = [] if clone else [f"mkdir -p {configs} && cp {shlex.quote(str(config))} {configs}/"]
    plugin = shlex.quote(str(PLUGIN))
    tool = toolbox.train.format(config=shlex.quote(used), gpus=scale.devices, plugin=plugin)
    if toolbox.name in ("detectron2", "adelaidet"):
        if model == "faster_rcnn_voc":  # its BatchNorm behind res5 is in the authors' script
            tool = tool.replace("tools/train_net.py", "PATH/TO/DenseCL/benchmarks/detection/train_net.py")
        device = "" if scale.devices else " MODEL.DEVICE cpu"
        launch = f"python {tool}{device}"
    elif scale.devices > 1:
        numbers = ",".join(map(str, range(scale.devices)))
        launch = f"python -m paddle.distributed.launch --gpus {numbers} {tool}"
    else:
        device = " --device cpu" if toolbox.name == "paddleseg" and not scale.devices else ""
        launch = f"python {tool}{device}"
    return " && ".join([*steps, f"cd {shlex.quote(place)}", launch])


# What each toolbox calls things. Each fills in weights, depth, batch, learning rate and data, and gives the learning
# rate.


def _paddledetection(content: dict[str, Any], weights: Path, depth: int, scale: Scale, root: Path | None) -> float:
    content["pretrain_weights"] = str(weights)
    content["ResNet"]["depth"] = depth
    content["TrainReader"]["batch_size"] = scale.images
    rate = content["LearningRate"]["base_lr"] = scale.rate(content["LearningRate"]["base_lr"])
    for schedule in content["LearningRate"]["schedulers"]:
        if isinstance(schedule, Tagged) and "steps" in schedule.value:  # epochs need no scaling
            schedule.value["steps"] = scale.steps(schedule.value["steps"])
    if not scale.devices:
        content |= {"use_gpu": False, "worker_num": 0}
        content["TrainReader"]["use_shared_memory"] = False
    if root is not None and any("coco" in str(base) for base in content["_BASE_"]):
        for section, (images, annotations) in zip(("TrainDataset", "EvalDataset"), coco_layout(root), strict=True):
            put(content, (section, "dataset_dir"), str(root))
            put(content, (section, "image_dir"), images)
            put(content, (section, "anno_path"), annotations)
        content["TestDataset"] = {"dataset_dir": str(root), "anno_path": coco_layout(root)[1][1]}
        content["num_classes"] = _categories(root / coco_layout(root)[0][1])
    elif root is not None:
        for section in ("TrainDataset", "EvalDataset"):
            put(content, (section, "dataset_dir"), str(root))
        put(content, ("TestDataset", "anno_path"), str(root / "label_list.txt"))
    return rate


def _paddleseg(content: dict[str, Any], weights: Path, depth: int, scale: Scale, root: Path | None) -> float:
    content["model"]["backbone"] |= {"depth": depth, "pretrained": str(weights)}
    content["batch_size"] = scale.images
    content["iters"] = scale.steps(content["iters"])
    rate = content["lr_scheduler"]["learning_rate"] = scale.rate(content["lr_scheduler"]["learning_rate"])
    content["lr_scheduler"]["end_lr"] = scale.rate(content["lr_scheduler"]["end_lr"])
    if root is not None:
        for section in ("train_dataset", "val_dataset"):
            put(content, (section, "dataset_root"), str(root))
    return rate


def _paddleclas(content: dict[str, Any], weights: Path, depth: int, scale: Scale, root: Path | None) -> float:
    content["Arch"]["name"] = f"ResNet{depth}"
    if depth < 50:  # the shortcut convolution of the first block, which other networks do not have
        content["Arch"]["use_first_short_conv"] = False
    content["Global"] |= {"pretrained_model": str(weights.with_suffix("")), "device": "gpu" if scale.devices else "cpu"}
    loaders = content["DataLoader"]
    loaders["Train"]["sampler"]["batch_size"] = scale.images
    rate = content["Optimizer"]["lr"]["learning_rate"] = scale.rate(content["Optimizer"]["lr"]["learning_rate"])
    if root is not None:
        for part, name in (("Train", "train_list.txt"), ("Eval", "val_list.txt")):
            loaders[part]["dataset"] |= {"image_root": str(root), "cls_label_path": str(root / name)}
            if not (root / name).is_file():
                raise InputError(f"{root / name} is missing: PaddleClas expects lists with lines 'image label'")
        labels = [line.rsplit(maxsplit=1)[-1] for line in (root / "train_list.txt").read_text().splitlines() if line]
        content["Arch"]["class_num"] = len(set(labels))
    return rate


def _detectron2(content: dict[str, Any], weights: Path, depth: int, scale: Scale, root: Path | None) -> float:
    if root is not None:
        raise InputError(
            f"{option('data')}: not for detectron2; put DETECTRON2_DATASETS=FOLDER in front of the command"
        )
    content["MODEL"]["WEIGHTS"] = str(weights)
    content["MODEL"]["RESNETS"]["DEPTH"] = depth
    if depth < 50:
        content["MODEL"]["RESNETS"]["RES2_OUT_CHANNELS"] = 64
    if not scale.devices:  # torch synchronizes on GPUs only
        for part in content["MODEL"].values():
            if isinstance(part, dict) and part.get("NORM") == "SyncBN":
                part["NORM"] = "BN"
    solver = content["SOLVER"]
    rate = solver["BASE_LR"] = scale.rate(solver["BASE_LR"])
    solver["IMS_PER_BATCH"] = scale.total
    solver["STEPS"] = [scale.steps(step) for step in solver["STEPS"]]
    for key in ("MAX_ITER", "WARMUP_ITERS"):
        solver[key] = scale.steps(solver[key])
    return rate


_WRITERS: dict[Kind, Callable[[dict[str, Any], Path, int, Scale, Path | None], float]] = {
    "paddledetection": _paddledetection,
    "paddleseg": _paddleseg,
    "paddleclas": _paddleclas,
    "detectron2": _detectron2,
    "adelaidet": _detectron2,
}


def coco_layout(root: Path) -> tuple[tuple[str, str], tuple[str, str]]:
    """((folder of images, annotations) for training, the same for evaluation), relative to `root` in COCO's layout."""
    for names in COCO_NAMES:
        annotations = [f"annotations/instances_{name}.json" for name in names]
        folders = [name if (root / name).is_dir() else f"images/{name}" for name in names]
        if all((root / path).is_file() for path in annotations) and all((root / path).is_dir() for path in folders):
            return (folders[0], annotations[0]), (folders[1], annotations[1])
    raise InputError(
        f"{root}: not in COCO's layout; expected annotations/instances_train2017.json and …_val2017.json beside the "
        "folders train2017 and val2017 (or images/train2017 …; or the same without 2017)"
    )


def _categories(path: Path) -> int:
    try:
        categories = parse_json(path.read_text(encoding="utf-8"))["categories"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a COCO annotation file ({type(error).__name__}: {error})") from None
    if not isinstance(categories, list):
        raise InputError(f"{path}: not a COCO annotation file: 'categories' is not a list")
    return len(categories)
