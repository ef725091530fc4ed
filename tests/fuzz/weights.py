"""Hostile files of weights: every format, identity cards, tables of names."""

from __future__ import annotations

import contextlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from passl_densecl.errors import InputError
from tests.fuzz.cases import ROOT, Case, check_text, try_each
from tests.fuzz.mutate import mutated_bytes, mutated_tree, values, weighted, words
from tests.fuzz.pickles import mutated_pickle, mutated_zip, programs


def make_weights(folder: Path) -> dict[str, bytes]:
    """Small files of every format that the project writes or reads."""
    from passl_densecl.weights.card import Card
    from passl_densecl.weights.writing import write_weights

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
    recorded = {"epoch": 1, "step": 2, "classes": ("a", "b"), "config": {"task": "pretrain", "model": {}}}
    card = Card(kind="backbone", depth=18, stem_stride=4, last_stride=2, **recorded)
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
    """Tables of weights, most names valid and a few not, behind wrappers and prefixes."""
    from passl_densecl.weights.names import LAYOUTS
    from passl_densecl.weights.tables import WRAPPERS
    from passl_densecl.weights.vocabulary import VOCABULARIES, backbone_shapes, translations

    vocabulary = draw(st.sampled_from(sorted(VOCABULARIES)))
    names = list(backbone_shapes(18)) if vocabulary == "paddle" else list(translations(vocabulary, 18))
    prefixes = ["", "backbone.", "module.", "encoder_q.", "encoder_q.0.", "encoder_k.0.", "a.b."]
    prefixes += [prefix for layout in LAYOUTS.values() for prefix in layout.backbones]
    table: dict[Any, Any] = {}
    shape = draw(st.sampled_from([(), (1,), (2, 3), (0,), (64, 3, 7, 7), (1, 1, 1, 1)]))
    for prefix in draw(st.lists(st.sampled_from(prefixes), min_size=1, max_size=2)):
        kept = names if draw(st.booleans()) else draw(st.lists(st.sampled_from(names), max_size=6))
        table |= {prefix + name: np.ones(shape, "f4") for name in kept}
    others = ["fc.weight", "fc.bias", "head.fc.weight", "queue", "queue_ptr", "queue2", "encoder_q.1.mlp.0.weight"]
    others.append("global_queue.keys")
    for name in draw(st.lists(st.one_of(st.sampled_from(others), words, st.sampled_from(names)), max_size=4)):
        kind = draw(st.sampled_from(["f4", "f2", "i8", "b1", "c8", "S3", "U3", "f8", ">f4", "u2"]))
        value = np.ones(draw(st.sampled_from([(), (1,), (2, 2), (3, 0), (1,) * 20])), kind)
        table[name] = draw(st.one_of(st.just(value), values))
    if draw(st.integers(0, 3)) == 0:
        table[draw(st.sampled_from([1, None, (1, 2), b"x", 1.5, True]))] = np.ones(2, "f4")
    if draw(st.booleans()):
        return {draw(st.sampled_from((*WRAPPERS, "student"))): table, draw(words): draw(values)}
    return table


@st.composite
def _safetensors(draw: Any) -> bytes:
    header = {
        "a": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
        "b": {"dtype": "BF16", "shape": [], "data_offsets": [8, 10]},
        "__metadata__": {"passl_densecl": "passl_densecl card {}"},
    }
    text = json.dumps(draw(mutated_tree(header))).encode()
    if draw(st.integers(0, 4)) == 0:
        text = draw(mutated_bytes(text))
    length = draw(st.sampled_from([*[len(text)] * 4, 0, 1, 2**60, 2**64 - 1, 10**8, len(text) + 1]))
    return length.to_bytes(8, "little") + text + bytes(draw(st.sampled_from([10, 10, 10, 0, 9, 1000])))


