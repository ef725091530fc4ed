"""Say whether this machine is ready to train, and what to do where it is not.

Looks at Python, Paddle, the GPUs and their libraries, memory and disk. --self-test then trains on the chosen devices:
losses against the original implementation's, other precisions, several processes, a resumed run, speed. A minute on a
GPU, some on a CPU. The page and doctor.json name no person, host or folder: paste them into an issue.

Exit code 0: ready, perhaps with warnings; 1: there are problems.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import passl_densecl
from passl_densecl.cli.command import Parser, Verb
from passl_densecl.cli.launch import Devices, parse_devices
from passl_densecl.doctor import checks
from passl_densecl.doctor.findings import Finding, without_private
from passl_densecl.errors import InputError
from passl_densecl.text import quantity

DEVICES = "of --self-test: 0,1 or all GPUs, cpu, or cpu:2 (default: all GPUs, without any cpu:2)"
STEPS = "of the reference that --self-test repeats, 1 to 5"


def add_options(parser: Parser) -> None:
    parser.add_argument("--self-test", action="store_true", help="also train: minutes")
    parser.add_argument("--devices", metavar="D", help=DEVICES)
    parser.add_argument("--steps", type=int, choices=range(1, 6), default=5, metavar="N", help=STEPS)
    parser.add_argument("--json", type=Path, default=Path("doctor.json"), metavar="F", help="the same as JSON")


def examine(args: argparse.Namespace) -> Iterator[tuple[str, Finding]]:
    """(Part, finding), as they are found."""
    for finding in checks.inspect():
        yield "checks", finding
    if not args.self_test:
        return
    facts, why = checks.build()
    if facts is None:
        yield "self_test", Finding("problem", "self-test", without_private(f"Paddle cannot be imported: {why}"))
        return
    from passl_densecl.doctor.self_test import Plan, self_test

    try:
        usable = checks.has_cuda() and checks.nvidia().gpus
        devices = parse_devices(args.devices or ("all" if usable else "cpu:2"))
    except InputError as error:
        yield "self_test", Finding("problem", "self-test", str(error))
        return
    assert isinstance(devices, Devices)
    with tempfile.TemporaryDirectory(prefix="densecl_doctor_") as folder:
        for finding in self_test(Plan(devices.gpus, devices.count, Path(folder), args.steps)):
            yield "self_test", finding


def run(args: argparse.Namespace) -> int:
    """Print every finding as it comes, and write all of them so far to the JSON file, because a later check may crash.

    A file that cannot be written is named at the end; the answer does not depend on it.
    """
    found, unwritten = {"checks": list[Finding]()}, ""
    print(f"passl_densecl {passl_densecl.__version__}", flush=True)
    for part, finding in examine(args):
        found.setdefault(part, []).append(finding)
        print(finding.text(), flush=True)
        content = {name: [vars(one) for one in findings] for name, findings in found.items()}
        document = {"passl_densecl": passl_densecl.__version__, **content}
        try:
            args.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            unwritten = f"{args.json} cannot be written: {error.strerror}"
    everything = [one.status for findings in found.values() for one in findings]
    problems, warnings = everything.count("problem"), everything.count("warning")
    print(f"{quantity(problems, 'problem')}, {quantity(warnings, 'warning')}; {unwritten or f'wrote {args.json}'}")
    return int(problems > 0)


EXAMPLES = ("doctor", "doctor --self-test", "doctor --self-test --devices cpu:2")
main = Verb(__doc__, add_options, run, examples=EXAMPLES, outputs=())
