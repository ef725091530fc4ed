"""The index of a folder tree: what each folder held when it was last listed, kept in the user's cache folder.

A listing is good for as long as the folder has the same times of change and the same inode. Adding, removing and
renaming entries changes ``mtime``; permissions change ``ctime``, which no program can set back as rsync and tar set
``mtime``. Asking costs one ``stat`` a folder, where listing costs a read of every name. The device number is left out:
it differs between mounts of the same network folder.

One file a tree, ``passl_densecl/index/HASH.npz`` below ``$XDG_CACHE_HOME`` (or ``~/.cache``); it may be deleted at any
time. It is read as plain arrays (no pickle), and zip checksums find damage. Whatever is wrong with it, or with writing
it, only means that the tree is walked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from passl_densecl.data.images import COUNTED_AS

__all__ = ["Listing", "Stamp", "index_file", "join", "load", "save", "split"]

_VERSION = 1


class Stamp(NamedTuple):
    """What changes when a folder does: times in nanoseconds, and the inode (its lower 63 bits)."""

    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_mtime_ns, status.st_ctime_ns, status.st_ino & 0x7FFF_FFFF_FFFF_FFFF)


class Listing(NamedTuple):
    """The entries of one folder, links not followed. Names are joined by NUL, which no name can hold."""

    images: bytes
    folders: bytes
    links: bytes  # what they lead to is not recorded
    others: dict[str, int]  # extension → number of files that are no images
    hidden: int
    special: int  # neither file, folder nor link, but named like an image


def join(names: Iterable[bytes]) -> bytes:
    """Sorted names in one object."""
    return b"\0".join(sorted(names))


def split(names: bytes) -> list[bytes]:
    """What :func:`join` joined."""
    return names.split(b"\0") if names else []


def index_file(top: bytes) -> Path:
    """Where the index of the tree ``top`` is kept. Raises OSError when the user has no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = base if os.path.isabs(base) else os.path.expanduser("~/.cache")
    if not os.path.isabs(folder):
        raise FileNotFoundError("no home folder")
    return Path(folder) / "passl_densecl" / "index" / f"{hashlib.sha256(os.path.abspath(top)).hexdigest()[:32]}.npz"


def load(top: bytes) -> dict[bytes, tuple[Stamp, Listing]]:
    """Relative folder → (stamp, listing) of everything known about the tree; {} without a usable index."""
    try:
        with open(index_file(top), "rb") as file, np.load(file, allow_pickle=False) as arrays:
            if json.loads(arrays["header"].tobytes()) != _header(top):
                return {}
            stamps = arrays["stamps"].tolist()
            counts = arrays["counts"].tolist()
            folders, images, subfolders, links = (
                arrays[name].tobytes() for name in ("folders", "images", "subfolders", "links")
            )
            others = json.loads(arrays["others"].tobytes())
        columns = [names.split(b"/") for names in (images, subfolders, links)]
        rows = zip(folders.split(b"\0"), stamps, *columns, counts, strict=True)
        return {
            relative: (Stamp(*stamp), Listing(files, below, linked, others.get(str(number), {}), hidden, special))
            for number, (relative, stamp, files, below, linked, (hidden, special)) in enumerate(rows)
        }
    except Exception:  # a cache: however it is damaged, the tree itself is there to be read
        return {}


def save(top: bytes, entries: Mapping[bytes, tuple[Stamp, Listing]]) -> None:
    """Write the index, under a temporary name first. Nothing happens where that is not possible."""
    listings = [listing for _, listing in entries.values()]
    arrays = {
        "header": _bytes(json.dumps(_header(top)).encode()),
        "folders": _bytes(b"\0".join(entries)),
        "stamps": np.array([stamp for stamp, _ in entries.values()], np.int64).reshape(-1, 3),
        # A slash cannot be in a name either: it separates the folders.
        "images": _bytes(b"/".join(listing.images for listing in listings)),
        "subfolders": _bytes(b"/".join(listing.folders for listing in listings)),
        "links": _bytes(b"/".join(listing.links for listing in listings)),
        "others": _bytes(
            json.dumps({n: listing.others for n, listing in enumerate(listings) if listing.others}).encode()
        ),
        "counts": np.array([(listing.hidden, listing.special) for listing in listings], np.int64).reshape(-1, 2),
    }
    temporary = None
    try:
        path = index_file(top)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        with open(handle, "wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    except OSError:  # a read-only or full disk
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _header(top: bytes) -> dict[str, object]:
    """What an index must have been made for: this tree, and the same idea of which files are images."""
    return {"version": _VERSION, "root": os.fsdecode(os.path.abspath(top)), "extensions": sorted(COUNTED_AS)}


def _bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)
