"""Makes the torch files beside this script with torch (2.13.0): python tests/weights/data/make_torch_files.py"""

from __future__ import annotations

import argparse
import sys
import types
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent


def tensors() -> dict[str, torch.Tensor]:
    """Every kind of tensor that a checkpoint may hold; test_torch_files.py knows the values."""
    whole = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    return {
        "whole": whole,
        "shared": whole.view(-1)[6:18],  # the same storage
        "transposed": whole.permute(2, 0, 1),
        "stepped": whole[:, ::2, 1::2],
        "expanded": torch.tensor([1.5]).expand(2, 3),
        "half": torch.tensor([1.0, 0.1, 65504.0], dtype=torch.float16),
        "bfloat16": torch.tensor([[1.0, 0.1], [-3e38, float("inf")]], dtype=torch.bfloat16),
        "bfloat16.T": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).t(),
        "bfloat16 number": torch.tensor(2.5, dtype=torch.bfloat16),
        "num_batches_tracked": torch.tensor(12345678901, dtype=torch.int64),
        "double": torch.tensor([0.1], dtype=torch.float64),
        "byte": torch.tensor([0, 255], dtype=torch.uint8),
        "short": torch.tensor([-2], dtype=torch.int16),
        "bool": torch.tensor([True, False, True]),
        "complex": torch.tensor([1 + 2j], dtype=torch.complex64),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.tensor([7.0, 8.0])),
    }


def state() -> dict:
    layer = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    with torch.no_grad():
        for number, tensor in enumerate(layer.state_dict().values()):
            tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) + number)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "best": np.float64(0.25),
        "arch": "resnet50",
        "state_dict": layer.state_dict(),  # an OrderedDict with _metadata
        "optimizer": optimizer.state_dict(),
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "milestones": Counter([60, 80]),
        "rest": defaultdict(list, a=[1]),
        "rng": np.arange(3),
    }


class HistoryBuffer:
    """Pickles as mmengine's does: a class of its own with arrays and methods of the class inside."""

    def __init__(self) -> None:
        self._max_length = 10
        self._log_history = np.arange(4.0)
        self._statistics_methods = OrderedDict(min=HistoryBuffer.min)

    def min(self) -> float:
        return float(self._log_history.min())


def with_bookkeeping() -> dict:
    module = types.ModuleType("mmengine.logging.history_buffer")
    HistoryBuffer.__module__ = module.__name__
    HistoryBuffer.min.__module__ = module.__name__
    module.HistoryBuffer = HistoryBuffer
    for name in ("mmengine", "mmengine.logging"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules[module.__name__] = module
    return {
        "meta": {"epoch": 1, "cfg": "model = dict()", "args": argparse.Namespace(lr=0.1), "folder": Path("work_dirs")},
        "state_dict": OrderedDict(weight=torch.ones(2)),
        "message_hub": {"log_scalars": {"train/loss": HistoryBuffer()}, "runtime_info": {"iter": 5}},
    }


if __name__ == "__main__":
    torch.save(tensors(), HERE / "tensors.pth")
    torch.save(tensors() | {"wide": torch.tensor([1, 65535], dtype=torch.uint16)}, HERE / "uint16.pth")
    torch.save(tensors(), HERE / "tensors_legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(state(), HERE / "state.pth")
    torch.save(state(), HERE / "state_legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(with_bookkeeping(), HERE / "bookkeeping.pth")
    torch.save(torch.nn.Linear(2, 2), HERE / "whole_model.pth")
    torch.save(
        {"inside": torch.nn.Linear(2, 2).state_dict(), "q": torch.zeros(2).to(torch.float8_e5m2)}, HERE / "float8.pth"
    )
    torch.serialization.set_crc32_options(False)
    torch.save({"a": torch.ones(3)}, HERE / "no_checksums.pth")
