"""Curves of runs: losses with their chance lines, accuracies, speed. Needs no Paddle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from passl_densecl.config import PretrainConfig
from passl_densecl.errors import InputError
from passl_densecl.text import duration, megabytes, plural, quantity
from passl_densecl.visualize.runs import RecordedRun, smoothed
from passl_densecl.visualize.style import GRAY, LINES, PALE, SERIES, WIDTH, heading, new_figure, styled

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


_LOSS, _PERCENT, _COSINE = "loss (nats)", "%", "cosine"
_FULL_SCALE = 100  # %: the end of the axis where values come near it
_SPEED = (
    Panel("images_per_second", "Speed", "images/s"),
    Panel("data_share", "Time spent waiting for data", _PERCENT, 100),
)
_SHARES = ("top1", "top5", "miou", "accuracy", "_r2")  # endings of metrics that are shares from 0 to 1
_WORDS = {"train": "Training", "val": "Validation", "knn": "k-NN", "top1": "top-1", "top5": "top-5", "miou": "mIoU"}
_WORDS |= {"r2": "R²"}
EVALUATED = ("knn_", "val_", "correspondence_", "place_")  # beginnings of what is measured of checkpoints


def panels_of(runs: list[RecordedRun]) -> list[Panel]:
    """The panels for which some run has values.

    They are found by name, in the order of metrics.jsonl: `TERM_loss`, `TERM_top1`, `TERM_similarity` of a loss term;
    `loss` (only where the terms are not logged: it is their weighted sum, and λ makes it jump); other shares.
    """
    names = dict.fromkeys(key for run in runs for key in run.keys())  # noqa: SIM118
    keys = [key for key in names if any(_has_values(run, key) for run in runs)]
    terms = [key.removesuffix("_loss") for key in keys if key.endswith("_loss")]
    panels = [_loss_panel(f"{term}_loss", f"{_capital(term)} loss", f"{term}_top1" in keys) for term in terms]
    if "loss" in keys and not all(any(_has_values(run, f"{term}_loss") for term in terms) for run in runs):
        panels.append(_loss_panel("loss", "Loss", False))
    contrastive = [f"{term}_top1" for term in terms if f"{term}_top1" in keys]
    others = [key for key in keys if key.endswith(_SHARES) and key not in contrastive]
    panels += [Panel(key, _share_title(key, terms), _PERCENT, 100) for key in contrastive]
    panels += [
        Panel(f"{term}_similarity", f"{_capital(term)} keys: similarity of different images", _COSINE)
        for term in terms
        if f"{term}_similarity" in keys
    ]
    panels += [Panel(key, _share_title(key, terms), _PERCENT, 100) for key in others]
    return panels + [panel for panel in _SPEED if panel.key in keys]


def _loss_panel(key: str, title: str, chance: bool) -> Panel:
    return Panel(key, title, _LOSS, chance=chance, from_zero=False)


def _share_title(key: str, terms: list[str]) -> str:
    term, _, rest = key.rpartition("_")
    if rest == "top1" and term in terms:
        return f"{_capital(term)} head: positive beats all negatives"
    return readable(key)


def readable(key: str) -> str:
    """The name of a metric in words: "knn_top1" → "k-NN top-1"."""
    words = [_WORDS.get(word, word) for word in key.split("_")]
    return " ".join(words) if words[0] in _WORDS.values() else _capital(" ".join(words))


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


def is_smoothed(runs: list[RecordedRun], panels: list[Panel]) -> bool:
    """Whether some curve is drawn twice: bold as a mean, and pale as logged."""
    return any(window_of(run) > 1 and len(run.series(panel.key)[0]) > _FEW for run in runs for panel in panels)


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
    heading(figure, title or first, _how_to_read(runs, panels))
    return figure


def _how_to_read(runs: list[RecordedRun], panels: list[Panel]) -> str:
    unread = sum(run.unread for run in runs)
    window = max(window_of(run) for run in runs)
    notes = [f"bold: mean over {window} logged steps, pale: as logged"] if is_smoothed(runs, panels) else []
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
    axes.set_xlabel("epoch" if epochs else "step")
    for number, run in present:
        _draw_run(axes, panel, run, number, epochs)
    if len(runs) == 1 and present:
        _mark_last(axes, panel)
        _mark_lambda(axes, panel, runs[0], epochs)
    if panel.chance:
        values = {round(float(value), 3) for _, run in present for value in run.series("chance")[1]}
        for chance in sorted(values):
            _mark_level(axes, chance, f"chance ln(K+1) = {chance:.2f}")
    if panel.unit == _COSINE:
        _mark_level(axes, 1, "1: all images alike (collapsed)")
        axes.set_ylim(top=max(1.2, axes.get_ylim()[1]))
    axes.set_title(panel.title)
    axes.set_ylabel(panel.unit)
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    if not epochs:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ends = [float(_positions(run, run.series(panel.key)[0], epochs).max()) for _, run in present]
    axes.set_xlim(0, max([*ends, 1e-9]))  # no margin: the last value stands beside the axis, not on it
    if panel.from_zero:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]) if panel.unit == _COSINE else 0)
    highest = max((float(run.series(panel.key)[1].max()) * panel.scale for _, run in present), default=0.0)
    # What a damaged file says of more than all has its own scale: a label far outside of the axes cannot be drawn.
    if panel.unit == _PERCENT and panel not in _SPEED and 0.6 * _FULL_SCALE < highest <= _FULL_SCALE:
        axes.set_ylim(top=_FULL_SCALE)
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def _draw_run(axes: Axes, panel: Panel, run: RecordedRun, number: int, epochs: bool) -> None:
    steps, values = run.series(panel.key)
    x, y, few = _positions(run, steps, epochs), values * panel.scale, len(steps) <= _FEW
    color, line = SERIES[number % len(SERIES)], LINES[number % len(LINES)]
    smooth = _smooth(run, y)
    if smooth is not y:
        axes.plot(x, y, color=color, lw=0.8, alpha=0.3, zorder=1, clip_on=False)
    axes.plot(x, smooth, color=color, lw=2, ls=line, marker="o" if few else None, ms=4, zorder=2, clip_on=False)
    errors = _errors(run, panel.key)
    if len(errors) == len(y):
        axes.errorbar(x, y, errors * panel.scale, fmt="none", ecolor=color, elinewidth=1, zorder=1, clip_on=False)


def _positions(run: RecordedRun, steps: np.ndarray, epochs: bool) -> np.ndarray:
    """(N,) steps → positions on the horizontal axis."""
    return steps / run.steps_per_epoch if epochs and run.steps_per_epoch else steps


def _errors(run: RecordedRun, key: str) -> np.ndarray:
    """(N,) standard errors of an accuracy, where they are logged: `knn_standard_error` of `knn_top1`."""
    return run.series(key.rpartition("_")[0] + "_standard_error")[1]


def _smooth(run: RecordedRun, values: np.ndarray) -> np.ndarray:
    """The mean over the run's window; the values themselves where there are few."""
    return smoothed(values, window_of(run)) if len(values) > _FEW else values


