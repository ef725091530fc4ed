"""What configs have in common: their settings as flat tables, and the packaged config that a run is nearest to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from passl_densecl.config import Config, load_config
from passl_densecl.config.packaged import packaged_configs

_NAMES = ("name", "output_dir")  # which always differ
# Settings that say where and how comfortably a run goes, not what it does: a base is not chosen by them.
_PLACES = ("data.root", "data.list_file", "data.train.", "data.val.", "data.num_workers", "evaluation", "checkpoint.")
_PLACES += ("device", "seed", "log_every_steps", "guard.", "dist_timeout", "report", "monitor")
_ABSENT = "–"


def flatten(value: Any, before: str = "") -> dict[str, Any]:
    """Nested mappings and lists → dotted name → value. Entries of a list go by their `name`, else by their position."""
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        names = [str(each.get("name", "")) for each in value]
        value = {
            name if names.count(name) == 1 else str(n): each
            for n, (name, each) in enumerate(zip(names, value, strict=True))
        }
    if not isinstance(value, dict):
        return {before: value}
    return {
        name: leaf
        for key, child in value.items()
        for name, leaf in flatten(child, f"{before}.{key}" if before else str(key)).items()
    }


def settings(config: Config) -> dict[str, str]:
    """Every setting of a config by its dotted name, as YAML writes it."""
    leaves = flatten(config.model_dump(mode="json"))
    return {name: _as_yaml(value) for name, value in leaves.items() if name not in _NAMES}


def _as_yaml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_as_yaml(each) for each in value)}]"
    if isinstance(value, float):
        return f"{value:g}"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def differences(configs: Sequence[dict[str, str]]) -> list[tuple[str, ...]]:
    """(name, value in each of the configs) of the settings that are not the same in all of them."""
    names = dict.fromkeys(name for config in configs for name in config)
    rows = [(name, *(config.get(name, _ABSENT) for config in configs)) for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def nearest_base(config: Config) -> tuple[str, dict[str, str]] | None:
    """The packaged config of the same task with the fewest other settings, as (name, settings); None where there is
    none.
    """
    own = settings(config)

    def distance(base: tuple[str, dict[str, str]]) -> int:
        return sum(not name.startswith(_PLACES) for name, *_ in differences([base[1], own]))

    bases = ((name, load_config(path)) for name, path in packaged_configs().items())
    found = [(name, settings(base)) for name, base in bases if base.task == config.task]
    return min(found, key=distance, default=None)
