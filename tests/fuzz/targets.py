"""What is fuzzed: for each kind of input, how a case is made and what reads it.

A case is a set of small files (and a few words), so that what breaks something can be kept, looked at and tried again.
Whatever reads it may succeed or raise InputError; see ``guard.py`` for what it must not do.
"""

from __future__ import annotations

import contextlib
import html.parser
import json
import math
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import strategies as st

from passl_densecl.config import dump_config, load_config
from passl_densecl.errors import InputError
from tests.fuzz.mutate import (
    NUMBERS,
    mutated_bytes,
    mutated_pickle,
    mutated_tree,
    mutated_zip,
    places,
    programs,
    values,
    words,
)

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml"))
DOWNSTREAM = sorted((ROOT / "configs" / "downstream").rglob("*.y*ml"))
LONGEST_MESSAGE = 100_000
CONTROL = {chr(code) for code in (*range(32), *range(127, 160))} - {"\n"}
BASES = ["config.yaml", "../../../etc/passwd", "[1, {}]", "~/x", "~nobody1/x", ".", "{a: b}", "9"]


@dataclass(frozen=True)
class Case:
    """Files below the case's folder, and words for whoever reads them."""

    files: dict[str, bytes]
    words: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    @property
    def size(self) -> int:
        return sum(map(len, self.files.values())) + sum(map(len, self.words))


@dataclass(frozen=True)
class Target:
    """`cases(seeds)` is a strategy of cases; `read(folder, output, words)` reads one and may write below `output`."""

    name: str
    about: str
    cases: Callable[[Path], st.SearchStrategy[Case]]
    read: Callable[[Path, Path, tuple[str, ...]], None]
    first: tuple[Case, ...] = ()  # cases that take every path which imports something late


class Wrong(AssertionError):
    """A case was read without an unexpected exception, but not as it must be."""


def check_text(text: str, what: str) -> None:
    """A text for people: printable on every terminal, and of a length that can be read."""
    if len(text) > LONGEST_MESSAGE:
        raise Wrong(f"{what} of {len(text):,} characters")
    bad = next((c for c in text if c in CONTROL or 0xD800 <= ord(c) < 0xE000), None)
    if bad is not None:
        raise Wrong(f"{what} with {bad!r} in it")


@contextlib.contextmanager
def only_input_errors() -> Any:
    """The one exception that a user's mistake may end in, with a message that is fit to print."""
    try:
        yield
    except InputError as error:
        check_text(str(error), "a message")
        check_causes(error)


