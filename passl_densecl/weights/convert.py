"""One weight file into another: read whatever it is, check every name, write what another project expects.

Everything goes through ``paddle.vision``'s names and Paddle's layouts (``vocabulary.py``, ``names.py``, ``state.py``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from passl_densecl.errors import InputError, option
from passl_densecl.weights.card import BACKBONE, CLASSIFIER, FOREIGN, PRETRAINING, Card, Parent
from passl_densecl.weights.files import read_weights, weights_file
from passl_densecl.weights.names import Extraction, extract_backbone
from passl_densecl.weights.recorded import recorded_backbone, recorded_card
from passl_densecl.weights.state import read_state, write_state
from passl_densecl.weights.tables import Dtype, beside, in_dtype, unwrap
from passl_densecl.weights.vocabulary import BOTTLENECK_DEPTHS, VOCABULARIES, translate
from passl_densecl.weights.writing import write_weights

PIXELS = "RGB input, 0–255, minus (123.675, 116.28, 103.53), divided by (58.395, 57.12, 57.375)"
AUTHOR = "passl_densecl"  # detectron2 renames the weights of an author called Caffe2


@dataclass(frozen=True)
class Target:
    """What a project expects of a file of weights, and the settings that must go with it ({depth}, {file}, {stem})."""

    title: str
    vocabulary: str
    suffixes: tuple[str, ...]
    settings: tuple[str, ...]
    backbone: str = ""  # stands before the backbone's names
    classifier: str | None = None  # stands before 'weight' and 'bias' of the classifier, where there is a place for it
    wrapper: str | None = None  # the entry of the file that holds the weights; None for the file itself
    beside: tuple[tuple[str, Any], ...] = ()  # the other entries
    shallow: tuple[str, ...] = ()  # settings for ResNet-18 and 34 in addition


TARGETS = {
    "paddle": Target(
        "paddle.vision and PASSL",
        "paddle",
        (".pdparams", ".pd"),
        (PIXELS, "paddle.vision.models.resnet{depth}(num_classes=0, with_pool=False) without a classifier in the file"),
        classifier="fc.",
    ),
    "torchvision": Target(
        "torchvision",
        "torchvision",
        (".pth", ".pt"),
        (
            PIXELS,
            "torchvision.models.resnet{depth}(); set model.fc = torch.nn.Identity() to load a file without a "
            "classifier strictly",
        ),
        classifier="fc.",
    ),
    "mmpretrain": Target(
        "mmpretrain",
        "torchvision",
        (".pth",),
        (
            PIXELS + " (data_preprocessor: mean, std, to_rgb=True)",
            "backbone=dict(type='ResNet', depth={depth}, style='pytorch', frozen_stages=-1, norm_eval=False, "
            "norm_cfg=dict(type='SyncBN', requires_grad=True), "
            "init_cfg=dict(type='Pretrained', checkpoint='{file}', prefix='backbone.'))",
        ),
        backbone="backbone.",
        classifier="head.fc.",
        wrapper="state_dict",
        beside=(("meta", {}),),
    ),
    "detectron2": Target(
        "detectron2",
        "detectron2",
        (".pkl",),
        (
            "MODEL.WEIGHTS {file}  MODEL.RESNETS.DEPTH {depth}  MODEL.RESNETS.STRIDE_IN_1X1 False",
            "INPUT.FORMAT RGB  MODEL.PIXEL_MEAN [123.675,116.28,103.53]  MODEL.PIXEL_STD [58.395,57.12,57.375]",
            "MODEL.BACKBONE.FREEZE_AT 0  MODEL.RESNETS.NORM SyncBN, and SyncBN in the neck and heads too (FPN.NORM, "
            "ROI_BOX_HEAD.NORM, ROI_MASK_HEAD.NORM)",
        ),
        wrapper="model",
        beside=(("__author__", AUTHOR), ("matching_heuristics", True)),
        shallow=("MODEL.RESNETS.RES2_OUT_CHANNELS 64",),
    ),
    "paddleclas": Target(
        "PaddleClas",
        "paddleclas",
        (".pdparams",),
        (
            PIXELS + " (NormalizeImage: scale 1/255, mean [0.485,0.456,0.406], std [0.229,0.224,0.225])",
            "Arch.name: ResNet{depth} (not ResNet{depth}_vd), Global.pretrained_model: {stem} (without .pdparams)",
        ),
        classifier="fc.",
        shallow=(
            "Arch.use_first_short_conv: False; otherwise the first block has a shortcut convolution, for which the "
            "file holds the identity (exact in evaluation only)",
        ),
    ),
    "paddledetection": Target(
        "PaddleDetection",
        "paddledetection",
        (".pdparams",),
        (
            "pretrain_weights: {file}  ResNet: {{depth: {depth}, variant: b, norm_type: sync_bn, freeze_norm: false, "
            "freeze_at: -1}}  norm_type: sync_bn (at the top level, for neck and heads)",
            PIXELS + " (NormalizeImage: is_scale true, mean [0.485,0.456,0.406], std [0.229,0.224,0.225])",
        ),
        shallow=(
            "the first block has a shortcut convolution there, for which the file holds the identity: exact in "
            "evaluation and with freeze_norm: true; a trained BatchNorm normalizes the map at that place",
        ),
    ),
    "safetensors": Target(
        "safetensors (torchvision's names)",
        "torchvision",
        (".safetensors",),
        (PIXELS, "the names are torchvision's and timm's: resnet{depth}"),
        classifier="fc.",
    ),
}

_STATE_SETTINGS = ("the same depth, hidden_dim, out_dim and queue length; the optimizer starts anew",)
STATE_TARGETS = {
    "state": Target(
        "pre-training here",
        "paddle",
        (".pdparams",),
        ("densecl train CONFIG --load {file}, with the depth and sizes above in CONFIG's model",),
    ),
    "passl-state": Target(
        "PASSL's training",
        "paddle",
        (".pdparams", ".pd"),
        _STATE_SETTINGS,
        wrapper="state_dict",
        beside=(("epoch", 0),),
    ),
    "openselfsup-state": Target(
        "OpenSelfSup's training",
        "torchvision",
        (".pth",),
        _STATE_SETTINGS,
        wrapper="state_dict",
        beside=(("meta", {}),),
    ),
    "mmpretrain-state": Target(
        "mmpretrain's training", "torchvision", (".pth",), _STATE_SETTINGS, wrapper="state_dict", beside=(("meta", {}),)
    ),
    "moco-state": Target(
        "MoCo's training", "torchvision", (".pth",), _STATE_SETTINGS, wrapper="state_dict", beside=(("epoch", 0),)
    ),
}

# What a user may say of a source, and whose names that means.
SOURCES = {**{name: name for name in VOCABULARIES}, "mmpretrain": "torchvision", "safetensors": "torchvision"}


@dataclass(frozen=True)
class Report:
    """What was done with a file's content."""

    kind: str
    kept: str
    dropped: Mapping[str, int]  # group of names → how many arrays
    depth: int
    example: str  # a name in the new file
    is_what: str  # a kind of the identity cards
    beside: tuple[str, ...] = ()  # entries of the source beside its table of weights
    converted: str = ""  # "float16 → float32, 102 arrays" where the numbers are no longer the source's


