"""The soak's measurements: they must find a leak where there is one, and none where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.reliability import memory, soak
from tests.reliability.memory import Fit, fit, growth, shm_files, tree

GROWS = """
import os, time, sys
held, files = [], []
print("ready", flush=True)
while True:
    held.append(bytearray(os.urandom(2**20)))
    files.append(open(os.devnull))
    time.sleep(0.02)
"""


def sample(code: str, samples: int) -> tuple[list[float], list[float], list[int]]:
    """(hours, MiB, open files) of a process that runs the code."""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        began, rows = time.monotonic(), []
        for _ in range(samples):
            (one,) = tree(process.pid)
            rows.append(((time.monotonic() - began) / 3600, one.anonymous, one.files))
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    hours, mib, files = zip(*rows, strict=True)
    return list(hours), list(mib), list(files)


def test_growth_is_found():
    hours, mib, files = sample(GROWS, 24)
    line = fit(hours, mib)
    assert line.least > 1000  # MiB per hour; up to 180,000 where nothing else runs
    assert growth(files) > 3
    assert soak.find_problems("x", line, growth(files)) == [
        f"x: memory grows by {line.slope:.1f} ± {line.error:.1f} MiB per hour, more than 3",
        f"x: {growth(files)} more files are open than at the start",
    ]


def test_a_process_that_does_not_grow_passes():
    hours, mib, files = sample("import time\nprint(1, flush=True)\nwhile True: time.sleep(1)", 24)
    assert soak.find_problems("x", fit(hours, mib), growth(files)) == []


def test_a_slope_among_noise():
    """Sawteeth, which evaluations cause, neither hide a slow leak nor look like one."""
    hours = np.linspace(0, 1, 1800)
    teeth = 200 * ((hours * 60) % 1 > 0.7) + np.random.default_rng(0).normal(0, 2, 1800)
    flat, leaking = fit(hours, 500 + teeth), fit(hours, 500 + teeth + 8 * hours)
    assert abs(flat.slope) < 2 * flat.error + 1
    assert soak.find_problems("x", flat, 0) == []
    assert leaking.slope == pytest.approx(8, abs=1)
    assert len(soak.find_problems("x", leaking, 0)) == 1


def test_an_uncertain_slope_is_no_problem():
    assert soak.find_problems("x", Fit(50, 40), 0) == []
    assert soak.find_problems("x", Fit(50, 20), 0)


def test_too_few_samples_are_an_error():
    with pytest.raises(ValueError, match="too few"):
        fit([0, 1], [1, 2])


def test_files_that_are_closed_again_do_not_count():
    assert growth([10, 14, 10, 12, 10, 14, 10, 13]) == 0
    assert growth([10, 14, 10, 12, 11, 14, 12, 13]) == 2


def test_a_file_in_shared_memory_is_found():
    name = f"/dev/shm/passl-soak-{os.getpid()}"
    with open(name, "w") as file:
        try:
            file.write("x")
            (own,) = [one for one in tree(os.getpid()) if one.pid == os.getpid()]
            assert name in own.shm
            assert name in shm_files()
        finally:
            os.unlink(name)
    assert name not in shm_files()


def test_a_process_that_has_ended_is_left_out():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert memory.read_process(ended.pid) is None
    assert tree(ended.pid) == []


def test_trainers_are_distinguished_from_launcher_and_workers():
    def one(pid: int, parent: int, command: str) -> memory.Process:
        return memory.Process(pid, parent, command, 0, 0, 0, 0, frozenset())

    train = "python -u tools/train.py -c x"
    launcher = one(1, 0, "python -m paddle.distributed.launch --nproc_per_node 2 tools/train.py -c x")
    found = [launcher, one(5, 1, train), one(3, 1, train), one(7, 3, train), one(8, 5, train)]
    assert [p.pid for p in soak.trainers(found)] == [3, 5]
