"""Pickles: reading never runs one; writing is portable, atomic and reproducible."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import random
import struct
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from passl_densecl.errors import InputError
from passl_densecl.weights import pickles, torch_files
from passl_densecl.weights.files import read_arrays, read_card, read_weights
from passl_densecl.weights.writing import write_pickle


class Call:
    """Pickles as a call of ``function(*arguments)``, which is what a hostile file does."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


def globals_of(data: bytes) -> set[str]:
    """Every name that a pickle of protocol 4 asks for."""
    names: set[str] = set()
    texts: list[str] = []
    for code, argument, _ in pickletools.genops(data):
        if code.name in ("SHORT_BINUNICODE", "BINUNICODE"):
            texts.append(str(argument))
        elif code.name == "STACK_GLOBAL":
            names.add(".".join(texts[-2:]))
    return names


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def read_pickle(path: Path) -> object:
    read = read_weights(path)
    assert read.format == "pickle"
    return read.content


def refusal(path: Path, read: Callable[[Path], object] = read_pickle) -> str:
    """The message of the InputError that reading ``path`` gives; it names the file."""
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


# Hostile files


OPEN = f"{open.__module__}.open"  # io.open, from Python 3.13 on _io.open


def hostile_calls(mark: Path) -> dict[str, Call]:
    code = f"open({str(mark)!r}, 'w').close()"
    return {
        "posix.system": Call(os.system, f"touch '{mark}'"),
        "builtins.eval": Call(eval, code),
        "builtins.exec": Call(exec, code),
        OPEN: Call(open, str(mark), "w"),
        "numpy.save": Call(np.save, str(mark), 0),
    }


@pytest.mark.parametrize("name", ["posix.system", "builtins.eval", "builtins.exec", OPEN, "numpy.save"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("nest", [lambda x: x, lambda x: {"conv1.weight": np.ones(2), "state_dict": [{"a": (1, x)}]}])
def test_a_hostile_file_is_refused_and_nothing_runs(tmp_path, name, protocol, nest):
    marks = tmp_path / "marks"
    marks.mkdir()
    data = pickle.dumps(nest(hostile_calls(marks / "ran.npy")[name]), protocol)
    path = put(tmp_path / "hostile.pdparams", data)

    message = refusal(path)
    assert f"asks for {name}" in message
    assert "nothing in it was run" in message
    assert list(marks.iterdir()) == []

    pickle.loads(data)  # the same bytes are no dud: what paddle.load does runs them
    assert [mark.name for mark in marks.iterdir()] == ["ran.npy"]


def test_a_hostile_file_of_paddle_save_is_refused(tmp_path):
    path = tmp_path / "hostile.pdparams"
    mark = tmp_path / "ran"
    content: dict[str, Any] = {"weight": paddle.ones([2]), "extra": Call(os.system, f"touch '{mark}'")}
    paddle.save(content, str(path))
    assert "posix.system" in refusal(path, read_arrays)
    assert not mark.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'touch MARK'\ntR.",
        b"(S'touch MARK'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch MARK'\no.",
        b"\x8c\x02os\x8c\x06system\x93\x8c\x0atouch MARK\x85R.",
        b"cnumpy\nndarray\n(S'touch MARK'\ntcos\nsystem\nR.",
    ],
    ids=["GLOBAL REDUCE", "INST", "OBJ", "STACK_GLOBAL", "beside an admitted name"],
)
def test_every_way_of_calling_is_closed(tmp_path, monkeypatch, program):
    monkeypatch.chdir(tmp_path)
    assert "os.system" in refusal(put(tmp_path / "x.pd", b"\x80\x04" + program))
    assert not (tmp_path / "MARK").exists()


