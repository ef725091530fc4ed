"""Whose weights are these? Finds the backbones in a file by the names of its arrays and takes one out.

A file holds the names of one of the vocabularies of ``vocabulary.py``, plain or behind a prefix; the layouts below are
the kinds of training files. Whatever it was, what comes out has ``paddle.vision``'s names and Paddle's layouts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from passl_densecl.errors import InputError, option
from passl_densecl.text import listed, suggestion
from passl_densecl.weights.vocabulary import (
    BOTTLENECK_DEPTHS,
    COUNTER,
    STAGE_BLOCKS,
    STATISTICS,
    VOCABULARIES,
    backbone_shapes,
    classifier_channels,
    companions,
    is_identity,
    translations,
)


@dataclass(frozen=True)
class Layout:
    """Where a kind of training file keeps what it is made of. Pairs are (of the query encoder, of the key encoder)."""

    kind: str
    vocabulary: str
    backbones: tuple[str, str]  # what stands before the backbone's names
    global_heads: tuple[str, str]  # what stands before '0.weight', '0.bias', '2.weight', '2.bias' of the global head
    dense_heads: tuple[str, str] | None  # the same of the dense head; None where the kind has none
    global_queue: tuple[str, str] = ("queue", "queue_ptr")  # the vectors and the next place to write
    dense_queue: tuple[str, str] = ("queue2", "queue2_ptr")
    keys_are_rows: bool = False  # (K, D) rather than (D, K)
    copy_of_query: str | None = None  # the query backbone once more, under the attribute it was built as
    companions: Mapping[str, int] = field(default_factory=dict)  # integers that are no weights


LAYOUTS = {
    "state": Layout(
        "pre-training state",
        "paddle",
        ("query_encoder.backbone.", "key_encoder.backbone."),
        ("query_encoder.global_head.", "key_encoder.global_head."),
        ("query_encoder.dense_head.", "key_encoder.dense_head."),
        ("global_queue.keys", "global_queue.pointer"),
        ("dense_queue.keys", "dense_queue.pointer"),
        keys_are_rows=True,
    ),
    "passl-state": Layout(
        "PASSL pre-training checkpoint",
        "paddle",
        ("encoder_q.0.", "encoder_k.0."),
        ("encoder_q.1.mlp.", "encoder_k.1.mlp."),
        ("encoder_q.1.mlp2.", "encoder_k.1.mlp2."),
        copy_of_query="backbone.",
    ),
    "openselfsup-state": Layout(  # the authors' own training, and mmselfsup before version 1
        "OpenSelfSup pre-training checkpoint",
        "torchvision",
        ("encoder_q.0.", "encoder_k.0."),
        ("encoder_q.1.mlp.", "encoder_k.1.mlp."),
        ("encoder_q.1.mlp2.", "encoder_k.1.mlp2."),
        copy_of_query="backbone.",
    ),
    "mmpretrain-state": Layout(
        "mmpretrain pre-training checkpoint",
        "torchvision",
        ("backbone.", "encoder_k.module.0."),
        ("neck.mlp.", "encoder_k.module.1.mlp."),
        ("neck.mlp2.", "encoder_k.module.1.mlp2."),
        # At 0 mmengine's average starts over with the query encoder's weights.
        companions={"encoder_k.steps": 1},
    ),
    "moco-state": Layout(
        "MoCo pre-training checkpoint",
        "torchvision",
        ("encoder_q.", "encoder_k."),
        ("encoder_q.fc.", "encoder_k.fc."),
        None,
    ),
}

# Where a Linear layer on the pooled features stands: (before the backbone, before '.weight', what such a file is).
CLASSIFIERS = (
    ("backbone.", "fc", "linear evaluation state"),
    ("backbone.", "head.fc", "mmpretrain classifier"),
    ("backbone.", "head.fc_cls", "PASSL or OpenSelfSup linear classifier"),
    ("resnet.", "classifier.1", "Hugging Face classifier"),
    ("", "fc", "classifier"),
    ("", "linear", "classifier"),  # detectron2's ResNet on its own
    ("", "stem.fc", "classifier"),  # detectron2's name as its converters of torch files write it
)


@dataclass(frozen=True)
class EncoderPlace:
    """Where in a file the wanted backbone is."""

    kind: str  # a description of the file for people
    prefix: str  # what stands before conv1.weight, "" where the names are plain
    others: tuple[str, ...]  # prefixes of the other backbones in the file
    copy: str | None = None  # the one among them that must equal the wanted one
    vocabulary: str = "paddle"
    classifier: str | None = None  # what stands before '.weight' of the classifier on it


@dataclass(frozen=True)
class Extraction:
    """A backbone taken out of a file."""

    backbone: dict[str, np.ndarray]  # plain paddle.vision names, in their order
    depth: int
    kind: str  # what the file was
    prefix: str  # what stood before the names
    dropped: dict[str, int]  # group of names → how many arrays were left behind
    vocabulary: str = "paddle"  # whose names the file had
    fc: tuple[np.ndarray, np.ndarray] | None = None  # a classifier's weight and bias as the file has them
    fc_group: str = ""  # the group of `dropped` in which these two are counted
    converted: str = ""  # "float16 → float32, 102 arrays" where the numbers are no longer the file's

    @property
    def weight_count(self) -> int:
        """Trainable numbers: all but the statistics of BatchNorm."""
        return sum(array.size for name, array in self.backbone.items() if not name.endswith(STATISTICS))

    def classifier(self) -> dict[str, np.ndarray]:
        """``fc.weight`` (C, classes) and ``fc.bias`` (classes,) in Paddle's layout; empty when the file has none.

        Raises:
            InputError: they are there but do not fit the backbone.
        """
        if self.fc is None:
            return {}
        is_torch = VOCABULARIES[self.vocabulary].is_torch
        weight, bias = self.fc[0].T if is_torch else self.fc[0], self.fc[1]
        if weight.shape != (classifier_channels(self.depth), *bias.shape) or bias.ndim != 1:
            channels = classifier_channels(self.depth)
            wanted = f"[classes, {channels}]" if is_torch else f"[{channels}, classes]"
            raise InputError(
                f"the classifier's weight is {list(self.fc[0].shape)} and its bias {list(bias.shape)}; "
                f"expected {wanted} and [classes] for a ResNet-{self.depth}"
            )
        return {"fc.weight": np.ascontiguousarray(weight), "fc.bias": bias}


def depth_of(names: Iterable[str]) -> int | None:
    """18, 34, 50, 101 or 152 when plain paddle.vision ``names`` have the blocks of that ResNet, else None."""
    names = set(names)
    has_conv3 = any(re.fullmatch(r"layer\d\.\d+\.conv3\.weight", name) for name in names)
    blocks = _stage_blocks(names)
    fits = [depth for depth, stages in STAGE_BLOCKS.items() if stages == blocks]
    return next((depth for depth in fits if (depth in BOTTLENECK_DEPTHS) == has_conv3), None)


def encoder_vocabularies(names: Iterable[str]) -> dict[str, str]:
    """Prefix → vocabulary of every backbone in ``names``."""
    names = list(names)
    known = set(names)
    found: dict[str, str] = {}
    for anchor, vocabulary in ANCHORS.items():
        for name in names:
            prefix = name.removesuffix(anchor)
            is_whole = vocabulary != "sequential" or {f"{prefix}0.weight", f"{prefix}7.0.conv1.weight"} <= known
            if prefix != name and (not prefix or prefix.endswith(".")) and is_whole:  # any network may have a '4.0.'
                found[prefix] = vocabulary
    for prefix, vocabulary in found.items():
        if vocabulary == "paddle" and _has_torch_statistics(names, prefix):
            found[prefix] = "torchvision"
    return dict(sorted(found.items()))


def backbone_depths(names: Collection[str]) -> dict[str, int | None]:
    """Prefix → depth of every backbone in ``names`` that has paddle.vision's names; None for no known depth."""
    prefixes = encoder_vocabularies(names)
    return {prefix: depth_of(name[len(prefix) :] for name in names if name.startswith(prefix)) for prefix in prefixes}


