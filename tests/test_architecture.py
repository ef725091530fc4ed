"""The shape of the house: imports point one way, and nothing of the place where it was built is left in it."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "passl_densecl"

# A part may import its own modules and any part that stands below it; neighbors do not know each other.
LAYERS = [
    {"errors"},
    {"text", "tensors", "transforms", "schedules"},
    {"disk"},
    {"config", "distributed"},
    {"models", "data", "weights"},
    {"evaluation", "export", "integrations", "reliability"},
    {"visualize"},
    {"engine"},  # which evaluates while it trains, and writes a report at its end
    {"api", "doctor"},
    {"cli"},
    {"__main__"},
    {"benchmarks"},
    {"tools"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
# Inside the engine: what both loops need stands in a module of its own, and neither knows the other.
LOOPS, SHARED_BY_LOOPS = ("linear", "pretrain"), "run"


def sources() -> list[Path]:
    return sorted(path for folder in (PACKAGE, "tools", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sources()}


def imported(path: Path) -> set[str]:
    """The modules of this project that a file imports anywhere, functions and TYPE_CHECKING blocks included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in whole]
        else:
            continue
        found |= {name for name in names if name.split(".")[0] in (PACKAGE, "tools", "benchmarks", "tests")}
    return found


def part_of(module: str) -> str:
    """The folder or root file of a module: `models` of passl_densecl.models.queue, "" of the package itself."""
    first, *rest = module.split(".")
    return first if first != PACKAGE else rest[0] if rest else ""


def test_every_part_has_its_place():
    assert {part_of(module) for module in MODULES} - {""} == set(LEVEL)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    own = part_of(module)
    for other in imported(MODULES[module]):
        part = part_of(other)
        assert other.split(".")[0] in (PACKAGE, "benchmarks"), f"{module} imports {other}"
        # The package itself is the public API: it may use everything, and others only its version.
        if own in ("", part) or part == "":
            continue
        assert LEVEL[part] < LEVEL[own], f"{module} imports {other}, which does not stand below it"


def test_the_two_loops_share_a_module_and_do_not_know_each_other():
    modules = {name: f"{PACKAGE}.engine.{name}" for name in (*LOOPS, SHARED_BY_LOOPS)}
    for one, other in (LOOPS, LOOPS[::-1]):
        assert modules[SHARED_BY_LOOPS] in imported(MODULES[modules[one]])
        assert modules[other] not in imported(MODULES[modules[one]])
        assert modules[one] not in imported(MODULES[modules[SHARED_BY_LOOPS]])


def test_no_import_goes_in_a_circle():
    graph = {module: imported(path) & set(MODULES) - {module} for module, path in MODULES.items() if module != PACKAGE}
    graph = {module: edges - {PACKAGE} for module, edges in graph.items()}
    while leaves := [module for module, edges in graph.items() if not edges & set(graph)]:
        for leaf in leaves:
            del graph[leaf]
    assert not graph, f"these import each other in a circle, or hang on one: {sorted(graph)}"


def test_the_checks_see_imports(tmp_path):
    """The tests above would pass as well if `imported` found nothing."""
    path = tmp_path / "sample.py"
    path.write_text(
        f"import {PACKAGE}.data.loader\nfrom {PACKAGE} import disk\nfrom {PACKAGE}.models import DenseCL\nimport os\n"
        f"def late():\n    from {PACKAGE}.engine.learner import trained\n"
    )
    names = ("data.loader", "disk", "models", "engine.learner")
    assert imported(path) == {f"{PACKAGE}.{name}" for name in names}


def test_reading_a_config_needs_no_paddle():
    """`--check`, and every mistake in a config, come before the seconds that Paddle takes."""
    config = [f"config/{path.stem}" for path in (ROOT / PACKAGE / "config").glob("*.py")]
    for part in ("errors", "text", "transforms", "schedules", *config):
        tree = ast.parse((ROOT / PACKAGE / f"{part}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "paddle"], part


def test_nothing_names_the_place_where_it_was_built():
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    names = [name for name in listed.stdout.decode().split("\0") if name]
    assert len(names) > 40
    places = ["/".join(("", "work", "")), "." + "library"]  # in pieces, so that this file does not hold them
    found = []
    for name in names:
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b""
        if b"\0" not in content[:8192]:
            found += [f"{name}: {place}" for place in places if place.encode() in content]
    assert not found


def test_tensors_are_made_of_arrays_in_one_place():
    """Paddle 3.3's own way leaks at every call."""
    found = [
        f"{path.relative_to(ROOT)}" for path in sources() if "paddle.to_tensor(" in path.read_text(encoding="utf-8")
    ]
    assert found == []