@dataclass(frozen=True)
class Conversion:
    """A file that was converted."""

    source: Path
    output: Path
    report: Report
    notes: tuple[str, ...]
    settings: tuple[str, ...]
    title: str

    def lines(self) -> list[str]:
        """What was read, kept, dropped and written, and the settings that must go with it."""
        report = self.report
        dropped = [f"{group} {count}" for group, count in report.dropped.items()]
        dropped += [f"what lay beside the weights ({', '.join(report.beside)})"] if report.beside else []
        return [
            f"read     {self.source} ({report.kind})",
            f"kept     {report.kept}",
            f"dropped  {', '.join(dropped) or 'nothing'}",
            *([f"dtype    {report.converted}"] if report.converted else []),
            f"wrote    {self.output}, names like {report.example}",
            *(f"note     {note}" for note in self.notes),
            f"set      with {self.title}:",
            *(f"         {line}" for line in self.settings),
        ]


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    to: str,
    *,
    from_: str | None = None,
    encoder: Literal["query", "key"] = "query",
    prefix: str | None = None,
    dtype: Dtype = "float32",
) -> Conversion:
    """Read a file of weights, whoever made it, and write it as another project expects it; all or nothing.

    Args:
        source: a file, a checkpoint folder or a run folder.
        output: the file to write; its suffix must be one of the target's.
        to: a key of ``TARGETS`` for a backbone with its classifier, or of ``STATE_TARGETS`` for a whole training state.
        from_: a key of ``SOURCES``; normally the names say it.
        encoder: which encoder of a pre-training file.
        prefix: what stands before the wanted backbone's names, where the file cannot say.
        dtype: of the weights in the new file; float32 is what every toolbox takes.

    Raises:
        InputError: an unknown target or suffix, a file that cannot be read, or weights that are not whole; nothing is
            written then.
    """
    target, output = _target(to, Path(output)), Path(output)
    file = weights_file(source)
    if output.exists() and output.samefile(file):
        raise InputError(f"{output} is the file to read; choose another name")
    content = read_weights(file).content
    try:
        new, report = convert_content(content, to, from_=from_, encoder=encoder, prefix=prefix, dtype=dtype)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    write_weights(output, new, card=_card(file, report, target, encoder))
    fields = {"depth": report.depth, "file": output, "stem": output.with_suffix("")}
    settings = target.settings + (target.shallow if report.depth not in BOTTLENECK_DEPTHS else ())
    return Conversion(
        file, output, report, _stride_notes(file), tuple(line.format(**fields) for line in settings), target.title
    )


