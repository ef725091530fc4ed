"""Files of torch read and written without torch: values to the bit, hostile archives refused.

The files under data/ were made by the real torch with data/make_torch_files.py and data/make_settings_files.py.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
import time
import tracemalloc
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from passl_densecl.errors import InputError
from passl_densecl.weights.card import Card
from passl_densecl.weights.files import read_card, read_weights
from passl_densecl.weights.writing import write_weights

DATA = Path(__file__).parent / "data"
WHOLE = np.arange(24, dtype="f4").reshape(2, 3, 4)
TENSORS: dict[str, Any] = {
    "whole": WHOLE,
    "shared": WHOLE.ravel()[6:18],
    "transposed": WHOLE.transpose(2, 0, 1),
    "stepped": WHOLE[:, ::2, 1::2],
    "expanded": np.full((2, 3), 1.5, "f4"),
    "half": np.array([1.0, 0.1, 65504.0], "f2"),
    "bfloat16": np.array([[0x3F800000, 0x3DCD0000], [0xFF620000, 0x7F800000]], "u4").view("f4"),  # 1, 0.1, -3e38, inf
    "bfloat16.T": np.arange(6, dtype="f4").reshape(2, 3).T,
    "bfloat16 number": np.array(2.5, "f4"),
    "num_batches_tracked": np.array(12345678901),
    "double": np.array([0.1]),
    "byte": np.array([0, 255], "u1"),
    "short": np.array([-2], "i2"),
    "bool": np.array([True, False, True]),
    "complex": np.array([1 + 2j], "c8"),
    "empty": np.zeros((0, 4), "f4"),
    "parameter": np.array([7, 8], "f4"),
}


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def content(path: Path) -> Any:
    return read_weights(path).content


def pickle_names(path: Path) -> set[bytes]:
    """Every name that the pickle in a torch file asks for, such as ``b"typing Any"``."""
    with zipfile.ZipFile(path) as archive:
        program = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    return {str(argument).encode() for code, argument, _ in pickletools.genops(program) if code.name == "GLOBAL"}


# Files of the real torch


@pytest.mark.parametrize("name", ["tensors.pth", "tensors_legacy.pth", "uint16.pth"])
def test_every_kind_of_tensor_is_read_to_the_bit(name):
    read = read_weights(DATA / name)
    assert read.format == ("torch (legacy)" if "legacy" in name else "torch")
    assert read.card is None
    assert read.not_read == ()
    arrays = dict(read.content)  # type: ignore[call-overload]
    wide = arrays.pop("wide", np.array([1, 65535], "u2"))
    assert wide.dtype == np.uint16
    assert wide.tolist() == [1, 65535]
    assert list(arrays) == list(TENSORS)
    for name, wanted in TENSORS.items():
        assert isinstance(arrays[name], np.ndarray), name
        assert arrays[name].dtype == wanted.dtype, name
        assert arrays[name].shape == wanted.shape, name
        assert arrays[name].tobytes() == wanted.tobytes(), name
        assert arrays[name].flags.c_contiguous
    arrays["whole"] += 1  # every array is the caller's own, though the storage was shared
    assert np.array_equal(arrays["shared"], TENSORS["shared"])


@pytest.mark.parametrize("name", ["state.pth", "state_legacy.pth"])
def test_a_training_checkpoint_is_read_whole(name):
    read = content(DATA / name)
    assert type(read["state_dict"]) is dict
    assert list(read["state_dict"])[-1] == "1.num_batches_tracked"
    assert read["state_dict"]["1.num_batches_tracked"] == 7
    assert read["state_dict"]["0.weight"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert np.array_equal(read["optimizer"]["state"][3]["momentum_buffer"], [4, 4, 4])
    assert read["optimizer"]["param_groups"][0]["lr"] == 0.1
    assert (read["epoch"], read["best"], read["arch"], read["size"]) == (3, 0.25, "resnet50", (1, 2))
    assert (read["device"], read["dtype"], read["milestones"]) == ("cpu", "torch.float32", {60: 1, 80: 1})
    assert (read["rest"], read["rng"].tolist()) == ({"a": [1]}, [0, 1, 2])


def test_objects_beside_the_weights_are_not_read_and_named():
    data = zipfile.ZipFile(DATA / "bookkeeping.pth").read("bookkeeping/data.pkl")
    assert b"getattr" in data  # how protocol 2 spells a method of a class
    read = read_weights(DATA / "bookkeeping.pth")
    history = "mmengine.logging.history_buffer.HistoryBuffer"
    assert read.not_read == ("argparse.Namespace", history, "pathlib.PosixPath")
    assert isinstance(read.content, dict)
    assert read.content["state_dict"]["weight"].tolist() == [1, 1]
    assert read.content["message_hub"] == {
        "log_scalars": {"train/loss": f"({history}, not read)"},
        "runtime_info": {"iter": 5},
    }
    assert read.content["meta"]["args"] == "(argparse.Namespace, not read)"
    assert read.content["meta"]["cfg"] == "model = dict()"


OMEGACONF = "(omegaconf.dictconfig.DictConfig, not read)"


@pytest.mark.parametrize(
    ("name", "hyper_parameters"),
    [
        ("pytorch_lightning.ckpt", OMEGACONF),
        (
            "lightning.ckpt",  # classes of its author in a structured config, a Namespace, AttributeDicts of each kind
            {
                "cfg": OMEGACONF,
                "args": "(argparse.Namespace, not read)",
                "more": "(lightning.fabric.utilities.data.AttributeDict, not read)",
            },
        ),
    ],
)
def test_checkpoints_of_lightning_are_read_whatever_their_settings_are(name, hyper_parameters):
    read = content(DATA / name)
    assert read["state_dict"]["backbone.weight"].tolist() == [[1, 1]]
    assert read["hyper_parameters"] == hyper_parameters
    assert (read["global_step"], read["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"]) == (1, 1)
    assert read["optimizer_states"][0]["state"][0]["momentum_buffer"].tolist() == [[0, 0]]
    names = b" ".join(pickle_names(DATA / name))
    assert b"typing Any" in names
    assert (b"__main__ Optimizer" in names) == (name == "lightning.ckpt")


def test_the_settings_of_seven_libraries_are_not_read_and_named():
    read = content(DATA / "settings.pth")
    assert read["state_dict"]["weight"].tolist() == [1, 1]
    assert {name: value for name, value in read["settings"].items() if name != "mmengine"} == {
        "addict": "(addict.addict.Dict, not read)",
        "easydict": "(easydict.EasyDict, not read)",
        "fvcore": "(fvcore.common.config.CfgNode, not read)",
        "ml_collections": "(ml_collections.config_dict.config_dict.ConfigDict, not read)",
        "munch": "(munch.Munch, not read)",
        "yacs": "(yacs.config.CfgNode, not read)",
    }
    assert [value.split(".")[-1] for value in read["settings"]["mmengine"]] == [
        "ConfigDict, not read)",
        "Config, not read)",
        "HistoryBuffer, not read)",
    ]


@pytest.mark.parametrize("name", ["typing.Any", "posix.system", "__main__.Optimizer", "torch.nn.Module"])
def test_any_other_name_is_inert_inside_of_settings_and_refused_beside_them(tmp_path, name):
    module, _, attribute = name.rpartition(".")
    thing, mark = Named(module, attribute), tmp_path / "mark"
    for value in (thing, thing(f"touch {mark}"), Call(thing, ("x",), {"state": 1})):
        settings = Call(Named("omegaconf", "DictConfig"), (), {"_metadata": value, "_content": {"a": [value]}})
        assert content(archive(tmp_path, program_of({"a": settings}), {})) == {"a": "(omegaconf.DictConfig, not read)"}
        for beside in (value, {"settings": settings, "x": (value,)}, [Named("builtins", "dict")([("a", value)])]):
            assert f"asks for {name}, " in refusal(archive(tmp_path, program_of({"b": beside}), {}))
    settings = Named("omegaconf", "DictConfig")(thing(tensor("FloatStorage", "0", 4)))
    assert "omegaconf.DictConfig, an object that holds a tensor" in refusal(
        archive(tmp_path, program_of({"a": settings}), FOUR)
    )
    assert not mark.exists()


def test_what_cannot_be_read_is_said_with_a_remedy():
    assert "torch.float8_e5m2, a dtype that numpy does not have; convert the tensors to float32" in refusal(
        DATA / "float8.pth"
    )
    assert "save model.state_dict()" in (message := refusal(DATA / "whole_model.pth"))
    assert "torch.nn.modules.linear.Linear" in message


def test_files_without_checksums_are_read_and_wrong_checksums_are_not(tmp_path):
    assert content(DATA / "no_checksums.pth")["a"].tolist() == [1, 1, 1]
    data = bytearray((DATA / "tensors.pth").read_bytes())
    at = data.index(WHOLE.tobytes())
    data[at + 3] ^= 1
    assert "Bad CRC-32 for file 'tensors/data/0'" in refusal(put(tmp_path / "x.pth", bytes(data)))


def test_big_endian_files_are_read(tmp_path):
    storages = {"0": np.arange(3, dtype=">f4").tobytes(), "1": np.array([0x3F80], ">u2").tobytes()}
    program = program_of({"a": tensor("FloatStorage", "0", 3), "b": tensor("BFloat16Storage", "1", 1)})
    read = content(archive(tmp_path, program, storages, {"archive/byteorder": b"big"}))
    assert read["a"].tolist() == [0, 1, 2]
    assert read["a"].dtype.isnative
    assert read["b"].tolist() == [1]


# What torch makes of ours


def check_with_torch(path: Path, wanted: dict[str, np.ndarray]) -> None:
    torch = pytest.importorskip("torch")
    for options in ({"weights_only": True}, {"weights_only": False}, {"weights_only": True, "mmap": True}):
        read = torch.load(path, map_location="cpu", **options)
        assert isinstance(read["state_dict"], OrderedDict)  # as old versions of mmcv insist
        assert read["epoch"] == 3
        assert read["nested"] == [1, ("ü", -(2**70), 2**40, 0.1, None, True, {})]
        assert list(read["state_dict"]) == list(wanted)
        for name, array in wanted.items():
            assert read["state_dict"][name].numpy().tobytes() == array.tobytes(), name
            assert list(read["state_dict"][name].shape) == list(array.shape)


def test_torch_reads_what_is_written(tmp_path):
    arrays = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in TENSORS.items()}
    nested = [1, ("ü", -(2**70), 2**40, 0.1, None, True, {})]
    card = Card(kind="backbone", config={"long": "x" * 70_000})
    write_weights(tmp_path / "x.pth", {"state_dict": arrays, "epoch": 3, "nested": nested}, card=card)
    assert read_card(tmp_path / "x.pth") == card
    read = content(tmp_path / "x.pth")
    for name, array in arrays.items():
        assert read["state_dict"][name].tobytes() == array.tobytes()
    check_with_torch(tmp_path / "x.pth", arrays)


def test_torchs_own_writing_of_the_same_module_is_read_alike(tmp_path):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({"state_dict": layer.state_dict()}, tmp_path / "x.pth", **options)
        read = content(tmp_path / "x.pth")["state_dict"]
        write_weights(tmp_path / "y.pth", read)
        assert not layer.load_state_dict(torch.load(tmp_path / "y.pth", weights_only=True)).missing_keys
        for name, value in layer.state_dict().items():
            assert read[name].tobytes() == value.numpy().tobytes()


def test_the_zip_file_is_sound(tmp_path):
    write_weights(tmp_path / "x.pth", {"a": np.ones(3)}, card=Card(kind="backbone"))
    with zipfile.ZipFile(tmp_path / "x.pth") as made:
        assert made.testzip() is None
        assert made.namelist() == [
            f"archive/{name}" for name in ("data.pkl", "byteorder", "data/0", "version", "passl_densecl_card.json")
        ]
        assert {entry.date_time for entry in made.infolist()} == {(1980, 1, 1, 0, 0, 0)}


# Hostile archives


class Named:
    """A name that the file asks for, with or without a call."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self, *arguments: object) -> Call:
        return Call(self, arguments)


