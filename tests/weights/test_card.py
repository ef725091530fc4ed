"""Identity cards: what they say, what they leave out, and that a newer one does no harm."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from passl_densecl import __version__
from passl_densecl.config import parse_config
from passl_densecl.errors import InputError
from passl_densecl.weights.card import FORMAT, MAX_BYTES, Card, Parent, encode, run_card
from passl_densecl.weights.files import read_card, read_weights
from passl_densecl.weights.info import describe_file
from passl_densecl.weights.reading import checked_card, decode_card
from passl_densecl.weights.writing import write_weights
from tests.engine.runs import PRETRAIN


def config(**changes: object):
    tree = json.loads(json.dumps(PRETRAIN))
    tree |= {"output_dir": "/secret/output", "device": "cpu"}
    tree["data"]["root"] = "/secret/images"
    return parse_config(tree | changes)


def test_a_runs_card_says_what_its_weights_are(tmp_path):
    parent = Parent(file="w.pdparams", sha256="0" * 64, kind="backbone")
    card = run_card(config(), epoch=2, step=20, parents=(parent,))
    assert (card.kind, card.names, card.version) == ("pre-training checkpoint", "paddle", __version__)
    assert (card.depth, card.stem_stride, card.last_stride, card.epoch, card.step) == (18, 4, 2, 2, 20)
    assert card.parents == (parent,)
    assert card.config is not None
    assert card.config["optimizer"]["lr"] == 0.05
    assert card.config["model"]["hidden_dim"] == 64
    assert card.config["data"]["transforms"][0]["name"] == "RandomResizedCrop"


def test_a_card_holds_no_folders_and_nothing_of_the_machine():
    here = run_card(config(), epoch=2, step=20)
    assert "secret" not in encode(here).decode()
    there = config(output_dir="elsewhere", device="gpu", log_every_steps=7, checkpoint={"keep": 1})
    assert encode(run_card(there, epoch=2, step=20)) == encode(here)
    assert encode(run_card(config(seed=1), epoch=2, step=20)) != encode(here)


def test_a_card_goes_there_and_back():
    card = Card(
        kind="linear classifier", classes=("a", "ü", "\udcff"), parents=(Parent(file="a", sha256="b", kind="c"),)
    )
    values = decode_card(None, encode(card))  # type: ignore[arg-type]
    assert values == card.to_dict()
    assert checked_card(values or {}) == card
    assert "depth" not in card.to_dict()  # what is unknown is left out
    assert card.replace(step=3).step == 3
    assert card.step is None
    with pytest.raises(ValueError, match="frozen"):
        card.step = 4  # type: ignore[misc]


def test_a_newer_cards_entries_are_kept():
    values = {
        "kind": "embedding table",
        "names": "paddle",
        "version": "9.0",
        "tokens": [1, 2],
        "parents": [{"file": "a", "sha256": "b", "kind": "c", "size": 3}],
    }
    assert checked_card(values).to_dict() == values | {"format": 1}  # the format of cards that do not say it
    assert checked_card(values).replace(step=1).to_dict() == values | {"step": 1, "format": 1}


@pytest.mark.parametrize("suffix", [".pdparams", ".pth", ".safetensors"])
def test_a_file_with_a_card_of_a_newer_format_is_refused_with_both_numbers(tmp_path, suffix):
    arrays, path = {"a": np.ones(2, "f4")}, tmp_path / f"w{suffix}"
    write_weights(path, arrays, card={"kind": "backbone", "version": "0.1.0"})  # of before there was a format
    assert (read_card(path) or Card(kind="")).format == 1
    write_weights(path, arrays, card={"kind": "backbone", "format": FORMAT + 1})
    for read in (read_weights, read_card, describe_file):
        with pytest.raises(InputError) as caught:
            read(path)
        told = f"{path}: its identity card has format 2, this passl_densecl reads formats up to 1"
        assert str(caught.value) == f"{told}: a newer version wrote it; upgrade passl_densecl"
    for wrong in (0, -1, "2", True, 1.0, None):
        write_weights(path, arrays, card={"kind": "backbone", "format": wrong})
        with pytest.raises(InputError, match="its identity card is damaged: its format is"):
            read_weights(path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "kind: Field required"),
        ({"kind": None}, "kind: "),
        ({"kind": "backbone", "step": "many"}, "step: "),
        ({"kind": "backbone", "classes": [1]}, r"classes\.0: "),
        ({"kind": "backbone", "parents": [{"file": "x"}]}, r"parents\.0\.sha256: "),
    ],
)
def test_a_card_that_does_not_fit_is_an_input_error(values, said):
    with pytest.raises(InputError, match=rf"the identity card is damaged, or of a version .*{said}"):
        checked_card(values)


def test_a_parent_is_a_name_and_a_hash(tmp_path):
    path = tmp_path / "w.pdparams"
    path.write_bytes(b"x" * 3_000_000)
    parent = Parent.of(path, "backbone")
    assert parent.model_dump() == {
        "file": "w.pdparams",
        "sha256": hashlib.sha256(b"x" * 3_000_000).hexdigest(),
        "kind": "backbone",
    }


def test_a_card_of_no_use_is_not_written():
    with pytest.raises(ValueError, match="an identity card of"):
        encode({"kind": "x" * MAX_BYTES})
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode({"kind": float("nan")})
