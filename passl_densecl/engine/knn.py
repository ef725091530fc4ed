"""k-NN accuracy while a backbone trains: the one curve of a pre-training run that says whether it learns.

Nothing of the training is touched: the query encoder's backbone is in eval mode for it (BatchNorm's statistics stay),
no gradient is formed and no global random state is drawn from.
"""

from __future__ import annotations

import math
import time

import numpy as np

from passl_densecl.config import PretrainConfig
from passl_densecl.data.datasets import ImageSet, check_decodable, scan_images
from passl_densecl.distributed import collectives as dist
from passl_densecl.engine.run import Run
from passl_densecl.errors import InputError
from passl_densecl.evaluation.features import Features, pooled_features
from passl_densecl.evaluation.knn import Neighbors, nearest, vote
from passl_densecl.models import DenseCL
from passl_densecl.tensors import to_tensor
from passl_densecl.text import duration
from passl_densecl.transforms import center_view, output_size

_BAD = -1  # in place of a label


class OnlineKNN:
    """Evaluates every few epochs, before the first and after the last one."""

    selects_best, key = False, "knn_top1"

    def __init__(self, run: Run[PretrainConfig], num_workers: int) -> None:
        """Finds the images at once, so that a wrong folder is known before hours of training.

        Raises InputError: no such images, or fewer than k or than there are processes.
        """
        assert run.config.evaluation is not None
        config = self._config = run.config.evaluation
        self._run = run
        self._num_workers = num_workers
        self._size = config.size or output_size(run.config.data.transforms)
        self._transforms = center_view(self._size)
        source = run.config.data.source
        self._bank = scan_images(**source(root=config.train, list_file=None), labeled=True)
        self._queries = scan_images(**source(root=config.val, list_file=None), labeled=True, classes=self._bank.classes)
        least = {"train": max(config.k, dist.world_size()), "val": dist.world_size()}
        for name, images in (("train", self._bank), ("val", self._queries)):
            check_decodable(images)
            if len(images) < least[name]:
                raise InputError(
                    f"evaluation.{name}: {images.describe()}; expected at least {least[name]:,} (evaluation.k, and one "
                    "for every process)"
                )
        run.log.line(
            "knn",
            f"{config.k}-NN before training and every {config.every_epochs} epochs, {self._size} px: val "
            f"{self._queries.describe()}; bank of {len(self._bank):,}",
        )

    def due(self, done: int) -> bool:
        """Whether the weights after `done` steps are to be evaluated."""
        return self._run.ends_epochs(done, self._config.every_epochs)

    def run(self, model: DenseCL, done: int) -> float:
        """Evaluate the query encoder after `done` steps, log it, and return the share of right answers (0 to 1).

        All processes call it together: each computes the features of its part of the images, and searches its own part
        of the bank for the neighbors of all queries. The result does not depend on their number, but for rounding.
        """
        began = time.perf_counter()
        backbone = model.query_encoder.backbone
        backbone.eval()
        try:
            bank, queries = (self._features(model, images, done) for images in (self._bank, self._queries))
        finally:
            backbone.train()
        vectors, labels = (_gather(part, len(self._queries)) for part in (queries.vectors, queries.labels))
        kept, judged = bank.labels != _BAD, labels != _BAD
        own = nearest(bank.vectors[kept], bank.labels[kept], vectors, self._config.k)
        stacks = [dist.gather_rows(to_tensor(part[None])).numpy() for part in own]
        found = Neighbors.merge([Neighbors(*one) for one in zip(*stacks, strict=True)], self._config.k)
        top1 = float((vote(found, self._config.k, self._config.temperature) == labels)[judged].mean())
        error = math.sqrt(top1 * (1 - top1) / max(int(judged.sum()), 1))
        (bad,) = dist.all_reduce_sum([len(bank.bad) + len(queries.bad)])
        left_out = f"; {bad:,.0f} images cannot be decoded and are left out" if bad else ""
        seconds = time.perf_counter() - began
        epoch, log, k = done // self._run.steps_per_epoch, self._run.log, self._config.k
        title = f"epoch {epoch}/{self._run.config.epochs}"
        log.line("knn", f"{title}  {k}-NN top-1 {top1:.2%}  ({duration(seconds)}){left_out}")
        values = {"knn_top1": top1, "knn_standard_error": error, "seconds": seconds}
        log.metrics({"step": done, "epoch": epoch, **values})
        return top1

    def _features(self, model: DenseCL, images: ImageSet, done: int) -> Features:
        """Those of this process's part; the rows of images that cannot be decoded have the label _BAD."""
        title = f"epoch {done // self._run.steps_per_epoch}/{self._run.config.epochs} knn"
        found = pooled_features(
            model.query_encoder.backbone,
            images,
            self._transforms,
            self._config.batch_size,
            num_workers=self._num_workers,
            rank=dist.rank(),
            world_size=dist.world_size(),
            progress=lambda seen, total: self._run.log.progress(title, seen, total // dist.world_size(), ""),
        )
        first = len(images) * dist.rank() // dist.world_size()
        found.labels[[index - first for index in found.bad]] = _BAD
        return found


def _gather(rows: np.ndarray, count: int) -> np.ndarray:
    """This process's part of `count` rows, as EvaluationLoader divides them → all of them, in order, everywhere."""
    world = dist.world_size()
    most = -(-count // world)
    padded = np.concatenate([rows, np.zeros((most - len(rows), *rows.shape[1:]), rows.dtype)])
    everyone = dist.gather_rows(to_tensor(padded)).numpy()
    sizes = [count * (rank + 1) // world - count * rank // world for rank in range(world)]
    return np.concatenate([everyone[rank * most : rank * most + size] for rank, size in enumerate(sizes)])