def check_causes(error: BaseException) -> None:
    """No MemoryError behind a polite message: memory was asked for before the file was checked."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            raise Wrong("a MemoryError behind an InputError")
        cause = cause.__cause__ or cause.__context__


def each(*calls: Callable[[], object]) -> None:
    for call in calls:
        with only_input_errors():
            call()


# --- configs and overrides
# -----------------------------------------------------------------------------------------------

_YAML_PIECES = [
    "a: &a [x, x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\nd: &d [*c, *c, *c, *c]\ne: &e [*d, *d, *d, *d]\n"
    "f: &f [*e, *e, *e, *e]\ng: &g [*f, *f, *f, *f]\nh: &h [*g, *g, *g, *g]\ni: &i [*h, *h, *h, *h]\nj: [*i, *i, *i, "
    "*i]\n",
    "model: &m {a: *m}\n",
    "seed: &s [*s]\n",
    "name: &n\n  x: *n\n",
    "seed: !!python/object/apply:os.system ['touch pwned']\n",
    "seed: !!python/name:os.system\n",
    "seed: !!python/object/new:fuzz_canary.run []\n",
    "!!python/module:fuzz_canary\n",
    "seed: !!int 'x'\n",
    "seed: !!float 'x'\n",
    "seed: !!timestamp 2001-99-99\n",
    "seed: !!binary '%%'\n",
    "? [a, b]\n: c\n",
    "? {a: b}\n: c\n",
    "? !!set {a}\n: c\n",
    "!!set {a, b}\n",
    "<<: {task: linear}\n",
    "<<: [1]\n",
    "<<: *x\n",
    "%YAML 9.9\n---\n",
    "%TAG ! tag:x,1:\n---\n",
    "---\na: 1\n---\nb: 2\n",
    "...\n",
    "seed: 1:30:30\n",
    "seed: 0b111\n",
    "seed: 0o17\n",
    "seed: 1_000\n",
    "seed: .inf\n",
    "seed: .nan\n",
    "seed: 2001-01-01\n",
    "seed: 0x\n",
    "seed: -_\n",
    "seed: 1e99999\n",
    "epochs: 1e5\n",
    "seed: ~\n",
    "name: |\n  a\n  b\n",
    "name: 'a\n  b'\n",
    'name: "\\x1b[31m"\n',
    'name: "\\ud800"\n',
    "name: ../../x\n",
    "name: ..\n",
    "name: '.'\n",
    "\t- a\n",
    "@\n",
    "`\n",
    "- \n" * 50,
    "[" * 300,
    "{" * 300,
    "a: " * 300,
    "- " * 300,
    "seed: " + "9" * 5000 + "\n",
    "'" * 3,
    "x: " + "[" * 60 + "]" * 60 + "\n",
    "name: !!str 1\n",
    "epochs: !!null ''\n",
    "=: 1\n",
    "seed: =\n",
    "null: 1\n",
    "1: 2\n",
    "1.5: 2\n",
    "true: 2\n",
    ".nan: 1\n",
    "a:\n  - b\n c\n",
    "# \x07\n",
    "\ufeff",
    "\x00",
    "\x1b[2J\n",
    "\x85",
    "\u2028",
]


def _config_cases(_: Path) -> st.SearchStrategy[Case]:
    return st.one_of(_mutated_config(CONFIGS), _mutated_config(CONFIGS), _mutated_config(DOWNSTREAM, "downstream"))


@st.composite
def _mutated_config(draw: Any, files: list[Path], kind: str = "") -> Case:
    text = draw(st.sampled_from([path.read_text(encoding="utf-8") for path in files]))
    how = draw(st.sampled_from(["tree", "tree", "tree", "text", "bytes"] if not kind else ["text", "text", "bytes"]))
    if how == "tree":
        tree = draw(mutated_tree(yaml.safe_load(text)))
        text = json.dumps(tree) if draw(st.booleans()) else yaml.safe_dump(_dumpable(tree), allow_unicode=True)
    elif how == "text":
        lines = text.splitlines(keepends=True)
        for _ in range(draw(st.integers(1, 3))):
            at = draw(st.integers(0, len(lines)))
            what = draw(st.sampled_from(["piece", "piece", "double", "value", "value", "indent", "base"]))
            line = lines[at] if at < len(lines) else "a: b\n"
            if what == "piece":
                lines.insert(at, draw(st.sampled_from(_YAML_PIECES)))
            elif what == "double":
                lines.insert(at, line)
            elif what == "indent":
                lines.insert(at, " " * draw(st.integers(0, 9)) + line.lstrip())
            elif what == "base":
                lines.insert(at, f"_BASE_: {draw(st.sampled_from(BASES))}\n")
            else:
                value = draw(
                    st.one_of(
                        words,
                        st.sampled_from(NUMBERS).map(str),
                        st.sampled_from(["(1, 2", "(" * 200, "[" * 99, "(1, 2)", "[0x, 1]", "(9**9**9)"]),
                    )
                )
                lines[at : at + 1] = [line.partition(":")[0] + ": " + value + "\n"]
        text = "".join(lines)
    data = text.encode("utf-8", "surrogatepass")
    if how == "bytes":
        data = draw(mutated_bytes(data, [piece.encode() for piece in _YAML_PIECES]))
    return Case({"config.yaml": data}, (kind,))


def _dumpable(tree: Any) -> Any:
    """PyYAML refuses surrogates, and writes its own tag for what JSON has not."""
    return json.loads(json.dumps(tree).replace("\\ud", "\\\\ud"))


def _read_config(folder: Path, output: Path, words: tuple[str, ...]) -> None:
    path = folder / "config.yaml"
    if words == ("downstream",):
        each(lambda: _resolve(path))
        return
    with only_input_errors():
        check_config(load_config(path), output)


def _resolve(path: Path) -> None:
    from passl_densecl.integrations.yaml_files import dump, entries, find, resolve

    content = resolve(path)
    for place in places(content):
        find(content, *place)
    for key in list(content)[:20]:
        entries(content[key], "NormalizeImage")
    dump(content)


def check_config(config: Any, output: Path) -> None:
    """What was accepted survives being written, and its run stays inside of its output folder."""
    text = dump_config(config)
    check_text(text, "the resolved config")
    again = output / "again.yaml"
    again.write_text(text, encoding="utf-8")
    if load_config(again) != config:
        raise Wrong("the resolved config reads as another one")
    folder, top = (os.path.realpath(path) for path in (config.run_dir, config.output_dir))
    if os.path.dirname(folder) != top:
        raise Wrong(f"name {config.name!r} leaves the output folder")
    for number in (config.base_lr, config.schedule(0, steps_per_epoch=3, epochs=config.epochs)):
        if not math.isfinite(number):
            raise Wrong(f"a learning rate of {number}")


_KEYS = sorted(
    {
        ".".join(map(str, place))
        for path in CONFIGS
        for place in places(yaml.safe_load(path.read_text(encoding="utf-8")))
    }
)


def _override_cases(_: Path) -> st.SearchStrategy[Case]:
    key = st.one_of(
        st.sampled_from(_KEYS),
        st.sampled_from(_KEYS),
        words,
        st.lists(words, min_size=1, max_size=4).map(".".join),
        st.tuples(st.sampled_from(_KEYS), words).map(".".join),
        st.sampled_from(
            [
                "a." * 300 + "b",
                "data.transforms.²",
                "data.transforms.-1",
                "data.transforms.0.0.0",
                "data.transforms." + "9" * 5000,
                "task.x",
            ]
        ),
    )
    value = st.one_of(
        words,
        st.sampled_from(NUMBERS).map(str),
        values.map(lambda v: json.dumps(v)),
        st.sampled_from(_YAML_PIECES),
        st.sampled_from(_YAML_PIECES).map(lambda piece: piece.partition(": ")[2]),
    )
    override = st.one_of(st.tuples(key, value).map("=".join), st.tuples(key, value).map("=".join), words)
    return st.builds(
        lambda path, overrides: Case({}, (str(path.relative_to(ROOT)), *overrides)),
        st.sampled_from(CONFIGS),
        st.lists(override, min_size=1, max_size=4),
    )


def _read_overrides(folder: Path, output: Path, words: tuple[str, ...]) -> None:
    with only_input_errors():
        check_config(load_config(ROOT / words[0], words[1:]), output)


# --- weights
# -------------------------------------------------------------------------------------------------------------


def make_weights(folder: Path) -> dict[str, bytes]:
    """Small files of every format that the project writes or reads."""
    from passl_densecl.weights import Card, write_weights

    rng = np.random.default_rng(0)
    table = {
        "conv1.weight": rng.normal(size=(2, 3, 1, 1)).astype("f4"),
        "bn1._mean": rng.normal(size=2).astype("f2"),
        "count": np.array(3),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 4), "f4"),
        "wide": rng.normal(size=(2, 3)),
    }
    nested = {"epoch": 3, "state_dict": table, "lr": [0.1, None], "meta": {"name": "x", "shape": (1, 2)}}
    card = Card(
        kind="backbone",
        depth=18,
        stem_stride=4,
        last_stride=2,
        epoch=1,
        step=2,
        classes=("a", "b"),
        config={"task": "pretrain", "model": {}},
    )
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for suffix in (".pdparams", ".pd", ".pkl", ".pth", ".safetensors"):
        for number, content in enumerate((table,) if suffix == ".safetensors" else (table, nested)):
            path = folder / f"seed{number}{suffix}"
            write_weights(path, content, card=card if number == 0 else None)
            found[path.name] = path.read_bytes()
    plain = {name: value for name, value in table.items() if name != "flags"}
    for protocol in range(6):
        found[f"protocol{protocol}.pdparams"] = pickle.dumps({"epoch": 1, "state_dict": plain}, protocol)
    big = {"w@@.0": table["wide"][0], "w@@.1": table["wide"][1]}
    split = {"UnpackBigParamInfor@@": {"w": {"OriginShape": (2, 3), "slices": ["w@@.0", "w@@.1"]}}}
    found["split.pdparams"] = pickle.dumps({**big, **split, "StructuredToParameterName@@": {"w": "w_0"}}, 4)
    found["tensor.pdparams"] = pickle.dumps({"w": ("linear_0.w_0", table["wide"])}, 2)
    for path in sorted((ROOT / "tests" / "weights" / "data").glob("*.pth")):
        found[path.name] = path.read_bytes()
    return found


@st.composite
def _tables(draw: Any) -> Any:
    """Tables of weights whose names nearly fit, with a few entries that do not, behind wrappers and prefixes."""
    from passl_densecl.weights.names import LAYOUTS, WRAPPERS
    from passl_densecl.weights.vocabulary import VOCABULARIES, backbone_names, translations

    vocabulary = draw(st.sampled_from(sorted(VOCABULARIES)))
    names = list(backbone_names(18)) if vocabulary == "paddle" else list(translations(vocabulary, 18).values())
    prefixes = ["", "backbone.", "module.", "encoder_q.", "encoder_q.0.", "encoder_k.0.", "a.b."]
    prefixes += [prefix for layout in LAYOUTS.values() for prefix in layout.backbones]
    table: dict[Any, Any] = {}
    shape = draw(st.sampled_from([(), (1,), (2, 3), (0,), (64, 3, 7, 7), (1, 1, 1, 1)]))
    for prefix in draw(st.lists(st.sampled_from(prefixes), min_size=1, max_size=2)):
        kept = names if draw(st.booleans()) else draw(st.lists(st.sampled_from(names), max_size=6))
        table |= {prefix + name: np.ones(shape, "f4") for name in kept}
    more = [
        "fc.weight",
        "fc.bias",
        "head.fc.weight",
        "queue",
        "queue_ptr",
        "queue2",
        "encoder_q.1.mlp.0.weight",
        "global_queue.keys",
    ]
    for name in draw(st.lists(st.one_of(st.sampled_from(more), words, st.sampled_from(names)), max_size=4)):
        kind = draw(st.sampled_from(["f4", "f2", "i8", "b1", "c8", "S3", "U3", "f8", ">f4", "u2"]))
        value = np.ones(draw(st.sampled_from([(), (1,), (2, 2), (3, 0), (1,) * 20])), kind)
        table[name] = draw(st.one_of(st.just(value), values))
    if draw(st.integers(0, 3)) == 0:
        table[draw(st.sampled_from([1, None, (1, 2), b"x", 1.5, True]))] = np.ones(2, "f4")
    if draw(st.booleans()):
        return {draw(st.sampled_from(WRAPPERS)): table, draw(words): draw(values)}
    return table


_HEADER_KEYS = {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}


@st.composite
def _safetensors(draw: Any) -> bytes:
    header = {
        "a": dict(_HEADER_KEYS),
        "b": {"dtype": "BF16", "shape": [], "data_offsets": [8, 10]},
        "__metadata__": {"passl_densecl": "passl_densecl card {}"},
    }
    header = draw(mutated_tree(header))
    text = json.dumps(header).encode()
    if draw(st.integers(0, 4)) == 0:
        text = draw(mutated_bytes(text))
    length = draw(
        st.sampled_from([len(text), len(text), len(text), len(text), 0, 1, 2**60, 2**64 - 1, 10**8, len(text) + 1])
    )
    return length.to_bytes(8, "little") + text + bytes(draw(st.sampled_from([10, 10, 10, 0, 9, 1000])))


@st.composite
def _carded(draw: Any, folder: Path) -> tuple[str, bytes]:
    """A file whose identity card says what no card should."""
    from passl_densecl.weights import write_weights

    card = {
        "kind": "backbone",
        "names": "paddle",
        "encoder": "query",
        "depth": 18,
        "stem_stride": 4,
        "last_stride": 2,
        "epoch": 1,
        "step": 8,
        "classes": ["a", "b"],
        "config": {"task": "pretrain", "name": "x", "model": {"depth": 18}, "data": {"transforms": []}},
        "version": "1",
        "parents": [{"file": "x", "sha256": "0", "kind": "y"}],
    }
    card = json.loads(json.dumps(draw(mutated_tree(card))))
    suffix = draw(st.sampled_from([".pdparams", ".pth", ".safetensors"]))
    path = folder / f"carded{suffix}"
    try:
        write_weights(path, {"conv1.weight": np.ones(2, "f4")}, card=card)
    except (ValueError, TypeError):  # a card that JSON cannot hold: written as text instead
        from passl_densecl.weights import card as cards

        text = (cards._MAGIC + json.dumps(card)).encode()[: cards.MAX_BYTES]
        return ".pdparams", b"\x80\x04\x8d" + len(text).to_bytes(8, "little") + text + b"0}."
    return suffix, path.read_bytes()


def _weight_cases(scratch: Path) -> st.SearchStrategy[Case]:
    seeds = make_weights(scratch / "seeds")
    zips = [
        data for name, data in seeds.items() if data.startswith(b"PK") and name != "no_checksums.pth"
    ]  # zipfile refuses it
    legacy = [data for name, data in seeds.items() if "legacy" in name]
    pickles = [data for data in seeds.values() if data[:1] == b"\x80" and data not in legacy]
    everything = list(seeds.values())

    @st.composite
    def cases(draw: Any) -> Case:
        how = draw(
            st.sampled_from(
                ["bytes", "bytes", "pickle", "program", "zip", "zip", "legacy", "safetensors", "table", "card"]
            )
        )
        suffix = draw(st.sampled_from([".pdparams", ".pth", ".safetensors", ".pkl", ""]))
        if how == "bytes":
            data = draw(mutated_bytes(draw(st.sampled_from(everything)), everything))
        elif how == "pickle":
            data = draw(mutated_pickle(draw(st.sampled_from(pickles))))
        elif how == "program":
            data = draw(programs())
        elif how == "zip":
            data = draw(mutated_zip(draw(st.sampled_from(zips))))
        elif how == "legacy":
            seed = draw(st.sampled_from(legacy))
            end = seed.index(b".") + 1
            data = seed[:end] + draw(st.one_of(mutated_bytes(seed[end:]), programs().map(lambda p: p + seed[end:])))
        elif how == "safetensors":
            data = draw(_safetensors())
        elif how == "card":
            suffix, data = draw(_carded(scratch / "seeds"))
        else:
            data = _written(scratch / "seeds", draw(_tables()), draw(st.sampled_from([".pth", "2", "4", "5"])))
        return Case(
            {f"w{suffix}": data}, (draw(st.sampled_from(["query", "key"])), draw(st.one_of(st.just(""), words)))
        )

    return cases()


def _written(folder: Path, table: Any, how: str) -> bytes:
    from passl_densecl.weights import write_weights

    if how == ".pth":
        with contextlib.suppress(InputError, TypeError, ValueError, OverflowError, RecursionError):
            write_weights(folder / "table.pth", table)
            return (folder / "table.pth").read_bytes()
    return pickle.dumps(table, 4 if how == ".pth" else int(how))


def _read_weights(folder: Path, output: Path, words: tuple[str, ...]) -> None:
    from passl_densecl.weights import files, recorded
    from passl_densecl.weights.convert import convert
    from passl_densecl.weights.info import describe_file, render
    from passl_densecl.weights.read import read_backbone, read_classifier, read_model, read_training_state

    (path,) = folder.iterdir()
    encoder, prefix = words
    each(
        lambda: check_text(render(describe_file(path)), "the description of a file"),
        lambda: files.read_card(path),
        lambda: files.read_pickle(path),
        lambda: files.read_arrays(path),
        lambda: recorded.recorded_backbone(path),
        lambda: recorded.recorded_config(path),
        lambda: recorded.recorded_classes(path, 2),
        lambda: read_backbone(path, encoder=encoder, prefix=prefix or None),
        lambda: read_model(path),
        lambda: read_training_state(path),
        lambda: read_classifier(path),
        lambda: check_text(
            "\n".join(convert(path, output / "x.pdparams", "paddle").lines()), "the report of a conversion"
        ),
        lambda: convert(path, output / "x.pkl", "detectron2"),
        lambda: convert(path, output / "y.pdparams", "state"),
    )


# --- packs
# ---------------------------------------------------------------------------------------------------------------


def make_packs(folder: Path) -> dict[str, bytes]:
    """Packs of a few small images: with and without labels, records inside of pages and beyond them."""
    import cv2

    from passl_densecl.data.packs import write_pack

    folder.mkdir(parents=True, exist_ok=True)
    small = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    large = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (50, 50, 3), np.uint8))[1].tobytes()
    found = {}
    for name, records, labels in (
        ("few", [small, large, small], None),
        ("labeled", [small] * 70 + [large] * 2, np.arange(72) % 2),
    ):
        path = folder / f"{name}.lmdb"
        path.unlink(missing_ok=True)
        paths = [b"class_%d/%d.png" % (n % 2, n) for n in range(len(records))]
        write_pack(
            str(path), records, paths, labels=labels, classes=("class_0", "class_1") if labels is not None else ()
        )
        found[name] = path.read_bytes()
    return found


def _pack_cases(scratch: Path) -> st.SearchStrategy[Case]:
    import lmdb

    seeds = make_packs(scratch / "seeds")
    page = 4096

    @st.composite
    def cases(draw: Any) -> Case:
        data = draw(st.sampled_from(list(seeds.values())))
        how = draw(st.sampled_from(["bytes", "header", "header", "records"]))
        if how == "bytes":
            data = draw(mutated_bytes(data, list(seeds.values())))
        elif how == "header":  # where LMDB keeps its own numbers: the first bytes of pages
            for _ in range(draw(st.integers(1, 3))):
                at = draw(st.integers(0, len(data) // page - 1)) * page + draw(st.integers(0, 200)) % page
                size = draw(st.sampled_from([1, 2, 4, 8]))
                number = draw(
                    st.one_of(
                        st.integers(0, 300),
                        st.sampled_from([2**15, 2**16 - 1, 2**31, 2**40, 2**63, 2**64 - 1, len(data) // page]),
                    )
                )
                data = data[:at] + (number & (2 ** (8 * size) - 1)).to_bytes(size, "little") + data[at + size :]
        else:
            about = {"format": 1, "images": 3, "classes": ["class_0", "class_1"], "shorter_side": None}
            header = json.dumps(draw(mutated_tree(about))).encode()
            if draw(st.integers(0, 3)) == 0:
                header = draw(mutated_bytes(header))
            path = scratch / "seeds" / "changed.lmdb"
            path.write_bytes(data)
            with (
                lmdb.open(str(path), subdir=False, lock=False, map_size=2**22) as environment,
                environment.begin(write=True) as transaction,
            ):
                transaction.put(b"passl_densecl", header)
                if draw(st.booleans()):
                    transaction.put(
                        b"passl_densecl.labels",
                        draw(
                            st.one_of(
                                st.binary(max_size=40),
                                st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3).map(
                                    lambda row: np.array(row, "<i8").tobytes()
                                ),
                            )
                        ),
                    )
                if draw(st.booleans()):
                    transaction.put(
                        b"passl_densecl.paths",
                        draw(
                            st.one_of(
                                st.binary(max_size=40),
                                st.lists(words, max_size=4).map(
                                    lambda row: "\0".join(row).encode(
                                        "utf-8",
                                        "surrogateescape"
                                        if all(
                                            ord(c) < 0xD800 or ord(c) > 0xDFFF or 0xDC80 <= ord(c) <= 0xDCFF
                                            for w in row
                                            for c in w
                                        )
                                        else "backslashreplace",
                                    )
                                ),
                            )
                        ),
                    )
                transaction.delete((draw(st.integers(0, 5))).to_bytes(8, "big"))
            data = path.read_bytes()
        return Case(
            {
                "images.lmdb": data,
                "list.txt": draw(st.sampled_from([b"class_0/0.png\n", b"class_0/0.png 0\nclass_1/1.png 1\n"])),
            }
        )

    return cases()


def _read_pack(folder: Path, output: Path, words: tuple[str, ...]) -> None:
    each(lambda: read_images(folder / "images.lmdb"))
    each(lambda: read_images(folder / "images.lmdb", labeled=True))
    each(lambda: read_images(folder / "images.lmdb", labeled=True, classes=["class_0", "class_1"]))
    each(lambda: read_images(folder / "images.lmdb", list_file=folder / "list.txt"))


def read_images(root: Path, **options: Any) -> None:
    """Find images, tell about them and decode some."""
    from passl_densecl.data.datasets import check_decodable, scan_images

    images = scan_images(root, **options)
    check_text(images.describe(), "the description of a data set")
    check_decodable(images)
    for index in range(min(4, len(images))):
        with only_input_errors():
            images.decode(index)
    if images.labels is not None and len(images):
        for label in np.unique(images.labels).tolist():
            images.classes[label]


# --- lists and results
# -----------------------------------------------------------------------------------------------------

_METRIC = {
    "step": 1,
    "epoch": 1,
    "loss": 7.0,
    "global_loss": 7.0,
    "global_top1": 0.1,
    "dense_loss": 6.5,
    "dense_top1": 0.2,
    "chance": 8.3,
    "lr": 0.03,
    "loss_lambda": 0.5,
    "queue_fill": 1.0,
    "images_per_second": 40.0,
    "data_share": 0.1,
    "peak_memory_mb": 500.0,
}
_STATE = {
    "step": 8,
    "task": "pretrain",
    "steps_per_epoch": 4,
    "images": 64,
    "scaler": {},
    "knn_missing": False,
    "classes": ["a", "b"],
}
_RESULT = {
    "top1": 0.5,
    "val": {"images": 10, "names": ["a", "b"]},
    "values": list(range(50)),
    "nothing": None,
    "text": "x",
}
_COCO = {
    "categories": [
        {"id": 1, "name": "cat", "supercategory": "animal"},
        {"id": 2, "name": "dog", "supercategory": "animal"},
    ],
    "annotations": [{"file_name": "a.png", "segments_info": [{"id": 1, "category_id": 1}]}],
}
_ANNOTATION = (
    "<annotation><object><name>cat</name><difficult>0</difficult></object><object><name>dog</name></object></annotation>",
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "1234567890"><!ENTITY y "&x;&x;&x;&x;&x;&x;&x;&x;"><!ENTITY z '
    '"&y;&y;&y;&y;&y;&y;&y;&y;"><!ENTITY w "&z;&z;&z;&z;&z;&z;&z;&z;"><!ENTITY v "&w;&w;&w;&w;&w;&w;&w;&w;"><!ENTITY u '
    '"&v;&v;&v;&v;&v;&v;&v;&v;">]>'
    "<annotation><object><name>&u;&u;&u;</name></object></annotation>",
    '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><object><name>&x;</name></object></annotation>',
    "<annotation><object><name>\x1b[31m</name></object></annotation>",
    "<a>" * 2000,
)


@st.composite
def _lines(draw: Any, line: st.SearchStrategy[str], good: list[str]) -> bytes:
    rows = draw(st.lists(st.one_of(st.sampled_from(good), st.sampled_from(good), line), max_size=8))
    data = draw(st.sampled_from(["\n", "\n", "\r\n", "\r", "\x0b", ""])).join(rows).encode("utf-8", "surrogatepass")
    return draw(mutated_bytes(data)) if draw(st.integers(0, 3)) == 0 else data


@st.composite
def _json(draw: Any, tree: Any) -> bytes:
    text = json.dumps(draw(mutated_tree(tree)))
    text = draw(
        st.sampled_from(
            [text] * 6
            + [
                "[" * 100_000,
                '{"a":' * 50_000,
                "null",
                "",
                "[]",
                "1",
                "NaN",
                '{"step": 1e999}',
                '{"step": ' + "9" * 5000 + "}",
            ]
        )
    )
    data = text.encode()
    return draw(mutated_bytes(data)) if draw(st.integers(0, 5)) == 0 else data


@st.composite
def _json_lines(draw: Any, tree: Any) -> bytes:
    rows = [json.dumps(dict(tree, step=n + 1)).encode() for n in range(draw(st.integers(0, 3)))]
    rows += [draw(_json(tree)) for _ in range(draw(st.integers(1, 3)))]
    return b"\n".join(rows) + draw(st.sampled_from([b"\n", b""]))


def make_images(folder: Path) -> None:
    """The images that lists name."""
    import cv2

    for name in ("a.png", "class_0/b.png", "class_1/c d.png", "JPEGImages/a.jpg", "JPEGImages/b.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), np.full((40, 40, 3), 99, np.uint8))


def _list_cases(scratch: Path) -> st.SearchStrategy[Case]:
    make_images(scratch / "images")
    good = (CONFIGS[0].read_text(encoding="utf-8")).encode()
    label = st.one_of(
        st.sampled_from(["0", "1", "cat", "dog", "99999999999", "-1", "²", "9" * 5000, "\x1b[31m", "1.0", "?cat"]),
        words,
    )
    row = st.one_of(
        st.tuples(
            st.one_of(st.sampled_from(["a.png", "class_0/b.png", "../images/a.png", "/etc/passwd", "", "."]), words),
            st.sampled_from([" ", "\t", "  ", ""]),
            label,
        ).map("".join),
        words,
    )
    multi = st.tuples(
        st.sampled_from(["a.png\t", "class_0/b.png ", "class_1/c d.png\t", "x\t", ""]),
        st.lists(label, max_size=4).map(",".join),
    ).map("".join)
    table = st.tuples(
        st.one_of(st.sampled_from(["a", "b"]), words),
        st.sampled_from([" ", "  "]),
        st.sampled_from(["1", "-1", "0", "2", "x", "\u0661"]),
    ).map("".join)

    @st.composite
    def cases(draw: Any) -> Case:
        kind = draw(
            st.sampled_from(
                [
                    "list",
                    "list",
                    "multi",
                    "voc",
                    "xml",
                    "run",
                    "run",
                    "run",
                    "checkpoint",
                    "checkpoint",
                    "coco",
                    "cache",
                ]
            )
        )
        if kind == "list":
            return Case(
                {
                    "list.txt": draw(
                        _lines(
                            row, ["a.png", "class_0/b.png", "a.png 0", "class_0/b.png 1", "# x", "class_1/c d.png cat"]
                        )
                    )
                },
                (kind,),
            )
        if kind == "multi":
            return Case(
                {"list.txt": draw(_lines(multi, ["a.png\tcat,dog", "class_0/b.png cat", "class_1/c d.png\t?dog"]))},
                (kind,),
            )
        if kind == "voc":
            names = draw(st.lists(st.sampled_from(["cat", "dog", "\x1b[31m", "a b"]), max_size=2, unique=True))
            files = {f"ImageSets/Main/{name}_train.txt": draw(_lines(table, ["a 1", "b -1", "a  0"])) for name in names}
            files["ImageSets/Segmentation/train.txt"] = draw(_lines(words, ["a", "b"]))
            return Case({"ImageSets/Main/x.txt": b"", "JPEGImages/a.jpg": b"x", **files}, (kind,))
        if kind == "xml":
            xml = draw(st.sampled_from(_ANNOTATION)).encode()
            xml = draw(mutated_bytes(xml)) if draw(st.booleans()) else xml
            return Case(
                {"ImageSets/Main/train.txt": draw(_lines(words, ["a", "a"])), "Annotations/a.xml": xml}, (kind,)
            )
        if kind == "coco":
            return Case({"coco.json": draw(_json(_COCO))}, (kind,))
        if kind == "cache":
            return Case(
                {
                    "model.pdparams": draw(programs()),
                    "model.pdparams.sha256": draw(_lines(words, ["0" * 64 + "  x"])),
                    "small.converted.json": draw(_json({"source": "0", "version": "1", "result": "2"})),
                },
                (kind,),
            )
        metrics, state = draw(_json_lines(_METRIC)), draw(_json(_STATE))
        if kind == "run":
            files = {
                "metrics.jsonl": metrics,
                "result.json": draw(_json(_RESULT)),
                "environment.json": draw(_json(_ENVIRONMENT)),
                "checkpoints/epoch_0002/state.json": state,
                "checkpoints/epoch_0002/model.pdparams": b"\x80\x04}.",
                "train.log": b"".join(draw(st.lists(_WARNING, max_size=3))),
            }
            if draw(st.integers(0, 2)):
                files["config.yaml"] = draw(st.one_of(st.just(good), _mutated_config(CONFIGS[:3]).map(_first_file)))
            return Case(files, (kind, "draw" if draw(st.integers(0, 15)) == 9 else ""))
        model = pickle.dumps({"a": np.ones(2, "f4")}, 4)
        name = draw(st.sampled_from(_CHECKPOINTS))
        files = {
            "model.pdparams": model,
            "optimizer.pdopt": draw(st.one_of(st.just(model), mutated_pickle(model))),
            "state.json": state,
        }
        files = {f"checkpoints/{name}/{file}": content for file, content in files.items()}
        return Case({**files, "metrics.jsonl": metrics, "config.yaml": good}, (kind, name))

    return cases()


_ENVIRONMENT = {"paddle": "3", "devices": [], "command": ["a"]}
_WARNING = words.map(lambda word: f"warning  {word}\n".encode("utf-8", "surrogatepass"))
_CHECKPOINTS = [
    "epoch_0002",
    "step_00000008",
    "epoch_",
    "epoch_²",
    "epoch_" + "9" * 200,
    "a b",
    "\x1b[31m",
    ".x",
    "é",
    "epoch_1",
    "epoch_0",
]


def _first_file(case: Case) -> bytes:
    return next(iter(case.files.values()))


def _read_list(folder: Path, output: Path, words: tuple[str, ...]) -> None:
    _LIST_READERS[words[0]](folder, output, words[1:])


def _image_list(folder: Path, output: Path, words: tuple[str, ...]) -> None:
    images = folder.parent / "images"
    each(
        lambda: read_images(images, list_file=folder / "list.txt"),
        lambda: read_images(images, list_file=folder / "list.txt", labeled=True),
        lambda: read_images(images, list_file=folder / "list.txt", labeled=True, classes=["cat", "dog"]),
    )


def _multi_list(folder: Path, output: Path, words: tuple[str, ...]) -> None:
    from passl_densecl.evaluation.multilabel import read_list

    for classes in (None, ["cat", "dog"]):
        with only_input_errors():
            check_text(
                read_list(folder / "list.txt", folder.parent / "images", classes).describe(), "the description of a set"
            )


def _voc(folder: Path, output: Path, words: tuple[str, ...]) -> None:
    from passl_densecl.evaluation.masks import read_voc_masks
    from passl_densecl.evaluation.multilabel import read_voc

    each(lambda: read_voc(folder, "train").describe(), lambda: read_voc_masks(folder, "train"))


def _coco(folder: Path, output: Path, words: tuple[str, ...]) -> None:
    from passl_densecl.evaluation.masks import _read_categories
    from passl_densecl.integrations.prepare import _categories

    path = folder / "coco.json"
    each(
        lambda: _read_categories(path, False, ()), lambda: _read_categories(path, True, (1,)), lambda: _categories(path)
    )


def _cache(folder: Path, output: Path, words: tuple[str, ...]) -> None:
    from passl_densecl.weights import zoo
    from passl_densecl.weights.download import DownloadError, UnfitError

    entry = zoo.Entry("small", "model.pdparams", "backbone", 18, "x", "x", ())
    with contextlib.suppress(UnfitError, DownloadError):
        zoo._check(entry, folder / "model.pdparams", folder / "model.pdparams")
    zoo._is_made_from({}, folder / "small.converted.pdparams")  # its stamp is small.converted.json


def _run(folder: Path, output: Path, words: tuple[str, ...]) -> None:
    from passl_densecl.visualize.curves import key_figures, panels_of
    from passl_densecl.visualize.runs import config_and_run, read_result, read_run

    each(lambda: read_result(folder / "result.json"), lambda: config_and_run(folder))
    with only_input_errors():
        run = read_run(folder, need_metrics=False)
        check_text(run.state(), "the state of a run")
        for key in run.keys():  # noqa: SIM118
            run.series(key)
        panels_of([run])
        for what, value in key_figures(run):
            check_text(f"{what} {value}", "a figure of a run")
        if words == ("draw",):
            _report(run, output)


def _report(run: Any, output: Path) -> None:
    from passl_densecl.visualize.report import Sources, build_report
    from passl_densecl.visualize.runs import read_result

    results = []
    with only_input_errors():
        results.append(("<b>x</b>", read_result(run.path / "result.json")))
    page, missing = build_report(run, Sources(None, tuple(results)))
    check_html(page)
    for reason in missing:
        check_text(reason, "why a part is missing")
    (output / "report.html").write_bytes(page.encode("utf-8"))


_TAGS = {
    "html",
    "head",
    "meta",
    "link",
    "title",
    "style",
    "body",
    "header",
    "h1",
    "h2",
    "h3",
    "p",
    "main",
    "section",
    "table",
    "tbody",
    "tr",
    "th",
    "td",
    "div",
    "figure",
    "img",
    "figcaption",
    "details",
    "summary",
    "pre",
}


class _Tags(html.parser.HTMLParser):
    """Raises Wrong at an element or an attribute that a report does not have of itself."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _TAGS:
            raise Wrong(f"a report with an element <{tag}>")
        for name, value in attrs:
            fetches = name in ("src", "href") and not (value or "").startswith("data:")
            if name.startswith("on") or fetches:
                raise Wrong(f"a report with {name}={value!r}"[:200])