_UNREADABLE = ("no_checksums.pth",)  # zipfile rejects it
_CARD = {
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


@st.composite
def _carded(draw: Any, folder: Path) -> tuple[str, bytes]:
    """A file with an invalid identity card."""
    from passl_densecl.weights.writing import write_weights

    card = json.loads(json.dumps(draw(mutated_tree(_CARD))))
    suffix = draw(st.sampled_from([".pdparams", ".pth", ".safetensors"]))
    path = folder / f"carded{suffix}"
    try:
        write_weights(path, {"conv1.weight": np.ones(2, "f4")}, card=card)
    except (ValueError, TypeError):  # JSON cannot hold this card: written as text instead
        from passl_densecl.weights import card as cards

        text = (cards.MAGIC + json.dumps(card)).encode()[: cards.MAX_BYTES]
        return ".pdparams", b"\x80\x04\x8d" + len(text).to_bytes(8, "little") + text + b"0}."
    return suffix, path.read_bytes()


def _legacy(seed: bytes) -> st.SearchStrategy[bytes]:
    """A torch file from before zip files, changed after its first pickle."""
    end = seed.index(b".") + 1
    rest = seed[end:]
    return st.one_of(mutated_bytes(rest), programs().map(lambda program: program + rest)).map(seed[:end].__add__)


def _written(folder: Path, table: Any, how: str) -> bytes:
    from passl_densecl.weights.writing import write_weights

    if how == ".pth":
        with contextlib.suppress(InputError, TypeError, ValueError, OverflowError, RecursionError):
            write_weights(folder / "table.pth", table)
            return (folder / "table.pth").read_bytes()
    return pickle.dumps(table, 4 if how == ".pth" else int(how))


def weight_cases(scratch: Path) -> st.SearchStrategy[Case]:
    folder = scratch / "seeds"
    seeds = make_weights(folder)
    everything = list(seeds.values())
    zips = [data for name, data in seeds.items() if data[:2] == b"PK" and name not in _UNREADABLE]
    legacy = [data for name, data in seeds.items() if "legacy" in name]
    pickles = [data for data in everything if data[:1] == b"\x80" and data not in legacy]
    data = weighted(
        (2, st.sampled_from(everything).flatmap(lambda seed: mutated_bytes(seed, everything))),
        (1, st.sampled_from(pickles).flatmap(mutated_pickle)),
        (1, programs()),
        (2, st.sampled_from(zips).flatmap(mutated_zip)),
        (1, st.sampled_from(legacy).flatmap(_legacy)),
        (1, _safetensors()),
        (1, st.builds(_written, st.just(folder), _tables(), st.sampled_from([".pth", "2", "4", "5"]))),
    )
    suffixes = st.sampled_from([".pdparams", ".pth", ".safetensors", ".pkl", ""])
    files = weighted((9, st.tuples(suffixes, data)), (1, _carded(folder)))
    arguments = st.tuples(st.sampled_from(["query", "key"]), st.one_of(st.just(""), words))
    return st.builds(lambda file, given: Case({f"w{file[0]}": file[1]}, given), files, arguments)


def read_weights(folder: Path, output: Path, arguments: tuple[str, ...]) -> None:
    from passl_densecl.weights import files, recorded
    from passl_densecl.weights.convert import convert
    from passl_densecl.weights.info import describe_file, render
    from passl_densecl.weights.read import read_backbone, read_classifier, read_model, read_training_state

    (path,) = folder.iterdir()
    encoder, prefix = arguments

    def converted() -> str:
        return "\n".join(convert(path, output / "x.pdparams", "paddle").lines())

    try_each(
        lambda: check_text(render(describe_file(path)), "the description of a file"),
        lambda: files.read_card(path),
        lambda: files.read_arrays(path),
        lambda: recorded.recorded_backbone(path),
        lambda: recorded.recorded_config(path),
        lambda: recorded.recorded_classes(path, 2),
        lambda: read_backbone(path, encoder=encoder, prefix=prefix or None),
        lambda: read_model(path),
        lambda: read_training_state(path),
        lambda: read_classifier(path),
        lambda: check_text(converted(), "the report of a conversion"),
        lambda: convert(path, output / "x.pkl", "detectron2"),
        lambda: convert(path, output / "y.pdparams", "state"),
    )
