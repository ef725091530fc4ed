"""Weights into a repository of the Hugging Face Hub: model.safetensors, config.json and a model card, in one commit."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from passl_densecl.errors import InputError, option
from passl_densecl.text import first_line
from passl_densecl.weights.card import CLASSIFIER, FOREIGN, Card, Parent
from passl_densecl.weights.files import read_weights, weights_file
from passl_densecl.weights.hub import PREFIX, WEIGHTS, hub_library
from passl_densecl.weights.recorded import recorded_card
from passl_densecl.weights.safetensors_files import write_safetensors

_CONFIG, _README = "config.json", "README.md"
_ABOUT = {
    "depth": "ResNet depth",
    "stem_stride": "stem stride",
    "last_stride": "last stride",
    "encoder": "encoder",
    "epoch": "epochs trained",
    "step": "optimizer steps",
    "names": "names of the weights",
    "version": "passl_densecl",
}


def push(
    source: str | os.PathLike[str],
    repository: str,
    *,
    revision: str | None = None,
    private: bool = False,
    license: str | None = None,
    message: str | None = None,
    overwrite: bool = False,
) -> str:
    """Publish the weights of a run, a checkpoint or a file as they are; returns the address of the commit.

    A checkpoint is published whole, with both encoders, heads and queues; extract its backbone first to publish only
    that. The repository is created if it does not exist.

    Args:
        source: run folder, checkpoint or file of weights, one flat table of arrays.
        repository: OWNER/NAME.
        revision: an existing branch; main without it.
        private: of a repository that is created: nobody else can see it.
        license: for the model card, such as "apache-2.0".
        message: of the commit.
        overwrite: replace weights, config and card that the repository has; the former ones stay in its history.

    Raises:
        InputError: no weights there, not one flat table, files that would be replaced, no token, or the Hub refuses.
    """
    file = weights_file(source)
    hub = hub_library("push")
    from huggingface_hub import errors

    repository = repository.removeprefix(PREFIX)
    if hub.get_token() is None:
        raise InputError(f"{repository}: there is no token: run `hf auth login`, or set HF_TOKEN to one that may write")
    api = hub.HfApi()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        card = _write(file, folder / WEIGHTS)
        (folder / _CONFIG).write_text(json.dumps({"library_name": "passl_densecl", **card.to_dict()}, indent=1) + "\n")
        (folder / _README).write_text(model_card(card, repository, license), encoding="utf-8")
        names = (WEIGHTS, _CONFIG, _README)
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            there = (
                [] if overwrite else [each for each in names if api.file_exists(repository, each, revision=revision)]
            )
            if there:
                raise InputError(
                    f"{repository} already has {', '.join(there)}; give {option('overwrite')} to replace them"
                )
            commit = api.create_commit(
                repository,
                [hub.CommitOperationAdd(each, folder / each) for each in names],
                commit_message=message or f"{card.kind}, by passl_densecl {card.version}",
                revision=revision,
            )
        except errors.HFValidationError as error:
            raise InputError(f"{repository!r}: expected OWNER/NAME ({error})") from None
        except (errors.HfHubHTTPError, OSError) as error:
            raise InputError(f"{repository}: the Hub refused, or was not reached: {first_line(error)}") from None
    return commit.commit_url


def _write(file: Path, target: Path) -> Card:
    """Make ``target`` of the weights in ``file``, which a safetensors file already is; returns its identity card."""
    read = read_weights(file)
    old = recorded_card(file)
    if read.format == "safetensors":
        shutil.copyfile(file, target)
        return old or Card(kind=FOREIGN)
    kind = old.kind if old else FOREIGN
    card = (old or Card(kind=kind)).replace(parents=(Parent.of(file, kind),))
    write_safetensors(target, read.content, card=card)
    return card


def model_card(card: Card, repository: str, license: str | None = None) -> str:
    """The README.md of a repository: what the weights are, how they are used, and what they were made from."""
    values = card.to_dict()
    task = "image-classification" if card.kind == CLASSIFIER else "image-feature-extraction"
    head: dict[str, Any] = {"library_name": "passl_densecl", "pipeline_tag": task}
    head["tags"] = ["self-supervised-learning", "densecl", "paddlepaddle", "resnet"]
    if license:
        head["license"] = license
    rows = [f"| {title} | {values[key]} |" for key, title in _ABOUT.items() if key in values]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {repository.rpartition('/')[2]}",
        f"A {card.kind} by [passl_densecl](https://pypi.org/project/passl-densecl/) (DenseCL, CVPR 2021).",
        "\n".join(["| | |", "|---|---|", *rows]),
        f'## Use\n\n```python\nfrom passl_densecl import get_model\n\nmodel = get_model("{PREFIX}{repository}")\n```',
    ]
    if card.classes:
        parts.append(f"## Classes\n\n{', '.join(card.classes)}")
    if card.config:
        recipe = yaml.safe_dump(card.config, sort_keys=False, allow_unicode=True)
        parts.append(f"## Recipe\n\n```yaml\n{recipe}```")
    if card.parents:
        lines = [f"- `{parent.file}` ({parent.kind}), SHA-256 `{parent.sha256}`" for parent in card.parents]
        parts.append("\n".join(["## Made from\n", *lines]))
    return "\n\n".join(parts) + "\n"
