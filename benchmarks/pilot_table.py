"""The variants of benchmarks/dense_pilot.py over several seeds: a table and a picture of their differences from one.

    python -m benchmarks.pilot_table dense_pilot_s0.json dense_pilot_s1.json dense_pilot_s2.json --picture pilot.png

A variant counts when every file holds it. Differences are paired over seeds and images; ± joins the standard errors
over both. Those of place R² are over seeds alone, since the files do not hold its parts.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reproduce import Figure, draw
from benchmarks.scenes import joined, judged_pairs
from passl_densecl.cli.command import Parser, command
from passl_densecl.errors import InputError

TITLES = {"correspondence": "Δ correspondences", "place": "Δ place R²"}


def compare(files: list[dict[str, Any]], base: str, images: int) -> tuple[str, dict[str, dict[str, list[Figure]]]]:
    """The table, and for each variant the points and errors of its differences, for the picture."""
    kinds = [kind for kind in files[0] if all(kind in one for one in files)]
    if base not in kinds:
        raise InputError(f"expected the variant {base!r} in every file, found in all of them: {', '.join(kinds)}")
    lines = [
        f"| variant | dense loss, top-1 | correspondences | − {base}, each seed | mean of the seeds "
        f"| place R² | − {base} |",
        "|---" * 7 + "|",
    ]
    rows: dict[str, dict[str, list[Figure]]] = {}
    for kind in kinds:
        pairs = [(judged_pairs(one[base], images), judged_pairs(one[kind], images)) for one in files]
        last = [one[kind]["last_epoch"] for one in files]
        loss, top1 = (float(np.mean([one[name] for one in last])) for name in ("dense_loss", "dense_top1"))
        place = np.array([one[kind]["place"] for one in files])
        cells = [kind, f"{loss:.2f}, {100 * top1:.0f} %", f"{100 * np.mean([after.value for _, after in pairs]):.1f} %"]
        if kind == base:
            lines.append("| " + " | ".join([*cells, "", "", f"{place.mean():.3f}", ""]) + " |")
            continue
        mean, over_seeds, over_images = joined("correspondence", pairs)
        gains = [100 * (after.value - before.value) for before, after in pairs]
        moved = place - [one[base]["place"] for one in files]
        spread = float(np.std(moved, ddof=1) / math.sqrt(len(moved))) if len(moved) > 1 else math.nan
        error = math.hypot(0.0 if math.isnan(over_seeds) else over_seeds, over_images)
        cells += [", ".join(f"{gain:+.1f}" for gain in gains), f"{100 * mean:+.1f} ± {100 * error:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{place.mean():.3f}", f"{moved.mean():+.3f} ± {spread:.3f}"]) + " |")
        rows[kind] = {
            "correspondence": [
                Figure(gain / 100, joined("correspondence", [pair])[2]) for gain, pair in zip(gains, pairs, strict=True)
            ],
            "place": [Figure(float(one), 0.0) for one in moved],
        }
    return "\n".join(lines), rows


@command
def main(words: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="F.json", help="of benchmarks.dense_pilot, one a seed")
    parser.add_argument("--base", default="published", help="the variant to compare with (default: %(default)s)")
    parser.add_argument("--images", type=int, default=101, help="that the pairs are of (default: %(default)s)")
    parser.add_argument("--picture", type=Path, metavar="F.png", help="also draw the differences, a point a seed")
    args = parser.parse_args(words)
    table, rows = compare([json.loads(one.read_text()) for one in args.files], args.base, args.images)
    print(table)
    if args.picture:
        draw(rows, TITLES, args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