@pytest.mark.parametrize(
    "name", ["ndarray.__reduce__", "ndarray.__class__", "core.multiarray.fromfile", "load", "array"]
)
def test_other_names_of_numpy_are_refused(tmp_path, name):
    module, _, attribute = f"numpy.{name}".rpartition(".")
    for at, what in ((module, attribute), ("numpy", name)):
        program = (
            pickle.PROTO
            + b"\x04"
            + b"".join(pickle.SHORT_BINUNICODE + bytes([len(text)]) + text.encode() for text in (at, what))
        )
        assert "asks for numpy." in refusal(put(tmp_path / "x.pd", program + pickle.STACK_GLOBAL + pickle.STOP))


def test_bytes_are_never_taken_for_objects(tmp_path):
    hostile = [
        pickle.dumps(Call(np.ndarray, (1,), "O", b"\x41" * 8), 4),
        pickle.dumps(Call(np.ndarray, (1,), "V8", b"\x41" * 8), 4),
        pickle.dumps(Call(np.ndarray, (1,), "f4,O", b"\x41" * 12), 4),
        pickle.dumps(np.array([1, "a"], dtype=object), 4),
        pickle.dumps(np.zeros(2, dtype=[("a", "f4")]), 4),
        pickle.dumps(np.array(["2020-01-01"], dtype="M8[D]"), 4),
    ]
    for data in hostile:
        assert "array of dtype" in refusal(put(tmp_path / "x.pd", data))


@pytest.mark.parametrize(
    ("shape", "data"),
    [((2,), b"123"), ((2**40,), b"1234"), ((-1,), b""), ((True,), b"1234"), (([],), b""), ((1,), [1, 2, 3, 4])],
)
def test_an_array_must_be_exactly_its_bytes(tmp_path, shape, data):
    assert "array" in refusal(put(tmp_path / "x.pd", pickle.dumps(Call(np.ndarray, shape, "<f4", data), 4)))


def test_a_dtype_cannot_become_records(tmp_path):
    class Records:
        def __reduce__(self) -> tuple:
            fields = {"a": (np.dtype("f4"), 0)}
            return np.dtype, ("f4",), (3, "<", None, ("a",), fields, 4, 1, 0)

    assert "array of records" in refusal(put(tmp_path / "x.pd", pickle.dumps(Records(), 4)))


def test_a_file_cannot_change_what_reading_means(tmp_path):
    def inside() -> list[object]:
        makers = dict.fromkeys(pickles._CONTAINERS.values())
        return [
            (maker, dict(vars(maker)), getattr(maker, "__defaults__", None)) for maker in makers if maker is not dict
        ]

    before = inside()
    for name in (*pickles._CONTAINERS, *torch_files.TorchUnpickler.names):
        module, _, attribute = name.rpartition(".")
        get = b"\x80\x04c" + module.encode() + b"\n" + attribute.encode() + b"\n"
        for state in (b"}S'changed'\nI1\ns", b"N}S'changed'\nI1\ns\x86", b"N}S'__defaults__'\n)s\x86"):
            for made in (b"", b")\x81"):
                refusal(put(tmp_path / "x.pd", get + made + state + b"b."))
        refusal(put(tmp_path / "x.pd", get + b"."))  # nor is a class data
    assert inside() == before


def test_only_latin1_is_decoded(tmp_path):
    assert read_pickle(put(tmp_path / "x.pd", pickle.dumps({"a": b"\xff\x00"}, 2))) == {"a": b"\xff\x00"}
    assert "codec str 'rot13'" in refusal(put(tmp_path / "x.pd", b"\x80\x02c_codecs\nencode\n(S'a'\nS'rot13'\ntR."))


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (pickle.BINBYTES8 + struct.pack("<Q", 2**38) + b"abc.", "ends too early"),
        (pickle.BYTEARRAY8 + struct.pack("<Q", 2**38) + b"abc.", "ends too early"),
        (pickle.BINUNICODE8 + struct.pack("<Q", 2**38) + b"abc.", "ends too early"),
        (pickle.FRAME + struct.pack("<Q", 2**38) + b"abc.", "ends too early"),
        (b"cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x40\x85R.", "bytes made of int"),
        (b"cbuiltins\nbytes\n\x8a\x05\x00\x00\x00\x00\x40\x85R.", "bytes made of int"),
    ],
    ids=["BINBYTES8", "BYTEARRAY8", "BINUNICODE8", "FRAME", "bytearray(n)", "bytes(n)"],
)
def test_a_few_bytes_cannot_take_all_memory(tmp_path, program, said):
    path = put(tmp_path / "x.pd", b"\x80\x05" + program)
    tracemalloc.start()
    message = refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert said in message
    assert peak < 2**20