def misfit_hint(wanted: Collection[str], given: Collection[str]) -> str:
    """The usual reasons why weights do not fit a model, where the names show one: another depth, another prefix."""
    asked, held = backbone_depths(wanted), backbone_depths(given)
    for prefix, depth in asked.items():
        other = held.get(prefix)
        if depth and other and depth != other:
            fits = f"set model.depth: {other} or choose another file"
            return f": the file holds a ResNet-{other}, the config asks for ResNet-{depth}: {fits}"
    if asked and held and not set(asked) & set(held):
        there, here = (" and ".join(map(repr, prefixes)) for prefixes in (held, asked))
        return f": the file's backbone has the prefix {there}, the model's {here}"
    return ""


def find_encoder(
    names: Collection[str],
    *,
    encoder: Literal["query", "key"] = "query",
    prefix: str | None = None,
    vocabulary: str | None = None,
) -> EncoderPlace:
    """Find the backbone in a file by the names of its arrays.

    Args:
        names: every name in the file.
        encoder: which of the two encoders of a pre-training file.
        prefix: take the backbone behind this prefix instead; ``""`` for plain names, the last dot may be left out.
        vocabulary: look for this vocabulary's names only.

    Raises:
        InputError: there is none, not the wanted one, or several and nothing to choose by.
    """
    found = encoder_vocabularies(names)
    if vocabulary is not None:
        others = {prefix: other for prefix, other in found.items() if other != vocabulary}
        found = {prefix: other for prefix, other in found.items() if other == vocabulary}
        if others and not found:
            titles = " and ".join(sorted({VOCABULARIES[other].title for other in others.values()}))
            raise InputError(f"no names of {VOCABULARIES[vocabulary].title} in the file; it has those of {titles}")
    if not found:
        raise InputError(
            "no ResNet backbone: expected names like "
            + ", ".join(
                f"{_anchor(name)} ({words.title})" for name, words in VOCABULARIES.items() if name != "torchvision"
            )
            + f"; found {listed(names, 5, quoted=False) or 'nothing'}{known_network(names)}"
        )
    if prefix is not None:
        return _at_prefix(names, found, encoder, prefix)
    if place := _in_layout(found, encoder):
        return place
    if len(found) > 1:
        raise InputError(
            f"the file holds {len(found)} backbones; choose one by its prefix: "
            + ", ".join(option("prefix", at) for at in sorted(found))
        )
    place = _single(names, found, next(iter(found)))
    if encoder == "key":
        raise InputError(
            f"the file holds no key encoder, only one backbone ({place.kind}); leave out {option('encoder', 'key')}"
        )
    return place


