"""What mkdocs does before it builds the site (mkdocs.yml names this file): a copy of the pages, completed.

The pages lie in `docs/` as GitHub shows them: `x.md` and `x_cn.md`, with links between them. In the site's copy the
READMEs are the first pages, the Chinese pages have the names that mkdocs-static-i18n wants (`x.zh.md`), links out of
`docs/` are addresses of the repository, and `<!-- generated: NAME -->` is replaced by what the code says of itself.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority

from passl_densecl import _HOME
from passl_densecl.cli.main import VERBS, verb_of
from passl_densecl.config import LinearConfig, PretrainConfig

ROOT = Path(__file__).resolve().parents[1]
COPY = tempfile.TemporaryDirectory(prefix="passl_densecl_site_")  # lives as long as the build


@event_priority(100)  # before the plugins look at docs_dir
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    if Path(config.docs_dir) != Path(COPY.name):  # once: the second language is built from the same copy
        shutil.copytree(
            config.docs_dir, COPY.name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.md", "*.py", "*.yaml")
        )
        pages = {path.name: path for path in Path(config.docs_dir).glob("*.md")}
        pages |= {"index.md": ROOT / "README.md", "index_cn.md": ROOT / "README_cn.md"}
        for name, path in pages.items():
            text = page(path.read_text(encoding="utf-8"), path.parent, str(config.repo_url))
            Path(COPY.name, name.replace("_cn.md", ".zh.md")).write_text(text, encoding="utf-8")
        config.docs_dir = COPY.name
    return config


def page(text: str, folder: Path, repository: str) -> str:
    """A page of `folder` as the site has it."""

    def target(match: re.Match[str]) -> str:
        path, hash_sign, anchor = match[1].partition("#")
        at = (folder / path).resolve()
        if at.parent.name == "images" or (at.parent == ROOT / "docs" and at.suffix == ".md"):
            return f"]({at.relative_to(ROOT / 'docs').as_posix().replace('_cn.md', '.md')}{hash_sign}{anchor})"
        if at.name in ("README.md", "README_cn.md") and at.parent == ROOT:
            return f"](index.md{hash_sign}{anchor})"
        return f"]({repository}/blob/main/{at.relative_to(ROOT).as_posix()}{hash_sign}{anchor})"

    text = re.sub(r"^\[(English|简体中文)\]\([^)]*\)\n\n", "", text, count=1, flags=re.MULTILINE)
    text = re.sub(r"\]\((?!https?:|#)([^)\s]+)\)", target, text)
    # A line break would be a space, which Chinese has neither between characters nor after punctuation.
    text = re.sub(r"(?<=[\u4e00-\u9fff])\n *(?=[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef])", "", text)
    text = re.sub(
        r"(?<=[\u3000-\u303f\uff00-\uffef])\n *(?=[\u4e00-\u9fff\uff00-\uffefA-Za-z0-9\[“]|`(?!``))", "", text
    )
    return re.sub(r"<!-- generated: (\w+) -->", lambda match: "\n".join(GENERATED[match[1]]()), text)


def cell(text: object) -> str:
    """Text for a cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


# ---------------------------------------------------------------- the configuration


Meaning = Callable[[str, str], str]  # of a key or the name of a transform or schedule, from its English description


def configuration(meaning: Meaning = lambda _, english: english) -> Iterator[str]:
    """Every key of a config: type, default, meaning."""
    shown: set[str] = set()
    for task, config in (("pretrain", PretrainConfig), ("linear", LinearConfig)):
        schema = config.model_json_schema()
        yield from ["", f"### `task: {task}`", "", *HEAD, *keys(schema, schema["$defs"], "", meaning), ""]
        for title, choice in schema["$defs"].items():
            name = choice["properties"].get("name", {}).get("const")
            if name and name != "SGD" and title not in shown:
                shown.add(title)
                kind = "schedule" if name.islower() else "transform"
                rows = list(keys(choice, schema["$defs"], "", meaning)) if len(choice["properties"]) > 1 else []
                about = meaning(name, choice.get("description", "").replace("``", "`"))
                yield from [f"#### {kind} `{name}`", "", about, "", *(HEAD if rows else []), *rows, ""]


HEAD = ["| key | type | default | meaning |", "|---|---|---|---|"]


