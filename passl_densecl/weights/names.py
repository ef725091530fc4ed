"""Whose weights are these? Names of ResNet weights, and where a backbone sits in a file.

The names are those of ``paddle.vision.models.ResNet``, which PASSL shares: ``conv1.weight``, ``bn1.weight``,
``bn1._mean``, ``layer1.0.conv1.weight``, ``layer1.0.downsample.0.weight``. A file holds them plain, or behind a prefix.
No Paddle is needed here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from passl_densecl.errors import InputError
from passl_densecl.weights.files import describe

STAGE_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BOTTLENECK_DEPTHS = (50, 101, 152)
STAGE_WIDTHS = (64, 128, 256, 512)

STATISTICS = ("_mean", "_variance")
NORM_ENTRIES = ("weight", "bias", *STATISTICS)


@dataclass(frozen=True)
class Layout:
    """Where a kind of file keeps its encoders: what stands in front of ``conv1.weight``."""

    kind: str
    query: str
    key: str
    copy_of_query: str | None = None  # the query backbone once more, under the attribute it was built as


LAYOUTS = (
    Layout("pre-training state", query="query_encoder.backbone.", key="key_encoder.backbone."),
    Layout("PASSL pre-training checkpoint", query="encoder_q.0.", key="encoder_k.0.", copy_of_query="backbone."),
)

# A name that every ResNet has, ours and torch's; what stands before it is the prefix.
ANCHOR = "layer1.0.conv1.weight"

# Names of other engines, for the message that refuses them: (what a name looks like, whose it is).
FOREIGN = (
    (r"(^|\.)res2\.res2a\.branch2a\.", "PaddleDetection"),
    (r"(^|\.)blocks\.0\.conv0\.conv\.weight$", "PaddleClas"),
    (r"(^|\.)res2\.0\.conv1\.weight$", "detectron2"),
)
TORCH_ENTRIES = ("running_mean", "running_var", "num_batches_tracked")

# The dictionary of weights inside a checkpoint that holds other things as well.
WRAPPERS = ("state_dict", "model", "model_state_dict")


@dataclass(frozen=True)
class EncoderPlace:
    """Where in a file the wanted backbone is."""

    kind: str  # a description of the file for people
    prefix: str  # what stands before conv1.weight, "" where the names are plain
    others: tuple[str, ...]  # prefixes of the other backbones in the file
    copy: str | None = None  # the one among them that must equal the wanted one


@dataclass(frozen=True)
class Extraction:
    """A backbone taken out of a file."""

    backbone: dict[str, np.ndarray]  # plain paddle.vision names, in their order
    depth: int
    kind: str  # what the file was
    prefix: str  # what stood before the names
    dropped: dict[str, int]  # group of names → how many arrays were left behind

    @property
    def weight_count(self) -> int:
        """Trainable numbers: all but the statistics of BatchNorm."""
        return sum(array.size for name, array in self.backbone.items() if not name.endswith(STATISTICS))


def backbone_shapes(depth: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of every weight and statistic of ``paddle.vision.models.ResNet`` without its ``fc``, in its order.

    Args:
        depth: 18, 34, 50, 101 or 152.
    """
    is_bottleneck = depth in BOTTLENECK_DEPTHS
    shapes: dict[str, tuple[int, ...]] = {}

    def add(conv: str, norm: str, shape: tuple[int, int, int, int]) -> None:
        shapes[f"{conv}.weight"] = shape
        shapes.update({f"{norm}.{entry}": (shape[0],) for entry in NORM_ENTRIES})

    add("conv1", "bn1", (64, 3, 7, 7))
    incoming = 64
    for stage, (blocks, width) in enumerate(zip(STAGE_BLOCKS[depth], STAGE_WIDTHS, strict=True), start=1):
        outgoing = 4 * width if is_bottleneck else width
        for block in range(blocks):
            at = f"layer{stage}.{block}"
            if is_bottleneck:
                add(f"{at}.conv1", f"{at}.bn1", (width, incoming, 1, 1))
                add(f"{at}.conv2", f"{at}.bn2", (width, width, 3, 3))
                add(f"{at}.conv3", f"{at}.bn3", (outgoing, width, 1, 1))
            else:
                add(f"{at}.conv1", f"{at}.bn1", (width, incoming, 3, 3))
                add(f"{at}.conv2", f"{at}.bn2", (width, width, 3, 3))
            if incoming != outgoing:
                add(f"{at}.downsample.0", f"{at}.downsample.1", (outgoing, incoming, 1, 1))
            incoming = outgoing
    return shapes


def backbone_names(depth: int) -> list[str]:
    """Names of ``paddle.vision.models.ResNet(…, depth, num_classes=0).state_dict()``, in its order."""
    return list(backbone_shapes(depth))