def extract_backbone(
    arrays: Mapping[str, np.ndarray],
    *,
    encoder: Literal["query", "key"] = "query",
    prefix: str | None = None,
    vocabulary: str | None = None,
) -> Extraction:
    """Take the backbone out of the arrays of a file, under plain ``paddle.vision`` names and with the values untouched.

    Args:
        arrays: name → array of a backbone, a classifier, or a pre-training state, in any vocabulary and layout we know.
        encoder: which encoder of a pre-training file; a user wants "query".
        prefix: what stands before the wanted backbone's names, where the file cannot say.
        vocabulary: whose names to look for, where a file should hold two.

    Raises:
        InputError: no or several backbones; names missing, left over or of the wrong shape; values that are not finite.
    """
    place = find_encoder(arrays, encoder=encoder, prefix=prefix, vocabulary=vocabulary)
    depth, backbone, used = take_backbone(arrays, place.prefix, place.vocabulary)
    if place.copy is not None:
        check_copy(arrays, place.prefix, place.copy)
    dropped: dict[str, int] = {}
    for name in arrays:
        if name not in used:
            group = _group(name, (place.prefix, *place.others))
        elif name.endswith(f".{COUNTER}"):
            group = COUNTER
        elif used[name] not in backbone:
            group = "identity shortcut"
        else:
            continue
        dropped[group] = dropped.get(group, 0) + 1
    fc, fc_group = None, ""
    if place.classifier is not None:
        fc = arrays[f"{place.classifier}.weight"], arrays[f"{place.classifier}.bias"]
        fc_group = _group(f"{place.classifier}.weight", (place.prefix, *place.others))
    return Extraction(backbone, depth, place.kind, place.prefix, dropped, place.vocabulary, fc, fc_group)


