"""YAML as experiments are written in it, and read within bounds."""

from __future__ import annotations

import re
from typing import Any

import yaml

from passl_densecl.errors import InputError

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


class Writer(yaml.SafeDumper):
    """Puts in quotes what any reader takes for something else than a text: 1e3 ours, 1:30 others."""


Writer.yaml_implicit_resolvers = {
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
