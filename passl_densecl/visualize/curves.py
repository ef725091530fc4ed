"""How runs went: losses with their chance lines, top-1s, accuracy, speed. No Paddle is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from passl_densecl.config import PretrainConfig
from passl_densecl.errors import InputError
from passl_densecl.visualize.runs import Run, smoothed
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
    scale: float = 1.0  # from what is logged to the unit
    chance: str | None = None  # the metric that tells the chance level
    zero: bool = False  # the axis begins at 0
    most: float | None = None  # the axis ends there at the most


_LOSS, _PERCENT = "loss (nats)", "%"
PANELS = (
    Panel("global_loss", "Global loss", _LOSS, chance="chance"),
    Panel("dense_loss", "Dense loss", _LOSS, chance="chance"),
    Panel("loss", "Loss", _LOSS),
    Panel("global_top1", "Global head: positive beats all negatives", _PERCENT, 100, zero=True, most=100),
    Panel("dense_top1", "Dense head: positive beats all negatives", _PERCENT, 100, zero=True, most=100),
    Panel("train_top1", "Training top-1", _PERCENT, 100, zero=True, most=100),
    Panel("val_top1", "Validation top-1", _PERCENT, 100, zero=True, most=100),
    Panel("val_top5", "Validation top-5", _PERCENT, 100, zero=True, most=100),
    Panel("images_per_second", "Speed", "images/s", zero=True),
    Panel("data_share", "Time spent waiting for data", _PERCENT, 100, zero=True),
)
_KNOWN = {panel.key for panel in PANELS}
_SHARES = ("top1", "top5", "miou", "accuracy")  # endings of metrics that are shares from 0 to 1


def panels_of(runs: list[Run]) -> list[Panel]:
    """The panels for which some run has values: the known ones, and whatever else is named like an accuracy."""
    present = list(dict.fromkeys(key for run in runs for key in run.keys()))  # noqa: SIM118
    pretraining = "global_loss" in present
    found = [
        panel
        for panel in PANELS
        if panel.key in present
        and len(_drawable(runs, panel.key))
        # The sum of two losses says nothing that they do not say, and λ makes it jump.
        and not (panel.key == "loss" and pretraining and all(len(run.series("global_loss")[0]) for run in runs))
    ]
    others = [key for key in present if key not in _KNOWN and key.endswith(_SHARES) and len(_drawable(runs, key))]
    extra = [Panel(key, key.replace("_", " "), _PERCENT, 100, zero=True, most=100) for key in others]
    at = next((n for n, panel in enumerate(found) if panel.key == "images_per_second"), len(found))
    return [*found[:at], *extra, *found[at:]]


def _drawable(runs: list[Run], key: str) -> list[Run]:
    return [run for run in runs if len(run.series(key)[0])]


def in_epochs(runs: list[Run]) -> bool:
    """Whether all runs tell their steps per epoch; else the axis counts steps."""
    return all(run.steps_per_epoch for run in runs)


def window_of(run: Run) -> int:
    """Logged steps over which a curve is averaged: odd, about a twentieth of them."""
    count = len(run.metrics)
    return max(1, count // 20) // 2 * 2 + 1


def names_of(runs: list[Run]) -> list[str]:
    """A name for each run: of its folder, with the folder above where two are the same."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{run.path.resolve().parent.name}/{run.name}" for run in runs]
    return [name if names.count(name) == 1 else f"{name} [{n + 1}]" for n, name in enumerate(names)]


@styled
def draw_curves(runs: list[Run], *, title: str = "", columns: int = 2) -> Figure:
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

        handles = [
            Line2D(
                [], [], color=SERIES[n % len(SERIES)], ls=LINES[n % len(LINES)], lw=2, label=f"{name}: {run.state()}"
            )
            for n, (name, run) in enumerate(zip(names_of(runs), runs, strict=True))
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=1, handlelength=3.5)
    first = f"{runs[0].name} · {runs[0].state()}" if len(runs) == 1 else f"{len(runs)} runs"
    heading(figure, title or first, _how_to_read(runs))
    return figure


def _how_to_read(runs: list[Run]) -> str:
    window = max(window_of(run) for run in runs)
    unread = sum(run.unread for run in runs)
    notes = [f"bold: mean over {window} logged steps, pale: as logged"] if window > 1 else []
    if unread:
        notes.append(f"{unread} incomplete {'line' if unread == 1 else 'lines'} of metrics.jsonl left out")
    return "; ".join(notes)


