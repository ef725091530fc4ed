"""What a model says of images: classes and scores, maps and vectors."""

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
from passl_densecl.api.info import ModelInfo, checked_view, view
from passl_densecl.api.models import get_model
from passl_densecl.data.images import UndecodableImage
from passl_densecl.errors import InputError
from passl_densecl.evaluation.features import feature_maps, pool
from passl_densecl.models import DenseCL, Encoder, LinearClassifier
from passl_densecl.tensors import to_tensor
from passl_densecl.text import suggestion

if TYPE_CHECKING:
    from passl_densecl.transforms import Transform

Stage = Literal["backbone", "pooled", "global", "dense"]
STAGES = ("backbone", "pooled", "global", "dense")
MANY = 64  # images from which on a progress bar is shown


class _Inferencer:
    """A model with the way in which it sees images."""

    def __init__(
        self,
        model: nn.Layer | str | os.PathLike[str],
        pretrained: bool | str | os.PathLike[str] = True,
        device: str | None = None,
        *,
        size: int | None = None,
    ) -> None:
        self.model: nn.Layer = model if isinstance(model, nn.Layer) else get_model(model, pretrained, device)
        self.info: ModelInfo | None = getattr(self.model, "info", None)
        self.transforms: tuple[Transform, ...] = checked_view(size) if size is not None else transforms_of(self.model)

    def _run(
        self,
        images: Images,
        compute: Callable[[np.ndarray], Any],
        title: str,
        batch_size: int,
        num_workers: int,
        show_progress: bool | None,
    ) -> Iterator[Any]:
        """What `compute` gives for each batch, uint8 (B, height, width, 3). Raises UndecodableImage at a bad image."""
        shown = len(images) >= MANY and sys.stderr.isatty() if show_progress is None else show_progress
        with in_eval_mode(self.model), progress_bar(title, len(images)) if shown else nullcontext(_silent) as advance:
            for batch in batches(images, self.transforms, batch_size, num_workers):
                for index, reason in batch.bad:
                    raise UndecodableImage(images.name(index), reason)
                yield compute(batch.views)
                advance(len(batch.indices))


