"""A step whose numbers are not finite changes nothing: it is undone before the optimizer moves, recorded and counted.

Within a step the order is: key encoder moves, BatchNorm's running statistics move, losses, gradients | **here** |
optimizer, queues. What comes before the line is restored to the bit, what comes after it does not happen; then the next
step. All processes decide together, so their weights and queues stay equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle

from passl_densecl.config import PretrainConfig
from passl_densecl.data.datasets import ImageSet
from passl_densecl.data.loader import PairBatch
from passl_densecl.distributed import collectives as dist
from passl_densecl.engine.learner import Learner, scaler_state, trained
from passl_densecl.engine.run import Run
from passl_densecl.errors import RunError
from passl_densecl.models import DenseCL, Keys, Losses
from passl_densecl.models.batch_norm import ChainedStatistics

# Paddle's GradScaler halves its scale for every overflow, without end. Below 1 it would make gradients smaller than
# they are, so an overflow there is not of its making.
SCALE_FLOOR = 1.0


class Guard:
    """Decides, once per step, whether its numbers are finite, and takes the step back when they are not.

    With float16's loss scaling, gradients that overflow are normal: the scaler then leaves out the optimizer's move and
    lowers its scale, while key encoder, statistics and queues, which saw finite numbers only, continue as in any step.
    So there a gradient counts only when the scale is at its floor (1); a loss always counts.

    Cost: one pass over the gradients (0.1 to 0.5 % of a step on a CPU), and a few numbers that the host waits for
    before the optimizer, among them whether a process was asked to stop. On a GPU that wait lets the device idle while
    the host launches the optimizer's first kernels, a few milliseconds per step; without it the bad step is in the
    weights.
    """

    def __init__(
        self, run: Run[PretrainConfig], learner: Learner, statistics: ChainedStatistics, images: ImageSet
    ) -> None:
        assert isinstance(learner.model, DenseCL)
        run.skipped = run.start.state.get("nonfinite_steps", 0) if run.start else 0
        self._run = run
        self._learner, self._model = learner, learner.model
        self._statistics = statistics
        self._images = images
        self._trained = trained(learner.model)
        self._row_began = 0  # the step that began the present row of bad ones; 0 outside of one

    def accepts(self, step: int, batch: PairBatch, losses: Sequence[Losses], keys: Keys, loss_lambda: float) -> bool:
        """Whether everything that step `step` (from 0) computed is finite; if not, the step is undone and recorded.

        All processes call it together, before the optimizer. Raises RunError, in all of them, when the run has had more
        such steps than the config tolerates.
        """
        if self._finite(losses, keys):
            self._row_began = 0
            return True
        self._skip(step, batch, losses, keys, loss_lambda)
        return False

    @paddle.no_grad()
    def _finite(self, losses: Sequence[Losses], keys: Keys) -> bool:
        """Whether everything is finite in every process; tells `run.stop` whether any process was asked to stop.

        A sum is finite only if all its terms are; it could also overflow, of gradients beyond 1e30, which are as bad.
        The one kernel that `paddle.amp.GradScaler` has for it sets gradients to 0: subnormal ones and those beside NaN.
        """
        values = [value for each in losses for value in each.values()]
        values += [keys.global_vector.sum(), self._statistics.values().sum()]
        if keys.dense_mean is not None:
            values.append(keys.dense_mean.sum())
        gradients = [weight.grad.sum() for weight in self._trained.values() if weight.grad is not None]
        asked = paddle.full([], float(self._run.stop.signal is not None))
        sums = paddle.stack([paddle.stack(values).sum(), paddle.stack(gradients).sum(), asked])
        numbers = dist.all_reduce(sums).numpy()
        self._run.stop.asked_anywhere = bool(numbers[2] > 0)
        values_finite, gradients_finite, _ = np.isfinite(numbers)
        scaler_copes = self._learner.scaler.is_enable() and scaler_state(self._learner.scaler)["scale"] > SCALE_FLOOR
        return bool(values_finite and (gradients_finite or scaler_copes))

    def _skip(self, step: int, batch: PairBatch, losses: Sequence[Losses], keys: Keys, loss_lambda: float) -> None:
        """Undo what the step has changed, log it and keep what it was."""
        from passl_densecl.engine import nonfinite  # most runs never meet such a step

        found = nonfinite.find_nonfinite(self._learner, losses, keys)
        self._statistics.undo()
        self._model.undo_key_update()
        run, done, lr = self._run, step + 1, float(self._learner.optimizer.get_lr())
        skipped = run.skipped = (run.skipped or 0) + 1
        self._row_began = self._row_began or done
        what = f"step {done:,}: {next((kind for kind, names in found.items() if names), 'gradients')} are not finite"
        facts = {"step": done, "epoch": step // run.steps_per_epoch + 1, "lr": lr}
        report = {**facts, "loss_lambda": loss_lambda, "nonfinite": found}
        kept = nonfinite.keep(run, self._images, skipped, batch, report)
        run.log.metrics({**facts, "nonfinite_steps": skipped})
        limit = run.config.guard.max_nonfinite_steps
        if skipped > limit:
            raise RunError(
                f"{what}, as in {skipped} steps of this run; at most guard.max_nonfinite_steps {limit} are tolerated. "
                f"Nothing of these steps is in the weights{kept}. "
                + run.remedy(self._row_began if self._row_began < done else None)
            )
        count = f"{skipped} of at most {limit} in a run"
        run.log.line("warning", f"{what}; the step was skipped and changed nothing ({count}){kept}")