def take_backbone(
    arrays: Mapping[str, np.ndarray], prefix: str, vocabulary: str
) -> tuple[int, dict[str, np.ndarray], dict[str, str]]:
    """The backbone behind a prefix: (depth, paddle.vision's name → array in order, name in the file → paddle.vision's).

    The last of these covers everything of the backbone: also counters and a shortcut that changes nothing.

    Raises:
        InputError: names missing or left over, a wrong shape or kind of number, values that are not finite.
    """
    inside = {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}
    depth = _closest_depth(inside, vocabulary)
    names, extra = translations(vocabulary, depth), companions(vocabulary, depth)
    _check_names(inside, vocabulary, depth)
    shapes = backbone_shapes(depth)
    _check_shapes(inside, {theirs: shapes[ours] for theirs, ours in names.items()}, depth)
    backbone = {ours: inside[theirs] for theirs, ours in names.items()}
    broken = [theirs for theirs in names if not np.isfinite(inside[theirs]).all()]
    if broken:
        raise InputError(f"weights that are not finite (the training diverged?): {listed(broken, 5, quoted=False)}")
    if _has_folded_statistics(backbone):
        raise InputError(f"every BatchNorm has mean 0 and one variance, but biases. This is {_CAFFE}")
    shortcut = {
        ours: inside[theirs] for theirs, ours in extra.items() if theirs in inside and not ours.endswith(COUNTER)
    }
    if shortcut and not is_identity(shortcut):
        first = next(theirs for theirs, ours in extra.items() if ours in shortcut)
        raise InputError(
            f"this ResNet-{depth} has a shortcut convolution in its first block ({first}), as only PaddleClas and "
            "PaddleDetection build it; no other network has a place for it"
        )
    used = {prefix + theirs: ours for theirs, ours in (names | extra).items() if theirs in inside}
    return depth, backbone, used


def match_layout(found: Mapping[str, str]) -> tuple[Layout, str] | None:
    """The layout by which backbones (prefix → vocabulary) lie, and what stands before all of its names."""
    for layout in LAYOUTS.values():
        query, key = layout.backbones
        for at, vocabulary in found.items():
            outer = at.removesuffix(query)
            if vocabulary != layout.vocabulary or outer == at or (outer and not outer.endswith(".")):
                continue
            if query != "backbone." or outer + key in found:  # every classifier has a 'backbone.'
                return layout, outer
    return None


# Finding


def _anchor(vocabulary: str) -> str:
    """A name that every ResNet of a vocabulary has and no other vocabulary ends like; before it stands the prefix."""
    return next(theirs for theirs, ours in translations(vocabulary, 18).items() if ours == "layer1.0.conv1.weight")


ANCHORS = {_anchor(name): name for name in VOCABULARIES if name != "torchvision"}


def _has_torch_statistics(names: Iterable[str], prefix: str) -> bool:
    pattern = re.compile(rf"{re.escape(prefix)}({VOCABULARIES['torchvision'].parts})\.(.*\.)?running_(mean|var)")
    return any(pattern.fullmatch(name) for name in names)


def _at_prefix(names: Collection[str], found: dict[str, str], encoder: str, prefix: str) -> EncoderPlace:
    if encoder == "key":
        raise InputError(
            f"give {option('prefix')} or {option('encoder', 'key')}, not both: a prefix names one backbone already"
        )
    at = prefix if not prefix or prefix.endswith(".") else f"{prefix}."
    if at not in found:
        there = listed(list(found), 5, quoted=False)
        raise InputError(
            f"no backbone behind the prefix {prefix!r}; there is one behind {there}{suggestion(at, found)}"
        )
    return _single(names, found, at)