def test_a_small_file_cannot_unfold(tmp_path):
    data = b"\x80\x04" + pickle.BINBYTES + struct.pack("<I", 2**20) + bytes(2**20) + pickle.MEMOIZE
    row = b"cnumpy\nndarray\n(J\x00\x00\x10\x00\x85X\x03\x00\x00\x00|u1h\x00tR"
    for name, program, most in (
        ("arrays of the same bytes", data + b"](" + row * 1000 + b"e.", 40),
        (
            "lists of the same list",
            b"\x80\x04](" + b"N" * 2**20 + b"e\x94](" + b"c__builtin__\nlist\nh\x00\x85R" * 1000 + b"e.",
            200,
        ),
    ):
        path = put(tmp_path / "x.pd", program)
        tracemalloc.start()
        message = refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert "unfolds to more than 8 times its size" in message, name
        assert peak < most * 2**20, name  # 1 GiB and 8 GiB otherwise


def test_a_small_file_cannot_call_with_the_same_long_arguments_again_and_again(tmp_path):
    program = b"\x80\x04](" + b"cnumpy\nndarray\n(" + b"N" * 2**19 + b"t\x94" + b"0" + b"cnumpy\nndarray\nh\x00R" * 1000
    path = put(tmp_path / "x.pd", program + b"e.")
    tracemalloc.start()
    message = refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "unfolds to more than 8 times its size" in message
    assert peak < 100 * 2**20  # 4 GiB otherwise


def test_absurd_numbers_are_refused(tmp_path):
    big = pickle.LONG4 + struct.pack("<I", 3000) + b"\x01" * 3000
    shape = b"cnumpy\nndarray\n(" + big + b"\x85X\x03\x00\x00\x00<f4C\x04abcdtR."
    assert "array whose shape is a tuple of 1" in refusal(put(tmp_path / "x.pd", b"\x80\x04" + shape))
    empty = pickle.dumps(Call(np.ndarray, (2**47, 0, 2**47), "<f8", b""), 4)
    assert "array whose shape is" in refusal(put(tmp_path / "x.pd", empty))
    put(tmp_path / "x.pd", b"\x80\x04}X\x01\x00\x00\x00a" + big + b"s.")
    assert "'a': int of 23,993 bits" in refusal(tmp_path / "x.pd", read_arrays)


def test_a_large_number_of_a_note_takes_no_memory(tmp_path):
    path = put(tmp_path / "x.pd", b"\x80\x04N" + pickle.LONG_BINPUT + struct.pack("<I", 2**28) + b".")
    tracemalloc.start()
    assert read_pickle(path) is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20  # C's unpickler would take 4 GiB


def test_knots_and_towers_are_refused_and_repetition_is_cheap(tmp_path):
    knot: list = []
    knot.append({"again": knot})
    assert "contains itself" in refusal(put(tmp_path / "x.pd", pickle.dumps(knot, 4)))
    tower: list = []
    for _ in range(100):
        tower = [tower]
    assert "nested" in refusal(put(tmp_path / "x.pd", pickle.dumps(tower, 4)))
    assert refusal(put(tmp_path / "x.pd", b"\x80\x04" + b"]" * 5000 + b"a" * 4999 + b"."))
    laughs: list = [np.arange(3)]
    for _ in range(50):
        laughs = [laughs] * 10  # 10**50 leaves
    leaf = read_pickle(put(tmp_path / "x.pd", pickle.dumps(laughs, 4)))
    while isinstance(leaf, list):
        leaf = leaf[-1]
    assert isinstance(leaf, np.ndarray)
    assert leaf.tolist() == [0, 1, 2]


