"""Hostile pickles, and the zip files around them that torch writes, as hypothesis strategies."""

from __future__ import annotations

import io
import pickletools
import struct
import warnings
import zipfile
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.mutate import INTEGERS, mutated_bytes

_HUGE = struct.pack("<Q", 2**60)
FRAGMENTS = [
    b"cos\nsystem\n", b"cposix\nsystem\n", b"cbuiltins\neval\n", b"cbuiltins\nexec\n", b"csubprocess\nPopen\n",
    b"cnt\nsystem\n", b"cfuzz_canary\nrun\n", b"\x8c\x02os\x8c\x06system\x93", b"\x8c\x08builtins\x8c\x04eval\x93",
    b"(S'x'\nios\nsystem\n", b"cos\nsystem\n(S'touch pwned'\ntR", b"cos\nsystem\nS'touch pwned'\n\x85R",
    b"(cos\nsystem\nS'touch pwned'\no", b"cbuiltins\ngetattr\ncfuzz_canary\nrun\nS'__globals__'\n\x86R",
    b"cbuiltins\ngetattr\n", b"cbuiltins\n__import__\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\nS'f4'\n\x85R",
    b"cnumpy\ndtype\nS'O'\n\x85R", b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\n_reconstruct\n",
    b"cnumpy._core.multiarray\nscalar\n", b"cnumpy.core.numeric\n_frombuffer\n",
    b"cnumpy\nndarray\nK\x02\x85S'f4'\nC\x08abcdefgh\x87R",
    b"cnumpy\nndarray\n\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x0f\x85S'f4'\nC\x00\x87R", b"cnumpy\nsave\n",
    b"cnumpy.f2py.crackfortran\nmyeval\n", b"c_codecs\nencode\n", b"c_codecs\nencode\nV\\xff\nS'zlib'\n\x86R",
    b"ccollections\nOrderedDict\n)R", b"cbuiltins\ndict\n)R", b"cbuiltins\nbytes\n",
    b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R", b"cbuiltins\nlist\n", b"cbuiltins\ntuple\n", b"cbuiltins\nset\n",
    b"cbuiltins\ncomplex\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._tensor\n_rebuild_from_type_v2\n",
    b"ctorch\nFloatStorage\n", b"ctorch.nn\nModule\n", b"cmmengine.logging\nHistoryBuffer\n",
    b"cargparse\nNamespace\n)R}b", b"cpathlib\nPosixPath\n", b"cyacs.config\nCfgNode\n",
    b"comegaconf\nDictConfig\n)\x81ctyping\nAny\na", b"ctyping\nAny\n", b"clightning\nX\n)\x81cos\nsystem\na",
    b"cmmengine\nX\n)\x81",
    b"ctorch\nSize\n", b"ctorch\ndevice\n", b"ctorch\nfloat32\n", b"(", b")", b"}", b"]", b"N", b"\x88", b"K\x01",
    b"K\x02\x85", b"J\xff\xff\xff\x7f", b"M\xff\xff", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x8b\xff\xff\xff\x7f", b"\x8b\x04\x00\x00\x00\x01\x00\x00\x00", b"G?\xf0\x00\x00\x00\x00\x00\x00", b"F1e999\n",
    b"Fnan\n", b"I99\n", b"L" + b"9" * 5000 + b"L\n", b"S'abc'\n", b"V\\ud800\n", b"X\x05\x00\x00\x00hello",
    b"C\x04abcd", b"X\xff\xff\xff\x7f", b"B\xff\xff\xff\x7f", b"T\xff\xff\xff\x7f", b"\x8d" + _HUGE, b"\x8e" + _HUGE,
    b"\x96" + _HUGE, b"\x95" + _HUGE, b"\x96\x04\x00\x00\x00\x00\x00\x00\x00abcd", b"\x97", b"\x98", b"q\x00",
    b"h\x00", b"h\x01", b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\x7f", b"g0\n", b"p0\n", b"p-1\n",
    b"p99999999999999999999\n", b"\x94", b"2", b"0", b"1", b"R", b"b", b"o", b"\x81", b"\x92", b"a", b"e", b"s", b"u",
    b"t", b"l", b"d", b"\x85", b"\x86", b"\x87", b"\x8f", b"\x90", b"\x91", b"P1\n", b"Q", b"\x82\x01",
    b"\x83\x01\x00", b"\x84\xff\xff\xff\x7f", b"\x80\x02", b"\x80\xff", b".", b"}q\x00h\x00h\x00s", b"]q\x01h\x01a",
    b"(]q\x02h\x02tR", b"]" + b"2\x86" * 40, b"(" * 50, b"]" * 200 + b"a" * 199,
]  # fmt: skip