class ImageClassificationInferencer(_Inferencer):
    """Classes of images, by a classifier that linear evaluation trained.

    ``ImageClassificationInferencer(model)(inputs)`` → one dict for each image:

    - ``pred_label`` (int): the class with the highest score, ``pred_score`` (float): that score,
    - ``pred_class`` (str): its name, where the names are known,
    - ``pred_scores``: (classes,) float32, the softmax over all classes.

    Args:
        model: a ``LinearClassifier``, or whatever :func:`~passl_densecl.get_model` makes one of.
        pretrained, device: for ``get_model``.
        classes: names to use in place of those that the model brings.
        size: of the center crop in pixels, in place of the one that the model was evaluated with.

    Raises:
        InputError: the model has no classifier, or `classes` are not as many as its classes.
    """

    def __init__(
        self,
        model: nn.Layer | str | os.PathLike[str],
        pretrained: bool | str | os.PathLike[str] = True,
        device: str | None = None,
        classes: list[str] | tuple[str, ...] | None = None,
        *,
        size: int | None = None,
    ) -> None:
        super().__init__(model, pretrained, device, size=size)
        if not isinstance(self.model, LinearClassifier):
            what = self.info.source if self.info else f"a {type(self.model).__name__}"
            raise InputError(
                f"{what} has no classifier: train one (tools/train.py with a linear config) and give its checkpoint; "
                "FeatureExtractor takes every model"
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
        """A dict for each image of `inputs` (see :func:`~passl_densecl.api.images.collect`), in their order.

        Args:
            num_workers: processes that decode; 0 decodes in this one.
            show_progress: None shows a bar on a terminal from 64 images on.

        Raises:
            InputError: inputs that are no images, or an image that cannot be decoded.
        """
        model = self.model
        assert isinstance(model, LinearClassifier)

        @paddle.no_grad()
        def scores(images: np.ndarray) -> np.ndarray:
            return F.softmax(model(to_tensor(images)).astype("float32"), axis=1).numpy()

        found = self._run(collect(inputs), scores, "classify", batch_size, num_workers, show_progress)
        return [self._result(row) for rows in found for row in rows]

    def _result(self, scores: np.ndarray) -> dict[str, Any]:
        label = int(scores.argmax())
        result: dict[str, Any] = {"pred_label": label, "pred_score": float(scores[label])}
        if self.classes is not None:
            result["pred_class"] = self.classes[label]
        return {**result, "pred_scores": scores}


def inference_model(model: nn.Layer | str | os.PathLike[str], image: Any, **options: Any) -> dict[str, Any]:
    """The class of one image: ``pred_label``, ``pred_score``, ``pred_class`` and ``pred_scores``.

    For many images make one :class:`ImageClassificationInferencer` and give it the list. `options` are its options.

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

    ``FeatureExtractor(model)(images, stage)`` → float32 array, one row an image (also for a single one):

    - ``"backbone"``: (N, C, H, W), the last map; not normalized,
    - ``"pooled"``: (N, C), its average over positions, what k-NN and linear evaluation look at,
    - ``"global"``: (N, D) unit vectors of the global neck,
    - ``"dense"``: (N, D, H, W), a unit vector of the dense neck for each cell.

    The last two need a pre-training model. Args as of :class:`ImageClassificationInferencer`.
    """

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
        """Features of `inputs` (see :func:`~passl_densecl.api.images.collect`), in their order.

        Args:
            encoder: which one of a pre-training model.
            num_workers: processes that decode; 0 decodes in this one.
            show_progress: None shows a bar on a terminal from 64 images on.

        Raises:
            InputError: inputs that are no images, an image that cannot be decoded, or a stage or an encoder that this
                model does not have.
        """
        compute = feature_function(self.model, stage, encoder)
        return np.concatenate(
            list(self._run(collect(inputs), compute, "features", batch_size, num_workers, show_progress))
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
            "encoder='key': these weights hold one backbone only; leave it out, or give a pre-training checkpoint"
        )
    backbone: Any = getattr(network, "backbone", network)
    if isinstance(backbone, ResNet) and (backbone.with_pool or backbone.num_classes > 0):
        raise InputError("this ResNet gives no map: build it with num_classes=0, with_pool=False, or by get_model")
    if stage == "backbone":
        return lambda images: feature_maps(backbone, images).numpy()
    if stage == "pooled":
        return lambda images: pool(backbone, to_tensor(images))
    if not isinstance(network, Encoder):
        raise InputError(
            f"stage {stage!r}: these weights have no neck, only a backbone; give the pre-training checkpoint, or take "
            "stage 'backbone' or 'pooled'"
        )
    if stage == "dense" and network.dense_head is None:
        raise InputError("stage 'dense': this model was trained without a dense branch (MoCo-v2); take 'global'")
    return lambda images: _projected(network, images, stage)


@paddle.no_grad()
def _projected(encoder: Encoder, images: np.ndarray, stage: Stage) -> np.ndarray:
    """uint8 (B, height, width, 3) → (B, D), or (B, D, H, W) for "dense"."""
    features = feature_maps(encoder.backbone, images)  # (B, C, H, W)
    found = encoder.project(features)
    if stage == "global" or found.dense is None:
        return found.global_vector.numpy()
    grid = [encoder.num_grid] * 2 if encoder.num_grid is not None else features.shape[2:]
    return found.dense.reshape([*found.dense.shape[:2], *grid]).numpy()


def transforms_of(model: nn.Layer) -> tuple[Transform, ...]:
    """How images are prepared for the model; the published way for one that get_model did not make."""
    info: ModelInfo | None = getattr(model, "info", None)
    return info.transforms if info is not None else view()


@contextmanager
def in_eval_mode(model: nn.Layer) -> Iterator[None]:
    """Every layer in eval mode, and afterwards as before: a look must not move BatchNorm's statistics."""
    training = [layer for layer in model.sublayers(include_self=True) if layer.training]
    model.eval()
    try:
        yield
    finally:
        for layer in training:
            layer.training = True


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with the time left on standard error, gone at the end; the function takes how many more are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


def _silent(_count: int) -> None:
    pass
