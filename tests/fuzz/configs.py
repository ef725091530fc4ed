"""Hostile configs and overrides."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from passl_densecl.config import dump_config, load_config
from tests.fuzz.cases import CONFIGS, ROOT, Case, Violation, check_text, only_input_errors, try_each
from tests.fuzz.mutate import NUMBERS, mutated_bytes, mutated_tree, places, values, weighted, words

DOWNSTREAM = sorted((ROOT / "configs" / "downstream").rglob("*.y*ml"))
BASES = ["config.yaml", "../../../etc/passwd", "[1, {}]", "~/x", "~nobody1/x", ".", "{a: b}", "9"]
TUPLES = ["(1, 2", "(" * 200, "[" * 99, "(1, 2)", "[0x, 1]", "(9**9**9)"]
PIECES = [
    "a: &a [x, x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\nd: &d [*c, *c, *c, *c]\ne: &e [*d, *d, *d, *d]\n"
    "f: &f [*e, *e, *e, *e]\ng: &g [*f, *f, *f, *f]\nh: &h [*g, *g, *g, *g]\ni: &i [*h, *h, *h, *h]\nj: [*i, *i, *i, "
    "*i]\n",
    "model: &m {a: *m}\n", "seed: &s [*s]\n", "name: &n\n  x: *n\n",
    "seed: !!python/object/apply:os.system ['touch pwned']\n", "seed: !!python/name:os.system\n",
    "seed: !!python/object/new:fuzz_canary.run []\n", "!!python/module:fuzz_canary\n", "seed: !!int 'x'\n",
    "seed: !!float 'x'\n", "seed: !!timestamp 2001-99-99\n", "seed: !!binary '%%'\n", "? [a, b]\n: c\n",
    "? {a: b}\n: c\n", "? !!set {a}\n: c\n", "!!set {a, b}\n", "<<: {task: linear}\n", "<<: [1]\n", "<<: *x\n",
    "%YAML 9.9\n---\n", "%TAG ! tag:x,1:\n---\n", "---\na: 1\n---\nb: 2\n", "...\n", "seed: 1:30:30\n",
    "seed: 0b111\n", "seed: 0o17\n", "seed: 1_000\n", "seed: .inf\n", "seed: .nan\n", "seed: 2001-01-01\n",
    "seed: 0x\n", "seed: -_\n", "seed: 1e99999\n", "epochs: 1e5\n", "seed: ~\n", "name: |\n  a\n  b\n",
    "name: 'a\n  b'\n", 'name: "\\x1b[31m"\n', 'name: "\\ud800"\n', "name: ../../x\n", "name: ..\n", "name: '.'\n",
    "\t- a\n", "@\n", "`\n", "- \n" * 50, "[" * 300, "{" * 300, "a: " * 300, "- " * 300, "seed: " + "9" * 5000 + "\n",
    "'" * 3, "x: " + "[" * 60 + "]" * 60 + "\n", "name: !!str 1\n", "epochs: !!null ''\n", "=: 1\n", "seed: =\n",
    "null: 1\n", "1: 2\n", "1.5: 2\n", "true: 2\n", ".nan: 1\n", "a:\n  - b\n c\n", "# \x07\n", "\ufeff", "\x00",
    "\x1b[2J\n", "\x85", "\u2028",
]  # fmt: skip
PATHS = [
    b"$HOME",
    b"${HOME}/x",
    b"$HOM",
    b"$$",
    b"$$$",
    b"${",
    b"${}",
    b"$1",
    b"~",
    b"~/x",
    b"~nobody1",
    b"a~",
    b"null",
]
PATHS += [b"photos #2", b"2024", b"caf\xe9", b"\xff\xfe", b"a\0b", b" ", b"1e3", b"010", b"<<", b"*x", b"'", b"a\nb"]
TEXT_KEYS = ["data.root", "data.list_file", "output_dir", "name", "data.train.root", "evaluation.val", "data.labels"]
_KEYS = sorted(
    {".".join(map(str, place)) for path in CONFIGS for place in places(yaml.safe_load(path.read_text("utf-8")))}
)
_POSITIONS = [f"data.transforms.{position}" for position in ("²", "-1", "0.0.0", "9" * 5000)]


def config_cases(_: Path) -> st.SearchStrategy[Case]:
    return weighted((2, mutated_config(CONFIGS)), (1, mutated_config(DOWNSTREAM, "downstream")))


@st.composite
def mutated_config(draw: Any, files: list[Path], kind: str = "") -> Case:
    text = draw(st.sampled_from([path.read_text(encoding="utf-8") for path in files]))
    how = draw(st.sampled_from(["tree", "tree", "tree", "text", "bytes"] if not kind else ["text", "text", "bytes"]))
    if how == "tree":
        tree = draw(mutated_tree(yaml.safe_load(text)))
        text = json.dumps(tree) if draw(st.booleans()) else yaml.safe_dump(_dumpable(tree), allow_unicode=True)
    elif how == "text":
        text = draw(_mutated_lines(text))
    data = text.encode("utf-8", "surrogatepass")
    if how == "bytes":
        data = draw(mutated_bytes(data, [piece.encode() for piece in PIECES]))
    return Case({"config.yaml": data}, (kind,))


def _dumpable(tree: Any) -> Any:
    """PyYAML rejects surrogates, and writes tags of its own for types that JSON does not have."""
    return json.loads(json.dumps(tree).replace("\\ud", "\\\\ud"))


@st.composite
def _mutated_lines(draw: Any, text: str) -> str:
    lines = text.splitlines(keepends=True)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines)))
        what = draw(st.sampled_from(["piece", "piece", "double", "value", "value", "indent", "base"]))
        line = lines[at] if at < len(lines) else "a: b\n"
        if what == "piece":
            lines.insert(at, draw(st.sampled_from(PIECES)))
        elif what == "double":
            lines.insert(at, line)
        elif what == "indent":
            lines.insert(at, " " * draw(st.integers(0, 9)) + line.lstrip())
        elif what == "base":
            lines.insert(at, f"_BASE_: {draw(st.sampled_from(BASES))}\n")
        else:
            value = draw(st.one_of(words, st.sampled_from(NUMBERS).map(str), st.sampled_from(TUPLES)))
            lines[at : at + 1] = [f"{line.partition(':')[0]}: {value}\n"]
    return "".join(lines)


def read_config(folder: Path, output: Path, arguments: tuple[str, ...]) -> None:
    path = folder / "config.yaml"
    if arguments == ("downstream",):
        try_each(lambda: _resolve(path))
        return
    with only_input_errors():
        check_config(load_config(path), output)


def _resolve(path: Path) -> None:
    from passl_densecl.integrations.yaml_files import dump, entries, find, resolve

    content = resolve(path)
    for place in places(content):
        find(content, *place)
    for key in list(content)[:20]:
        entries(content[key], "NormalizeImage")
    dump(content)


def check_config(config: Any, output: Path) -> None:
    """An accepted config can be written and read back, and its run stays inside the output folder."""
    text = dump_config(config)
    check_text(text, "the resolved config")
    again = output / "again.yaml"
    again.write_text(text, encoding="utf-8")
    if load_config(again) != config:
        raise Violation("the resolved config reads as another one")
    folder, top = (os.path.realpath(path) for path in (config.run_dir, config.output_dir))
    if os.path.dirname(folder) != top:
        raise Violation(f"name {config.name!r} leaves the output folder")
    for number in (config.base_lr, config.schedule(0, steps_per_epoch=3, epochs=config.epochs)):
        if not math.isfinite(number):
            raise Violation(f"a learning rate of {number}")


def override_cases(_: Path) -> st.SearchStrategy[Case]:
    known = st.sampled_from(_KEYS)
    key = weighted(
        (2, known),
        (1, words),
        (1, st.lists(words, min_size=1, max_size=4).map(".".join)),
        (1, st.tuples(known, words).map(".".join)),
        (1, st.sampled_from(["a." * 300 + "b", "task.x", *_POSITIONS])),
    )
    any_bytes = st.one_of(st.binary(max_size=30), st.sampled_from(PATHS)).map(os.fsdecode)
    value = st.one_of(
        words,
        any_bytes,
        st.sampled_from(NUMBERS).map(str),
        values.map(json.dumps),
        st.sampled_from(PIECES),
        st.sampled_from(PIECES).map(lambda piece: piece.partition(": ")[2]),
    )
    text_key = st.sampled_from(TEXT_KEYS)
    text = st.tuples(text_key, any_bytes).map("=".join)
    override = weighted((2, st.tuples(key, value).map("=".join)), (2, text), (1, words))
    files = st.sampled_from([str(path.relative_to(ROOT)) for path in CONFIGS])
    overrides = st.lists(override, min_size=1, max_size=4)
    return st.builds(lambda file, given: Case({}, (file, *given)), files, overrides)


def read_overrides(folder: Path, output: Path, arguments: tuple[str, ...]) -> None:
    with only_input_errors():
        config = load_config(ROOT / arguments[0], arguments[1:])
        check_config(config, output)
        given = dict(override.partition("=")[::2] for override in arguments[1:])
        wanted = given.get("output_dir", config.output_dir)
        if config.output_dir != wanted and not re.search("[$~]", wanted):
            raise Violation(f"output_dir {wanted!r} became {config.output_dir!r}")
