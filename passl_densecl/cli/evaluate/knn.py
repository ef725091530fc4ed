"""Weighted k-nearest-neighbor accuracy of average-pooled features.

Each of the k images of the bank with the largest cosine votes with weight exp(cosine / temperature) (Wu et al. 2018).
"""

from __future__ import annotations

import argparse
from typing import Any

from passl_densecl.cli.console import table
from passl_densecl.cli.evaluate.common import (
    add_folders,
    backbones,
    binomial,
    center,
    features,
    figures,
    labeled,
    percent,
)
from passl_densecl.errors import InputError


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folders(parser, "the bank")
    parser.add_argument("--k", type=int, nargs="+", help="neighbors (default: those of 10 20 100 200 that there are)")
    parser.add_argument("--temperature", type=float, default=0.07, help="divides the similarities, above 0")


def run(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    if min(args.k or [1]) < 1 or args.temperature <= 0:
        raise InputError(f"expected --k of at least 1 and --temperature above 0, got {args.k} and {args.temperature:g}")
    train, val = labeled(args)
    ks = args.k or [k for k in (10, 20, 100, 200) if k <= len(train)] or [len(train)]
    if max(ks) > len(train):
        raise InputError(f"--k {max(ks)}: {args.train!r} holds only {len(train)} images")
    from passl_densecl.evaluation.knn import knn_accuracies

    found: dict[str, dict[int, float]] = {}
    for title, backbone in backbones(args):
        bank, queries = (
            features(f"{title} {name}", backbone, images, center(args.size), args.size)
            for name, images in (("train", train), ("val", val))
        )
        found[title] = knn_accuracies(bank.vectors, bank.labels, queries.vectors, queries.labels, ks, args.temperature)
    rows = [[f"{k}-NN", *(percent(column[k], binomial(column[k], len(val))) for column in found.values())] for k in ks]
    head = [f"top-1, {len(val):,} images, bank of {len(train):,}, {args.size} px", *found]
    results = {
        title: {
            "top1": {str(k): value for k, value in column.items()},
            "standard_error": {str(k): binomial(value, len(val)) for k, value in column.items()},
        }
        for title, column in found.items()
    }
    return table([head, *rows]), figures(train, val, results)
