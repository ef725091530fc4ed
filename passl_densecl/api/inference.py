"""Outputs of a model for images: classes and scores, maps and vectors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.vision.models import ResNet

from passl_densecl.api.images import Images, batches, collect
from passl_densecl.api.info import PUBLISHED_SIZE, ModelInfo, checked_view
from passl_densecl.api.models import get_model
from passl_densecl.data.images import UndecodableImage
from passl_densecl.errors import InputError
from passl_densecl.evaluation.features import feature_maps, pool
from passl_densecl.models import DenseCL, Encoder
from passl_densecl.models.linear import LinearClassifier
from passl_densecl.tensors import to_tensor
from passl_densecl.text import suggestion
from passl_densecl.transforms import center_view

if TYPE_CHECKING:
    from passl_densecl.data.images import SixteenBit
    from passl_densecl.transforms import Transform

Stage = Literal["backbone", "pooled", "global", "dense"]
STAGES = ("backbone", "pooled", "global", "dense")
MANY = 64  # images: the least for which a progress bar is shown


class _Inferencer:
    """A model with the transforms of its images."""

    _title: str  # of the progress bar

    def __init__(
        self,
        model: nn.Layer | str | os.PathLike[str],
        pretrained: bool | str | os.PathLike[str] = True,
        device: str | None = None,
        *,
        size: int | None = None,
        prefix: str | None = None,
    ) -> None:
        is_built = isinstance(model, nn.Layer)
        self.model: nn.Layer = model if is_built else get_model(model, pretrained, device, prefix=prefix)
        self.info: ModelInfo | None = getattr(self.model, "info", None)
        self.sixteen_bit: SixteenBit = self.info.sixteen_bit if self.info else "high_byte"  # of files
        self.transforms: tuple[Transform, ...] = checked_view(size) if size is not None else transforms_of(self.model)

    def _run(
        self, images: Images, compute: Callable[[np.ndarray], Any], batch_size: int, num_workers: int, show: bool | None
    ) -> Iterator[Any]:
        """Output of `compute` for each batch, uint8 (B, height, width, 3). Raises UndecodableImage for a bad image."""
        show = len(images) >= MANY and sys.stderr.isatty() if show is None else show
        bar = progress_bar(self._title, len(images)) if show else nullcontext(lambda count: None)
        with in_eval_mode(self.model), bar as advance:
            for batch in batches(images, self.transforms, batch_size, num_workers):
                for index, reason in batch.bad:
                    raise UndecodableImage(images.name(index), reason)
                yield compute(batch.views)
                advance(len(batch.indices))


class ImageClassificationInferencer(_Inferencer):
    """Classes of images, by a classifier that linear evaluation trained.

    ``ImageClassificationInferencer(model)(inputs)`` → one dict per image:

    - ``pred_label`` (int): the class with the highest score, ``pred_score`` (float): that score,
    - ``pred_class`` (str): its name, where the names are known,
    - ``pred_scores``: (classes,) float32, the softmax over all classes.

    Args:
        model: a ``LinearClassifier``, or what `get_model` loads as one.
        pretrained, device, prefix: for ``get_model``.
        classes: names that replace the model's own.
        size: of the center crop in pixels; None: as in the model's evaluation.

    Raises:
        InputError: the model has no classifier, or another number of classes.
    """

    _title = "classify"

    def __init__(
        self,
        model: nn.Layer | str | os.PathLike[str],
        pretrained: bool | str | os.PathLike[str] = True,
        device: str | None = None,
        classes: list[str] | tuple[str, ...] | None = None,
        *,
        size: int | None = None,
        prefix: str | None = None,
    ) -> None:
        super().__init__(model, pretrained, device, size=size, prefix=prefix)
        if not isinstance(self.model, LinearClassifier):
            what = self.info.source if self.info else f"a {type(self.model).__name__}"
            raise InputError(
                f"{what} has no classifier: train one (densecl train with a linear config) and pass its checkpoint; "
                "FeatureExtractor accepts every model"
            )
        count = self.model.fc.bias.shape[0]
        names = classes if classes is not None else self.info.classes if self.info else None
        if names is not None and (isinstance(names, str) or len(names) != count):
            raise InputError(
                f"classes: expected a list of {count} names, got {names if isinstance(names, str) else len(names)}"
            )
        self.classes = None if names is None else tuple(names)

    def __call__(
        self, inputs: Any, batch_size: int = 32, *, num_workers: int = 0, show_progress: bool | None = None
    ) -> list[dict[str, Any]]:
        """One dict per image of `inputs` (see `collect`), in their order.

        Args:
            num_workers: processes that decode; 0 decodes in this one.
            show_progress: None shows a bar on a terminal for 64 images or more.

        Raises:
            InputError: inputs that are not images, or an image that cannot be decoded.
        """
        model = self.model
        assert isinstance(model, LinearClassifier)

        @paddle.no_grad()
        def scores(images: np.ndarray) -> np.ndarray:
            return F.softmax(model(to_tensor(images)).astype("float32"), axis=1).numpy()

        batches = self._run(collect(inputs, self.sixteen_bit), scores, batch_size, num_workers, show_progress)
        return [self._result(row) for rows in batches for row in rows]

    def _result(self, scores: np.ndarray) -> dict[str, Any]:
        label = int(scores.argmax())
        result: dict[str, Any] = {"pred_label": label, "pred_score": float(scores[label])}
        if self.classes is not None:
            result["pred_class"] = self.classes[label]
        return {**result, "pred_scores": scores}


def inference_model(model: nn.Layer | str | os.PathLike[str], image: Any, **options: Any) -> dict[str, Any]:
    """The class of one image: ``pred_label``, ``pred_score``, ``pred_class`` and ``pred_scores``.

    For many images use one `ImageClassificationInferencer` with the list. `options` are its options.

    Raises:
        InputError: as there, or more than one image.
    """
    if isinstance(image, list | tuple) or (isinstance(image, np.ndarray) and image.ndim == 4):
        raise InputError("inference_model takes one image; for several: ImageClassificationInferencer(model)(images)")
    if isinstance(image, str | os.PathLike) and os.path.isdir(image):
        raise InputError(f"{image} is a folder; for several images: ImageClassificationInferencer(model)(folder)")
    return ImageClassificationInferencer(model, **options)(image)[0]


class FeatureExtractor(_Inferencer):
    """Features of images, from any model: pre-training, classifier or backbone.

    ``FeatureExtractor(model)(images, stage)`` → float32 array, one row per image (also for a single one):

    - ``"backbone"``: (N, C, H, W), the last map; not normalized,
    - ``"pooled"``: (N, C), its average over positions, the input of k-NN and linear evaluation,
    - ``"global"``: (N, D) unit vectors of the global projection head,
    - ``"dense"``: (N, D, H, W), a unit vector of the dense projection head per cell.

    The last two need a pre-training model. Arguments as for `ImageClassificationInferencer`.
    """

    _title = "features"

    def __call__(
        self,
        inputs: Any,
        stage: Stage = "pooled",
        batch_size: int = 32,
        *,
        encoder: Literal["query", "key"] = "query",
        num_workers: int = 0,
        show_progress: bool | None = None,
    ) -> np.ndarray:
        """Features of `inputs` (see `collect`), in their order.

        Args:
            encoder: which encoder of a pre-training model.
            num_workers: processes that decode; 0 decodes in this one.
            show_progress: None shows a bar on a terminal for 64 images or more.

        Raises:
            InputError: inputs that are not images, an image that cannot be decoded, or a stage or encoder that the
                model does not have.
        """
        compute = feature_function(self.model, stage, encoder)
        return np.concatenate(
            list(self._run(collect(inputs, self.sixteen_bit), compute, batch_size, num_workers, show_progress))
        )


def feature_function(
    model: nn.Layer, stage: Stage = "pooled", encoder: Literal["query", "key"] = "query"
) -> Callable[[np.ndarray], np.ndarray]:
    """The function from uint8 RGB (B, height, width, 3) to the features of a stage, as FeatureExtractor gives them."""
    if stage not in STAGES:
        raise InputError(f"stage {stage!r}: expected one of {', '.join(STAGES)}{suggestion(str(stage), STAGES)}")
    if encoder not in ("query", "key"):
        raise InputError(f"encoder {encoder!r}: expected 'query' or 'key'")
    network: nn.Layer = model
    if isinstance(model, DenseCL):
        network = model.query_encoder if encoder == "query" else model.key_encoder
    elif encoder == "key":
        raise InputError(
            "encoder='key': these weights hold one backbone only; omit encoder, or pass a pre-training checkpoint"
        )
    backbone: Any = getattr(network, "backbone", network)
    if isinstance(backbone, ResNet) and (backbone.with_pool or backbone.num_classes > 0):
        raise InputError(
            "this ResNet does not return a map: build it with num_classes=0, with_pool=False, or with get_model"
        )
    if stage == "backbone":
        return lambda images: feature_maps(backbone, images).numpy()
    if stage == "pooled":
        return lambda images: pool(backbone, to_tensor(images))
    if not isinstance(network, Encoder):
        raise InputError(
            f"stage {stage!r}: these weights have no projection head, only a backbone; pass the pre-training "
            "checkpoint, or use stage 'backbone' or 'pooled'"
        )
    if stage == "dense" and network.dense_head is None:
        raise InputError("stage 'dense': this model was trained without a dense branch (MoCo-v2); use 'global'")
    return lambda images: _projected(network, images, stage)


@paddle.no_grad()
def _projected(encoder: Encoder, images: np.ndarray, stage: Stage) -> np.ndarray:
    """uint8 (B, height, width, 3) → (B, D), or (B, D, H, W) for "dense"."""
    features = feature_maps(encoder.backbone, images)  # (B, C, H, W)
    projections = encoder.project(features)
    if stage == "global" or projections.dense is None:
        return projections.global_vector.numpy()
    grid = [encoder.num_grid] * 2 if encoder.num_grid is not None else features.shape[2:]
    return projections.dense.reshape([*projections.dense.shape[:2], *grid]).numpy()


def transforms_of(model: nn.Layer) -> tuple[Transform, ...]:
    """The model's transforms of images; the published ones for a model that get_model did not make."""
    info: ModelInfo | None = getattr(model, "info", None)
    return info.transforms if info is not None else center_view(PUBLISHED_SIZE)


@contextmanager
def in_eval_mode(model: nn.Layer) -> Iterator[None]:
    """Every layer in eval mode, restored afterwards: inference must not change BatchNorm's statistics."""
    training = [layer for layer in model.sublayers(include_self=True) if layer.training]
    model.eval()
    try:
        yield
    finally:
        for layer in training:
            layer.training = True


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A temporary progress bar on standard error; the function takes the number of newly finished items."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)
