"""DenseCL: query and key encoder, both queues, and one step's losses.

Source: Wang et al., Dense Contrastive Learning for Self-Supervised Visual Pre-Training, CVPR 2021, section 3.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from passl_densecl.config import BackboneSpec, HeadSpec
from passl_densecl.distributed import collectives as dist
from passl_densecl.models.losses import gather_matches, info_nce, match
from passl_densecl.models.queue import Queue
from passl_densecl.models.resnet import build_backbone, channels, initialize, normalize, rng_of
from passl_densecl.tensors import to_tensor

Losses = dict[str, paddle.Tensor]
"""Losses and accuracies by name, each a scalar; `loss` is the one that is minimized."""


@dataclass(frozen=True)
class Projections:
    """Encoder outputs for B images. The dense parts are None in a MoCo-v2 encoder."""

    global_vector: paddle.Tensor  # (B, D) unit vectors
    features: paddle.Tensor | None = None  # (B, C, S) of the backbone, on the dense head's grid, in its own precision
    dense: paddle.Tensor | None = None  # (B, D, S) unit vectors over D
    dense_mean: paddle.Tensor | None = None  # (B, D) unit vectors: mean of the dense ones before normalization
    matches: paddle.Tensor | None = None  # of keys, (B, S) int64: each query cell's positive, -1 for none

    def rows(self, index: slice) -> Projections:
        """The projections of some of the images."""
        return Projections(**{name: part[index] for name, part in vars(self).items() if part is not None})

    @staticmethod
    def concat(parts: list[Projections]) -> Projections:
        """Several groups of images as one."""
        names = [name for name, part in vars(parts[0]).items() if part is not None]
        return Projections(**{name: paddle.concat([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True)
class Keys:
    """The keys of one step: this process's images for its losses, the whole batch's vectors for the queues."""

    local: Projections
    global_vector: paddle.Tensor  # (whole batch, D)
    dense_mean: paddle.Tensor | None  # (whole batch, D); with `cells` drawn: one cell of each image instead


class Encoder(nn.Layer):
    """Backbone and projection heads. The heads have no BatchNorm."""

    def __init__(self, backbone: BackboneSpec, heads: HeadSpec = HeadSpec(), seed: int = 0) -> None:
        super().__init__()
        self.num_grid = heads.num_grid
        width, hidden_dim, out_dim = channels(backbone.depth), heads.hidden_dim, heads.out_dim
        self.backbone = build_backbone(backbone, seed)
        self.global_head = nn.Sequential(nn.Linear(width, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, out_dim))
        initialize(self.global_head.named_parameters(prefix="global_head"), seed, mode="fan_in")
        for layer in (self.global_head[0], self.global_head[2]):
            layer.bias.set_value(np.zeros(layer.bias.shape, "float32"))
        self.dense_head = None
        if heads.dense:
            self.dense_head = nn.Sequential(
                nn.Conv2D(width, hidden_dim, 1), nn.ReLU(), nn.Conv2D(hidden_dim, out_dim, 1)
            )
            for position in (0, 2):
                for name, parameter in self.dense_head[position].named_parameters(prefix=f"dense_head.{position}"):
                    bound = 1 / math.sqrt(self.dense_head[position].weight.shape[1])
                    values = rng_of(name, seed).uniform(-bound, bound, parameter.shape).astype("float32")
                    parameter.set_value(values)

    def forward(self, images: paddle.Tensor) -> Projections:
        """float32 (B, 3, height, width), normalized → float32 projections."""
        return self.project(self.backbone(images))

    def project(self, features: paddle.Tensor) -> Projections:
        """(B, C, H, W) backbone map → projections; vectors are normalized in float32 in every precision."""
        global_vector = _unit(self.global_head(features.mean(axis=[2, 3])))
        if self.dense_head is None:
            return Projections(global_vector)
        if self.num_grid is not None:
            features = F.adaptive_avg_pool2d(features, self.num_grid)
        dense = self.dense_head(features).flatten(2).astype("float32")  # (B, D, S)
        return Projections(global_vector, features.flatten(2).detach(), _unit(dense), _unit(dense.mean(axis=2)))


class DenseCL(nn.Layer):
    """The pre-training model. λ is given at each step; without a dense head this is MoCo-v2, at its cost."""

    def __init__(
        self,
        backbone: BackboneSpec,
        heads: HeadSpec = HeadSpec(),
        *,
        queue_len: int,
        temperature: float = 0.2,
        momentum: float = 0.999,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.momentum = momentum
        self.query_encoder = Encoder(backbone, heads, seed)
        self.key_encoder = copy.deepcopy(self.query_encoder)
        for parameter in self.key_encoder.parameters():
            parameter.stop_gradient = True
        self.global_queue = Queue(queue_len, heads.out_dim, "global_queue", seed)
        self.dense_queue = Queue(queue_len, heads.out_dim, "dense_queue", seed) if heads.dense else None
        # BatchNorm's running statistics are among Paddle's parameters; the moving average is of trained weights only.
        self._averaged = [
            (key, query)
            for key, query in zip(self.key_encoder.parameters(), self.query_encoder.parameters(), strict=True)
            if not query.stop_gradient
        ]
        self._key_before: list[paddle.Tensor] = []  # the key encoder's weights before their last move

    @paddle.no_grad()
    def update_key_encoder(self) -> None:
        """Move every trained weight of the key encoder: key ← m·key + (1−m)·query. `undo_key_update` reverts it."""
        if not self._key_before:
            self._key_before = [paddle.empty_like(key) for key, _ in self._averaged]
        # In place, with the old weights as the only other memory: no slower than a temporary (query − key), which a CPU
        # fetches page by page each time. lerp_ takes 2.4 times as long.
        for (key, query), before in zip(self._averaged, self._key_before, strict=True):
            paddle.assign(key, before)
            key.subtract_(query).scale_(self.momentum - 1).add_(before)

    @paddle.no_grad()
    def undo_key_update(self) -> None:
        """Restore the key encoder's weights, to the bit, to what they were before their last move."""
        for (key, _), before in zip(self._averaged, self._key_before, strict=True):
            paddle.assign(before, key)

    @paddle.no_grad()
    def encode_keys(
        self,
        images: paddle.Tensor,
        *,
        micro_batch_size: int,
        order: np.ndarray | None = None,
        cells: np.ndarray | None = None,
        amp: AbstractContextManager | None = None,
    ) -> Keys:
        """This process's key images, uint8 (N, height, width, 3) → the keys of the step. Moves the key encoder first.

        `order` is a permutation of the whole batch (all processes) by which images are shuffled before they are encoded
        in micro-batches and put back afterwards, so that a query and its key never share one BatchNorm batch by
        position. None leaves them in place. `cells`, a number from 0 to 1 for every image of the whole batch, chooses
        the cell that stands for the image in the dense queue; None: the mean of its cells does, as published.
        """
        forth = back = None
        if order is not None:  # in one copy and first: it waits for whatever the device has to do
            forth, back = to_tensor(np.stack([order, np.argsort(order)]))
        self.update_key_encoder()
        if forth is not None:
            images = dist.exchange_rows(images, forth)
        parts = []
        with amp or nullcontext():
            for start in range(0, images.shape[0], micro_batch_size):
                parts.append(self.key_encoder(normalize(images[start : start + micro_batch_size])))
        encoded = Projections.concat(parts)
        if cells is not None and encoded.dense is not None:
            own = (cells if order is None else cells[order])[dist.own_rows(len(cells))]
            chosen = to_tensor((own * encoded.dense.shape[2]).astype("int64")[:, None])
            encoded = replace(encoded, dense_mean=gather_matches(encoded.dense, chosen))
        global_vector = dist.gather_rows(encoded.global_vector)
        dense_mean = None if encoded.dense_mean is None else dist.gather_rows(encoded.dense_mean)
        if back is None:
            return Keys(encoded, global_vector, dense_mean)
        own = dist.own_rows(global_vector.shape[0])
        global_vector = paddle.gather(global_vector, back)
        if dense_mean is None or encoded.features is None or encoded.dense is None:
            return Keys(Projections(global_vector[own]), global_vector, None)
        dense_mean = paddle.gather(dense_mean, back)
        features, dense = (dist.exchange_rows(part, back) for part in (encoded.features, encoded.dense))
        return Keys(Projections(global_vector[own], features, dense, dense_mean[own]), global_vector, dense_mean)

    def forward(
        self, images: paddle.Tensor, key: Projections, loss_lambda: float, amp: AbstractContextManager | None = None
    ) -> Losses:
        """Query images, uint8 (B, height, width, 3), and their keys → the losses, see `losses`."""
        with amp or nullcontext():
            query = self.query_encoder(normalize(images))
        return self.losses(query, key, loss_lambda)

    def extract_feat(self, images: paddle.Tensor, out_indices: Collection[int] = (3,)) -> tuple[paddle.Tensor, ...]:
        """Normalized float32 (B, 3, height, width) → maps of the query backbone, see `ResNetBackbone.extract_feat`."""
        return self.query_encoder.backbone.extract_feat(images, out_indices)

    def losses(self, query: Projections, key: Projections, loss_lambda: float) -> Losses:
        """Losses of B images by name: `loss`, which is minimized, and of each term X its `X_loss` and `X_top1`.

        Float32 scalars. Chance level of a term's loss is ln(K+1); its top-1 is the share of queries whose positive
        beats every negative, from 0 to 1. Where the keys hold `matches`, the features choose none, and query cells with
        -1 take no part.
        """
        global_loss, global_top1 = info_nce(
            query.global_vector, key.global_vector, self.global_queue.keys, self.temperature
        )
        losses = {"loss": global_loss, "global_loss": global_loss, "global_top1": global_top1}
        if query.dense is None or self.dense_queue is None:
            return losses
        if query.features is None or key.features is None or key.dense is None:
            raise ValueError("the keys have no dense part, but the query encoder has a dense head")
        matches, matched = key.matches, None
        if matches is None:
            matches = match(query.features, key.features)
        else:
            matches, matched = matches.clip(min=0), (matches >= 0).flatten()
        positive = gather_matches(key.dense, matches)  # (B·S, D)
        dense = query.dense.transpose([0, 2, 1]).reshape([-1, query.dense.shape[1]])  # (B·S, D)
        dense_loss, dense_top1 = info_nce(dense, positive, self.dense_queue.keys, self.temperature, matched)
        loss = (1 - loss_lambda) * global_loss + loss_lambda * dense_loss
        return losses | {"loss": loss, "dense_loss": dense_loss, "dense_top1": dense_top1}

    def enqueue(self, keys: Keys) -> None:
        """Write the whole batch's keys into the queues, after the losses."""
        self.global_queue.enqueue(keys.global_vector)
        if self.dense_queue is not None and keys.dense_mean is not None:
            self.dense_queue.enqueue(keys.dense_mean)


def _unit(vectors: paddle.Tensor) -> paddle.Tensor:
    """(B, C[, S]) → float32 of length 1 over axis 1."""
    return F.normalize(vectors.astype("float32"), axis=1, epsilon=1e-12)
