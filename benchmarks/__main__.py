"""Measure the project on this machine. What matters is a ratio: two things timed in turn, in the same run.

data      from image files to two augmented views, on one core: against torchvision or Pillow, and decoding alone
loss      the contrastive loss and its gradient: against concatenating all logits, in time and memory
step      one training step: DenseCL against MoCo-v2; also several processes, plain torch, where the time goes
loader    batches from worker processes: against one core without them, and whether memory stays flat
memory    of one GPU in a pre-training step, by arithmetic
device    a step on a GPU (or the CPU): DenseCL against MoCo-v2 in every precision, its memory, sizes of chunks

All but the last two are measured on the CPU. Each table says its clock: CPU time of the process where one thread
computes (other programs disturb it little), wall time where waiting is part of the answer.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import passl_densecl
from benchmarks import data, device, loader, loss, memory, step
from benchmarks.measure import machine
from passl_densecl.cli.command import Parser, check_outputs, command

VERBS = {"data": data, "loss": loss, "step": step, "loader": loader, "memory": memory, "device": device}


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, module in VERBS.items():
        verb = verbs.add_parser(name, help=module.__doc__, description=module.__doc__)
        module.add_options(verb)
        verb.add_argument("--json", type=Path, metavar="F", help="also write every figure there")
    return parser.parse_args(words)


@command
def main(words: list[str] | None = None) -> int:
    args = parse_arguments(words)
    check_outputs(args, ("json",))
    options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    before = machine()
    text, figures = VERBS[args.verb].run(args)
    print(text)
    if before["load_average"] > 0.3:
        load = f"load average {before['load_average']:.1f}"
        print(f"\nnote     others use this machine ({load}): wall times are disturbed")
    if args.json is not None:
        run = {"benchmark": args.verb, "version": passl_densecl.__version__, "options": options, "machine": before}
        content = json.dumps({**run, **figures}, indent=1, ensure_ascii=False)
        args.json.write_text(content + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