def _in_layout(found: dict[str, str], encoder: str) -> EncoderPlace | None:
    """The wanted encoder when the backbones lie as in one of the kinds of training files."""
    if (match := match_layout(found)) is None:
        return None
    layout, outer = match
    wanted = outer + layout.backbones[encoder == "key"]
    if wanted not in found:
        missing = f"{wanted}{_anchor(layout.vocabulary)}"
        raise InputError(f"a {layout.kind} without a key encoder: no '{missing}'; leave out {option('encoder', 'key')}")
    others = tuple(other for other in found if other != wanted)
    copy = None if layout.copy_of_query is None else outer + layout.copy_of_query
    copy = copy if encoder == "query" and copy in others else None
    return EncoderPlace(layout.kind, wanted, others, copy, layout.vocabulary)


def _single(names: Collection[str], found: dict[str, str], at: str) -> EncoderPlace:
    """A backbone that is alone, or chosen by its prefix, with the classifier on it."""
    vocabulary, others = found[at], tuple(other for other in found if other != at)
    names = set(names)
    kind, classifier = f"backbone behind '{at}'" if at else "backbone", None
    for before, after, title in CLASSIFIERS:
        place = at.removesuffix(before) + after
        if at.endswith(before) and {f"{place}.weight", f"{place}.bias"} <= names:
            kind, classifier = title, place
            break
    if vocabulary != "paddle":
        kind += f", {VOCABULARIES[vocabulary].title} names"
    return EncoderPlace(kind, at, others, None, vocabulary, classifier)


# Checking


def _stage_blocks(names: Iterable[str]) -> tuple[int, ...]:
    """Blocks in layer1, layer2, …: the largest index in each plus one, so that a gap shows as missing names later."""
    last: dict[int, int] = {}
    for name in names:
        if match := re.match(r"layer(\d+)\.(\d+)\.", name):
            stage, block = int(match[1]), int(match[2])
            last[stage] = max(block, last.get(stage, -1))
    return tuple(last.get(stage, -1) + 1 for stage in range(1, max(last, default=0) + 1))


def _differences(names: Collection[str], vocabulary: str, depth: int) -> tuple[list[str], list[str]]:
    """(missing, left over) between the names behind a prefix and those of a ResNet."""
    wanted, extra = translations(vocabulary, depth), companions(vocabulary, depth)
    part = re.compile(rf"({VOCABULARIES[vocabulary].parts})\.")
    missing = [name for name in wanted if name not in names]
    missing += _missing_of_shortcut(names, extra)
    allowed = {f"{after}.{entry}" for before, after, _ in CLASSIFIERS if not before for entry in ("weight", "bias")}
    left = [n for n in names if part.match(n) and n not in wanted and n not in extra and n not in allowed]
    return missing, left


def _missing_of_shortcut(names: Collection[str], extra: Mapping[str, str]) -> list[str]:
    """The rest of a first block's shortcut when a part of it is there."""
    shortcut = [theirs for theirs, ours in extra.items() if not ours.endswith(COUNTER)]
    return [name for name in shortcut if name not in names] if any(name in names for name in shortcut) else []


def _closest_depth(names: Collection[str], vocabulary: str) -> int:
    """The depth of the ResNet whose names differ least from those that are there."""
    return min(STAGE_BLOCKS, key=lambda depth: sum(map(len, _differences(names, vocabulary, depth))))


def _check_names(inside: Mapping[str, np.ndarray], vocabulary: str, depth: int) -> None:
    missing, left = _differences(inside, vocabulary, depth)
    problems = [
        f"{len(names)} {what}: {listed(names, 5, quoted=False)}"
        for what, names in (("missing", missing), ("left over", left))
        if names
    ]
    if problems:
        whose = "" if vocabulary == "paddle" else f"{VOCABULARIES[vocabulary].title}'s "
        other = known_network(inside)
        raise InputError(f"the names are closest to {whose}ResNet-{depth}, but {'; '.join(problems)}{other}")


