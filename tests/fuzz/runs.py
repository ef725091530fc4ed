"""Hostile run folders: metrics, results, logs, configs, checkpoints; and the report that is drawn from them."""

from __future__ import annotations

import html.parser
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.fuzz.cases import CONFIGS, Case, Violation, check_text, first_file, only_input_errors, try_each
from tests.fuzz.configs import mutated_config
from tests.fuzz.mutate import json_file, json_lines, weighted, words
from tests.fuzz.pickles import mutated_pickle

_LOSSES = {"loss": 7.0, "global_loss": 7.0, "global_top1": 0.1, "dense_loss": 6.5, "dense_top1": 0.2, "chance": 8.3}
_SPEED = {"images_per_second": 40.0, "data_share": 0.1, "peak_memory_mb": 500.0}
METRIC = {"step": 1, "epoch": 1, **_LOSSES, "lr": 0.03, "loss_lambda": 0.5, "queue_fill": 1.0, **_SPEED}
STATE = {"step": 8, "task": "pretrain", "steps_per_epoch": 4, "images": 64, "scaler": {}, "knn_missing": False}
STATE["classes"] = ["a", "b"]
RESULT = {"top1": 0.5, "val": {"images": 10, "names": ["a", "b"]}, "values": list(range(50)), "nothing": None}
RESULT["text"] = "x"
ENVIRONMENT = {"paddle": "3", "devices": [], "command": ["a"]}
CONFIG = CONFIGS[0].read_bytes()
CHECKPOINTS = ["epoch_0002", "step_00000008", "epoch_", "epoch_²", "epoch_" + "9" * 200, "a b", "\x1b[31m", ".x", "é"]
CHECKPOINTS += ["epoch_1", "epoch_0"]
_WARNING = words.map(lambda word: f"warning  {word}\n".encode("utf-8", "surrogatepass"))


def run_cases() -> st.SearchStrategy[Case]:
    config = weighted((1, st.just(CONFIG)), (1, mutated_config(CONFIGS[:3]).map(first_file)))
    files = {
        "metrics.jsonl": json_lines(METRIC),
        "result.json": json_file(RESULT),
        "environment.json": json_file(ENVIRONMENT),
        "checkpoints/epoch_0002/state.json": json_file(STATE),
        "checkpoints/epoch_0002/model.pdparams": st.just(b"\x80\x04}."),
        "train.log": st.lists(_WARNING, max_size=3).map(b"".join),
    }
    folders = weighted((2, st.fixed_dictionaries({**files, "config.yaml": config})), (1, st.fixed_dictionaries(files)))
    draw = st.integers(0, 15).map(lambda number: "draw" if number == 9 else "")  # a report takes long
    return st.builds(lambda found, how: Case(found, ("run", how)), folders, draw)


@st.composite
def checkpoint_cases(draw: Any) -> Case:
    model = pickle.dumps({"a": np.ones(2, "f4")}, 4)
    name = draw(st.sampled_from(CHECKPOINTS))
    files = {
        f"checkpoints/{name}/model.pdparams": model,
        f"checkpoints/{name}/optimizer.pdopt": draw(st.one_of(st.just(model), mutated_pickle(model))),
        f"checkpoints/{name}/state.json": draw(json_file(STATE)),
    }
    return Case({**files, "metrics.jsonl": draw(json_lines(METRIC)), "config.yaml": CONFIG}, ("checkpoint", name))


def valid_run(steps: int) -> Case:
    files = {
        "metrics.jsonl": b"\n".join(json.dumps({**METRIC, "step": step}).encode() for step in range(1, steps)),
        "result.json": b'{"a": 1}',
        "config.yaml": CONFIG,
        "checkpoints/epoch_0002/state.json": json.dumps(STATE).encode(),
        "checkpoints/epoch_0002/model.pdparams": b"\x80\x04}.",
        "train.log": b"warning  x\n",
    }
    return Case(files, ("run", "draw"))


def read_run_folder(folder: Path, output: Path, *, draw: bool) -> None:
    from passl_densecl.visualize.curves import key_figures, panels_of
    from passl_densecl.visualize.runs import config_and_run, read_result, read_run

    try_each(lambda: read_result(folder / "result.json"), lambda: config_and_run(folder))
    with only_input_errors():
        run = read_run(folder, need_metrics=False)
        check_text(run.state(), "the state of a run")
        for key in run.keys():  # noqa: SIM118
            run.series(key)
        panels_of([run])
        for what, value in key_figures(run):
            check_text(f"{what} {value}", "a figure of a run")
        if draw:
            _report(run, output)


def _report(run: Any, output: Path) -> None:
    from passl_densecl.visualize.report import Sources, build_report
    from passl_densecl.visualize.runs import read_result

    results = []
    with only_input_errors():
        results.append(("<b>x</b>", read_result(run.path / "result.json")))
    page, missing = build_report(run, Sources(None, tuple(results)))
    check_html(page)
    for reason in missing:
        check_text(reason, "why a part is missing")
    (output / "report.html").write_bytes(page.encode("utf-8"))


_TAGS = "html head meta link title style body header h1 h2 h3 p main section table tbody tr th td div figure img "
_TAGS += "figcaption details summary pre nav a h3 thead svg line br"


class _Tags(html.parser.HTMLParser):
    """Raises Violation at an element or an attribute that no report has."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _TAGS.split():
            raise Violation(f"a report with an element <{tag}>")
        for name, value in attrs:
            fetches = name in ("src", "href") and not (value or "").startswith(("data:", "#"))
            if name.startswith("on") or fetches:
                raise Violation(f"a report with {name}={value!r}"[:200])


def check_html(page: str) -> None:
    """A page without scripts and without anything to fetch."""
    parser = _Tags(convert_charrefs=False)
    parser.feed(page)
    parser.close()


def read_checkpoint(folder: Path, output: Path, name: str) -> None:
    from passl_densecl.engine.run import find_start
    from passl_densecl.reliability import checkpoint, restore
    from passl_densecl.weights import recorded
    from passl_densecl.weights.files import weights_file

    path = folder / "checkpoints" / name
    checkpoints = checkpoint.Checkpoints(folder, 2)
    try_each(
        checkpoints.newest,
        lambda: find_start(folder, checkpoints, "auto"),
        lambda: restore.read(path),
        lambda: weights_file(folder),
        lambda: recorded.recorded_card(path / "model.pdparams"),
        lambda: recorded.recorded_classes(path / "model.pdparams"),
        lambda: _rewound(folder, output),
    )


def _rewound(folder: Path, output: Path) -> None:
    """A resumed run removes the metrics of the steps that it repeats."""
    from passl_densecl.reliability.log import RunLog

    (output / "metrics.jsonl").write_bytes((folder / "metrics.jsonl").read_bytes())
    log = RunLog(output)
    log.record()
    try:
        log.rewind(2)
    finally:
        log.close()
