"""Checks that an LMDB file is sound, before LMDB maps it.

LMDB trusts its files: a page number beyond the end, in a damaged or malicious file, ends the process that reads it with
SIGBUS or SIGSEGV. So the two meta pages and every page of the tree are checked first, by the rules of LMDB's data
format 1 (mdb.c of 0.9, "Page headers" and after). A pack of a million images has a few thousand such pages; the images
themselves are in other pages, which are not read.
"""

from __future__ import annotations

import mmap
import os
import struct

import numpy as np

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _META = 0x01, 0x02, 0x08
_KINDS = 0x6F  # branch, leaf, overflow, meta, and two that only trees of another kind have
_BIG = 0x01  # a value that lies in pages of its own
_HEADER = 16  # bytes, of a page
_META_BYTES, _LARGEST_PAGE = 152, 512 << 7  # bytes of a meta page that count; bytes of a page at most
_DEPTH = 16  # far beyond any real tree


class _Damaged(Exception):
    """The message says what is wrong."""


def check_lmdb(file: str) -> str | None:
    """What is wrong with the file; None when LMDB can read all of its main table. Raises OSError."""
    with open(file, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size < 2 * 512:
            return f"no LMDB file ({size:,} bytes)"
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                page_size, root, pages = _meta(content)
                if pages * page_size > size:
                    raise _Damaged(f"cut short: {size:,} bytes, expected {pages * page_size:,}")
                _check_tree(content, page_size, root, pages)
            except _Damaged as damage:
                return str(damage)
    return None


def bytes_needed(file: str) -> int | None:
    """How long the file must be, by the newer of its two meta pages; None when it has none. Raises OSError."""
    with open(file, "rb") as stream:
        try:
            page_size, _, pages = _meta(stream.read(_LARGEST_PAGE + _META_BYTES))
        except _Damaged:
            return None
    return pages * page_size


def _meta(content: mmap.mmap | bytes) -> tuple[int, int | None, int]:
    """(bytes of a page, page of the tree's root, number of pages), by the newer of the two meta pages."""
    (page_size,) = struct.unpack_from("=I", content, 40) if len(content) >= _META_BYTES else (0,)
    if page_size not in (512 << n for n in range(8)) or len(content) < page_size + _META_BYTES:
        raise _Damaged(f"no LMDB file, or one with pages of {page_size:,} bytes")
    found = []
    for start in (0, page_size):
        (flags,) = struct.unpack_from("=H", content, start + 10)
        magic, version = struct.unpack_from("=II", content, start + 16)
        (own_size,) = struct.unpack_from("=I", content, start + 40)
        if magic != _MAGIC or version != _VERSION or not flags & _META or own_size != page_size:
            raise _Damaged("no LMDB file, or its first pages are damaged")
        tree_flags, _depth = struct.unpack_from("=HH", content, start + 92)
        root, last, transaction = struct.unpack_from("=QQQ", content, start + 128)
        found.append((transaction, -start, tree_flags, root, last))
    _, _, tree_flags, root, last = max(found)
    if tree_flags:
        raise _Damaged("its table is of another kind")
    return page_size, None if root == 2**64 - 1 else root, last + 1


def _check_tree(content: mmap.mmap, page_size: int, root: int | None, pages: int) -> None:
    seen = set[int]()
    waiting = [] if root is None else [(root, 1)]
    while waiting:
        number, depth = waiting.pop()
        if not 2 <= number < pages or number in seen or depth > _DEPTH:
            raise _Damaged(f"damaged: its tree refers to page {number:,} of {pages:,} where it must not")
        seen.add(number)
        page = np.frombuffer(content[number * page_size : (number + 1) * page_size], np.uint8)
        waiting += [(child, depth + 1) for child in _children(page, number, pages)]


def _children(page: np.ndarray, number: int, pages: int) -> list[int]:
    """The pages that a branch refers to, none for a leaf. Raises _Damaged where a key or value is outside."""
    damaged = _Damaged(f"damaged: page {number:,} of its tree")
    own_number, _, flags, lower, upper = struct.unpack("=QHHHH", page[:_HEADER].tobytes())
    count, kind = (lower - _HEADER) // 2, flags & _KINDS
    if own_number != number or kind not in (_BRANCH, _LEAF) or not _HEADER <= lower <= upper <= len(page):
        raise damaged
    if count < (2 if kind == _BRANCH else 1):
        raise damaged
    places = page[_HEADER : _HEADER + 2 * count].view(np.uint16).astype(np.int64)
    if places.min() < upper or places.max() + 8 > len(page) or (places % 2).any():
        raise damaged
    low, high, node_flags, key_size = (page.view(np.uint16)[places // 2 + n].astype(np.int64) for n in range(4))
    ends = places + 8 + key_size
    if kind == _BRANCH:
        if ends.max() > len(page):
            raise damaged
        return (low | high << 16 | node_flags << 32).tolist()
    sizes, is_big = low | high << 16, node_flags == _BIG
    if (node_flags & ~_BIG).any() or (ends + np.where(is_big, 8, sizes)).max() > len(page):
        raise damaged
    if is_big.any():
        first = page[ends[is_big][:, None] + np.arange(8)].copy().view(np.uint64)[:, 0]
        taken = -(-(_HEADER + sizes[is_big]) // len(page))
        if (first < 2).any() or (first >= pages).any() or (first.astype(np.int64) + taken).max() > pages:
            raise damaged
    return []
