"""Linear evaluation: a frozen backbone, average pooling and one trained layer."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import paddle
from paddle import nn

from passl_densecl.config import BackboneSpec
from passl_densecl.models.resnet import build_backbone, channels, normalize, rng_of


class LinearClassifier(nn.Layer):
    """uint8 images (B, height, width, 3) → logits (B, classes). The backbone is frozen: no gradient, always in eval
    mode.
    """

    def __init__(self, spec: BackboneSpec, classes: int, seed: int = 0) -> None:
        super().__init__()
        self.backbone = build_backbone(spec, seed)
        self.fc = nn.Linear(channels(spec.depth), classes)
        weight = rng_of("fc.weight", seed).standard_normal(self.fc.weight.shape, dtype=np.float32) * np.float32(0.01)
        self.fc.weight.set_value(weight)
        self.fc.bias.set_value(np.zeros(classes, "float32"))
        for parameter in self.backbone.parameters():
            parameter.stop_gradient = True
        self.backbone.eval()

    def train(self, mode: bool = True) -> LinearClassifier:
        super().train()
        self.backbone.eval()
        return self

    def extract_feat(self, images: paddle.Tensor, out_indices: Collection[int] = (3,)) -> tuple[paddle.Tensor, ...]:
        """Normalized float32 (B, 3, height, width) → maps of the backbone, see `ResNetBackbone.extract_feat`."""
        return self.backbone.extract_feat(images, out_indices)

    def features(self, images: paddle.Tensor) -> paddle.Tensor:
        """uint8 (B, height, width, 3) → (B, C) average-pooled backbone features, without gradient."""
        with paddle.no_grad():
            return self.backbone(normalize(images)).mean(axis=[2, 3])

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        return self.fc(self.features(images))
