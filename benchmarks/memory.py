"""Memory of one GPU in a pre-training step, by arithmetic: its peak, between the forward and the backward pass."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import paddle
from paddle import nn

from benchmarks.data import CONFIG, pretrain_config
from passl_densecl.cli.console import table
from passl_densecl.cli.options import at_least
from passl_densecl.config import QUEUE_LEN_MAX, PretrainConfig
from passl_densecl.models import Encoder
from passl_densecl.models.losses import _LOGITS_AT_ONCE
from passl_densecl.transforms import output_size

FLOAT, MIB = 4, 2**20


def add_options(parser: argparse.ArgumentParser) -> None:
    config = "a pre-training config (default: configs/densecl/densecl_r50.yaml)"
    parser.add_argument("--config", type=Path, default=CONFIG, metavar="C", help=config)
    parser.add_argument("--devices", type=int, default=8, metavar="N", help="GPUs of the run (default: %(default)s)")


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    at_least(1, devices=args.devices)
    config = pretrain_config(args.config)
    encoder = Encoder(config.model.backbone, config.model.heads)
    parts = device_memory(config, encoder, args.devices)
    rows = [[what, f"{size / MIB:,.0f}"] for what, size in parts.items()]
    text = table([["of one device, float32", "MiB"], *rows, ["together", f"{sum(parts.values()) / MIB:,.0f}"]])
    return text, {"clock": "none", "results": {what: {"bytes": size} for what, size in parts.items()}, "ratios": {}}


def device_memory(config: PretrainConfig, encoder: Encoder, devices: int) -> dict[str, int]:
    """Bytes by part. With T trained weights, K keys of D numbers in each queue, B images of S pixels a side in a
    micro-batch, N in the device's share of the batch, and A numbers an image that the backward pass needs:

        4·T·(query, key, key before its move, gradient, velocity; between several GPUs also the averaging's buffer)
        + 4·queues·K·D + 4·B·A + 2·4·logits at once + 2·N·3·S² (uint8)

    Left out: CUDA itself, cuDNN's working memory and what Paddle's allocator cannot reuse; none can be known without
    the GPU.
    """
    trained = sum(math.prod(weight.shape) for weight in encoder.parameters() if not weight.stop_gradient)
    model, size, batch = config.model, output_size(config.data.transforms), config.micro_batch_size
    queue_len = QUEUE_LEN_MAX if model.queue_len == "auto" else model.queue_len
    copies = 6 if devices > 1 else 5
    return {
        f"{copies} × {trained / 1e6:.2f} M weights": FLOAT * copies * trained,
        "queues": FLOAT * (1 + model.heads.dense) * queue_len * model.out_dim,
        f"{batch} images' maps for the backward pass": FLOAT * batch * kept_numbers(encoder, size),
        "logits of the losses": FLOAT * 2 * _LOGITS_AT_ONCE["gpu"],
        "views": 2 * config.batch_size // devices * 3 * size**2,
    }


def kept_numbers(encoder: Encoder, size: int) -> int:
    """What one image leaves for the backward pass: each BatchNorm's input, each ReLU's and the max-pooling's output,
    and the image. These are also all inputs of the convolutions; sums and averages need nothing but shapes.
    """
    kept = [3 * size**2]

    def keep(layer: nn.Layer, inputs: Any, output: paddle.Tensor) -> None:
        kept.append(math.prod((inputs[0] if isinstance(layer, nn.BatchNorm2D) else output).shape))

    for layer in encoder.sublayers():
        if isinstance(layer, (nn.BatchNorm2D, nn.ReLU, nn.MaxPool2D)):
            layer.register_forward_post_hook(keep)  # type: ignore[arg-type]  # its type says that the hook returns
    encoder.eval()
    with paddle.no_grad():
        encoder(paddle.zeros([1, 3, size, size]))
    return sum(kept)
