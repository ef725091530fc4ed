"""The weights that a new run starts from: read, checked against the config, and put into the model."""

from __future__ import annotations

from pathlib import Path

from passl_densecl.config import RANDOM, BackboneSpec, PretrainModelConfig
from passl_densecl.errors import InputError, option
from passl_densecl.models import DenseCL
from passl_densecl.models.linear import LinearClassifier
from passl_densecl.weights.card import FOREIGN, Parent
from passl_densecl.weights.files import weights_file
from passl_densecl.weights.load import load_strict
from passl_densecl.weights.names import Extraction
from passl_densecl.weights.read import read_backbone, read_classifier, read_training_state
from passl_densecl.weights.recorded import recorded_backbone, recorded_card


def parent_of(path: str) -> Parent:
    """The file that a new run's weights come from."""
    file = weights_file(Path(path))
    card = recorded_card(file)
    return Parent.of(file, card.kind if card else FOREIGN)


def load_state(model: DenseCL, path: str, expected: PretrainModelConfig) -> str:
    """Load a whole training state, of whatever project, into the model of a new run: weights, statistics and queues.

    Returns a description for the log. Raises InputError when the file holds no such state, or one whose sizes are not
    those of the model; the model is unchanged then.
    """
    state = read_training_state(path)
    queue_len, out_dim = model.global_queue.keys.shape
    sizes = (
        ("depth", state.depth, expected.depth),
        ("hidden_dim", state.hidden_dim, expected.hidden_dim),
        ("out_dim", state.out_dim, out_dim),
        ("queue_len", state.queue_len, queue_len),
    )
    unfit = [(key, there, here) for key, there, here in sizes if there != here]
    if unfit:
        differences = "; ".join(f"model.{key} is {there} there and {here} here" for key, there, here in unfit)
        agreeing = " ".join(f"model.{key}={there}" for key, there, _ in unfit)
        raise InputError(
            f"{option('load', path)} does not fit the config: {differences}. Set {agreeing}, or choose another state"
        )
    if state.has_dense != (model.dense_queue is not None):
        what = "a dense head and queue" if state.has_dense else "no dense head and queue (as MoCo-v2)"
        raise InputError(
            f"{option('load', path)} has {what}, the config has model.loss_lambda {expected.loss_lambda:g}: set it "
            f"{'above 0' if state.has_dense else 'to 0'}, or take only the state's backbone, with "
            f"{option('pretrained')}"
        )
    check_strides("load", path, expected.backbone)
    load_strict(model, state.arrays, source=path)
    return f"{path}: {state.kind}, {state.describe()}; into a new run"


def load_backbones(model: DenseCL, path: str, expected: BackboneSpec, prefix: str | None = None) -> str:
    """Load the backbone of any recognized file into both encoders of a new run; heads and queues stay random.

    Returns a description for the log. Raises InputError as `read_fitting_backbone`.
    """
    extraction = read_fitting_backbone(path, expected, prefix)
    for encoder in (model.query_encoder, model.key_encoder):
        load_strict(encoder.backbone, extraction.backbone, source=path)
    return f"{path}: {extraction.kind}, ResNet-{extraction.depth}, into both encoders; heads and queues are random"


def load_pretrained(model: LinearClassifier, path: str, expected: BackboneSpec, prefix: str | None = None) -> str:
    """Load the backbone of any recognized file into the classifier; `random` keeps the seeded initialization.

    Returns a description for the log. Raises InputError as `read_fitting_backbone`.
    """
    if path == RANDOM:
        return "random: the backbone was not trained (a baseline)"
    extraction = read_fitting_backbone(path, expected, prefix)
    load_strict(model.backbone, extraction.backbone, source=path)
    return f"{path}: {extraction.kind}, ResNet-{extraction.depth}, {len(extraction.backbone)} arrays used"


def load_classifier(model: LinearClassifier, path: str, expected: BackboneSpec, prefix: str | None = None) -> str:
    """Load a classifier of any recognized kind. Returns a description for the log.

    Raises InputError when its recorded strides differ.
    """
    check_strides("load", path, expected)
    file = weights_file(Path(path))
    load_strict(model, read_classifier(file, prefix=prefix), source=path)
    return f"{file}: classifier"


def read_fitting_backbone(path: str, expected: BackboneSpec, prefix: str | None = None) -> Extraction:
    """The backbone for `pretrained`, the one behind `prefix` where the file holds several.

    Raises InputError when its depth or recorded strides differ.
    """
    extraction = read_backbone(Path(path), prefix=prefix)
    if extraction.depth != expected.depth:
        raise InputError(
            f"{option('pretrained', path)} holds a ResNet-{extraction.depth}, the config asks for "
            f"ResNet-{expected.depth}: set model.depth {extraction.depth}, or choose another file"
        )
    check_strides("pretrained", path, expected)
    return extraction


def check_strides(name: str, path: str, expected: BackboneSpec) -> None:
    """Raises InputError when the weights are recorded to come from a run with other strides than the config's."""
    trained = recorded_backbone(weights_file(Path(path)))
    for key in ("stem_stride", "last_stride"):
        if trained and getattr(trained, key) != getattr(expected, key):
            raise InputError(
                f"{option(name, path)} was trained with model.{key} {getattr(trained, key)}, the config says "
                f"{getattr(expected, key)}; set model.{key}={getattr(trained, key)}"
            )
