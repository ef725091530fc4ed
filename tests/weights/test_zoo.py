"""The catalog tells what its sources tell, and a file gets into the cache once, checked, or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import loopback
import numpy as np
import pytest

from passl_densecl.errors import InputError
from passl_densecl.weights import zoo
from passl_densecl.weights.download import DownloadError

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("docs/model_zoo.md", "docs/model_zoo_cn.md")
ARRAYS = {f"backbone.conv{n}.weight": np.random.default_rng(n).normal(size=(64, 1000)).astype("f4") for n in range(4)}
BODY = pickle.dumps(ARRAYS, protocol=4)
HASH = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "ALL_PROXY", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("PASSL_DENSECL_OFFLINE", raising=False)
    monkeypatch.setenv("PASSL_DENSECL_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server():
    with loopback.serving(BODY) as running:
        yield running


@pytest.fixture
def model(server, cache, monkeypatch):
    """A model called `small` in the catalog, on the server."""
    small = zoo.Entry("small", "small.pth", "backbone", 18, "a test", "none", (f"{server.url}/small.pth",))
    monkeypatch.setitem(zoo.CATALOG, "small", small)
    return small


def change(monkeypatch, model: zoo.Entry, **fields) -> zoo.Entry:
    changed = dataclasses.replace(model, **fields)
    monkeypatch.setitem(zoo.CATALOG, model.name, changed)
    return changed


def visible(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if not re.search(r"^\..*\.lock$", entry.name)}


# The catalog


def test_patterns():
    assert zoo.list_models("*r101*") == ["densecl_r101_imagenet_200ep"]
    assert zoo.list_models("densecl_r50_coco_*") == ["densecl_r50_coco_1600ep", "densecl_r50_coco_800ep"]
    assert zoo.list_models("R101") == []


@pytest.mark.parametrize("name", zoo.list_models())
def test_entries_are_consistent(name):
    model = zoo.entry(name)
    assert model.name == name
    assert re.fullmatch(r"[\w.-]+\.(pth|pdparams)", model.file)
    assert model.urls
    assert all(re.fullmatch(r"https://[^/]+/.+", url) for url in (*model.urls, model.source))
    assert re.fullmatch(r"[0-9a-f]{0,64}", model.sha256)
    in_name = re.search(r"-([0-9a-f]{8})\.pth$", model.file)
    assert model.sha256 == (in_name[1] if in_name else "")
    assert ("r101" in name) == (model.depth == 101)
    for figure in model.figures:
        assert re.fullmatch(r"\d\d\.\d{1,2}", figure.value)
        assert figure.source.startswith("https://github.com/")
    if not model.page:
        assert model.file in model.urls[0]


def test_an_unknown_name_gets_a_suggestion_or_the_list():
    with pytest.raises(InputError, match=r"'densecl_r50_coco_80ep' .* did you mean 'densecl_r50_coco_800ep'\?"):
        zoo.entry("densecl_r50_coco_80ep")
    with pytest.raises(InputError, match=r"there are densecl_r101_imagenet_200ep, .*_linear"):
        zoo.download("zzz")


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_show_the_catalog_and_no_other_number(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \|(.*)\|$", text, re.MULTILINE)
    assert [name for name, _ in rows] == list(zoo.CATALOG)
    assert len({model.file for model in zoo.CATALOG.values()}) == len(zoo.CATALOG)
    for name, row in rows:
        model = zoo.entry(name)
        *_, figures, source = row.split("|")
        assert re.findall(r"\d+\.\d+", figures) == [figure.value for figure in model.figures]
        assert f"ResNet-{model.depth}" in row
        links = re.findall(r"\]\((\S+?)\)", source)
        assert set(links) == {model.source, *(figure.source for figure in model.figures)}
    for model in zoo.CATALOG.values():
        for address in (model.page or model.urls[0], model.file):
            assert address in text


# Where


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("PASSL_DENSECL_HOME", raising=False)
    for base in ("relative", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", base)
        assert zoo.cache_folder() == Path.home() / ".cache" / "passl_densecl" / "weights"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert zoo.cache_folder() == tmp_path / "xdg" / "passl_densecl" / "weights"
    monkeypatch.setenv("PASSL_DENSECL_HOME", "~/weights")
    assert zoo.cache_folder() == Path.home() / "weights"
    monkeypatch.setenv("PASSL_DENSECL_HOME", "here")
    assert zoo.cache_folder() == Path.cwd() / "here"


# Into the cache


def test_downloaded_once_and_recorded(server, cache, model, capfd):
    path = zoo.download("small", progress=False)
    assert path == cache / "small.pth"
    assert path.read_bytes() == BODY
    assert visible(cache) == {"small.pth", "small.pth.sha256"}
    assert zoo.download("small", progress=False) == path
    assert len(server.asked) == 1
    assert capfd.readouterr() == ("", "")
    done = subprocess.run(
        ["sha256sum", "-c", "small.pth.sha256"], cwd=cache, capture_output=True, text=True, check=False
    )
    assert done.stdout == "small.pth: OK\n"


@pytest.mark.parametrize("known", [HASH, HASH[:8]])
def test_a_known_hash_that_fits(cache, model, monkeypatch, known):
    change(monkeypatch, model, sha256=known)
    assert zoo.download("small", progress=False).read_bytes() == BODY


@pytest.mark.parametrize("known", ["0" * 64, "deadbeef"])
def test_a_wrong_hash_leaves_nothing(server, cache, model, monkeypatch, known):
    change(monkeypatch, model, sha256=known)
    with pytest.raises(DownloadError) as caught:
        zoo.download("small", progress=False)
    assert f"its SHA-256 is {HASH}, expected {known}" in str(caught.value)
    assert f"By hand: get it from {server.url}/small.pth and save it as {cache / 'small.pth'}" in str(caught.value)
    assert visible(cache) == set()
    assert len(server.asked) == 1


def test_a_file_that_changes_in_the_cache_is_noticed(cache, model):
    path = zoo.download("small", progress=False)
    damaged = bytearray(BODY)
    damaged[5000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=rf"{HASH} was recorded at the first use"):
        zoo.download("small", progress=False)
    assert path.read_bytes() == damaged  # it is the user's to remove
    path.unlink()
    assert zoo.download("small", progress=False).read_bytes() == BODY


def test_a_file_that_changes_at_its_source_is_noticed(server, cache, model):
    path = zoo.download("small", progress=False)
    path.unlink()
    server.body = pickle.dumps({**ARRAYS, "more": 1}, protocol=4)
    with pytest.raises(DownloadError, match=r"recorded at the first use.*remove that record"):
        zoo.download("small", progress=False)
    assert not path.exists()
    (cache / "small.pth.sha256").unlink()
    assert zoo.download("small", progress=False).read_bytes() == server.body


def test_an_unreadable_record_is_no_record_to_trust(cache, model):
    zoo.download("small", progress=False)
    (cache / "small.pth.sha256").write_bytes(b"\xff\xfe\n")
    with pytest.raises(InputError, match=r"small\.pth\.sha256"):
        zoo.download("small", progress=False)


def torch_like(tmp_path: Path) -> bytes:
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("archive/data.pkl", BODY)
    return (tmp_path / "x.zip").read_bytes()


def test_without_a_hash_only_weights_are_recorded(server, cache, model, monkeypatch, tmp_path):
    archive = torch_like(tmp_path)
    for body, wanted in (
        (b"<!DOCTYPE html><title>Sign in</title>", "a web page, not the file"),
        (b"PKPKPKPK", "the end of the file is missing"),
        (b"weights", "not a file of weights"),
        (b"", "empty"),
        (archive[:-1000], "the end of the file is missing"),
    ):
        server.body = body
        with pytest.raises(DownloadError, match=wanted):
            zoo.download("small", progress=False)
        assert visible(cache) == set()
    server.body = archive
    assert zoo.download("small", progress=False).read_bytes() == archive

    change(monkeypatch, model, file="small.pdparams")
    server.body = BODY[:-1]
    with pytest.raises(DownloadError, match="the end of the file is missing"):
        zoo.download("small", progress=False)
    server.body = BODY
    assert zoo.download("small", progress=False).read_bytes() == BODY


def test_a_page_instead_of_a_shared_file_says_what_to_do_by_hand(server, cache, model, monkeypatch):
    change(monkeypatch, model, page="https://drive.example/view")
    server.habit = loopback.says(200, b"<html>too large to scan</html>", content_type="text/html")
    with pytest.raises(DownloadError) as caught:
        zoo.download("small", progress=False)
    assert "it is a web page, not the file" in str(caught.value)
    assert f"get it from https://drive.example/view and save it as {cache / 'small.pth'}" in str(caught.value)


def test_a_mirror_of_hugging_face(server, cache, model, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url + "/mirror/")
    zoo.download("densecl_r50_coco_800ep", progress=False)
    assert [path for path, _ in server.asked] == [
        "/mirror/xinlongwang/DenseCL/resolve/main/densecl_r50_coco_800ep.pth?download=true"
    ]
    real = zoo.entry("densecl_r50_coco_800ep").urls
    assert zoo._addresses(zoo.entry("densecl_r50_coco_800ep"))[1:] == list(real)
    assert zoo._addresses(model) == list(model.urls)  # what is not there has no mirror there
    monkeypatch.setenv("HF_ENDPOINT", "https://huggingface.co")
    assert zoo._addresses(zoo.entry("densecl_r50_coco_800ep")) == list(real)


# By hand and offline


def test_a_file_placed_by_hand_is_checked_and_recorded(server, cache, model, monkeypatch):
    cache.mkdir()
    path = cache / "small.pth"
    change(monkeypatch, model, sha256=HASH[:8])
    path.write_bytes(BODY[:-1])
    with pytest.raises(InputError) as caught:
        zoo.download("small")
    assert f"expected {HASH[:8]}…" in str(caught.value)
    assert "Remove the file" in str(caught.value)
    assert not (cache / "small.pth.sha256").exists()
    path.write_bytes(BODY)
    assert zoo.download("small") == path
    assert (cache / "small.pth.sha256").read_text() == f"{HASH}  small.pth\n"
    assert server.asked == []


@pytest.mark.parametrize("value", ["1", "true", "ON", " yes "])
def test_offline_never_asks(server, cache, model, monkeypatch, value):
    monkeypatch.setenv("PASSL_DENSECL_OFFLINE", value)
    with pytest.raises(InputError) as caught:
        zoo.download("small")
    assert "PASSL_DENSECL_OFFLINE is set" in str(caught.value)
    assert f"get it from {server.url}/small.pth and save it as {cache / 'small.pth'}" in str(caught.value)
    assert not cache.exists()
    cache.mkdir()
    (cache / "small.pth").write_bytes(BODY)
    assert zoo.download("small").read_bytes() == BODY
    assert server.asked == []


@pytest.mark.parametrize("value", ["0", "false", "off", "no", ""])
def test_not_offline(server, cache, model, monkeypatch, value):
    monkeypatch.setenv("PASSL_DENSECL_OFFLINE", value)
    zoo.download("small", progress=False)
    assert len(server.asked) == 1


def test_a_cache_that_cannot_be_made(model, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PASSL_DENSECL_HOME", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="PASSL_DENSECL_HOME"):
        zoo.download("small", progress=False)


def test_a_folder_in_the_place_of_the_file(cache, model):
    (cache / "small.pth").mkdir(parents=True)
    with pytest.raises(InputError, match=r"small\.pth: cannot be read"):
        zoo.download("small", progress=False)


# Several processes, and a cache that is shared

CHILD = """
import sys
from passl_densecl.weights import zoo

