"""The whole way on real photographs, in minutes on a CPU: python tools/demo.py --output output/demo [--data DIR]"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # works from a checkout, installed or not

import cv2
import numpy as np

from passl_densecl.errors import InputError

# Photographs inside the wheels of scikit-image and scikit-learn: nothing is downloaded. The class is the photograph.
PHOTOGRAPHS = {
    "brick": ("skimage", "data/brick.png"),
    "camera": ("skimage", "data/camera.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "coins": ("skimage", "data/coins.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
}
UNSEEN = ("skimage", "data/astronaut.png")  # kept out of the image set; the picture is of it

TILE = 96  # pixels
TRAIN_STRIDE = 32  # training tiles overlap
TRAIN_TILES_MAX = 48  # of one photograph, so that the largest does not outweigh the others
VAL_SHARE = 1 / 3  # of a photograph's width


class Region(NamedTuple):
    """A rectangle of a photograph, in pixels; bottom and right are outside it."""

    top: int
    left: int
    bottom: int
    right: int


def split_regions(height: int, width: int) -> tuple[list[Region], Region]:
    """(train, val) regions that share no pixel: a vertical strip in the middle for val, what is left and right of it for
    train. The strip is a whole number of tiles wide.
    """
    strip = TILE * max(1, round(width * VAL_SHARE / TILE))
    left = (width - strip) // 2
    right = left + strip
    return [Region(0, 0, height, left), Region(0, right, height, width)], Region(0, left, height, right)


def tiles_of(region: Region, stride: int) -> list[Region]:
    """All whole TILE×TILE tiles of a region, `stride` apart."""
    tops = range(region.top, region.bottom - TILE + 1, stride)
    lefts = range(region.left, region.right - TILE + 1, stride)
    return [Region(top, left, top + TILE, left + TILE) for top in tops for left in lefts]


def plan_tiles(height: int, width: int) -> tuple[list[Region], list[Region]]:
    """(train, val) tiles of a height×width photograph. Training tiles may overlap each other, validation tiles do not,
    and no pixel is in both.
    """
    train_regions, val_region = split_regions(height, width)
    train = [tile for region in train_regions for tile in tiles_of(region, TRAIN_STRIDE)]
    chosen = np.linspace(0, len(train) - 1, min(len(train), TRAIN_TILES_MAX)).round().astype(int)
    return [train[index] for index in chosen], tiles_of(val_region, TILE)


def photograph(package: str, name: str) -> Path:
    """The path of a file inside an installed package. Raises InputError when it is not there."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        wheel = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
        raise InputError(f"the demo's photographs are inside {wheel}: pip install scikit-image scikit-learn, or give --data DIR")
    path = Path(spec.origin).parent / name
    if not path.is_file():
        raise InputError(f"no {path}: this version of {package} ships other photographs; give --data DIR")
    return path


def build_image_set(folder: Path) -> None:
    """Write train/PHOTOGRAPH/*.jpg and val/PHOTOGRAPH/*.jpg under `folder`."""
    for name, source in PHOTOGRAPHS.items():
        image = cv2.imread(str(photograph(*source)), cv2.IMREAD_COLOR)
        for split, tiles in zip(("train", "val"), plan_tiles(*image.shape[:2]), strict=True):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for tile in tiles:
                pixels = image[tile.top : tile.bottom, tile.left : tile.right]
                file = folder / split / name / f"{name}_{tile.top:04d}_{tile.left:04d}.jpg"
                cv2.imwrite(str(file), pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])
