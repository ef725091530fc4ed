"""Overrides on the command line, `key=value`, read as the type of the key has it."""

from __future__ import annotations

import re
import types
from collections.abc import Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from passl_densecl.config.dialect import parse_yaml
from passl_densecl.config.schema import TASKS


def apply_override(tree: dict[str, Any], override: str) -> list[tuple[str, str]]:
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
    takes_text, nullable = _takes_text(TASKS.get(str(tree.get("task"))), key.split("."))
    if nullable and text == "null":
        value = None
    elif not takes_text:
        value, problems = parse_yaml(text, f"-o {override}")
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


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Every model class inside an annotation such as tuple[A | B, ...]."""
    if isinstance(annotation, type) and not get_origin(annotation):
        return [annotation] if issubclass(annotation, BaseModel) else []
    if get_origin(annotation) in (Union, types.UnionType, tuple, list, Annotated):
        return [model for part in get_args(annotation) for model in models_in(part)]
    return []


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _child(node: Any, part: str) -> Any:
    if isinstance(node, dict):
        return node.get(part)
    position = _position(part, node)
    return None if position is None else node[position]


def _position(part: str, node: list[Any]) -> int | None:
    """The place in a list that a part of a key names; None when there is none."""
    return int(part) if re.fullmatch(r"[0-9]{1,9}", part) and int(part) < len(node) else None
