"""What seven projects call the weights of one ResNet: a row of templates each, and the names and shapes that follow.

``paddle`` is the language everything is translated through: the names of ``paddle.vision.models.ResNet`` and Paddle's
layouts. No Paddle is needed here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np

STAGE_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BOTTLENECK_DEPTHS = (50, 101, 152)
STAGE_WIDTHS = (64, 128, 256, 512)

STATISTICS = ("_mean", "_variance")
PADDLE_NORM = ("weight", "bias", *STATISTICS)
TORCH_NORM = ("weight", "bias", "running_mean", "running_var")
COUNTER = "num_batches_tracked"  # torch's fifth entry of a BatchNorm: how many batches it has seen
NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class Vocabulary:
    """Names of a ResNet's parts. A pair is a convolution and its BatchNorm; the templates' fields are

    {stage} 1–4, {stage0} 0–3, {res} 2–5, {child} 4–7, {block} 0, 1, … within a stage, {flat} 0, 1, … over all stages,
    {letter} a, b, … of a block (in a stage of more than ten blocks: a, b1, b2, …), and of a convolution in its block
    {n} 1–3, {i} 0–2, {abc} a–c.
    """

    title: str
    stem: tuple[str, str]
    block: str
    body: tuple[str, str]  # within the block, as the shortcut
    shortcut: tuple[str, str]
    norm: tuple[str, ...]  # weight, bias, mean, variance
    parts: str  # how the first word of such a name looks (regular expression)
    classifier: str | None = None  # the Linear layer after pooling, where there is a place for it
    is_torch: bool = False  # Linear weights are [out, in], and BatchNorms may have a counter
    widest_shortcut: bool = False  # the first block of ResNet-18 and 34 has a shortcut convolution too


PADDLE = Vocabulary(
    title="paddle.vision",
    stem=("conv1", "bn1"),
    block="layer{stage}.{block}",
    body=("conv{n}", "bn{n}"),
    shortcut=("downsample.0", "downsample.1"),
    norm=PADDLE_NORM,
    parts=r"conv1|bn1|layer\d+",
    classifier="fc",
)
VOCABULARIES = {
    "paddle": PADDLE,
    "torchvision": replace(PADDLE, title="torchvision", norm=TORCH_NORM, is_torch=True),
    "paddleclas": Vocabulary(
        title="PaddleClas",
        stem=("stem.0.conv", "stem.0.bn"),
        block="blocks.{flat}",
        body=("conv{i}.conv", "conv{i}.bn"),
        shortcut=("short.conv", "short.bn"),
        norm=PADDLE_NORM,
        parts=r"stem|blocks",
        classifier="fc",
        widest_shortcut=True,
    ),
    "paddledetection": Vocabulary(
        title="PaddleDetection",
        stem=("conv1.conv1.conv", "conv1.conv1.norm"),
        block="res{res}.res{res}{letter}",
        body=("branch2{abc}.conv", "branch2{abc}.norm"),
        shortcut=("short.conv", "short.norm"),
        norm=PADDLE_NORM,
        parts=r"conv1|res\d+",
        widest_shortcut=True,
    ),
    "detectron2": Vocabulary(
        title="detectron2",
        stem=("stem.conv1", "stem.conv1.norm"),
        block="res{res}.{block}",
        body=("conv{n}", "conv{n}.norm"),
        shortcut=("shortcut", "shortcut.norm"),
        norm=TORCH_NORM,
        parts=r"stem|res\d+",
        is_torch=True,
    ),
    "sequential": Vocabulary(  # of torchvision's children in order, without their names: lightly's, and many others'
        title="torch.nn.Sequential",
        stem=("0", "1"),
        block="{child}.{block}",
        body=("conv{n}", "bn{n}"),
        shortcut=("downsample.0", "downsample.1"),
        norm=TORCH_NORM,
        parts=r"[014567]",
        is_torch=True,
    ),
    "huggingface": Vocabulary(
        title="Hugging Face",
        stem=("embedder.embedder.convolution", "embedder.embedder.normalization"),
        block="encoder.stages.{stage0}.layers.{block}",
        body=("layer.{i}.convolution", "layer.{i}.normalization"),
        shortcut=("shortcut.convolution", "shortcut.normalization"),
        norm=TORCH_NORM,
        parts=r"embedder|encoder",
        is_torch=True,
    ),
}


@dataclass(frozen=True)
class Place:
    """Where a convolution and its BatchNorm sit in a ResNet, and the convolution's shape [out, in, height, width]."""

    part: Literal["stem", "body", "shortcut"]
    shape: tuple[int, int, int, int]
    stage: int = 0
    block: int = 0
    flat: int = 0
    n: int = 1
    letter: str = ""

    def modules(self, words: Vocabulary) -> tuple[str, str]:
        """The names of the convolution and of its BatchNorm."""
        fields = {**vars(self), "stage0": self.stage - 1, "res": self.stage + 1, "child": self.stage + 3}
        fields |= {"i": self.n - 1, "abc": "abc"[self.n - 1]}
        pair = {"stem": words.stem, "body": words.body, "shortcut": words.shortcut}[self.part]
        before = "" if self.part == "stem" else f"{words.block}."
        return (before + pair[0]).format(**fields), (before + pair[1]).format(**fields)

    def names(self, words: Vocabulary) -> list[str]:
        """The names of its five arrays: the convolution's weight, then the BatchNorm's weight, bias, mean, variance."""
        convolution, norm = self.modules(words)
        return [f"{convolution}.weight", *(f"{norm}.{entry}" for entry in words.norm)]

    def shapes(self) -> list[tuple[int, ...]]:
        return [self.shape, *((self.shape[0],) for _ in PADDLE_NORM)]