class Call:
    def __init__(self, function: object, arguments: tuple, state: object = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state


class Persistent:
    def __init__(self, *pid: object) -> None:
        self.pid = pid


class _Writer(pickle._Pickler):  # type: ignore[name-defined]
    """Writes any program, of names that need not exist."""

    def save(self, value: Any, save_persistent_id: bool = True) -> None:
        if isinstance(value, Named):
            self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
        elif isinstance(value, Call):
            self.save(value.function)
            self.save(value.arguments)
            self.write(pickle.REDUCE)
            if value.state is not None:
                self.save(value.state)
                self.write(pickle.BUILD)
        elif isinstance(value, Persistent):
            self.save(value.pid if len(value.pid) != 1 else value.pid[0])
            self.write(pickle.BINPERSID)
        else:
            super().save(value, save_persistent_id)


def program_of(value: object) -> bytes:
    memory = io.BytesIO()
    writer = _Writer(memory, 2)
    writer.fast = True
    writer.dump(value)
    return memory.getvalue()


REBUILD = Named("torch._utils", "_rebuild_tensor_v2")


def storage(kind: str, key: object, count: object) -> Persistent:
    return Persistent("storage", Named("torch", kind), key, "cpu", count)


def tensor(kind: str, key: str, count: Any, offset: object = 0, shape: object = None, strides: object = (1,)) -> Call:
    return REBUILD(storage(kind, key, count), offset, (count,) if shape is None else shape, strides, False, None)


def archive(
    folder: Path,
    program: bytes,
    storages: dict[str, bytes],
    records: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name given twice
        with zipfile.ZipFile(folder / "x.pth", "w", compression) as made:
            made.writestr("archive/data.pkl", program)
            for name, data in storages.items():
                made.writestr(f"archive/data/{name}", data)
            for name, data in (records or {}).items():
                made.writestr(name, data)
    return folder / "x.pth"


FOUR = {"0": np.arange(4, dtype="f4").tobytes()}


def test_the_programs_of_these_tests_are_as_torchs(tmp_path):
    read = content(archive(tmp_path, program_of({"a": tensor("FloatStorage", "0", 4)}), FOUR))
    assert read["a"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((1, (4,), (1,)), "ends at value 5 of storage '0', which has 4"),
        ((0, (5,), (1,)), "ends at value 5"),
        ((0, (2,), (4,)), "ends at value 5"),
        ((-1, (1,), (1,)), "tensor [1] at int -1"),
        ((0, (-4,), (1,)), "array whose shape is"),
        ((3, (2,), (-1,)), "array whose shape is"),
        ((0, (2**50,), (0,)), "array whose shape is"),
        ((0, (2**40,), (0,)), "unfolds to more than 8 times its size"),
        ((0, (2**20, 2**20), (0, 0)), "unfolds to more than 8 times its size"),
        ((2**62, (1,), (1,)), "ends at value"),
        ((0, (2, 2), (1,)), "with a tuple of 1 as strides"),
        ((0, (1,) * 40, (1,) * 40), "array whose shape is a tuple of 40"),
        ((0, "ab", (1,)), "array whose shape is str 'ab'"),
        ((0.0, (1,), (1,)), "tensor [1] at float 0.0"),
        ((True, (1,), (1,)), "tensor [1] at bool True"),
        ((0, (0, 2**47, 2**47), (1, 1, 1)), "array whose shape is"),
    ],
)
def test_a_tensor_lies_inside_of_its_storage(tmp_path, arguments, said):
    path = archive(tmp_path, program_of({"a": tensor("FloatStorage", "0", 4, *arguments)}), FOUR)
    tracemalloc.start()
    message = refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert said in message
    assert peak < 4 * 2**20


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (tensor("FloatStorage", "1", 4), "storage '1', which is not in the archive"),
        (
            tensor("FloatStorage", "../../../etc/passwd", 4),
            "storage '../../../etc/passwd', which is not in the archive",
        ),
        (tensor("FloatStorage", "0", 5), "storage '0' described in two ways"),
        (storage("DoubleStorage", "0", 4), "storage '0' described in two ways"),
        (storage("FloatStorage", "0", 2**61), "storage '0' described in two ways"),
        (storage("FloatStorage", "0", -4), "storage '0' of int -4 values"),
        (storage("FloatStorage", "0", "4"), "storage '0' of str '4' values"),
        (storage("FloatStorage", 0, 4), "a storage that is int 0"),
        (Persistent("module", Named("torch", "FloatStorage"), "f.py", "import os", 4), "something outside of the file"),
        (Persistent("storage", "torch.FloatStorage", "0", "cpu", 4), "a storage that is"),
        (Persistent("os.system"), "something outside of the file: str 'os.system'"),
        (storage("FloatStorage", "0", 4), "a storage where data is expected"),
        (Named("torch", "FloatStorage"), "where data is expected"),
        (REBUILD, "where data is expected"),
        (
            Call(REBUILD, (storage("FloatStorage", "0", 4), 0, (4,), (1,), False, None), {"shape": (9,)}),
            "to change what",
        ),
        (
            Call(REBUILD, (storage("FloatStorage", "0", 4), 0, (4,), (1,), False, None), (None, {"offset": 9})),
            "to change what",
        ),
        (Named("torch", "Size")((2**60,)), "array whose shape is"),
        (Named("torch", "load")("x"), "asks for torch.load"),
        (Named("torch.hub", "load")("x"), "asks for torch.hub.load"),
        (Named("torch._utils", "_rebuild_sparse_tensor")(), "asks for torch._utils._rebuild_sparse_tensor"),
        (Named("torch.storage", "_load_from_bytes")(b"x"), "asks for torch.storage._load_from_bytes"),
        (Named("torch._utils", "_rebuild_parameter")("x"), "a torch._utils._rebuild_parameter of str 'x' where data"),
        (
            Named("torch._tensor", "_rebuild_from_type_v2")("x", 1, (), {}),
            "a torch._tensor._rebuild_from_type_v2 of str 'x'",
        ),
        (
            Named("torch._tensor", "_rebuild_from_type_v2")(Named("builtins", "dict"), 1, (), {}),
            "a torch._tensor._rebuild_from_type_v2 of builtins.dict",
        ),
        (REBUILD("x", 0, (), (), False, None), "tensor whose storage is str 'x'"),
        (Named("__builtin__", "getattr")(REBUILD, "__globals__"), "asks for builtins.getattr of"),
        (Named("__builtin__", "getattr")(storage("FloatStorage", "0", 4), "__class__"), "asks for builtins.getattr of"),
        (Named("__builtin__", "getattr")(Named("numpy", "ndarray"), "fromfile"), "asks for builtins.getattr of"),
        (
            Named("argparse", "Namespace")(tensor("FloatStorage", "0", 4)),
            "argparse.Namespace, an object that holds a tensor",
        ),
        (
            Call(Named("mmcv", "M"), (), {"w": [(tensor("FloatStorage", "0", 4),)]}),
            "mmcv.M, an object that holds a tensor",
        ),
        (Named("mmcv.parallel", "Wrapper")(Named("mmcv", "M")(storage("FloatStorage", "0", 4))), "holds a tensor"),
    ],
)
@pytest.mark.parametrize("make", ["zip", "legacy"])
def test_hostile_programs_are_refused(tmp_path, value, said, make):
    program = program_of({"a": tensor("FloatStorage", "0", 4), "b": value})
    if make == "zip":
        path = archive(tmp_path, program, FOUR)
    else:
        path = legacy(tmp_path, program)
        if "which is not in the archive" in said:
            said = "a list of storages that are not those of the tensors"
    message = refusal(path)
    assert said in message
    assert os.listdir(tmp_path) == [path.name]


