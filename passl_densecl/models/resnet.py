"""The backbone: `paddle.vision.models.ResNet` without pooling and classifier, initialized as the method wants it."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import paddle
from paddle import nn
from paddle.vision.models import ResNet
from paddle.vision.models.resnet import BasicBlock, BottleneckBlock

from passl_densecl.config import BackboneSpec
from passl_densecl.errors import InputError
from passl_densecl.transforms import MEAN, STD


def normalize(images: paddle.Tensor) -> paddle.Tensor:
    """uint8 RGB (B, height, width, 3), 0..255 → float32 (B, 3, height, width), by ImageNet's mean and deviation.

    Runs on the images' device, so that only bytes travel there.
    """
    scale = paddle.assign(1 / (255 * np.asarray(STD, "float32")))
    shift = paddle.assign(-np.asarray(MEAN, "float32") / np.asarray(STD, "float32"))
    return (images.astype("float32") * scale + shift).transpose([0, 3, 1, 2])


class ResNetBackbone(ResNet):
    """``paddle.vision.models.ResNet`` that also returns the maps of chosen stages."""

    def extract_feat(self, images: paddle.Tensor, out_indices: Collection[int] = (3,)) -> tuple[paddle.Tensor, ...]:
        """Normalized float32 RGB (B, 3, height, width) → the maps (B, channels, H, W) of stages 0 to 3, as asked for.

        The last stage's map is the backbone's own output; `(0, 1, 2, 3)` gives C2 to C5 of detection, in this order.
        Gradients and BatchNorm behave as in any call of the layer: use `eval()` and `paddle.no_grad()` for inference.

        Raises:
            InputError: an index that is no stage, or none.
        """
        stages = sorted(set(out_indices))
        if not stages or not set(stages) <= set(range(4)):
            raise InputError(
                f"out_indices {tuple(out_indices)}: expected stages from 0 to 3, such as (3,) or (0, 1, 2, 3)"
            )
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = []
        for stage in range(stages[-1] + 1):
            features = getattr(self, f"layer{stage + 1}")(features)
            if stage in stages:
                maps.append(features)
        return tuple(maps)


@contextmanager
def _constant_weights() -> Iterator[None]:
    """Within it, Paddle starts layers with ones and zeros: random numbers take as long as those that replace them."""
    base = paddle.base.initializer
    before = base._global_weight_initializer_, base._global_bias_initializer_
    nn.initializer.set_global_initializer(nn.initializer.Constant(1.0), nn.initializer.Constant(0.0))
    try:
        yield
    finally:
        nn.initializer.set_global_initializer(*before)


@_constant_weights()
def build_backbone(spec: BackboneSpec, seed: int | None = 0) -> ResNetBackbone:
    """A ResNet that maps (B, 3, height, width) to (B, C, H, W): C is 512 for depths 18 and 34, 2048 for the others.

    Smaller strides than the published ones are for small images; the names and shapes of the weights are the same for
    all of them. `seed=None` is for weights that are loaded next: every one is 1.
    """
    backbone = ResNetBackbone(
        BasicBlock if spec.depth < 50 else BottleneckBlock, spec.depth, num_classes=0, with_pool=False
    )
    if spec.stem_stride < 4:
        backbone.add_sublayer("maxpool", nn.Identity())
    if spec.stem_stride == 1:
        backbone.conv1 = nn.Conv2D(3, 64, 7, stride=1, padding=3, bias_attr=False)
    if spec.last_stride == 1:
        first = backbone.layer4[0]
        strided = "conv1" if spec.depth < 50 else "conv2"
        for parent, name, window in ((first, strided, 3), (first.downsample, "0", 1)):
            outputs, inputs = getattr(parent, name).weight.shape[:2]
            unstrided = nn.Conv2D(inputs, outputs, window, stride=1, padding=window // 2, bias_attr=False)
            parent.add_sublayer(name, unstrided)
    if seed is not None:
        initialize(backbone.named_parameters(), seed)
    return backbone


def channels(depth: int) -> int:
    """C, the channels of the last map."""
    return 512 if depth < 50 else 2048


def initialize(named_parameters: Iterable[tuple[str, paddle.Tensor]], seed: int, mode: str = "fan_out") -> None:
    """Kaiming-normal weights (relu gain) for matrices and convolutions and zero biases; vectors of BatchNorm stay 1 and
    0.

    Every tensor has a random stream of its own, from the seed and its name: the same weights on any device, whatever
    else was built before. `mode` is fan_out for the backbone and fan_in for a head's linear layers.
    """
    for name, parameter in named_parameters:
        if len(parameter.shape) < 2:
            continue
        shape = parameter.shape
        window = int(np.prod(shape[2:]))
        fan_in, fan_out = (shape[1] * window, shape[0] * window) if len(shape) == 4 else (shape[0], shape[1])
        deviation = (2 / (fan_out if mode == "fan_out" else fan_in)) ** 0.5
        values = rng_of(name, seed).standard_normal(shape, dtype=np.float32) * np.float32(deviation)
        parameter.set_value(values)


def rng_of(name: str, seed: int) -> np.random.Generator:
    """The random stream of one named tensor."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
