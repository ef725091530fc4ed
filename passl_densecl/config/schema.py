"""Every setting of a run, typed, bounded and frozen: the YAML file and `-o` overrides are checked against these
classes.

A file is one complete experiment. Unknown, missing, mistyped and repeated keys are all reported together, each with the
value, what was expected and, where a name is close, a suggestion. Nothing here touches a device or imports Paddle.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator
from pydantic_core import PydanticCustomError

from passl_densecl.errors import InputError
from passl_densecl.schedules import Schedule
from passl_densecl.text import printable, quantity
from passl_densecl.transforms import Transform, output_size

DEPTHS = (18, 34, 50, 101, 152)
RANDOM = "random"  # in place of a file of weights: an untrained backbone
LEAST_BATCH_NORM_VALUES = 16  # the variance of n normal values is known to √(2/n): 35 % of it for 16, 100 % for 2
QUEUE_LEN_MAX = 65_536  # the paper's queue, and the ceiling of queue_len: auto


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Count = Annotated[int, Field(ge=1, lt=2**31)]


def _a_path(text: object) -> str:
    """The path that a config or an override means: `$NAME`, `${NAME}` and a `~` in front are replaced, `$$` is `$`.

    Bytes of a name that are not UTF-8 are in the text as Python's surrogates, which pydantic's own check refuses.
    """
    if not isinstance(text, str):
        raise PydanticCustomError("string_type", "a text")
    if "\0" in text:  # spaces, newlines and the like are the file system's business
        raise ValueError("a path without NUL in it")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError("a path of whole characters") from None

    def value(variable: re.Match[str]) -> str:
        found = "$" if variable[0] == "$$" else os.environ.get(variable[1] or variable[2])
        if found is None:
            name = printable(variable[0])
            raise ValueError(f"a path of variables that are set ({name} is not; $$ stands for a dollar sign)")
        return found

    path = os.path.expanduser(re.sub(r"\$(?:\$|([A-Za-z_][A-Za-z0-9_]*)|\{([^{}]*)\})", value, text))
    if path.startswith("~"):
        raise ValueError(f"a path below a home folder that exists (./{printable(path)} is a folder of this name)")
    if not path:
        raise ValueError("a path that is not empty")
    return path


def path_text(path: str) -> str:
    """The text that a config or an override reads as this path."""
    return re.sub(r"\$(?=[$A-Za-z_{])", "$$", path)


def _a_folder_name(text: str) -> str:
    if text.startswith(".") or not text.isprintable() or len(os.fsencode(text)) > 200:
        raise ValueError("a name of at most 200 bytes, with nothing invisible in it and no dot in front")
    return text


PathText = Annotated[str, PlainValidator(_a_path), PlainSerializer(path_text)]
Transforms = Annotated[tuple[Transform, ...], Field(strict=False, min_length=1)]


@dataclass(frozen=True)
class BackboneSpec:
    """Which ResNet: its depth, and the strides that the names and shapes of its weights do not show."""

    depth: int  # one of DEPTHS
    stem_stride: int = 4  # 4: the published stem; 2: without its max-pooling; 1: also without conv1's stride
    last_stride: int = 2  # 2: as published; 1: the last stage keeps the map's size

    @property
    def is_published(self) -> bool:
        """Whether the strides are those of the published network, which other projects' ResNets have."""
        return (self.stem_stride, self.last_stride) == (4, 2)


@dataclass(frozen=True)
class HeadSpec:
    """The projection heads on a backbone."""

    hidden_dim: int = 2048
    out_dim: int = 128  # D
    num_grid: int | None = None  # the dense head sees the map pooled to so many cells a side; None: the whole map
    dense: bool = True  # False: no dense head, as in MoCo-v2


class BackboneConfig(Section):
    depth: Literal[18, 34, 50, 101, 152]
    stem_stride: Literal[1, 2, 4] = Field(
        4, description="4: the ResNet stem as published; 2: without its max-pooling; 1: also without conv1's stride"
    )
    last_stride: Literal[1, 2] = Field(2, description="2: as published; 1: the last stage keeps the map's size")

    @property
    def backbone(self) -> BackboneSpec:
        return BackboneSpec(self.depth, self.stem_stride, self.last_stride)


