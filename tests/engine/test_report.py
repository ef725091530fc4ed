"""A run ends with its report, by the main process alone, and training needs no matplotlib."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.engine.runs import ROOT, train, write_config


def test_a_run_of_two_processes_ends_with_its_report(tmp_path, photos):
    config = write_config(tmp_path, photos, report=True, epochs=1)
    train(config, processes=2)
    run = tmp_path / "run"
    assert "finished: 1 epoch," in (run / "report.html").read_text(encoding="utf-8")
    log = (run / "train.log").read_text().splitlines()
    assert [line.split()[0] for line in log[-2:]] == ["done", "report"]
    assert json.loads((run / "environment.json").read_text())["working_directory"] == str(ROOT)


def test_training_imports_nothing_that_draws():
    """What a report needs is imported once a run is complete."""
    code = "import sys, passl_densecl.engine.pretrain; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert "passl_densecl.engine.run" in loaded
    assert not {name for name in loaded if name.startswith(("matplotlib", "passl_densecl.visualize"))}
