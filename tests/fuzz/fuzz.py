#!/usr/bin/env python
"""Hostile configs, overrides, resumed runs, weights, packs and lists by the ten thousand: `make fuzz`.

A process of its own reads each kind of input (see guard.py for what it must not do there). A failure is minimized and
kept as a folder of files below --keep; `fuzz.py --replay FOLDER` reads it again. Exit code 1 when anything failed.
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

NAMES = ("configs", "overrides", "resumes", "weights", "packs", "lists")
SILENCE = 120  # seconds without a report, after which the reading process counts as hung
SHRINK_TRIES = 400  # cases spent on minimizing a failure


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--cases", type=int, default=10_000, help="cases per target")
    parser.add_argument("--seed", type=int, default=None, help="for the same cases every time; default: new cases")
    parser.add_argument("--keep", type=Path, default=ROOT / "output" / "fuzz", help="folder for failures")
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="read a kept case again and print the traceback")
    parser.add_argument("--child", nargs=2, metavar=("TARGET", "SCRATCH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.targets) - set(NAMES):
        parser.error(f"unknown target {', '.join(sorted(unknown))}; expected {', '.join(NAMES)}")
    return args


def main() -> int:
    args = arguments()
    if args.child:
        return child(args.child[0], Path(args.child[1]), args.cases, args.seed)
    if args.replay:
        return replay(args.replay)
    failures = 0
    seed = int(time.time()) if args.seed is None else args.seed
    print(f"fuzz     {args.cases:,} cases per target, seed {seed}; failures are kept in {args.keep}")
    for name in args.targets or NAMES:
        failures += run(name, args.cases, seed, args.keep)
    print("passed" if not failures else f"failed: {failures} different failures")
    return 1 if failures else 0


def run(name: str, cases: int, seed: int, keep: Path) -> int:
    """Fuzz one target in a child process, which is replaced when it dies; returns the number of different failures."""
    began, done, found, deaths = time.monotonic(), 0, [], 0
    _minute[0] = 0
    with tempfile.TemporaryDirectory(prefix="passl-fuzz-") as folder:
        scratch = Path(folder)
        while done < cases and deaths < 10:
            process = start_child(name, scratch, cases - done, seed + deaths)
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
            lines = (scratch / "stderr").read_text(errors="replace").splitlines()
            last = "\n".join(line[:300] for line in lines[-12:])  # Hypothesis prints whole strategies in a line
            if process.returncode == 1 or not (scratch / "case" / "case.json").is_file():
                raise SystemExit(f"\nfuzz     {name}: this program failed, not the code that it tests:\n{last}")
            cause = f"killed after {SILENCE} s without a report" if process.returncode == -9 else "died"
            what = f"the reading process {cause}, exit code {process.returncode}\n{last}"
            found.append(kept(name, what, scratch / "case", keep))
    seconds = time.monotonic() - began
    print(f"\r{name:<10} {done:>7,} cases  {seconds:6.0f} s  {len(found)} different failures{' ' * 30}", flush=True)
    for path, what in found:
        print(f"  {what.splitlines()[0][:160]}\n    {path}")
    return len(found)


def start_child(name: str, scratch: Path, cases: int, seed: int) -> subprocess.Popen[str]:
    words = ["--child", name, str(scratch), "--cases", str(cases), "--seed", str(seed)]
    with open(scratch / "stderr", "wb") as errors:
        return subprocess.Popen(
            [sys.executable, __file__, *words],
            cwd=ROOT,
            env=child_environment(scratch),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )


def child_environment(scratch: Path) -> dict[str, str]:
    """Its own folders for caches and settings."""
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
    """The child's reports; kills a child that reports nothing for `SILENCE` seconds."""
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


_minute = [0]  # of the last progress line, where the output is no terminal


def progress(name: str, done: int, cases: int, began: float) -> None:
    seconds = time.monotonic() - began
    if sys.stdout.isatty():
        bar = "━" * (30 * done // cases)
        print(f"\r{name:<10} {bar:<30} {done:,}/{cases:,}  {seconds:.0f} s", end="", flush=True)
    elif int(seconds) // 60 > _minute[0]:
        _minute[0] = int(seconds) // 60
        print(f"{name:<10} {done:,}/{cases:,}  {seconds:.0f} s", flush=True)


def kept(name: str, what: str, case: Path, keep: Path) -> tuple[Path, str]:
    """Copy a failing case to `keep`, with the error."""
    title = re.sub(r"\W+", "_", what.splitlines()[0])[:60].strip("_")
    target = keep / name / title
    number = 1
    while target.exists():
        number += 1
        target = keep / name / f"{title}_{number}"
    shutil.copytree(case, target, symlinks=True)
    (target / "failure.txt").write_text(what, errors="backslashreplace")
    return target, what


def child(name: str, scratch: Path, cases: int, seed: int) -> int:
    """Read `cases` cases; report progress and failures on standard output."""
    import hypothesis

    out = os.fdopen(os.dup(1), "w", buffering=1)  # a run's log uses the usual one
    reader = Reader(name, scratch)
    known: set[str] = set()
    searches: list[Search] = []
    state = {"cases": 0, "reported": 0.0}

    def report(**more: str) -> None:
        state["reported"] = time.monotonic()
        out.write(json.dumps({"cases": int(state["cases"]), **more}) + "\n")

    report()
    while state["cases"] < cases:
        search = Search(known, scratch / "smallest")
        searches.append(search)

        @hypothesis.seed(seed + len(known))
        @quiet_settings(cases - int(state["cases"]), "generate", "shrink")
        @hypothesis.given(reader.cases)
        def each(case: Any) -> None:  # used before the next round begins
            search = searches[-1]
            if not search.found:
                state["cases"] += 1
            if time.monotonic() - state["reported"] > 1:
                report()
            search.judge(case, reader.failure(case))

        try:
            each()
        except (Exception, SmallEnough):
            if not search.found:
                raise
        if not search.found:
            break  # hypothesis has no more cases
        report(failure=search.what, folder=str(scratch / "smallest"))
        known.add(search.signature)
    report()
    return 0


def quiet_settings(examples: int, *phases: str) -> Any:
    """Hypothesis without deadline, database and health checks."""
    from hypothesis import HealthCheck, Phase, settings

    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase[phase] for phase in phases],
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )


