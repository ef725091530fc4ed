"""A step whose numbers are not finite changes nothing: found before the optimizer moves, undone, kept for replay, counted.

Within a step the order is: key encoder moves, BatchNorm's running statistics move, losses, gradients | **here** | optimizer,
queues. What stands before the line is put back to the bit, what stands behind it does not happen; then the next step. All
processes decide together, so their weights and queues stay equal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from passl_densecl.config import PretrainConfig
from passl_densecl.data.datasets import ImageSet
from passl_densecl.data.loader import PairBatch
from passl_densecl.disk import whole_file
from passl_densecl.distributed import collectives as dist
from passl_densecl.engine.optim import optimizer_state, scaler_state, trained
from passl_densecl.errors import InputError, RunError
from passl_densecl.models import DenseCL
from passl_densecl.models.batch_norm import ChainedStatistics
from passl_densecl.models.densecl import Keys
from passl_densecl.reliability.checkpoint import Checkpoints
from passl_densecl.reliability.log import SilentLog
from passl_densecl.tensors import to_tensor
from passl_densecl.weights import Parent
from passl_densecl.weights.card import run_card

FOLDER, REPORT, BATCH = "nonfinite", "report.json", "batch.npz"
LOSSES = ("loss", "global_loss", "global_top1", "dense_loss", "dense_top1")  # what a report of a micro-batch holds

# Paddle's GradScaler halves its scale for every overflow, without end. Below 1 it would make gradients smaller than they
# are, so an overflow there is not of its making.
SCALE_FLOOR = 1.0

_CALLED = {
    "losses": "a loss",
    "keys": "a key",
    "statistics": "a running statistic of BatchNorm",
    "gradients": "a gradient",
}


class Guard:
    """Decides, once a step, whether its numbers are finite; `skip` takes the step back when they are not.

    With float16's loss scaling, gradients that overflow are normal: the scaler then leaves out the optimizer's move and
    lowers its scale, while key encoder, statistics and queues, which saw finite numbers only, go on as in any step. So
    there a gradient counts only when the scale is at its floor (1); a loss always counts.

    Cost: one pass over the gradients, beside the forward and backward pass of a whole batch (0.1 to 0.5 % on a CPU), and one
    number that the host waits for before the optimizer. On a GPU that wait lets the device idle while the host launches the
    optimizer's first kernels, a few milliseconds a step. It is accepted: without it the bad step is in the weights.
    """

    def __init__(
        self,
        config: PretrainConfig,
        model: DenseCL,
        optimizer: paddle.optimizer.Optimizer,
        scaler: paddle.amp.GradScaler,
        statistics: ChainedStatistics,
        images: ImageSet,
        log: SilentLog,
        *,
        steps_per_epoch: int,
        skipped: int = 0,
        parents: tuple[Parent, ...] = (),
    ) -> None:
        self.skipped = skipped  # steps of the whole run, this process's part of it and those before
        self._config = config
        self._model = model
        self._optimizer = optimizer
        self._scaler = scaler
        self._statistics = statistics
        self._images = images
        self._log = log
        self._steps_per_epoch = steps_per_epoch
        self._parents = parents
        self._trained = trained(model)
        self._row_began = 0  # the step that began the present row of bad ones; 0 outside of one

    @paddle.no_grad()
    def finite(self, reports: Sequence[paddle.Tensor], keys: Keys) -> bool:
        """Whether everything that the step computed is finite, in every process; all must call it, before the optimizer.

        `reports` holds the losses of each micro-batch. A sum is finite only if all its terms are; it could also overflow,
        of gradients beyond 1e30, which are as bad.
        """
        values = [report.sum() for report in reports] + [keys.global_vector.sum(), self._statistics.values().sum()]
        if keys.dense_mean is not None:
            values.append(keys.dense_mean.sum())
        gradients = [weight.grad.sum() for weight in self._trained.values() if weight.grad is not None]
        sums = paddle.stack([paddle.stack(values).sum(), paddle.stack(gradients).sum()])
        values_finite, gradients_finite = np.isfinite(dist.all_reduce(sums).numpy())
        if not (values_finite and (gradients_finite or self._scaler_copes())):
            return False
        self._row_began = 0
        return True

    def _scaler_copes(self) -> bool:
        """Whether gradients that overflow are the loss scaling's affair."""
        return self._scaler.is_enable() and scaler_state(self._scaler)["scale"] > SCALE_FLOOR

    def skip(
        self, step: int, batch: PairBatch, reports: Sequence[paddle.Tensor], keys: Keys, loss_lambda: float
    ) -> None:
        """Take back what the step has changed, say and keep what it was. All processes call it together.

        Raises RunError, in all of them, when the run has had more such steps than the config tolerates.
        """
        found = self._nonfinite(reports, keys)
        self._statistics.undo()
        self._model.undo_key_update()
        self.skipped += 1
        self._row_began = self._row_began or step + 1
        done, limit, lr = step + 1, self._config.guard.max_nonfinite_steps, float(self._optimizer.get_lr())
        what = _CALLED[next((kind for kind, names in found.items() if names), "gradients")]
        kept = self._keep(done, batch, found, {"lr": lr, "loss_lambda": loss_lambda})
        self._log.metrics(
            {"step": done, "epoch": step // self._steps_per_epoch + 1, "lr": lr, "nonfinite_steps": self.skipped}
        )
        if self.skipped <= limit:
            self._log.line(
                "warning",
                f"step {done:,}: {what} is not finite; the step was skipped and changed nothing ({self.skipped} of at most "
                f"{limit} in a run){kept}",
            )
            return
        raise RunError(
            f"step {done:,}: {what} is not finite, for the {_ordinal(self.skipped)} time in this run; at most "
            f"guard.max_nonfinite_steps {limit} are tolerated. Nothing of these steps is in the weights{kept}. "
            + self._remedy(done)
        )

    @paddle.no_grad()
    def check_weights(self, done: int) -> None:
        """Raises RunError when a weight is not finite, before it is saved over good ones.

        Finite gradients can still overflow a weight: learning rate times gradient, or momentum, beyond float32.
        """
        weights = dict(self._model.named_parameters())
        if math.isfinite(float(paddle.stack([weight.sum() for weight in weights.values()]).sum())):
            return
        broken = [name for name, weight in weights.items() if not _is_finite(weight)]
        self._row_began = done
        raise RunError(
            f"step {done:,}: weights are not finite, though the gradients were ({_some(broken)}); they were not saved. "
            + self._remedy(done)
        )

    def _remedy(self, done: int) -> str:
        """How to go on after an end."""
        newest = Checkpoints(self._config.run_dir, self._config.checkpoint.keep).newest()
        how = f"a lower optimizer.lr (the rate is {float(self._optimizer.get_lr()):g} now)"
        if self._config.amp.enabled and self._config.amp.dtype == "float16":
            how += ", or amp.dtype: bfloat16"
        if newest is None:
            return f"There is no checkpoint yet: start again with {how}"
        if self._row_began < done:
            return (
                f"All steps since {self._row_began:,} were like that, so the weights had diverged by then: continue from a "
                f"checkpoint well before it (--resume PATH; the newest is {newest}) with {how}"
            )
        return f"Continue from {newest} (--resume auto) with {how}"

    def _nonfinite(self, reports: Sequence[paddle.Tensor], keys: Keys) -> dict[str, list[Any]]:
        """What is not finite: every loss of every process, and the names of keys, statistics and gradients."""
        table = dist.gather_rows(paddle.stack(list(reports))).numpy()  # (micro-batches of all processes, 3 or 5)
        losses = [
            {"micro_batch": number, **{name: _plain(value) for name, value in zip(LOSSES, row, strict=False)}}
            for number, row in enumerate(table)
            if not np.isfinite(row).all()
        ]
        vectors = {"global": keys.global_vector, "dense_mean": keys.dense_mean}
        return {
            "losses": losses,
            "keys": [name for name, value in vectors.items() if value is not None and not _is_finite(value)],
            "statistics": [
                name
                for name, value in self._model.named_parameters()
                if name.endswith(("._mean", "._variance")) and not _is_finite(value)
            ],
            "gradients": [
                name
                for name, weight in self._trained.items()
                if weight.grad is not None and not _is_finite(weight.grad)
            ],
        }

    def _keep(self, done: int, batch: PairBatch, found: dict[str, list[Any]], settings: Mapping[str, float]) -> str:
        """Write the report, and of the first such steps the batch and the state; says where, for a message.

        The state is the one before the step: it has been undone. A disk that does not take it ends no run.
        """
        if (
            self.skipped > self._config.guard.max_nonfinite_steps + 1
        ):  # a limit that was lowered: reports are bounded too
            return ""
        whole = self.skipped <= self._config.guard.keep_dumps
        indices = dist.gather_rows(to_tensor(batch.indices)).numpy()
        views = [dist.gather_rows(view).numpy() for view in (batch.query, batch.key)] if whole else []
        if not dist.is_main():
            return ""
        folder = self._config.run_dir / FOLDER / f"step_{done:08d}"
        share = len(indices) // dist.world_size()
        report = {
            "step": done,
            "epoch": (done - 1) // self._steps_per_epoch + 1,
            **settings,
            "processes": dist.world_size(),
            "nonfinite_steps": self.skipped,
            "nonfinite": found,
            "images": [
                {"process": row // share, "index": int(index), "path": self._images.path(int(index))}
                for row, index in enumerate(indices)
            ],
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if whole:
                self._keep_state(folder, done)
                with whole_file(folder / BATCH) as file:
                    np.savez(file, query=views[0], key=views[1], indices=indices)
            with whole_file(folder / REPORT) as file:  # last: where it is, the rest is
                file.write((json.dumps(report, indent=1) + "\n").encode())
        except (OSError, InputError, RunError) as error:
            return f"; what it was could not be kept: {error}"
        return f"; kept for --replay: {folder}" if whole else f"; see {folder / REPORT}"

    def _keep_state(self, folder: Path, done: int) -> None:
        """The state before the step, as a checkpoint like any other."""
        before, name = done - 1, f"step_{done - 1:08d}"
        Checkpoints(folder, keep=1).save(
            name,
            before,
            self._model.state_dict(),
            optimizer_state(self._optimizer, self._model),
            {"task": "pretrain", "scaler": scaler_state(self._scaler), "nonfinite_steps": self.skipped - 1},
            card=run_card(self._config, epoch=before // self._steps_per_epoch, step=before, parents=self._parents),
            must=True,
        )


def check_finite(what: str, values: Sequence[float], done: int, remedy: str) -> None:
    """Raises RunError, with the remedy, when one of the values is not finite: for loops that skip no steps."""
    if not all(math.isfinite(value) for value in values):
        said = ", ".join(f"{value:g}" for value in values)
        raise RunError(f"step {done:,}: not finite: {what} ({said}). Nothing of it was saved. {remedy}")


def _is_finite(tensor: paddle.Tensor) -> bool:
    return bool(np.isfinite(tensor.numpy()).all())


def _plain(value: float) -> float | str:
    """A number for JSON, which has no word for what this is about."""
    return float(value) if math.isfinite(value) else str(value)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _ordinal(number: int) -> str:
    suffix = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
