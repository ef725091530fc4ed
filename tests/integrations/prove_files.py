"""Portable files: other Pythons read what this project writes, with any numpy, with and without Paddle and torch.

``python prove_files.py --scratch DIR --readers PYTHON...`` writes a ResNet-18 in every target's words here, and has
each of the readers open all of them with what it has: pickle as detectron2 does, paddle.load, torch.load, safetensors.
A reader needs numpy only.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = {
    "paddle": ".pdparams",
    "paddledetection": ".pdparams",
    "paddleclas": ".pdparams",
    "detectron2": ".pkl",
    "torchvision": ".pth",
    "mmpretrain": ".pth",
    "safetensors": ".safetensors",
}


def digest(array: np.ndarray) -> str:
    array = np.ascontiguousarray(array)
    return hashlib.sha256(f"{array.dtype.str}{array.shape}".encode() + array.tobytes()).hexdigest()


def write(scratch: Path) -> None:
    """Every target's file, and what must come out of it: the same values under other names."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works from a checkout, installed or not
    from steps import random_weights

    from passl_densecl.weights.convert import convert
    from passl_densecl.weights.writing import write_pickle

    arrays = random_weights(18)
    write_pickle(scratch / "source.pdparams", arrays)
    for target, suffix in SUFFIXES.items():
        convert(scratch / "source.pdparams", scratch / f"{target}{suffix}", target)
    (scratch / "expected.json").write_text(json.dumps(sorted(digest(array) for array in arrays.values())))


def tables(path: Path) -> dict[str, dict[str, Any]]:
    """How the file was opened → what was in it, by every means this Python has."""
    found = {}
    if path.suffix in (".pdparams", ".pkl"):
        found["pickle"] = pickle.loads(path.read_bytes(), encoding="latin1")
    if path.suffix == ".pdparams" and has("paddle"):
        found["paddle.load"] = importlib.import_module("paddle").load(str(path))
    if path.suffix == ".pth" and has("torch"):
        found["torch.load"] = importlib.import_module("torch").load(path, weights_only=True)
    if path.suffix == ".safetensors" and has("safetensors"):
        found["safetensors"] = importlib.import_module("safetensors.numpy").load_file(str(path))
    return found


def has(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def read(scratch: Path) -> str:
    """What this Python reads; an array that is missing or other than it was written is an error."""
    expected, told = set(json.loads((scratch / "expected.json").read_text())), []
    for target, suffix in SUFFIXES.items():
        for means, table in tables(scratch / f"{target}{suffix}").items():
            table = table.get("model", table.get("state_dict", table))
            values = [value if isinstance(value, np.ndarray) else value.numpy() for value in arrays_of(table)]
            missing = expected - {digest(value) for value in values}
            assert not missing, f"{target} by {means}: {len(missing)} of {len(expected)} arrays are missing or changed"
            told.append(f"{target} ({means})")
    assert told, "nothing could be opened here"
    versions = [f"{name} {importlib.import_module(name).__version__}" for name in ("paddle", "torch") if has(name)]
    here = ", ".join([f"Python {sys.version.split()[0]}", f"numpy {np.__version__}", *versions])
    return f"{here}: {', '.join(told)}"


def arrays_of(table: dict[str, Any]) -> list[Any]:
    return [value for value in table.values() if hasattr(value, "shape")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, required=True, help="a folder for the files")
    parser.add_argument("--readers", nargs="*", default=[], metavar="PYTHON", help="interpreters that read them")
    parser.add_argument("--read", action="store_true", help="read what is there, here")
    args = parser.parse_args()
    if args.read:
        print(f"reads {read(args.scratch)}")
        return 0
    args.scratch.mkdir(parents=True, exist_ok=True)
    write(args.scratch)
    print(f"written by Python {sys.version.split()[0]}, numpy {np.__version__}")
    codes = [
        subprocess.run([reader, __file__, "--scratch", args.scratch, "--read"], check=False).returncode
        for reader in args.readers
    ]
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