# The convolution that some have in ResNet-18 and 34 where the others, and the paper, pass the map on as it is.
WIDEST_SHORTCUT = Place("shortcut", (64, 64, 1, 1), stage=1, letter="a")


@cache
def places(depth: int) -> tuple[Place, ...]:
    """Every convolution of a ResNet without the classifier, in the order of ``paddle.vision``."""
    return tuple(_places(depth))


def _places(depth: int) -> Iterator[Place]:
    expansion = 4 if depth in BOTTLENECK_DEPTHS else 1
    yield Place("stem", (64, 3, 7, 7))
    incoming, flat = 64, 0
    for stage, (blocks, width) in enumerate(zip(STAGE_BLOCKS[depth], STAGE_WIDTHS, strict=True), start=1):
        outgoing = expansion * width
        for block in range(blocks):
            letter = chr(ord("a") + block) if blocks <= 10 else "a" if block == 0 else f"b{block}"
            for n, shape in enumerate(_block_shapes(incoming, width, expansion), start=1):
                yield Place("body", shape, stage, block, flat, n, letter)
            if incoming != outgoing:
                yield Place("shortcut", (outgoing, incoming, 1, 1), stage, block, flat, 1, letter)
            incoming = outgoing
            flat += 1


def _block_shapes(incoming: int, width: int, expansion: int) -> list[tuple[int, int, int, int]]:
    if expansion == 1:
        return [(width, incoming, 3, 3), (width, width, 3, 3)]
    return [(width, incoming, 1, 1), (width, width, 3, 3), (expansion * width, width, 1, 1)]


@cache
def _shapes(depth: int) -> dict[str, tuple[int, ...]]:
    return {
        name: shape for place in places(depth) for name, shape in zip(place.names(PADDLE), place.shapes(), strict=True)
    }


