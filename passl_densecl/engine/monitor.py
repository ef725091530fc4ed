"""Correspondences and place while a backbone trains: they say whether the dense loss is won by what cells show or where
they lie.

Nothing of the training is touched: the query encoder's backbone is in eval mode for it (BatchNorm's statistics stay),
no gradient is formed and no global random state is drawn from. The main process measures; the others wait for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import numpy as np

from passl_densecl.config import PretrainConfig
from passl_densecl.data.datasets import ImageSet
from passl_densecl.distributed import collectives as dist
from passl_densecl.engine.run import Run
from passl_densecl.evaluation.correspondence import ViewSampling, correspondence_accuracy
from passl_densecl.models import DenseCL
from passl_densecl.text import duration, quantity
from passl_densecl.transforms import output_size

# Of the ridge regression: with 64 pairs at 96 px it gives what 256 pairs give (R² 0.94 to 0.96), 0.001 gives 0.05 less.
_PLACE_L2 = 0.1
# Top-1 of the dense head: above 0.9 within an epoch where place tells positives from negatives, 0.5 where it does not.
_WON_AT = 0.9


class Monitor:
    """Measures every few epochs, before the first and after the last one, on the same crops in every run."""

    selects_best, key = False, "correspondence_accuracy"

    def __init__(self, run: Run[PretrainConfig], images: ImageSet) -> None:
        assert run.config.monitor is not None
        self._run, self._config = run, run.config.monitor
        order = np.random.default_rng(0).permutation(len(images))
        self._images = images.subset(order[: self._config.images].tolist())
        self._below = 0  # epochs in a row with the dense loss won and worse correspondences than before it
        self._sampling = ViewSampling(output_size(run.config.data.transforms))
        run.log.line(
            "monitor",
            f"{self._config.images:,} pairs of crops before training and every "
            f"{quantity(self._config.every_epochs, 'epoch')}, {self._sampling.size} px",
        )

    def due(self, done: int) -> bool:
        """Whether the weights after `done` steps are to be measured."""
        return self._run.ends_epochs(done, self._config.every_epochs)

    def run(self, model: DenseCL, done: int) -> float:
        """Measure the query encoder after `done` steps and log it. Returns the correspondence accuracy (0 to 1) in the
        main process, nan in the others.
        """
        if not dist.is_main():
            return math.nan
        began, run = time.perf_counter(), self._run
        backbone = model.query_encoder.backbone
        backbone.eval()
        try:
            found = correspondence_accuracy(
                backbone, self._images, self._sampling, pairs=self._config.images, place_l2=_PLACE_L2
            )
        finally:
            backbone.train()
        epoch = done // run.steps_per_epoch
        values = {"step": done, "epoch": epoch, self.key: found.share}
        values |= {"correspondence_standard_error": found.standard_error}
        values |= {"place_r2": found.place, "place_standard_error": found.place_error}
        run.log.line(
            "monitor",
            f"epoch {epoch}/{run.config.epochs}  correspondences {found.share:.1%} (same place {found.same_place:.1%}),"
            f" place R² {found.place:.3f}  ({duration(time.perf_counter() - began)})",
        )
        begins = run.config.model.lambda_warmup(run.steps_per_epoch)
        before = {step: one for step, one in run.log.recorded(self.key).items() if step <= begins}
        run.log.metrics(values)
        if run.watchdog is not None and done > begins and before:
            self.check_place(run.watchdog.dense_top1, values, before[max(before)])
        return found.share

    def check_place(self, dense_top1: float, now: Mapping[str, float], before: Mapping[str, float]) -> None:
        """Compare what is measured while the dense loss is trained with the last measurement before that; warn once."""
        if self._below > 1:
            return
        below = dense_top1 >= _WON_AT and now["correspondence_accuracy"] < before["correspondence_accuracy"]
        self._below = self._below + 1 if below else 0
        if self._below > 1:  # one epoch may be chance
            self._run.log.line(
                "warning",
                f"the dense loss seems to be won by place: its top-1 is {dense_top1:.0%}, but "
                f"{now['correspondence_accuracy']:.1%} of the cells of two crops match correctly, "
                f"{before['correspondence_accuracy']:.1%} before the dense loss began (step {before['step']:,}); a "
                f"cell's features tell its place with R² {now['place_r2']:.2f}, {before['place_r2']:.2f} then. The "
                "encoder may be learning where a cell lies, not what it shows. In another run try a larger map (larger "
                "crops in data.transforms, model.last_stride 1)",
            )
