"""Run a script that is killed at a chosen place: `strike.py PLACE NUMBER VICTIMS SCRIPT ARGUMENTS…`.

PLACE is a key of PLACES, NUMBER counts its calls (from 1) in the main process of the run. VICTIMS is `self`, `workers`
(all trainers of the launcher on this machine) or `all` (the launcher first, then its trainers).
"""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path

# place → (module or class, function, whether it is killed after the call rather than before)
PLACES = {
    "start": ("passl_densecl.distributed.process_group", "start", False),
    "model": ("passl_densecl.engine.pretrain", "build_model", True),
    "step": ("passl_densecl.models.DenseCL", "enqueue", False),
    "sync": ("os", "fsync", False),  # in a file of a checkpoint
    "rename": ("os", "replace", False),  # of a folder: a checkpoint gets or loses its name
    "renamed": ("os", "replace", True),
    "prune": ("shutil", "rmtree", False),  # the old checkpoint has lost its name
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


def kill(victims: str) -> None:
    launcher = os.getppid()
    if victims != "self":
        trainers = children(launcher)
        for pid in [*([launcher] if victims == "all" else []), *(pid for pid in trainers if pid != os.getpid())]:
            os.kill(pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def arm(place: str, number: int, victims: str) -> None:
    owner_name, name, after = PLACES[place]
    try:
        owner = importlib.import_module(owner_name)
    except ImportError:
        module, _, cls = owner_name.rpartition(".")
        owner = getattr(importlib.import_module(module), cls)
    function: Callable = getattr(owner, name)
    count = 0

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal count
        here = "rename" not in place or Path(str(args[0])).is_dir()
        count += here
        if here and count == number and not after:
            kill(victims)
        result = function(*args, **kwargs)
        if here and count == number and after:
            kill(victims)
        return result

    setattr(owner, name, counted)


if __name__ == "__main__":
    place, number, victims, script, *arguments = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    if os.environ.get("PADDLE_TRAINER_ID", "0") == "0":
        arm(place, int(number), victims)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
