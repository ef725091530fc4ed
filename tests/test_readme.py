"""What the READMEs promise: the same commands in both languages, and every one of them is understood."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from passl_densecl.cli.train import experiment, run
from passl_densecl.config import Config, LinearConfig, dump_config, load_config
from tests.commands import understood

ROOT = Path(__file__).resolve().parents[1]
READMES = ("README.md", "README_cn.md")
LAUNCHER = "paddle.distributed.launch"


class Call(NamedTuple):
    """A command that runs a verb."""

    launcher: tuple[str, ...]  # words of Paddle's launcher before the script
    verb: str
    args: argparse.Namespace


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def commands(name: str) -> list[str]:
    """The lines of the fenced bash blocks, without comments, continued lines joined."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", read(name), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.lstrip().startswith("#")]


def calls() -> list[Call]:
    """Every command of the page that runs a verb; leaves the program where one is not understood."""
    found = []
    for command in commands(READMES[0]):
        words = shlex.split(command, comments=True)
        if words[0] in ("python", "densecl"):
            at = next((index for index, word in enumerate(words) if word.startswith("tools/")), 0)
            found.append(Call(tuple(words[1:at]), *understood(words[at:])))
    return found


def trainings() -> Iterator[tuple[argparse.Namespace, Config]]:
    """Options and checked config of every training that starts from a config."""
    for call in calls():
        if call.verb == "train" and (call.args.config or not call.args.resume):
            name, overrides = experiment(call.args)
            yield call.args, load_config(name, overrides)


def test_both_languages_hold_the_same_commands():
    english, chinese = (commands(name) for name in READMES)
    assert len(english) > 10
    assert english == chinese


def test_both_languages_have_the_same_structure():
    def structure(name: str) -> list[str]:
        text = read(name)
        inside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        tables = [str(line.count("|")) for line in inside.splitlines() if line.startswith("|")]
        return [*re.findall(r"^#+(?= )", inside, re.MULTILINE), *re.findall(r"^```\w+", text, re.MULTILINE), *tables]

    assert structure(READMES[0]) == structure(READMES[1])


def test_the_settings_in_the_text_are_the_same():
    english, chinese = (sorted(re.findall(r"`([a-z_]+(?:\.\w+)*=[\w.]+)`", read(name))) for name in READMES)
    assert english == chinese
    overrides = [setting for setting in english if not setting.startswith("key=")]
    for override in overrides:
        load_config(ROOT / "configs/densecl/densecl_r50.yaml", [override])


@pytest.mark.parametrize("name", READMES)
def test_every_file_that_is_named_exists(name):
    named = re.findall(r"(?<![\w/.-])(?:tools|configs|tests)/[\w./-]*\w", read(name))
    named += re.findall(r"\]\((?!https?:|#)([^)]+)\)", read(name))
    named += re.findall(r"requirements[\w-]*\.txt", read(name))
    assert [path for path in sorted(set(named)) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", READMES)
def test_every_config_is_named(name):
    configs = [str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")]
    assert [path for path in sorted(configs) if path not in read(name)] == []


@pytest.mark.parametrize("name", READMES)
def test_every_link_within_the_page_has_its_heading(name):
    headings = re.findall(r"^#+ (.+)$", read(name), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", read(name))) <= anchors


@pytest.mark.parametrize("name", READMES)
def test_every_make_target_exists(name):
    targets = set(re.findall(r"^([\w-]+):(?!=)", read("Makefile"), re.MULTILINE))
    shown = [shlex.split(command)[1:] for command in commands(name) if command.startswith("make ")]
    shown += [words.split() for words in re.findall(r"`make ([^`]+)`", read(name))]
    named = {word for words in shown for word in words if "=" not in word}
    assert {"demo", "test"} <= named <= targets


def test_every_kind_of_verb_is_shown():
    shown = {call.verb for call in calls()}
    assert {"train", "extract", "convert", "export", "embed", "report", "plot match", "data pack", "eval knn"} <= shown


def test_every_launcher_option_is_accepted():
    package = importlib.util.find_spec("paddle")  # found, not imported: that takes seconds
    assert package is not None
    assert package.origin is not None
    source = Path(package.origin).parent / "distributed" / "launch" / "context" / "args_envs.py"
    known = set(re.findall(r"""["'](--\w+)["']""", source.read_text(encoding="utf-8")))
    used = set()
    for call in calls():
        if call.launcher:
            assert call.launcher[:2] == ("-m", LAUNCHER), call
            used |= {word.partition("=")[0] for word in call.launcher[2:] if word.startswith("-")}
    assert {"--gpus", "--nproc_per_node", "--nnodes", "--master"} <= used <= known


def test_every_config_with_its_overrides_is_valid():
    for args, config in trainings():
        if args.pretrained or args.load or args.evaluate_only:
            assert isinstance(config, LinearConfig), args


def test_check_prints_what_the_config_resolves_to(capsys):
    ((args, config),) = [(args, config) for args, config in trainings() if args.check]
    assert run(args) == 0
    assert capsys.readouterr().out == dump_config(config)


def test_later_commands_use_what_earlier_ones_wrote():
    """A run's folder and weight files go by the names that the commands before gave them."""
    written: set[str] = set()
    for call in calls():
        args = vars(call.args)
        named = [args.get(option) for option in ("pretrained", "load", "weights", "resume")]
        for path in [str(one) for value in named for one in (value if isinstance(value, list) else [value]) if one]:
            assert path in ("random", "auto") or "/".join(path.split("/")[:2]) in written, call
        if call.verb == "data pack":
            written.add(str(call.args.output))
        if call.verb == "train" and not call.args.check and (call.args.config or not call.args.resume):
            name, overrides = experiment(call.args)
            config = load_config(name, overrides)
            assert not overrides or not overrides[0].endswith(".lmdb") or overrides[0].partition("=")[2] in written
            written.add(str(config.run_dir))
        if call.verb == "extract":
            written.add(str(call.args.output))
