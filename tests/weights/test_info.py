"""What is in a file, for people: names, shapes, fingerprints, card; the same values in every format."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from passl_densecl.errors import InputError
from passl_densecl.weights.card import Card, Parent
from passl_densecl.weights.info import describe_file, render
from passl_densecl.weights.writing import write_weights

DATA = Path(__file__).parent / "data"
ARRAY = np.arange(6, dtype="f4").reshape(2, 3)
PLAIN = hashlib.sha256(ARRAY.tobytes()).hexdigest()


def test_nested_arrays_are_named_by_their_path(tmp_path):
    content = {"state_dict": {"conv1.weight": ARRAY}, "epoch": 3, "list": [ARRAY[:, ::2], {"x": "text"}], "none": {}}
    write_weights(tmp_path / "w.pdparams", content)
    info = describe_file(tmp_path / "w.pdparams")
    assert [(each.name, each.shape, each.dtype) for each in info.tensors] == [
        ("state_dict/conv1.weight", (2, 3), "float32"),
        ("list/0", (2, 2), "float32"),
    ]
    assert info.tensors[0].sha256 == PLAIN
    assert info.others == (("epoch", "int 3"), ("list/1/x", "str 'text'"), ("none", "a dict of 0"))
    assert (info.format, info.card, info.not_read, info.number_count) == ("pickle", None, (), 10)
    data = (tmp_path / "w.pdparams").read_bytes()
    assert (info.size, info.sha256) == (len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("suffix", [".pdparams", ".pth", ".safetensors"])
@pytest.mark.parametrize(
    "array", [ARRAY, ARRAY.astype(">f4"), np.asfortranarray(ARRAY)], ids=["plain", "big", "fortran"]
)
def test_the_fingerprint_is_of_the_values_alone(tmp_path, suffix, array):
    write_weights(tmp_path / f"w{suffix}", {"a": array})
    info = describe_file(tmp_path / f"w{suffix}")
    assert info.tensors[0].sha256 == PLAIN
    write_weights(tmp_path / f"w{suffix}", {"a": array + 1e-6})
    assert describe_file(tmp_path / f"w{suffix}").tensors[0].sha256 != PLAIN


def test_a_files_card_is_shown_with_its_weights(tmp_path):
    card = Card(
        kind="linear classifier",
        depth=18,
        last_stride=1,
        step=7,
        classes=tuple("abcdefghij"),
        parents=(Parent(file="w.pdparams", sha256="f" * 64, kind="backbone"),),
        config={"model": {"depth": 18}},
    )
    write_weights(tmp_path / "w.pth", {"fc.weight": ARRAY}, card=card)
    lines = render(describe_file(tmp_path / "w.pth")).splitlines()
    assert lines[0] == f"file     {tmp_path / 'w.pth'}"
    assert lines[1].startswith("format   torch, ")
    assert lines[3] == "card     linear classifier"
    assert "  last_stride  1" in lines
    assert "  classes      10: a, b, c, d, e, f, g, h and 2 more" in lines
    assert f"  made from    w.pdparams (backbone), sha256 {'f' * 64}" in lines
    assert "  config.model {'depth': 18}" in lines
    assert lines[-2:] == [
        "arrays   1 with 6 numbers; sha256 is of the values",
        f"  fc.weight  [2, 3]  float32  {PLAIN[:12]}",
    ]


def test_foreign_files_are_described_too():
    text = render(describe_file(DATA / "bookkeeping.pth"))
    assert "card     none" in text
    assert "state_dict/weight  [2]  float32" in text
    assert "meta/cfg" in text
    assert "not read objects of argparse.Namespace, mmengine.logging.history_buffer.HistoryBuffer" in text
    assert "num_batches_tracked  []         int64" in render(describe_file(DATA / "tensors_legacy.pth"))


def test_repetition_without_end_is_described_once(tmp_path):
    laughs: list = [ARRAY]
    for _ in range(50):
        laughs = [laughs] * 10
    (tmp_path / "x.pd").write_bytes(pickle.dumps({"a": laughs}, 4))
    info = describe_file(tmp_path / "x.pd")
    assert len(info.tensors) == 1
    assert len(info.others) == 50 * 9
    assert info.others[-1] == ("a/9", "str '(the same as a/0)'")


def test_a_long_list_is_one_line_and_no_name_reaches_the_terminal_raw(tmp_path):
    write_weights(tmp_path / "w.pd", {"milestones": list(range(100)), "\x1b[31mred\n": ARRAY, "classes": ["a"] * 9})
    text = render(describe_file(tmp_path / "w.pd"))
    assert "\x1b" not in text
    assert "\\x1b[31mred\\n" in text
    assert "milestones  a list of 100" in text
    with pytest.raises(InputError, match="does not exist"):
        describe_file(tmp_path / "w.pth")
