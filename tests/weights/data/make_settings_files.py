"""Makes lightning.ckpt, pytorch_lightning.ckpt and settings.pth beside this script with the real libraries.

    pip install torch lightning pytorch_lightning omegaconf addict easydict fvcore ml_collections mmengine munch yacs
    python tests/weights/data/make_settings_files.py

They were made with lightning 2.6.6, omegaconf 2.4.0, addict 2.4.0, easydict 1.14, fvcore 0.1.5, ml_collections 1.1.0,
mmengine 0.10.7, munch 4.0.0 and yacs 0.1.8.
"""

from __future__ import annotations

import argparse
import datetime
import enum
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import addict
import easydict
import fvcore.common.config
import lightning
import ml_collections
import mmengine
import munch
import pytorch_lightning
import torch
import yacs.config
from mmengine.logging import HistoryBuffer
from omegaconf import OmegaConf

HERE = Path(__file__).resolve().parent


class Rule(enum.Enum):
    SGD = 1


@dataclass
class Optimizer:
    """A structured config of OmegaConf: the file names this class and the types of its fields."""

    rule: Rule = Rule.SGD
    lr: float = 0.1
    milestones: list[int] = field(default_factory=lambda: [60, 80])
    weights: dict[str, Any] = field(default_factory=lambda: {"global": 0.5})
    name: str | None = None


def module_of(library: ModuleType, *settings: object) -> Any:
    class Module(library.LightningModule):
        def __init__(self, cfg: Any, args: Any = None, more: Any = None) -> None:
            super().__init__()
            # One argument given alone is the `hyper_parameters` themselves; several are a table of them.
            self.save_hyperparameters(cfg) if args is None else self.save_hyperparameters()
            self.backbone = torch.nn.Linear(2, 1)
            torch.nn.init.ones_(self.backbone.weight)

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            return 0 * self.backbone(batch).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    return Module(*settings)


def save(library: ModuleType, name: str, *settings: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trainer = library.Trainer(
            max_steps=1,
            logger=False,
            accelerator="cpu",
            default_root_dir=folder,
            enable_checkpointing=False,  # its callback would write the folder's name into the file
        )
        trainer.fit(module_of(library, *settings), torch.utils.data.DataLoader(torch.ones(2, 2)))
        trainer.save_checkpoint(HERE / name)


def yacs_node() -> yacs.config.CfgNode:
    node = yacs.config.CfgNode({"SOLVER": {"BASE_LR": 0.1}})
    node.freeze()
    return node


if __name__ == "__main__":
    config = OmegaConf.create({"method": "byol", "optimizer": {"lr": 0.1, "steps": [1, 2]}, "run": "${method}/x"})
    save(pytorch_lightning, "pytorch_lightning.ckpt", config)
    AttributeDict = lightning.fabric.utilities.data.AttributeDict
    OldAttributeDict = pytorch_lightning.utilities.parsing.AttributeDict
    options = argparse.Namespace(lr=0.1, output=Path("out"), limit=datetime.timedelta(hours=1))
    more = AttributeDict(a=OldAttributeDict(b=lightning.pytorch.utilities.parsing.AttributeDict(c=1)))
    save(lightning, "lightning.ckpt", OmegaConf.structured(Optimizer), options, more)
    history = HistoryBuffer()
    history.update(0.5)
    settings = {
        "addict": addict.Dict(a=addict.Dict(b=1)),
        "easydict": easydict.EasyDict(a={"b": 1}),
        "fvcore": fvcore.common.config.CfgNode({"A": {"B": 1}}),
        "ml_collections": ml_collections.ConfigDict({"a": {"b": 1}}),
        "mmengine": [mmengine.ConfigDict(a=dict(b=1)), mmengine.Config(dict(model=dict(depth=50))), history],
        "munch": munch.munchify({"a": {"b": 1}}),
        "yacs": yacs_node(),
    }
    torch.save({"state_dict": {"weight": torch.ones(2)}, "settings": settings}, HERE / "settings.pth")
