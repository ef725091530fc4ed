"""The exported network as a Paddle layer: the source of Paddle's format and the reference for every runtime."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import nn

from passl_densecl.export.network import Network
from passl_densecl.models import build_backbone, normalize
from passl_densecl.weights.load import load_strict


class StageLayer(nn.Layer):
    """Images → the output of one stage, in eval mode.

    Images are uint8 (B, height, width, 3) with `normalizing`, else float32 (B, 3, height, width), normalized.
    """

    def __init__(self, network: Network, normalizing: bool) -> None:
        super().__init__()
        self.stage = network.stage
        self.num_grid = network.num_grid
        self.normalizing = normalizing
        self.backbone = build_backbone(network.backbone, seed=None)
        shapes = {name: array.shape for name, array in network.arrays.items()}
        if network.stage == "classifier":
            self.fc = nn.Linear(*shapes["fc.weight"])
        if network.stage == "global":
            first, second = (nn.Linear(*shapes[f"global_head.{place}.weight"]) for place in (0, 2))
            self.global_head = nn.Sequential(first, nn.ReLU(), second)
        if network.stage == "dense":
            (hidden, width), (dim, _) = (shapes[f"dense_head.{place}.weight"][:2] for place in (0, 2))
            first, second = nn.Conv2D(width, hidden, 1), nn.Conv2D(hidden, dim, 1)
            self.dense_head = nn.Sequential(first, nn.ReLU(), second)
        load_strict(self, network.arrays, source=network.source)
        self.eval()

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        features = self.backbone(normalize(images) if self.normalizing else images)
        if self.stage == "backbone":
            return features
        if self.stage == "dense":
            return self.project_positions(features)
        return self.describe_image(features.mean(axis=[2, 3]))

    def project_positions(self, features: paddle.Tensor) -> paddle.Tensor:
        """(B, C, H, W) → (B, D, H, W), or (B, D, num_grid, num_grid); unit vectors over D."""
        if self.num_grid is not None:
            features = F.adaptive_avg_pool2d(features, self.num_grid)
        return F.normalize(self.dense_head(features), axis=1, epsilon=1e-12)

    def describe_image(self, pooled: paddle.Tensor) -> paddle.Tensor:
        """(B, C) → itself, (B, classes) or (B, D)."""
        if self.stage == "classifier":
            return self.fc(pooled)
        if self.stage == "global":
            return F.normalize(self.global_head(pooled), axis=1, epsilon=1e-12)
        return pooled
