"""What the first step of a run trains on, as pictures for its loggers: the views, and the matches between them."""

from __future__ import annotations

import copy

import cv2
import numpy as np
import paddle

from passl_densecl.models import DenseCL, Keys
from passl_densecl.models.losses import match
from passl_densecl.models.resnet import normalize

_VIEWS, _PAIRS, _LINES = 8, 4, 24  # images with their views, pairs with matches, matches of a pair
_SIDE = 224  # pixels: smaller views are enlarged


@paddle.no_grad()
def first_pictures(
    model: DenseCL, query: paddle.Tensor, key: paddle.Tensor, keys: Keys, micro_batch_size: int
) -> dict[str, np.ndarray]:
    """Query views above their key views, and lines from positions of the query map to the most similar of the key map.

    `query` and `key` are views, uint8 (N, height, width, 3); `keys` what the key encoder made of them. The query map is
    computed a second time, in float32, by a copy of the encoder: BatchNorm's statistics stay what they are.
    """
    pictures = {"images/views": view_rows(query[:_VIEWS].numpy(), key[:_VIEWS].numpy())}
    features = None
    if keys.local.features is not None:
        features = copy.deepcopy(model.query_encoder)(normalize(query[:micro_batch_size])).features
    if features is not None and keys.local.features is not None:
        count = min(_PAIRS, micro_batch_size)
        found = match(features[:count], keys.local.features[:count]).numpy()
        pictures["images/matches"] = match_lines(query[:count].numpy(), key[:count].numpy(), found)
    return pictures


def first_views(images: paddle.Tensor) -> dict[str, np.ndarray]:
    """The first images, uint8 (N, height, width, 3), side by side."""
    return {"images/views": view_rows(images[:_VIEWS].numpy())}


def view_rows(*rows: np.ndarray) -> np.ndarray:
    """Views, each row uint8 (N, height, width, 3), side by side; one row below the other."""
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows])


def match_lines(query: np.ndarray, key: np.ndarray, matches: np.ndarray) -> np.ndarray:
    """N pairs of views, uint8 (N, height, width, 3), below each other; `matches` (N, S) gives the key position of each
    query position, both of a square map.
    """
    scale = -(-_SIDE // query.shape[1])
    height, width = query.shape[1] * scale, query.shape[2] * scale
    grid = round(matches.shape[1] ** 0.5)
    rows = []
    for one, other, found in zip(query, key, matches, strict=True):
        pair = [cv2.resize(view, (width, height), interpolation=cv2.INTER_NEAREST) for view in (one, other)]
        row = np.concatenate(pair, axis=1)
        for place in np.linspace(0, len(found) - 1, min(_LINES, len(found))).round().astype(int):
            start, end = (
                (int((cell % grid + 0.5) * width / grid) + shift, int((cell // grid + 0.5) * height / grid))
                for cell, shift in ((int(place), 0), (int(found[place]), width))
            )
            hue = np.array([[[180 * place // len(found), 220, 255]]], "uint8")
            color = tuple(int(part) for part in cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0])
            cv2.line(row, start, end, color, 1, cv2.LINE_AA)
            cv2.circle(row, start, 3, color, -1, cv2.LINE_AA)
            cv2.circle(row, end, 3, color, -1, cv2.LINE_AA)
        rows.append(row)
    return np.concatenate(rows)