def legacy(folder: Path, program: bytes, keys: object = ("0",), tail: bytes | None = None) -> Path:
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    data = b"".join(pickle.dumps(part, 2) for part in head) + program + pickle.dumps(list(keys), 2)  # type: ignore[call-overload]
    return put(folder / "x.pth", data + (struct.pack("<q", 4) + FOUR["0"] if tail is None else tail))


@pytest.mark.parametrize(
    ("keys", "tail", "said"),
    [
        ((), b"", "a list of storages that are not those"),
        (("0", "0"), None, "a list of storages that are not those"),
        (("1",), None, "a list of storages that are not those"),
        (("0",), struct.pack("<q", 5) + bytes(20), "storage '0' of 5 values instead of 4"),
        (("0",), struct.pack("<q", -1), "storage '0' of -1 values instead of 4"),
        (("0",), struct.pack("<q", 4) + bytes(15), "ends too early"),
        (("0",), struct.pack("<q", 4) + bytes(17), "1 bytes follow the end"),
    ],
)
def test_the_storages_of_a_legacy_file_are_those_it_names(tmp_path, keys, tail, said):
    program = program_of({"a": tensor("FloatStorage", "0", 4)})
    assert content(legacy(tmp_path, program))["a"].tolist() == [0, 1, 2, 3]
    assert said in refusal(legacy(tmp_path, program, keys, tail))


