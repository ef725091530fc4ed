"""A run folder as training leaves it, without the training."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from passl_densecl.cli.main import main
from passl_densecl.config import BackboneSpec, HeadSpec, PretrainConfig, dump_config, parse_config

ROOT = Path(__file__).resolve().parents[2]
STEPS_PER_EPOCH, EPOCHS, WARMUP = 5, 6, 10


def pretrain_config(images: Path, output: Path, **model) -> PretrainConfig:
    config = parse_config(
        {
            "task": "pretrain",
            "name": "tiny",
            "seed": 3,
            "output_dir": str(output),
            "model": {"depth": 18, "hidden_dim": 32, "out_dim": 16, "queue_len": 64, "loss_lambda_warmup_steps": WARMUP}
            | model,
            "data": {
                "root": str(images),
                "transforms": [
                    {"name": "RandomResizedCrop", "size": 32},
                    {"name": "ColorJitter"},
                    {"name": "RandomGrayscale"},
                    {"name": "GaussianBlur"},
                    {"name": "RandomHorizontalFlip"},
                ],
            },
            "batch_size": 8,
            "micro_batch_size": 4,
            "epochs": EPOCHS,
            "optimizer": {"lr": 0.3, "reference_batch_size": 256},
            "schedule": {"name": "cosine", "warmup_epochs": 0.5},
            "log_every_steps": 1,
        }
    )
    assert isinstance(config, PretrainConfig)
    return config


def metrics(steps: int) -> list[dict[str, float]]:
    """What a run would log; the values are made up and tell their step."""
    return [
        {
            "step": step,
            "epoch": (step - 1) // STEPS_PER_EPOCH + 1,
            "loss": 4 - step / 20,
            "global_loss": 4 - step / 20,
            "global_top1": step / 100,
            "dense_loss": 3 - step / 20,
            "dense_top1": step / 50,
            "chance": 4.174,
            "lr": 0.01,
            "loss_lambda": 0.5 if step > WARMUP else 0.0,
            "queue_fill": 1.0,
            "images_per_second": 50.0 + step,
            "data_share": 0.01,
            "peak_memory_mb": 500.0 + step,
        }
        for step in range(1, steps + 1)
    ]


def write_metrics(folder: Path, rows: list[dict[str, float]], tail: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail, encoding="utf-8")


@pytest.fixture(scope="module")
def run_dir(photos, tmp_path_factory) -> Path:
    """A finished run on the synthetic photographs, with the checkpoint of an untrained ResNet-18 DenseCL."""
    from passl_densecl.models import DenseCL
    from passl_densecl.reliability.checkpoint import Checkpoints, Snapshot
    from passl_densecl.weights.card import run_card

    config = pretrain_config(photos, tmp_path_factory.mktemp("output"))
    folder = config.run_dir
    write_metrics(folder, metrics(STEPS_PER_EPOCH * EPOCHS))
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    (folder / "environment.json").write_text('{"paddle": "3.3.1", "command": ["train.py"]}', encoding="utf-8")
    (folder / "train.log").write_text("data     40 images\nwarning  cannot decode '<b>.jpg'\n", encoding="utf-8")
    model = DenseCL(BackboneSpec(18), HeadSpec(hidden_dim=32, out_dim=16), queue_len=64, seed=5)
    state = {"task": "pretrain", "steps_per_epoch": STEPS_PER_EPOCH}
    steps = STEPS_PER_EPOCH * EPOCHS
    card = run_card(config, epoch=EPOCHS, step=steps)
    Checkpoints(folder, 1).save("epoch_0006", Snapshot(steps, model.state_dict(), {}, state, card))
    return folder


@pytest.fixture(scope="module")
def tool() -> SimpleNamespace:
    return SimpleNamespace(main=lambda words: main(["plot", *words]))
