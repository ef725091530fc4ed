"""Makes names.json.gz beside this script: the names and shapes of other libraries' own ResNets, as they are built.

pip install torch torchvision transformers        # 2.14.1, 0.29.1 and 5.24.0
python tests/weights/data/make_names.py
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch
import torchvision
import transformers

BLOCKS = {18: ([2, 2, 2, 2], [64, 128, 256, 512], "basic"), 50: ([3, 4, 6, 3], [256, 512, 1024, 2048], "bottleneck")}


def networks(depth: int) -> dict[str, torch.nn.Module]:
    depths, widths, kind = BLOCKS[depth]
    config = transformers.ResNetConfig(depths=depths, hidden_sizes=widths, layer_type=kind, num_labels=7)
    plain = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    return {
        "huggingface": transformers.ResNetForImageClassification(config),
        "sequential": torch.nn.Sequential(*list(plain.children())[:-1]),
        "torchvision": plain,
    }


if __name__ == "__main__":
    tables = {
        f"{name} {depth}": [[key, list(tensor.shape)] for key, tensor in network.state_dict().items()]
        for depth in BLOCKS
        for name, network in networks(depth).items()
    }
    data = json.dumps(tables, separators=(",", ":")).encode()
    (Path(__file__).resolve().parent / "names.json.gz").write_bytes(gzip.compress(data, mtime=0))