_NOTE: dict[str, Any] = {"fontsize": 8.5, "textcoords": "offset points"}


def _mark_last(axes: Axes, panel: Panel) -> None:
    """The last value of the only run, beside the end of its curve."""
    curve = axes.lines[-1]
    x, y = np.asarray(curve.get_xdata()), np.asarray(curve.get_ydata())
    text = f"{y[-1]:.1f}" if panel.unit not in (_LOSS, _COSINE) else f"{y[-1]:.2f}"
    style = _NOTE | {"fontsize": 9, "fontweight": "bold", "color": curve.get_color(), "annotation_clip": False}
    axes.annotate(text, (x[-1], y[-1]), xytext=(6, 0), va="center", **style)


def _mark_level(axes: Axes, level: float, text: str) -> None:
    """A dotted line at a value, named above it."""
    axes.axhline(level, color=GRAY, lw=1.2, ls=(0, (2, 2)), zorder=0)
    at = {"xy": (1, level), "xycoords": axes.get_yaxis_transform(), "xytext": (0, 3), "ha": "right"}
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5}
    axes.annotate(text, color="#555555", va="bottom", bbox=box, zorder=3, **at, **_NOTE)


def _mark_lambda(axes: Axes, panel: Panel, run: RecordedRun, epochs: bool) -> None:
    """The steps in which the dense loss has no weight yet; said below the axis, where no curve runs."""
    config = run.config
    if not isinstance(config, PretrainConfig) or not panel.key.startswith("dense_"):
        return
    warmup = config.model.lambda_warmup(run.steps_per_epoch or 0)  # 0: not known yet
    if not warmup or warmup > run.last_step:
        return
    axes.axvspan(0, float(_positions(run, np.asarray(warmup), epochs)), color=PALE, alpha=0.5, lw=0, zorder=0)
    axes.set_xlabel(f"{axes.get_xlabel()}   (gray: λ = 0, the dense loss does not count yet)")


