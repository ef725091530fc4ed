"""Images with labels in batches, for linear evaluation, k-NN and the like; see `loader`."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import paddle

from passl_densecl.data.datasets import Dataset, ImageSet, Transforms
from passl_densecl.data.loader import TrainingLoader, bad_images, compute
from passl_densecl.tensors import to_tensor


@dataclass(frozen=True)
class LabeledBatch:
    """N images with their labels.

    Attributes:
        images: uint8 tensor, N×H×W×3, on the current device.
        labels: (N,) int64 tensor; -1 where the set has no labels.
        indices: (N,) int64, which images of the set these are.
        bad: those among ``indices`` that could not be decoded and were replaced, and why.
    """

    images: paddle.Tensor
    labels: paddle.Tensor
    indices: np.ndarray
    bad: Mapping[int, str]


class LabeledDataset(Dataset):
    """One view of every image and its label, for linear evaluation, k-NN and the like.

    ``dataset[epoch, index]`` → (image, label, index, why): a uint8 H×W×3 array, two int64 numbers and a text. ``label``
    is -1 when the set has no labels. An image that cannot be decoded is replaced together with its label; ``why`` then
    says why, else it is empty. With deterministic transforms use epoch 0 throughout.
    """

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, np.int64, np.int64, np.ndarray]:
        epoch, index = key
        (image,), used, why = self.views_or_others(epoch, index, 1)
        label = -1 if self.image_set.labels is None else self.image_set.labels[used]
        return image, np.int64(label), np.int64(index), why


class LabeledLoader(TrainingLoader):
    """One augmented view of every image and its label: the batches of linear training."""

    dataset_type = LabeledDataset

    def steps(self, start: int, stop: int) -> Generator[tuple[int, LabeledBatch], None, None]:
        """(step, this rank's batch) for every step from ``start`` up to, not including, ``stop``."""
        for step, arrays in self.batches(start, stop):
            yield step, _batch(arrays)


class EvaluationLoader:
    """Every image once, in order: ``for batch in loader``, as often as wanted.

    Each rank gets an unbroken part of the set; the parts differ by one image at most, nothing is padded or repeated,
    and the last batch is short. A rank without images gets no batch. ``batch_size`` ≥ 1 is the number of images of one
    batch of one rank. ``transforms`` should be deterministic; if they draw, they draw as in epoch 0 with seed 0.
    """

    def __init__(
        self,
        image_set: ImageSet,
        transforms: Transforms,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> None:
        self._dataset = LabeledDataset(image_set, transforms, seed=0)
        part = np.arange(len(image_set) * rank // world_size, len(image_set) * (rank + 1) // world_size)
        self._requests = [(0, part[first : first + batch_size]) for first in range(0, len(part), batch_size)]
        self._rows = min(batch_size, len(part))
        self._num_workers = num_workers

    def __len__(self) -> int:
        """The number of batches of this rank."""
        return len(self._requests)

    def __iter__(self) -> Generator[LabeledBatch, None, None]:
        with closing(compute(self._dataset, self._requests, self._rows, self._num_workers)) as batches:
            yield from map(_batch, batches)


def _batch(arrays: Sequence[np.ndarray]) -> LabeledBatch:
    images, labels, indices, why = arrays
    return LabeledBatch(to_tensor(images), to_tensor(labels), indices.copy(), bad_images(indices, why))
