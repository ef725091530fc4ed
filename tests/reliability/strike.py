"""Run a script that is killed at a chosen moment: `strike.py WHAT NUMBER WHOM SCRIPT ARGUMENTS…`.

WHAT is a place from PLACES, NUMBER says which time it is come to (from 1), in the main process of the run. WHOM is
`self`,
`workers` (all trainers of the launcher on this machine) or `all` (the launcher first, then they).
"""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path

# name → (module, attribute path, whether death comes after the call rather than before)
PLACES = {
    "start": ("passl_densecl.distributed.process_group", "start", False),
    "model": ("passl_densecl.engine.pretrain", "build_model", True),
    "step": ("passl_densecl.models.DenseCL", "enqueue", False),
    "sync": ("os", "fsync", False),  # in a file of a checkpoint
    "rename": ("os", "replace", False),  # of a folder: a checkpoint gets its name, or loses it
    "renamed": ("os", "replace", True),
    "prune": ("shutil", "rmtree", False),  # its name is gone already
    "evaluation": ("passl_densecl.engine.knn.OnlineKNN", "_features", True),
    "metrics": ("passl_densecl.reliability.log.RunLog", "metrics", True),
}


def children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(after_name[1]) == parent and after_name[0] != "Z":
                found.append(int(entry.name))
    return found


def die(whom: str) -> None:
    launcher = os.getppid()
    if whom != "self":
        trainers = children(launcher)
        for pid in [*([launcher] if whom == "all" else []), *(pid for pid in trainers if pid != os.getpid())]:
            os.kill(pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def arm(what: str, number: int, whom: str) -> None:
    owner_name, name, after = PLACES[what]
    try:
        owner = importlib.import_module(owner_name)
    except ImportError:
        module, _, cls = owner_name.rpartition(".")
        owner = getattr(importlib.import_module(module), cls)
    function: Callable = getattr(owner, name)
    count = 0

    def struck(*args: object, **kwargs: object) -> object:
        nonlocal count
        here = "rename" not in what or Path(str(args[0])).is_dir()
        count += here
        if here and count == number and not after:
            die(whom)
        result = function(*args, **kwargs)
        if here and count == number and after:
            die(whom)
        return result

    setattr(owner, name, struck)


if __name__ == "__main__":
    what, number, whom, script, *arguments = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    if os.environ.get("PADDLE_TRAINER_ID", "0") == "0":
        arm(what, int(number), whom)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
