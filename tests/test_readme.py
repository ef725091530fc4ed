"""What the READMEs promise: the same commands in both languages, and every one of them is understood."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from passl_densecl.config import LinearConfig, dump_config, load_config

ROOT = Path(__file__).resolve().parents[1]
READMES = ("README.md", "README_cn.md")
LAUNCHER = "paddle.distributed.launch"
LINEAR_OPTIONS = {"--pretrained", "--load", "--evaluate-only"}


class ToolCall(NamedTuple):
    """A command that runs one of our tools, with or without the launcher."""

    launcher: tuple[str, ...]  # words between the launcher and the script
    script: str
    words: tuple[str, ...]  # what stands after the script

    def values(self, *options: str) -> list[str]:
        """What follows each of the options."""
        return [value for option, value in zip(self.words, self.words[1:], strict=False) if option in options]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def commands(name: str) -> list[str]:
    """The lines of the fenced bash blocks, without comments, continued lines joined."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", read(name), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.lstrip().startswith("#")]


def tool_calls() -> list[ToolCall]:
    calls = []
    for command in commands(READMES[0]):
        words = shlex.split(command, comments=True)
        if words[0] == "python":
            at = next(index for index, word in enumerate(words) if word.startswith("tools/"))
            calls.append(ToolCall(tuple(words[1:at]), words[at], tuple(words[at + 1 :])))
    return calls


def train_calls() -> list[ToolCall]:
    return [call for call in tool_calls() if call.script == "tools/train.py"]


@cache
def known_options(script: str, verb: str = "") -> frozenset[str]:
    """What `--help` lists."""
    command = [sys.executable, str(ROOT / script), *([verb] if verb else []), "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return frozenset(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", done.stdout))


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
    english, chinese = (sorted(re.findall(r"`-o ([\w.]+=\w+)`", read(name))) for name in READMES)
    assert english == chinese
    overrides = [setting for setting in english if not setting.startswith(("key=", "name="))]
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


def test_every_option_is_accepted():
    calls = tool_calls()
    assert {"tools/train.py", "tools/extract_weight.py", "tools/visualize.py", "tools/pack_data.py"} <= {
        call.script for call in calls
    }
    for call in calls:
        verb = call.words[0] if call.script in ("tools/visualize.py", "tools/evaluate.py", "tools/transfer.py") else ""
        used = {word.partition("=")[0] for word in call.words if word.startswith("-")}
        assert used <= known_options(call.script, verb), call


def test_every_launcher_option_is_accepted():
    package = importlib.util.find_spec("paddle")  # found, not imported: that takes seconds
    assert package is not None
    assert package.origin is not None
    source = Path(package.origin).parent / "distributed" / "launch" / "context" / "args_envs.py"
    known = set(re.findall(r"""["'](--\w+)["']""", source.read_text(encoding="utf-8")))
    used = set()
    for call in tool_calls():
        if call.launcher:
            assert call.launcher[:2] == ("-m", LAUNCHER), call
            used |= {word.partition("=")[0] for word in call.launcher[2:] if word.startswith("-")}
    assert {"--gpus", "--nproc_per_node", "--nnodes", "--master"} <= used <= known


def test_every_config_with_its_overrides_is_valid():
    for call in train_calls():
        (path,) = call.values("-c", "--config")
        config = load_config(ROOT / path, call.values("-o", "--override"))
        if LINEAR_OPTIONS & set(call.words):
            assert isinstance(config, LinearConfig), call


def test_check_prints_what_the_config_resolves_to():
    (call,) = [call for call in train_calls() if "--check" in call.words]
    command = [sys.executable, str(ROOT / call.script), *call.words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == dump_config(load_config(ROOT / call.values("-c")[0], call.values("-o")))


def test_later_commands_use_what_earlier_ones_wrote():
    """A run's folder and weight files go by the names that the commands before gave them."""
    written: set[str] = set()
    for call in tool_calls():
        read_here = call.values("--pretrained", "--load", "--weights", "--resume")
        if call.script == "tools/extract_weight.py":
            read_here.append(call.words[0])
        for path in read_here:
            folder = "/".join(path.split("/")[:2])
            assert path.startswith("-") or path == "random" or folder in written, call
        for setting in call.values("-o", "--override"):
            assert not setting.endswith(".lmdb") or setting.partition("=")[2] in written, call
        if call.script == "tools/pack_data.py":
            written.add(call.words[1])
        if call.script == "tools/train.py" and "--check" not in call.words:
            config = load_config(ROOT / call.values("-c")[0], call.values("-o"))
            written.add(str(config.run_dir))
        if call.script == "tools/extract_weight.py":
            written.update(call.values("--output"))