def depth_of(names: Iterable[str]) -> int | None:
    """18, 34, 50, 101 or 152 when the blocks among plain ``names`` are those of that ResNet, else None."""
    names = set(names)
    has_conv3 = any(re.fullmatch(r"layer\d\.\d+\.conv3\.weight", name) for name in names)
    blocks = _stage_blocks(names)
    fits = [depth for depth, stages in STAGE_BLOCKS.items() if stages == blocks]
    return next((depth for depth in fits if (depth in BOTTLENECK_DEPTHS) == has_conv3), None)


def encoder_prefixes(names: Iterable[str]) -> list[str]:
    """What stands in front of the backbones in ``names``; "" for plain names."""
    prefixes = {name[: -len(ANCHOR)] for name in names if name.endswith(ANCHOR)}
    return sorted(prefix for prefix in prefixes if not prefix or prefix.endswith("."))


def find_encoder(
    names: Collection[str], *, encoder: Literal["query", "key"] = "query", prefix: str | None = None
) -> EncoderPlace:
    """Find the backbone in a file by the names of its arrays.

    Args:
        names: every name in the file.
        encoder: which of the two encoders of a pre-training file.
        prefix: take the backbone behind this prefix instead; ``""`` for plain names, the last dot may be left out.

    Raises:
        InputError: there is none, not the wanted one, or several and nothing to choose by.
    """
    found = encoder_prefixes(names)
    torch_names = sorted(name for name in names if name.rpartition(".")[2] in TORCH_ENTRIES)
    if torch_names:
        raise InputError(
            f"this is a torch file's naming ({_some(torch_names)}); converting torch weights is not supported yet"
        )
    if not found:
        raise InputError(_no_backbone(names))
    if prefix is not None:
        return _at_prefix(names, found, encoder, prefix)
    for layout in LAYOUTS:
        for at in found:
            if at == layout.query or at.endswith(f".{layout.query}"):
                outer = at[: len(at) - len(layout.query)]
                return _in_layout(found, layout, outer, encoder)
    if len(found) > 1:
        raise InputError(
            f"the file holds {len(found)} backbones; choose one by its prefix: "
            + ", ".join(f"--prefix {at!r}" for at in found)
        )
    kind = _kind_of_single(names, found[0])
    if encoder == "key":
        raise InputError(f"the file holds no key encoder, only one backbone ({kind}); leave out '--encoder key'")
    return EncoderPlace(kind, found[0], ())


def unwrap(content: object) -> dict[str, np.ndarray]:
    """The table of arrays in what a file holds: itself, or the value of ``state_dict`` and the like in a checkpoint.

    Raises:
        InputError: there is none; says what there is.
    """
    if _is_table(content):
        return content  # type: ignore[return-value]
    if isinstance(content, dict):
        for wrapper in WRAPPERS:
            if _is_table(content.get(wrapper)):
                return content[wrapper]
        entries = [f"{key!r}: {describe(value)}" for key, value in content.items()]
        inside = f"entries {', '.join(entries[:5])}{_and_more(len(entries), 5)}" if entries else "nothing"
    else:
        inside = describe(content)
    raise InputError(
        f"no table of names and arrays, plain or under {', '.join(map(repr, WRAPPERS))}: the file holds {inside}"
    )


def extract_backbone(
    arrays: Mapping[str, np.ndarray], *, encoder: Literal["query", "key"] = "query", prefix: str | None = None
) -> Extraction:
    """Take the backbone out of the arrays of a file, under plain ``paddle.vision`` names and with the values untouched.

    Args:
        arrays: name → array of a backbone, a pre-training state, a linear evaluation or a PASSL checkpoint.
        encoder: which encoder of a pre-training file; a user wants "query".
        prefix: what stands before the wanted backbone's names, where the file cannot say.

    Raises:
        InputError: no or several backbones; names missing, left over or of the wrong shape; values that are not finite.
    """
    place = find_encoder(arrays, encoder=encoder, prefix=prefix)
    inside = {name[len(place.prefix) :]: array for name, array in arrays.items() if name.startswith(place.prefix)}
    depth = depth_of(inside)
    if depth is None:
        blocks = ", ".join(map(str, _stage_blocks(inside)))
        known = "; ".join(f"{depth}: {', '.join(map(str, stages))}" for depth, stages in STAGE_BLOCKS.items())
        raise InputError(f"no known ResNet under '{place.prefix}': blocks per stage are {blocks} (known: {known})")
    shapes = backbone_shapes(depth)
    _check_names(inside, shapes, depth)
    _check_shapes(inside, shapes, depth)
    backbone = {name: inside[name] for name in shapes}
    broken = [name for name, array in backbone.items() if not np.isfinite(array).all()]
    if broken:
        raise InputError(f"weights that are not finite (the training diverged?): {_some(broken)}")
    if place.copy is not None:
        _check_copy(arrays, backbone, place)

    dropped: dict[str, int] = {}
    for name in arrays:
        if not (name.startswith(place.prefix) and name[len(place.prefix) :] in shapes):
            group = _group(name, (place.prefix, *place.others))
            dropped[group] = dropped.get(group, 0) + 1
    return Extraction(backbone, depth, place.kind, place.prefix, dropped)


