"""`hf:OWNER/NAME` is a name of weights wherever weights are named, and a run can be published under one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import small_hub
import yaml

from passl_densecl import get_model
from passl_densecl.config import BackboneSpec
from passl_densecl.errors import InputError
from passl_densecl.models import build_backbone
from passl_densecl.weights import hub as hub_module
from passl_densecl.weights import zoo
from passl_densecl.weights.card import PRETRAINING, Card, Parent
from passl_densecl.weights.files import read_card, read_weights, weights_file
from passl_densecl.weights.hub import download
from passl_densecl.weights.push import push
from passl_densecl.weights.writing import write_weights

ROOT = Path(__file__).resolve().parents[2]
CARD = Card(kind=PRETRAINING, depth=18, stem_stride=2, last_stride=2, epoch=3, step=30, config={"seed": 7})
ARRAYS = {"a.weight": np.arange(6, dtype="float32").reshape(2, 3), "b": np.ones(2, "int64")}
OTHER = {name: array + 1 for name, array in ARRAYS.items()}


def ask(address: str, monkeypatch) -> None:
    """Have huggingface_hub, which reads HF_ENDPOINT when it is imported, ask there."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The Hub that huggingface_hub asks in this test, with an empty cache and a token."""
    from huggingface_hub import constants

    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY", "PASSL_DENSECL_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", small_hub.TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub_module._hub_file.cache_clear()
    with small_hub.running() as running:
        ask(running.url, monkeypatch)
        yield running
    hub_module._hub_file.cache_clear()


def content(folder: Path, arrays: dict[str, np.ndarray], suffix: str = ".safetensors") -> bytes:
    write_weights(folder / f"made{suffix}", arrays, card=CARD)
    return (folder / f"made{suffix}").read_bytes()


def equal(name: str, arrays: dict[str, np.ndarray]) -> None:
    found = read_weights(name).content
    assert isinstance(found, dict)
    assert found.keys() == arrays.keys()
    assert all((found[key] == arrays[key]).all() for key in arrays)


def test_a_repository_a_revision_and_a_file(hub, tmp_path):
    first = hub.put("me/net", {"model.safetensors": content(tmp_path, ARRAYS), "old/x.pdparams": b""})
    hub.put("me/net", {"model.safetensors": content(tmp_path, OTHER)})
    hub.put("me/net", {"model.pdparams": content(tmp_path, ARRAYS, ".pdparams")}, "refs/pr/1")
    equal("hf:me/net", OTHER)
    equal(f"hf:me/net@{first}", ARRAYS)
    equal("hf:me/net@refs/pr/1", ARRAYS)
    hub.put("me/net", {"deep/er.pdparams": content(tmp_path, ARRAYS, ".pdparams")})
    equal("hf:me/net/deep/er.pdparams", ARRAYS)
    assert read_card("hf:me/net") == CARD
    before = len(hub.asked)
    assert weights_file("hf:me/net").name == "model.safetensors"
    assert len(hub.asked) == before  # one commit for all that a process reads


def test_a_path_that_exists_comes_before_a_name(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf:me").mkdir()
    write_weights("hf:me/net.pdparams", ARRAYS)
    equal("hf:me/net.pdparams", ARRAYS)
    assert hub.asked == []


def test_zoo_names_are_names_of_weights_too(tmp_path, monkeypatch):
    write_weights(tmp_path / "x.pdparams", ARRAYS)
    monkeypatch.setitem(zoo.CATALOG, "small", zoo.Entry("small", "x.pdparams", "backbone", 18, "", "", ("http://x",)))
    monkeypatch.setenv("PASSL_DENSECL_HOME", str(tmp_path))
    equal("small", ARRAYS)
    assert download("small", tmp_path / "copy.pdparams").read_bytes() == (tmp_path / "x.pdparams").read_bytes()
    with pytest.raises(InputError, match=r"'smal' .* did you mean 'small'\?"):
        download("smal")


def test_download_to_a_file(hub, tmp_path):
    body = content(tmp_path, ARRAYS)
    hub.put("me/net", {"model.safetensors": body})
    assert download("hf:me/net").read_bytes() == body
    assert download("hf:me/net", tmp_path) == tmp_path / "model.safetensors"
    with pytest.raises(InputError, match=r"model\.safetensors exists; give another name, or overwrite"):
        download("hf:me/net", tmp_path)
    assert download("hf:me/net", tmp_path / "model.safetensors", overwrite=True).read_bytes() == body
    with pytest.raises(InputError, match=r"is a \.safetensors file; give that suffix"):
        download("hf:me/net", tmp_path / "net.pdparams")


def test_what_is_missing_is_named(hub, tmp_path, monkeypatch):
    hub.put("me/net", {"a.pth": b"x", "README.md": b"x"})
    hub.put("me/secret", {"model.safetensors": content(tmp_path, ARRAYS)})
    hub.private.add("me/secret")
    equal("hf:me/secret", ARRAYS)
    hub_module._hub_file.cache_clear()
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    cases = {
        "hf:me/nets": "no repository me/nets, or it is private: the account of your token may not read me/nets",
        "hf:me/secret@v2": "there is no repository me/secret, or it is private",
        "hf:me/net@v2": r"me/net has no branch, tag or commit 'v2'",
        "hf:me/net": r"main of me/net has no model\.safetensors or model\.pdparams; name one that it has: "
        r"hf:me/net/FILE with 'a\.pth'",
        "hf:me/net/b.pth@main": r"main of me/net has no b\.pth",
        "hf:net": r"'hf:net': expected hf:OWNER/NAME",
        "hf:me/n--t": r"expected hf:OWNER/NAME",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message):
            weights_file(name)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="it is private: run `hf auth login`, or set HF_TOKEN"):
        weights_file("hf:me/nets")
    ask("http://127.0.0.1:9", monkeypatch)  # where nothing listens; huggingface_hub tries it for 23 s
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(InputError, match="could not be downloaded, and the cache has no"):
        weights_file("hf:me/other")


