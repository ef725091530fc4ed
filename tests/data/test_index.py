"""The index of a tree: what it gives is what a fresh walk gives, whatever has happened to the tree or to the index."""

from __future__ import annotations

import os
import shutil
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from passl_densecl.data import index, walk
from passl_densecl.data.folders import scan_images

FOLDERS = 12  # that a walk through the tree lists


@pytest.fixture
def caches(tmp_path, monkeypatch) -> Path:
    """Indexes go below this folder, and every tree is worth one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(walk, "_MANY_FILES", -1)
    monkeypatch.setattr(walk, "_SETTLED_NS", -1)
    return tmp_path / "caches" / "passl_densecl" / "index"


@pytest.fixture
def tree(tmp_path) -> Path:
    """A tree of everything that a walk tells apart. Beside it, what its links lead to."""
    root = tmp_path / "tree"
    for folder in ("a/deep/er", "b", "empty", "train", "val", "with\nnewline", ".hidden"):
        (root / folder).mkdir(parents=True)
    (tmp_path / "elsewhere" / "far").mkdir(parents=True)
    names = ["top.jpg", "a/1.PNG", "a/deep/2.jpeg", "a/deep/er/3.tiff", "b/4 x.bmp", "with\nnewline/5\n.png", "b/x.txt"]
    for name in [*names, "a/noending", "b/._4.bmp", ".hidden/6.png", "train/7.png", "val/8.png", "a/odd.\udcff"]:
        (root / name).write_bytes(b"x")
    for name in ("9.png", "far/10.png", "far/y.csv"):
        (tmp_path / "elsewhere" / name).write_bytes(b"x")
    with open(os.path.join(os.fsencode(root), b"b/caf\xe9.png"), "wb"):
        pass
    links = {
        "b/file.png": "../a/1.PNG",
        "b/gone.png": "nowhere.png",
        "b/folder": "../../elsewhere/far",
        "a/up": "..",
        "b/loop.png": "loop.png",
        "b/other.txt": "x.txt",
        "linked": "../elsewhere",
        "b/.link": "x.txt",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(root / "b")
        server.bind("socket.png")
        os.chdir(here)
    settle(tmp_path)
    return root


def settle(root: Path) -> None:
    """Give all folders an old time, so that a change shows however soon it comes."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, ns=(10**18, 10**18))


def result(root: Path) -> dict[str, Any]:
    """All that a walk gives, without the note on the index."""
    return asdict(walk.walk(str(root))) | {"from_cache": ""}


def fresh(root: Path, monkeypatch) -> dict[str, Any]:
    """The same where no index can be."""
    with monkeypatch.context() as context:
        context.setenv("XDG_CACHE_HOME", "/dev/null")
        return result(root)


