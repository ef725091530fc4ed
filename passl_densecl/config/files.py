"""Experiments as YAML files: read with overrides, checked against the schema, all problems reported at once, and
written.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from passl_densecl.config.packaged import find_config
from passl_densecl.config.schema import Config, LinearConfig, PretrainConfig, models_in
from passl_densecl.errors import InputError
from passl_densecl.text import quantity, suggestion, utf8

_CLASSES: dict[str, type[PretrainConfig] | type[LinearConfig]] = {"pretrain": PretrainConfig, "linear": LinearConfig}
_INTEGER_BITS = 128
_MOST_VALUES = 100_000  # of a file, aliases written out; ours have a hundred


def check_aliases(root: yaml.Node | None) -> None:
    """Refuse a file whose aliases (`*name`) unfold to an immense one, or to one without an end.

    A few lines of YAML can stand for more values than any memory holds; what walks through them all never comes back.
    Raises yaml.constructor.ConstructorError.
    """
    sizes: dict[int, int] = {}
    waiting = [root] if root is not None else []
    opened: set[int] = set()
    while waiting:
        node = waiting[-1]
        value = [] if isinstance(node, yaml.ScalarNode) else node.value
        inside = [part for entry in value for part in (entry if isinstance(entry, tuple) else (entry,))]
        new = [part for part in inside if id(part) not in sizes]
        if new and id(node) not in opened:
            opened.add(id(node))
            waiting += new
            continue
        waiting.pop()
        if any(id(part) in opened and id(part) not in sizes for part in inside):
            raise yaml.constructor.ConstructorError(None, None, "an alias of what it stands in", node.start_mark)
        sizes[id(node)] = 1 + sum(sizes[id(part)] for part in inside)
        if sizes[id(node)] > _MOST_VALUES:
            raise yaml.constructor.ConstructorError(
                None, None, f"aliases that unfold to more than {_MOST_VALUES:,} values", node.start_mark
            )


class _Reader(yaml.SafeLoader):
    """YAML as people mean it: 1e-4 is a number, only true/false are booleans; a repeated key is an error, and so are
    010 and 1:30, which YAML 1.1 takes for 8 and 90.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.repeated: list[tuple[str, str]] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first_line: dict[str, int] = {}
        for key, _ in node.value:  # as written: what `<<` merges in later repeats nothing
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key.start_mark)
            if key.value in first_line:
                lines = f"lines {first_line[key.value]} and {line}"
                self.repeated.append((key.value, f"given twice, in {lines}; keep one"))
            first_line.setdefault(key.value, line)
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
_Reader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"
    ),
    list("-+0123456789."),
)


class _Writer(yaml.SafeDumper):
    """Puts in quotes what any reader takes for something else than a text: 1e3 ours, 1:30 others."""


_Writer.yaml_implicit_resolvers = {
    first: _Reader.yaml_implicit_resolvers.get(first, []) + rules
    for first, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()
}


def _parse(text: str, what: str) -> tuple[Any, list[tuple[str, str]]]:
    try:
        reader = _Reader(text)
        try:
            node = reader.get_single_node()
            check_aliases(node)
            return None if node is None else reader.construct_document(node), reader.repeated
        finally:
            reader.dispose()
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
    path = find_config(path)
    try:
        text = utf8(path.read_bytes()).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config {str(path)!r}: cannot be read as UTF-8 text: {error}") from None
    tree, problems = _parse(text, str(path))
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected a mapping of keys such as 'task: pretrain', got {tree!r:.60}")
    for override in overrides:
        problems += _apply_override(tree, override)
    return parse_config(tree, source=str(path), problems=problems)


def parse_config(tree: dict[str, Any], *, source: str = "config", problems: Iterable[tuple[str, str]] = ()) -> Config:
    """The checked experiment in a plain mapping. Raises InputError, listing every problem at once."""
    found = list(problems)
    task = tree.get("task")
    cls = _CLASSES.get(task) if isinstance(task, str) else None
    config = None
    if cls is None:
        got = f"got {tree['task']!r:.60}" if "task" in tree else "it is missing"
        found.append(("task", f"expected 'pretrain' or 'linear'; {got}{suggestion(str(task), _CLASSES)}"))
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


def _apply_override(tree: dict[str, Any], override: str) -> list[tuple[str, str]]:
    """Write `a.b.0.c=value` into `tree`: as it is where the key takes a text, else read as YAML. Problems come back,
    wrong keys are left to the check.
    """
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key or not all(key.split(".")):
        return [(f"-o {override}", "expected key=value, for example -o data.root=photos")]
    node: Any = tree
    *parents, last = key.split(".")
    value, problems = text, []
    takes_text, nullable = _takes_text(_CLASSES.get(str(tree.get("task"))), key.split("."))
    if nullable and text == "null":
        value = None
    elif not takes_text:
        value, problems = _parse(text, f"-o {override}")
    for depth, part in enumerate(parents):
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}  # a section that the file leaves to its defaults; the check knows wrong names
        node = _child(node, part)
        if not isinstance(node, (dict, list)):
            missing = ".".join(parents[: depth + 1])
            return [(f"-o {key}", f"the file has no section {missing!r}")]
    if isinstance(node, list):
        position = _position(last, node)
        if position is None:
            return [(f"-o {key}", f"expected a position from 0 to {len(node) - 1}, got {last!r}")]
        node[position] = value
    else:
        node[last] = value
    return problems


def _takes_text(cls: type[BaseModel] | None, parts: Sequence[str]) -> tuple[bool, bool]:
    """Whether the key's value is a text or a path whatever stands there, and whether it may be null."""
    annotations: list[Any] = [cls]
    for part in parts:
        models = [model for annotation in annotations for model in models_in(annotation)]
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        annotations = [field.annotation for field in fields] or (annotations if part.isdigit() else [])
    choices = {get_args(one)[0] if get_origin(one) is Annotated else one for a in annotations for one in _members(a)}
    return str in choices and choices <= {str, type(None)}, type(None) in choices


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _child(node: Any, part: str) -> Any:
    if isinstance(node, dict):
        return node.get(part)
    position = _position(part, node)
    return None if position is None else node[position]


def _position(part: str, node: list[Any]) -> int | None:
    """The place in a list that a part of a key names; None when there is none."""
    if not re.fullmatch(r"[0-9]{1,9}", part) or int(part) >= len(node):
        return None
    return int(part)
