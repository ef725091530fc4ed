"""Maps for pictures: the backbone's, or the dense projection head's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

import numpy as np
from paddle import nn

from passl_densecl.config import RANDOM
from passl_densecl.errors import InputError, option
from passl_densecl.evaluation.features import Backbone, load_backbone
from passl_densecl.models import Encoder
from passl_densecl.weights.files import read_weights, weights_file
from passl_densecl.weights.load import load_strict
from passl_densecl.weights.names import find_encoder
from passl_densecl.weights.recorded import BackboneOptions
from passl_densecl.weights.tables import unwrap

# prefix of an encoder's backbone → prefix of its dense head
_HEADS = {
    "query_encoder.backbone.": "query_encoder.dense_head.",
    "key_encoder.backbone.": "key_encoder.dense_head.",
    "encoder_q.0.": "encoder_q.1.mlp2.",
    "encoder_k.0.": "encoder_k.1.mlp2.",
}


def load_map(
    path: str | os.PathLike[str],
    options: BackboneOptions = BackboneOptions(),
    *,
    seed: int = 0,
    encoder: Literal["query", "key"] = "query",
    features: Literal["backbone", "dense"] = "backbone",
) -> Backbone:
    """Normalized images (B, 3, height, width) → map (B, C or D, H, W), in eval mode.

    Arguments as for :func:`~passl_densecl.evaluation.features.load_backbone`; `features` selects the backbone's map or
    the dense head on each of its cells (`num_grid` pools in training only: pictures show the fine map).

    Raises:
        InputError: as load_backbone; or weights without a dense head for dense features.
    """
    backbone = load_backbone(path, options, seed=seed, encoder=encoder)
    if features == "backbone":
        return backbone
    if os.fspath(path) == RANDOM:
        head = Encoder(options.resolve(options.depth or 0), seed=seed).dense_head
        assert head is not None
    else:
        file = weights_file(path)
        try:
            arrays = unwrap(read_weights(file).content)
            place = find_encoder(arrays, encoder=encoder, prefix=options.prefix)
            head = _dense_head(arrays, place.prefix)
        except InputError as error:
            raise InputError(f"{file}: {error}") from None
    head.eval()
    return lambda images: head(backbone(images))


def _dense_head(arrays: Mapping[str, np.ndarray], prefix: str) -> nn.Sequential:
    """The 1×1 convolutions of the encoder whose backbone has this prefix."""
    backbone = next((known for known in _HEADS if prefix.endswith(known)), None)
    if backbone is None:
        raise InputError(
            "holds a backbone only; dense features need a pre-training checkpoint: pass one, or use "
            + option("features", "backbone")
        )
    start = prefix.removesuffix(backbone) + _HEADS[backbone]
    weights = {name[len(start) :]: array for name, array in arrays.items() if name.startswith(start)}
    if not weights:
        other = option("features", "backbone")
        raise InputError(f"has no dense head (pre-trained with loss_lambda 0: MoCo-v2); use {other}")
    try:
        hidden, width = weights["0.weight"].shape[:2]
        out = weights["2.weight"].shape[0]
    except (KeyError, ValueError, IndexError):
        raise InputError(f"no dense head of two 1×1 convolutions at {start!r}: found {sorted(weights)[:4]}") from None
    head = nn.Sequential(nn.Conv2D(width, hidden, 1), nn.ReLU(), nn.Conv2D(hidden, out, 1))
    load_strict(head, weights, source="its dense head")
    return head


def cells(features: np.ndarray) -> np.ndarray:
    """(C, H, W) → (H·W, C) float32 unit vectors, row by row."""
    flat = features.reshape(len(features), -1).T.astype(np.float32)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
