"""A small, fixed sample of `make fuzz`; and the guard detects what it must."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")

ROOT = Path(__file__).resolve().parents[2]
FUZZ = ROOT / "tests" / "fuzz" / "fuzz.py"


@pytest.mark.parametrize("name", ["configs", "overrides", "resumes", "weights", "packs", "lists"])
def test_a_sample(name, tmp_path):
    done = subprocess.run(
        [sys.executable, FUZZ, name, "--cases", "25", "--seed", "0", "--keep", tmp_path],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{name:<10}      25 cases" in done.stdout


GUARDED = """
import os, pickle, socket, subprocess, sys, time
from pathlib import Path
import numpy as np
sys.path.insert(0, {root!r})
from tests.fuzz.guard import Escape, Guard
scratch = Path(sys.argv[1])
(scratch / "output").mkdir()
evil = pickle.dumps(print)
guard = Guard(scratch / "output")
try:
    with guard.watch(1.0):
        {does}
except Escape as escape:
    print("detected", str(escape)[:200])
else:
    print("not detected")
"""


@pytest.mark.parametrize(
    ("does", "detected"),
    [
        ("pass", None),
        ("(scratch / 'output' / 'x').write_text('x')", None),
        ("(scratch / 'x').write_text('x')", "open"),
        ("os.system('true')", "os.system"),
        ("subprocess.run(['true'])", "subprocess.Popen"),
        ("eval('1 + 1')", "compile"),
        ("pickle.loads(evil)", "pickle.find_class"),
        ("import antigravity", "import"),
        ("socket.socket()", "socket."),
        ("os.rename(scratch / 'output', scratch / 'y')", "os.rename"),
        ("(scratch / 'output' / '..' / 'z').mkdir()", "os.mkdir"),
        ("bytearray(2**33)", "memory"),
        ("np.ones(2**26)", "memory"),
        ("exec('try:\\n  os.system(\"true\")\\nexcept BaseException: pass')", "compile"),
        ("sum(1 for _ in iter(int, 1))", "time"),
    ],
)
def test_the_guard_detects(does, detected, tmp_path):
    code = textwrap.dedent(GUARDED).format(root=str(ROOT), does=does)
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=100)
    if detected is None:
        assert done.stdout == "not detected\n", done.stderr
    else:
        assert done.stdout.startswith(f"detected {detected}"), done.stdout + done.stderr
    assert not any((tmp_path / name).exists() for name in ("x", "y", "z"))


PLANTED = """
import sys
sys.path.insert(0, {root!r})
import passl_densecl.config as config
from passl_densecl.errors import InputError
good = config.load_config
def load_config(path, overrides=()):
    if b"seed" in open(path, "rb").read():
        {does}
    return good(path, overrides)
config.load_config = load_config
sys.argv = sys.argv[1:]
exec(compile(open(sys.argv[0]).read(), sys.argv[0], "exec"), {{"__name__": "__main__", "__file__": sys.argv[0]}})
"""


@pytest.mark.parametrize(
    ("does", "found"), [("raise KeyError('planted')", "KeyError"), ("raise InputError('x' * 200_000)", "a message of")]
)
def test_a_planted_fault_is_found_and_minimized(does, found, tmp_path):
    """The reading process finds it, minimizes it, keeps it and reports it."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    code = PLANTED.format(root=str(ROOT), does=does)
    done = subprocess.run(
        [sys.executable, "-c", code, str(FUZZ), "--child", "configs", str(scratch), "--cases", "20", "--seed", "0"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        env={**os.environ, "HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path / "hypothesis")},
    )
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    failures = [report for report in reports if "failure" in report]
    assert failures, done.stderr
    assert found in failures[0]["failure"]
    assert b"seed" in (scratch / "smallest" / "files" / "config.yaml").read_bytes()
    assert reports[-1]["cases"] >= 20