# Damaged and foreign files


def small_state() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "conv1.weight": rng.normal(size=(2, 3, 3)).astype("f4"),
        "bn1._mean": np.zeros(2, "f4"),
        "steps": np.array(7),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_cut_file_is_an_input_error_at_every_length(tmp_path, protocol):
    whole = tmp_path / "whole.pdparams"
    state = {name: paddle.to_tensor(array) for name, array in small_state().items()}
    content: dict[str, Any] = {"epoch": 1, "state_dict": state}
    paddle.save(content, str(whole), protocol=protocol)
    data = whole.read_bytes()
    for length in range(len(data)):
        message = refusal(put(tmp_path / "cut.pdparams", data[:length]))
        assert ("cut off" if length else "empty") in message, (length, message)
    assert "1 bytes follow" in refusal(put(tmp_path / "long.pdparams", data + b"\n"))
    read_pickle(whole)


def test_a_damaged_file_is_read_or_an_input_error(tmp_path):
    path = tmp_path / "x.pdparams"
    write_pickle(path, small_state())
    pick = random.Random(0)
    refused = 0
    for source in (path.read_bytes(), pickle.dumps(small_state(), 4), pickle.dumps(small_state(), 2)):
        for _ in range(700):
            data = bytearray(source)
            for _ in range(pick.choice((1, 1, 4))):
                data[pick.randrange(2, len(data))] = pick.randrange(256)
            try:
                read_pickle(put(path, bytes(data)))
            except InputError as error:
                refused += str(path) in str(error)
    assert refused > 700  # any other exception has failed the test already


def test_what_is_not_a_weight_file_is_said(tmp_path):
    assert "empty (0 bytes)" in refusal(put(tmp_path / "a.pdparams", b""))
    assert "text file beginning '<!DOCTYPE html>" in refusal(put(tmp_path / "b.pdparams", b"<!DOCTYPE html>\n<html>"))
    assert "first bytes are 7f 45 4c 46" in refusal(put(tmp_path / "c.pdparams", b"\x7fELF\x00\x00\x00\x00"))
    assert "no weights in this folder" in refusal(tmp_path)
    assert "a torch tensor pickled on its own; write it with torch.save" in refusal(
        put(tmp_path / "h.pth", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.")
    )


def test_a_missing_file_names_its_neighbor(tmp_path):
    put(tmp_path / "densecl_r50.pdparams", b"")
    message = refusal(tmp_path / "densecl_r5O.pdparams")
    assert "does not exist" in message
    assert f"did you mean '{tmp_path / 'densecl_r50.pdparams'}'?" in message
    assert "did you mean" not in refusal(tmp_path / "zzz")
    assert f"nor does its folder {tmp_path / 'no'}" in refusal(tmp_path / "no" / "x.pdparams")


def test_an_unreadable_file_is_an_input_error(tmp_path, monkeypatch):
    path = put(tmp_path / "x.pdparams", b"\x80\x04N.")

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", deny)
    assert "cannot be read: Permission denied" in refusal(path)


def test_a_table_of_arrays_is_nothing_else(tmp_path):
    path = tmp_path / "x.pdparams"
    write_pickle(path, {"a": np.ones(2), "epoch": 3, "rest": {"b": np.ones(1)}})
    message = refusal(path, read_arrays)
    assert "'epoch': int 3" in message
    assert "'rest': a dict of 1" in message
    assert "'a'" not in message
    write_pickle(path, {str(n): n for n in range(9)})
    assert message != (message := refusal(path, read_arrays))
    assert "and 4 more" in message
    write_pickle(path, [np.ones(2)])
    assert "the file holds a list of 1" in refusal(path, read_arrays)
    write_pickle(path, {1: np.ones(2)})
    assert "these are no arrays: 1:" in refusal(path, read_arrays)


# Files of paddle.save


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_state_of_paddle_save_is_read_to_the_bit(tmp_path, protocol):
    layer = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 3), paddle.nn.BatchNorm2D(4))
    path = tmp_path / "x.pdparams"
    paddle.save(layer.state_dict(), str(path), protocol=protocol)
    arrays = read_arrays(path)
    wanted = {name: tensor.numpy() for name, tensor in layer.state_dict().items()}
    assert list(arrays) == list(wanted)  # no StructuredToParameterName@@
    for name, array in arrays.items():
        assert array.dtype == wanted[name].dtype
        assert array.shape == wanted[name].shape
        assert array.tobytes() == wanted[name].tobytes()
        array += 1  # the caller's own