def _check_shapes(inside: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], depth: int) -> None:
    wrong = [
        f"{name} is {list(inside[name].shape)}, not {list(shape)}"
        for name, shape in shapes.items()
        if inside[name].shape != shape
    ]
    if wrong:
        raise InputError(
            f"the shapes are not those of a ResNet-{depth} with its 7×7 stem (ResNeXt and Wide ResNet have the same "
            f"names): {listed(wrong, 5, quoted=False)}"
        )
    no_floats = [f"{name} is {inside[name].dtype}" for name in shapes if inside[name].dtype.kind != "f"]
    if no_floats:
        found = listed(no_floats, 5, quoted=False)
        raise InputError(f"weights must be floating-point numbers (Paddle's bfloat16 is not supported): {found}")


def _has_folded_statistics(backbone: Mapping[str, np.ndarray]) -> bool:
    """Whether scale and shift hold the statistics, as converters of Caffe2's weights leave them (a network that was
    never trained has no biases either)."""
    is_plain = all(
        (array == (0 if name.endswith("_mean") else array.flat[0])).all()
        for name, array in backbone.items()
        if name.endswith(STATISTICS)
    )
    return is_plain and any(array.any() for name, array in backbone.items() if name.endswith(".bias"))


def check_copy(arrays: Mapping[str, np.ndarray], query: str, copy: str) -> set[str]:
    """The names behind `copy`, where a file has the backbone behind `query` once more. Raises InputError when the two
    differ."""
    names = {name: query + name.removeprefix(copy) for name in arrays if name.startswith(copy)}
    differ = [name for name, of in names.items() if not np.array_equal(arrays.get(of, ()), arrays[name])]
    if differ:
        where = listed(differ, 5, quoted=False)
        ways = f"choose one: {option('prefix', query)} or {option('prefix', copy)}"
        raise InputError(f"'{query}' and '{copy}' should be the same backbone twice but differ in {where}; {ways}")
    return set(names)


# Describing

# Networks that users take for ResNets: a name that they have, and why their weights have no place in one.
_CAFFE = (
    "a ResNet of Caffe2 (MSRA's) or made from one: its strides are in the 1×1 convolutions, the statistics of its "
    "BatchNorms are folded into scale and shift, its input is BGR and not divided by a deviation. The ResNets here "
    "compute something else with such weights; take torchvision's, or others trained on RGB"
)
_OTHER_NETWORKS = {
    r"(.*[./])?res\d_\d+_branch2a_w": _CAFFE,
    r"(.*\.)?conv1\.0\.weight|(visual\.)?conv3\.weight": "a ResNet with a deep stem (ResNet-C and -D, CLIP's)",
    r".*\.se\.(fc1|conv\d?|0)\.weight": "a ResNet with squeeze-and-excitation",
    r"(.*\.)?stages\.0\.blocks\.0\.norm1\.weight": "a pre-activation ResNet (ResNetV2)",
    r"(.*\.)?blocks\.0\.attn\.qkv\.weight": "a vision transformer",
}


def known_network(names: Iterable[str]) -> str:
    """ ". This is …" for the names of another kind of network that is known; "" for others."""
    names = list(names)
    found = (what for pattern, what in _OTHER_NETWORKS.items() if any(re.fullmatch(pattern, n) for n in names))
    return next((f". This is {what}" for what in found), "")


def _group(name: str, backbones: tuple[str, ...]) -> str:
    """'key_encoder.global_head.0.weight' → 'key_encoder.global_head.': few groups, each naming one part of a model."""
    for prefix in sorted(backbones, key=len, reverse=True):
        if prefix and name.startswith(prefix):
            rest = name[len(prefix) :].split(".")[0]
            return prefix if any(re.fullmatch(w.parts, rest) for w in VOCABULARIES.values()) else f"{prefix}{rest}."
    parts = name.split(".")
    depth = 2 if len(parts) > 3 else 1
    return name if len(parts) == 1 else ".".join(parts[:depth]) + "."