def has_errors(run: RecordedRun, panel: Panel) -> bool:
    """Whether the values are drawn with their standard errors."""
    return len(_errors(run, panel.key)) > 0


def last_values(run: RecordedRun) -> dict[str, tuple[float, str]]:
    """Title of a panel → (its last value, smoothed as in the curves, unit)."""
    panels = [panel for panel in panels_of([run]) if panel not in _SPEED]
    ends = {panel: float(_smooth(run, run.series(panel.key)[1])[-1]) * panel.scale for panel in panels}
    units = {_LOSS: "nats", _COSINE: ""}
    return {panel.title: (end, units.get(panel.unit, panel.unit)) for panel, end in ends.items()}


def key_figures(run: RecordedRun) -> list[tuple[str, str]]:
    """(metric, value with its unit) of the run; last values are smoothed as in the curves."""
    figures: list[tuple[str, str]] = [("State", run.state())]
    chance, ends = run.series("chance")[1], last_values(run)
    for panel in (panel for panel in panels_of([run]) if panel not in _SPEED):
        steps, values = run.series(panel.key)
        y, (end, unit) = values * panel.scale, ends[panel.title]
        if panel.unit == _LOSS:
            value = f"{end:.2f} {unit}" + (f" (chance {chance[-1]:.2f})" if panel.chance and len(chance) else "")
        elif panel.unit == _COSINE:
            value = f"{end:.2f} (1: collapsed)"
        else:
            errors = _errors(run, panel.key)
            error = f" ± {panel.scale * errors[-1]:.1f}" if len(errors) else ""
            best = f", best {y.max():.1f} %" if panel.key.startswith(("val", "knn")) else ""
            start = f", before training {y[0]:.1f} %" if steps[0] == 0 and len(y) > 1 else ""
            value = f"{end:.1f}{error} %{best}{start}"
        figures.append((panel.title, value))
    return figures


def cost_figures(run: RecordedRun) -> list[tuple[str, str]]:
    """(what, value with its unit): the device, and how much of its time and memory the run took."""
    figures = [("Device", _device(run.environment))] if run.environment else []
    steps, speeds = run.series("images_per_second")
    if len(speeds) and run.config is not None:
        images = np.diff(steps, prepend=0) * run.config.batch_size
        seconds = float((images / np.maximum(speeds, 1e-9)).sum())
        figures.append(
            ("Training", f"{duration(seconds)} for {quantity(int(steps[-1]), 'step')}, {int(images.sum()):,} images")
        )
        devices = run.environment.get("processes", 1)
        if run.environment.get("devices") and isinstance(devices, int):
            figures.append(("GPU time", f"{devices * seconds / 3600:,.2f} GPU hours"))
    if len(evaluations := run.series("seconds")[1]):
        figures.append(
            (
                "k-NN while training",
                f"{duration(float(evaluations.sum()))} for {quantity(len(evaluations), 'evaluation')}",
            )
        )
    for panel in _SPEED:
        if len(values := run.series(panel.key)[1] * panel.scale):
            figures.append((panel.title, f"{np.median(values):.1f} {panel.unit} (median)"))
    memory = run.series("peak_memory_mb")[1]
    if len(memory):
        figures.append(("Peak memory", f"{memory.max():,.0f} MiB (main process)"))
    sizes = [file.stat().st_size for file in run.path.glob("checkpoints/*/*") if file.is_file()]
    if sizes:
        count = len({file.parent for file in run.path.glob("checkpoints/*/*")})
        figures.append(("On disk", f"{quantity(count, 'checkpoint')}, {megabytes(sum(sizes))}"))
    return figures


def _device(environment: dict[str, Any]) -> str:
    count, names = environment.get("processes", 1), environment.get("devices")
    name = (
        ", ".join(map(str, names)) if isinstance(names, list) and names else str(environment.get("device", "unknown"))
    )
    cores = f" ({environment['cpu_count']} cores)" if name == "cpu" and "cpu_count" in environment else ""
    return f"{count} × {name}{cores}"
