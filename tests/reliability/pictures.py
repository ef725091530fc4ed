"""Small synthetic photographs for scripts that run outside pytest."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def write_pictures(root: Path, count: int) -> Path:
    """`count` images of colored discs on noise in 4 class folders under `root`; returns `root`."""
    for index in range(count):
        rng, label = np.random.default_rng(index), index % 4
        image = rng.integers(0, 90, (72, 80, 3), dtype=np.uint8)
        color = [(220, 40, 40), (40, 220, 40), (40, 40, 220), (220, 220, 40)][label]
        center = [int(value) for value in rng.integers(20, 52, 2)]
        cv2.circle(image, center, 10 + 3 * label, color, -1)
        (root / f"class_{label}").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / f"class_{label}" / f"{index:02d}.png"), image)
    return root