def backbone_shapes(depth: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of every weight and statistic of ``paddle.vision.models.ResNet`` without its ``fc``, in its order.

    Args:
        depth: 18, 34, 50, 101 or 152.
    """
    return dict(_shapes(depth))


@cache
def translations(vocabulary: str, depth: int) -> dict[str, str]:
    """Their name → paddle.vision's, for every array that a ResNet of this depth must have, in Paddle's order."""
    words = VOCABULARIES[vocabulary]
    return {
        theirs: ours
        for place in places(depth)
        for theirs, ours in zip(place.names(words), place.names(PADDLE), strict=True)
    }


@cache
def companions(vocabulary: str, depth: int) -> dict[str, str]:
    """Their name → paddle.vision's, for what may also be there: BatchNorms' counters, a shortcut in the first block."""
    words = VOCABULARIES[vocabulary]
    extra: dict[str, str] = {}
    if words.is_torch:
        extra |= {f"{p.modules(words)[1]}.{COUNTER}": f"{p.modules(PADDLE)[1]}.{COUNTER}" for p in places(depth)}
    if words.widest_shortcut and depth not in BOTTLENECK_DEPTHS:
        extra |= dict(zip(WIDEST_SHORTCUT.names(words), WIDEST_SHORTCUT.names(PADDLE), strict=True))
    return extra


def named_shapes(vocabulary: str, depth: int) -> dict[str, tuple[int, ...]]:
    """Their name → shape of every array of a ResNet, with the shortcut in the first block where they have one."""
    words, shapes = VOCABULARIES[vocabulary], _shapes(depth)
    named = {theirs: shapes[ours] for theirs, ours in translations(vocabulary, depth).items()}
    if words.widest_shortcut and depth not in BOTTLENECK_DEPTHS:
        named |= zip(WIDEST_SHORTCUT.names(words), WIDEST_SHORTCUT.shapes(), strict=True)
    return named


def identity_shortcut() -> dict[str, np.ndarray]:
    """Name as in paddle.vision → array of a shortcut that is the identity while its BatchNorm uses its statistics."""
    arrays = [np.eye(64), np.ones(64), np.zeros(64), np.zeros(64), np.full(64, 1 - NORM_EPSILON)]
    shapes = WIDEST_SHORTCUT.shapes()
    names = WIDEST_SHORTCUT.names(PADDLE)
    return {
        name: array.astype("float32").reshape(shape) for name, array, shape in zip(names, arrays, shapes, strict=True)
    }


def is_identity(shortcut: dict[str, np.ndarray]) -> bool:
    """Whether five arrays as those of :func:`identity_shortcut` pass a map on unchanged, to a millionth."""
    names = WIDEST_SHORTCUT.names(PADDLE)
    if set(shortcut) != set(names) or any(
        shortcut[n].shape != s for n, s in zip(names, WIDEST_SHORTCUT.shapes(), strict=True)
    ):
        return False
    kernel, scale, shift, mean, variance = (shortcut[name].astype("float64") for name in names)
    scale = scale / np.sqrt(variance + NORM_EPSILON)
    through = scale[:, None] * kernel[:, :, 0, 0]
    return bool(np.allclose(through, np.eye(64), atol=1e-6) and np.allclose(shift - scale * mean, 0, atol=1e-6))


def translate(backbone: dict[str, np.ndarray], vocabulary: str, depth: int) -> dict[str, np.ndarray]:
    """A backbone under paddle.vision's names → under another vocabulary's, with the companions it expects.

    Torch's counters are zero (torch uses them only when a BatchNorm's momentum is None) and follow their BatchNorm's
    statistics; detectron2's files have none.
    """
    words = VOCABULARIES[vocabulary]
    arrays = backbone
    if words.widest_shortcut and depth not in BOTTLENECK_DEPTHS:
        arrays = backbone | identity_shortcut()
    names = translations(vocabulary, depth) | companions(vocabulary, depth)
    result = {theirs: arrays[ours] for theirs, ours in names.items() if ours in arrays}
    if vocabulary != "torchvision":
        return result
    counted = {}
    for name, array in result.items():
        counted[name] = array
        if name.endswith(f".{words.norm[-1]}"):
            counted[name.removesuffix(words.norm[-1]) + COUNTER] = np.zeros((), "int64")
    return counted


def classifier_channels(depth: int) -> int:
    """C: how many numbers per image the classifier sees."""
    return STAGE_WIDTHS[-1] * (4 if depth in BOTTLENECK_DEPTHS else 1)