def test_a_checkpoint_of_paddle_save_is_read(tmp_path):
    layer = paddle.nn.Linear(3, 2)
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(0.1, 10)
    optimizer = paddle.optimizer.Momentum(schedule, parameters=layer.parameters())
    layer(paddle.ones([1, 3])).sum().backward()
    optimizer.step()
    path = tmp_path / "epoch_1.pd"
    content = {
        "epoch": 1,
        "state_dict": layer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "best": np.float64(0.25),
        "half": paddle.ones([2]).astype("bfloat16"),
        "names": {"a", "b"},
    }
    paddle.save(content, str(path))
    read = read_pickle(path)
    assert isinstance(read, dict)
    assert list(read) == list(content)
    assert np.array_equal(read["state_dict"]["weight"], layer.weight.numpy())
    velocity = next(name for name in read["optimizer"] if name.endswith("w_0_velocity_0"))
    assert np.array_equal(read["optimizer"][velocity], np.ones((3, 2), "f4"))
    assert read["optimizer"]["LR_Scheduler"] == optimizer.state_dict()["LR_Scheduler"]
    assert read["lr_scheduler"] == schedule.state_dict()
    assert read["best"] == 0.25
    assert read["names"] == {"a", "b"}
    assert read["epoch"] == 1
    assert np.array_equal(read["half"], np.full(2, 0x3F80, "u2"))  # Paddle writes the bits of bfloat16
    paddle.save(paddle.arange(3), str(path))
    assert np.array_equal(np.asarray(read_pickle(path)), [0, 1, 2])


def test_an_array_in_parts_is_joined(tmp_path, monkeypatch):
    whole = np.arange(12, dtype="f4").reshape(3, 4)
    parts = {"w@@.0": whole.ravel()[:7], "w@@.1": whole.ravel()[7:]}
    split = {"b": np.ones(2), **parts, "UnpackBigParamInfor@@": {"w": {"OriginShape": (3, 4), "slices": list(parts)}}}
    path = put(tmp_path / "x.pdparams", pickle.dumps(split, 2))
    arrays = read_arrays(path)
    assert set(arrays) == {"b", "w"}
    assert np.array_equal(arrays["w"], whole)
    for change in (
        {"w@@.1": whole},
        {"w@@.1": "text"},
        {"w@@.1": [7, 8, 9, 10, 11]},
        {"UnpackBigParamInfor@@": {"w": {"OriginShape": (3, 4), "slices": ["w@@.0", "w@@.2"]}}},
        {"UnpackBigParamInfor@@": {"w": {"OriginShape": (3, 4)}}},
        {"UnpackBigParamInfor@@": [1]},
    ):
        assert "the parts of" in refusal(put(path, pickle.dumps({**split, **change}, 2)))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype="<i8").reshape(2, 3),
        np.arange(6, dtype=">f8").reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype="f2").reshape(2, 3)),
        np.array(3.5),
        np.zeros((0, 4), "f4"),
        np.array([True, False]),
        np.array([1 + 2j]),
        np.array(["a", "bcd"]),
        np.array([b"a", b"bcd"]),
        np.arange(24).reshape(2, 3, 4)[:, ::2, ::-1],
    ],
    ids=lambda array: f"{array.dtype.str}{list(array.shape)}",
)
def test_numpys_own_pickles_and_ours_are_read(tmp_path, array, protocol):
    put(tmp_path / "theirs.pd", pickle.dumps({"a": array, "b": [array]}, protocol))
    write_pickle(tmp_path / "ours.pd", {"a": array, "b": [array]})
    for name in ("theirs.pd", "ours.pd"):
        read = read_pickle(tmp_path / name)
        assert isinstance(read, dict)
        for result in (read["a"], read["b"][0]):
            assert result.dtype == array.dtype
            assert result.shape == array.shape
            assert np.array_equal(result, array)
            assert result.flags.writeable
            assert result.flags.owndata
            assert result.flags.c_contiguous


