"""A user's own config against the protocol: what departs from it, what that costs, what to write instead.

Training runs without them too, and nothing warns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from passl_densecl.errors import InputError, option
from passl_densecl.integrations.matching import Match, Network, count_matches
from passl_densecl.integrations.toolboxes import TOOLBOXES, Kind
from passl_densecl.integrations.yaml_files import entries, find, resolve
from passl_densecl.text import quantity
from passl_densecl.transforms import MEAN, STD
from passl_densecl.weights.vocabulary import BOTTLENECK_DEPTHS, STAGE_BLOCKS

Config = dict[str, Any]

FROZEN = "BatchNorm keeps the statistics of pre-training, whose images, sizes and task were others, and cannot learn"
UNSYNCED = "every device normalizes by its own 2 images: noisy statistics in training, others in evaluation"
PIXELS = "the first layer sees values it was not trained on, and all layers after it"


@dataclass(frozen=True)
class Finding:
    """One departure. `key` is as the user would write it."""

    key: str
    found: str
    cost: str
    remedy: str


@dataclass(frozen=True)
class Checked:
    """What a config is and where it departs; printed by :meth:`lines`."""

    path: Path
    toolbox: Kind
    network: Network | None  # None where the backbone is no ResNet
    weights: str | None  # what the config starts from
    match: Match | None  # None where there is no file to count in
    findings: tuple[Finding, ...]

    def lines(self) -> list[str]:
        """A report for people."""
        what = f"ResNet-{self.network.depth}" if self.network else "not a supported ResNet"
        lines = [f"config   {self.path}: {TOOLBOXES[self.toolbox].title}, {what}"]
        if self.match is not None:
            word = "" if self.match.whole else ": the others start from random values"
            lines.append(f"weights  {self.weights}: {self.match.matched} of {self.match.total} tensors match{word}")
        else:
            why = f"give a file as {option('weights')}" if self.network else "they have no place in it"
            lines.append(f"weights  {self.weights or 'none named'}: not counted; {why}")
        for finding in self.findings:
            lines += [
                f"departs  {finding.key}: {finding.found}",
                f"         cost: {finding.cost}",
                f"         write: {finding.remedy}",
            ]
        count = len(self.findings)
        summary = f"{quantity(count, 'departure')} from the published protocol"
        lines.append(summary if count else "nothing departs from the protocol")
        return lines


def check(path: str | Path, weights: str | Path | None = None, gpus: int = 8) -> Checked:
    """Read a config with its bases and compare it with the protocol.

    Args:
        path: a YAML file of PaddleDetection, PaddleSeg, PaddleClas, detectron2 or AdelaiDet.
        weights: the file it will start from; None takes the one that the config names, where it is on this machine.
        gpus: devices it will run on, for the Paddle toolboxes, whose batch size is that of one device.

    Raises:
        InputError: no such file, no config of these toolboxes, a base that is missing, weights that cannot be read.
    """
    path = Path(path)
    config = resolve(path)
    toolbox = toolbox_of(config, path)
    if gpus < 1:
        raise InputError(f"{option('gpus', gpus)}: expected 1 or more")
    network = _NETWORKS[toolbox](config, toolbox)
    named = find(config, *_WEIGHTS_KEYS[toolbox])
    file = Path(weights) if weights is not None else _local(named, path)
    match = count_matches(file, network) if file is not None and network is not None else None
    findings = [*_RULES[toolbox](config, gpus)]
    if match is not None and not match.whole:
        findings.insert(0, _unmatched(match, network, toolbox, str(file)))
    elif weights is None and match is None:
        findings += _foreign_weights(named, toolbox)
    return Checked(path, toolbox, network, str(file) if file else named, match, tuple(findings))


def toolbox_of(config: Config, path: Path) -> Kind:
    """Whose config this is, by its keys. Raises InputError where no toolbox has such keys."""
    if isinstance(config.get("MODEL"), dict):
        meta = str(find(config, "MODEL", "META_ARCHITECTURE", default=""))
        of_adelaidet = meta in ("OneStageDetector", "OneStageRCNN", "SOLOv2", "CondInst", "BlendMask", "BAText")
        return "adelaidet" if of_adelaidet else "detectron2"
    if isinstance(config.get("Arch"), dict):
        return "paddleclas"
    if isinstance(config.get("architecture"), str):
        return "paddledetection"
    if isinstance(config.get("model"), dict):
        return "paddleseg"
    raise InputError(
        f"{path}: not a config of these toolboxes; expected architecture (PaddleDetection), model (PaddleSeg), Arch "
        f"(PaddleClas) or MODEL (detectron2, AdelaiDet) among {', '.join(map(str, config)) or 'no keys at all'}"
    )


# Weights


def _local(named: str | None, path: Path) -> Path | None:
    """The file that a config names, where it is on this machine: as named, or beside the config."""
    for text in (named, f"{named}.pdparams"):
        for place in (Path(), path.parent):
            if named and "://" not in named and (place / str(text)).is_file():
                return place / str(text)
    return None


def _unmatched(match: Match, network: Network | None, toolbox: Kind, file: str) -> Finding:
    what = TOOLBOXES[toolbox]
    command = f"densecl convert {file} OUT{what.suffix} --to {what.target}"
    deep = network is not None and network.deep_stem
    return Finding(
        "weights",
        f"{match.matched} of {match.total} tensors match; "
        + (match.reason or f"the file's names are like {match.example}"),
        "the rest starts from random values, and the toolbox says it has finished loading",
        "a plain 7×7 stem; see the settings below" if deep else f"{command}, for a backbone of this depth",
    )


def _foreign_weights(named: str | None, toolbox: Kind) -> Iterator[Finding]:
    if named is None or "://" in named:
        key, cost = ".".join(_WEIGHTS_KEYS[toolbox]), "the pre-trained weights are not used at all"
        yield Finding(key, named or "none", cost, "the file that `transfer.py prepare` writes")


# PaddleDetection


_PPDET_RATES = {"FCOS": 0.01, "SOLOv2": 0.01, "FasterRCNN": 0.02, "MaskRCNN": 0.02}  # published, for 16 images a step
_PPDET_HEADS = {  # box head → (cost, remedy)
    "Res5Head": (
        "PaddleDetection builds res5 in the head with its BatchNorm frozen, and no setting changes it",
        "an FPN (configs/downstream/paddledetection), or detectron2 for C4",
    ),
    "TwoFCHead": (
        "no BatchNorm in the box head: not the network of the published results",
        "BBoxHead: {head: XConvNormHead}  XConvNormHead: {num_convs: 4, norm_type: sync_bn}",
    ),
}


def _ppdet_backbone(config: Config) -> str:
    return str(find(config, config["architecture"], "backbone", default="ResNet"))


def _ppdet_network(config: Config, toolbox: Kind) -> Network | None:
    if _ppdet_backbone(config) != "ResNet":
        return None
    settings = config.get("ResNet") or {}
    variant, depth = settings.get("variant", "b"), settings.get("depth", 50)
    if depth not in STAGE_BLOCKS:
        return None
    in_head = find(config, "BBoxHead", "head") == "Res5Head"
    return Network(toolbox, depth, variant in ("c", "d"), variant == "d", res5_in_head=in_head)


def _ppdet_rules(config: Config, gpus: int) -> Iterator[Finding]:
    if _ppdet_backbone(config) != "ResNet":
        yield _other_backbone(f"{config['architecture']}.backbone", _ppdet_backbone(config), "ResNet")
        return
    resnet, shared = config.get("ResNet") or {}, config.get("norm_type")
    variant = resnet.get("variant", "b")
    if variant != "b":
        yield _variant(variant)
    if resnet.get("freeze_norm", True):
        yield Finding("ResNet.freeze_norm", _or_default(resnet, "freeze_norm", "true"), FROZEN, "freeze_norm: false")
    if (frozen := resnet.get("freeze_at", 0)) >= 0:
        stages = ", ".join(["the stem", *(f"res{stage + 2}" for stage in range(min(frozen + 1, 4)))])
        cost = f"{stages} cannot adapt to the task; the published results trained everything"
        yield Finding("ResNet.freeze_at", _or_default(resnet, "freeze_at", "0"), cost, "freeze_at: -1")
    if shared != "sync_bn":
        # The trainer synchronizes on this key alone, whatever ResNet.norm_type says.
        yield Finding("norm_type", str(shared or "absent, bn"), UNSYNCED, "norm_type: sync_bn, at the top level")
    if "neck" in (config.get(config["architecture"]) or {}) and find(config, "FPN", "norm_type") != "sync_bn":
        found = find(config, "FPN", "norm_type", default="none")
        yield Finding("FPN.norm_type", str(found), "the pyramid is the recipe's no more", "FPN: {norm_type: sync_bn}")
    head = find(config, "BBoxHead", "head")
    if head in _PPDET_HEADS:
        yield Finding("BBoxHead.head", head, *_PPDET_HEADS[head])
    if any(factor != 1 for factor in resnet.get("lr_mult_list", [])):
        yield Finding("ResNet.lr_mult_list", str(resnet["lr_mult_list"]), "stages learn too slowly", "leave it out")
    for reader in ("TrainReader", "EvalReader"):
        yield from _pixels(reader, find(config, reader, "sample_transforms"), "NormalizeImage", (MEAN, STD))
    total = find(config, "TrainReader", "batch_size", default=1) * gpus
    yield from _batch("TrainReader.batch_size", total, gpus)
    rate, reference = find(config, "LearningRate", "base_lr"), _PPDET_RATES.get(config["architecture"])
    yield from _rate("LearningRate.base_lr", rate, reference, total)


def _variant(variant: str) -> Finding:
    if variant == "a":
        cost = "the stride is in the 1×1 convolution: the same weights give other feature maps"
    else:
        cost = "a deep stem: the stem starts from random values, which changes every feature map"
    return Finding("ResNet.variant", variant, cost, "variant: b")


# PaddleSeg and PaddleClas


def _seg_network(config: Config, toolbox: Kind) -> Network | None:
    backbone = find(config, "model", "backbone", default={})
    return Network(toolbox, backbone.get("depth", 50)) if backbone.get("type") == "DenseCLResNet" else None


def _seg_rules(config: Config, gpus: int) -> Iterator[Finding]:
    kind = find(config, "model", "backbone", "type")
    if kind != "DenseCLResNet":
        yield _other_backbone("model.backbone.type", str(kind), "DenseCLResNet, with its plug-in (docs/downstream.md)")
    for section in ("train_dataset", "val_dataset"):
        yield from _pixels(section, find(config, section, "transforms"), "Normalize", ((0.5,) * 3, (0.5,) * 3))
    total = find(config, "batch_size", default=1) * gpus
    yield from _batch("batch_size", total, gpus)
    if find(config, "model", "type") == "FCN":
        yield from _rate("lr_scheduler.learning_rate", find(config, "lr_scheduler", "learning_rate"), 0.01, total)


def _clas_network(config: Config, toolbox: Kind) -> Network | None:
    name = str(config["Arch"].get("name", ""))
    depth = name.removeprefix("ResNet").removesuffix("_vd")
    if not depth.isdigit() or int(depth) not in STAGE_BLOCKS:
        return None
    return Network(toolbox, int(depth), deep_stem=name.endswith("_vd"), pooled_shortcuts=name.endswith("_vd"))


def _clas_rules(config: Config, gpus: int) -> Iterator[Finding]:
    network, name = _clas_network(config, "paddleclas"), str(config["Arch"].get("name"))
    if network is None:
        yield _other_backbone("Arch.name", name, "ResNet50")
    elif network.deep_stem:
        cost = "a deep stem, which starts from random values and changes every feature map; and pooled shortcuts"
        yield Finding("Arch.name", name, cost, f"Arch.name: {name.removesuffix('_vd')}")
    if config["Arch"].get("pretrained"):
        cost = "PaddleClas's own weights are loaded first, and stay wherever yours do not fit"
        yield Finding("Arch.pretrained", str(config["Arch"]["pretrained"]), cost, "Arch.pretrained: false")
    for part in ("Train", "Eval"):
        steps = find(config, "DataLoader", part, "dataset", "transform_ops")
        yield from _pixels(f"DataLoader.{part}", steps, "NormalizeImage", (MEAN, STD))
        if any(step.get("to_rgb") is False for step in entries(steps, "DecodeImage")):
            yield Finding(f"DataLoader.{part}.DecodeImage.to_rgb", "false", f"BGR: {PIXELS}", "to_rgb: true")


# detectron2 and AdelaiDet


def _detectron2_network(config: Config, toolbox: Kind) -> Network | None:
    has_fpn = "fpn" in str(find(config, "MODEL", "BACKBONE", "NAME", default=""))
    depth = find(config, "MODEL", "RESNETS", "DEPTH", default=50)
    if depth not in STAGE_BLOCKS or "resnet" not in str(find(config, "MODEL", "BACKBONE", "NAME", default="resnet")):
        return None
    in_head = not has_fpn and "Res5" in str(find(config, "MODEL", "ROI_HEADS", "NAME", default="Res5ROIHeads"))
    return Network(toolbox, depth, has_fpn=has_fpn, res5_in_head=in_head)


# key below MODEL → (what detectron2 takes where it is absent, what must stand there, cost)
_DETECTRON2 = (
    (("RESNETS", "STRIDE_IN_1X1"), True, False, "the weights load without a warning; res5's maps are off by a quarter"),
    (("RESNETS", "NORM"), "FrozenBN", "SyncBN", FROZEN),
    (("BACKBONE", "FREEZE_AT"), 2, 0, "the first stages cannot adapt to the task; the published results trained all"),
)


def _detectron2_rules(config: Config, gpus: int) -> Iterator[Finding]:
    model = config["MODEL"]
    name = str(find(model, "BACKBONE", "NAME", default="build_resnet_backbone"))
    if "resnet" not in name:
        yield _other_backbone("MODEL.BACKBONE.NAME", name, "a ResNet")
        return
    for keys, default, wanted, cost in _DETECTRON2:
        value = find(model, *keys, default=None)
        if (default if value is None else value) != wanted:
            found = f"absent, {default}" if value is None else str(value)
            yield Finding(f"MODEL.{'.'.join(keys)}", found, cost, f"MODEL.{'.'.join(keys)} {wanted}")
    yield from _detectron2_pixels(config)
    parts = [("FPN", "fpn" in name)]
    parts += [("ROI_BOX_HEAD", find(model, "ROI_BOX_HEAD", "NAME") == "FastRCNNConvFCHead")]
    parts += [("ROI_MASK_HEAD", bool(model.get("MASK_ON")) and "fpn" in name and "ROI_MASK_HEAD" in model)]
    for part, is_used in parts:
        norm = find(model, part, "NORM", default="")
        if is_used and norm != "SyncBN":
            key, cost = f"MODEL.{part}.NORM", "not the network of the published results"
            yield Finding(key, str(norm or "none"), cost, f"{key} SyncBN")
    network = _detectron2_network(config, "detectron2")
    if network is not None and network.res5_in_head and network.depth not in BOTTLENECK_DEPTHS:
        cost = "the head builds res5 from bottleneck blocks at any depth: that stage starts from random values"
        yield Finding("MODEL.RESNETS.DEPTH", str(network.depth), cost, "50 or 101 for C4, or an FPN")
    if find(model, "ROI_HEADS", "NAME") == "Res5ROIHeads":
        cost = "no BatchNorm after res5: the box predictor starts on unnormalized values"
        remedy = "Res5ROIHeadsExtraNorm, from the authors' benchmarks/detection/train_net.py"
        yield Finding("MODEL.ROI_HEADS.NAME", "Res5ROIHeads", cost, remedy)
    total = find(config, "SOLVER", "IMS_PER_BATCH", default=16)
    yield from _batch("SOLVER.IMS_PER_BATCH", total, 1)
    reference = 0.01 if find(model, "META_ARCHITECTURE") in ("OneStageDetector", "SOLOv2") else 0.02
    yield from _rate("SOLVER.BASE_LR", find(config, "SOLVER", "BASE_LR", default=0.001), reference, total)


def _detectron2_pixels(config: Config) -> Iterator[Finding]:
    form = find(config, "INPUT", "FORMAT", default="BGR")
    mean = find(config, "MODEL", "PIXEL_MEAN", default=[103.53, 116.28, 123.675])
    std = find(config, "MODEL", "PIXEL_STD", default=[1.0, 1.0, 1.0])
    if form != "RGB":
        yield Finding("INPUT.FORMAT", str(form), f"red and blue are exchanged: {PIXELS}", "INPUT.FORMAT RGB")
    if not _close(mean, [255 * value for value in MEAN]):
        yield Finding("MODEL.PIXEL_MEAN", str(mean), PIXELS, "MODEL.PIXEL_MEAN [123.675,116.28,103.53]")
    if not _close(std, [255 * value for value in STD]):
        yield Finding("MODEL.PIXEL_STD", str(std), PIXELS, "MODEL.PIXEL_STD [58.395,57.12,57.375]")


# What toolboxes share


def _other_backbone(key: str, found: str, wanted: str) -> Finding:
    return Finding(key, found, "another network, which cannot take these weights", wanted)


def _or_default(settings: Config, key: str, default: str) -> str:
    return str(settings[key]).lower() if key in settings else f"absent, {default}"


def _pixels(
    where: str, steps: object, name: str, defaults: tuple[Sequence[float], Sequence[float]]
) -> Iterator[Finding]:
    """The step that normalizes pixels, in every transform list that has one."""
    for step in entries(steps, name):
        mean, std = step.get("mean", list(defaults[0])), step.get("std", list(defaults[1]))
        if not _close(mean, MEAN) or not _close(std, STD):
            wanted = f"mean: {list(MEAN)}, std: {list(STD)}"
            yield Finding(f"{where}.{name}", f"mean {list(mean)}, std {list(std)}", PIXELS, wanted)
        if step.get("is_scale") is False or step.get("norm_type") == "none":
            yield Finding(f"{where}.{name}", "is_scale false, or norm_type none", PIXELS, "is_scale: true")
    if isinstance(steps, list) and not entries(steps, name):
        yield Finding(f"{where}.{name}", "absent", PIXELS, f"{name} with mean {list(MEAN)}, std {list(STD)}")


def _batch(key: str, total: int, gpus: int) -> Iterator[Finding]:
    if total != 16:
        over = f" over {gpus} devices ({option('gpus')})" if gpus > 1 else ""
        cost = "not the published step; the learning rate and the number of steps must follow"
        yield Finding(key, f"{total} images a step{over}", cost, "16 in all, or scale both: `transfer.py prepare` does")


def _rate(key: str, rate: object, reference: float | None, total: int) -> Iterator[Finding]:
    if reference is None or not isinstance(rate, (int, float)):
        return
    wanted = reference * total / 16
    if not math.isclose(rate, wanted, rel_tol=0.02):
        cost = f"the recipe has {reference} for 16 images a step, in proportion {wanted:g} for {total}"
        yield Finding(key, f"{rate:g}", cost, f"{wanted:g}")


def _close(values: object, wanted: Sequence[float]) -> bool:
    if not isinstance(values, (list, tuple)) or len(values) != len(wanted):
        return False
    return all(math.isclose(v, w, rel_tol=0.01) for v, w in zip(values, wanted, strict=True))


_NETWORKS: dict[Kind, Callable[[Config, Kind], Network | None]] = {
    "paddledetection": _ppdet_network,
    "paddleseg": _seg_network,
    "paddleclas": _clas_network,
    "detectron2": _detectron2_network,
    "adelaidet": _detectron2_network,
}
_WEIGHTS_KEYS: dict[Kind, tuple[str, ...]] = {
    "paddledetection": ("pretrain_weights",),
    "paddleseg": ("model", "backbone", "pretrained"),
    "paddleclas": ("Global", "pretrained_model"),
    "detectron2": ("MODEL", "WEIGHTS"),
    "adelaidet": ("MODEL", "WEIGHTS"),
}
_RULES: dict[Kind, Callable[[Config, int], Iterator[Finding]]] = {
    "paddledetection": _ppdet_rules,
    "paddleseg": _seg_rules,
    "paddleclas": _clas_rules,
    "detectron2": _detectron2_rules,
    "adelaidet": _detectron2_rules,
}
