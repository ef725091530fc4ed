"""What lies below a folder: images, and what does not count as one."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

from passl_densecl.data.images import COUNTED_AS, counted, extension
from passl_densecl.errors import InputError
from passl_densecl.text import listed, printable, quantity

SPLIT_NAMES = frozenset(["train", "training", "val", "valid", "validation", "test", "testing", "unlabeled"])
_SYSTEM_FOLDERS = frozenset([b"@eaDir", b"#recycle", b"#snapshot", b"@Recycle", b"@Recently-Snapshot", b"@__thumb"])
_SYSTEM_FOLDERS |= frozenset([b"$RECYCLE.BIN", b"System Volume Information", b"__MACOSX", b"lost+found"])
_EXAMPLES = 20  # endings of which one file is looked into


@dataclass
class Scan:
    """What lies below a folder."""

    paths: list[bytes] = field(default_factory=list)  # of images, relative to the folder, sorted
    folders: list[bytes] = field(default_factory=list)  # directly in the folder, sorted
    others: Counter[str] = field(default_factory=Counter)  # extension → number of files that are not images
    examples: dict[str, bytes] = field(default_factory=dict)  # extension → the path of one of them
    hidden: int = 0
    system: Counter[bytes] = field(default_factory=Counter)  # name → number of folders that are the system's own
    broken_links: int = 0  # and sockets and the like, named like images

    def notes(self) -> list[str]:
        """What the log should add to the number of images."""
        notes = []
        if self.broken_links:
            notes.append(f"{quantity(self.broken_links, 'link')} to missing files left out")
        left_out = [counted(self.others)] if self.others else []
        left_out += [quantity(self.hidden, "hidden name")] if self.hidden else []
        left_out += [f"{quantity(n, 'folder')} {os.fsdecode(name)}" for name, n in sorted(self.system.items())]
        if left_out:
            notes.append(f"left out: {', '.join(left_out)}")
        images = [kind for kind, path in sorted(self.examples.items())[:_EXAMPLES] if _is_image(path)]
        if images:
            kinds = listed([f".{kind}" if kind else "no ending" for kind in images], quoted=False)
            notes.append(f"files with {kinds} look like images: extensions: any takes them")
        splits = [name for name in map(os.fsdecode, self.folders) if name.lower() in SPLIT_NAMES]
        if len(splits) > 1:
            notes.append(f"the folders {listed(splits)} count together: name one of them to leave the others out")
        return notes


def _is_image(path: bytes) -> bool:
    from passl_densecl.data.signatures import is_image  # most names tell

    return is_image(path)


def walk(root: str, extensions: str) -> Scan:
    """Every image below ``root``, in an order that depends on names only. Raises InputError."""
    scan = Scan()
    top = os.fsencode(root)
    # A folder, and the folders on the way down to it by (device, inode): a link back to one of them would never end.
    pending: list[tuple[bytes, frozenset[tuple[int, int]]]] = [(b"", frozenset())]
    while pending:
        relative, above = pending.pop()
        folder = os.path.join(top, relative) if relative else top
        try:
            status = os.stat(folder)
            here = above | {(status.st_dev, status.st_ino)}
            if here == above:
                continue
            with os.scandir(folder) as found:
                entries = list(found)
        except OSError as error:
            raise InputError(
                f"cannot read the folder {printable(os.fsdecode(folder))}: {error.strerror or error}; "
                "change its permissions, or move it elsewhere"
            ) from error
        if relative and b"/" not in relative:
            scan.folders.append(relative)
        for entry in entries:
            path = os.path.join(relative, entry.name)
            link = entry.is_symlink()  # a DirEntry raises where a link leads to itself, os.path does not
            if entry.name.startswith(b"."):
                scan.hidden += 1
            elif os.path.isdir(entry.path) if link else entry.is_dir():
                if entry.name in _SYSTEM_FOLDERS:
                    scan.system[entry.name] += 1
                else:
                    pending.append((path, here))
            elif (kind := extension(entry.name)) not in COUNTED_AS and not (
                extensions == "any" and _is_image(entry.path)
            ):
                scan.others[kind] += 1
                scan.examples.setdefault(kind, entry.path)
            elif os.path.isfile(entry.path) if link else entry.is_file():
                scan.paths.append(path)
            else:
                scan.broken_links += 1
    scan.paths.sort()
    scan.folders.sort()
    return scan