@pytest.fixture
def listings(monkeypatch) -> list[str]:
    """The folders that were listed, in order."""
    names: list[str] = []
    scandir = os.scandir

    def counting(path):
        names.append(os.fsdecode(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counting)
    return names


def test_what_is_known_equals_what_is_fresh(tree, caches, monkeypatch, listings):
    expected = fresh(tree, monkeypatch)
    assert expected["broken_links"] == 3  # a link to nothing, one to itself, and a socket
    assert {b"b/caf\xe9.png", b"b/folder/10.png", b"linked/far/10.png", b"b/file.png"} <= set(expected["paths"])
    assert result(tree) == expected  # the first walk, which writes the index
    assert [path.suffix for path in caches.iterdir()] == [".npz"]
    listings.clear()
    assert result(tree) == expected
    assert listings == []


def test_the_log_says_where_the_list_comes_from(tree, caches):
    first, second = scan_images(tree), scan_images(tree)
    assert "known from the index" not in first.describe()
    assert second.describe() == f"{first.describe()}; known from the index of {FOLDERS} folders"
    (tree / "b" / "new.png").write_bytes(b"x")
    assert scan_images(tree).describe().endswith(f"; known from the index of {FOLDERS - 1} folders, 1 read anew")
    assert scan_images(tree).describe().endswith(f"; known from the index of {FOLDERS} folders")
    assert [first.path(i) for i in range(len(first))] == [second.path(i) for i in range(len(second))]


def swap(a: Path, b: Path) -> None:
    a.rename(a.parent / "aside")
    b.rename(a)
    (a.parent / "aside").rename(b)


def forge(root: Path) -> None:
    """Add a file and set the time of its folder back, as rsync and tar do."""
    (root / "a" / "new.png").write_bytes(b"x")
    os.utime(root / "a", ns=(10**18, 10**18))


CHANGES = {
    "a file more": lambda root: (root / "a" / "deep" / "new.png").write_bytes(b"x"),
    "a file less": lambda root: (root / "a" / "deep" / "2.jpeg").unlink(),
    "a file renamed": lambda root: (root / "b" / "4 x.bmp").rename(root / "b" / "0.bmp"),
    "no image any more": lambda root: (root / "b" / "4 x.bmp").rename(root / "b" / "4.txt"),
    "hidden": lambda root: (root / "b" / "4 x.bmp").rename(root / "b" / ".4.bmp"),
    "a file moved": lambda root: (root / "b" / "4 x.bmp").rename(root / "a" / "4.bmp"),
    "a folder more": lambda root: shutil.copytree(root / "a" / "deep", root / "b" / "copy"),
    "a folder less": lambda root: shutil.rmtree(root / "a" / "deep"),
    "a folder renamed": lambda root: (root / "a").rename(root / "z"),
    "folders swapped": lambda root: swap(root / "train", root / "val"),
    "a file becomes a folder": lambda root: ((root / "top.jpg").unlink(), (root / "top.jpg").mkdir()),
    "an old time": forge,
    "a link to a file more": lambda root: (root / "empty" / "new.png").symlink_to(root / "top.jpg"),
    "a link to a folder more": lambda root: (root / "empty" / "new").symlink_to(root.parent / "elsewhere"),
    "the target of a link removed": lambda root: (root.parent / "elsewhere" / "9.png").unlink(),
    "the target of a link there": lambda root: (root / "b" / "nowhere.png").write_bytes(b"x"),
    "a link turned": lambda root: ((root / "linked").unlink(), (root / "linked").symlink_to("empty")),
    "a linked folder gone": lambda root: shutil.rmtree(root.parent / "elsewhere" / "far"),
    "a linked folder grown": lambda root: (root.parent / "elsewhere" / "far" / "new.png").write_bytes(b"x"),
    "a linked file becomes a folder": lambda root: ((root / "a" / "1.PNG").unlink(), (root / "a" / "1.PNG").mkdir()),
    "all gone": lambda root: [shutil.rmtree(root / name) for name in ("a", "b", "train", "val")],
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(tree, caches, monkeypatch, change):
    before = result(tree)
    CHANGES[change](tree)
    expected = fresh(tree, monkeypatch)
    assert expected != before
    assert result(tree) == expected
    assert result(tree) == expected  # from the index that was written now


def test_a_link_outside_is_looked_at_though_its_folder_stays_the_same(tree, caches, listings):
    """Neither the folder of the link nor any other in the tree changes when its target goes."""
    outside = tree.parent / "outside.png"
    outside.write_bytes(b"x")
    (tree / "empty" / "link.png").symlink_to(outside)
    settle(tree.parent)
    assert b"empty/link.png" in walk.walk(str(tree)).paths
    outside.unlink()
    listings.clear()
    scan = walk.walk(str(tree))
    assert b"empty/link.png" not in scan.paths
    assert listings == []


def test_only_what_changed_is_listed(tree, caches, listings):
    result(tree)
    (tree / "a" / "deep" / "new.png").write_bytes(b"x")
    os.chmod(tree / "val", 0o700)  # permissions decide whether a folder can be read
    listings.clear()
    result(tree)
    assert sorted(listings) == [str(tree / "a" / "deep"), str(tree / "val")]


def test_a_folder_that_has_just_changed_is_not_trusted(tree, caches, monkeypatch, listings):
    """Times are coarse: it may change again without another time."""
    monkeypatch.setattr(walk, "_SETTLED_NS", 3600 * 10**9)
    result(tree)
    assert not caches.exists()
    monkeypatch.setattr(walk, "_SETTLED_NS", -1)
    result(tree)
    (tree / "b" / "new.png").write_bytes(b"x")
    monkeypatch.setattr(walk, "_SETTLED_NS", 3600 * 10**9)
    for _ in range(2):
        listings.clear()
        result(tree)
        assert listings == [str(tree / "b")]


def test_one_that_is_not_trusted_is_left_out_of_the_index(tree, caches, listings):
    os.utime(tree / "b", ns=(4 * 10**18, 4 * 10**18))  # a clock that runs ahead
    result(tree)
    for _ in range(2):
        listings.clear()
        result(tree)
        assert listings == [str(tree / "b")]


def test_small_trees_have_no_index(tree, caches, monkeypatch):
    monkeypatch.setattr(walk, "_MANY_FILES", 10_000)
    monkeypatch.setattr(walk, "_LONG_SECONDS", 60)
    result(tree)
    assert not caches.exists()
    monkeypatch.setattr(walk, "_LONG_SECONDS", 0)
    result(tree)
    assert len(list(caches.iterdir())) == 1


def test_nothing_is_written_into_the_tree(tree, caches):
    before = sorted(os.walk(tree))
    result(tree)
    result(tree)
    assert sorted(os.walk(tree)) == before


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def damaged(data: bytes, trap: Path, file: Path) -> dict[str, bytes]:
    with open(file.parent / "evil", "wb") as stream:
        np.savez(stream, header=np.array([Trap(trap)], dtype=object))
    evil = (file.parent / "evil").read_bytes()
    (file.parent / "evil").unlink()
    middle = len(data) // 3
    return {
        "empty": b"",
        "cut short": data[: len(data) // 2],
        "other bytes": bytes(range(256)) * 40,
        "one bit": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "pickled": evil,
        "another tree's": data.replace(os.fsencode(trap.parent), os.fsencode(trap.parent)[::-1]),
    }


def test_a_damaged_index_is_ignored_and_replaced(tree, caches, tmp_path, listings):
    expected = result(tree)
    (file,) = caches.iterdir()
    for kind, data in damaged(file.read_bytes(), tmp_path / "executed", file).items():
        file.write_bytes(data)
        listings.clear()
        assert result(tree) == expected, kind
        assert len(listings) == FOLDERS, kind
        listings.clear()
        assert result(tree) == expected, kind
        assert listings == [], kind
    assert not (tmp_path / "executed").exists()


def test_an_index_that_cannot_be_written_is_no_error(tree, tmp_path, caches, monkeypatch):
    expected = result(tree)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert result(tree) == expected
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert result(tree) == expected
    assert (tmp_path / "file").read_text() == ""
    monkeypatch.setenv("HOME", "not/absolute")
    assert result(tree) == expected
    assert not Path("not").exists()


def test_a_write_that_fails_leaves_nothing(tree, caches, monkeypatch):
    caches.mkdir(parents=True)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    result(tree)
    assert list(caches.iterdir()) == []


def test_every_spelling_of_a_root_has_the_same_index(tree, caches, monkeypatch, listings):
    result(tree)
    monkeypatch.chdir(tree)
    listings.clear()
    for name in (".", "../tree", f"{tree}/", f"{tree}/a/.."):
        assert walk.walk(name).from_cache
    assert listings == []
    assert len(list(caches.iterdir())) == 1


def test_other_kinds_of_images_need_another_index(tree, caches, monkeypatch, listings):
    result(tree)
    monkeypatch.setattr(index, "COUNTED_AS", {"png": "png"})
    listings.clear()
    result(tree)
    assert len(listings) == FOLDERS
