"""Safetensors files: other programs read the same values, and hostile files are refused."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from passl_densecl.errors import InputError
from passl_densecl.weights.card import Card
from passl_densecl.weights.files import read_arrays, read_card, read_weights
from passl_densecl.weights.writing import write_weights


def file_of(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: str, shape: object, begin: object, end: object) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    kinds = ["f2", "i8", "f4", "u1", "f8", "i1", "i2", "i4", "u2", "u4", "u8"]
    made = {f"{kind}.weight": (rng.normal(size=(2, 3)) * 50).astype(kind) for kind in kinds}
    return {
        **made,
        "flag": np.array([True, False, True]),
        "scalar": np.array(3.5, "f4"),
        "empty": np.zeros((0, 3), "f4"),
    }


def test_bfloat16_is_widened_exactly(tmp_path):
    bits = np.array([0x3F80, 0x3DCD, 0xFF62, 0x7F80, 0x0001, 0x8000], "<u2")
    path = file_of(tmp_path / "x", {"a": entry("BF16", [2, 3], 0, 12)}, bits.tobytes())
    read = read_arrays(path)["a"]
    assert read.dtype == np.float32
    assert read.shape == (2, 3)
    assert read.view("u4").ravel().tolist() == [bit << 16 for bit in bits.tolist()]
    none = read_arrays(file_of(tmp_path / "x", {"a": entry("BF16", [0], 0, 0)}))["a"]
    assert (none.dtype, none.shape) == (np.dtype("f4"), (0,))
    assert read_arrays(file_of(tmp_path / "x", {"a": entry("BF16", [], 0, 2)}, b"\x80\x3f"))["a"] == 1.0


def test_values_lie_at_multiples_of_their_size(tmp_path):
    write_weights(tmp_path / "x.safetensors", arrays())
    data = (tmp_path / "x.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    for name, place in json.loads(data[8 : 8 + length]).items():
        assert place["data_offsets"][0] % arrays()[name].dtype.itemsize == 0


def test_other_programs_read_ours(tmp_path):
    path = tmp_path / "x.safetensors"
    card = Card(kind="backbone", classes=("ü", "\udcff"))
    given = {**arrays(), "T": np.arange(6, dtype="f4").reshape(2, 3).T, "big-endian": np.arange(3, dtype=">f4")}
    write_weights(path, given, card=card)
    read = load_file(path)
    assert set(read) == set(given)
    for name, array in given.items():
        assert read[name].dtype == array.dtype.newbyteorder("=")
        assert np.array_equal(read[name], array)
        assert read[name].shape == array.shape
    with safe_open(path, "numpy") as opened:
        assert list(opened.metadata()) == ["passl_densecl"]
    assert read_card(path) == card


def test_ours_reads_those_of_other_programs(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(arrays(), path, metadata={"format": "pt", "author": "somebody"})
    read = read_weights(path)
    assert read.format == "safetensors"
    assert read.card is None
    assert isinstance(read.content, dict)
    assert list(read.content) == sorted(arrays())
    for name, array in arrays().items():
        assert read.content[name].dtype == array.dtype
        assert read.content[name].tobytes() == array.tobytes()
        assert read.content[name].flags.writeable


def test_a_file_that_this_project_wrote_before_it_used_the_package_is_read(tmp_path):
    """Its header has the order of the table, cards lie where they do now."""
    card = 'passl_densecl card {"kind":"backbone"}'
    header = {"__metadata__": {"passl_densecl": card}, "b": entry("F32", [2], 4, 12), "a": entry("F16", [2], 0, 4)}
    path = file_of(tmp_path / "x", header, np.array([1, 2], "f2").tobytes() + np.array([3, 4], "f4").tobytes())
    assert {name: array.tolist() for name, array in read_arrays(path).items()} == {"a": [1, 2], "b": [3, 4]}
    assert read_card(path) == Card(kind="backbone")


def test_the_packages_tensors_of_torch_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("safetensors.torch")
    tensors = {"a": torch.tensor([1.0, 0.1], dtype=torch.bfloat16), "n": torch.tensor(7)}
    package.save_file(tensors, tmp_path / "x.safetensors")
    read = read_arrays(tmp_path / "x.safetensors")
    assert read["a"].tolist() == tensors["a"].float().tolist()
    assert read["n"].shape == ()
    write_weights(tmp_path / "y.safetensors", read)
    assert package.load_file(tmp_path / "y.safetensors")["n"] == 7


HOSTILE = [
    ({"a": entry("F32", [2], 0, 4)}, b"1234"),
    ({"a": entry("F32", [1], 0, 4)}, b"12345"),
    ({"a": entry("F32", [1], 1, 5)}, b"12345"),
    ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)}, b"1234"),
    ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 2, 6)}, b"123456"),
    ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 5, 9)}, b"123456789"),
    ({"a": entry("F32", [2**40], 0, 2**42)}, b"1234"),
    ({"a": entry("F32", [2**62], 0, 2**64)}, b"1234"),
    ({"a": entry("F32", [2**47, 0, 2**47], 0, 0)}, b""),
    ({"a": entry("F32", [-1], 4, 0)}, b"1234"),
    ({"a": entry("F32", [1.0], 0, 4)}, b"1234"),
    ({"a": entry("F32", [True], 0, 4)}, b"1234"),
    ({"a": entry("F32", "1", 0, 4)}, b"1234"),
    ({"a": entry("F32", [1], -4, 0)}, b"1234"),
    ({"a": entry("F32", [1], 0.0, 4)}, b"1234"),
    ({"a": entry("O", [1], 0, 8)}, b"12345678"),
    ({"a": entry("F8_E4M3", [1], 0, 1)}, b"1"),
    ({"a": [1]}, b""),
    ({"a": {"dtype": "F32"}}, b""),
    ({"__metadata__": {"a": 1}}, b""),
    ({"__metadata__": ["a"]}, b""),
    (b'{"a": 1, "a": 2}', b""),
    (b"{", b""),
    (b"{\xff}", b""),
    (b'{"a":' + b"[" * 100_000, b""),
    (b'{"a":' + b"1" * 10_000 + b"}", b""),
]


@pytest.mark.parametrize(("header", "data"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_headers_are_refused(tmp_path, header, data):
    path = file_of(tmp_path / "x.safetensors", header, data)
    tracemalloc.start()
    message = refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "damaged or hostile" in message
    assert "nothing in it was run" in message
    assert peak < 8 * 2**20


def test_a_header_longer_than_the_format_allows_is_refused(tmp_path):
    path = tmp_path / "x"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 100_000_001) + b"{")
        file.truncate(100_000_100)  # a hole: takes no disk
    assert "headertoolarge" in refusal(path).lower().replace(" ", "")


def test_no_dtype_becomes_something_else(tmp_path):
    for dtype in (["F32"], {"a": 1}, None, 4, "f32", "BOOL ", "F8_E4M3", "F8_E5M2", "O"):
        header = {"a": {"dtype": dtype, "shape": [1], "data_offsets": [0, 4]}}
        assert "damaged or hostile" in refusal(file_of(tmp_path / "x", header, b"1234"))
    path = file_of(tmp_path / "x", {"a": entry("F8_E4M3", [1], 0, 1)}, b"1")
    assert "F8_E4M3, which numpy does not have" in refusal(path) or safetensors.__version__.startswith("0.4")
