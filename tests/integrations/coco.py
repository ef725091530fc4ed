"""Data sets drawn here, colored rectangles and triangles on noise: in COCO's layout, in VOC's, as a list of labels."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

SIZE = (192, 256)  # height, width


def write_coco(root: Path, train: int = 8, val: int = 4) -> Path:
    """`root`/{train2017, val2017, annotations}: two shapes per image, two categories, boxes and polygons."""
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
                        "id": len(annotations) + 1,
                        "image_id": index,
                        "category_id": category,
                        "iscrowd": 0,
                        "bbox": [x, y, width, height],
                        "area": float(cv2.contourArea(polygon)),
                        "segmentation": [polygon.reshape(-1).tolist()],
                    }
                )
            images.append({"id": index, "file_name": f"{index}.png", "height": SIZE[0], "width": SIZE[1]})
            cv2.imwrite(str(root / name / f"{index}.png"), image)
        categories = [{"id": 1, "name": "rectangle"}, {"id": 2, "name": "triangle"}]
        path = root / "annotations" / f"instances_{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return root


def write_voc(root: Path, count: int = 4) -> Path:
    """`root`/VOC2012 as PaddleSeg reads it, augmented list included: the same shapes as masks, classes 1 and 2."""
    folder = root / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(2)
    for index in range(count):
        image, mask = rng.integers(0, 80, (*SIZE, 3), dtype=np.uint8), np.zeros(SIZE, np.uint8)
        for category in (1, 2):
            polygon = _shape(rng, category)
            cv2.fillPoly(image, [polygon], [int(v) for v in rng.integers(120, 256, 3)])
            cv2.fillPoly(mask, [polygon], category)
        cv2.imwrite(str(folder / "JPEGImages" / f"{index}.jpg"), image)
        for name in ("SegmentationClass", "SegmentationClassAug"):
            cv2.imwrite(str(folder / name / f"{index}.png"), mask)
    for name in ("train", "aug", "val"):
        (folder / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("".join(f"{i}\n" for i in range(count)))
    return root


def write_labels(root: Path, count: int = 8) -> Path:
    """`root`/{train,val}_list.txt, lines "image label", as PaddleClas reads them: one shape per image, two classes."""
    root.mkdir(parents=True, exist_ok=True)
    rng, lines = np.random.default_rng(3), []
    for index in range(count):
        image = rng.integers(0, 80, (*SIZE, 3), dtype=np.uint8)
        cv2.fillPoly(image, [_shape(rng, 1 + index % 2)], [int(v) for v in rng.integers(120, 256, 3)])
        cv2.imwrite(str(root / f"{index}.png"), image)
        lines.append(f"{index}.png {index % 2}\n")
    for name in ("train_list.txt", "val_list.txt"):
        (root / name).write_text("".join(lines))
    return root


def _shape(rng: np.random.Generator, category: int) -> np.ndarray:
    size = int(rng.integers(40, 100))
    x, y = int(rng.integers(0, SIZE[1] - size)), int(rng.integers(0, SIZE[0] - size))
    corners = [(x, y), (x + size, y), (x + size, y + size), (x, y + size)]
    return np.array(corners if category == 1 else [corners[0], corners[1], corners[3]], np.int32)