@st.composite
def programs(draw: Any) -> bytes:
    """A pickle of arbitrary instructions, most of them hostile."""
    body = b"".join(draw(st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=12)))
    starts = [b"\x80\x02", b"\x80\x04", b"\x80\x05", b"\x80\x02}", b"\x80\x04}S'a'\n", b"(d", b"}q\x00"]
    return draw(st.sampled_from(starts)) + body + draw(st.sampled_from([b".", b"s.", b"u.", b"t.", b""]))


@st.composite
def mutated_pickle(draw: Any, data: bytes) -> bytes:
    """A pickle with a few instructions removed, doubled or swapped, or with hostile ones inserted."""
    parts = _instructions(data)
    if not parts:
        return draw(mutated_bytes(data))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(parts) - 1))
        what = draw(st.sampled_from(["remove", "double", "exchange", "insert", "insert", "replace"]))
        if what == "remove" and len(parts) > 1:
            del parts[at]
        elif what == "double":
            parts.insert(at, parts[at])
        elif what == "exchange":
            other = draw(st.integers(0, len(parts) - 1))
            parts[at], parts[other] = parts[other], parts[at]
        elif what == "insert":
            parts.insert(at, draw(st.sampled_from(FRAGMENTS)))
        else:
            parts[at] = draw(st.sampled_from(FRAGMENTS))
    return b"".join(parts)


def _instructions(data: bytes) -> list[bytes]:
    try:
        positions = [position for _, _, position in pickletools.genops(data)]
    except Exception:  # not every seed is one complete pickle
        return []
    return [data[a:b] for a, b in zip(positions, [*positions[1:], len(data)], strict=True)]


_NAMES = ["../../x", "/etc/x", "{}/../../x", "..\\x", "C:\\x", "{}//data.pkl", "data.pkl", "{}/data.pkl/", ""]
_NAMES += ["{}/\x1b[31m", "a" * 60000, "{}/constants.pkl", "\u202e"]


@st.composite
def mutated_zip(draw: Any, data: bytes) -> bytes:
    """A torch zip file rebuilt with hostile names; doubled, compressed or false records; or another pickle inside."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    top = records[0][0].split("/")[0]
    what = draw(st.sampled_from(["program", "program", "name", "double", "bomb", "sizes", "record", "order"]))
    compression = zipfile.ZIP_STORED
    at = draw(st.integers(0, len(records) - 1))
    name, content = records[at]
    if what == "program":
        at = next(n for n, (name, _) in enumerate(records) if name.endswith("data.pkl"))
        program = draw(st.one_of(programs(), mutated_pickle(records[at][1])))
        records[at] = (records[at][0], program)
    elif what == "name":
        records[at] = (draw(st.sampled_from(_NAMES)).format(top), content)
    elif what == "double":
        records.append((name, draw(st.sampled_from([content, b"", b"\x80\x02N."]))))
    elif what == "bomb":
        compression = draw(st.sampled_from([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]))
        records[at] = (name, bytes(10**6))
    elif what == "record":
        records[at] = (name, draw(mutated_bytes(content)))
    elif what == "order":
        records = [r for r in records if not r[0].endswith("byteorder")]
        records.append((f"{top}/byteorder", draw(st.sampled_from([b"big", b"", b"middle", bytes(1000)]))))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for record, content in records:
            _write_record(archive, record, content)
    result = out.getvalue()
    if what == "sizes":
        result = draw(_false_sizes(result))
    return result


def _write_record(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of doubled names, which are meant
        entry = zipfile.ZipInfo(name or "x")
        entry.filename, entry.compress_type = name, archive.compression
        archive.writestr(entry, content)


@st.composite
def _false_sizes(draw: Any, data: bytes) -> bytes:
    """Changes numbers in the table of contents: sizes, offsets, counts."""
    found, at = [], 0
    for sign, fields in (
        (b"PK\x01\x02", [(8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4)]),
        (b"PK\x03\x04", [(6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)]),
        (b"PK\x05\x06", [(4, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)]),
    ):
        at = -1
        while (at := data.find(sign, at + 1)) >= 0:
            found += [(at + offset, size) for offset, size in fields]
    for _ in range(draw(st.integers(1, 3))):
        place, size = draw(st.sampled_from(found))
        number = draw(st.one_of(st.sampled_from(INTEGERS), st.integers(0, 4096))) & (2 ** (8 * size) - 1)
        data = data[:place] + number.to_bytes(size, "little") + data[place + size :]
    return data
