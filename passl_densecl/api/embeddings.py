"""Features of a whole folder with the names of its images: computed, written as a table, searched for neighbors.

Images that cannot be decoded are listed, not replaced. Only `embed` needs Paddle.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

import passl_densecl
from passl_densecl.api.images import batches, of_set
from passl_densecl.api.info import checked_view
from passl_densecl.data.image_set import ImageSet
from passl_densecl.disk import whole_file
from passl_densecl.errors import InputError

if TYPE_CHECKING:
    from paddle.nn import Layer

_SIMILARITIES_AT_ONCE = 2**24  # 64 MiB of float32
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a formula starts in a spreadsheet


@dataclass(frozen=True)
class Embeddings:
    """Features of N images, in the order of their set.

    Attributes:
        names: paths below the folder.
        features: (N, D) float32; per cell (N, D, H, W).
        places: (N,) indices of the images in their set.
        labels: (N,) int64 into `classes`; None when unlabeled.
        left_out: (path, reason) of the images that cannot be decoded.
        card: how they were made, as plain values.
    """

    names: list[str]
    features: np.ndarray
    places: np.ndarray
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    left_out: list[tuple[str, str]] = field(default_factory=list)
    card: dict[str, Any] = field(default_factory=dict)


def embed(
    model: Layer,
    image_set: ImageSet,
    stage: Literal["backbone", "pooled", "global", "dense"] = "pooled",
    *,
    encoder: Literal["query", "key"] = "query",
    size: int | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    progress: Callable[[int], None] = lambda count: None,
) -> Embeddings:
    """The features of every image that can be decoded, as from ``FeatureExtractor``.

    `progress` is called after each batch with its number of images.

    Raises:
        InputError: a stage or encoder that the model does not have, a wrong size, or no image can be decoded.
    """
    from passl_densecl.api.inference import feature_function, in_eval_mode, transforms_of

    compute = feature_function(model, stage, encoder)
    transforms = transforms_of(model) if size is None else checked_view(size)
    images = of_set(image_set)
    parts: list[np.ndarray] = []
    places: list[int] = []
    left_out: list[tuple[str, str]] = []
    with in_eval_mode(model):
        for batch in batches(images, transforms, batch_size, num_workers):
            if batch.indices:
                parts.append(compute(batch.views))
            places += batch.indices
            left_out += [(images.name(index), reason) for index, reason in batch.bad]
            progress(len(batch.indices) + len(batch.bad))
    if not parts:
        name, reason = left_out[0]
        raise InputError(f"none of the {len(images):,} images {image_set.source} can be decoded; {name}: {reason}")
    card = _card_of_model(model) | {
        "encoder": encoder,
        "stage": stage,
        "transforms": [one.model_dump(mode="json") for one in transforms],
        "images": image_set.root,
    }
    names, indices = [images.name(index) for index in places], np.asarray(places, np.int64)
    labels = None if image_set.labels is None else image_set.labels[indices]
    return Embeddings(names, np.concatenate(parts), indices, labels, image_set.classes, left_out, card)


def _card_of_model(model: Layer) -> dict[str, Any]:
    info, backbone = getattr(model, "info", None), ""
    if info:
        backbone = f"ResNet-{info.depth}, stem_stride {info.stem_stride}, last_stride {info.last_stride}"
    made_by, weights = f"passl_densecl {passl_densecl.__version__}", info.source if info else type(model).__name__
    return {"made_by": made_by, "weights": weights, "backbone": backbone}


# --- neighbors ----------------------------------------------------------------------------------------------------


def nearest(features: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) → (N, count) indices of the other rows with the largest cosine, closest first, and (N, count) cosines.

    Raises:
        InputError: features are not one vector per image, or `count` is not from 1 to N − 1.
    """
    if features.ndim != 2:
        raise InputError("neighbors need one vector per image: use stage 'pooled' or 'global'")
    if not 1 <= count < len(features):
        raise InputError(f"{count} neighbors: expected from 1 to {len(features) - 1}, for {len(features)} images")
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    indices = np.empty((len(unit), count), np.int64)
    cosines = np.empty((len(unit), count), np.float32)
    chunk = max(1, _SIMILARITIES_AT_ONCE // len(unit))
    for start in range(0, len(unit), chunk):
        rows = np.arange(start, min(start + chunk, len(unit)))
        similarity = unit[rows] @ unit.T  # (chunk, N)
        similarity[np.arange(len(rows)), rows] = -np.inf  # excludes the image itself
        closest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        values = np.take_along_axis(similarity, closest, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        indices[rows] = np.take_along_axis(closest, order, axis=1)
        cosines[rows] = np.take_along_axis(values, order, axis=1)
    return indices, np.clip(cosines, -1, 1)


def write_neighbors(path: Path, names: list[str], indices: np.ndarray, cosines: np.ndarray) -> None:
    """Write a CSV table of `image, rank, neighbor, cosine`, one row per pair."""
    rows = (
        (safe_cell(name), rank, safe_cell(names[other]), f"{cosine:.4f}")
        for name, others, values in zip(names, indices.tolist(), cosines.tolist(), strict=True)
        for rank, (other, cosine) in enumerate(zip(others, values, strict=True), start=1)
    )
    with whole_file(path) as file:
        _write_rows(file, ["image", "rank", "neighbor", "cosine"], rows, names)


# --- tables --------------------------------------------------------------------------------------------------------


def check_format(path: Path) -> None:
    """Raise InputError, before minutes of work, for an unknown suffix, a missing package or a missing folder."""
    if path.suffix not in _WRITERS:
        raise InputError(f"{path}: the name must end in {' or '.join(_WRITERS)}")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise InputError(f"{path}: Parquet files need pyarrow: pip install pyarrow; .npz and .csv need no package")
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; create it first")


def write(embeddings: Embeddings, path: Path) -> None:
    """Write a table in the format of the path's suffix, completely or not at all.

    - ``.npz``: arrays ``names``, ``features``, ``labels`` (-1 when unlabeled), ``classes``, ``left_out``, and ``card``
      (JSON); ``numpy.load`` reads it without pickle.
    - ``.csv``: ``name``[, ``label``, ``class``][, ``row``, ``column``], ``f0`` …; one line per image, or per cell.
    - ``.parquet``: the same with all numbers in the column ``feature``; the card is in the schema's metadata.

    Raises:
        InputError: as `check_format`, or the file cannot be written.
    """
    check_format(path)
    with whole_file(path) as file:
        _WRITERS[path.suffix](embeddings, file)


def _write_npz(embeddings: Embeddings, file: BinaryIO) -> None:
    labels = embeddings.labels
    arrays: dict[str, Any] = {
        "names": np.asarray(embeddings.names, dtype=str),
        "features": embeddings.features,
        "labels": np.full(len(embeddings.names), -1, np.int64) if labels is None else labels,
        "classes": np.asarray(embeddings.classes, dtype=str),
        "left_out": np.asarray([name for name, _ in embeddings.left_out], dtype=str),
        "card": np.asarray(_card(embeddings)),
    }
    np.savez(file, **arrays)


def _write_csv(embeddings: Embeddings, file: BinaryIO) -> None:
    columns, features = _table(embeddings)
    columns["name"] = [safe_cell(name) for name in columns["name"]]
    if "class" in columns:
        columns["class"] = [safe_cell(name) for name in columns["class"]]
    rows = (
        (*row, *numbers.astype(str))  # the shortest text that is read back as the same float32
        for row, numbers in zip(zip(*columns.values(), strict=True), features, strict=True)
    )
    header = [*columns, *(f"f{index}" for index in range(features.shape[1]))]
    _write_rows(file, header, rows, [*columns["name"], *embeddings.classes])


def _write_parquet(embeddings: Embeddings, file: BinaryIO) -> None:
    import pyarrow  # pyright: ignore[reportMissingImports]
    from pyarrow import parquet  # pyright: ignore[reportMissingImports]

    columns, features = _table(embeddings)
    flat = pyarrow.array(np.ascontiguousarray(features).ravel())
    table = pyarrow.table({**columns, "feature": pyarrow.FixedSizeListArray.from_arrays(flat, features.shape[1])})
    parquet.write_table(table.replace_schema_metadata({"passl_densecl": _card(embeddings)}), file)


def write_card(embeddings: Embeddings, path: Path) -> None:
    """Write how the embeddings were made, as JSON: for formats that cannot hold it (.csv)."""
    with whole_file(path) as file:
        file.write((_card(embeddings, indent=1) + "\n").encode())


_WRITERS: dict[str, Callable[[Embeddings, BinaryIO], None]] = {
    ".npz": _write_npz,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}


def _table(embeddings: Embeddings) -> tuple[dict[str, Any], np.ndarray]:
    """The descriptive columns, and (rows, D) features: a row is an image, or a cell of a map."""
    features = embeddings.features
    columns: dict[str, Any] = {"name": np.asarray(embeddings.names, dtype=object)}
    if embeddings.labels is not None:
        columns["label"] = embeddings.labels
        columns["class"] = np.asarray([embeddings.classes[label] for label in embeddings.labels], dtype=object)
    if features.ndim == 4:
        count, dim, height, width = features.shape
        features = features.transpose(0, 2, 3, 1).reshape(count * height * width, dim)
        columns = {name: np.repeat(values, height * width) for name, values in columns.items()}
        cells = np.tile(np.indices((height, width)).reshape(2, -1), count)  # (2, rows)
        columns |= {"row": cells[0], "column": cells[1]}
    return {name: values.tolist() for name, values in columns.items()}, features


def _card(embeddings: Embeddings, indent: int | None = None) -> str:
    return json.dumps({**embeddings.card, "left_out": embeddings.left_out}, ensure_ascii=False, indent=indent)


def _write_rows(file: BinaryIO, header: list[str], rows: Iterable[Iterable[Any]], words: Iterable[str]) -> None:
    """CSV in UTF-8; with a byte order mark, which Excel needs, if a word is not ASCII."""
    encoding = "utf-8" if all(word.isascii() for word in words) else "utf-8-sig"
    text = io.TextIOWrapper(file, encoding, newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    text.flush()
    text.detach()  # leaves the file open


def safe_cell(name: str) -> str:
    """The path, changed so that no spreadsheet reads it as a formula; it still leads to the same file."""
    return f"./{name}" if name.startswith(_FORMULA) else name