# Writing


def test_what_is_written_names_nothing_but_ndarray(tmp_path):
    path = tmp_path / "x.pdparams"
    write_pickle(path, small_state())
    assert globals_of(path.read_bytes()) == {"numpy.ndarray"}
    assert path.read_bytes()[:2] == b"\x80\x04"
    write_pickle(path, OrderedDict(small_state()))
    assert globals_of(path.read_bytes()) == {"numpy.ndarray", "collections.OrderedDict"}
    assert list(read_arrays(path)) == list(small_state())


def test_paddle_load_and_pickle_read_what_is_written(tmp_path):
    rng = np.random.default_rng(1)
    layer = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 3), paddle.nn.BatchNorm2D(4), paddle.nn.Linear(4, 4))
    state = {name: rng.normal(size=tensor.shape).astype("f4") for name, tensor in layer.state_dict().items()}
    path = tmp_path / "x.pdparams"
    write_pickle(path, state)
    missing, unexpected = layer.set_state_dict(paddle.load(str(path)))
    assert not missing
    assert not unexpected
    for name, tensor in layer.state_dict().items():
        assert np.array_equal(tensor.numpy(), state[name])
    plain = pickle.loads(path.read_bytes())
    assert list(plain) == list(state)
    assert all(np.array_equal(plain[name], state[name]) for name in state)


def test_tensors_are_written_as_arrays(tmp_path):
    layer = paddle.nn.BatchNorm2D(3)
    write_pickle(tmp_path / "x.pdparams", layer.state_dict())
    arrays = read_arrays(tmp_path / "x.pdparams")
    assert np.array_equal(arrays["_variance"], np.ones(3, "f4"))
    assert len(arrays) == 4


