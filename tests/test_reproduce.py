"""The reproduction: the right runs with the right settings, each once, and a table of what was measured."""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import reproduce
from passl_densecl.config import load_config
from passl_densecl.errors import InputError
from tests.commands import understood

ROOT = Path(__file__).resolve().parents[1]


RESULTS = {  # as each verb's JSON has them, after the baselines that it may hold
    "knn": {"top1": {"20": 0.5}, "standard_error": {"20": 0.01}},
    "linear": {"top1": 0.6, "standard_error": 0.02},
    "dense": {"miou": [0.1, 0.3], "standard_error": 0.03},
    "correspondence": {"share": 0.4, "standard_error": 0.04},
}


def values(words: list[str], option: str) -> list[str]:
    return [value for key, value in pairwise(words) if key == option]


@pytest.fixture
def started(monkeypatch) -> list[list[str]]:
    """The commands that would run; they leave behind what the real ones do."""
    commands: list[list[str]] = []

    def command(words) -> None:
        told = [str(word) for word in words]
        commands.append(told)
        if "tools/train.py" in told:
            config = load_config(ROOT / values(told, "-c")[0], values(told, "-o"))
            (config.run_dir / "checkpoints" / f"epoch_{config.epochs:04d}").mkdir(parents=True)
        else:
            (output,) = values(told, "--output")
            results = {"baseline": {}, "weights": RESULTS[told[1]]}
            Path(output).write_text(json.dumps({"results": results}))

    monkeypatch.setattr(reproduce, "say_and_run", command)
    return commands


def options(images: Path, tmp_path: Path, *more: str) -> argparse.Namespace:
    for part in ("train", "val"):
        (tmp_path / "data").mkdir(exist_ok=True)
        if not (tmp_path / "data" / part).exists():
            (tmp_path / "data" / part).symlink_to(images, target_is_directory=True)
    return reproduce.parse_arguments(["--data", str(tmp_path / "data"), "--output", str(tmp_path), *more])


def test_three_networks_with_one_budget(photos, tmp_path, started):
    masks = "--images a --masks b"
    reproduce.reproduce(options(photos, tmp_path, "--seeds", "0", "1", "--epochs", "3", "--dense", masks))
    runs = [
        load_config(ROOT / values(words, "-c")[0], values(words, "-o"))
        for words in started
        if "tools/train.py" in words
    ]
    assert [(run.model.loss_lambda, run.seed) for run in runs] == [(0.0, 0), (0.0, 1), (0.5, 0), (0.5, 1)]
    rest = [run.model_dump(exclude={"name": True, "seed": True, "model": {"loss_lambda"}}) for run in runs]
    assert all(one == rest[0] for one in rest)
    assert (runs[0].epochs, runs[0].model.loss_lambda_warmup_steps) == (3, 40 // 32 * 3 // 2)
    verbs = [words[1] for words in started if words[0] == "tools/evaluate.py"]
    assert verbs == list(reproduce.MEASURES) * 6
    table = (tmp_path / "results.md").read_text()
    assert "| DenseCL (λ = 0.5) | 50.0 ± 0.0 % | 60.0 ± 0.0 % | 20.0 ± 0.0 % | 40.0 ± 0.0 % |" in table
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_there_is_not_made_again(photos, tmp_path, started):
    reproduce.reproduce(options(photos, tmp_path))
    assert len(started) == 2 + 3 * 3
    assert "| random weights | 50.0 ± 1.0 % | 60.0 ± 2.0 % | 40.0 ± 4.0 % |" in (tmp_path / "results.md").read_text()
    started.clear()
    reproduce.reproduce(options(photos, tmp_path))
    assert started == []
    (tmp_path / "runs" / "lambda_0_s0" / "evaluation_knn.json").unlink()
    reproduce.reproduce(options(photos, tmp_path, "--ablation", "lambda"))
    trained = [values(words, "-o")[-3:] for words in started if "tools/train.py" in words]
    assert len(trained) == len(reproduce.LAMBDAS) - 2
    assert started[0][1] == "knn"


def test_the_grid_without_pooling_is_the_main_run():
    networks = reproduce.networks("grid")
    assert [network.folder for network in networks] == ["grid_1", "grid_3", "grid_5", "grid_7", "lambda_0.5"]


def test_the_commands_are_understood(photos, tmp_path, started):
    reproduce.reproduce(options(photos, tmp_path, "--dense", "--images a --masks b", "--processes", "2"))
    for words in started:
        if words[0] == "tools/evaluate.py":
            assert understood(words)[0] == f"eval {words[1]}"
    launched = next(words for words in started if "tools/train.py" in words)
    assert launched[:4] == ["-m", "paddle.distributed.launch", "--nproc_per_node", "2"]
    assert launched[-2:] == ["--resume", "auto"]


def test_a_failed_command_stops_and_says_how_to_go_on():
    with pytest.raises(InputError, match=r"exit code 3.*Run again"):
        reproduce.say_and_run(["-c", "raise SystemExit(3)"])
    with pytest.raises(SystemExit) as stopped:
        reproduce.say_and_run(["-c", "raise SystemExit(143)"])
    assert stopped.value.code == 143
