"""How large a network is and what an image costs: weights and multiply-adds, counted on the real network.

Counted as the published figures are (4,109,364,224 for DenseCL's ResNet-50 at 224 px, mmpretrain's metafile): a
multiply-add of a convolution or a linear layer is one, BatchNorm is two for each number it puts out. Not counted:
pooling, ReLU, the sums of residual blocks and the scaling to unit length, together under 1 %. ``paddle.flops`` is not
used: it fails on numpy 2.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import paddle
from paddle import nn

from passl_densecl.config import BackboneSpec, PretrainModelConfig
from passl_densecl.models.densecl import Encoder
from passl_densecl.models.linear import LinearClassifier

STATISTICS = ("_mean", "_variance")  # Paddle keeps BatchNorm's running statistics among the parameters
Hook = Callable[[nn.Layer, paddle.Tensor, paddle.Tensor], paddle.Tensor]
BATCH_NORM_COST = 2  # multiply-adds for each number: a scale and a shift


@dataclass
class Cost:
    """What one part of a network holds, and does for one image."""

    weights: int = 0  # numbers that training may change
    statistics: int = 0  # BatchNorm's running means and variances
    convolution: int = 0  # multiply-adds, as the next two
    linear: int = 0
    batch_norm: int = 0

    @property
    def multiply_adds(self) -> int:
        return self.convolution + self.linear + self.batch_norm

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Summary:
    """A network in numbers. The two encoders of pre-training have the same parts; `parts` lists them once."""

    parts: dict[str, Cost]  # by attribute of the network: backbone, global_head, dense_head; or backbone, fc
    map_shape: tuple[int, int, int]  # (C, H, W) of the backbone
    encoders: int  # 2 in pre-training
    trained: int  # weights that the optimizer moves
    queues: tuple[int, int, int]  # how many, K, D; (0, 0, 0) in linear evaluation
    training: dict[str, int]  # what a training step does → multiply-adds for one image

    @property
    def weights(self) -> int:
        """Of all encoders; queues are no weights."""
        return self.encoders * sum(part.weights for part in self.parts.values())

    @property
    def training_multiply_adds(self) -> int:
        return sum(self.training.values())


def summarize_pretraining(model: PretrainModelConfig, size: int, queue_len: int) -> Summary:
    """The pre-training network of a config at `size`×`size` pixels.

    A training step encodes two views of an image: the query with a backward pass, which costs twice the forward pass
    (the gradient of the weights and that of the input), the key without one. The losses visit every key of a queue
    twice, for the similarities and for their gradient. What a step does once, whatever its batch (moving average,
    optimizer), is left out.
    """
    dense = model.loss_lambda > 0
    encoder = Encoder(model.backbone, model.heads)
    parts, map_shape = _measure(encoder, encoder.backbone, paddle.zeros([1, 3, size, size]))
    forward = sum(part.multiply_adds for part in parts.values())
    training = {
        "query encoder, forward": forward,
        "query encoder, backward": 2 * forward,
        "key encoder, forward": forward,
        "global loss": _loss_cost(1, queue_len, model.out_dim),
    }
    if dense:
        positions = model.num_grid**2 if model.num_grid else map_shape[1] * map_shape[2]
        training["dense matches"] = positions**2 * map_shape[0]
        training["dense loss"] = _loss_cost(positions, queue_len, model.out_dim)
    weights = sum(part.weights for part in parts.values())
    return Summary(parts, map_shape, 2, weights, (1 + dense, queue_len, model.out_dim), training)


def summarize_linear(backbone: BackboneSpec, size: int, classes: int) -> Summary:
    """A linear classifier on a frozen backbone at `size`×`size` pixels; only its last layer has a backward pass."""
    model = LinearClassifier(backbone, classes)
    parts, map_shape = _measure(model, model.backbone, paddle.zeros([1, size, size, 3], dtype="uint8"))
    training = {
        "backbone, forward": parts["backbone"].multiply_adds,
        "classifier, forward": parts["fc"].multiply_adds,
        "classifier, backward": parts["fc"].multiply_adds,  # its weights only: the features need no gradient
    }
    return Summary(parts, map_shape, 1, parts["fc"].weights, (0, 0, 0), training)


def costs(network: nn.Layer, images: paddle.Tensor) -> dict[str, Cost]:
    """Attribute of `network` → what it holds, and does for one of the images when `network(images)` runs.

    Hooks read the shapes as they go through, so strides, pooling grids and image sizes count as they are. The network
    is left in eval mode.

    Raises:
        ValueError: a layer with weights of a kind that is not counted here.
    """
    parts: dict[str, Cost] = {name: Cost() for name, _ in network.named_children()}
    hooks = []
    for path, layer in network.named_sublayers():
        own = layer.named_parameters(include_sublayers=False)
        sizes = {name: math.prod(parameter.shape) for name, parameter in own}
        if not sizes:
            continue
        part = parts[path.split(".")[0]]
        part.statistics += sum(size for name, size in sizes.items() if name in STATISTICS)
        part.weights += sum(size for name, size in sizes.items() if name not in STATISTICS)
        hooks.append(layer.register_forward_post_hook(_counter(path, layer, part, images.shape[0])))
    network.eval()
    try:
        with paddle.no_grad():
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return parts


def _counter(path: str, layer: nn.Layer, part: Cost, count: int) -> Hook:
    """A hook that adds what one call of `layer` does for one of `count` images to `part`."""
    if isinstance(layer, nn.Conv2D):
        kind, each = "convolution", math.prod(layer.weight.shape[1:])  # (out, in / groups, height, width)
    elif isinstance(layer, nn.Linear):
        kind, each = "linear", layer.weight.shape[0]  # (in, out)
    elif isinstance(layer, nn.BatchNorm2D):
        kind, each = "batch_norm", BATCH_NORM_COST
    else:
        raise ValueError(f"{path}: the multiply-adds of a {type(layer).__name__} are not known here")

    def add(_layer: nn.Layer, _inputs: paddle.Tensor, output: paddle.Tensor) -> paddle.Tensor:
        setattr(part, kind, getattr(part, kind) + math.prod(output.shape) // count * each)
        return output

    return add


def _measure(
    network: nn.Layer, backbone: nn.Layer, images: paddle.Tensor
) -> tuple[dict[str, Cost], tuple[int, int, int]]:
    shape: list[int] = []

    def note(_layer: nn.Layer, _inputs: paddle.Tensor, output: paddle.Tensor) -> paddle.Tensor:
        shape[:] = output.shape[1:]
        return output

    hook = backbone.register_forward_post_hook(note)
    try:
        parts = costs(network, images)
    finally:
        hook.remove()
    return parts, (shape[0], shape[1], shape[2])


def _loss_cost(vectors: int, queue_len: int, dim: int) -> int:
    """Multiply-adds of `vectors` InfoNCE losses with their gradient: the positive, and every key of the queue twice."""
    return vectors * dim * (1 + 2 * queue_len)
