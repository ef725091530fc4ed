"""Several runs side by side: a single HTML file without scripts or external files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from passl_densecl.config import Config
from passl_densecl.disk import whole_file
from passl_densecl.errors import InputError, option
from passl_densecl.visualize import page
from passl_densecl.visualize.curves import (
    cost_figures,
    draw_panel,
    in_epochs,
    is_smoothed,
    key_figures,
    last_values,
    names_of,
    panels_of,
)
from passl_densecl.visualize.evaluations import RANDOM, Table, draw_values, epochs_of, read_table, title_of
from passl_densecl.visualize.runs import RecordedRun, read_result, read_run
from passl_densecl.visualize.settings import differences, settings
from passl_densecl.visualize.style import check_output, need_matplotlib

PARTS = 6  # of a comparison
Column = dict[str, str]  # row of a table → cell


def compare(
    runs: Sequence[Path],
    output: Path,
    *,
    results: Sequence[Path] = (),
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> list[str]:
    """Write a page that puts runs side by side; returns a reason for each missing part.

    Args:
        runs: two or more run folders, finished or not.
        output: the page, an .html file.
        results: JSON files of evaluations that judged several of the runs at once; those in the run folders are shown
            anyway.
        progress: called with the title of each of `PARTS` parts before it is made.

    Raises:
        InputError: fewer than two runs, one of them twice, something that is no run folder or no result, matplotlib is
            missing, or `output` exists.
    """
    need_matplotlib()
    check_output(output, (".html", ".htm"))
    if output.exists() and not overwrite:
        raise InputError(
            f"{option('output', output)}: exists already; choose another name, or replace it with {option('overwrite')}"
        )
    folders = [Path(run).resolve() for run in runs]
    if len(set(folders)) < max(2, len(folders)):
        raise InputError(f"expected two or more different run folders, got {len(set(folders))}")
    recorded = [read_run(Path(run), need_metrics=False) for run in runs]
    content, missing = build_comparison(recorded, [(path.name, read_result(path)) for path in results], progress)
    with whole_file(output) as file:
        file.write(content.encode("utf-8"))
    return missing


def build_comparison(
    runs: list[RecordedRun],
    results: Sequence[tuple[str, dict[str, Any]]] = (),
    progress: Callable[[str], None] | None = None,
) -> tuple[str, list[str]]:
    """The page, and a reason for each missing part, as :func:`passl_densecl.visualize.page.build_page`."""
    names = names_of(runs)
    sections: list[page.Section] = [
        ("Key figures", lambda: _figures(runs, names)),
        ("Over seeds", lambda: _over_seeds(runs)),
        ("Different settings", lambda: _differences(runs, names)),
        ("Curves", lambda: _curves(runs, names)),
        ("Evaluations", lambda: _evaluations(runs, names, results)),
        ("Duration and cost", lambda: _side_by_side(cost_figures, runs, names)),
    ]
    return page.build_page(f"{len(runs)} runs", " · ".join(names), sections, progress)


def _figures(runs: list[RecordedRun], names: list[str]) -> Iterator[str]:
    yield from _side_by_side(key_figures, runs, names)
    yield page.soft("Compare only runs that are equally far, by figures that have an error where you can.")


def _side_by_side(
    figures: Callable[[RecordedRun], list[tuple[str, str]]], runs: list[RecordedRun], names: list[str]
) -> Iterator[str]:
    """A table with a column for each run."""
    columns = [dict(figures(run)) for run in runs]
    rows = dict.fromkeys(name for column in columns for name in column)
    yield page.table(["", *names], [(row, *(column.get(row, "–") for column in columns)) for row in rows], lines=True)


def _over_seeds(runs: list[RecordedRun]) -> Iterator[str]:
    """Mean and standard deviation of runs that differ by their seed alone."""
    groups: dict[tuple, list[RecordedRun]] = {}
    for run in runs:
        if run.config is not None:
            groups.setdefault(_but_seed(run.config), []).append(run)
    for group in groups.values():
        if len(group) < 2:
            continue
        columns = [last_values(run) for run in group]
        shared = [name for name in columns[0] if all(name in column for column in columns)]
        rows = []
        for name in shared:
            values, unit = [column[name][0] for column in columns], columns[0][name][1]
            rows.append((name, f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} {unit}".rstrip()))
        yield f"<h3>{page.text(', '.join(names_of(group)))}</h3>\n"
        yield page.pairs(rows)
        yield page.soft(f"The same settings with {len(group)} seeds: mean ± standard deviation of the last values.")


def _but_seed(config: Config) -> tuple:
    return tuple((name, value) for name, value in settings(config).items() if name not in ("seed", "report"))


def _differences(runs: list[RecordedRun], names: list[str]) -> Iterator[str]:
    known = [(name, settings(run.config)) for name, run in zip(names, runs, strict=True) if run.config is not None]
    if len(known) < 2:
        raise InputError("fewer than two of the runs have a config.yaml")
    rows = differences([config for _, config in known])
    if rows:
        yield page.table(["setting", *(name for name, _ in known)], rows)
    count = len(known[0][1])
    yield page.soft(
        f"{len(rows)} of {count} settings {'differ' if len(rows) != 1 else 'differs'}; the others are equal."
    )


def _curves(runs: list[RecordedRun], names: list[str]) -> Iterator[str]:
    panels = panels_of(runs)
    if not panels:
        raise InputError("nothing is logged in any of the runs yet")
    yield page.legend(names)
    figures = (draw_panel(panel, runs) for panel in panels)
    yield from page.grid(
        page.figure(figure, f"{panel.title} of {len(runs)} runs") for panel, figure in zip(panels, figures, strict=True)
    )
    if is_smoothed(runs, panels):
        yield page.soft("Bold: mean over neighboring logged steps; pale: as logged.")
    if not in_epochs(runs):
        yield page.soft("Over steps: of some run the steps of an epoch are unknown before its first checkpoint.")


def _evaluations(
    runs: list[RecordedRun], names: list[str], results: Sequence[tuple[str, dict[str, Any]]]
) -> Iterator[str]:
    """A table and a figure for each kind of evaluation; only results on the same images and of the same size meet."""
    merged: dict[str, dict[str, Column]] = {}  # what was measured → column title → row → cell
    titles: dict[str, str] = {}
    found = [(name, *item) for name, run in zip(names, runs, strict=True) for item in run.results.items()]
    for run_name, file, content in [*found, *(("", *item) for item in results)]:
        if table := read_table(content):
            titles.setdefault(table.what, title_of(file, content))
            columns = merged.setdefault(table.what, {})
            for title, column in _columns_of(table, run_name).items():
                if not (RANDOM in title and column in columns.values()):
                    columns[title] = column
    for what, columns in merged.items():
        names_of_rows = dict.fromkeys(row for column in columns.values() for row in column)
        rows = [(row, *(column.get(row, "–") for column in columns.values())) for row in names_of_rows]
        yield f"<h3>{page.text(titles[what])}</h3>\n"
        yield page.table([what, *columns], rows)
        if values := Table(what, list(columns), rows, "").values():
            drawn = draw_values(what, list(columns), values)
            yield from page.grid([page.figure(drawn, f"{what}, of {len(columns)} backbones")])
    if merged:
        yield page.soft("± and bars: one standard error. A difference of less than two of them is no result.")
    else:
        yield page.note(
            "No evaluation is recorded in these run folders. densecl eval with all of them after --weights, and "
            "--output F.json, measures them on the same images."
        )


def _columns_of(table: Table, run: str) -> dict[str, Column]:
    """Title → column. A result in a run's folder goes by the run's name; of its checkpoints the last one counts."""
    every = {title: {row: cells[n] for row, *cells in table.rows} for n, title in enumerate(table.columns)}
    if not run:
        return every
    epochs = {table.columns[n]: epoch for n, epoch in epochs_of(table, None).items()}
    last = max(epochs, key=lambda title: epochs[title], default=None)
    own = [title for title in every if title != RANDOM and (title not in epochs or title == last)]
    named = {run if len(own) == 1 else f"{run}: {title}": every[title] for title in own}
    return named | ({f"{RANDOM} weights, as {run}": every[RANDOM]} if RANDOM in every else {})
