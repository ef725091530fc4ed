"""Messages for invalid configs: for each wrong key what was expected, what stands there, what is meant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from passl_densecl.config.overrides import models_in
from passl_densecl.config.schema import PretrainConfig
from passl_densecl.text import suggestion

OTHER_NAMES = {  # what people write for a key
    "arch": "model.depth",
    "base_lr": "optimizer.lr",
    "bs": "batch_size",
    "data_dir": "data.root",
    "data_path": "data.root",
    "dataset": "data.root",
    "k": "model.queue_len",
    "lambda": "model.loss_lambda",
    "learning_rate": "optimizer.lr",
    "lr": "optimizer.lr",
    "max_epochs": "epochs",
    "num_epochs": "epochs",
    "path": "data.root",
    "queue_size": "model.queue_len",
    "t": "model.temperature",
    "tau": "model.temperature",
    "warmup": "schedule.warmup_epochs",
    "wd": "optimizer.weight_decay",
    "workers": "data.num_workers",
}


def explained(cls: type[BaseModel], error: ValidationError) -> list[tuple[str, str]]:
    """(dotted key, sentence) of every problem that pydantic found in a config of this class."""
    return _merged([_explain(cls, problem) for problem in error.errors()])


def _merged(problems: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """One line a key: the choices of a union joined by 'or', and no complaint about a list whose entries are wrong."""
    merged: dict[str, str] = {}
    for key, message in problems:
        if any(other.startswith(key + ".") for other, _ in problems) and message.startswith("expected a list of"):
            continue
        before = merged.get(key)
        if before and before.startswith("expected ") and message.startswith("expected "):
            message = f"{before.split(', got ')[0]} or {message.removeprefix('expected ')}"
        merged[key] = message
    return list(merged.items())


def _explain(cls: type[BaseModel], problem: Any) -> tuple[str, str]:
    """(dotted key, sentence) of one pydantic problem."""
    keys, owner = _walk(cls, problem["loc"])
    kind, value, context = problem["type"], problem["input"], problem.get("ctx", {})
    name = ".".join(keys)
    if kind == "extra_forbidden":
        siblings = list(owner.model_fields) if owner else []
        if keys[-1] in OTHER_NAMES:
            return name, f"unknown key; it is called {OTHER_NAMES[keys[-1]]} here"
        return name, "unknown key" + (suggestion(keys[-1], siblings) or f"; known: {', '.join(siblings)}")
    if kind == "missing":
        field = owner.model_fields.get(keys[-1]) if owner else None
        return name, "missing" + (f": {field.description}" if field and field.description else "; it has no default")
    if kind in ("union_tag_invalid", "literal_error"):
        expected = context.get("expected_tags") or context.get("expected")
        known = re.findall(r"[^ ,']+", str(expected))
        return name, f"expected {expected}, got {_shown(value)}{suggestion(str(context.get('tag', value)), known)}"
    if kind == "union_tag_not_found":
        return name, f"expected a mapping with a 'name', got {_shown(value)}"
    field = owner.model_fields.get(keys[-1]) if owner and keys else None  # None for an entry of a list
    nullable = field is not None and type(None) in get_args(field.annotation)
    hint = "; write null for none" if nullable and value in ("None", "none", "nil") else ""
    if kind == "string_type" and isinstance(value, (int, float)):
        hint = "; put it in quotes"
    return name, f"expected {_wanted(kind, context, problem['msg'])}, got {_shown(value)}{hint}"


_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a section of keys",
    "dict_type": "a section of keys",
    "model_attributes_type": "a section of keys",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of {max_length} at most",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "string_too_short": "a text that is not empty",
    "string_pattern_mismatch": "one word without slashes or spaces",
    "string_unicode": "a text of whole characters",
    "finite_number": "a finite number",
}


def _wanted(kind: str, context: dict[str, Any], message: str) -> str:
    template = _WANTED.get(kind)
    if template:
        return template.format(**context)
    return message.removeprefix("Value error, ")


def _walk(cls: type[BaseModel], loc: Sequence[str | int]) -> tuple[list[str], type[BaseModel] | None]:
    """The keys as the user wrote them (tags of unions and names of types left out), and the class that owns the last
    one.
    """
    keys: list[str] = []
    owner: type[BaseModel] | None = cls
    choices: list[type[BaseModel]] = [cls]
    for part in loc:
        if isinstance(part, int):
            keys.append(str(part))
            continue
        tagged = [c for c in choices if len(choices) > 1 and _tag(c) == part]
        if tagged:
            choices = tagged
            continue
        if not choices:  # inside a plain union, pydantic names the member that it tried
            continue
        owner = choices[0]
        keys.append(part)
        field = owner.model_fields.get(part)
        choices = models_in(field.annotation) if field else []
    return keys, owner


def known_keys() -> dict[str, str]:
    """Last part → whole dotted key, of every key of pre-training that has a section or none."""
    found: dict[str, str] = {}
    sections: list[tuple[str, type[BaseModel]]] = [("", PretrainConfig)]
    for prefix, section in sections:
        for name, field in section.model_fields.items():
            inside = models_in(field.annotation)
            if len(inside) == 1:
                sections.append((f"{prefix}{name}.", inside[0]))
            else:
                found.setdefault(name, prefix + name)
    return found


def _tag(cls: type[BaseModel]) -> str | None:
    field = cls.model_fields.get("name")
    options = get_args(field.annotation) if field else ()
    return options[0] if options else None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
