"""Inputs that fuzzing found (tests/fuzz), minimized: each once caused a traceback, a hang or a crash."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from passl_densecl.config import dump_config, load_config
from passl_densecl.data.datasets import scan_images
from passl_densecl.data.lmdb_check import check_lmdb
from passl_densecl.disk import parse_json
from passl_densecl.errors import InputError, RunError
from passl_densecl.evaluation.masks import read_voc_masks
from passl_densecl.evaluation.multilabel import read_voc
from passl_densecl.text import printable

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "densecl" / "densecl_r50.yaml"
DEEP = "[" * 100_000


def rejected(text: str, tmp_path: Path, *overrides: str) -> str:
    """The error of load_config for the shipped config with a few more lines."""
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.read_text() + text)
    with pytest.raises(InputError) as caught:
        load_config(path, overrides)
    return str(caught.value)


# ---------------------------------------------------------------- configs


def bomb(levels: int) -> str:
    rows = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, levels)]
    return "\n".join(rows) + "\n"


def test_aliases_that_unfold_exponentially(tmp_path):
    began = time.process_time()
    assert "aliases that unfold to more than 100,000 values" in rejected(bomb(40), tmp_path)
    assert time.process_time() - began < 2


def test_an_alias_of_its_own_container(tmp_path):
    assert "an alias of what it stands in" in rejected("more: &m {a: *m}\n", tmp_path)
    assert "an alias of what it stands in" in rejected("more: &m [1, [2, *m]]\n", tmp_path)


def test_ordinary_aliases_are_read(tmp_path):
    tree = yaml.safe_load(CONFIG.read_text())
    crop = tree["data"]["transforms"][0]
    tree["data"]["transforms"] = [crop, crop]  # the same object: PyYAML writes an anchor and an alias
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert "&id" in path.read_text()
    first, second = load_config(path).data.transforms  # type: ignore[union-attr]
    assert first == second


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "a\x1b[31mb", "a\u202eb", "x" * 201, "中" * 67, "a\0b"])
def test_a_name_that_is_no_folder_name(name, tmp_path):
    said = rejected("", tmp_path, f"name={name}")
    assert "name" in said
    assert "no dot in front" in said
    assert said.isprintable() or "\n" in said


@pytest.mark.parametrize("name", ["../../x", "/x", "a/b", "a\\b", ""])
def test_a_name_with_slashes_or_without_letters(name, tmp_path):
    assert "name" in rejected("", tmp_path, f"name={name}")


@pytest.mark.parametrize("name", ["run", "run.2", "实验-1", "a..b", "-x", "epoch=3"])
def test_valid_names(name):
    config = load_config(CONFIG, [f"name={name}"])
    assert config.run_dir == Path("output") / name


@pytest.mark.parametrize("key", ["output_dir", "data.root", "data.list_file"])
def test_a_path_with_nul(key, tmp_path):
    assert "expected a path without NUL" in rejected("", tmp_path, f"{key}=a\0b")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=1e999", "expected a finite number, got inf"),
        ("optimizer.lr=1e300", "expected at most 1e+06"),
        ("schedule.warmup_epochs=1e999", "expected a finite number"),
        ("data.transforms.0.scale=[0.2, 1e999]", "expected a finite number"),
        ("batch_size=99999999999", "expected less than"),
        ("epochs=" + "9" * 400, "a number that is too large"),
        ("seed=0x" + "f" * 5000, "a number that is too large"),  # Python cannot print it
        ("seed=" + "9" * 5000, "not readable as YAML"),
        ("data.transforms.²=1", "expected a position from 0 to 4"),  # '²'.isdigit()
        ("data.transforms." + "9" * 5000 + "=1", "expected a position from 0 to 4"),
        ("data.transforms.².size=1", "the file has no section"),
    ],
)
def test_numbers_and_positions(override, message, tmp_path):
    assert message in rejected("", tmp_path, override)


def test_a_key_that_is_a_set(tmp_path):
    assert "a key must be a word" in rejected("? !!set {a}\n: b\n", tmp_path)


def test_the_divisor_of_a_large_batch_is_found_quickly(tmp_path):
    began = time.process_time()
    said = rejected("", tmp_path, "batch_size=2147483629", "micro_batch_size=32")  # a prime
    assert "try micro_batch_size 1" in said
    assert time.process_time() - began < 2


def test_the_nearest_divisor_is_suggested(tmp_path):
    message = rejected("", tmp_path, "batch_size=300", "micro_batch_size=32")
    assert "try micro_batch_size 30, or batch_size 288" in message


def test_the_resolved_config_is_the_same_config(tmp_path):
    config = load_config(CONFIG, ["data.root=a\u2028b", "output_dir=~/x y"])
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml") == config


# ---------------------------------------------------------------- messages


@pytest.mark.parametrize("kind", [InputError, RunError])
def test_messages_have_no_control_characters(kind):
    error = kind("no folder 'a\x1b]0;title\x07\x9b2J\u202e\udcff'\nnext line: 中文 é")
    assert str(error) == "no folder 'a\\x1b]0;title\\x07\\x9b2J\\u202e\\udcff'\nnext line: 中文 é"
    str(error).encode("utf-8")


def test_printed_names_have_no_control_characters():
    assert printable("a\x1b[31m\udcff 中") == "a\\x1b[31m\\udcff 中"


def test_a_folder_with_a_hostile_name(tmp_path):
    folder = tmp_path / "a\x1b[2Jb"
    folder.mkdir()
    with pytest.raises(InputError) as caught:
        scan_images(folder)
    assert "\x1b" not in str(caught.value)


# ---------------------------------------------------------------- JSON


def test_deeply_nested_json():
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(DEEP)


STATES = [DEEP, "null", "[]", "{}", "\x80", '{"step": 1e999}', '{"step": "8"}', '{"step": -1}', '{"step": true}']


@pytest.mark.parametrize("state", [*STATES, '{"step": NaN}'])
def test_an_invalid_state(state, tmp_path):
    from passl_densecl.reliability import checkpoint, restore
    from passl_densecl.weights.files import weights_file
    from passl_densecl.weights.writing import write_pickle

    folder = tmp_path / "run" / "checkpoints" / "epoch_0001"
    folder.mkdir(parents=True)
    for name in ("model.pdparams", "optimizer.pdopt"):
        write_pickle(folder / name, {"a": np.ones(2, "f4")})
    (folder / "state.json").write_bytes(state.encode("latin1"))
    assert checkpoint.complete(folder.parent) == []
    with pytest.raises(InputError, match=r"state\.json is damaged"):
        restore.read(folder)
    assert weights_file(tmp_path / "run") == folder / "model.pdparams"


def test_invalid_metrics(tmp_path):
    from passl_densecl.reliability.log import RunLog
    from passl_densecl.visualize.runs import read_run

    good = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3)]
    bad = [DEEP, '{"step": %s}' % ("9" * 400), '{"step": 1e999}', "null", "{"]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes("\n".join([*good, *bad]).encode() + b"\n\xff\n")
    run = read_run(tmp_path)
    assert (len(run.metrics), run.unread) == (3, 6)
    assert run.last_step == 3
    log = RunLog(tmp_path)
    log.record()
    try:
        log.rewind(2)
    finally:
        log.close()
    assert path.read_text().splitlines() == good[:2]


def test_metrics_beyond_floating_point(tmp_path):
    from passl_densecl.visualize.curves import key_figures
    from passl_densecl.visualize.runs import read_run

    rows = [{"step": 1, "loss": 10**400, "peak_memory_mb": 10**308}, {"step": 2, "loss": 2.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figures = dict(key_figures(read_run(tmp_path)))
    assert figures["Loss"].startswith("2.00")


# ---------------------------------------------------------------- lists and files of other projects


def test_a_voc_list_with_nul_in_a_name(tmp_path):
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_bytes(b"a\0b\n")
    with pytest.raises(InputError, match="null byte"):
        read_voc(tmp_path, "train")


def test_voc_lists_of_which_one_is_empty(tmp_path):
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "cat_train.txt").write_text("")
    (tmp_path / "ImageSets" / "Main" / "dog_train.txt").write_text("a 1\n")
    with pytest.raises(InputError, match="do not list the same images"):
        read_voc(tmp_path, "train")


def test_a_voc_list_that_is_not_text(tmp_path):
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_bytes(b"\xbf\n")
    with pytest.raises(InputError, match="cannot be read as text"):
        read_voc_masks(tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_BASE_: 9\n", "expected the name of a file"),
        ("_BASE_: [{a: b}]\n", "expected the name of a file"),
        ("_BASE_: ~nobody-of-this-name/x\n", "is not at"),
        ("a: " + "9" * 5000 + "\n", "not YAML"),
        ("? [a]\n: b\n", "not YAML"),
        ("[" * 3000, "not YAML"),
        (bomb(40), "aliases that unfold"),
    ],
)
def test_an_invalid_config_of_another_project(text, message, tmp_path):
    from passl_densecl.integrations.yaml_files import resolve

    (tmp_path / "x.yml").write_text(text)
    with pytest.raises(InputError, match=message):
        resolve(tmp_path / "x.yml")


@pytest.mark.parametrize("content", [b'{"categories": 5}', b"\xff" * 100_000, DEEP.encode(), b"[]", b"{}"])
def test_invalid_annotations(content, tmp_path):
    from passl_densecl.integrations.prepare import _categories

    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match="not a COCO annotation file") as caught:
        _categories(tmp_path / "x.json")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["[{[]}]", "(1, 2", "[" * 5000, "(lambda: 1)()"])
def test_a_text_that_is_not_a_tuple(text):
    from passl_densecl.integrations.yaml_files import find

    assert find({"a": text}, "a") == text


# ---------------------------------------------------------------- identity cards


@pytest.mark.parametrize("data", [7, None, [1], "x"])
def test_a_recipe_with_invalid_data(data, tmp_path):
    from passl_densecl.weights.recorded import recorded_config
    from passl_densecl.weights.writing import write_weights

    card = {"kind": "backbone", "config": {"task": "pretrain", "name": "x", "data": data}}
    write_weights(tmp_path / "w.pdparams", {"a": np.ones(2, "f4")}, card=card)
    with pytest.raises(InputError, match="expected a section of keys"):
        recorded_config(tmp_path / "w.pdparams")


@pytest.mark.parametrize("parents", [7, "x", {"a": 1}, [7]])
def test_a_card_with_invalid_parents(parents, tmp_path):
    from passl_densecl.weights.info import describe_file, render
    from passl_densecl.weights.writing import write_weights

    card = {"kind": "back\x1b[2Jbone", "parents": parents}
    write_weights(tmp_path / "w.pdparams", {"a": np.ones(2, "f4")}, card=card)
    text = render(describe_file(tmp_path / "w.pdparams"))
    assert "card     back\\x1b[2Jbone" in text
    assert "made from" not in text


def test_one_long_name_does_not_widen_every_line(tmp_path):
    from passl_densecl.weights.info import describe_file, render
    from passl_densecl.weights.writing import write_weights

    write_weights(tmp_path / "w.pdparams", {"x" * 5000: np.ones(1), **{f"a{n}": np.ones(1) for n in range(100)}})
    text = render(describe_file(tmp_path / "w.pdparams"))
    assert "x" * 5000 in text
    assert len(text) < 40_000


# ---------------------------------------------------------------- pickles

DOUBLED = b"2\x86" * 40  # DUP, TUPLE2: a pair of the same value twice, forty levels deep


@pytest.mark.parametrize(
    "program",
    [
        b"]" + DOUBLED + b"K\x01R",  # as argument of a call: the message would have 2^40 characters
        b"N" + DOUBLED + b"K\x01R",
        b"}N" + DOUBLED + b"K\x01s",  # as a key: 2^40 hashes
        b"\x8f(N" + DOUBLED + b"\x90",
        b"}(N" + b"p1\n0(g1\ng1\nt" * 40 + b"K\x01u",
        b"}" + b"cbuiltins\ntuple\n(]N" + b"a" + b"tR" + b"cbuiltins\ntuple\n]N\x85a\x85R" + b"K\x01s",
    ],
)
@pytest.mark.parametrize("suffix", [".pdparams", ".pth"])
def test_a_tuple_that_doubles_at_every_level(program, suffix, tmp_path):
    import zipfile

    from passl_densecl.weights.files import read_weights

    path = tmp_path / f"w{suffix}"
    data = b"\x80\x04" + program + b"."
    if suffix == ".pth":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", data)
    else:
        path.write_bytes(data)
    began = time.process_time()
    with pytest.raises(InputError, match="damaged or hostile"):
        read_weights(path)
    assert time.process_time() - began < 2


# ---------------------------------------------------------------- packs

PAGE = 4096


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> bytes:
    """150 small images: the tree has a branch and leaves, and values inside pages and longer than a page."""
    pytest.importorskip("lmdb")
    from passl_densecl.data.packs import write_pack

    path = tmp_path_factory.mktemp("pack") / "images.lmdb"
    small = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    large = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8))[1].tobytes()
    records = [large if n % 10 == 0 else small for n in range(150)]
    paths = [b"class_%d/%03d.png" % (n % 2, n) for n in range(150)]
    write_pack(str(path), records, paths, labels=np.arange(150) % 2, classes=("class_0", "class_1"))
    return path.read_bytes()


def newest_root(data: bytes) -> int:
    """The page of the tree's root."""
    metas = [(int.from_bytes(data[at + 144 : at + 152], "little"), at) for at in (0, PAGE)]
    at = max(metas)[1]
    return int.from_bytes(data[at + 128 : at + 136], "little")


