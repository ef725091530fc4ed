"""What a contributor with GPUs runs (`make test-gpu`): tests that depend on the device, the self-test, benchmarks.

Everything is written as one page of Markdown, to send in. `--device cpu --small` runs the same code on a CPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What computes on Paddle's own choice of device, which is a GPU where there is one.
TESTS = ["tests/models", "tests/distributed", "tests/engine/test_amp.py", "tests/engine/test_guard.py"]
TESTS += ["tests/engine/test_resume.py", "tests/engine/test_distributed.py", "tests/evaluation", "tests/doctor"]
SMALL_TESTS = ["tests/test_schedules.py"]
SMALL_STEP = ["--depth", "18", "--size", "32", "--batch", "2", "--queue-len", "128", "--rounds", "1"]


def parts(args: argparse.Namespace) -> dict[str, list[str]]:
    """Title → command (without Python) of every section."""
    python = ["-m", "pytest", "-p", "no:cacheprovider", "--no-header"]
    benchmark = ["tools/benchmark.py", "device", "--device", args.device]
    figures = ["--json", str(args.output.with_suffix(".doctor.json"))]
    self_test = [] if args.small else ["--self-test", *(["--devices", "cpu:2"] if args.device == "cpu" else [])]
    found = {
        "This machine": ["tools/doctor.py", *self_test, *figures],
        "Tests": [*python, *(SMALL_TESTS if args.small else TESTS)],
        "A training step": [*benchmark, *(SMALL_STEP if args.small else [])],
    }
    if args.data:
        found["Loading images"] = ["tools/benchmark.py", "loader", "--root", str(args.data)]
    return found


def run(command: list[str], seconds: float) -> tuple[int, str]:
    """(Exit code, the end of what it printed)."""
    try:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return 124, f"no end within {seconds:.0f} s"
    errors = [line for line in done.stderr.splitlines() if "Warning" not in line] if done.returncode else []
    return done.returncode, "\n".join([*done.stdout.strip().splitlines(), *errors][-120:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu.md"), help="the page (default: %(default)s)")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="(default: %(default)s)")
    parser.add_argument("--data", type=Path, help="a folder of images: how fast they are loaded")
    parser.add_argument("--small", action="store_true", help="the smallest sizes, to try this program")
    args = parser.parse_args()
    args.output = args.output.resolve()
    codes, page = [], [f"# passl_densecl on a {args.device.upper()}, {time.strftime('%Y-%m-%d')}"]
    for title, command in parts(args).items():
        print(f"{title}: python {' '.join(command)}", flush=True)
        began = time.perf_counter()
        code, text = run(command, 3600)
        took = f"Exit code {code}, {time.perf_counter() - began:.0f} s."
        shown = " ".join(command).replace(str(args.output.parent), ".")
        page += [f"## {title}", f"`python {shown}`", f"```text\n{text}\n```", took]
        args.output.write_text("\n\n".join(page) + "\n", encoding="utf-8")
        codes.append(code)
    print(f"wrote {args.output}")
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
