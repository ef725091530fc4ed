#!/usr/bin/env python
"""Hostile configs, overrides, weights, packs and lists by the ten thousand: `make fuzz`.

Every kind of input is read in a process of its own (see guard.py for what it must not do there). Whatever goes wrong is
made as small as possible and kept as a folder of files below --keep; `fuzz.py --replay FOLDER` reads one again. Exit
code 1 when anything went wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

NAMES = ("configs", "overrides", "weights", "packs", "lists")
SILENCE = 120  # seconds without a word from the reading process, after which it hangs
SMALLER_TRIES = 400  # cases spent on making a failure smaller


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(NAMES)}; all without")
    parser.add_argument("--cases", type=int, default=10_000, help="of each target")
    parser.add_argument("--seed", type=int, default=None, help="the same cases every time; else others every time")
    parser.add_argument("--keep", type=Path, default=ROOT / "output" / "fuzz", help="folder for what failed")
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="read one kept case again, with a traceback")
    parser.add_argument("--child", nargs=2, metavar=("TARGET", "SCRATCH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.targets) - set(NAMES):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    return args


def main() -> int:
    args = arguments()
    if args.child:
        return child(args.child[0], Path(args.child[1]), args.cases, args.seed)
    if args.replay:
        return replay(args.replay)
    failures = 0
    seed = int(time.time()) if args.seed is None else args.seed
    print(f"fuzz     {args.cases:,} cases of each, seed {seed}; what fails is kept in {args.keep}")
    for name in args.targets or NAMES:
        failures += run(name, args.cases, seed, args.keep)
    print("passed" if not failures else f"failed: {failures} different failures")
    return 1 if failures else 0


# --- the parent
# ----------------------------------------------------------------------------------------------------------


def run(name: str, cases: int, seed: int, keep: Path) -> int:
    """Fuzz one target in child processes, a new one where one dies; gives the number of different failures."""
    began, done, found, deaths = time.monotonic(), 0, [], 0
    _minute[0] = 0
    with tempfile.TemporaryDirectory(prefix="passl-fuzz-") as folder:
        scratch = Path(folder)
        while done < cases and deaths < 10:
            errors = open(scratch / "stderr", "wb")  # noqa: SIM115
            process = subprocess.Popen(
                [
                    sys.executable,
                    __file__,
                    "--child",
                    name,
                    str(scratch),
                    "--cases",
                    str(cases - done),
                    "--seed",
                    str(seed + deaths),
                ],
                cwd=ROOT,
                env=child_environment(scratch),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            before = done
            for message in messages(process):
                done = before + message["cases"]
                progress(name, done, cases, began)
                if "failure" in message:
                    found.append(kept(name, message["failure"], Path(message["folder"]), keep))
            if process.wait() == 0:
                break
            deaths += 1
            done += 1
            last = (scratch / "stderr").read_text(errors="replace")[-1500:]
            if process.returncode == 1 or not (scratch / "case" / "case.json").is_file():
                raise SystemExit(f"\nfuzz     {name}: this program failed, not what it reads:\n{last}")
            what = (
                f"the reading process died, exit code {process.returncode} (after {SILENCE} s of silence if -9)\n{last}"
            )
            found.append(kept(name, what, scratch / "case", keep))
    seconds = time.monotonic() - began
    print(f"\r{name:<10} {done:>7,} cases  {seconds:6.0f} s  {len(found)} different failures{' ' * 30}", flush=True)
    for path, what in found:
        print(f"  {what.splitlines()[0][:160]}\n    {path}")
    return len(found)


def child_environment(scratch: Path) -> dict[str, str]:
    """Folders of its own for whatever wants to keep something."""
    own = {
        "XDG_CACHE_HOME": str(scratch / "cache"),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(scratch / "hypothesis"),
        "MPLBACKEND": "Agg",
        "HOME": str(scratch / "home"),
        "PASSL_DENSECL_HOME": str(scratch / "cache" / "zoo"),
        "PASSL_DENSECL_OFFLINE": "1",
        "MPLCONFIGDIR": str(scratch / "cache" / "mpl"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    return {**os.environ, **own}


def messages(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """What the child says; one that says nothing for long is killed."""
    import threading

    assert process.stdout is not None
    while True:
        timer = threading.Timer(SILENCE, process.kill)
        timer.start()
        line = process.stdout.readline()
        timer.cancel()
        if not line:
            return
        if line.startswith("{"):
            yield json.loads(line)


_minute = [0]  # of the last line about progress, on an output that is no terminal


def progress(name: str, done: int, cases: int, began: float) -> None:
    seconds = time.monotonic() - began
    if sys.stdout.isatty():
        bar = "━" * (30 * done // cases)
        print(f"\r{name:<10} {bar:<30} {done:,}/{cases:,}  {seconds:.0f} s", end="", flush=True)
    elif int(seconds) // 60 > _minute[0]:
        _minute[0] = int(seconds) // 60
        print(f"{name:<10} {done:,}/{cases:,}  {seconds:.0f} s", flush=True)


def kept(name: str, what: str, case: Path, keep: Path) -> tuple[Path, str]:
    """A copy of a failing case, with what it did."""
    title = re.sub(r"\W+", "_", what.splitlines()[0])[:60].strip("_")
    target = keep / name / title
    number = 1
    while target.exists():
        number += 1
        target = keep / name / f"{title}_{number}"
    shutil.copytree(case, target, symlinks=True)
    (target / "failure.txt").write_text(what, errors="backslashreplace")
    return target, what


# --- the child
# -----------------------------------------------------------------------------------------------------------


def child(name: str, scratch: Path, cases: int, seed: int) -> int:
    """Read cases until there have been so many; tell about progress and failures on standard output."""
    import hypothesis
    from hypothesis import HealthCheck, Phase, given, settings

    out = os.fdopen(os.dup(1), "w", buffering=1)  # a run's log takes the usual one
    reader = Reader(name, scratch)
    known: set[str] = set()
    hunts: list[Hunt] = []
    state = {"cases": 0, "told": 0.0}

    def tell(**more: str) -> None:
        state["told"] = time.monotonic()
        out.write(json.dumps({"cases": int(state["cases"]), **more}) + "\n")

    tell()
    while state["cases"] < cases:
        hunt = Hunt(known, scratch / "smallest")
        hunts.append(hunt)

        @hypothesis.seed(seed + len(known))
        @settings(
            max_examples=cases - int(state["cases"]),
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        @given(reader.cases)
        def each(case: Any) -> None:  # used before the next round begins
            hunt = hunts[-1]
            if not hunt.found:
                state["cases"] += 1
            if time.monotonic() - state["told"] > 1:
                tell()
            hunt.judge(case, reader.failure(case))

        try:
            each()
        except (Exception, Enough):
            if not hunt.found:
                raise
        if not hunt.found:
            break  # hypothesis has no more of them
        tell(failure=hunt.what, folder=str(scratch / "smallest"))
        known.add(hunt.signature)
    tell()
    return 0


class Enough(KeyboardInterrupt):
    """Small enough: hypothesis would go on for minutes, and lets nothing else through."""


class Hunt:
    """From the first failure of a new kind on, the smallest case that fails in the same way."""

    def __init__(self, known: set[str], folder: Path) -> None:
        self._known, self._folder = known, folder
        self.signature, self.what, self._size, self._tries = "", "", 0, 0

    @property
    def found(self) -> bool:
        return bool(self.signature)

    def judge(self, case: Any, failure: tuple[str, str] | None) -> None:
        """Raises when the case fails in the way that is hunted."""
        self._tries += self.found
        if self._tries > SMALLER_TRIES:
            raise Enough
        if failure is None or failure[0] in self._known:
            return
        if self.found and failure[0] != self.signature:
            return
        if not self.found or case.size < self._size:
            self.signature, self.what = failure
            self._size = case.size
            shutil.rmtree(self._folder, ignore_errors=True)
            write_case(case, self._folder)
        raise AssertionError(self.signature)


def write_case(case: Any, folder: Path) -> None:
    folder.mkdir(parents=True)
    case.write(folder / "files")
    (folder / "case.json").write_text(json.dumps({"words": case.words}))


class Reader:
    """Reads cases of one target under guard, in this process."""

    def __init__(self, name: str, scratch: Path) -> None:
        from tests.fuzz.guard import Guard
        from tests.fuzz.targets import TARGETS

        self._target = TARGETS[name]
        self._scratch = scratch
        for folder in ("cache", "home", "outside", "images", "indexed"):
            (scratch / folder).mkdir(parents=True, exist_ok=True)
        (scratch / "outside" / "precious.txt").write_text("stays")
        (scratch / "fuzz_canary.py").write_text("raise SystemExit('the canary was imported')\n")
        sys.path.insert(0, str(scratch))
        self.cases = self._target.cases(scratch)
        import_everything(name)
        self._warm_up()
        os.chdir(scratch / "outside")
        self._guard = Guard(scratch / "output", scratch / "cache", Path("/dev/null"))
        self._outside = self._listing()

    def _warm_up(self) -> None:
        """Read a few cases unwatched, for what is imported, compiled and cached at the first use."""
        from hypothesis import HealthCheck, Phase, given, seed, settings

        for case in self._target.first:
            self._read(case)

        @seed(0)
        @settings(
            max_examples=30,
            deadline=None,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        @given(self.cases)
        def each(case: Any) -> None:
            try:
                self._read(case)
            except Exception:  # the watched ones will tell
                return

        each()

    def _read(self, case: Any) -> None:
        folder, output = self._fresh(case)
        self._target.read(folder, output, case.words)

    def _fresh(self, case: Any) -> tuple[Path, Path]:
        """The case's folder, written anew, beside the images that lists name; and an empty folder for output."""
        top, output = self._scratch / "case", self._scratch / "output"
        for folder in (top, output):
            shutil.rmtree(folder, ignore_errors=True)
        write_case(case, top)
        (top / "files").mkdir(exist_ok=True)
        for name in ("images", "indexed"):
            (top / name).symlink_to(self._scratch / name)
        output.mkdir()
        return top / "files", output

    def _listing(self) -> dict[str, tuple[int, int]]:
        from tests.fuzz.guard import listing

        return listing(self._scratch / "outside", self._scratch / "home", self._scratch / "images") | {
            name: (0, 0) for name in os.listdir(self._scratch) if name not in ("smallest", "hypothesis")
        }

    def failure(self, case: Any) -> tuple[str, str] | None:
        """(what kind, everything about it) of what went wrong, None for nothing."""
        from tests.fuzz.guard import Escape

        folder, output = self._fresh(case)
        try:
            with self._guard.watch():
                self._target.read(folder, output, case.words)
        except Escape as error:
            kind = re.sub(r"'[^']*'|\d+", "…", str(error).splitlines()[0])
            return signature(error, f"escape: {kind}"), f"escape: {error}\n{traceback.format_exc()}"
        except Exception as error:
            text = traceback.format_exc(limit=-20).replace("\0", "\\0")
            return signature(error, type(error).__name__), f"{type(error).__name__}: {str(error)[:200]!r}\n{text}"
        now = self._listing()
        if now != self._outside:
            changed = sorted(set(now.items()) ^ set(self._outside.items()))
            self._outside = now
            return (
                "files changed outside of the output folder",
                f"files changed outside of the output folder: {changed[:5]}",
            )
        return None