zoo.CATALOG["small"] = zoo.Entry("small", "small.pth", "backbone", 18, "a test", "none", (sys.argv[1],))
print(zoo.download("small", progress=False))
"""


def test_the_processes_of_a_host_download_once(server, cache):
    """As `paddle.distributed.launch` starts them."""
    server.habit = loopback.slowly(0.01)
    command = [sys.executable, "-c", CHILD, server.url + "/small.pth"]
    ranks = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    shown = [rank.communicate(timeout=30)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * 3
    assert len(server.asked) == 1
    assert shown == [f"{cache / 'small.pth'}\n"] * 3
    assert visible(cache) == {"small.pth", "small.pth.sha256"}


def test_a_shared_cache_may_be_read_only(cache, model, monkeypatch):
    path = zoo.download("small", progress=False)
    for name in ("small.pth.sha256", ".small.pth.lock"):
        (cache / name).unlink()
    if os.geteuid():
        cache.chmod(0o555)
    else:  # permissions do not stop root

        def refuse(*arguments: object) -> None:
            raise InputError("small.pth.sha256: cannot be written: Permission denied")

        monkeypatch.setattr(zoo, "whole_file", refuse)
    try:
        assert zoo.download("small", progress=False) == path
    finally:
        cache.chmod(0o755)
    assert visible(cache) == {"small.pth"}


@pytest.mark.parametrize("page", PAGES)
def test_the_example_of_the_pages_runs(server, cache, monkeypatch, page):
    code, *_ = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    shown = {}
    exec(code, shown)
    assert shown["path"].read_bytes() == BODY
    assert "# three names" in code or "# 三个名称" in code
    assert len(shown["list_models"]("densecl_r50_*")) == 3
