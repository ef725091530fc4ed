"""Experiments as YAML files: read with overrides, checked against the schema, all problems reported at once, and
written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from passl_densecl.config.schema import Config, LinearConfig, PretrainConfig
from passl_densecl.errors import InputError
from passl_densecl.text import quantity, suggestion, utf8

TASKS: dict[str, type[PretrainConfig] | type[LinearConfig]] = {"pretrain": PretrainConfig, "linear": LinearConfig}
_INTEGER_BITS = 128
_MOST_VALUES = 100_000  # of a file, aliases written out; ours have a hundred


def check_aliases(root: yaml.Node | None) -> None:
    """Refuse a file whose aliases (`*name`) unfold to an immense one, or to one without an end.

    A few lines of YAML can stand for more values than any memory holds; what walks through them all never comes back.
    Raises yaml.constructor.ConstructorError.
    """
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = 0  # until it is known
            parts = () if isinstance(node, yaml.ScalarNode) else node.value
            sizes[id(node)] = 1 + sum(
                size(one) for part in parts for one in (part if isinstance(part, tuple) else [part])
            )
        if not 0 < sizes[id(node)] <= _MOST_VALUES:
            much = f"aliases that unfold to more than {_MOST_VALUES:,} values"
            problem = much if sizes[id(node)] else "an alias of what it stands in"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return sizes[id(node)]

    if root is not None:
        size(root)


class _Reader(yaml.SafeLoader):
    """YAML as people mean it: 1e-4 is a number, only true/false are booleans; a repeated key is an error, and so are
    010 and 1:30, which YAML 1.1 takes for 8 and 90.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.repeated: list[tuple[str, str]] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:  # as written: what `<<` merges in later repeats nothing
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key.start_mark)
            line = key.start_mark.line + 1
            if key.value in lines:
                self.repeated.append((key.value, f"given twice, in lines {lines[key.value]} and {line}; keep one"))
            lines.setdefault(key.value, line)
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value, text = super().construct_yaml_int(node), node.value
        problem = None
        if value.bit_length() > _INTEGER_BITS:  # Python refuses to print very large ones, in a message too
            problem = "a number that is too large"
        elif re.fullmatch(r"[-+]?(0[0-7_]+|[0-9_]+(:[0-9]+)+)", text):
            how, other = ("base 60", "") if ":" in text else ("octal", f" or {int(text.replace('_', ''))}")
            problem = f"{text} stands for {value} in YAML 1.1 ({how}); write {value}{other}, or '{text}' for a text"
        if problem:
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return value


_Reader.add_constructor("tag:yaml.org,2002:int", _Reader.construct_yaml_int)
_Reader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if not tag.endswith((":bool", ":float", ":timestamp"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Reader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_FLOAT = r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"
_Reader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_FLOAT), list("-+0123456789."))


class _Writer(yaml.SafeDumper):
    """Puts in quotes what any reader takes for something else than a text: 1e3 ours, 1:30 others."""


_Writer.yaml_implicit_resolvers = {
    first: _Reader.yaml_implicit_resolvers.get(first, []) + rules
    for first, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()
}


def parse_yaml(text: str, what: str) -> tuple[Any, list[tuple[str, str]]]:
    """What a YAML text says, and its repeated keys as (key, message). Raises InputError naming `what` and the line."""
    try:
        reader = _Reader(text)
        node = reader.get_single_node()
        check_aliases(node)
        return None if node is None else reader.construct_document(node), reader.repeated
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise InputError(f"{what}{where}: not readable as YAML: {problem}") from None


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The checked experiment in the YAML file `path`, or in the packaged config of that name, with `key=value`
    overrides such as `data.root=photos`.

    Raises InputError, listing every problem at once.
    """
    path = Path(path)
    if not path.is_file():
        from passl_densecl.config.packaged import find_config

        path = find_config(path)
    try:
        text = utf8(path.read_bytes()).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config {str(path)!r}: cannot be read as UTF-8 text: {error}") from None
    tree, problems = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected a mapping of keys such as 'task: pretrain', got {tree!r:.60}")
    if overrides:
        from passl_densecl.config.overrides import apply_override

        for override in overrides:
            problems += apply_override(tree, override)
    return parse_config(tree, source=str(path), problems=problems)


def parse_config(tree: dict[str, Any], *, source: str = "config", problems: Iterable[tuple[str, str]] = ()) -> Config:
    """The checked experiment in a plain mapping. Raises InputError, listing every problem at once."""
    found = list(problems)
    task = tree.get("task")
    cls = TASKS.get(task) if isinstance(task, str) else None
    config = None
    if cls is None:
        got = f"got {tree['task']!r:.60}" if "task" in tree else "it is missing"
        found.append(("task", f"expected 'pretrain' or 'linear'; {got}{suggestion(str(task), TASKS)}"))
    else:
        try:
            config = cls.model_validate(tree)
            found += config.problems()
        except ValidationError as error:
            from passl_densecl.config.invalid import explained  # a valid config needs none of it

            found += explained(cls, error)
    if found or config is None:
        width = max(len(key) for key, _ in found)
        lines = [f"  {key:<{width}}   {message}" for key, message in found]
        raise InputError("\n".join([f"{source}: {quantity(len(found), 'problem')}", *lines]))
    return config


def dump_config(config: Config) -> str:
    """The resolved experiment as YAML that load_config reads back to the same value."""
    tree = config.model_dump(mode="json")
    return yaml.dump(tree, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=120)