# What reads cases, by target: imported before they are watched, with whatever it imports late.
READERS = {
    "configs": ("config", "integrations.yaml_files"),
    "overrides": ("config",),
    "weights": (
        "config",
        "weights.convert",
        "weights.info",
        "weights.read",
        "weights.torch_files",
        "weights.safetensors_files",
    ),
    "packs": ("data.datasets",),
    "lists": (
        "data.datasets",
        "integrations.prepare",
        "engine.pretrain",
        "evaluation.masks",
        "evaluation.multilabel",
        "visualize.report",
        "visualize.schedule",
        "visualize.views",
        "weights.zoo",
    ),
}


def import_everything(name: str) -> None:
    import codecs
    import importlib

    for codec in (
        "ascii",
        "latin1",
        "unicode_escape",
        "raw_unicode_escape",
        "utf-8-sig",
        "utf-16",
        "utf-16-le",
        "utf-16-be",
        "utf-32",
        "utf-32-le",
        "utf-32-be",
        "cp437",
    ):
        codecs.lookup(codec)
    for module in ("numpy.ma", "xml.etree.ElementTree", "html.parser", "pwd"):
        importlib.import_module(module)
    for module in READERS[name]:
        importlib.import_module(f"passl_densecl.{module}")


def signature(error: BaseException, kind: str) -> str:
    """What tells one failure from another: its kind and the place in the project."""
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if f"{os.sep}passl_densecl{os.sep}" in frame.filename and "/tests/" not in frame.filename:
            place = f"{Path(frame.filename).name}:{frame.name}"
    text = re.sub(r"\d+|'[^']*'", "…", str(error))[:60] if kind == "Wrong" else ""
    return f"{kind} in {place} {text}".strip()


def replay(folder: Path) -> int:
    """Read one kept case and show what happens."""
    from tests.fuzz.targets import Case

    said = json.loads((folder / "case.json").read_text())
    files = {
        str(path.relative_to(folder / "files")): path.read_bytes()
        for path in (folder / "files").rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    name = next(name for name in NAMES if name in folder.resolve().parts)
    with tempfile.TemporaryDirectory(prefix="passl-fuzz-") as scratch:
        os.environ.update(child_environment(Path(scratch)))
        failure = Reader(name, Path(scratch)).failure(Case(files, tuple(said["words"])))
        os.chdir(ROOT)
    print(failure[1] if failure else "read without a failure")
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
