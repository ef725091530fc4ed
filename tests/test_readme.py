"""What the READMEs and the pages of docs/ promise: the same in both languages, and every command is understood."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
import shlex
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import passl_densecl
from passl_densecl.cli.train import experiment, run
from passl_densecl.config import Config, LinearConfig, dump_config, load_config
from tests.commands import understood

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
ENGLISH = ["README.md", *sorted(f"docs/{path.name}" for path in DOCS.glob("*.md") if not path.stem.endswith("_cn"))]
CHINESE = [name.replace(".md", "_cn.md") for name in ENGLISH]
PAIRS = list(zip(ENGLISH, CHINESE, strict=True))
PAGES = [*ENGLISH, *CHINESE]
LAUNCHER = "paddle.distributed.launch"
OTHERS = ("docker", "eval", "make", "pip", "python", "until")  # first words of commands that are not verbs of densecl


class Call(NamedTuple):
    """A command that runs a verb."""

    launcher: tuple[str, ...]  # words of Paddle's launcher before the script
    verb: str
    args: argparse.Namespace


@cache
def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@cache
def blocks(name: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", read(name), re.MULTILINE | re.DOTALL)


@cache
def prose(name: str) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", read(name), flags=re.MULTILINE | re.DOTALL)


@cache
def commands(name: str) -> list[str]:
    """The lines of the bash blocks, without comments, continued lines joined."""
    lines = "".join(blocks(name, "bash")).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.lstrip().startswith("#")]


@cache
def calls(name: str) -> list[Call]:
    """Every command of a page that runs a verb; leaves the program where one is not understood."""
    found = []
    for command in commands(name):
        words = shlex.split(command, comments=True)
        at = next((index for index, word in enumerate(words) if word.startswith("tools/")), 0)
        launched = words[1:at] if words[0] == "python" else []
        if words[0] == "densecl" and words[1:] != ["--version"] and words[-1] != "--help":
            found.append(Call((), *understood(words)))
        elif at and "tool(" in read(words[at]):  # a door to a verb
            found.append(Call(tuple(launched), *understood(words[at:])))
    return found


@cache
def config_of(name: str, overrides: tuple[str, ...]) -> Config:
    return load_config(name, list(overrides))


def trainings(page: str) -> list[tuple[argparse.Namespace, Config]]:
    """Options and checked config of every training that starts from a config which is there."""
    found = []
    for call in calls(page):
        if call.verb == "train" and (call.args.config or not call.args.resume):
            name, overrides = experiment(call.args)
            if "RUN" not in str(name):  # a placeholder
                found.append((call.args, config_of(name, tuple(overrides))))
    return found


def anchors(name: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(name), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def figures(name: str) -> Counter[str]:
    """The numbers of a page's text; those below ten may be words, so only decimals and larger ones."""
    text = re.sub(r"\]\([^)]*\)|<[^>\n]+>", "]", prose(name)).replace(",", "")
    for unit, zeros in (("million", 6), ("billion", 9), ("万", 4), ("亿", 8)):
        text = re.sub(rf"(\d[\d.]*) ?{unit}", lambda match, n=zeros: f"{float(match[1]) * 10**n:.0f}", text)
    return Counter(re.findall(r"\d+\.\d+|\d{2,}", text))


# ---------------------------------------------------------------- both languages


def test_every_page_is_there_in_both_languages():
    assert [name for name in CHINESE if not (ROOT / name).exists()] == []
    assert {path.name for path in DOCS.glob("*_cn.md")} == {Path(name).name for name in CHINESE[1:]}


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_both_languages_hold_the_same(english, chinese):
    """Commands, code, output, settings, figures, and the structure of headings, blocks and tables."""

    def structure(name: str) -> list[str]:
        tables = [str(line.count("|")) for line in prose(name).splitlines() if line.startswith("|")]
        return [*re.findall(r"^#+(?= )", prose(name), re.MULTILINE), *re.findall(r"^```\w+", read(name), re.M), *tables]

    def settings(name: str) -> list[str]:
        return sorted(re.findall(r"`([a-z_]+(?:\.\w+)*=[\w.]+)`", prose(name)))

    assert commands(english) == commands(chinese)
    shown = zip(blocks(english, "text"), blocks(chinese, "text"), strict=True)
    assert [pair for pair in shown if pair[0] != pair[1] and not re.search(r"[\u4e00-\u9fff]", pair[1])] == []
    codes = [[ast.dump(ast.parse(code)) for code in blocks(name, "python")] for name in (english, chinese)]
    assert codes[0] == codes[1]
    assert structure(english) == structure(chinese)
    assert settings(english) == settings(chinese)
    assert figures(english) == figures(chinese)


# ---------------------------------------------------------------- what is named exists