def test_writing_and_reading_keep_one_copy(tmp_path):
    size = 4 * 2**20
    state = {str(n): np.full(size // 4, n, "f4") for n in range(8)}
    path = tmp_path / "x.pdparams"
    for work, most in ((lambda: write_pickle(path, state), 1.5), (lambda: read_pickle(path), 8 + 1.5)):
        tracemalloc.start()
        result = work()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < most * size
        del result


@pytest.mark.parametrize(
    "bad", [object(), np.float32(1), np.array([None]), len, Path("x"), np.zeros(1, "M8[D]"), np.dtype("f4")]
)
def test_only_plain_data_is_written_and_a_failure_leaves_the_old_file(tmp_path, bad):
    path = tmp_path / "x.pdparams"
    write_pickle(path, {"a": 1})
    with pytest.raises(TypeError, match="only plain data"):
        write_pickle(path, {"first": np.ones(2**16), "bad": bad})
    assert read_pickle(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_data_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    events: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("sync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(f"name {Path(b).name}"), replace(a, b)))
    write_pickle(tmp_path / "x.pdparams", {"a": np.ones(3)})
    assert events == ["sync", "name x.pdparams", "sync"]


def test_where_nothing_can_be_written_is_said(tmp_path):
    (tmp_path / "weights").mkdir()
    with pytest.raises(InputError, match=r"weigths does not exist; did you mean '.*weights'\?; create it first"):
        write_pickle(tmp_path / "weigths" / "x.pdparams", {})
    with pytest.raises(InputError, match="is a folder"):
        write_pickle(tmp_path / "weights", {})


# Pickles of Python 2 and other libraries


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_a_pickle_of_python_2_is_read(tmp_path, protocol):
    """Caffe2's .pkl: text and arrays of Python 2, where text was bytes."""
    array = pickle.dumps(np.arange(3, dtype="<f4"), protocol)
    assert b"_codecs" in array  # how Python 3 spells the bytes for old readers
    content = pickle.dumps({"blobs": {"conv1_w": np.arange(3, dtype="<f4"), "n": 1}}, protocol)
    read = read_pickle(put(tmp_path / "R-50.pkl", content))
    assert isinstance(read, dict)
    assert read["blobs"]["conv1_w"].tolist() == [0, 1, 2]
    old = (
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01\x85cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x04\x00\x00\x80?tbs."
    )  # as Python 2.7 with numpy 1.16 wrote it: the values are a text
    assert read_arrays(put(tmp_path / "old.pkl", old))["a"].tolist() == [1.0]


@pytest.mark.parametrize("protocol", [0, 1])
def test_a_hostile_pickle_of_python_2_is_refused(tmp_path, protocol):
    data = pickle.dumps({"a": Call(os.system, f"touch '{tmp_path / 'ran'}'")}, protocol)
    assert "asks for posix.system" in refusal(put(tmp_path / "x.pkl", data))
    assert not (tmp_path / "ran").exists()


def test_an_ordered_dictionary_with_attributes_is_a_dictionary(tmp_path):
    state = OrderedDict(a=np.ones(2))
    state._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]  # as a torch module's state has
    read = read_pickle(put(tmp_path / "x.pkl", pickle.dumps({"model": state, "__author__": "me"}, 4)))
    assert isinstance(read, dict)
    assert type(read["model"]) is dict
    assert read["model"]["a"].tolist() == [1, 1]


# Identity cards


CARD = {"kind": "backbone", "depth": 18, "classes": ["a", "ü", "\udcff"], "config": {"x" * 9: "y" * 70_000}}


def test_a_card_is_invisible_to_every_other_reader(tmp_path):
    path = tmp_path / "x.pdparams"
    write_pickle(path, small_state(), card=CARD)
    assert b"passl_densecl card" in path.read_bytes()[:64]
    for load in (
        lambda: read_arrays(path),
        lambda: pickle.loads(path.read_bytes()),
        lambda: pickle._loads(path.read_bytes()),  # type: ignore[attr-defined]  # the one written in Python
        lambda: pickle.loads(path.read_bytes(), encoding="latin1"),
        lambda: paddle.load(str(path)),
        lambda: paddle.load(str(path), return_numpy=True),
    ):
        read = load()
        assert list(read) == list(small_state())
        for name, array in small_state().items():
            assert np.array_equal(np.asarray(read[name]), array)
    pickletools.dis(path.read_bytes(), out=io.StringIO())
    card = read_card(path)
    assert card is not None
    assert card.to_dict() == {**CARD, "format": 1, "names": "paddle", "parents": [], "version": card.version}


def test_a_file_without_a_card_has_none(tmp_path):
    write_pickle(tmp_path / "a", small_state())
    assert read_card(tmp_path / "a") is None
    for data in (
        pickle.dumps({"a": 1}, 2),
        b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"passl_densecl card {}0N.",
        b"\x80\x04\x8d" + struct.pack("<Q", 5) + b"hello0N.",
        b"\x80\x04\x8d",
    ):
        assert read_card(put(tmp_path / "b", data)) is None
    text = b'passl_densecl card {"kind": "x"}'
    assert read_card(put(tmp_path / "b", b"\x80\x04\x8d" + struct.pack("<Q", len(text)) + text + b"1N.")) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "nul", '{"kind": 1}', '{"depth": 18}', "{}"])
def test_a_damaged_card_is_said(tmp_path, text):
    data = f"passl_densecl card {text}".encode()
    path = put(tmp_path / "x", b"\x80\x04\x8d" + struct.pack("<Q", len(data)) + data + b"0N.")
    assert "identity card" in refusal(path, read_card)
