"""Why is the dense loss won by place? Short continuations of one checkpoint, the last one before the dense loss begins.

    python -m benchmarks.dense_pilot CHECKPOINT --train DIR --val DIR --variants published cells inner geometry reflect

Each variant takes the same steps on the same views from the same state; only the dense loss differs. Afterwards the
query backbone is judged on crops of the images of --val: correspondences, and how well features tell place. One
checkpoint is one seed: what comes out says where to look, not what is better; benchmarks/pilot_table.py joins the
seeds. Finished variants are not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import passl_densecl  # noqa: F401  (chooses the matrix kernels, which must come before Paddle)

# isort: split
import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from passl_densecl.cli.command import Parser, command
from passl_densecl.config import PretrainConfig
from passl_densecl.data.datasets import scan_images
from passl_densecl.data.loader import PairLoader
from passl_densecl.engine.learner import Learner
from passl_densecl.engine.pretrain import encode_keys, forward_backward
from passl_densecl.engine.record import recorded_settings
from passl_densecl.errors import InputError
from passl_densecl.evaluation.correspondence import ViewSampling, correspondence_accuracy
from passl_densecl.models import DenseCL, Keys, Losses, Projections, match
from passl_densecl.reliability import restore
from passl_densecl.tensors import to_tensor
from passl_densecl.transforms import RandomResizedCrop, output_size

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # what it is, and how its recipe differs
    "moco": ("λ stays 0", {}),
    "published": ("matched by the backbone's features, negatives are means of images", {}),
    "cells": ("negatives are single cells (model.dense_negatives: cells)", {"dense_negatives": "cells"}),
    "inner": ("the cells on the border of the map take no part", {}),
    "geometry": (
        "matched by the known geometry of the crops (model.dense_matches: geometry)",
        {"dense_matches": "geometry"},
    ),
    "geometry_cells": ("both of these", {"dense_matches": "geometry", "dense_negatives": "cells"}),
    "dense_match": ("matched by the dense vectors", {}),
    "reflect": ("the last stage pads by reflection instead of zeros", {}),
    "lambda_0.1": ("λ 0.1", {"loss_lambda": 0.1}),
    "lambda_0.8": ("λ 0.8", {"loss_lambda": 0.8}),
    "grid_1": ("the dense head sees the map pooled to one cell", {"num_grid": 1}),
    "grid_3": ("the dense head sees the map pooled to 3×3 cells", {"num_grid": 3}),
    "views_144": ("views of 144 px instead of 96: a map of 9×9 cells, 2.25 times the work", {}),
}


class Variant(DenseCL):
    """DenseCL with another choice of positives; `kind` is one of VARIANTS."""

    kind: str = "published"

    def losses(self, query: Projections, key: Projections, loss_lambda: float) -> Losses:
        assert query.features is not None
        assert key.features is not None
        if self.kind == "inner":
            inside = _inner(query.features.shape[2])
            cells = np.flatnonzero(inside)
            found = match(query.features, paddle.gather(key.features, to_tensor(cells), axis=2)).numpy()
            key = replace(key, matches=to_tensor(np.where(inside, cells[found], -1)))
        if self.kind == "dense_match":
            assert query.dense is not None
            assert key.dense is not None
            key = replace(key, matches=match(query.dense, key.dense))
        return super().losses(query, key, loss_lambda)

    def enqueue(self, keys: Keys) -> None:
        if self.kind == "inner":  # the mean of unit vectors here, since those before normalization are gone
            assert keys.local.dense is not None
            inside = to_tensor(np.flatnonzero(_inner(keys.local.dense.shape[2])))
            keys = replace(keys, dense_mean=F.normalize(paddle.gather(keys.local.dense, inside, axis=2).mean(axis=2)))
        super().enqueue(keys)


def _inner(cells: int) -> np.ndarray:
    """(S,) bool: the cells that are not on the border."""
    inside = np.zeros((round(cells**0.5),) * 2, bool)
    inside[1:-1, 1:-1] = True
    return inside.ravel()


def build(config: PretrainConfig, kind: str, queue_len: int) -> Variant:
    model = Variant(
        config.model.backbone,
        config.model.heads,
        queue_len=queue_len,
        temperature=config.model.temperature,
        momentum=config.model.momentum,
        seed=config.seed,
    )
    model.kind = kind
    for encoder in (model.query_encoder, model.key_encoder) if kind == "reflect" else ():
        for block in encoder.backbone.layer4:
            for name, layer in list(block.named_children()):
                if isinstance(layer, nn.Conv2D) and layer.weight.shape[2] == 3:
                    outputs, inputs = layer.weight.shape[:2]
                    stride = layer._stride
                    padded = nn.Conv2D(inputs, outputs, 3, stride, 1, padding_mode="reflect", bias_attr=False)
                    padded.weight = layer.weight
                    block.add_sublayer(name, padded)
    return model


def train(config: PretrainConfig, checkpoint: str, kind: str, steps: int) -> tuple[Variant, list[dict[str, float]]]:
    """The model after `steps` steps from the checkpoint, and the losses of every step."""
    start = restore.read(Path(checkpoint))
    model = build(config, kind, len(start.model["global_queue.keys"]))
    learner = Learner.build(model, config, start)
    images = scan_images(**config.data.source())
    loader = PairLoader(
        images, config.data.transforms, config.matched_side, seed=config.seed, batch_size=config.batch_size
    )
    history = []
    for step, batch in loader.steps(start.step, start.step + steps):
        factor = config.schedule(step, steps_per_epoch=loader.steps_per_epoch, epochs=config.epochs)
        learner.optimizer.set_lr(config.base_lr * factor)
        keys = encode_keys(config, model, batch.key, step, batch.matches)
        loss_lambda = 0.0 if kind == "moco" else config.model.loss_lambda
        losses = forward_backward(config, learner, batch.query, keys, loss_lambda)
        learner.step()
        model.enqueue(keys)
        learner.optimizer.clear_grad()
        history.append({name: float(np.mean([float(one[name]) for one in losses])) for name in losses[0]})
        if step % 10 == 0:
            shown = "  ".join(f"{name} {value:.3f}" for name, value in history[-1].items())
            print(f"{kind:15} step {step}  {shown}", file=sys.stderr, flush=True)
    model.eval()
    return model, history


def pilot(args: argparse.Namespace) -> dict[str, Any]:
    """The figures of every variant, written to --json as soon as each is known."""
    recorded = recorded_settings(restore.read(Path(args.checkpoint)))
    assert isinstance(recorded, PretrainConfig)
    if not recorded.model.heads.dense:
        raise InputError(
            f"{args.checkpoint}: its run has no dense head (model.loss_lambda is 0); expected one of DenseCL"
        )
    found = json.loads(args.json.read_text()) if args.json.is_file() else {}
    for kind in args.variants:
        name = args.label or kind
        if name in found:
            continue
        what, changes = VARIANTS[kind]
        views = recorded.data.transforms
        if kind == "views_144":
            views = tuple(
                one.model_copy(update={"size": 144} if isinstance(one, RandomResizedCrop) else {}) for one in views
            )
        data = recorded.data.model_copy(update={"root": str(args.train), "transforms": views})
        published = {"dense_matches": "features", "dense_negatives": "image_mean"}  # whatever the run itself has
        model = recorded.model.model_copy(update=published | changes)
        config = recorded.model_copy(update={"data": data, "model": model})
        network, history = train(config, args.checkpoint, kind, args.steps)
        sampling = ViewSampling(2 * output_size(recorded.data.transforms))
        judged = correspondence_accuracy(
            network.query_encoder.backbone, scan_images(str(args.val)), sampling, pairs=args.pairs
        )
        last = {name: float(np.mean([row[name] for row in history[-11:]])) for name in history[-1]} if history else {}
        found[name] = {"what": what, "steps": args.steps, "last_epoch": last, **asdict(judged)}
        args.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return found


def shown(found: dict[str, Any]) -> str:
    lines = ["| | dense loss | dense top-1 | correspondences | place R² |", "|---|---|---|---|---|"]
    for kind, one in found.items():
        last = one["last_epoch"]
        losses = f"{last['dense_loss']:.2f} | {100 * last['dense_top1']:.0f} %" if last else "– | –"
        lines.append(
            f"| {kind}: {one['what']} | {losses} | {100 * one['share']:.1f} ± {100 * one['standard_error']:.1f} % "
            f"| {one['place']:.3f} ± {one['place_error']:.3f} |"
        )
    return "\n".join(lines)


@command
def main(words: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="of a run with a dense head, before the dense loss")
    parser.add_argument("--train", type=Path, required=True, metavar="DIR", help="the images of that run")
    parser.add_argument("--val", type=Path, required=True, metavar="DIR", help="other images, to judge on")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    parser.add_argument("--label", metavar="NAME", help="of the one variant in the figures, such as start_epoch_20")
    parser.add_argument("--steps", type=int, default=110, help="of each variant (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=404, help="of crops to judge on (default: %(default)s)")
    parser.add_argument("--json", type=Path, required=True, metavar="F", help="the figures; what is in it is kept")
    args = parser.parse_args(words)
    if args.label and len(args.variants) != 1:
        raise InputError(f"--label {args.label}: expected one of --variants with it, got {len(args.variants)}")
    print(shown(pilot(args)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
