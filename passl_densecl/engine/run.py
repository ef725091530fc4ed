"""One run, from a new folder or a checkpoint to its last step: what pre-training and linear evaluation share.

A loop opens the run, prepares what it trains, and calls `begin`; after each step `after_step` does everything that is
not learning: logging, checkpoints, evaluation, and stopping when a signal asked for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import paddle

from passl_densecl.config import RANDOM, LinearConfig, PretrainConfig
from passl_densecl.data.datasets import ImageSet
from passl_densecl.data.loader import choose_workers
from passl_densecl.distributed import collectives as dist
from passl_densecl.distributed import process_group
from passl_densecl.distributed.device import set_device
from passl_densecl.engine.learner import Learner, check_finite, optimizer_state, scaler_state
from passl_densecl.errors import InputError, RunError, option
from passl_densecl.models import Keys, Losses
from passl_densecl.reliability import checkpoint as checkpoint_files
from passl_densecl.reliability.bad_images import BadImages
from passl_densecl.reliability.checkpoint import Checkpoint, Checkpoints, Snapshot
from passl_densecl.reliability.lock import locked
from passl_densecl.reliability.log import SilentLog, Stopwatch, open_log, peak_memory_mb
from passl_densecl.reliability.signals import StopRequest
from passl_densecl.reliability.watchdog import Watchdog, similarity
from passl_densecl.text import listed
from passl_densecl.transforms import Transform, output_size
from passl_densecl.weights.card import run_card

if TYPE_CHECKING:
    from passl_densecl.engine.record import Change

C = TypeVar("C", PretrainConfig, LinearConfig)
NO_BEST = {"epoch": 0, "top1": -1.0, "name": ""}


class Resume(NamedTuple):
    """How a run stands to what is in its folder."""

    path: str | None = None  # the checkpoint to continue, or "auto"; None starts a new run
    overwrite: bool = False  # a new run replaces one in the folder
    accept_changes: bool = False  # a run is continued with another recipe


class Evaluation(Protocol):
    """Accuracy of the model every few epochs. When it selects the best checkpoint, it comes before the checkpoint is
    written; otherwise after, so that a run killed in it continues with the checkpoint."""

    selects_best: bool
    key: str  # of its figure in metrics.jsonl

    def due(self, done: int) -> bool:
        """Whether the weights after `done` steps are to be evaluated."""
        ...

    def run(self, model: Any, done: int) -> float:
        """Evaluate, log, and return the figure (0 to 1). All processes call it together."""
        ...


@dataclass(eq=False)
class Run(Generic[C]):
    """A run and its folder. `begin` completes it."""

    config: C
    start: Checkpoint | None  # the checkpoint that the run continues from
    checkpoints: Checkpoints
    log: SilentLog
    overwrite: bool = False  # what is in the folder
    changes: list[Change] = field(default_factory=list)  # of settings, since the checkpoint was written
    stop: StopRequest = field(default_factory=StopRequest)
    learner: Learner = field(init=False)
    steps_per_epoch: int = field(init=False)
    parents: tuple = ()  # the files that the weights came from
    facts: dict[str, Any] = field(default_factory=dict)  # for a checkpoint's state.json
    evaluation: Evaluation | None = None
    monitor: Evaluation | None = None
    watchdog: Watchdog | None = None
    skipped: int | None = None  # steps whose numbers were not finite, in the whole run; None where the loop skips none
    best: dict[str, Any] = field(default_factory=NO_BEST.copy)  # the best epoch, where the evaluation selects one
    stopped: bool = False  # on request, before its last step

    @property
    def first_step(self) -> int:
        return self.start.step if self.start else 0

    @property
    def last_step(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    def learning_rate(self, step: int) -> float:
        config = self.config
        return config.base_lr * config.schedule(step, steps_per_epoch=self.steps_per_epoch, epochs=config.epochs)

    def choose_workers(self, transforms: Sequence[Transform], views: int) -> tuple[int, str]:
        """(Data workers for this process's share of a batch with `views` uint8 RGB images each, the reason)."""
        share = views * 3 * output_size(transforms) ** 2 * self.config.batch_size // dist.world_size()
        wanted = self.config.data.num_workers
        return choose_workers(wanted, batch_bytes=share, world_size_local=dist.local_world_size())

    # ------------------------------------------------------------ before the first step

    def check_start(self) -> None:
        """Raises InputError when the processes do not all continue from the same step."""
        step = self.first_step
        if dist.any_process(step != dist.all_reduce_sum([step])[0] / dist.world_size()):
            raise InputError(
                f"{option('resume')}: process {dist.rank()} found step {step}, others found another; every host must "
                "see the same output_dir (shared storage)"
            )

    def describe_start(self, *, load: str | None, pretrained: str | None) -> None:
        """Record where the weights come from: the file of a new run, or the checkpoint that is continued.

        Raises InputError when a run that is continued started from other weights than the options name.
        """
        if self.start is None:
            if (path := load or pretrained) not in (None, RANDOM):
                from passl_densecl.engine.start import parent_of  # a run from random weights needs none of it

                self.parents = (parent_of(path),)
            return
        from passl_densecl.engine.record import check_parents  # a new run needs none of it

        self.parents = check_parents(self.start, load=load, pretrained=pretrained)
        self.log.line("resume", f"{self.start.path}, step {self.start.step:,}")
        for change in self.changes:
            self.log.line("changed", f"{change}, from step {self.start.step:,} on")

    def describe_recipe(self, what: str) -> None:
        """The lines of the log about batch and learning rate that both tasks have."""
        config = self.config
        optimizer = config.optimizer
        self.log.line(
            "recipe", f"{config.epochs} epochs × {self.steps_per_epoch:,} steps, batch {config.batch_size}{what}"
        )
        if config.batch_size != optimizer.reference_batch_size:
            self.log.line(
                "note",
                f"lr {optimizer.lr:g} is for batch {optimizer.reference_batch_size}; scaled linearly to "
                f"{config.base_lr:g} for batch {config.batch_size}",
            )
        self.warn_of_amp()

    def warn_of_amp(self) -> None:
        """Warn when mixed precision is asked for on a device where Paddle ignores it."""
        if self.config.amp.enabled:
            from passl_densecl.distributed.gpu_failure import amp_problem

            if problem := amp_problem(self.config.amp.dtype):
                self.log.line("warning", problem)

    def begin(self, learner: Learner, images: ImageSet) -> None:
        """Everything is ready for the first step: leave in the run folder what a run that continues here would have.

        `images` are the training images; facts, evaluation, guard and watchdog have been set.
        """
        self.learner, self.images = learner, images
        selects = self.evaluation is not None and self.evaluation.selects_best
        self.checkpoints.check_room(checkpoint_files.bytes_of(learner.model), also=int(selects))
        state = self.start.state if self.start else {}
        self.bad_images = BadImages(
            self.config.run_dir,
            images,
            self.config.data.max_bad_share,
            self.log,
            resumed=self.start is not None,
            in_epoch=state.get("bad_in_epoch", 0),
        )
        if dist.is_main():
            if self.start is not None and self.changes:
                from passl_densecl.engine.record import keep_config

                keep_config(self.start, self.config.run_dir)
            self.log.record()
            if self.start is not None:
                from passl_densecl.reliability.restore import report_start

                report_start(self.start, self.checkpoints)
            if self.overwrite:
                self.checkpoints.clear()
            self.log.rewind(self.start.step if self.start else -1)
            self.checkpoints.tidy(self.first_step, self.best["name"] or None)
        first = self.first_step
        for each in (self.evaluation, self.monitor):
            due = each is not None and not each.selects_best and each.due(first)
            if each and due and not dist.any_process(first in self.log.recorded(each.key)):
                each.run(learner.model, first)
        self.stopwatch = Stopwatch()

    # ------------------------------------------------------------ after each step

    def after_step(
        self,
        step: int,
        bad: Mapping[int, str],
        losses: Sequence[Losses],
        facts: Mapping[str, float],
        *,
        waited: float,
        keys: Keys | None = None,
    ) -> bool:
        """Log, evaluate and save as the config says. True when the run was asked to stop and has saved.

        Args:
            step: the one just made, from 0.
            bad: images of this process's batch that could not be decoded, index → reason.
            losses: of each micro-batch of this process; none when the step was skipped.
            facts: more numbers for the log, as they are.
            waited: seconds that the step waited for its data.
            keys: of pre-training, for the similarity of different images.
        """
        config, done = self.config, step + 1
        ends = done % self.steps_per_epoch == 0
        self.stopwatch.step(waited)
        self.bad_images.add(bad)
        log_due = done == 1 or ends or done % config.log_every_steps == 0
        if log_due:
            self.bad_images.collect(self._epoch(done), self.steps_per_epoch * config.batch_size, ends=ends)
        if log_due and losses:
            self._log_step(done, losses, facts, keys)
        before = self.best
        if self.evaluation and self.evaluation.selects_best and self.evaluation.due(done):
            top1 = self.evaluation.run(self.learner.model, done)
            if top1 > before["top1"]:
                self.best = {"epoch": self._epoch(done), "top1": top1, "name": f"epoch_{self._epoch(done):04d}"}
            self.stopwatch.skip()
        stopping = self.stop.requested()
        name = self.best["name"] if self.best is not before else self._checkpoint_due(done, stopping)
        if name and not ends:
            self.bad_images.collect(self._epoch(done), self.steps_per_epoch * config.batch_size, ends=False, write=True)
        if name:
            self._save(name, done, before, must=stopping or done == self.last_step)
        if stopping and done < self.last_step:
            self.log.line("stopped", f"on request, at step {done:,}; saved {name}; continue with {option('resume')}")
            self.stopped = True
            return True
        for each in (self.evaluation, self.monitor):
            if each is not None and not each.selects_best and each.due(done):
                each.run(self.learner.model, done)
                self.stopwatch.skip()
        return False

    def ends_epochs(self, done: int, every: int) -> bool:
        """Whether `done` steps end an epoch that `every` divides, or the last one; so does 0."""
        epoch, within = divmod(done, self.steps_per_epoch)
        return within == 0 and (epoch % every == 0 or epoch == self.config.epochs)

    def _epoch(self, done: int) -> int:
        """The epoch, from 1, that the last of `done` steps belongs to."""
        return (done - 1) // self.steps_per_epoch + 1

    def _checkpoint_due(self, done: int, stopping: bool) -> str | None:
        """The name of the checkpoint to write after `done` steps, or None."""
        epoch, within = divmod(done, self.steps_per_epoch)
        every = self.config.checkpoint
        epoch_due = within == 0 and (epoch % every.every_epochs == 0 or done == self.last_step)
        if not (stopping or epoch_due or (every.every_steps and done % every.every_steps == 0)):
            return None
        return f"step_{done:08d}" if within else f"epoch_{epoch:04d}"

    def _log_step(self, done: int, losses: Sequence[Losses], facts: Mapping[str, float], keys: Keys | None) -> None:
        """One line of the log and one object of metrics.jsonl: every loss and accuracy by its name."""
        config = self.config
        values: dict[str, float] = {"step": done, "epoch": self._epoch(done), **mean_losses(losses)}
        values |= facts
        if keys is not None:
            values |= similarity(keys)
        if self.skipped is not None:
            values["nonfinite_steps"] = self.skipped
        else:
            check_finite("the loss", [values["loss"]], done, self.remedy())
        rate, waited, eta = self.stopwatch.read(config.batch_size, self.last_step - done)
        values |= {"images_per_second": rate, "data_share": waited, "peak_memory_mb": peak_memory_mb()}
        text = f"{describe_step(values)}  {rate:.0f} img/s  data {waited:.0%}  eta {eta}"
        within = (done - 1) % self.steps_per_epoch + 1
        self.log.progress(f"epoch {self._epoch(done)}/{config.epochs}", within, self.steps_per_epoch, text, record=True)
        self.log.metrics(values)
        if self.watchdog is not None:
            self.watchdog.check(values)

    def _save(self, name: str, done: int, best_before: dict[str, Any], *, must: bool) -> None:
        self._check_weights(done)
        if not dist.is_main():
            return
        with dist.uninterrupted():
            keep = self.best["name"] or None
            saved = self.checkpoints.save(name, self.snapshot(done), keep_also=keep, must=must)
        if saved is None:  # what is called the best must exist to be used
            self.best = best_before

    @paddle.no_grad()
    def _check_weights(self, done: int) -> None:
        """Raises RunError when a weight is not finite, before it is saved over good ones. Finite gradients can still
        overflow one: learning rate times gradient, or momentum, beyond float32."""
        weights = dict(self.learner.model.named_parameters())
        sums = paddle.stack([weight.sum() for weight in weights.values()]).numpy()
        if broken := [name for name, value in zip(weights, sums, strict=True) if not np.isfinite(value)]:
            what = f"weights are not finite ({listed(broken, quoted=False)})"
            raise RunError(f"step {done:,}: {what}; they were not saved. {self.remedy()}")

    def remedy(self, bad_since: int | None = None) -> str:
        """How to continue after numbers that are not finite, at every step since `bad_since` if it is given."""
        config, newest = self.config, self.checkpoints.newest()
        how = f"a lower optimizer.lr (the rate is {float(self.learner.optimizer.get_lr()):g} now)"
        if config.amp.enabled and config.amp.dtype == "float16":
            how += ", or amp.dtype: bfloat16"
        if newest is None:
            return f"There is no checkpoint yet: start again with {how}"
        if bad_since is not None:
            return (
                f"All steps since {bad_since:,} were like that, so the weights had diverged by then: continue from a "
                f"checkpoint well before it ({option('resume', 'PATH')}; the newest is {newest}) with {how}"
            )
        return f"Continue from {newest} ({option('resume', 'auto')}) with {how}"

    def snapshot(self, done: int, **state: Any) -> Snapshot:
        """The state after `done` steps; `state` replaces entries of state.json."""
        learner, config = self.learner, self.config
        entries = {"task": config.task, **self.facts, "scaler": scaler_state(learner.scaler)}
        entries["config"] = config.model_dump(mode="json", exclude={"output_dir"})  # the same bytes wherever it lies
        before = self.start.state if self.start else {}
        entries["config_since"] = self.first_step if self.changes else before.get("config_since", 0)
        changed = [{"step": self.first_step, **asdict(change)} for change in self.changes]
        entries["changes"] = [*before.get("changes", []), *changed]
        entries["bad_in_epoch"] = self.bad_images.in_epoch
        if self.evaluation is not None and self.evaluation.selects_best:
            entries["best"] = self.best
        if self.skipped is not None:
            entries["nonfinite_steps"] = self.skipped
        epoch, classes = done // self.steps_per_epoch, self.facts.get("classes")
        card = run_card(
            config, epoch=epoch, step=done, classes=None if classes is None else tuple(classes), parents=self.parents
        )
        return Snapshot(
            done, learner.model.state_dict(), optimizer_state(learner.optimizer, learner.model), entries | state, card
        )

    def report(self) -> None:
        """Write the report of a run that was not asked to stop, as its config says; the main process does."""
        if self.config.report and dist.is_main() and not self.stopped:
            from passl_densecl.visualize.report import write_report

            folder, stop = self.config.run_dir, self.stop
            write_report(folder, self.log.line, images=self.images, is_wanted=lambda: stop.signal is None)


@contextmanager
def open_run(config: C, resume: Resume, *, refuse_new: str | None = None) -> Iterator[Run[C]]:
    """The run folder locked for this run, its log open, signals handled, and the processes connected until the end.

    `refuse_new` says why no new run can start; with it only a checkpoint can be continued. Nothing in the folder
    changes before `Run.begin`. Raises InputError.
    """
    with StopRequest() as stop, locked(config.run_dir) as warning:
        checkpoints = Checkpoints(config.run_dir, config.checkpoint.keep)
        start = find_start(config.run_dir, checkpoints, resume.path, resume.overwrite)
        if start is None and refuse_new:
            raise InputError(refuse_new)
        changes = []
        if start is not None:
            from passl_densecl.engine.record import check_settings  # a new run needs none of it

            changes = check_settings(start, config, accept_changes=resume.accept_changes)
        device_note = set_device(config.device)
        log = checkpoints.log = open_log(config, resumed=start is not None)
        run = Run(config, start, checkpoints, log, resume.overwrite, changes, stop)
        try:
            for text in filter(None, (warning, device_note)):
                log.line("warning", text)
            with process_group.running(config.dist_timeout):
                run.check_start()
                yield run
            run.report()
        finally:
            log.close()


def find_start(
    run_dir: Path, checkpoints: Checkpoints, resume: str | None, overwrite: bool = False
) -> Checkpoint | None:
    """The checkpoint to continue from, complete and undamaged; None for a new run.

    Raises InputError when a new run would write into a folder that holds one, when the named checkpoint is damaged, or
    when all are.
    """
    if overwrite and resume is not None:
        raise InputError(
            f"give {option('resume')} (continue the run) or {option('overwrite')} (start it anew), not both"
        )
    if resume is not None:
        from passl_densecl.reliability import restore  # a new run reads no checkpoint

        return restore.find(run_dir, checkpoints, resume)
    newest = checkpoints.newest() or next(reversed(checkpoints.present()), None)
    metrics = run_dir / "metrics.jsonl"
    if not overwrite and (newest or (metrics.is_file() and metrics.stat().st_size)):
        raise InputError(
            f"output_dir {str(run_dir)!r} already holds a run ({newest.name if newest else 'no checkpoint yet'}); "
            f"continue it with {option('resume')}, start another with name=NAME, or replace it with "
            f"{option('overwrite')}"
        )
    return None


def mean_losses(losses: Sequence[Losses]) -> dict[str, float]:
    """The mean of each loss over the micro-batches of all processes."""
    table = paddle.stack([paddle.stack([value.detach() for value in each.values()]) for each in losses])
    return dict(zip(losses[0], dist.all_reduce_mean(table.mean(axis=0)), strict=True))


def describe_step(values: Mapping[str, float]) -> str:
    """'loss 7.91 (global 7.62, dense 8.20)  top-1 12.4% and 3.1% dense  queue 40%', by the names of the values."""
    terms = {name.removesuffix("_loss"): value for name, value in values.items() if name.endswith("_loss")}
    accuracies = {name.removesuffix("_top1"): value for name, value in values.items() if name.endswith("_top1")}
    loss = f"loss {values['loss']:.{2 if terms else 3}f}"
    if len(terms) > 1:
        loss += f" ({', '.join(f'{name} {value:.2f}' for name, value in terms.items())})"
    (_, first), *others = accuracies.items()
    text = f"{loss}  top-1 {first:.1%}" + "".join(f" and {value:.1%} {name}" for name, value in others)
    if values.get("queue_fill", 1) < 1:
        text += f"  queue {values['queue_fill']:.0%}"
    return text + (f"  {values['nonfinite_steps']} not finite" if values.get("nonfinite_steps") else "")
