"""Hostile values, trees, bytes and JSON, as hypothesis strategies."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

WORDS = [
    "", " ", "a", "..", ".", "../../x", "../x", "/etc/passwd", "a/b", "a\\b", "~", "~root", "$HOME", "-o", "--help",
    "x" * 5000, "\x00", "a\x00b", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\r\n", "a\nb", "\t", "\u202eabc",
    "\u2028", "\ufeff", "\x85", "²", "٣", "１", "é", "中文", "𝔘", "\ud800", "a\udcffb", "nan", "inf", "NaN", "null",
    "None", "true", "yes", "1e-4", "0x10", "1_000", "9" * 400, "9" * 5000, "{0.__class__}", "%s%n",
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "!!python/object/apply:os.system", "__class__",
    "__proto__", "con", "epoch_0001", "step_00000001", "checkpoints", "auto", "pretrain", "linear", "[" * 200,
    "{" * 200, "{a: " * 100, "!!binary x", "!!set {a}", "*a", "&a 1", "a: b: c", "- -", "1:30",
]  # fmt: skip
NUMBERS: list[Any] = [0, 1, -1, 2, 7, 255, 256, True, False, None, 10**30, 10**400, -(10**400)]
NUMBERS += [2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64]
NUMBERS += [0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, math.nan, math.inf, -math.inf]


def deep(levels: int, inner: Any = 1, *, tables: bool = False) -> Any:
    """A value nested in `levels` containers."""
    for _ in range(levels):
        inner = {"a": inner} if tables else [inner]
    return inner


@st.composite
def weighted(draw: Any, *choices: tuple[int, st.SearchStrategy]) -> Any:
    """A value of one of the strategies, which are chosen in proportion to their weights."""
    strategies = [strategy for weight, strategy in choices for _ in range(weight)]
    return draw(strategies[draw(st.integers(0, len(strategies) - 1))])


words = st.one_of(st.sampled_from(WORDS), st.text(max_size=12))
scalars = st.one_of(st.sampled_from(NUMBERS), words)


def _containers(inner: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=3))


nested = st.recursive(scalars, _containers, max_leaves=6)
values = st.one_of(scalars, nested, st.builds(deep, st.sampled_from([5, 70, 200]), tables=st.booleans()))


def places(tree: Any, above: tuple = ()) -> list[tuple]:
    """Every path of keys and positions into nested containers."""
    found = []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        found += [(*above, key), *places(value, (*above, key))]
    return found


@st.composite
def mutated_tree(draw: Any, tree: Any, most: int = 3) -> Any:
    """A copy of nested containers with a few entries replaced, removed, renamed, doubled, added, wrapped or moved."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, most))):
        known = places(tree)
        if not known:
            break
        *parents, last = draw(st.sampled_from(known))
        node = tree
        for part in parents:
            node = node[part]
        what = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "add", "wrap", "move"]))
        if what == "replace":
            node[last] = draw(values)
        elif what == "remove":
            del node[last]
        elif what == "wrap":
            node[last] = deep(draw(st.sampled_from([1, 2, 50])), node[last], tables=draw(st.booleans()))
        elif what == "move":
            other = draw(st.sampled_from(known))
            source = tree
            for part in other:
                source = source[part] if isinstance(source, (dict, list)) and _has(source, part) else None
            node[last] = json.loads(json.dumps(source))
        elif isinstance(node, dict):
            node[draw(words)] = node.pop(last) if what == "rename" else draw(values)
        else:
            node.insert(last, draw(values))
    return tree


def _has(node: Any, part: Any) -> bool:
    return part in node if isinstance(node, dict) else isinstance(part, int) and part < len(node)


INTEGERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, *(2**n for n in (31, 40, 60, 63))]
INTEGERS += [2**n - 1 for n in (31, 32, 63, 64)]


_CHANGES = ["flip", "flip", "set", "integer", "integer", "cut", "remove", "repeat", "insert", "splice"]


@st.composite
def mutated_bytes(draw: Any, data: bytes, others: Sequence[bytes] = (), most: int = 4) -> bytes:
    """Bytes with a few of them flipped, cut off, taken out, repeated, replaced by huge numbers or spliced in."""
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        what = draw(st.sampled_from(_CHANGES))
        if what == "flip" and data:
            data = data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
        elif what == "set" and data:
            data = data[:at] + draw(st.binary(min_size=1, max_size=1)) + data[at + 1 :]
        elif what == "integer":
            size, sign = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from(["little", "little", "big"]))
            number = draw(st.sampled_from(INTEGERS)) & (2 ** (8 * size) - 1)
            data = data[:at] + number.to_bytes(size, sign) + data[at + size :]
        elif what == "cut":
            data = data[:at]
        elif what in ("remove", "repeat"):
            length = draw(st.integers(1, 64))
            part = data[at : at + length]
            data = data[:at] + (part * 2 if what == "repeat" else b"") + data[at + length :]
        elif what == "insert":
            data = data[:at] + draw(st.binary(max_size=16)) + data[at:]
        elif others:
            other = draw(st.sampled_from(list(others)))
            data = data[:at] + other[draw(st.integers(0, max(0, len(other) - 1))) :]
    return data


_JSON = ["[" * 100_000, '{"a":' * 50_000, "null", "", "[]", "1", "NaN", '{"step": 1e999}']
_JSON.append('{"step": %s}' % ("9" * 5000))


@st.composite
def json_file(draw: Any, tree: Any) -> bytes:
    """A JSON file with a changed tree, or hostile JSON."""
    text = json.dumps(draw(mutated_tree(tree)))
    data = draw(weighted((6, st.just(text)), (9, st.sampled_from(_JSON)))).encode()
    return draw(mutated_bytes(data)) if draw(st.integers(0, 5)) == 0 else data


@st.composite
def json_lines(draw: Any, tree: Any) -> bytes:
    """Lines of JSON: up to three valid ones with increasing steps, then one to three hostile ones."""
    rows = [json.dumps({**tree, "step": step + 1}).encode() for step in range(draw(st.integers(0, 3)))]
    rows += [draw(json_file(tree)) for _ in range(draw(st.integers(1, 3)))]
    return b"\n".join(rows) + draw(st.sampled_from([b"\n", b""]))
