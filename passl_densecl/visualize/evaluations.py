"""Results of evaluations: the table that was printed, read back as cells and figures with errors. Needs no Paddle."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from passl_densecl.visualize.style import GRAY, LINES, MARKERS, SERIES, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANDOM = "random"  # the column of untrained weights
_TITLES = {
    "knn": "k-NN",
    "linear": "Linear classifier on frozen features",
    "multihead": "Linear classifier at each stage",
    "svm": "Linear SVM, mean average precision",
    "lowshot": "Linear SVM on few images, mean average precision",
    "semi": "Fine-tuned on few labels",
    "dense": "Segmentation by a linear head",
    "correspondence": "Correspondences between two crops of an image",
}
_PERCENT = re.compile(r"^([0-9.]+)(?: ± ([0-9.]+))? %")
_MOST_ROWS = 4  # of a table that are drawn


@dataclass(frozen=True)
class Table:
    """The printed table of an evaluation: a column for each of the weights that were judged."""

    what: str  # the first cell of its head: what was measured, on what
    columns: list[str]
    rows: list[tuple[str, ...]]  # (name, a cell for each column)
    notes: str  # text below it

    def values(self) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """(name, (columns,) percent, (columns,) its standard error or nan) of each row that holds percentages."""
        found = []
        for name, *cells in self.rows:
            parsed = [_PERCENT.match(cell) for cell in cells]
            if all(parsed):
                groups = [each.groups() for each in parsed if each]
                values, errors = (
                    np.array([float(part or "nan") for part in parts]) for parts in zip(*groups, strict=True)
                )
                found.append((name.strip(), values, errors))
        return found


def title_of(name: str, content: dict[str, Any]) -> str:
    """What a file of results holds, in words."""
    if name == "evaluation.json":
        return "Linear evaluation"
    return _TITLES.get(str(content.get("evaluation")), f"Results in {name}")


def read_table(content: dict[str, Any]) -> Table | None:
    """The table in an object that `densecl eval` wrote; None where it holds none, or another one."""
    lines = content["table"].splitlines() if isinstance(content.get("table"), str) else []
    if len(lines) < 3 or not re.fullmatch(r"─+(  ─+)+", lines[1]):
        return None
    spans = [match.span() for match in re.finditer("─+", lines[1])]
    rows: list[list[str]] = []
    for line in (lines[0], *lines[2:]):
        if len(line) > len(lines[1]) or any(line[end : end + 2].strip() for _, end in spans):
            break
        cells = [line[start:end] for start, end in spans]
        rows.append([cells[0].rstrip(), *(cell.strip() for cell in cells[1:])])
    if len(rows) < 2:
        return None
    head, *body = rows
    return Table(head[0], head[1:], [tuple(row) for row in body], "\n".join(lines[len(rows) + 1 :]))


def epochs_of(table: Table, steps_per_epoch: int | None) -> dict[int, float]:
    """Column → epoch, of the columns that are checkpoints of a run."""
    found = {}
    for number, column in enumerate(table.columns):
        match = re.search(r"(?:^|/)(epoch|step)_([0-9]{1,12})$", column)
        if match and (match[1] == "epoch" or steps_per_epoch):
            found[number] = int(match[2]) / (1 if match[1] == "epoch" else steps_per_epoch or 1)
    return found


@styled
def draw_checkpoints(table: Table, epochs: dict[int, float], title: str) -> Figure:
    """The rows of a table over the epochs of its checkpoints, with their errors; random weights as a dotted line."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(4.6, 2.9)
    axes = figure.add_subplot()
    columns = sorted(epochs, key=lambda column: epochs[column])
    x = [epochs[column] for column in columns]
    for number, (name, values, errors) in enumerate(table.values()[:_MOST_ROWS]):
        has_error = not np.isnan(errors).any()
        style = (
            {"color": SERIES[number], "marker": MARKERS[number], "ms": 5}
            if has_error
            else {"color": GRAY, "ls": LINES[number]}
        )
        axes.errorbar(
            x, values[columns], errors[columns] if has_error else None, lw=1.8, capsize=2, label=name, **style
        )
        if RANDOM in table.columns and has_error:
            at = values[table.columns.index(RANDOM)]
            axes.axhline(at, color=SERIES[number], lw=1.2, ls=(0, (2, 2)), label=f"{name}, random weights")
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    axes.set_ylabel("%")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower left", ncols=2)
    return figure


@styled
def draw_values(what: str, names: list[str], rows: list[tuple[str, np.ndarray, np.ndarray]]) -> Figure:
    """A line for each of N `names`, on it a point with error bars for each row: (name, (N,) percent, (N,) errors)."""
    rows = rows[:_MOST_ROWS]
    figure = new_figure(4.6, 1.1 + 0.2 * len(names) * max(1, len(rows)) + 0.22 * -(-len(rows) // 2))
    axes = figure.add_subplot()
    places = np.arange(len(names))[::-1]
    for number, (name, values, errors) in enumerate(rows):
        y = places - (number - (len(rows) - 1) / 2) * 0.6 / len(rows)
        style = {"color": SERIES[number], "marker": MARKERS[number], "ms": 5, "ls": "none", "capsize": 2}
        axes.errorbar(values, y, xerr=np.nan_to_num(errors), label=name, **style)
    axes.set_yticks(places, [name if len(name) <= 28 else f"…{name[-27:]}" for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel("%")
    axes.set_title(what)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower left", ncols=2)
    return figure