def test_hostile_archives_are_refused_and_nothing_is_unpacked(tmp_path):
    program = program_of({"a": tensor("FloatStorage", "0", 4)})
    outside = tmp_path.parent / "outside"
    for records, said in (
        ({f"../{outside.name}": b"x"}, "which would lie outside of the archive"),
        ({str(outside): b"x"}, "which would lie outside of the archive"),
        ({"archive/../../x": b"x"}, "which would lie outside"),
        ({"archive\\..\\x": b"x"}, "which would lie outside"),
        ({"archive/data/0": b"x" * 16}, "two records of one name"),
        ({"other/data.pkl": program}, "a zip file, but not one of torch.save"),
        ({"archive/constants.pkl": b""}, "a TorchScript archive"),
        ({"archive/byteorder": b"middle"}, "byte order bytes b'middle'"),
    ):
        assert said in refusal(archive(tmp_path, program, FOUR, records))
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as made:
        made.writestr("weights.pdparams", b"")
    assert "a zip file, but not one of torch.save; unpack it first?" in refusal(tmp_path / "x.pth")
    assert not outside.exists()
    assert os.listdir(tmp_path) == ["x.pth"]


def test_a_zip_bomb_is_refused_before_it_unfolds(tmp_path):
    program = program_of({"a": tensor("FloatStorage", "0", 2**24)})
    path = archive(tmp_path, program, {"0": bytes(2**26)}, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**17
    tracemalloc.start()
    message = refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "is compressed or encrypted, which torch.save never does" in message
    assert peak < 2**20


def test_sizes_that_lie_are_refused(tmp_path):
    program = program_of({"a": tensor("FloatStorage", "0", 4)})
    path = archive(tmp_path, program, FOUR)
    whole = path.read_bytes()
    entry = whole.rindex(b"PK\x01\x02", 0, whole.index(b"PK\x05\x06"))  # of data/0 in the table of contents
    for at, value, said in (
        (20, 2**31, "in a file of"),  # its compressed size
        (24, 2**31, "in a file of"),  # its size
        (42, 2**31, "in a file of"),  # where it lies
        (42, 0, "differ"),  # the names there and in the table of contents
        (42, 5, "Bad magic number for file header"),
        (16, 0x1234, "Bad CRC-32"),
    ):
        data = bytearray(whole)
        data[entry + at : entry + at + 4] = struct.pack("<I", value)
        assert said in refusal(put(path, bytes(data))), at
    both = bytearray(whole)
    both[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    assert "in a file of" in refusal(put(path, bytes(both)))
    put(path, whole)
    assert content(path)["a"].tolist() == [0, 1, 2, 3]


def test_one_stretch_of_bytes_is_not_many_records(tmp_path):
    """The trick of overlapping entries: a table of contents that names the same megabyte a thousand times."""
    path = archive(tmp_path, program_of({}), {"0": bytes(2**16)})
    with zipfile.ZipFile(path, "a") as made:
        first = made.getinfo("archive/data/0")
        for number in range(1, 100):
            entry = zipfile.ZipInfo(f"archive/data/{number}")
            entry.header_offset, entry.CRC = first.header_offset, first.CRC
            entry.file_size = entry.compress_size = first.file_size
            made.filelist.append(entry)
            made._didModify = True  # type: ignore[attr-defined]
    assert "records that overlap" in refusal(path)


def test_a_shared_storage_cannot_unfold(tmp_path):
    size = 2**16
    views = {str(n): tensor("FloatStorage", "0", size) for n in range(1000)}
    path = archive(tmp_path, program_of(views), {"0": bytes(4 * size)})
    assert "unfolds to more than 8 times its size" in refusal(path)
    few = {str(n): tensor("FloatStorage", "0", size) for n in range(4)}
    assert len(content(archive(tmp_path, program_of(few), {"0": bytes(4 * size)}))) == 4


def test_reading_keeps_the_arrays_and_one_storage(tmp_path):
    size = 2**20
    write_weights(tmp_path / "x.pth", {str(n): np.full(size, n, "f4") for n in range(8)})
    tracemalloc.start()
    read = content(tmp_path / "x.pth")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read["7"][0] == 7
    assert peak < (8 + 1.5) * 4 * size


def test_the_bytes_of_a_storage_are_as_many_as_the_file_says(tmp_path):
    for kind, count in (("FloatStorage", 3), ("FloatStorage", 5), ("DoubleStorage", 4)):
        path = archive(tmp_path, program_of({"a": tensor(kind, "0", count, shape=(1,))}), FOUR)
        assert "bytes, which it does not have" in refusal(path)
    path = archive(tmp_path, program_of({"a": tensor("FloatStorage", "0", 2**61, shape=(1,))}), FOUR)
    assert "unfolds to more than 8 times its size" in refusal(path)


def test_the_list_of_storages_is_a_list_of_names(tmp_path):
    """The text of a list that doubles itself forty times would never end."""
    doubled: list = ["0"]
    for _ in range(40):
        doubled = [doubled, doubled]
    assert "a list of storages that are not those" in refusal(
        legacy(tmp_path, program_of({"a": tensor("FloatStorage", "0", 4)}), doubled)
    )


def test_bookkeeping_takes_everything_and_does_nothing(tmp_path):
    chain: object = Named("mmcv", "Thing")
    for number in range(150):
        chain = Call(chain, (number,), {"key": number})
    program = program_of(
        {
            "a": Call(Named("mmcv", "Thing"), (1, [2]), {"x": Named("datetime", "datetime")(b"now")}),
            "b": Call(Named("__builtin__", "getattr")(Named("mmcv", "Thing"), "__reduce__"), ("x",)),
            "c": [Named("easydict", "EasyDict")],
            "d": chain,
        }
    )
    read = read_weights(archive(tmp_path, program, {}))
    assert read.content == {
        "a": "(mmcv.Thing, not read)",
        "b": "(mmcv.Thing.__reduce__, not read)",
        "c": ["(easydict.EasyDict, not read)"],
        "d": "(mmcv.Thing, not read)",
    }
    assert read.not_read == ("datetime.datetime", "easydict.EasyDict", "mmcv.Thing")


def test_a_long_chain_of_bookkeeping_is_one_text(tmp_path):
    call = b"(K\x01tR"  # of what is on the stack; an item, an entry and attributes more
    program = b"\x80\x02cmmcv\nThing\n" + (call + b"K\x02aK\x03K\x04s}b") * 5000 + b"."
    assert content(archive(tmp_path, program, {})) == "(mmcv.Thing, not read)"


def test_bookkeeping_takes_no_memory_or_time_without_end(tmp_path):
    getattr_ = b"c__builtin__\ngetattr\n\x94"
    longer = b"\x80\x04" + getattr_ + b"0X\x50\x00\x00\x00" + b"a" * 80 + b"\x940" + b"cmmcv\nT\n"
    longer += (
        b"\x940"
        + b"h\x00h\x02h\x01\x86R\x94"
        + b"".join(
            b"0h\x00j" + struct.pack("<I", number) + b"h\x01\x86Rr" + struct.pack("<I", number + 1)
            for number in range(3, 5_000)
        )
    )
    tracemalloc.start()
    assert "unfolds to more than 8 times its size" in refusal(archive(tmp_path, longer + b".", {}))
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()
    many = b"\x80\x04](" + b"N" * 2**16 + b"e\x940](" + b"cmmcv\nT\n)R}K\x01h\x00sb" * 1000 + b"e."
    began = time.process_time()
    assert len(content(archive(tmp_path, many, {}))) == 1000
    assert time.process_time() - began < 5
