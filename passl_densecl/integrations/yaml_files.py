"""The toolboxes' YAML: files that include others (`_BASE_`), tags such as !LinearWarmup, tuples written as text."""

from __future__ import annotations

import ast
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from passl_densecl.config import check_aliases
from passl_densecl.errors import InputError, option

BASES = ("_BASE_", "_base_")  # of PaddleDetection, detectron2 and AdelaiDet; of PaddleSeg
ALONE = "_inherited_"  # PaddleSeg: false in a section says that nothing of the base's section stays


@dataclass
class Tagged:
    """A value behind a tag, as PaddleDetection marks its classes: ``!LinearWarmup {steps: 500}``."""

    tag: str
    value: Any


class _Loader(yaml.SafeLoader):
    """YAML as data; tags are kept and never looked up."""


class _Dumper(yaml.SafeDumper):
    """Short lists on one line, no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _construct(loader: yaml.Loader, suffix: str, node: yaml.Node) -> Tagged:
    if isinstance(node, yaml.MappingNode):
        return Tagged(suffix, loader.construct_mapping(node, deep=True))
    if isinstance(node, yaml.SequenceNode):
        return Tagged(suffix, loader.construct_sequence(node, deep=True))
    return Tagged(suffix, loader.construct_scalar(node))  # type: ignore[arg-type]


def _represent(dumper: yaml.Dumper, value: Tagged) -> yaml.Node:
    node = dumper.represent_data(value.value)
    node.tag = f"!{value.tag}"
    return node


_Loader.add_multi_constructor("!", _construct)  # pyright: ignore[reportArgumentType]
_Dumper.add_representer(Tagged, _represent)  # pyright: ignore[reportArgumentType]
_Dumper.add_representer(
    list,
    lambda dumper, value: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", value, flow_style=all(isinstance(v, (int, float, str)) for v in value)
    ),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """One file as it stands, without its bases.

    Raises:
        InputError: it cannot be read, is no YAML, or is not a table of keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
        check_aliases(yaml.compose(text, Loader=_Loader))
        content = yaml.load(text, Loader=_Loader)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # TypeError: a key that is a list
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected keys and values, the file holds {type(content).__name__}")
    return content


def resolve(path: Path, _above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file merged with its bases as its toolbox does: later bases over earlier ones, the file over all.

    Raises:
        InputError: as :func:`read_yaml`; a base that is missing or includes itself.
    """
    if path.resolve() in _above:
        raise InputError(f"{path} includes itself, through {' → '.join(str(p) for p in _above)}")
    content = read_yaml(path)
    merged: dict[str, Any] = {}
    for key in BASES:
        names = content.pop(key, [])
        names = names if isinstance(names, list) else [names]
        if not all(isinstance(name, str) for name in names):
            raise InputError(f"{path}: {key}: expected the name of a file, or a list of names")
        for name in names:
            base = path.parent / os.path.expanduser(name)
            if not base.is_file():
                raise InputError(
                    f"{path}: its base {name} is not at {base}; put the file into the toolbox's clone "
                    f"(configs/densecl/), or give `prepare` the clone as {option('toolbox_dir')}"
                )
            merged = merge(merged, resolve(base, (*_above, path.resolve())))
    return merge(merged, content)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Tables are merged key by key; anything else, lists included, is replaced."""
    if over.get(ALONE) is False:
        return {key: value for key, value in over.items() if key != ALONE}
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def dump(content: dict[str, Any]) -> str:
    """Content of :func:`read_yaml` as text from which it, and the toolbox, read the same again."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=False)


def find(content: object, *keys: str, default: Any = None) -> Any:
    """The value under nested keys, text such as "(1, 2)" read as detectron2 does; `default` where there is none."""
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            return default
        content = content[key]
    if isinstance(content, str) and content[:1] in "([":
        try:
            return ast.literal_eval(content)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return content
    return content


def put(content: dict[str, Any], keys: tuple[str, ...], value: object) -> None:
    """Set the value under nested keys, making the tables on the way."""
    for key in keys[:-1]:
        content = content.setdefault(key, {})
    content[keys[-1]] = value


def entries(steps: object, name: str) -> list[dict[str, Any]]:
    """The settings of every step called `name` in a list of transforms, as Paddle's toolboxes write them.

    ``- NormalizeImage: {…}`` of PaddleDetection and PaddleClas, ``- {type: Normalize, …}`` of PaddleSeg.
    """
    found = []
    for step in steps if isinstance(steps, list) else []:
        if isinstance(step, dict) and step.get("type") == name:
            found.append(step)
        elif isinstance(step, dict) and name in step:
            found.append(step[name] or {})
    return found
