"""A fine-tuned segmenter: backbone and a small FCN head trained together, with one schedule for every network.

    python -m benchmarks.segmenter --weights CHECKPOINT --data camvid --json F.json

As the paper's segmentation transfer: two 3×3 convolutions with BatchNorm, a 1×1 classifier, and the backbone trained as
well. --data holds train/, train_masks/, val/ and val_masks/. Random crops, flips and the order of the images depend on
--seed alone, so all networks see the same pixels. mIoU is over all labeled pixels of val/ at the masks' size; the JSON
holds the confusion of every image, so that differences can be paired. engine/finetune.py trains classifiers only.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import passl_densecl  # noqa: F401  (chooses the matrix kernels, which must come before Paddle)

# isort: split
import cv2
import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from passl_densecl import transforms
from passl_densecl.cli.command import Parser, command
from passl_densecl.cli.evaluate.common import backbones
from passl_densecl.cli.options import add_weights_options
from passl_densecl.engine.learner import check_finite, trained
from passl_densecl.evaluation.dense_probe import DenseScores, Probe, confusion, image_map, jackknife
from passl_densecl.evaluation.masks import MaskSet, join, read_folders
from passl_densecl.models import ResNetBackbone, normalize
from passl_densecl.models.resnet import rng_of
from passl_densecl.tensors import to_tensor

HEIGHT, WIDTH = 129, 161  # of a crop; 32·n + 1, as the maps of the linear probe: the outer cells lie on the borders
SCALES = (0.5, 1.0)  # sides of a crop over those of the image
HIDDEN, POWER, MOMENTUM = 128, 0.9, 0.9


class Segmenter(nn.Layer):
    """Normalized images (B, 3, h, w) → logits (B, classes, H, W) of the cells."""

    def __init__(self, backbone: ResNetBackbone, classes: int, seed: int) -> None:
        super().__init__()
        self.backbone, width = backbone, backbone.inplanes
        layers: list[nn.Layer] = []
        for inputs in (width, HIDDEN):
            layers += [nn.Conv2D(inputs, HIDDEN, 3, padding=1, bias_attr=False), nn.BatchNorm2D(HIDDEN), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Conv2D(HIDDEN, classes, 1))
        for name, weight in self.head.named_parameters():
            if len(weight.shape) == 4:  # Kaiming normal of what comes in; BatchNorm and bias are 1 and 0 already
                scale = np.float32(np.sqrt(2 / np.prod(weight.shape[1:])))
                weight.set_value(scale * rng_of(f"segmenter.{name}", seed).standard_normal(weight.shape, np.float32))
        self.head[-1].bias.set_value(np.zeros(classes, "float32"))

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        return self.head(self.backbone(images))


def crop(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random part of an image, uint8 (HEIGHT, WIDTH, 3), and its mask, int64 (HEIGHT, WIDTH), flipped or not."""
    scale = rng.uniform(*SCALES)
    height, width = (round(side * scale) for side in mask.shape)
    top, left = (int(rng.integers(0, most - side + 1)) for most, side in zip(mask.shape, (height, width), strict=True))
    part = np.s_[top : top + height, left : left + width]
    image = transforms.resize(image[part], HEIGHT, WIDTH)
    mask = cv2.resize(mask[part], (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST).astype(np.int64)
    if rng.random() < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(mask)


def train(model: Segmenter, masks: MaskSet, count: int, args: argparse.Namespace, title: str) -> None:
    """Fine-tune on the first `count` images; SGD with a rate that falls as (1 − step / steps)^0.9."""
    groups = [(args.lr, trained(model.backbone)), (args.head_lr, trained(model.head))]
    optimizers = [
        (lr, paddle.optimizer.Momentum(lr, MOMENTUM, list(weights.values()), weight_decay=args.weight_decay))
        for lr, weights in groups
    ]
    read = functools.cache(lambda index: (masks.image(index), masks.mask(index)))  # some hundred images fit in memory
    per_epoch, began, said = count // args.batch_size, time.monotonic(), 0.0
    model.train()
    for step in range(steps := per_epoch * args.epochs):
        epoch, batch = divmod(step, per_epoch)
        order = np.random.default_rng([args.seed, epoch]).permutation(count)[batch * args.batch_size :].tolist()
        chosen = order[: args.batch_size]
        views = [crop(*read(index), np.random.default_rng([args.seed, epoch, index])) for index in chosen]
        images, targets = (to_tensor(np.stack(side)) for side in zip(*views, strict=True))
        logits = F.interpolate(model(normalize(images)), [HEIGHT, WIDTH], mode="bilinear", align_corners=True)
        loss = F.cross_entropy(logits, targets, axis=1, ignore_index=-1)
        check_finite("the loss", [float(loss)], step + 1, f"Lower --lr and --head-lr ({args.lr:g}, {args.head_lr:g})")
        loss.backward()
        for lr, optimizer in optimizers:
            optimizer.set_lr(lr * (1 - step / steps) ** POWER)
            optimizer.step()
            optimizer.clear_grad()
        if time.monotonic() - said > 30 or step + 1 == steps:
            said = time.monotonic()
            print(f"{title}  step {step + 1}/{steps}  loss {float(loss):.3f}  {said - began:.0f} s", file=sys.stderr)
    model.eval()


def judge(title: str, backbone: ResNetBackbone, masks: MaskSet, count: int, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one network: trained on the first `count` images, judged on the others."""
    classes = len(masks.classes)
    model = Segmenter(backbone, classes, args.seed)
    train(model, masks, count, args, title)
    itself = Probe(np.eye(classes, dtype=np.float32), np.zeros(classes, np.float32), 0.0)

    def logits(index: int) -> tuple[np.ndarray, np.ndarray]:
        return image_map(model, masks.image(index), HEIGHT - 1), masks.mask(index)

    groups = confusion(logits, itself, range(count, len(masks)))
    scores = DenseScores.of(groups.sum(axis=0))
    error = jackknife(groups, lambda matrix: DenseScores.of(matrix).miou)
    print(f"{title}  mIoU {scores.miou:.2%} ± {error:.2%}, pixels {scores.pixel_accuracy:.2%}", flush=True)
    found = {"miou": [scores.miou], "standard_error": error, "pixel_accuracy": scores.pixel_accuracy}
    iou = {name: float(value) for name, value in zip(masks.classes, scores.iou, strict=True) if not np.isnan(value)}
    return {**found, "iou": iou, "confusion_of_groups": groups.tolist()}


@command
def main(words: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_weights_options(parser, several=True)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="train, train_masks, val, val_masks")
    parser.add_argument("--epochs", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--lr", type=float, default=0.01, help="of the backbone (default: %(default)s)")
    parser.add_argument("--head-lr", type=float, default=0.1, help="default: %(default)s")
    parser.add_argument("--weight-decay", type=float, default=1e-4, help="default: %(default)s")
    parser.add_argument("--json", type=Path, required=True, metavar="F", help="the figures")
    args = parser.parse_args(words)
    first, second = (read_folders(args.data / part, args.data / f"{part}_masks") for part in ("train", "val"))
    masks = join(first, second)
    results = {title: judge(title, backbone, masks, len(first), args) for title, backbone in backbones(args)}
    options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    content = {"options": options, "val_images": len(second), "classes": list(masks.classes), "results": results}
    args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
