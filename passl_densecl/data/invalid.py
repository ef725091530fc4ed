"""Messages for invalid input: a path that is no folder, a folder without images."""

from __future__ import annotations

import os

from passl_densecl.data.images import COUNTED_AS, counted
from passl_densecl.data.scan import Scan
from passl_densecl.data.signatures import is_image
from passl_densecl.text import closest, listed, plural, printable, quantity

_ARCHIVES = frozenset(["zip", "tar", "gz", "tgz", "xz", "rar", "7z"])


def no_such_folder(root: str) -> str:
    """What is at ``root`` instead, or which name was meant."""
    if os.path.exists(root):
        return (
            f"{printable(root)} is a file, expected the folder that holds the images; a text file that lists images "
            "goes into list_file, with the folder that its paths start from as root"
        )
    if not root:
        return "the folder of images is empty text; name the folder"
    present, missing = os.path.split(os.path.abspath(root))
    while not os.path.isdir(present):
        present, missing = os.path.split(present)
    try:
        siblings = [entry.name for entry in os.scandir(present) if entry.is_dir() or entry.name.endswith(".lmdb")]
    except OSError:
        siblings = []
    close = closest(missing, siblings)
    hint = "give the folder that holds the images"
    if close:
        hint = f"did you mean {printable(_with_component(root, missing, close))!r}?"
    return f"no folder {printable(root)!r} ({printable(present)} has no {printable(missing)!r}); {hint}"


def _with_component(path: str, old: str, new: str) -> str:
    """``path`` with its component ``old`` (the last one of that name) replaced."""
    pieces = path.split(os.sep)
    last = len(pieces) - 1 - pieces[::-1].index(old) if old in pieces else None
    return new if last is None else os.sep.join([*pieces[:last], new, *pieces[last + 1 :]])


def nothing_found(root: str, scan: Scan) -> str:
    """What lies below ``root`` instead of images, and what to do."""
    found = []
    if scan.others:
        found.append(f"{counted(scan.others)} {plural(scan.others.total(), 'file')}")
    if scan.hidden:
        found.append(f"{quantity(scan.hidden, 'hidden name')} (left out)")
    if scan.broken_links:
        found.append(f"{quantity(scan.broken_links, 'link')} to missing files")
    if scan.folders:
        names = [os.fsdecode(name) for name in scan.folders]
        found.append(f"the {plural(len(names), 'folder')} {listed(names)}")
    packed = not _ARCHIVES.isdisjoint(scan.others)
    advice = "give a folder that holds " + ", ".join(sorted(set(COUNTED_AS.values())))
    if any(map(is_image, scan.examples.values())):
        advice = "some of them are images by their first bytes: set extensions: any"
    elif not {"heic", "heif"}.isdisjoint(scan.others):
        advice = "OpenCV does not decode HEIC: convert it to JPEG"
    elif packed:
        advice = "unpack the archive first"
    return f"no images under {printable(root)!r}; found {' and '.join(found) or 'nothing at all'}; {advice}"