class PretrainModelConfig(BackboneConfig):
    hidden_dim: Count = Field(2048, description="width of the hidden layer of both projection heads")
    out_dim: Count = Field(128, description="D, the length of a projected vector")
    num_grid: Count | None = Field(None, description="cells per side of the dense head's map; null keeps its size")
    queue_len: Count | Literal["auto"] = Field(description="K, the number of negatives; auto fits it to the data set")
    temperature: float = Field(0.2, gt=0, description="τ, by which similarities are divided")
    momentum: float = Field(0.999, ge=0, lt=1, description="m of the key encoder's moving average")
    dense_negatives: Literal["image_mean", "cells"] = Field(
        "image_mean",
        description="what a key image leaves in the dense queue: the mean of its cells, as published; cells (an "
        "extension): one cell, drawn at random",
    )
    dense_matches: Literal["features", "geometry"] = Field(
        "features",
        description="which key cell is a query cell's positive: the most similar by the backbone's features, as "
        "published; geometry (an extension): the one at its place in the image, by the known crops",
    )
    loss_lambda: float = Field(0.5, ge=0, le=1, description="weight of the dense loss; 0 is MoCo-v2")
    loss_lambda_warmup_steps: int = Field(0, ge=0, description="loss_lambda is 0 for this many steps")
    loss_lambda_warmup_epochs: int = Field(0, ge=0, description="the same in epochs; give one of the two")

    def lambda_warmup(self, steps_per_epoch: int) -> int:
        """The step from which loss_lambda holds; before it λ is 0."""
        return self.loss_lambda_warmup_steps or self.loss_lambda_warmup_epochs * steps_per_epoch

    @property
    def heads(self) -> HeadSpec:
        return HeadSpec(self.hidden_dim, self.out_dim, self.num_grid, dense=self.loss_lambda > 0)


class ImagesConfig(Section):
    root: PathText = Field(description="folder of images, or the .lmdb that densecl data pack made from one")
    list_file: PathText | None = Field(
        None, description="text file that lists images relative to root; null takes them all"
    )
    extensions: Literal["known", "any"] = Field(
        "known", description="any: files without a known ending too, judged by their first bytes"
    )
    sixteen_bit: Literal["high_byte", "stretch"] = Field(
        "high_byte",
        description="of 16-bit images: the upper 8 bits; or each image's darkest to brightest value becomes 0 to 255",
    )

    def source(self, **instead: Any) -> dict[str, Any]:
        """The keyword arguments of scan_images that say which images, and how to read them."""
        names = ("root", "list_file", "extensions", "sixteen_bit", "labels")
        return {name: getattr(self, name) for name in names if hasattr(self, name)} | instead


class LabeledImagesConfig(ImagesConfig):
    labels: Literal["auto", "names", "numbers"] = Field(
        "auto", description="how to read the labels of list_file; auto: as whichever fits all of them"
    )


class LoadingConfig(Section):
    num_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="processes that load images; 0 loads in the training process; auto counts the cores"
    )
    max_bad_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of an epoch's images that may be undecodable (ten always may, unless it is 0)",
    )


class PretrainDataConfig(LoadingConfig, ImagesConfig):
    transforms: Transforms = Field(description="augmentations, drawn twice for each image")


class LinearDataConfig(LoadingConfig):
    train: LabeledImagesConfig = Field(description="images to train the classifier on")
    val: LabeledImagesConfig = Field(description="images to evaluate it on")
    train_transforms: Transforms = Field(description="augmentations of training images")
    val_transforms: Transforms = Field(description="resizing and cropping of validation images")


class SGDConfig(Section):
    name: Literal["SGD"] = "SGD"
    lr: float = Field(gt=0, le=1e6, description="learning rate for reference_batch_size")
    reference_batch_size: Count = Field(256, description="lr is scaled by batch_size over this")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(0.0001, ge=0, description="L2 penalty on the weights")


