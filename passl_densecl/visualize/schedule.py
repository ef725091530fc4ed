"""Learning rate and λ over a run, before it starts. Needs no Paddle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from passl_densecl.config import Config, PretrainConfig
from passl_densecl.errors import InputError
from passl_densecl.schedules import StepDecay
from passl_densecl.visualize.style import BLUE, GREEN, INK, PALE, WIDTH, heading, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS = 4000  # per curve; no picture has more pixels


@dataclass(frozen=True)
class Plan:
    """Values that the training loop sets at N steps."""

    steps: np.ndarray  # (N,) int64, from 0
    lr: np.ndarray  # (N,)
    loss_lambda: np.ndarray | None  # (N,); None for linear evaluation
    steps_per_epoch: int
    epochs: int


def plan(config: Config, steps_per_epoch: int) -> Plan:
    """Learning rate and λ as in the training loop.

    Raises:
        InputError: an epoch has no complete step.
    """
    if steps_per_epoch < 1:
        raise InputError(f"{steps_per_epoch} steps per epoch: fewer images than batch_size {config.batch_size}")
    total = steps_per_epoch * config.epochs
    steps = np.unique(np.linspace(0, total - 1, min(total, _POINTS)).round().astype(np.int64))
    breaks = [np.arange(config.epochs) * steps_per_epoch, [config.schedule.warmup_epochs * steps_per_epoch]]
    if isinstance(config, PretrainConfig):
        breaks.append([config.model.lambda_warmup(steps_per_epoch)])
    # The steps around every possible jump, so that a jump is drawn as one.
    sharp = np.concatenate([np.floor(np.concatenate(breaks)) + shift for shift in (-1, 0, 1)]).astype(np.int64)
    steps = np.unique(np.concatenate([steps, sharp[(sharp >= 0) & (sharp < total)]]))
    factors = [config.schedule(int(s), steps_per_epoch=steps_per_epoch, epochs=config.epochs) for s in steps]
    loss_lambda = None
    if isinstance(config, PretrainConfig):
        model = config.model
        loss_lambda = np.where(steps >= model.lambda_warmup(steps_per_epoch), model.loss_lambda, 0.0)
    return Plan(
        steps, np.asarray([config.base_lr * factor for factor in factors]), loss_lambda, steps_per_epoch, config.epochs
    )


@styled
def draw_schedule(
    config: Config, planned: Plan, *, title: str | None = "", width: float = WIDTH, height: float | None = None
) -> Figure:
    """Learning rate, and for pre-training λ below it, over epochs (steps on the upper axis), warm-ups shaded.

    The figure is `width`×`height` inches; without a title there is no text above.
    """
    from matplotlib.ticker import MaxNLocator

    rows = 1 if planned.loss_lambda is None else 2
    figure = new_figure(width, height or (3.6 if rows == 1 else 5.0))
    panels = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=[2, 1][:rows])[:, 0]
    epochs = planned.steps / planned.steps_per_epoch
    top = panels[0]
    top.plot(epochs, planned.lr, color=BLUE, lw=2)
    top.set_ylabel("learning rate")
    top.set_ylim(0, float(planned.lr.max()) * 1.3)  # room for the label above the curve
    top.set_xlim(0, planned.epochs)
    per_epoch = planned.steps_per_epoch
    steps = top.secondary_xaxis("top", functions=(lambda epoch: epoch * per_epoch, lambda step: step / per_epoch))
    steps.set_xlabel("step")
    steps.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    warmup = config.schedule.warmup_epochs
    if warmup:
        _shade(top, warmup, f"warm-up: {warmup:g} {'epoch' if warmup == 1 else 'epochs'}")
    for milestone in config.schedule.milestones if isinstance(config.schedule, StepDecay) else ():
        if milestone < planned.epochs:
            top.axvline(milestone, color=PALE, lw=1, zorder=0)
    if planned.loss_lambda is not None and isinstance(config, PretrainConfig):
        _draw_lambda(panels[1], config, planned, epochs)
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    if title is not None:
        heading(figure, title, *describe(config, planned))
    return figure


def describe(config: Config, planned: Plan) -> tuple[str, str]:
    """Two lines: the shape of the learning rate with its peak, and the length of the run."""
    sgd = config.optimizer
    scaled = "" if config.base_lr == sgd.lr else f" ({sgd.lr:g} for batch {sgd.reference_batch_size})"
    return (
        f"{_shape(config)}; peak {planned.lr.max():.4g}{scaled}",
        f"{planned.epochs} epochs × {planned.steps_per_epoch:,} steps, batch {config.batch_size}",
    )


def _draw_lambda(axes: Axes, config: PretrainConfig, planned: Plan, epochs: np.ndarray) -> None:
    assert planned.loss_lambda is not None
    axes.plot(epochs, planned.loss_lambda, color=GREEN, lw=2)
    axes.set_ylabel("λ (dense loss)")
    axes.set_yticks([0, 0.5, 1])
    axes.set_ylim(-0.05, 1.55)  # room for the label above the curve
    warmup = config.model.lambda_warmup(planned.steps_per_epoch)
    if warmup and config.model.loss_lambda:
        _shade(axes, min(warmup / planned.steps_per_epoch, planned.epochs), f"λ = 0 for {warmup:,} steps")
    elif not config.model.loss_lambda:
        axes.text(0.01, 0.5, "λ = 0 throughout: MoCo-v2", transform=axes.transAxes, color=INK, fontsize=9)


def _shade(axes: Axes, until: float, text: str) -> None:
    axes.axvspan(0, until, color=PALE, alpha=0.55, lw=0, zorder=0)
    side = "left" if until < 0.6 * axes.get_xlim()[1] else "right"  # of the boundary, where there is more room
    axes.text(until, 0.97, f" {text} ", transform=axes.get_xaxis_transform(), va="top", ha=side, fontsize=9, color=INK)


def _shape(config: Config) -> str:
    schedule = config.schedule
    if isinstance(schedule, StepDecay):
        return f"learning rate × {schedule.gamma:g} at epochs {', '.join(map(str, schedule.milestones))}"
    return {"cosine": "learning rate: half a cosine", "constant": "constant learning rate"}[schedule.name] + (
        f", set per {schedule.per}" if schedule.name == "cosine" else ""
    )
