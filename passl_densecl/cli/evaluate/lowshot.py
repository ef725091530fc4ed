"""VOC07's low-shot protocol: linear SVMs with k positives per class, k = 1, 2, 4, 8, 16, 32, 64, 96.

Five samples of k positives and (classes − 1)·k negatives of each class; mean and standard deviation of the mAP over
them. As the benchmarks do, the reported cost is the one that is best on the test images (an upper bound; with k = 1
nothing else can choose it). Images as for `svm`.
"""

from __future__ import annotations

import argparse
from typing import Any

from passl_densecl.cli.command import Parser
from passl_densecl.cli.console import progress, table
from passl_densecl.cli.evaluate import svm
from passl_densecl.cli.evaluate.common import backbones, percent


def add_options(parser: Parser) -> None:
    svm.add_options(parser)
    shots = "positives per class (default: 1 2 4 8 16 32 64 96)"
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 96], metavar="K", help=shots)
    parser.add_argument("--samples", type=int, default=5, help="samples for each k")


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from passl_densecl.evaluation.svm import COSTS, low_shot_accuracy

    train, test = svm.sets(args)
    costs = args.costs or COSTS
    results: dict[str, dict[str, Any]] = {}
    for title, backbone in backbones(args):
        bank, queries = svm.vectors(title, backbone, train, test, args)
        with progress(f"{title} SVM") as bar:
            found = low_shot_accuracy(
                bank,
                train.targets,
                queries,
                test.targets,
                shots=args.shots,
                samples=args.samples,
                costs=costs,
                seed=args.seed,
                progress=bar,
            )
        results[title] = {}
        for k, values in found.items():
            best = int(values.mean(axis=0).argmax())
            spread = float(values[:, best].std(ddof=1)) if args.samples > 1 else float("nan")
            results[title][str(k)] = {
                "map": float(values[:, best].mean()),
                "deviation": spread,
                "cost": costs[best],
                "samples": values[:, best].tolist(),
            }
    rows = [
        [f"k = {k}", *(percent(one[str(k)]["map"], one[str(k)]["deviation"]) for one in results.values())]
        for k in args.shots
    ]
    head = f"mAP ± deviation over {args.samples} samples, {len(test.images):,} images, {args.size} px"
    counts = {"train_images": len(train.images), "test_images": len(test.images)}
    return table([[head, *results], *rows]), {**counts, "results": results}
