"""Every image file below a folder. What a large tree holds is remembered between runs, see :mod:`.index`."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass, field

from passl_densecl.data import index
from passl_densecl.data.images import COUNTED_AS, extension
from passl_densecl.data.index import Listing, Stamp
from passl_densecl.errors import InputError
from passl_densecl.text import listed, plural, printable

__all__ = ["SPLIT_NAMES", "Scan", "walk"]

SPLIT_NAMES = frozenset(["train", "training", "val", "valid", "validation", "test", "testing", "unlabeled"])

# A tree is worth an index when it has more files than this, or took longer than this to walk.
_MANY_FILES = 10_000
_LONG_SECONDS = 1.0
# A folder that changed less than this before it was listed may change again without a new time (FAT counts in 2 s).
_SETTLED_NS = 2 * 10**9


@dataclass
class Scan:
    """What a walk through a folder met."""

    paths: list[bytes] = field(default_factory=list)  # relative to the root, sorted
    folders: list[bytes] = field(default_factory=list)  # directly in the root, sorted
    others: Counter[str] = field(default_factory=Counter)  # extension → number of files that are no images
    hidden: int = 0
    broken_links: int = 0
    from_cache: str = ""  # a note when the index was used

    def notes(self) -> list[str]:
        """What the log should add to the number of images."""
        notes = []
        if self.broken_links:
            notes.append(f"{self.broken_links:,} {plural(self.broken_links, 'link')} to missing files left out")
        splits = [name for name in map(os.fsdecode, self.folders) if name.lower() in SPLIT_NAMES]
        if len(splits) > 1:
            notes.append(f"the folders {listed(splits)} count together: name one of them to leave the others out")
        if self.from_cache:
            notes.append(self.from_cache)
        return notes


def walk(root: str) -> Scan:
    """Every image below ``root``, in an order that depends on names only.

    Links to folders are followed, except back to a folder that they lie in; names that begin with a dot are left out.
    A folder that has the times and the inode that the index knows is not listed again. Links are looked at every time,
    because what they lead to can change without the folder that they lie in.

    Raises:
        InputError: a folder cannot be read.
    """
    began = time.perf_counter()
    scan = Scan()
    top = os.fsencode(root)
    known = index.load(top)
    current: dict[bytes, tuple[Stamp, Listing]] = {}
    visited = learned = reused = 0
    # A folder, and the folders on the way down to it by (device, inode): a link back to one of them would never end.
    pending: list[tuple[bytes, frozenset[tuple[int, int]]]] = [(b"", frozenset())]
    while pending:
        relative, ancestors = pending.pop()
        folder = os.path.join(top, relative) if relative else top
        prefix = relative + b"/" if relative else b""
        try:
            status = os.stat(folder)
            identity = (status.st_dev, status.st_ino)
            if identity in ancestors:
                continue
            stamp = Stamp.of(status)
            # The time is taken before the listing: what changes from here on changes the stamp.
            settled = time.time_ns() - max(stamp.mtime_ns, stamp.ctime_ns) > _SETTLED_NS
            entry = known.get(relative)
            if entry is not None and entry[0] == stamp:
                listing = entry[1]
                reused += 1
            else:
                listing = _list(folder)
                learned += settled
        except OSError as error:
            raise InputError(
                f"cannot read the folder {printable(os.fsdecode(folder))}: {error.strerror or error}; "
                "change its permissions, or move it elsewhere"
            ) from error
        visited += 1
        if settled:
            current[relative] = stamp, listing
        if relative and b"/" not in relative:
            scan.folders.append(relative)
        below = ancestors | {identity}
        scan.paths += [prefix + name for name in index.split(listing.images)]
        scan.others.update(listing.others)
        scan.hidden += listing.hidden
        scan.broken_links += listing.special
        pending += [(prefix + name, below) for name in index.split(listing.folders)]
        for name in index.split(listing.links):
            if os.path.isdir(os.path.join(folder, name)):
                pending.append((prefix + name, below))
            elif extension(name) not in COUNTED_AS:
                scan.others[extension(name)] += 1
            elif os.path.isfile(os.path.join(folder, name)):
                scan.paths.append(prefix + name)
            else:
                scan.broken_links += 1
    scan.paths.sort()
    scan.folders.sort()
    if reused:
        changed = visited - reused
        scan.from_cache = f"known from the index of {reused:,} {plural(reused, 'folder')}" + (
            f", {changed:,} read anew" if changed else ""
        )
    files = len(scan.paths) + scan.others.total()
    if learned and (files > _MANY_FILES or time.perf_counter() - began > _LONG_SECONDS):
        index.save(top, current)
    return scan


def _list(folder: bytes) -> Listing:
    """One folder, links not followed."""
    images, folders, links = [], [], []
    others: Counter[str] = Counter()
    hidden = special = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(b"."):
                hidden += 1
            elif entry.is_symlink():
                links.append(name)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(name)
            elif (kind := extension(name)) not in COUNTED_AS:
                others[kind] += 1
            elif entry.is_file(follow_symlinks=False):
                images.append(name)
            else:
                special += 1  # a socket named photo.jpg
    return Listing(index.join(images), index.join(folders), index.join(links), dict(others), hidden, special)