def keys(schema: dict[str, Any], definitions: dict[str, Any], prefix: str, meaning: Meaning) -> Iterator[str]:
    required = schema.get("required", [])
    for name, field in schema["properties"].items():
        if name in ("task", "name") and "const" in field:
            continue
        parts = [field, *field.get("anyOf", [])]
        sections = [definitions[part["$ref"].rsplit("/", 1)[1]] for part in parts if "$ref" in part]
        default = f"`{written(field['default'])}`" if "default" in field else "as below"
        if name in required:
            default = "**required**"
        about = cell(meaning(f"{prefix}{name}", field.get("description", "")))
        yield f"| `{prefix}{name}` | {cell(kind_of(field))} | {default} | {about} |"
        for section in sections:
            yield from keys(section, definitions, f"{prefix}{name}.", meaning)


def written(value: object) -> str:
    """A value as YAML has it."""
    return value if isinstance(value, str) else json.dumps(value)


KINDS = {
    "integer": "whole number",
    "number": "number",
    "boolean": "`true`, `false`",
    "null": "`null`",
    "string": "text",
}


def kind_of(field: dict[str, Any]) -> str:
    """The type of a JSON schema in words."""
    if "anyOf" in field:
        return " or ".join(kind_of(part) for part in field["anyOf"])
    if "$ref" in field:
        return "section"
    if "oneOf" in field:
        return "one of those below"
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if "prefixItems" in field:
        return f"[{', '.join(map(kind_of, field['prefixItems']))}]"
    if field.get("type") == "array":
        return f"list of {kind_of(field['items'])}"
    words = KINDS.get(field.get("type", ""), "path")
    for key, preposition in (("minimum", "from"), ("exclusiveMinimum", "over"), ("maximum", "to")):
        words += f" {preposition} {field[key]:g}" if key in field else ""
    return words


def configuration_cn() -> Iterator[str]:
    """The same in Chinese; KeyError where configuration_cn.yaml lacks a meaning."""
    meanings = yaml.safe_load((ROOT / "docs" / "configuration_cn.yaml").read_text(encoding="utf-8"))

    def meaning(key: str, english: str) -> str:
        last = key.rpartition(".")[2]
        return meanings.get(key) or (meanings[last] if english else meanings.get(last, ""))

    for line in configuration(meaning):
        for english, chinese in CHINESE:
            line = re.sub(english, chinese, line)
        yield line


CHINESE = (
    (re.escape(HEAD[0]), "| 配置项 | 类型 | 默认值 | 含义 |"),
    (r"^#### transform", "#### 变换"),
    (r"^#### schedule", "#### 学习率策略"),
    (r"\bwhole number\b", "整数"),
    (r"\bnumber\b", "数值"),
    (r"\| text \|", "| 字符串 |"),
    (r"\bpath\b", "路径"),
    (r"\bsection\b", "一组配置项"),
    (r"\bone of those below\b", "下列之一"),
    (r"\blist of ", "列表："),
    (r" from (\d+)", r" ≥ \1"),
    (r" over (\d+)", r" > \1"),
    (r" to (\d)", r" 且 ≤ \1"),
    (r"(?<=[\u4e00-\u9fff]) or ", "或 "),
    (r" or ", " 或 "),
    (r"`, `", "`、`"),
    (r"\*\*required\*\*", "**必填**"),
    (r"\bas below\b", "见下"),
)


# ---------------------------------------------------------------- the command, the API


def commands() -> Iterator[str]:
    """Every verb of `densecl`, its options and examples, as its parser has them."""
    for name in VERBS:
        verb = verb_of(name)
        parser = verb.parser(f"densecl {name}")
        yield from ["", f"## densecl {name}", ""]
        for paragraph in textwrap.dedent(str(parser.description or "")).strip().split("\n\n"):
            is_table = re.search(r"^\S+ {2,}|^ ", paragraph, re.MULTILINE)  # as the parser's own help has it
            yield from ["```text", paragraph, "```", ""] if is_table else [" ".join(paragraph.split()), ""]
        formatter, rows = parser._get_formatter(), []
        for action in parser._actions:
            if action.help == argparse.SUPPRESS or action.dest in ("help", "_places"):
                continue
            value = formatter._format_args(action, formatter._get_default_metavar_for_optional(action))
            words = " ".join([", ".join(action.option_strings), value]).strip().replace("|", "\\|")
            rows.append(f"| `{words}` | {cell(formatter._expand_help(action))} |")
        yield from ["| option | meaning |", "|---|---|", *rows] if rows else []
        if verb.examples:
            yield from ["", "```bash", *(f"densecl {example}" for example in verb.examples), "```"]


def api() -> Iterator[str]:
    """The public names with their docstrings, for mkdocstrings."""
    for name, module in sorted(_HOME.items(), key=lambda pair: pair[0].lower()):
        yield from ["", f"::: {module}.{name}"]


GENERATED = {"configuration": configuration, "configuration_cn": configuration_cn, "commands": commands, "api": api}
