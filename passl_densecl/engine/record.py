"""A run is what its record says: what is asked of a run that continues is compared with what its checkpoint records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from passl_densecl.config import RANDOM, Config, PretrainConfig, load_config, parse_config
from passl_densecl.disk import sha256_of, whole_file
from passl_densecl.errors import InputError, option, printable
from passl_densecl.reliability.checkpoint import MODEL, Checkpoint
from passl_densecl.text import listed
from passl_densecl.weights.card import Parent
from passl_densecl.weights.files import read_card, weights_file

# Keys that say what the network is; and prefixes of keys that say nothing of what is learned.
_NETWORK = ("task", "model.depth", "model.stem_stride", "model.last_stride", "model.hidden_dim", "model.out_dim",
            "model.num_grid", "model.queue_len", "model.dense")  # fmt: skip
_PLUMBING = ("name", "device", "checkpoint.", "log_every_steps", "guard.", "dist_timeout", "evaluation",
             "monitor", "data.num_workers", "data.max_bad_share", "loggers", "report")  # fmt: skip
_FOLDERS = ("root", "list_file")


@dataclass(frozen=True)
class Change:
    """A setting that differs from the record: its dotted key, and both values as text."""

    key: str
    before: str
    now: str

    @property
    def is_network(self) -> bool:
        return self.key in _NETWORK

    @property
    def is_plumbing(self) -> bool:
        if self.key == "epochs":  # training longer
            return int(self.now) > int(self.before)
        return self.key.startswith(_PLUMBING)

    def __str__(self) -> str:
        return f"{self.key} {self.before} → {self.now}"


def check_settings(start: Checkpoint, config: Config, *, accept_changes: bool) -> list[Change]:
    """What of the settings differs from those that the checkpoint was trained with, where it may.

    Raises:
        InputError: the network differs, or, without `accept_changes`, the recipe; names every key with both values.
    """
    recorded = recorded_settings(start)
    if recorded is None:
        return []
    changes = list(differences(recorded, config, folders=_has_folders(start)))
    wrong = [one for one in changes if one.is_network or not (one.is_plumbing or accept_changes)]
    if not wrong:
        return changes
    width = max(len(one.key) for one in wrong)
    lines = [
        f"  {one.key:<{width}}   {one.before} → {one.now}"
        + ("   (the network: cannot change)" if one.is_network else "")
        for one in wrong
    ]
    agreeing = {one.key: one.before for one in wrong}
    if agreeing.pop("model.dense", None):  # no setting of its own: a λ above 0
        assert isinstance(recorded, PretrainConfig)
        agreeing["model.loss_lambda"] = f"{recorded.model.loss_lambda:g}"
    set_back = printable(" ".join(f"{key}={value}" for key, value in agreeing.items()))
    ways = [f"set what it was trained with ({set_back})", "start another run with name=NAME"]
    if not any(one.is_network for one in wrong):
        ways.insert(1, f"add {option('accept_changes')} to go on with the new values")
    raise InputError(
        "\n".join([f"{option('resume', start.path)}: trained with other settings:", *lines, f"{'; or '.join(ways)}"])
    )


def keep_config(start: Checkpoint, run_dir: Path) -> None:
    """The config that held until now stays beside the new one, under the step from which it held."""
    if not (run_dir / "config.yaml").is_file():
        return
    content = (run_dir / "config.yaml").read_bytes()
    kept = run_dir / f"config_from_step_{start.state.get('config_since', 0):08d}.yaml"
    if kept.exists() and kept.read_bytes() != content:  # of an attempt from this checkpoint that saved nothing
        kept = run_dir / f"config_from_step_{start.step:08d}.yaml"
    with whole_file(kept) as file:
        file.write(content)


def recorded_settings(start: Checkpoint) -> Config | None:
    """The config of a checkpoint: its own record, for older ones that of its run folder or card; None for none."""
    tree = start.state.get("config")
    if isinstance(tree, dict):
        return parse_config(tree, source=f"{start.path / 'state.json'}, the config in it")
    if (beside := _config_beside(start)).is_file():
        return load_config(beside)
    from passl_densecl.weights.recorded import recorded_config

    return recorded_config(start.path / MODEL)


def differences(recorded: Config, config: Config, *, folders: bool = True) -> Iterator[Change]:
    """The settings with different values; without `folders` those that name folders are left out."""
    before, now = _settings(recorded), _settings(config)
    for key in dict.fromkeys([*before, *now]):
        if key != "output_dir" and before.get(key) != now.get(key) and (folders or key.split(".")[-1] not in _FOLDERS):
            yield Change(key, _text(before.get(key)), _text(now.get(key)))


def check_classes(start: Checkpoint, classes: Sequence[str]) -> None:
    """Raises InputError when the classes of the data are not those that the checkpoint's classifier has."""
    recorded = start.state.get("classes")
    if isinstance(recorded, list) and list(classes) != recorded:
        names = listed([str(one) for one in recorded])
        raise InputError(
            f"{option('resume', start.path)}: its classifier has the classes {names}, data.train.root holds "
            f"{listed(classes)}; a classifier is continued on its own classes"
        )


def check_parents(start: Checkpoint, **weights: str | None) -> tuple[Parent, ...]:
    """The files that the weights of a run came from, as its checkpoint's card says.

    Raises InputError when an option, `load` or `pretrained`, gives other weights.
    """
    card = read_card(start.path / MODEL)
    parents = card.parents if card else ()
    for name, path in weights.items():
        if path is None or card is None or (path == RANDOM and not parents):
            continue
        found = "" if path == RANDOM else sha256_of(weights_file(Path(path)))
        if found not in [parent.sha256 for parent in parents]:
            origin = listed([f"{parent.file} (sha256 {parent.sha256[:12]}…)" for parent in parents], quoted=False)
            given = f"{path} (sha256 {found[:12]}…)" if found else path
            raise InputError(
                f"{option(name)} {given}: the run at {start.path} started from {origin or 'random weights'}. A run "
                f"that continues reads no other weights: omit {option(name)}, or start another run with name=NAME"
            )
    return parents


def _has_folders(start: Checkpoint) -> bool:
    return isinstance(start.state.get("config"), dict) or _config_beside(start).is_file()


def _config_beside(start: Checkpoint) -> Path:
    return start.path.resolve().parent.parent / "config.yaml"


def _settings(config: Config) -> dict[str, Any]:
    settings = dict(_leaves(config.model_dump(mode="json")))
    if isinstance(config, PretrainConfig):
        settings["model.dense"] = config.model.loss_lambda > 0  # whether there is a dense head and queue
    return settings


def _leaves(tree: dict | list, before: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(item, (dict, list)):
            yield from _leaves(item, f"{before}{key}.")
        else:
            yield f"{before}{key}", item


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