class SmallEnough(KeyboardInterrupt):
    """Ends the minimization, which hypothesis would continue for minutes; it lets no other exception through."""


class Search:
    """After the first failure of a new kind, the smallest case that fails in the same way."""

    def __init__(self, known: set[str], folder: Path) -> None:
        self._known, self._folder = known, folder
        self.signature, self.what, self._size, self._tries = "", "", 0, 0

    @property
    def found(self) -> bool:
        return bool(self.signature)

    def judge(self, case: Any, failure: tuple[str, str] | None) -> None:
        """Raises AssertionError when the case fails in the way that is searched for."""
        self._tries += self.found
        if self._tries > SHRINK_TRIES:
            raise SmallEnough
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
    (folder / "case.json").write_text(json.dumps({"arguments": case.arguments}))


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
        """Read a few cases without the guard, for what is imported, compiled and cached at the first use."""
        import hypothesis

        for case in self._target.first:
            self._read(case)

        @hypothesis.seed(0)
        @quiet_settings(30, "generate")
        @hypothesis.given(self.cases)
        def each(case: Any) -> None:
            try:
                self._read(case)
            except Exception:  # a guarded case will show it
                return

        each()

    def _read(self, case: Any) -> None:
        folder, output = self._fresh(case)
        self._target.read(folder, output, case.arguments)

    def _fresh(self, case: Any) -> tuple[Path, Path]:
        """The case's folder, rewritten, beside the images that lists name; and an empty folder for output."""
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
        """(kind, full description) of the failure; None when there is none."""
        from tests.fuzz.guard import Escape

        folder, output = self._fresh(case)
        try:
            with self._guard.watch():
                self._target.read(folder, output, case.arguments)
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
            kind = "files changed outside the output folder"
            return kind, f"{kind}: {changed[:5]}"
        return None


# Modules that read cases, by target: imported before the guard is armed.
_WEIGHTS = "convert hub info read torch_files safetensors_files"
_IMAGES = "data.class_folders data.invalid data.lists data.signatures data.sixteen_bit data.undecodable "
_LISTS = f"{_IMAGES}data.packs engine.pretrain evaluation.masks evaluation.multilabel integrations.prepare weights.zoo"
READERS = {
    "configs": ("config.invalid", "integrations.yaml_files"),
    "overrides": ("config.invalid",),
    "resumes": ("config.invalid", "engine.record", "weights.pickles", "weights.recorded"),
    "weights": ("config.invalid", *(f"weights.{name}" for name in _WEIGHTS.split())),
    "packs": ("data.datasets", *_IMAGES.split()),
    "lists": (*_LISTS.split(), *(f"visualize.{name}" for name in ("report", "schedule", "views"))),
}
_CODECS = "ascii latin1 unicode_escape raw_unicode_escape utf-8-sig cp437 "
_CODECS += "utf-16 utf-16-le utf-16-be utf-32 utf-32-le utf-32-be"


def import_everything(name: str) -> None:
    import codecs
    import importlib

    for codec in _CODECS.split():
        codecs.lookup(codec)
    for module in ("numpy.ma", "xml.etree.ElementTree", "html.parser", "pwd"):
        importlib.import_module(module)
    for module in READERS[name]:
        importlib.import_module(f"passl_densecl.{module}")


def signature(error: BaseException, kind: str) -> str:
    """Distinguishes failures: the kind, and the place in the project."""
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if f"{os.sep}passl_densecl{os.sep}" in frame.filename and "/tests/" not in frame.filename:
            place = f"{Path(frame.filename).name}:{frame.name}"
    text = re.sub(r"\d+|'[^']*'", "…", str(error))[:60] if kind == "Violation" else ""
    return f"{kind} in {place} {text}".strip()


def replay(folder: Path) -> int:
    """Read one kept case and print the result."""
    from tests.fuzz.cases import Case

    record = json.loads((folder / "case.json").read_text())
    files = {
        str(path.relative_to(folder / "files")): path.read_bytes()
        for path in (folder / "files").rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    name = next(name for name in NAMES if name in folder.resolve().parts)
    with tempfile.TemporaryDirectory(prefix="passl-fuzz-") as scratch:
        os.environ.update(child_environment(Path(scratch)))
        failure = Reader(name, Path(scratch)).failure(Case(files, tuple(record["arguments"])))
        os.chdir(ROOT)
    print(failure[1] if failure else "read without a failure")
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
