"""Curves of runs: losses with their chance lines, accuracies, speed. Needs no Paddle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from passl_densecl.config import PretrainConfig
from passl_densecl.errors import InputError
from passl_densecl.text import plural
from passl_densecl.visualize.runs import RecordedRun, smoothed
from passl_densecl.visualize.style import GRAY, INK, LINES, PALE, SERIES, WIDTH, heading, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Panel:
    """One metric."""

    key: str
    title: str
    unit: str  # of the vertical axis
    scale: float = 1.0  # from the logged value to the unit
    chance: bool = False  # whether the chance level of the loss is drawn
    from_zero: bool = True  # whether the axis begins at 0


_LOSS, _PERCENT = "loss (nats)", "%"
_FULL_SCALE = 100  # %: the end of the axis where values come near it
_SPEED = (
    Panel("images_per_second", "Speed", "images/s"),
    Panel("data_share", "Time spent waiting for data", _PERCENT, 100),
)
_SHARES = ("top1", "top5", "miou", "accuracy")  # endings of metrics that are shares from 0 to 1
_PARTS = {"train": "Training", "val": "Validation"}


def panels_of(runs: list[RecordedRun]) -> list[Panel]:
    """The panels for which some run has values.

    Losses and accuracies are found by name, in the order of metrics.jsonl: `TERM_loss` and `TERM_top1` of a loss term,
    `loss` (only where the terms are not logged: it is their weighted sum, and λ makes it jump), and other shares.
    """
    names = dict.fromkeys(key for run in runs for key in run.keys())  # noqa: SIM118
    keys = [key for key in names if any(_has_values(run, key) for run in runs)]
    terms = [key.removesuffix("_loss") for key in keys if key.endswith("_loss")]
    panels = [_loss_panel(f"{term}_loss", f"{_capital(term)} loss", f"{term}_top1" in keys) for term in terms]
    if "loss" in keys and not all(any(_has_values(run, f"{term}_loss") for term in terms) for run in runs):
        panels.append(_loss_panel("loss", "Loss", False))
    contrastive = [f"{term}_top1" for term in terms if f"{term}_top1" in keys]
    others = [key for key in keys if key.endswith(_SHARES) and key not in contrastive]
    panels += [Panel(key, _share_title(key, terms), _PERCENT, 100) for key in [*contrastive, *others]]
    return panels + [panel for panel in _SPEED if panel.key in keys]


def _loss_panel(key: str, title: str, chance: bool) -> Panel:
    return Panel(key, title, _LOSS, chance=chance, from_zero=False)


def _share_title(key: str, terms: list[str]) -> str:
    first, _, rest = key.partition("_")
    if first in _PARTS and rest in ("top1", "top5"):
        return f"{_PARTS[first]} top-{rest[3:]}"
    if rest == "top1" and first in terms:
        return f"{_capital(first)} head: positive beats all negatives"
    return key.replace("_", " ")


def _capital(word: str) -> str:
    return word[:1].upper() + word[1:].replace("_", " ")


def _has_values(run: RecordedRun, key: str) -> bool:
    return len(run.series(key)[0]) > 0


def in_epochs(runs: list[RecordedRun]) -> bool:
    """Whether the steps per epoch of all runs are known; else the axis counts steps."""
    return all(run.steps_per_epoch for run in runs)


_FEW = 20  # values that are drawn as points, not smoothed


def window_of(run: RecordedRun) -> int:
    """Logged steps over which a curve is averaged: odd, about a twentieth of them."""
    count = len(run.metrics)
    return max(1, count // 20) // 2 * 2 + 1


def names_of(runs: list[RecordedRun]) -> list[str]:
    """A name for each run: its folder's, with the parent folder where two are equal."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{run.path.resolve().parent.name}/{run.name}" for run in runs]
    return [name if names.count(name) == 1 else f"{name} [{n + 1}]" for n, name in enumerate(names)]


@styled
def draw_curves(runs: list[RecordedRun], *, title: str = "", columns: int = 2) -> Figure:
    """All panels on one figure. Raises InputError when no run has anything to draw."""
    panels = panels_of(runs)
    if not panels:
        raise InputError("nothing to draw: no loss, accuracy or speed is logged in these runs yet")
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(WIDTH if columns > 1 else 5.4, rows * 2.15 + 0.9 + (0.22 * len(runs) if len(runs) > 1 else 0))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.ravel()[len(panels) :]:
        axes.set_axis_off()
    for panel, axes in zip(panels, grid.ravel(), strict=False):
        _draw_panel(axes, panel, runs)
    if len(runs) > 1:
        from matplotlib.lines import Line2D

        handles = []
        for n, (name, run) in enumerate(zip(names_of(runs), runs, strict=True)):
            options = {"color": SERIES[n % len(SERIES)], "ls": LINES[n % len(LINES)], "lw": 2}
            handles.append(Line2D([], [], label=f"{name}: {run.state()}", **options))
        figure.legend(handles=handles, loc="outside lower left", ncols=1, handlelength=3.5)
    first = f"{runs[0].name} · {runs[0].state()}" if len(runs) == 1 else f"{len(runs)} runs"
    heading(figure, title or first, _how_to_read(runs))
    return figure


def _how_to_read(runs: list[RecordedRun]) -> str:
    window = max(window_of(run) for run in runs)
    unread = sum(run.unread for run in runs)
    notes = [f"bold: mean over {window} logged steps, pale: as logged"] if window > 1 else []
    if unread:
        notes.append(f"{unread} incomplete {plural(unread, 'line')} of metrics.jsonl left out")
    return "; ".join(notes)