@pytest.mark.parametrize("name", PAGES)
def test_every_link_file_and_make_target_exists(name):
    folder, text = (ROOT / name).parent, read(name)
    broken = []
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose(name)):
        path, _, anchor = target.partition("#")
        page = (folder / path).resolve() if path else ROOT / name
        if not page.exists() or (anchor and anchor not in anchors(str(page.relative_to(ROOT)))):
            broken.append(target)
    named = re.findall(r"(?<![\w/.-])(?:tools|configs|tests)/[\w./-]*\w", text) if "migrating" not in name else []
    named += re.findall(r"requirements[\w-]*\.txt", text)
    assert [*broken, *(path for path in sorted(set(named)) if not (ROOT / path).exists())] == []
    targets = set(re.findall(r"^([\w-]+):(?!=)", read("Makefile"), re.MULTILINE))
    shown = [shlex.split(command)[1:] for command in commands(name) if command.startswith("make ")]
    shown += [words.split() for words in re.findall(r"`make ([^`]+)`", text)]
    assert {word for words in shown for word in words if "=" not in word} <= targets


def test_every_config_is_on_the_page_of_recipes():
    configs = [str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")]
    assert [path for path in sorted(configs) if path not in read("docs/recipes.md")] == []


def test_every_public_name_that_code_imports_exists():
    notebook = json.loads(read("docs/notebooks/first_run.ipynb"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    codes = [code for name in ENGLISH for code in blocks(name, "python")]
    codes += ["\n".join(line for line in cell.splitlines() if not line.startswith("!")) for cell in cells]
    for node in (node for code in codes for node in ast.walk(ast.parse(code))):
        if isinstance(node, ast.ImportFrom) and node.module == "passl_densecl":
            assert {alias.name for alias in node.names} <= set(passl_densecl.__all__)


def test_the_notebook_was_executed_to_its_end_with_its_pictures():
    cells = [
        cell for cell in json.loads(read("docs/notebooks/first_run.ipynb"))["cells"] if cell["cell_type"] == "code"
    ]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert all(cell["execution_count"] and cell["outputs"] for cell in cells)
    assert "error" not in {output["output_type"] for output in outputs}
    assert sum("image/jpeg" in output.get("data", {}) for output in outputs) == 2
    for command in re.findall(
        r"^!\{densecl\} (.*)$", "\n".join("".join(cell["source"]) for cell in cells), re.MULTILINE
    ):
        words = shlex.split(re.sub(r"\{sets\}.*", "--train D --val D", command).replace("{photo}", "P"))
        understood(["densecl", *words])


def test_the_first_page_stays_short_and_begins_with_what_to_type():
    for name in ("README.md", "README_cn.md"):
        assert len(read(name).splitlines()) <= 150
        assert commands(name)[:2] == ["make demo", "make test"]


# ---------------------------------------------------------------- every command is understood


@pytest.mark.parametrize("name", ENGLISH)
def test_every_command_is_understood(name):
    for command in commands(name):
        words = shlex.split(command)
        assert words[0] == "densecl" or words[0] in OTHERS, command
    for call in calls(name):
        assert not call.launcher or call.launcher[:2] == ("-m", LAUNCHER), call
    for args, config in trainings(name):
        assert isinstance(config, LinearConfig) or not args.evaluate_only, args
    if name != "docs/migrating.md":  # which names others' settings
        for setting in re.findall(r"`([a-z_]+(?:\.\w+)+=[\w.]+)`", prose(name)):
            config_of("densecl_r50", (setting,))


def test_every_kind_of_verb_is_shown():
    shown = {call.verb for name in ENGLISH for call in calls(name)}
    kinds = {"train", "extract", "convert", "export", "embed", "report", "plot match", "demo", "config cp", "info"}
    assert kinds | {"eval knn", "eval dense", "data check", "data pack", "transfer prepare", "transfer check"} <= shown


def test_every_launcher_option_is_accepted():
    package = importlib.util.find_spec("paddle")  # found, not imported: that takes seconds
    assert package is not None
    assert package.origin is not None
    source = Path(package.origin).parent / "distributed" / "launch" / "context" / "args_envs.py"
    known = set(re.findall(r"""["'](--\w+)["']""", source.read_text(encoding="utf-8")))
    words = [word for name in ENGLISH for call in calls(name) for word in call.launcher[2:]]
    used = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert {"--gpus", "--nproc_per_node", "--nnodes", "--master"} <= used <= known


def test_check_prints_what_the_config_resolves_to(capsys):
    ((args, config),) = [(args, config) for args, config in trainings("docs/configuration.md") if args.check]
    assert run(args) == 0
    assert capsys.readouterr().out == dump_config(config)


@pytest.mark.parametrize("page", ["README.md", "docs/first_run.md"])
def test_later_commands_use_what_earlier_ones_wrote(page):
    """A run's folder and weight files go by the names that the commands before gave them."""
    written: set[str] = set()
    for call in calls(page):
        args = vars(call.args)
        named = [args.get(option) for option in ("pretrained", "load", "weights", "resume", "run", "runs")]
        for path in [str(one) for value in named for one in (value if isinstance(value, list) else [value]) if one]:
            assert path in ("random", "auto") or "/".join(path.split("/")[:2]) in written, call
        if call.verb == "demo":
            written.add(str(call.args.output))
        if call.verb == "train":
            name, overrides = experiment(call.args)
            written.add(str(config_of(name, tuple(overrides)).run_dir))
        if call.verb == "extract":
            written.add(str(call.args.output))
    assert len(written) >= 3