def _stage_blocks(names: Iterable[str]) -> tuple[int, ...]:
    """Blocks in layer1, layer2, …: the largest index in each plus one, so that a gap shows as missing names later."""
    last: dict[int, int] = {}
    for name in names:
        if match := re.match(r"layer(\d+)\.(\d+)\.", name):
            stage, block = int(match[1]), int(match[2])
            last[stage] = max(block, last.get(stage, -1))
    return tuple(last.get(stage, -1) + 1 for stage in range(1, max(last, default=0) + 1))


def _no_backbone(names: Collection[str]) -> str:
    for pattern, engine in FOREIGN:
        if any(re.search(pattern, name) for name in names):
            return f"this is {engine}'s naming ({_some(names)}); converting from it is not supported yet"
    return f"no ResNet backbone: expected names like conv1.weight and {ANCHOR}, found {_some(names)}"


def _at_prefix(names: Collection[str], found: list[str], encoder: str, prefix: str) -> EncoderPlace:
    if encoder == "key":
        raise InputError("give '--prefix' or '--encoder key', not both: a prefix names one backbone already")
    at = prefix if not prefix or prefix.endswith(".") else f"{prefix}."
    if at not in found:
        close = difflib.get_close_matches(at, found, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(f"no backbone behind the prefix {prefix!r}; there is one behind {_some(found)}{hint}")
    others = tuple(other for other in found if other != at)
    return EncoderPlace(_kind_of_single(names, at), at, others)


def _in_layout(found: list[str], layout: Layout, outer: str, encoder: str) -> EncoderPlace:
    wanted = outer + (layout.query if encoder == "query" else layout.key)
    if wanted not in found:
        raise InputError(f"a {layout.kind} without a key encoder: no '{wanted}{ANCHOR}'; leave out '--encoder key'")
    others = tuple(other for other in found if other != wanted)
    copy = None if layout.copy_of_query is None else outer + layout.copy_of_query
    return EncoderPlace(layout.kind, wanted, others, copy if encoder == "query" and copy in others else None)


def _kind_of_single(names: Collection[str], prefix: str) -> str:
    if prefix == "backbone." and "fc.weight" in names:
        return "linear evaluation state"
    return f"backbone behind '{prefix}'" if prefix else "backbone"


def _is_table(value: object) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(array, np.ndarray) for name, array in value.items())
    )


def _check_names(inside: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], depth: int) -> None:
    missing = [name for name in shapes if name not in inside]
    leftover = [name for name in inside if name not in shapes and re.match(r"conv1\.|bn1\.|layer\d+\.", name)]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing: {_some(missing)}")
    if leftover:
        problems.append(f"{len(leftover)} left over: {_some(leftover)}")
    if problems:
        raise InputError(f"the names are not those of a ResNet-{depth}: {'; '.join(problems)}")


def _check_shapes(inside: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], depth: int) -> None:
    wrong = [
        f"{name} is {list(inside[name].shape)}, not {list(shape)}"
        for name, shape in shapes.items()
        if inside[name].shape != shape
    ]
    if wrong:
        raise InputError(f"the shapes are not those of a ResNet-{depth} with its 7×7 stem: {_some(wrong)}")


def _check_copy(arrays: Mapping[str, np.ndarray], backbone: Mapping[str, np.ndarray], place: EncoderPlace) -> None:
    assert place.copy is not None
    differ = [name for name, array in backbone.items() if not np.array_equal(arrays.get(place.copy + name, ()), array)]
    if differ:
        raise InputError(
            f"'{place.prefix}' and '{place.copy}' should be the same backbone twice but differ in {_some(differ)}; "
            f"choose one: --prefix {place.prefix!r} or --prefix {place.copy!r}"
        )


def _group(name: str, backbones: tuple[str, ...]) -> str:
    """'key_encoder.global_head.0.weight' → 'key_encoder.global_head.': few groups, each naming one part of a model."""
    for prefix in sorted(backbones, key=len, reverse=True):
        if prefix and name.startswith(prefix):
            rest = name[len(prefix) :].split(".")[0]
            return prefix if re.fullmatch(r"conv1|bn1|layer\d+", rest) else f"{prefix}{rest}."
    parts = name.split(".")
    depth = 2 if len(parts) > 3 else 1
    return name if len(parts) == 1 else ".".join(parts[:depth]) + "."


def _some(names: Collection[str], count: int = 5) -> str:
    return ", ".join(list(names)[:count]) + _and_more(len(names), count) if names else "nothing"


def _and_more(total: int, shown: int) -> str:
    return f" and {total - shown} more" if total > shown else ""
