"""Does the dense loss help where it should? Runs of two methods, several seeds, judged on images with masks.

    python -m benchmarks.scenes --runs output/scenes --epoch 90 --data camvid --output output/scenes/judged

--runs holds the run folders METHOD_sSEED, moco_s0 and densecl_s0 for example; a seed counts when its runs of all
--methods have a checkpoint of --epoch. The first method is the one that the others are compared with. --data holds
train/, train_masks/, val/ and val_masks/. Each network is judged by the linear probe (also with every cell's
coordinates given to it, the control), by a fine-tuned segmenter (benchmarks/segmenter.py: minutes for each network), by
correspondences and by how well its features tell place; or by 20-NN and a linear classifier where train/ and val/ hold
a folder per class.
What has been judged is kept: the same command goes on, and draws table and figure anew. ± joins the standard errors
over seeds and over images; differences are paired over both, but those of place, 20-NN and linear only over seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.reproduce import Figure, K, draw, figure, say_and_run
from passl_densecl.cli.command import Parser, command
from passl_densecl.errors import InputError
from passl_densecl.evaluation.dense_probe import DenseScores, jackknife

RANDOM = ("--depth", "18", "--stem-stride", "4", "--last-stride", "1")  # as configs/small/reproduce_r18.yaml
METHODS = {"random": "random weights", "moco": "MoCo-v2", "densecl": "DenseCL", "geometry": "DenseCL, true matches"}
MEASURES = {
    "dense": "probe mIoU, %",
    "dense_with_place": "probe mIoU, place given, %",
    "segmenter": "fine-tuned mIoU, %",
    "correspondence": "correspondences, %",
    "place": "place R², %",
    "knn": f"{K}-NN top-1, %",
    "linear": "linear top-1, %",
}
SEGMENTATION = ("dense", "dense_with_place", "segmenter", "correspondence", "place")
CLASSES = ("knn", "linear")  # need folders of classes instead of masks


class Judged(NamedTuple):
    """One network by one measure: the figure, from 0 to 1, and what it is made of."""

    value: float
    groups: np.ndarray  # (images, …): what `score` turns into the figure when summed over images
    score: Callable[[np.ndarray], float]


def seeds_of(args: argparse.Namespace) -> list[int]:
    found = {
        method: {
            int(path.parts[-3].rsplit("_s", 1)[1])
            for path in args.runs.glob(f"{method}_s*/checkpoints/epoch_{args.epoch:04d}")
        }
        for method in args.methods
    }
    seeds = sorted(set.intersection(*found.values()))
    if not seeds:
        raise InputError(f"{args.runs}: no seed has epoch {args.epoch} of all methods, found {found}")
    return seeds


def judge(args: argparse.Namespace, measure: str, method: str, seed: int) -> Judged:
    """From the JSON of an evaluation, which is made unless it is there."""
    verb = "correspondence" if measure == "place" else measure
    name = f"{verb}_random" if method == "random" else f"{verb}_{method}_s{seed}_e{args.epoch:04d}"
    path = args.output / f"{name}.json"
    if not path.is_file():
        weights = [args.runs / f"{method}_s{seed}" / "checkpoints" / f"epoch_{args.epoch:04d}"]
        if method == "random":  # one for all seeds, of the runs' own kind
            weights = ["random", *RANDOM]
        folders = {"images": "train", "masks": "train_masks", "val-images": "val", "val-masks": "val_masks"}
        words = [word for option, folder in folders.items() for word in (f"--{option}", args.data / folder)]
        words += ["--size", args.size, *(["--with-place"] if measure == "dense_with_place" else [])]
        tool = ["tools/evaluate.py", verb.split("_")[0]]
        if verb in CLASSES:
            words = ["--train", args.data / "train", "--val", args.data / "val", "--size", args.size]
            words += ["--k", K] if verb == "knn" else []
        if verb == "correspondence":
            words = ["--images", args.data / "val", "--size", args.pair_size, "--count", args.pairs]
        if verb == "segmenter":
            tool, words = ["-m", "benchmarks.segmenter"], ["--data", args.data]
        say_and_run([*tool, "--weights", *weights, *words, "--json", path])
    if verb in CLASSES:
        one = figure(verb, path)
        return Judged(one.value, np.array([[one.value, one.standard_error]]), lambda group: float(group[0]))
    content = json.loads(path.read_text(encoding="utf-8"))
    *_, result = content["results"].values()  # a baseline comes first
    if measure == "place":
        return Judged(result["place"], np.array([[result["place"], result["place_error"]]]), lambda one: float(one[0]))
    if verb != "correspondence":
        groups = np.array(result["confusion_of_groups"])
        return Judged(result["miou"][0], groups, lambda one: DenseScores.of(one).miou)
    return judged_pairs(result, content["images"])


def judged_pairs(result: dict[str, Any], images: int) -> Judged:
    """Correspondences by image; their pairs were drawn from the images in turn."""
    per_image = np.zeros((images, 2))
    np.add.at(per_image, np.arange(len(result["per_pair"])) % images, np.array(result["per_pair"]))
    return Judged(result["share"], per_image, lambda one: float(one[0] / one[1]))


def joined(measure: str, per_seed: list[tuple[Judged, ...]]) -> tuple[float, float, float]:
    """Mean over the seeds of a figure, or of the second minus the first; its errors over seeds and over images."""
    values = [each[-1].value - (each[0].value if len(each) == 2 else 0.0) for each in per_seed]
    over_seeds = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    if measure in ("place", *CLASSES):  # the errors over images are not paired, and the same images serve all seeds
        errors = [one.groups[0, 1] for each in per_seed for one in each]
        return float(np.mean(values)), over_seeds, float(np.sqrt(np.square(errors).sum() / len(per_seed)))
    groups = np.stack(
        [np.stack([one.groups for one in each], axis=1) for each in per_seed], axis=1
    )  # (G, seeds, 1|2, …)
    score = per_seed[0][0].score

    def statistic(total: np.ndarray) -> float:
        return float(np.mean([score(each[-1]) - (score(each[0]) if len(each) == 2 else 0.0) for each in total]))

    return statistic(groups.sum(axis=0)), over_seeds, jackknife(groups, statistic)


def shown(mean: float, over_seeds: float, over_images: float, sign: str = "") -> str:
    error = math.hypot(0.0 if math.isnan(over_seeds) else over_seeds, over_images)
    return f"{100 * mean:{sign}.2f} ± {100 * error:.2f}"


def compare(args: argparse.Namespace) -> str:
    """Judges what is not yet judged and writes table, figures and picture. Returns the table."""
    seeds = seeds_of(args)
    names = [METHODS[method] for method in ("random", *args.methods)]
    gains = {method: f"{METHODS[method]} − {names[1]}" for method in args.methods[1:]}
    columns = [*names, *gains.values()]
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    rows: dict[str, dict[str, list[Figure]]] = {title: {} for title in names}
    found: dict[str, Any] = {}
    titles = {measure: MEASURES[measure] for measure in args.measures}
    for measure, title in titles.items():
        judged = {method: [judge(args, measure, method, seed) for seed in seeds] for method in args.methods}
        judged = {"random": [judge(args, measure, "random", 0)], **judged}
        means = {method: joined(measure, [(one,) for one in each]) for method, each in judged.items()}
        base = judged[args.methods[0]]
        gained = {gains[one]: joined(measure, list(zip(base, judged[one], strict=True))) for one in gains}
        cells = [*(shown(*one) for one in means.values()), *(shown(*one, "+") for one in gained.values())]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
        for method, each in judged.items():
            points = [Figure(one.value, joined(measure, [(one,)])[2]) for one in each]
            rows[METHODS[method]][measure] = points
        parts = ("mean", "error_over_seeds", "error_over_images")
        figures = {METHODS[method]: one for method, one in means.items()} | gained
        found[title] = {
            **{name: dict(zip(parts, one, strict=True)) for name, one in figures.items()},
            "seeds": {METHODS[method]: [one.value for one in each] for method, each in judged.items()},
        }
    note = f"epoch {args.epoch}, seeds {', '.join(map(str, seeds))}; ± one standard error, over seeds and images"
    if len(seeds) == 1:
        note = f"epoch {args.epoch}, **one seed** ({seeds[0]}): ± is over images only and says nothing of other seeds"
    table = "\n".join([*lines, "", f"({note})", ""])
    facts = {"epoch": args.epoch, "seeds": seeds, "size": args.size, "pair_size": args.pair_size, "pairs": args.pairs}
    text = json.dumps({**facts, "measures": found}, indent=1, ensure_ascii=False).replace("NaN", "null")
    (args.output / "scenes.json").write_text(text + "\n", encoding="utf-8")
    (args.output / "scenes.md").write_text(table, encoding="utf-8")
    draw(rows, titles, args.output / "scenes.png")
    return table


@command
def main(words: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, metavar="DIR", help="run folders METHOD_sSEED")
    parser.add_argument("--epoch", type=int, required=True, help="whose checkpoints are judged")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="train, train_masks, val, val_masks")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for the figures; kept")
    parser.add_argument("--size", type=int, default=360, help="pixels of the probe (default: %(default)s)")
    parser.add_argument("--pair-size", type=int, default=192, help="and of the crops (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=404, help="of crops (default: %(default)s)")
    known = [method for method in METHODS if method != "random"]
    parser.add_argument("--methods", nargs="+", choices=known, default=known[:2], help="default: moco densecl")
    parser.add_argument(
        "--measures", nargs="+", choices=MEASURES, default=SEGMENTATION, help="default: those with masks"
    )
    args = parser.parse_args(words)
    args.runs, args.data, args.output = (path.resolve() for path in (args.runs, args.data, args.output))
    args.output.mkdir(parents=True, exist_ok=True)
    print(f"\n{compare(args)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