@styled
def draw_panel(panel: Panel, runs: list[Run], *, width: float = 4.6, height: float = 2.5) -> Figure:
    """One metric on a figure of its own."""
    figure = new_figure(width, height)
    _draw_panel(figure.add_subplot(), panel, runs)
    return figure


def _draw_panel(axes: Axes, panel: Panel, runs: list[Run]) -> None:
    from matplotlib.ticker import MaxNLocator

    epochs = in_epochs(runs)
    chances: set[float] = set()
    highest = 0.0
    for number, run in enumerate(runs):
        steps, values = run.series(panel.key)
        if not len(steps):
            continue
        x = steps / run.steps_per_epoch if epochs and run.steps_per_epoch else steps
        y = values * panel.scale
        window = window_of(run) if len(steps) > 20 else 1
        smooth = smoothed(y, window)
        color, line = SERIES[number % len(SERIES)], LINES[number % len(LINES)]
        if window > 1:
            axes.plot(x, y, color=color, lw=0.8, alpha=0.3, zorder=1)
        few = len(steps) <= 20
        axes.plot(x, smooth, color=color, lw=2, ls=line, marker="o" if few else None, ms=4, zorder=2)
        if len(runs) == 1:
            last = f"{smooth[-1]:.2f}" if panel.unit == _LOSS else f"{smooth[-1]:.1f}"
            axes.annotate(
                last,
                (x[-1], smooth[-1]),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                color=color,
                fontweight="bold",
                annotation_clip=False,
            )
        if panel.chance:
            chances |= {round(float(value), 3) for value in run.series(panel.chance)[1]}
        highest = max(highest, float(y.max()))
        if len(runs) == 1:
            _mark_lambda(axes, panel, run, epochs)
    for chance in sorted(chances):
        axes.axhline(chance, color=GRAY, lw=1.2, ls=(0, (2, 2)), zorder=0)
        axes.annotate(
            f"chance ln(K+1) = {chance:.2f}",
            (1, chance),
            xycoords=axes.get_yaxis_transform(),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8.5,
            color="#555555",
        )
    axes.set_title(panel.title)
    axes.set_ylabel(panel.unit)
    axes.set_xlabel("epoch" if epochs else "step")
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    if not epochs:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlim(left=0)
    if panel.zero:
        axes.set_ylim(bottom=0)
        if panel.most is not None and highest > 0.6 * panel.most:
            axes.set_ylim(top=panel.most)
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def _mark_lambda(axes: Axes, panel: Panel, run: Run, epochs: bool) -> None:
    """Where the dense loss begins to count."""
    config = run.config
    if not isinstance(config, PretrainConfig) or not panel.key.startswith("dense_"):
        return
    warmup = config.model.loss_lambda_warmup_steps
    if not warmup or warmup > run.last_step:
        return
    at = warmup / run.steps_per_epoch if epochs and run.steps_per_epoch else warmup
    axes.axvspan(0, at, color=PALE, alpha=0.5, lw=0, zorder=0)
    axes.text(
        at,
        0.02,
        "not trained yet: λ = 0 ",
        transform=axes.get_xaxis_transform(),
        ha="right",
        va="bottom",
        fontsize=8.5,
        color=INK,
    )


def key_figures(run: Run) -> list[tuple[str, str]]:
    """(what, value with its unit) of the run in a few lines; last values are means as the curves show them."""
    found: list[tuple[str, str]] = [("State", run.state())]
    chance = run.series("chance")[1]
    for panel in panels_of([run]):
        steps, values = run.series(panel.key)
        y = values * panel.scale
        end = float(smoothed(y, window_of(run) if len(steps) > 20 else 1)[-1])
        if panel.unit == _LOSS:
            level = f" (chance {chance[-1]:.2f})" if panel.chance and len(chance) else ""
            found.append((panel.title, f"{end:.2f} nats{level}"))
        elif panel.key in ("images_per_second", "data_share"):
            unit = "images/s" if panel.key == "images_per_second" else "%"
            found.append((panel.title, f"{np.median(y):.1f} {unit} (median)"))
        else:
            best = f", best {y.max():.1f} %" if panel.key.startswith("val") else ""
            found.append((panel.title, f"{end:.1f} %{best}"))
    memory = run.series("peak_memory_mb")[1]
    if len(memory):
        found.append(("Peak memory", f"{memory.max():,.0f} MiB (main process)"))
    return found
