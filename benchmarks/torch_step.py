"""The same DenseCL step in plain torch: a yardstick for what the machine can do. Imported in fresh processes only."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch  # pyright: ignore[reportMissingImports]  (optional)
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_TEMPERATURE, _MOMENTUM, _HIDDEN, _DIM = 0.2, 0.999, 2048, 128
_MEAN = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
_STD = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)


def _conv(inputs: int, outputs: int, window: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, window, stride, window // 2, bias=False), nn.BatchNorm2d(outputs)]


class _Block(nn.Module):
    """A residual block: two 3×3 convolutions, or 1×1, 3×3, 1×1 with four times the width at the end."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        if bottleneck:
            outputs = 4 * width
            layers = [*_conv(inputs, width, 1), nn.ReLU(inplace=True), *_conv(width, width, 3, stride)]
            layers += [nn.ReLU(inplace=True), *_conv(width, outputs, 1)]
        else:
            outputs = width
            layers = [*_conv(inputs, width, 3, stride), nn.ReLU(inplace=True), *_conv(width, width, 3)]
        self.residual = nn.Sequential(*layers)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv(inputs, outputs, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.residual(x) + self.shortcut(x), inplace=True)


def resnet(depth: int) -> tuple[nn.Sequential, int]:
    """The backbone without pooling and classifier, and the channels of its last map."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    layers.append(nn.MaxPool2d(3, 2, 1))
    channels, bottleneck = 64, depth >= 50
    for stage, blocks in enumerate(_BLOCKS[depth]):
        for number in range(blocks):
            stride = 2 if stage > 0 and number == 0 else 1
            layers.append(_Block(channels, 64 << stage, stride, bottleneck))
            channels = (64 << stage) * (4 if bottleneck else 1)
    return nn.Sequential(*layers), channels


class Encoder(nn.Module):
    """Backbone and both projection heads."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.backbone, width = resnet(depth)
        self.global_vector = nn.Sequential(nn.Linear(width, _HIDDEN), nn.ReLU(inplace=True), nn.Linear(_HIDDEN, _DIM))
        self.dense = nn.Sequential(nn.Conv2d(width, _HIDDEN, 1), nn.ReLU(inplace=True), nn.Conv2d(_HIDDEN, _DIM, 1))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Global vectors (B, D), features (B, C, S), dense vectors (B, D, S) and their mean (B, D), all of length 1."""
        features = self.backbone(images)
        global_vector = F.normalize(self.global_vector(features.mean((2, 3))), dim=1)
        dense = self.dense(features).flatten(2)
        unit = F.normalize(features.detach().flatten(2), dim=1)
        return global_vector, unit, F.normalize(dense, dim=1), F.normalize(dense.mean(2), dim=1)


def _contrast(query: torch.Tensor, positive: torch.Tensor, queue: torch.Tensor) -> torch.Tensor:
    logits = torch.cat([(query * positive).sum(1, keepdim=True), query @ queue.T], dim=1) / _TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))


def build(
    depth: int, size: int, batch: int, queue_len: int, channels_last: bool, threads: int
) -> dict[str, Callable[[], float]]:
    """`step`: one optimizer step on images of noise; `weights`: how many are trained."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    query_encoder = Encoder(depth).to(memory_format=layout).train()
    key_encoder = copy.deepcopy(query_encoder).requires_grad_(False)
    optimizer = torch.optim.SGD(query_encoder.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
    global_queue, dense_queue = (F.normalize(torch.randn(queue_len, _DIM), dim=1) for _ in range(2))
    query_bytes, key_bytes = (torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8) for _ in range(2))
    pointer = 0

    def floats(images: torch.Tensor) -> torch.Tensor:
        scaled = (images.permute(0, 3, 1, 2).float() / 255 - _MEAN) / _STD
        return scaled.contiguous(memory_format=layout)

    def step() -> float:
        nonlocal pointer
        with torch.no_grad():
            for key, query in zip(key_encoder.parameters(), query_encoder.parameters(), strict=True):
                key.lerp_(query, 1 - _MOMENTUM)
            key_vector, key_features, key_dense, key_mean = key_encoder(floats(key_bytes))
        global_vector, features, dense, _ = query_encoder(floats(query_bytes))
        with torch.no_grad():
            matches = (features.transpose(1, 2) @ key_features).argmax(2)  # (B, S)
            positive = key_dense.gather(2, matches.unsqueeze(1).expand(-1, _DIM, -1))  # (B, D, S)
        global_loss = _contrast(global_vector, key_vector, global_queue)
        dense_loss = _contrast(
            dense.transpose(1, 2).reshape(-1, _DIM), positive.transpose(1, 2).reshape(-1, _DIM), dense_queue
        )
        loss = 0.5 * global_loss + 0.5 * dense_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rows = (pointer + torch.arange(batch)) % queue_len
        global_queue[rows], dense_queue[rows] = key_vector, key_mean
        pointer = (pointer + batch) % queue_len
        return float(loss)

    def weights() -> float:
        return float(sum(parameter.numel() for parameter in query_encoder.parameters()))

    return {"step": step, "weights": weights}
