"""Models out of weight files of any kind, under this project's names.

A path may be a file, a checkpoint folder or a run folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, TypeVar

import numpy as np

from passl_densecl.errors import InputError
from passl_densecl.weights.files import read_weights, weights_file
from passl_densecl.weights.names import Extraction, encoder_vocabularies, extract_backbone, match_layout
from passl_densecl.weights.state import TrainingState, read_state
from passl_densecl.weights.tables import Dtype, in_dtype, unwrap

Arrays = dict[str, np.ndarray]
Path = str | os.PathLike[str]
T = TypeVar("T")


def read_backbone(
    path: Path, *, encoder: Literal["query", "key"] = "query", prefix: str | None = None, dtype: Dtype = "float32"
) -> Extraction:
    """The backbone in a file of any kind that ``extract_backbone`` knows, in ``dtype``.

    Raises:
        InputError: not readable as plain data, or no backbone in it; names the file.
    """

    def take(arrays: Arrays) -> Extraction:
        taken = extract_backbone(arrays, encoder=encoder, prefix=prefix)
        backbone, converted = in_dtype(taken.backbone, dtype)
        return replace(taken, backbone=backbone, converted=converted)

    return _read(path, take)


def read_model(path: Path, *, prefix: str | None = None) -> Arrays:
    """Everything that a file holds of a model, or the backbone behind `prefix` with the classifier on it.

    A whole training state has both encoders, projection heads and queues (``query_encoder.…``), a classifier
    ``backbone.…`` and ``fc.…``, a backbone the plain names of ``paddle.vision``.

    Raises:
        InputError: not readable as plain data, no model in it, or one that is not whole; names the file.
    """
    return _read(path, lambda arrays: _model(arrays, prefix))


def read_classifier(path: Path, *, prefix: str | None = None) -> Arrays:
    """A linear classifier of any kind: ``backbone.…``, ``fc.weight`` (C, classes), ``fc.bias`` (classes,).

    Raises:
        InputError: not readable, no backbone, or no classifier on it; names the file.
    """
    return _read(path, lambda arrays: _classifier(arrays, prefix))


def read_training_state(path: Path) -> TrainingState:
    """A whole training state of any kind.

    Raises:
        InputError: not readable, or no whole training state; names the file.
    """
    return _read(path, read_state)


def _read(path: Path, take: Callable[[Arrays], T]) -> T:
    file = weights_file(path)
    content = read_weights(file).content
    try:
        return take(unwrap(content))
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def _model(arrays: Arrays, prefix: str | None) -> Arrays:
    if prefix is None and match_layout(encoder_vocabularies(arrays)):
        return read_state(arrays).arrays
    taken = extract_backbone(arrays, prefix=prefix)
    classifier = taken.classifier()
    return _with_classifier(taken.backbone, classifier) if classifier else taken.backbone


def _classifier(arrays: Arrays, prefix: str | None) -> Arrays:
    taken = extract_backbone(arrays, prefix=prefix)
    classifier = taken.classifier()
    if not classifier:
        expected = "expected fc.weight, head.fc.weight or the like"
        raise InputError(f"no classifier on its backbone ({taken.kind}): {expected}")
    return _with_classifier(taken.backbone, classifier)


def _with_classifier(backbone: Arrays, classifier: Arrays) -> Arrays:
    return {f"backbone.{name}": array for name, array in backbone.items()} | classifier