def test_offline_the_cache_is_all_there_is(hub, tmp_path, monkeypatch):
    """In a process of its own, with nothing but Hugging Face's variables."""
    body = content(tmp_path, ARRAYS, ".pdparams")
    commit = hub.put("me/net", {"model.pdparams": body})
    program = "import sys; from passl_densecl.weights.hub import download; print(download(*sys.argv[1:]))"
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def run(name: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, name],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, **variables, **more},
            timeout=100,
        )

    online = run("hf:me/net")
    assert commit in online.stdout, online.stderr
    before = len(hub.asked)
    assert run("hf:me/net", HF_HUB_OFFLINE="1").stdout == online.stdout
    monkeypatch.setenv("PASSL_DENSECL_OFFLINE", "1")
    with pytest.raises(InputError, match=r"main of me/net has no model\.safetensors or model\.pdparams in the cache"):
        weights_file("hf:me/net")
    assert len(hub.asked) == before


# Publishing


def test_a_checkpoint_is_published_and_read_back(hub, tmp_path):
    file = tmp_path / "model.pdparams"
    write_weights(file, ARRAYS, card=CARD)
    address = push(file, "me/new", license="apache-2.0")
    assert re.fullmatch(rf"{hub.url}/me/new/commit/[0-9a-f]{{40}}", address)
    files = hub.repositories["me/new"]["main"]
    assert files.keys() == {"model.safetensors", "config.json", "README.md"}
    assert safetensors.numpy.load(files["model.safetensors"])["a.weight"].tolist() == ARRAYS["a.weight"].tolist()
    equal("hf:me/new", ARRAYS)
    card = CARD.replace(parents=(Parent.of(file, PRETRAINING),))
    assert read_card("hf:me/new") == card
    assert json.loads(files["config.json"]) == {"library_name": "passl_densecl", **card.to_dict()}
    _, head, text = files["README.md"].decode().split("---", 2)
    assert yaml.safe_load(head)["license"] == "apache-2.0"
    for part in ("pre-training checkpoint", "| epochs trained | 3 |", 'get_model("hf:me/new")', "seed: 7"):
        assert part in text
    assert card.parents[0].sha256 in text

    with pytest.raises(
        InputError, match=r"me/new already has model\.safetensors, config\.json, README\.md; .*overwrite"
    ):
        push(file, "me/new")
    write_weights(tmp_path / "again.safetensors", OTHER, card=CARD)
    commit = push(tmp_path / "again.safetensors", "hf:me/new", overwrite=True).rpartition("/")[2]
    equal(f"hf:me/new@{commit}", OTHER)
    assert weights_file(f"hf:me/new@{commit}").read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_publishing_without_a_right_is_refused(hub, tmp_path, monkeypatch):
    file = tmp_path / "model.pdparams"
    write_weights(file, ARRAYS)
    with pytest.raises(InputError, match="expected OWNER/NAME"):
        push(file, "me/n--t")
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(InputError, match=r"me/new: the Hub refused, or was not reached: .*401"):
        push(file, "me/new")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="there is no token: run `hf auth login`, or set HF_TOKEN"):
        push(file, "me/new")
    assert hub.repositories == {}


def test_get_model_by_its_name_on_the_hub(hub, tmp_path):
    backbone = build_backbone(BackboneSpec(18, 2, 1), 0)
    card = CARD.replace(kind="backbone", last_stride=1, config=None)
    write_weights(tmp_path / "r18.pdparams", {name: v.numpy() for name, v in backbone.state_dict().items()}, card=card)
    hub.put("me/r18", {"model.pdparams": (tmp_path / "r18.pdparams").read_bytes()})
    model = get_model("hf:me/r18")
    assert (model.info.kind, model.info.backbone) == ("backbone", BackboneSpec(18, 2, 1))
    for name, value in backbone.state_dict().items():
        assert (model.state_dict()[name].numpy() == value.numpy()).all()
    assert "snapshots" in model.info.source