def convert_content(
    content: object,
    to: str,
    *,
    from_: str | None = None,
    encoder: Literal["query", "key"] = "query",
    prefix: str | None = None,
    dtype: Dtype = "float32",
) -> tuple[dict[str, Any], Report]:
    """What a file holds → what a file for the target must hold, and the report about it.

    Raises:
        InputError: as :func:`convert`, about the weights.
    """
    target, table = (TARGETS | STATE_TARGETS)[to], unwrap(content)
    if to in STATE_TARGETS:
        arrays, report = _state_arrays(table, to, from_, encoder, prefix)
    else:
        arrays, report = _backbone_arrays(table, to, from_, encoder, prefix)
    arrays, converted = in_dtype(arrays, dtype)
    report = replace(report, beside=beside(content), converted=converted)
    return ({**dict(target.beside), target.wrapper: arrays} if target.wrapper else arrays), report


def _target(to: str, output: Path) -> Target:
    target = (TARGETS | STATE_TARGETS).get(to)
    if target is None:
        raise InputError(f"no target {to!r}; there are {', '.join(TARGETS | STATE_TARGETS)}")
    if output.suffix not in target.suffixes:
        raise InputError(f"{output}: a file for {target.title} must end in {' or '.join(target.suffixes)}")
    return target


def _backbone_arrays(
    table: Mapping[str, np.ndarray], to: str, from_: str | None, encoder: Literal["query", "key"], prefix: str | None
) -> tuple[dict[str, np.ndarray], Report]:
    vocabulary = None if from_ is None else SOURCES[from_]
    taken = extract_backbone(table, encoder=encoder, prefix=prefix, vocabulary=vocabulary)
    arrays, dropped = backbone_for(taken, to), dict(taken.dropped)
    kept = f"{len(taken.backbone)} arrays: ResNet-{taken.depth}, {taken.weight_count / 1e6:.2f} M weights"
    if taken.fc is not None and TARGETS[to].classifier:
        kept += f", and a classifier of {len(taken.fc[1]):,} classes"
        dropped[taken.fc_group] -= 2
    elif taken.fc is not None:
        dropped[f"classifier (no place for it in {TARGETS[to].title})"] = 2
        dropped[taken.fc_group] -= 2
    dropped = {group: count for group, count in dropped.items() if count}
    is_what = CLASSIFIER if taken.fc is not None and TARGETS[to].classifier else BACKBONE
    return arrays, Report(taken.kind, kept, dropped, taken.depth, next(iter(arrays)), is_what)


def backbone_for(taken: Extraction, to: str) -> dict[str, np.ndarray]:
    """The arrays of a file for a target of ``TARGETS``: the backbone, and the classifier where there is a place for it.

    Raises:
        InputError: the classifier does not fit the backbone.
    """
    target = TARGETS[to]
    arrays = {target.backbone + n: a for n, a in translate(taken.backbone, target.vocabulary, taken.depth).items()}
    if target.classifier is not None and (classifier := taken.classifier()):
        weight = classifier["fc.weight"]
        is_torch = VOCABULARIES[target.vocabulary].is_torch
        arrays[f"{target.classifier}weight"] = np.ascontiguousarray(weight.T) if is_torch else weight
        arrays[f"{target.classifier}bias"] = classifier["fc.bias"]
    return arrays


def _state_arrays(
    table: Mapping[str, np.ndarray], to: str, from_: str | None, encoder: str, prefix: str | None
) -> tuple[dict[str, np.ndarray], Report]:
    if encoder == "key" or prefix is not None:
        both = f"{option('encoder')} and {option('prefix')}"
        raise InputError(f"{option('to', to)} takes both encoders; leave out {both}")
    state = read_state(table)
    if from_ is not None and SOURCES[from_] != state.vocabulary:
        title = VOCABULARIES[state.vocabulary].title
        raise InputError(f"this is a {state.kind}, with names of {title}; leave out {option('from_')}")
    kept = f"{len(state.arrays)} arrays: {state.describe()}"
    arrays = write_state(state, to)
    example = next(name for name in arrays if name.endswith("conv1.weight"))
    return arrays, Report(state.kind, kept, {}, state.depth, example, PRETRAINING)


def _card(file: Path, report: Report, target: Target, encoder: str) -> Card:
    """What the new file is: what the old one was, as far as its card says, under other names."""
    old = recorded_card(file)
    parent = Parent.of(file, old.kind if old else FOREIGN)
    new = (old or Card(kind=report.is_what)).replace(
        kind=report.is_what, names=target.vocabulary, depth=report.depth, parents=(parent,)
    )
    if report.is_what != CLASSIFIER:
        new = new.replace(classes=None)
    return new.replace(encoder=encoder) if old and old.kind == PRETRAINING and report.is_what == BACKBONE else new


def _stride_notes(file: Path) -> tuple[str, ...]:
    model = recorded_backbone(file)
    if model is None or model.is_published:
        return ()
    return (
        f"trained with model.stem_stride {model.stem_stride}, model.last_stride {model.last_stride}: other projects' "
        "ResNets have 4 and 2, and the weights do not record it; the maps will be smaller there",
    )