@styled
def draw_panel(panel: Panel, runs: list[RecordedRun], *, width: float = 4.6, height: float = 2.5) -> Figure:
    """One metric on a figure of its own."""
    figure = new_figure(width, height)
    _draw_panel(figure.add_subplot(), panel, runs)
    return figure


def _draw_panel(axes: Axes, panel: Panel, runs: list[RecordedRun]) -> None:
    from matplotlib.ticker import MaxNLocator

    epochs = in_epochs(runs)
    present = [(number, run) for number, run in enumerate(runs) if _has_values(run, panel.key)]
    for number, run in present:
        _draw_run(axes, panel, run, number, epochs)
    if len(runs) == 1 and present:
        _mark_last(axes, panel, runs[0])
        _mark_lambda(axes, panel, runs[0], epochs)
    if panel.chance:
        values = {round(float(value), 3) for _, run in present for value in run.series("chance")[1]}
        _mark_chance(axes, sorted(values))
    axes.set_title(panel.title)
    axes.set_ylabel(panel.unit)
    axes.set_xlabel("epoch" if epochs else "step")
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    if not epochs:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlim(left=0)
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    highest = max((float(run.series(panel.key)[1].max()) * panel.scale for _, run in present), default=0.0)
    if panel.unit == _PERCENT and panel not in _SPEED and highest > 0.6 * _FULL_SCALE:
        axes.set_ylim(top=_FULL_SCALE)
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def _draw_run(axes: Axes, panel: Panel, run: RecordedRun, number: int, epochs: bool) -> None:
    steps, values = run.series(panel.key)
    x = steps / run.steps_per_epoch if epochs and run.steps_per_epoch else steps
    y, few = values * panel.scale, len(steps) <= _FEW
    color, line = SERIES[number % len(SERIES)], LINES[number % len(LINES)]
    smooth = _smooth(run, y)
    if smooth is not y:
        axes.plot(x, y, color=color, lw=0.8, alpha=0.3, zorder=1)
    axes.plot(x, smooth, color=color, lw=2, ls=line, marker="o" if few else None, ms=4, zorder=2)


def _smooth(run: RecordedRun, values: np.ndarray) -> np.ndarray:
    """The mean over the run's window; the values themselves where there are few."""
    return smoothed(values, window_of(run)) if len(values) > _FEW else values


_NOTE: dict[str, Any] = {"fontsize": 8.5, "textcoords": "offset points"}


def _mark_last(axes: Axes, panel: Panel, run: RecordedRun) -> None:
    """The last value of the only run, at the end of its curve."""
    curve = axes.lines[-1]
    x, y = np.asarray(curve.get_xdata()), np.asarray(curve.get_ydata())
    text = f"{y[-1]:.2f}" if panel.unit == _LOSS else f"{y[-1]:.1f}"
    style = _NOTE | {"fontsize": 9, "fontweight": "bold", "color": curve.get_color(), "annotation_clip": False}
    axes.annotate(text, (x[-1], y[-1]), xytext=(4, 0), va="center", **style)


def _mark_chance(axes: Axes, chances: list[float]) -> None:
    for chance in chances:
        axes.axhline(chance, color=GRAY, lw=1.2, ls=(0, (2, 2)), zorder=0)
        at = {"xy": (1, chance), "xycoords": axes.get_yaxis_transform(), "xytext": (0, 3), "ha": "right"}
        axes.annotate(f"chance ln(K+1) = {chance:.2f}", color="#555555", **at, **_NOTE)


def _mark_lambda(axes: Axes, panel: Panel, run: RecordedRun, epochs: bool) -> None:
    """The steps in which the dense loss has no weight yet."""
    config = run.config
    if not isinstance(config, PretrainConfig) or not panel.key.startswith("dense_"):
        return
    warmup = config.model.loss_lambda_warmup_steps
    if not warmup or warmup > run.last_step:
        return
    at = warmup / run.steps_per_epoch if epochs and run.steps_per_epoch else warmup
    axes.axvspan(0, at, color=PALE, alpha=0.5, lw=0, zorder=0)
    axes.text(0.02, 0.02, "not trained yet: λ = 0", transform=axes.transAxes, va="bottom", fontsize=8.5, color=INK)


def key_figures(run: RecordedRun) -> list[tuple[str, str]]:
    """(metric, value with its unit) of the run; last values are smoothed as in the curves."""
    figures: list[tuple[str, str]] = [("State", run.state())]
    chance = run.series("chance")[1]
    for panel in panels_of([run]):
        y = run.series(panel.key)[1] * panel.scale
        end = float(_smooth(run, y)[-1])
        if panel.unit == _LOSS:
            level = f" (chance {chance[-1]:.2f})" if panel.chance and len(chance) else ""
            value = f"{end:.2f} nats{level}"
        elif panel in _SPEED:
            value = f"{np.median(y):.1f} {panel.unit} (median)"
        else:
            value = f"{end:.1f} %" + (f", best {y.max():.1f} %" if panel.key.startswith("val") else "")
        figures.append((panel.title, value))
    memory = run.series("peak_memory_mb")[1]
    if len(memory):
        figures.append(("Peak memory", f"{memory.max():,.0f} MiB (main process)"))
    return figures
