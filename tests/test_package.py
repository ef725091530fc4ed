"""What is published: the wheel holds all that a user needs, and its page on PyPI is complete."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
import yaml

from passl_densecl import __version__

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "passl_densecl"


def files_under(*folders: str) -> set[str]:
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*"))
    return {str(path.relative_to(ROOT)) for path in paths if path.is_file() and "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, the wheel, and the wheel unpacked under `wheel`."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "wheel")
    return folder


@pytest.fixture(scope="module")
def published(built: Path) -> PathDistribution:
    return PathDistribution(built / "wheel" / f"{PACKAGE}-{__version__}.dist-info")


def test_the_wheel_and_the_sdist_are_complete(built, published):
    inside = {path.as_posix() for path in published.files or () if ".dist-info" not in str(path)}
    assert inside == files_under(PACKAGE) | {f"{PACKAGE}/{path}" for path in files_under("configs")}
    assert f"{PACKAGE}/py.typed" in inside
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    source = files_under(PACKAGE, "benchmarks", "configs", "docs", "tests", "tools")
    assert names >= source | {"pyproject.toml", "Makefile", "LICENSE", "CITATION.cff", "README_cn.md", "CHANGELOG.md"}


def test_the_wheel_finds_its_configs(built, tmp_path):
    """Those inside it, whatever the folder; each of them is valid."""
    script = (
        "from passl_densecl.config import load_config; from passl_densecl.config.packaged import packaged_configs\n"
        "for name, path in packaged_configs().items(): print(path); load_config(name)"
    )
    environment = os.environ | {"PYTHONPATH": str(built / "wheel")}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    package = built / "wheel" / PACKAGE
    assert {str(Path(line).relative_to(package)) for line in done.stdout.splitlines()} == {
        path for path in files_under("configs") if path.endswith(".yaml")
    }


def test_the_command_and_the_extras_are_there(published):
    (script,) = published.entry_points
    assert (script.group, script.name, script.value) == ("console_scripts", "densecl", f"{PACKAGE}.cli.main:main")
    assert callable(script.load())
    required = published.requires or []
    for pin in ("paddlepaddle-gpu", "numpy<2;", "opencv-python-headless<4.12", "setuptools<81"):
        assert [line for line in required if line.startswith(pin) and line.endswith("extra == 'gpu'")], pin


def test_the_page_on_pypi_is_complete(published):
    facts = published.metadata
    for field in ("Author", "Summary", "Keywords", "License-Expression", "License-File", "Requires-Python"):
        assert facts[field], field
    text = facts.get_payload()
    targets = re.findall(r"\]\(([^)]+)\)", str(text))
    repository = dict(line.split(", ") for line in facts.get_all("Project-URL", []))["Repository"]
    raw = repository.replace("github.com", "raw.githubusercontent.com")
    ours = re.compile(rf"(?:{re.escape(repository)}/blob|{re.escape(raw)})/v{re.escape(__version__)}/([^#]+)(?:#.*)?")
    inside = [match[1] for match in map(ours.fullmatch, targets) if match]
    assert len(inside) > 10
    assert "docs/images/match.jpg" in inside
    assert [path for path in inside if not (ROOT / path).exists()] == []
    assert [target for target in targets if not target.startswith("https://")] == []


def test_versions_agree(published):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    urls = dict(line.split(", ") for line in published.metadata.get_all("Project-URL", []))
    assert (citation["version"], citation["repository-code"]) == (__version__, urls["Repository"])
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(__version__)}( |$)", changelog, re.MULTILINE)
    hook = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["rev"]
    assert f"ruff=={hook[1:]}; extra == 'dev'" in (published.requires or [])
    supported = re.findall(r"Python :: (3\.\d+)", str(published.metadata))
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert {"3.11", *workflow["jobs"]["fast"]["strategy"]["matrix"]["python"]} == set(supported)
