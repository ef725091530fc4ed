"""densecl doctor --self-test, all of it on the CPU at its smallest."""

from __future__ import annotations

import json

from passl_densecl.cli.main import main
from passl_densecl.doctor import self_test
from passl_densecl.doctor.reference import REFERENCE
from passl_densecl.doctor.self_test import Plan


def test_all_of_it_on_the_cpu(tmp_path, capsys):
    file = tmp_path / "doctor.json"
    code = main(["doctor", "--self-test", "--devices", "cpu:2", "--steps", "1", "--json", str(file)])
    printed, document = capsys.readouterr().out, json.loads(file.read_text(encoding="utf-8"))
    found = {one["name"]: one for one in document["self_test"]}
    statuses = {name: one["status"] for name, one in found.items()}
    expected = dict.fromkeys(("reference", "exact losses", "collectives", "micro-batches", "a dead process"), "ok")
    expected |= {"bfloat16": "skipped", "float16": "skipped", "resume": "ok", "speed": "ok"}
    assert {name: statuses[name] for name in expected} == expected, printed
    assert found["speed"]["figures"]["images_per_second"] > 0
    assert found["loader"]["figures"]["workers"] >= 1
    everything = [*document["checks"], *document["self_test"]]
    assert {"python", "paddle", "numpy", "opencv", "driver", "memory", "disk"} <= {one["name"] for one in everything}
    assert all(f"{one['status']:<8} {one['name']}" in printed for one in everything)
    assert code == int(any(one["status"] == "problem" for one in everything))


def test_wrong_losses_are_a_problem(monkeypatch, tmp_path):
    for error, status in ((5e-5, "ok"), (2e-4, "problem"), (float("nan"), "problem")):
        steps = [{term: value + error for term, value in step.items()} for step in REFERENCE["steps"]]
        monkeypatch.setattr(self_test, "run_steps", lambda count, steps=steps: steps[:count])
        (found,) = self_test.reference_steps(Plan((), 1, tmp_path))
        assert found.status == status