class AmpConfig(Section):
    enabled: bool = Field(
        default=False, description="mixed precision: the encoders run in dtype, the losses in float32"
    )
    dtype: Literal["bfloat16", "float16"] = Field(default="bfloat16", description="float16 adds loss scaling")


class CheckpointConfig(Section):
    every_epochs: Count = Field(default=1, description="epochs from one checkpoint to the next")
    every_steps: Count | None = Field(default=None, description="more checkpoints: steps from one to the next")
    keep: Count = Field(default=3, description="number of newest checkpoints to keep")


class RunConfig(Section):
    """What every run has, whatever its task."""

    # It names a folder: one that lies in output_dir (".." does not), and that every terminal can show.
    name: Annotated[str, AfterValidator(_a_folder_name)] = Field(
        min_length=1, pattern=r"^[^/\\\s]+$", description="the run's folder under output_dir"
    )
    output_dir: PathText = Field("output", description="folder of all runs")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of initial weights, image order and augmentations")
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="auto: a GPU where there is one")
    batch_size: Count = Field(description="images of one optimizer step, over all devices")
    epochs: Count = Field(description="passes over the images")
    optimizer: SGDConfig
    schedule: Schedule = Field(description="learning-rate schedule")
    amp: AmpConfig = Field(default_factory=AmpConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    log_every_steps: Count = Field(10, description="steps from one line of the log to the next")
    loggers: Annotated[tuple[Literal["visualdl", "tensorboard", "wandb", "mlflow"], ...], Field(strict=False)] = Field(
        ("visualdl",), description="where the run's numbers and pictures go, beside metrics.jsonl; [] for none"
    )
    report: bool = Field(True, description="write report.html into the run folder at the end of the run")
    dist_timeout: float = Field(
        60, ge=5, description="seconds without a heartbeat of another process after which the run stops"
    )

    @property
    def run_dir(self) -> Path:
        return Path(self.output_dir) / self.name

    @property
    def base_lr(self) -> float:
        """The learning rate that the schedule multiplies: `optimizer.lr`, scaled linearly with the batch."""
        return self.optimizer.lr * self.batch_size / self.optimizer.reference_batch_size

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, message) of every setting that is fine alone but not beside the others."""
        yield from ()


class GuardConfig(Section):
    """What a run does when a step's numbers are not finite: a loss, a gradient, a key or a BatchNorm statistic.

    Such a step changes nothing but the step counter. They are counted over the whole run, resumes included; the step
    that exceeds the limit ends the run (exit code 3). One that float16's loss scaling skips by itself does not count.
    """

    max_nonfinite_steps: int = Field(default=10, ge=0, description="steps a run may skip; 0 stops at the first one")
    keep_dumps: int = Field(
        default=3,
        ge=0,
        description="number of skipped steps (the first ones) whose batch and state are kept for --replay",
    )


class EvaluationConfig(Section):
    """k-NN accuracy of the query encoder while it trains."""

    train: PathText = Field(description="labeled images (one folder per class, or a pack of them): the bank")
    val: PathText = Field(description="labeled images to classify")
    every_epochs: Count = Field(1, description="also before the first and after the last epoch")
    size: Annotated[int, Field(ge=32)] | None = Field(
        None, description="pixels of the center crop; null takes the size of the training views"
    )
    k: Count = Field(20, description="neighbors")
    temperature: float = Field(0.07, gt=0, description="temperature of the neighbors' votes")
    batch_size: Count = Field(64, description="images per forward pass of a process")


class MonitorConfig(Section):
    """What the dense loss teaches: correspondences, or place. Of the query encoder, on crops of training images."""

    images: int = Field(64, ge=8, description="training images, the same ones every time, each cropped twice")
    every_epochs: Count = Field(1, description="also before the first and after the last epoch")


class PretrainConfig(RunConfig):
    task: Literal["pretrain"]
    model: PretrainModelConfig
    data: PretrainDataConfig
    micro_batch_size: Count = Field(
        32, description="images that one BatchNorm sees; gradients are summed over the rest"
    )
    evaluation: EvaluationConfig | None = Field(None, description="k-NN accuracy every few epochs; null for none")
    monitor: MonitorConfig | None = Field(
        None, description="correspondences and place R² every few epochs; null for none, {} for the defaults"
    )
    guard: GuardConfig = Field(default_factory=GuardConfig)

    @property
    def micro_batch_count(self) -> int:
        return self.batch_size // self.micro_batch_size

    @property
    def map_side(self) -> int | None:
        """Cells a side of the last stage's map; None where the views have no size, which the loader says."""
        try:
            size = output_size(self.data.transforms)
        except InputError:
            return None
        return -(-size // (self.model.stem_stride * 4 * self.model.last_stride))

    @property
    def matched_side(self) -> int | None:
        """Cells a side of the dense head's map, where the geometry of the crops matches them; else None."""
        by_geometry = self.model.dense_matches == "geometry" and self.model.heads.dense
        return (self.model.num_grid or self.map_side) if by_geometry else None

    @property
    def batch_norm_values(self) -> int:
        """From how many values a channel BatchNorm takes its statistics where they are fewest, in the last stage:
        micro_batch_size × height × width of its map.
        """
        return self.micro_batch_size * self.map_side**2 if self.map_side else LEAST_BATCH_NORM_VALUES

    def batch_norm_warning(self) -> str | None:
        """What to say when BatchNorm's statistics would be mostly noise."""
        values = self.batch_norm_values
        if values >= LEAST_BATCH_NORM_VALUES:
            return None
        effect = "the network would put out a constant" if values == 1 else "they are mostly noise, and it learns less"
        return (
            f"micro_batch_size {self.micro_batch_size} × the last stage's map are {quantity(values, 'value')} a channel"
            f" for BatchNorm's statistics, expected at least {LEAST_BATCH_NORM_VALUES}: {effect}; set a larger "
            "micro_batch_size, larger views (data.transforms) or model.last_stride 1"
        )

    def problems(self) -> Iterator[tuple[str, str]]:
        size, micro, queue_len = self.batch_size, self.micro_batch_size, self.model.queue_len
        if self.batch_norm_values == 1:
            yield "micro_batch_size", self.batch_norm_warning() or ""
        if self.monitor is not None and self.map_side == 1:
            remedy = "set larger views (data.transforms), model.last_stride 1 or monitor null"
            yield "monitor", f"the last stage's map is one cell, which has no place; {remedy}"
        names = [transform.name for transform in self.data.transforms]
        moves = [name for name in names if name in ("RandomResizedCrop", "Resize", "CenterCrop")]
        if self.matched_side and (names[0], *moves) != ("RandomResizedCrop", "RandomResizedCrop"):
            message = "geometry needs data.transforms that begin with RandomResizedCrop, the only one to crop or resize"
            yield "model.dense_matches", f"{message}, got {', '.join(names)}; or set features"
        if size % micro:
            low = [d for d in range(1, math.isqrt(size) + 1) if size % d == 0]
            best = min([*low, *(size // d for d in low)], key=lambda d: abs(d - micro))
            other = max(1, round(size / micro)) * micro
            message = f"{micro} does not divide batch_size {size}; try micro_batch_size {best}, or batch_size {other}"
            yield "micro_batch_size", message
        if self.model.loss_lambda_warmup_steps and self.model.loss_lambda_warmup_epochs:
            message = "given beside loss_lambda_warmup_steps; set one of the two to 0"
            yield "model.loss_lambda_warmup_epochs", message
        if isinstance(queue_len, int) and queue_len < size:
            message = f"{queue_len} is less than batch_size {size}: a step would overwrite its own keys"
            yield "model.queue_len", f"{message}; try {2 ** (size * 4 - 1).bit_length()} or auto"


class LinearConfig(RunConfig):
    task: Literal["linear"]
    model: BackboneConfig
    data: LinearDataConfig


Config = PretrainConfig | LinearConfig
TASKS: dict[str, type[PretrainConfig] | type[LinearConfig]] = {"pretrain": PretrainConfig, "linear": LinearConfig}
