"""The yardstick: DenseCL and MoCo-v2 (model.loss_lambda=0) in plain torch, one process, written from the paper.

    python -m benchmarks.torch_densecl -c configs/small/reproduce_r18.yaml -o data.root=camvid/train -o name=densecl_s0

It reads this project's configs, and its views are this project's, image by image and step by step (data/datasets.py,
the same seeds), so that the data are not the question. Everything else is torch and torchvision: networks, losses,
queues, optimizer. `python -m tests.reference.check_torch` compares its steps with the original implementation's.

A run folder has the layout of this project's, and its checkpoints hold torch's own files of the query backbone in
torchvision's names, so `densecl eval`, `densecl convert` and benchmarks/scenes.py judge them as they do ours. Started
again, a run goes on from its newest state.pth. Needs neither Paddle nor a GPU; takes one where torch sees it.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch  # pyright: ignore[reportMissingImports]  (optional)
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
import torchvision  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from passl_densecl.config import PretrainConfig, dump_config, load_config
from passl_densecl.data.datasets import ImageSet, PairDataset, scan_images
from passl_densecl.transforms import MEAN, STD

_QUEUES = 1_000  # a stream of random numbers of its own beside those of the weights


class Projections(NamedTuple):
    """What an encoder says of B images; all vectors have length 1."""

    global_vector: torch.Tensor  # (B, D)
    features: torch.Tensor  # (B, C, S) of the backbone, without gradient
    dense: torch.Tensor  # (B, D, S)
    dense_mean: torch.Tensor  # (B, D), of the dense vectors before they are normalized


class Encoder(nn.Module):
    """A ResNet without its classifier, and both projection heads."""

    def __init__(
        self, depth: int, stem_stride: int, last_stride: int, hidden: int, out: int, num_grid: int | None
    ) -> None:
        super().__init__()
        resnet = getattr(torchvision.models, f"resnet{depth}")(weights=None)  # convolutions: Kaiming normal, fan_out
        if stem_stride < 4:
            resnet.maxpool = nn.Identity()
        if stem_stride == 1:
            resnet.conv1.stride = (1, 1)
        if last_stride == 1:
            block = resnet.layer4[0]
            for layer in (block.conv1 if depth < 50 else block.conv2, block.downsample[0]):
                layer.stride = (1, 1)
        width, self.num_grid = resnet.fc.in_features, num_grid
        self.backbone = nn.Sequential(OrderedDict(list(resnet.named_children())[:-2]))  # torchvision's names
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out))
        self.mlp2 = nn.Sequential(nn.Conv2d(width, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, out, 1))
        for layer in (self.mlp[0], self.mlp[2]):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, images: torch.Tensor) -> Projections:
        """(B, 3, h, w), normalized."""
        maps = self.backbone(images)
        global_vector = self.mlp(maps.mean((2, 3)))
        if self.num_grid is not None:
            maps = F.adaptive_avg_pool2d(maps, self.num_grid)
        dense = self.mlp2(maps).flatten(2)
        vectors = global_vector, maps.detach().flatten(2), dense, dense.mean(2)
        return Projections(*(F.normalize(each, dim=1) for each in vectors))


def contrast(query: torch.Tensor, positive: torch.Tensor, queue: torch.Tensor, temperature: float) -> torch.Tensor:
    """InfoNCE of (N, D), (N, D) and the negatives (K, D): the positive is class 0."""
    logits = torch.cat([(query * positive).sum(1, keepdim=True), query @ queue.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))


def top1(query: torch.Tensor, positive: torch.Tensor, queue: torch.Tensor) -> float:
    """The share of queries whose positive beats all negatives."""
    return float(((query * positive).sum(1) > (query @ queue.T).amax(1)).float().mean())


class DenseCL:
    """Both encoders and both queues, on one device."""

    def __init__(self, encoder: Encoder, queue_len: int, temperature: float, momentum: float, seed: int) -> None:
        self.query, self.key = encoder.train(), copy.deepcopy(encoder).requires_grad_(False).train()
        self.temperature, self.momentum, self.pointer = temperature, momentum, 0
        random, out = torch.Generator().manual_seed(_QUEUES + seed), encoder.mlp[2].out_features
        device = next(encoder.parameters()).device
        self.queues = [F.normalize(torch.randn(queue_len, out, generator=random), dim=1).to(device) for _ in range(2)]

    @torch.no_grad()
    def encode_keys(self, images: torch.Tensor, order: torch.Tensor, micro: int) -> Projections:
        """Move the key encoder, then encode the images in another order, and put the keys back."""
        for key, query in zip(self.key.parameters(), self.query.parameters(), strict=True):  # statistics are its own
            key.mul_(self.momentum).add_(query, alpha=1 - self.momentum)
        parts = [self.key(part) for part in images[order].split(micro)]
        back = order.argsort()
        return Projections(*(torch.cat(each)[back] for each in zip(*parts, strict=True)))

    def losses(self, images: torch.Tensor, key: Projections, loss_lambda: float) -> tuple[torch.Tensor, dict[str, Any]]:
        """The loss of a micro-batch, and what is to be logged of it."""
        query = self.query(images)
        matches = (query.features.transpose(1, 2) @ key.features).argmax(2)  # (B, S): the most similar key position
        positive = key.dense.gather(2, matches.unsqueeze(1).expand(-1, key.dense.shape[1], -1)).transpose(1, 2)
        dense, positive = query.dense.transpose(1, 2).flatten(0, 1), positive.flatten(0, 1)  # (B·S, D)
        global_loss = contrast(query.global_vector, key.global_vector, self.queues[0], self.temperature)
        dense_loss = contrast(dense, positive, self.queues[1], self.temperature)
        loss = global_loss if loss_lambda == 0 else (1 - loss_lambda) * global_loss + loss_lambda * dense_loss
        told = {"global_loss": global_loss.item(), "dense_loss": dense_loss.item(), "matches": matches}
        told["global_top1"] = top1(query.global_vector, key.global_vector, self.queues[0])
        return loss, told | {"loss": loss.item(), "dense_top1": top1(dense, positive, self.queues[1])}

    def enqueue(self, key: Projections) -> None:
        for queue, vectors in zip(self.queues, (key.global_vector, key.dense_mean), strict=True):
            rows = (self.pointer + torch.arange(len(vectors), device=queue.device)) % len(queue)
            queue[rows] = vectors
        self.pointer = (self.pointer + len(key.dense_mean)) % len(self.queues[0])

    def state(self) -> dict[str, Any]:
        encoders = {"query": self.query.state_dict(), "key": self.key.state_dict()}
        return encoders | {"queues": self.queues, "pointer": self.pointer}

    def load(self, state: dict[str, Any]) -> None:
        self.query.load_state_dict(state["query"])
        self.key.load_state_dict(state["key"])
        self.queues, self.pointer = state["queues"], state["pointer"]


def batches(images: ImageSet, config: PretrainConfig, first: int, last: int, workers: int) -> Iterator[list]:
    """[query, key] views of the steps from `first` to `last`, uint8 (B, height, width, 3): those of this project."""
    per_epoch, size, chosen = len(images) // config.batch_size, config.batch_size, []
    for step in range(first, last):
        epoch, batch = divmod(step, per_epoch)
        order = np.random.default_rng([config.seed, epoch, 0, 2]).permutation(len(images))  # data.loader.epoch_order
        chosen.append([(epoch, index) for index in order[batch * size : (batch + 1) * size].tolist()])

    def collate(rows: list) -> list[torch.Tensor]:
        return [torch.from_numpy(np.stack(side)) for side in list(zip(*rows, strict=True))[:2]]

    dataset: Any = PairDataset(images, config.data.transforms, config.seed)
    yield from torch.utils.data.DataLoader(dataset, batch_sampler=chosen, num_workers=workers, collate_fn=collate)


def normalized(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 (B, height, width, 3) → float32 (B, 3, height, width) on the device."""
    mean, deviation = (torch.tensor(each, device=device).view(3, 1, 1) for each in (MEAN, STD))
    return (images.to(device).permute(0, 3, 1, 2).float() / 255 - mean) / deviation


