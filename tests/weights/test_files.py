"""One reader and one writer for all formats: recognized by content, hostile and damaged files refused, nothing run."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from passl_densecl.errors import InputError
from passl_densecl.weights.card import Card
from passl_densecl.weights.files import read_arrays, read_card, read_weights, weights_file
from passl_densecl.weights.writing import write_pickle, write_weights

DATA = Path(__file__).parent / "data"
SUFFIXES = [".pdparams", ".pd", ".pdopt", ".pkl", ".pth", ".pt", ".safetensors"]
FORMATS = {".pth": "torch", ".pt": "torch", ".safetensors": "safetensors"}


def state() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "conv1.weight": rng.normal(size=(4, 3, 3, 3)).astype("f4"),
        "half": np.arange(5, dtype="f2"),
        "bn1.num_batches_tracked": np.array(7),
        "T": np.arange(6, dtype="f8").reshape(2, 3).T,
        "flags": np.array([True, False]),
        "big-endian": np.arange(3, dtype=">i4"),
        "empty": np.zeros((0, 2), "f4"),
    }


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def refusal(path: Path, read: Callable[[Path], object] = read_weights) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return list(a) == list(b) and all(
        a[name].dtype.newbyteorder("=") == b[name].dtype.newbyteorder("=")
        and a[name].shape == b[name].shape
        and a[name].tolist() == b[name].tolist()
        for name in a
    )


# Round trips


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_of_arrays_goes_through_every_format(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    card = Card(kind="backbone", depth=18, classes=("ü", "\udcff"), config={"long": "x" * 70_000})
    write_weights(path, state(), card=card)
    path = path.rename(tmp_path / "without a suffix")  # content tells
    read = read_weights(path)
    assert read.format == FORMATS.get(suffix, "pickle")
    assert read.path == path
    assert read.card == card.to_dict()
    assert read_card(path) == card
    assert isinstance(read.content, dict)
    # The package of that name orders a file by dtype; it is read sorted by name.
    wanted = dict(sorted(state().items())) if suffix == ".safetensors" else state()
    assert same(read.content, wanted)
    assert same(read_arrays(path), wanted)
    for array in read.content.values():
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.size == 0 or not np.shares_memory(array, read_arrays(path)[next(iter(state()))])
    assert os.listdir(tmp_path) == ["without a suffix"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equal_content_gives_equal_bytes(tmp_path, suffix):
    content, card = state(), Card(kind="backbone", step=3)
    paths = [tmp_path / f"{name}{suffix}" for name in ("a", "b", "c", "d")]
    write_weights(paths[0], content, card=card)
    write_weights(
        paths[1], {"".join(name): array.copy(order="F") for name, array in content.items()}, card=card.to_dict()
    )
    write_weights(paths[2], content, card=card.replace(step=4))
    write_weights(paths[3], content)
    a, b, c, d = (path.read_bytes() for path in paths)
    assert a == b
    assert len({a, c, d}) == 3
    assert read_weights(paths[3]).card is None
    assert read_card(paths[3]) is None
    assert str(tmp_path).encode() not in a


@pytest.mark.parametrize("suffix", [s for s in SUFFIXES if s != ".safetensors"])
def test_nested_plain_data_goes_through_pickles_and_torch(tmp_path, suffix):
    content = {
        "state_dict": {"a": np.ones(2, "f4")},
        "epoch": 3,
        "lr": 0.1,
        "large": 2**40,
        "negative": -(2**70),
        "none": None,
        "on": True,
        "list": [1, "ü\udcff", [2.5, ()]],
        "tuple": (1, (2,)),
        "bytes": b"\x00\xff",
        "by number": {1: "a"},
        "none in it": {},
    }
    write_weights(tmp_path / f"w{suffix}", content)
    read = read_weights(tmp_path / f"w{suffix}").content
    assert isinstance(read, dict)
    assert read["state_dict"].pop("a").tolist() == content["state_dict"].pop("a").tolist()
    assert read == content


def test_what_a_format_cannot_hold_is_said_and_nothing_is_written(tmp_path):
    listed = ".pdparams, .pdopt, .pd, .pkl, .pth, .pt, .safetensors"
    for name, content, said in (
        ("w.npz", state(), f"the name must end in one of {listed}"),
        ("w", state(), "must end in"),
        ("w.safetensors", {"state_dict": state()}, "a flat table of names and arrays, not 'state_dict': a dict of 7"),
        ("w.safetensors", [1], "names and arrays, not a list of 1"),
        ("w.safetensors", {1: np.ones(1)}, "not 1: an array"),
        ("w.safetensors", {"a": np.ones(1, "c16")}, "a: a safetensors file cannot hold an array"),
        ("w.pth", {"a": np.ones(1, "u2")}, "a torch file cannot hold an array \\[1\\] of uint16"),
        ("w.pth", {"a": np.array(["text"])}, "a torch file cannot hold"),
        ("no/w.pth", {}, "does not exist"),
    ):
        with pytest.raises(InputError, match=said):
            write_weights(tmp_path / name, content)
    for content in (
        object(),
        {"a": object()},
        [len],
        {"a": np.array([None])},
        {"a": np.float32(1)},
        {len: 1},
        {2**9999: 1},
    ):
        with pytest.raises(TypeError, match="only plain data"):
            write_weights(tmp_path / "w.pth", content)
    knot: list = []
    knot.append(knot)
    with pytest.raises(TypeError, match="only plain data"):
        write_weights(tmp_path / "w.pth", knot)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("suffix", [".pdparams", ".pth", ".safetensors"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, suffix, step):
    path = tmp_path / f"w{suffix}"
    write_weights(path, {"a": np.ones(1)})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        write_weights(path, state())
    monkeypatch.undo()
    assert list(read_arrays(path)) == ["a"]
    assert os.listdir(tmp_path) == [path.name]


# Hostile files, for every suffix a user may be handed


class Call:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


def torch_zip(program: bytes) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    return memory.getvalue()


LEGACY_HEAD = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
WRAPPINGS = {
    "pickle": lambda program: program,
    "torch": torch_zip,
    "torch (legacy)": lambda program: LEGACY_HEAD + program + pickle.dumps([], 2),
}


@pytest.mark.parametrize("suffix", [".pdparams", ".pd", ".pkl", ".pth", ".safetensors"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_file_is_refused_by_name_and_not_run(tmp_path, suffix, wrapping, protocol):
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w').close()"
    get = Call(getattr, Call(__import__, "os"), "system")
    for attack, name in (
        (Call(os.system, f"touch '{mark}'"), "posix.system"),
        (Call(eval, code), "builtins.eval"),
        (Call(exec, code), "builtins.exec"),
        (Call(__import__, "os"), "builtins.__import__"),
        ([get], "builtins.getattr|builtins.__import__"),
        (Call(getattr, {}, "__class__"), "builtins.getattr"),
    ):
        program = pickle.dumps({"state_dict": {"conv1.weight": np.ones(2), "x": attack}}, protocol)
        path = put(tmp_path / f"w{suffix}", WRAPPINGS[wrapping](program))
        for read in (read_weights, read_arrays):
            message = refusal(path, read)
            assert any(f"asks for {each}" in message for each in name.split("|")), message
            assert "nothing in it was run" in message
        assert os.listdir(tmp_path) == [path.name]
    pickle.loads(pickle.dumps(Call(os.system, f"touch '{mark}'"), protocol))
    assert mark.exists()  # the attack is no dud


@pytest.mark.parametrize("suffix", [".pdparams", ".pd", ".pkl", ".pth", ".safetensors"])
def test_files_that_are_none_are_refused_in_a_sentence(tmp_path, suffix):
    for data, said in (
        (b"", "empty (0 bytes)"),
        (b"<!DOCTYPE html><html>", "text file beginning '<!DOCTYPE html>"),
        (b'{"error": {"code": 404}}', "text file beginning"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "text file beginning 'version https://git-lfs"),
        (b"\x7fELF\x02\x01", "first bytes are 7f 45 4c 46"),
        (struct.pack("<Q", 2**60) + b'{"a":', "copy or download it again"),
        (struct.pack("<Q", 2) + b"{}x", "copy or download it again"),
        (b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"}.", "ends too early"),
        (b"\x80\x04" + pickle.BINBYTES8 + struct.pack("<Q", 2**60), "ends too early"),
        (b"PK\x03\x04" + bytes(26), "an incomplete or damaged zip file"),
        (torch_zip(b"\x80\x02" + pickle.BINUNICODE + struct.pack("<I", 2**31) + b"."), "ends too early"),
    ):
        assert said in refusal(put(tmp_path / f"w{suffix}", data))
        refusal(tmp_path / f"w{suffix}", read_arrays)
    assert os.listdir(tmp_path) == [f"w{suffix}"]


@pytest.mark.parametrize("suffix", [".pdparams", ".pth", ".safetensors"])
def test_a_cut_file_is_refused_wherever_it_ends(tmp_path, suffix):
    write_weights(tmp_path / f"w{suffix}", state(), card=Card(kind="backbone"))
    data = (tmp_path / f"w{suffix}").read_bytes()
    for length in [*range(0, len(data), 7), len(data) - 1]:
        message = refusal(put(tmp_path / "cut", data[:length]))
        assert any(words in message for words in ("cut off", "empty", "not a file of weights", "in a file of")), message
        assert "Error" not in message


@pytest.mark.parametrize("name", ["tensors.pth", "tensors_legacy.pth", "state.pth", "bookkeeping.pth", "w.safetensors"])
def test_a_damaged_file_is_read_or_an_input_error(tmp_path, name):
    if name.endswith(".safetensors"):
        write_weights(tmp_path / name, state(), card=Card(kind="backbone"))
    else:
        shutil.copy(DATA / name, tmp_path / name)
    source = (tmp_path / name).read_bytes()
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    refused = 0
    for _ in range(300):
        data = bytearray(source)
        for _ in range(rng.choice([1, 4])):
            data[rng.integers(4, len(data))] = rng.integers(256)
        try:
            read_weights(put(tmp_path / "x", bytes(data)))
        except InputError as error:
            refused += str(tmp_path / "x") in str(error)
    assert refused > 50  # any other exception has failed the test already


def test_formats_that_begin_alike_are_told_apart(tmp_path):
    """The length of a safetensors header may look like the head of a pickle."""
    entry = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    for length in (0x0280, 0x0380, 0x0480, 0x0580):
        header = json.dumps(entry).ljust(length).encode()
        path = put(tmp_path / "x", struct.pack("<Q", length) + header + struct.pack("<f", 3))
        assert path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        assert read_arrays(path)["a"].tolist() == [3]
    put(tmp_path / "y", pickle.dumps({"a": 1}, 4))
    assert read_weights(tmp_path / "y").format == "pickle"


def test_a_folder_is_read_as_the_file_it_means(tmp_path):
    file = checkpoint(tmp_path / "run" / "checkpoints" / "epoch_0001", {"step": 1})
    read = read_weights(tmp_path / "run")
    assert read.path == file
    assert isinstance(read.content, dict)
    assert read_card(tmp_path / "run") is None


# Which file is meant


def checkpoint(folder: Path, state: object = None) -> Path:
    folder.mkdir(parents=True)
    write_pickle(folder / "model.pdparams", {"a": np.ones(1)})
    if state is not None:
        (folder / "state.json").write_text(state if isinstance(state, str) else json.dumps(state))
    return folder / "model.pdparams"


def test_a_file_and_a_checkpoint_mean_themselves(tmp_path):
    file = checkpoint(tmp_path / "run" / "checkpoints" / "epoch_0001")
    assert weights_file(file) == file
    assert weights_file(str(file.parent)) == file


def test_a_run_means_its_newest_checkpoint_by_step(tmp_path):
    checkpoint(tmp_path / "checkpoints" / "epoch_0009", {"step": 90})
    newest = checkpoint(tmp_path / "checkpoints" / "best", {"step": 100})
    checkpoint(tmp_path / "checkpoints" / ".epoch_0011", {"step": 110})
    checkpoint(tmp_path / "checkpoints" / "epoch_0012.tmp", {"step": 120})
    (tmp_path / "checkpoints" / "epoch_0013").mkdir()  # no weights in it
    assert weights_file(tmp_path) == newest
    assert weights_file(tmp_path / "checkpoints") == newest


@pytest.mark.parametrize("state", [None, "{", "[]", {"epoch": 1}, {"step": "5"}, {"step": True}])
def test_a_run_without_steps_goes_by_name(tmp_path, state):
    checkpoint(tmp_path / "checkpoints" / "epoch_9", {"step": 10**6})
    newest = checkpoint(tmp_path / "checkpoints" / "epoch_10", state)
    checkpoint(tmp_path / "checkpoints" / "best", {"step": 5})
    assert weights_file(tmp_path) == newest


def test_no_weights_is_said(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match=r"no weights in this folder; expected model.pdparams \(a checkpoint\)"):
        weights_file(tmp_path / "run")
    with pytest.raises(InputError, match=r"rum does not exist; did you mean '.*run'"):
        weights_file(tmp_path / "rum")
