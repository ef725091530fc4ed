"""A data set in COCO's layout that needs no download: coloured rectangles and triangles on noise."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

SIZE = (192, 256)  # height, width


def write_coco(root: Path, train: int = 8, val: int = 4) -> Path:
    """`root`/{train2017, val2017, annotations}: two shapes an image, two categories, boxes and polygons."""
    for name, count, seed in (("train2017", train, 0), ("val2017", val, 1)):
        rng = np.random.default_rng(seed)
        (root / name).mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for index in range(1, count + 1):
            image = rng.integers(0, 80, (*SIZE, 3), dtype=np.uint8)
            for category in (1, 2):
                polygon = _shape(rng, category)
                cv2.fillPoly(image, [polygon], [int(v) for v in rng.integers(120, 256, 3)])
                x, y, width, height = cv2.boundingRect(polygon)
                annotations.append(
                    {
                        "id": len(annotations) + 1, "image_id": index, "category_id": category, "iscrowd": 0,
                        "bbox": [x, y, width, height], "area": float(cv2.contourArea(polygon)),
                        "segmentation": [polygon.reshape(-1).tolist()],
                    }
                )  # fmt: skip
            images.append({"id": index, "file_name": f"{index}.png", "height": SIZE[0], "width": SIZE[1]})
            cv2.imwrite(str(root / name / f"{index}.png"), image)
        categories = [{"id": 1, "name": "rectangle"}, {"id": 2, "name": "triangle"}]
        path = root / "annotations" / f"instances_{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return root


def _shape(rng: np.random.Generator, category: int) -> np.ndarray:
    size = int(rng.integers(40, 100))
    x, y = int(rng.integers(0, SIZE[1] - size)), int(rng.integers(0, SIZE[0] - size))
    corners = [(x, y), (x + size, y), (x + size, y + size), (x, y + size)]
    return np.array(corners if category == 1 else [corners[0], corners[1], corners[3]], np.int32)