def build(config: PretrainConfig, device: torch.device) -> tuple[DenseCL, torch.optim.Optimizer]:
    model, sgd = config.model, config.optimizer
    assert isinstance(model.queue_len, int), "give model.queue_len as a number"
    assert (model.dense_negatives, model.dense_matches) == ("image_mean", "features"), "the yardstick is as published"
    torch.manual_seed(config.seed)
    strides = model.depth, model.stem_stride, model.last_stride
    encoder = Encoder(*strides, model.hidden_dim, model.out_dim, model.num_grid).to(device)
    network = DenseCL(encoder, model.queue_len, model.temperature, model.momentum, config.seed)
    rate = {"lr": config.base_lr, "momentum": sgd.momentum, "weight_decay": sgd.weight_decay}
    return network, torch.optim.SGD(network.query.parameters(), **rate)


def train(config: PretrainConfig, workers: int) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu")
    model, optimizer = build(config, device)
    images, folder = scan_images(**config.data.source()), config.run_dir
    per_epoch, micro, count = len(images) // config.batch_size, config.micro_batch_size, config.micro_batch_count
    begins, last, first = config.model.lambda_warmup(per_epoch), per_epoch * config.epochs, 0
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "state.pth").is_file():
        state = torch.load(folder / "state.pth", map_location=device, weights_only=True)
        model.load(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    print(f"torch {torch.__version__}, {device}: {len(images):,} images, step {first:,} of {last:,}", flush=True)
    began = time.monotonic()
    for step, (query, key) in enumerate(batches(images, config, first, last, workers), first):
        loss_lambda = config.model.loss_lambda if step >= begins else 0.0
        shuffle = np.random.default_rng([config.seed, step, 0x5AFF1E]).permutation(config.batch_size)
        order = torch.from_numpy(shuffle if count > 1 else np.arange(config.batch_size)).to(device)
        for group in optimizer.param_groups:
            group["lr"] = config.base_lr * config.schedule(step, steps_per_epoch=per_epoch, epochs=config.epochs)
        keys = model.encode_keys(normalized(key, device), order, micro)
        optimizer.zero_grad()
        said = []
        for number, part in enumerate(normalized(query, device).split(micro)):
            own = Projections(*(each[number * micro :][:micro] for each in keys))
            loss, told = model.losses(part, own, loss_lambda)
            (loss / count).backward()
            said.append({name: value for name, value in told.items() if name != "matches"})
        optimizer.step()
        model.enqueue(keys)
        done = step + 1
        if done % config.log_every_steps == 0 or done % per_epoch == 0:
            values = {name: float(np.mean([each[name] for each in said])) for name in said[0]}
            values = {"step": done, "epoch": step // per_epoch + 1, **values, "loss_lambda": loss_lambda}
            with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
            shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
            print(f"{shown}  {(done - first) * config.batch_size / (time.monotonic() - began):.1f} img/s", flush=True)
        if done % per_epoch == 0:
            save(config, folder, model, optimizer, done, done // per_epoch)


def save(
    config: PretrainConfig, folder: Path, model: DenseCL, optimizer: torch.optim.Optimizer, done: int, epoch: int
) -> None:
    """What the run goes on from, and, when one is due, a checkpoint of the query backbone."""
    state = {"model": model.state(), "optimizer": optimizer.state_dict(), "step": done}
    torch.save(state, folder / "state.pth.tmp")
    os.replace(folder / "state.pth.tmp", folder / "state.pth")
    if epoch % config.checkpoint.every_epochs == 0 or epoch == config.epochs:
        target = folder / "checkpoints" / f"epoch_{epoch:04d}"
        target.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": model.query.backbone.state_dict()}, target / "model.pdparams")  # read by its content


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", required=True)
    parser.add_argument("-o", "--override", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--workers", type=int, default=0, help="processes that make views (default: none)")
    args = parser.parse_args()
    config = load_config(args.config, args.override)
    assert isinstance(config, PretrainConfig)
    train(config, args.workers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