def test_an_undamaged_pack_passes(pack, tmp_path):
    (tmp_path / "x.lmdb").write_bytes(pack)
    assert check_lmdb(str(tmp_path / "x.lmdb")) is None
    images = scan_images(tmp_path / "x.lmdb", labeled=True)
    assert len(images) == 150
    assert images.decode(10).shape == (60, 60, 3)


DAMAGES = {  # kind → (where, offset in bytes, new number; None for the root's page, size of the number in bytes)
    "a root beyond the end": ("meta", 128, 10**6, 8),
    "a table of tables": ("meta", 92, 4, 2),
    "a page size of 0": ("file", 40, 0, 4),
    "no page at all": ("root", 10, 4, 2),
    "a child beyond the end": ("first entry", 0, 10**6, 4),
    "a child that is the root": ("first entry", 0, None, 4),
    "an entry beyond the page": ("leaf", 16, 5000, 2),
    "a page with a million entries": ("leaf", 12, 0xFFF0, 2),
    "a key beyond the page": ("record", 6, 0xFFFF, 2),
    "a value beyond the file": ("record", 0, 2**31 - 1, 4),
    "a value that begins beyond the file": ("record", 16, 10**9, 8),
}


def damaged(data: bytes, kind: str) -> bytes:
    """A pack with a damaged tree."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], "little")

    root = newest_root(data) * PAGE
    entry = root + number(root + 16, 2)
    leaf = number(entry, 4) * PAGE
    meta = max((number(at + 144, 8), at) for at in (0, PAGE))[1]
    places = {"file": 0, "meta": meta, "root": root, "first entry": entry, "leaf": leaf}
    places["record"] = leaf + number(leaf + 16, 2)  # record 0, a large one
    where, offset, value, size = DAMAGES[kind]
    at = places[where] + offset
    return data[:at] + (root // PAGE if value is None else value).to_bytes(size, "little") + data[at + size :]


def test_packs_that_would_kill_the_process(pack, tmp_path):
    """In another process: without the check, some of these crash it."""
    for number, kind in enumerate(DAMAGES):
        (tmp_path / f"{number:02d}.lmdb").write_bytes(damaged(pack, kind))
        assert (tmp_path / f"{number:02d}.lmdb").read_bytes() != pack
    code = (
        "import sys\nfrom passl_densecl.data.datasets import scan_images\nfrom passl_densecl.errors import InputError\n"
        "for path in sys.argv[1:]:\n  try:\n    images = scan_images(path)\n"
        "    [images.read(n) for n in range(len(images))]\n"
        "  except InputError as error:\n    print('refused', error, flush=True)\n"
    )
    command = [sys.executable, "-c", code, *sorted(tmp_path.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done
    said = done.stdout.splitlines()
    assert [line.startswith("refused") and "pack" in line for line in said] == [True] * len(DAMAGES), said


def header(**changes: object) -> bytes:
    return json.dumps({"format": 1, "classes": ["a", "b"], "shorter_side": None, "images": 150} | changes).encode()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (b"passl_densecl", b"\xff", "its header"),
        (b"passl_densecl", b"{}", "its header"),
        (b"passl_densecl", b"null", "its header"),
        (b"passl_densecl", DEEP.encode(), "its header"),
        (b"passl_densecl", header(format=2), "has format 2, this passl_densecl reads formats up to 1"),
        (b"passl_densecl", header(classes=7), "its classes"),
        (b"passl_densecl", header(classes=["a", 1]), "its classes"),
        (b"passl_densecl", header(shorter_side=-1), "its shorter_side"),
        (b"passl_densecl", header(images=149), "its paths"),
        (b"passl_densecl", header(classes=["a"]), "its labels"),
        (b"passl_densecl.labels", b"1234567", "its header"),
        (b"passl_densecl.labels", np.full(150, -1, "<i8").tobytes(), "its labels"),
        (b"passl_densecl.labels", np.full(150, 2**62, "<i8").tobytes(), "its labels"),
        (b"passl_densecl.labels", bytes(8), "its labels"),
        (b"passl_densecl.paths", b"a\0" * 149, "its paths"),
    ],
)
def test_a_pack_with_inconsistent_records(key, value, message, pack, tmp_path):
    import lmdb

    path = tmp_path / "x.lmdb"
    path.write_bytes(pack)
    with (
        lmdb.open(str(path), subdir=False, lock=False, map_size=2**24) as environment,
        environment.begin(write=True) as change,
    ):
        change.put(key, value)
    for labeled in (False, True):
        with pytest.raises(InputError, match=message):
            scan_images(path, labeled=labeled)
