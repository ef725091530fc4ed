"""Experiments as YAML files: read with overrides, checked against the schema, all problems reported at once, and
written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from passl_densecl.config.dialect import Writer, parse_yaml
from passl_densecl.config.schema import TASKS, Config
from passl_densecl.errors import InputError
from passl_densecl.text import quantity, suggestion, utf8


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
    return yaml.dump(tree, Dumper=Writer, sort_keys=False, allow_unicode=True, width=120)