def check_html(page: str) -> None:
    """A page without scripts and without anything to fetch."""
    parser = _Tags(convert_charrefs=False)
    parser.feed(page)
    parser.close()


def _checkpoint(folder: Path, output: Path, words: tuple[str, ...]) -> None:
    from passl_densecl.engine.start import find_start
    from passl_densecl.reliability import checkpoint
    from passl_densecl.weights import recorded, weights_file

    path = folder / "checkpoints" / words[0]
    checkpoints = checkpoint.Checkpoints(folder, 2)
    each(
        checkpoints.newest,
        lambda: find_start(folder, checkpoints, "auto"),
        lambda: checkpoint.read(path),
        lambda: weights_file(folder),
        lambda: recorded.recorded_card(path / "model.pdparams"),
        lambda: recorded.recorded_classes(path / "model.pdparams"),
        lambda: _rewound(folder, output),
    )


def _rewound(folder: Path, output: Path) -> None:
    """What a resumed run does to the metrics of the steps that it makes again."""
    from passl_densecl.reliability.log import RunLog

    (output / "metrics.jsonl").write_bytes((folder / "metrics.jsonl").read_bytes())
    log = RunLog(output)
    try:
        log.rewind(2)
    finally:
        log.close()


_LIST_READERS: Mapping[str, Callable[[Path, Path, tuple[str, ...]], None]] = {
    "list": _image_list,
    "multi": _multi_list,
    "voc": _voc,
    "xml": _voc,
    "coco": _coco,
    "cache": _cache,
    "run": _run,
    "checkpoint": _checkpoint,
}

_A_RUN = tuple(
    Case(
        {
            "metrics.jsonl": b"\n".join(json.dumps(dict(_METRIC, step=n)).encode() for n in range(1, steps)),
            "result.json": b'{"a": 1}',
            "config.yaml": CONFIGS[0].read_bytes(),
            "checkpoints/epoch_0002/state.json": json.dumps(_STATE).encode(),
            "checkpoints/epoch_0002/model.pdparams": b"\x80\x04}.",
            "train.log": b"warning  x\n",
        },
        ("run", "draw"),
    )
    for steps in (3, 60)
)

TARGETS = {
    target.name: target
    for target in (
        Target("configs", "YAML files: ours, and those of the engines downstream", _config_cases, _read_config),
        Target("overrides", "-o key=value", _override_cases, _read_overrides),
        Target("weights", "files of weights in every format, their cards and tables", _weight_cases, _read_weights),
        Target("packs", "images packed in LMDB", _pack_cases, _read_pack),
        Target(
            "lists",
            "lists of images and labels, run folders, checkpoints, results, caches",
            _list_cases,
            _read_list,
            _A_RUN,
        ),
    )
}
