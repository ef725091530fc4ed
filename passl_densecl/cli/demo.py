"""Pre-train, extract, evaluate and look, on real photographs or on yours, in minutes on a CPU."""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from passl_densecl.cli.command import Parser, Verb
from passl_densecl.config import LinearConfig, PretrainConfig, load_config, path_text
from passl_densecl.data.datasets import ImageSet, decode, scan_images
from passl_densecl.data.image_set import spread
from passl_densecl.errors import InputError
from passl_densecl.text import quantity
from passl_densecl.transforms import CenterCrop, Resize, output_size

PACKAGE = Path(__file__).resolve().parents[1]
PRETRAIN, LINEAR = "demo/densecl_r18", "demo/linear_r18"
MARKER = ".made_by_demo"  # a folder with it may be emptied

# Photographs inside the wheels of scikit-image and scikit-learn: nothing is downloaded. The class is the photograph.
PHOTOGRAPHS = {
    "camera": ("skimage", "data/camera.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "coins": ("skimage", "data/coins.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
}
UNSEEN = ("skimage", "data/astronaut.png")  # kept out of the image set; the picture is of it

TILE = 96  # pixels
TRAIN_STRIDE = 48  # training tiles overlap
TRAIN_TILES_MAX = 48  # of one photograph, so that the largest does not outweigh the others
VAL_TILES_MAX = 12
VAL_SHARE = 1 / 4  # of a photograph's width

USER_TRAIN_MAX, USER_VAL_MAX = 1000, 250  # images of a user's folder; the demo takes minutes, whatever its size
NEIGHBORS = 20
PAIRS = 128  # of views, for each kind of correspondences
MAP_SCALE = 2  # correspondences are measured on maps so much larger than in training: with few cells, chance is high
CORRESPONDENCES: dict[str, dict[str, Any]] = {
    "crops": {"flip": 0.0, "photometric": ()},
    "augmented": {},  # also flips, colors and blur, as in training
}
CONTRASTIVE_STEPS = 6  # steps over which contrastive top-1 is averaged
PICTURE_SIZE = 224  # pixels a side that the backbone sees


# --- photographs into tiles ----------------------------------------------------------------------------------------


class Region(NamedTuple):
    """A rectangle of a photograph, in pixels; bottom and right are outside it."""

    top: int
    left: int
    bottom: int
    right: int


def split_regions(height: int, width: int) -> tuple[list[Region], Region]:
    """(train, val) regions that share no pixel: a strip in the middle for val, what is left and right of it for train.

    The strip is a whole number of tiles wide.
    """
    strip = TILE * max(1, round(width * VAL_SHARE / TILE))
    left = (width - strip) // 2
    right = left + strip
    return [Region(0, 0, height, left), Region(0, right, height, width)], Region(0, left, height, right)


def tiles_of(region: Region, stride: int) -> list[Region]:
    """All whole TILE×TILE tiles of a region, `stride` apart."""
    tops = range(region.top, region.bottom - TILE + 1, stride)
    lefts = range(region.left, region.right - TILE + 1, stride)
    return [Region(top, left, top + TILE, left + TILE) for top in tops for left in lefts]


def plan_tiles(height: int, width: int) -> tuple[list[Region], list[Region]]:
    """(train, val) tiles of a height×width photograph; no pixel is in both.

    Training tiles may overlap each other, validation tiles do not.
    """
    train_regions, val_region = split_regions(height, width)
    train = [tile for region in train_regions for tile in tiles_of(region, TRAIN_STRIDE)]
    val = tiles_of(val_region, TILE)
    return [train[n] for n in spread(len(train), TRAIN_TILES_MAX)], [val[n] for n in spread(len(val), VAL_TILES_MAX)]


def photograph(package: str, name: str) -> Path:
    """The path of a file inside an installed package. Raises InputError when it is not there."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise InputError(
            "the demo's photographs are in two packages: pip install scikit-image scikit-learn (or --data DIR)"
        )
    path = Path(spec.origin).parent / name
    if not path.is_file():
        raise InputError(f"no {path}: this version of {package} ships other photographs; give --data DIR")
    return path


def build_image_set(folder: Path) -> None:
    """Write train/PHOTOGRAPH/*.jpg and val/PHOTOGRAPH/*.jpg under `folder`."""
    for name, source in PHOTOGRAPHS.items():
        image = decode(str(photograph(*source)))
        for split, tiles in zip(("train", "val"), plan_tiles(*image.shape[:2]), strict=True):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for tile in tiles:
                pixels = image[tile.top : tile.bottom, tile.left : tile.right]
                file = folder / split / name / f"{name}_{tile.top:04d}_{tile.left:04d}.jpg"
                cv2.imwrite(str(file), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])


# --- what to train and evaluate on ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Where images are: a folder, or those of it that a list names."""

    root: str
    list_file: str | None = None

    def settings(self, section: str) -> list[str]:
        """Overrides of a section of a config."""
        root = [f"{section}.root={path_text(self.root)}"]
        return root if self.list_file is None else [*root, f"{section}.list_file={self.list_file}"]


@dataclass(frozen=True)
class Images:
    """What the demo runs on. Pre-training sees the images of `train` without their labels."""

    pretrain: Split
    train: Split
    val: Split
    labeled: bool
    picture: str  # the image of which two views are matched
    notes: list[str]


def photographs(output: Path) -> Images:
    """The tiles of the packages' photographs, written under `output`/images."""
    folder = output / "images"
    build_image_set(folder)
    train, val = Split(str(folder / "train")), Split(str(folder / "val"))
    notes = [
        f"{len(PHOTOGRAPHS)} photographs that ship inside scikit-image and scikit-learn, cut into tiles of {TILE} "
        "pixels; the class of a tile is its photograph",
        "training and validation tiles share no pixel; the photograph of the picture is in neither",
    ]
    return Images(train, train, val, True, str(photograph(*UNSEEN)), notes)


def user_folder(data: Path, output: Path) -> Images:
    """A user's folder: DIR/train and DIR/val, or one of which every fifth image (of a class) is for validation."""

    def labeled_or_not(root: Path) -> ImageSet:
        try:
            found = scan_images(root, labeled=True)
            return found if len(found.classes) > 1 else scan_images(root)
        except InputError:
            return scan_images(root)

    lists = output / "lists"
    lists.mkdir(parents=True)
    if (data / "train").is_dir() and (data / "val").is_dir():
        train, val = labeled_or_not(data / "train"), labeled_or_not(data / "val")
        chosen = [(train, list(range(len(train)))), (val, list(range(len(val))))]
        labeled = train.labels is not None and val.labels is not None and train.classes == val.classes
        notes = [f"train and val under {data}"]
    else:
        found = labeled_or_not(data)
        labeled = found.labels is not None
        groups = np.zeros(len(found), np.int64) if found.labels is None else found.labels
        place = np.empty(len(found), np.int64)  # within its class
        for group in np.unique(groups):
            members = np.flatnonzero(groups == group)
            place[members] = np.arange(len(members))
        is_val = place % 5 == 4
        chosen = [(found, np.flatnonzero(~is_val).tolist()), (found, np.flatnonzero(is_val).tolist())]
        notes = [f"{found.describe()}; every fifth{' of a class' if labeled else ''} is for validation"]
    if not all(indices for _, indices in chosen):
        raise InputError(f"{data}: too few images to keep some for validation; expected a few hundred")
    if not labeled:
        notes.append("no folder for each class: without the k-NN and linear rows")

    splits = []
    for name, most, (images, indices) in zip(("train", "val"), (USER_TRAIN_MAX, USER_VAL_MAX), chosen, strict=True):
        kept = [indices[n] for n in spread(len(indices), most)]
        if len(kept) < len(indices):
            notes.append(f"{name}: {len(kept):,} of the {len(indices):,} images, so that the demo takes minutes")
        paths = [os.path.join(".", os.path.relpath(images.path(index), images.root)) for index in kept]
        _write_lines(lists / f"{name}.txt", paths)
        if labeled and images.labels is not None:
            rows = [f"{path} {images.labels[index]}" for path, index in zip(paths, kept, strict=True)]
            _write_lines(lists / f"{name}_labeled.txt", rows)
        splits.append(Split(images.root, str(lists / f"{name}.txt")))
    with_labels = [
        Split(split.root, str(lists / f"{name}_labeled.txt"))
        for split, name in zip(splits, ("train", "val"), strict=True)
    ]
    picture = chosen[1][0].path(chosen[1][1][0])
    train_split, val_split = with_labels if labeled else splits
    return Images(splits[0], train_split, val_split, labeled, picture, notes)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_bytes(b"".join(os.fsencode(line) + b"\n" for line in lines))


# --- running commands ----------------------------------------------------------------------------------------------


@dataclass
class Stopwatch:
    """Seconds of each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        print(f"\n── {title} {'─' * max(0, 100 - len(title))}", flush=True)
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began


def run(*command: str) -> None:
    """Print a verb of `densecl` as one would type it, and run it. Raises InputError when it fails."""
    print("$ " + shlex.join(["densecl", *command]), flush=True)
    # The launcher imports Paddle before this package, which silences the warning, is imported.
    quiet = {"PYTHONWARNINGS": "ignore:No ccache found:UserWarning", "PYTHONUNBUFFERED": "1"}
    paths = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    words, pipe = [sys.executable, "-m", "passl_densecl", *command], subprocess.PIPE
    environment = os.environ | quiet | {"PYTHONPATH": paths}
    process = subprocess.Popen(
        words, env=environment, text=True, errors="replace", stdout=pipe, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip():
            print("  " + line, end="", flush=True)
    if process.wait():
        raise InputError(f"that command ended with exit code {process.returncode}; its message is above")


def shown(path: Path) -> str:
    """Relative to the working folder, where it lies in it."""
    path, here = path.resolve(), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def processes(config: PretrainConfig) -> int:
    """Two on two cores or more, when the config's micro-batches can be shared."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 2 if cores >= 2 and config.micro_batch_count % 2 == 0 else 1


# --- measuring -----------------------------------------------------------------------------------------------------


def measure(weights: str, checkpoint: str, overrides: list[str], images: Images) -> dict[str, float]:
    """What needs no training, for the weights of a checkpoint or for `random` ones; runs in a process of its own."""
    from passl_densecl.distributed.device import set_device
    from passl_densecl.evaluation.correspondence import ViewSampling, correspondence_accuracy
    from passl_densecl.evaluation.features import load_backbone, pooled_features
    from passl_densecl.evaluation.knn import knn_accuracy
    from passl_densecl.weights.recorded import BackboneOptions

    warnings.filterwarnings("ignore", message="When training, we now always track")  # BatchNorm, and it is meant to
    config = pretraining_config(overrides)
    set_device(config.device)
    size = output_size(config.data.transforms)
    backbone = load_backbone(
        checkpoint if weights != "random" else weights, BackboneOptions(**asdict(config.model.backbone))
    )
    val = scan_images(images.val.root, images.val.list_file, labeled=images.labeled)
    result = contrastive_top1(config, None if weights == "random" else checkpoint)
    for name, options in CORRESPONDENCES.items():
        sampling = ViewSampling(MAP_SCALE * size, **options)
        found = correspondence_accuracy(backbone, val, sampling, pairs=PAIRS, seed=config.seed)
        result |= {name: found.share, f"{name}_chance": found.chance, f"{name}_same_place": found.same_place}
    if images.labeled:
        train = scan_images(images.train.root, images.train.list_file, labeled=True)
        whole = (Resize(size=size), CenterCrop(size=size))
        bank, queries = (pooled_features(backbone, part, whole) for part in (train, val))
        k = min(NEIGHBORS, len(train))
        result["knn"] = knn_accuracy(bank.vectors, bank.labels, queries.vectors, queries.labels, k=k)
        result["majority"] = float(np.bincount(queries.labels).max() / len(queries.labels))
    result["val_images"] = len(val)
    return result


def contrastive_top1(config: PretrainConfig, checkpoint: str | None) -> dict[str, float]:
    """How often a positive beats all negatives of a queue full of real keys, as in training but with nothing learned.

    The run itself cannot tell for random weights: its queue starts with random vectors, which everything beats.
    """
    import paddle

    from passl_densecl.data.loader import PairLoader
    from passl_densecl.engine.pretrain import build_model, choose_queue_len, encode_keys
    from passl_densecl.weights.files import read_arrays, weights_file
    from passl_densecl.weights.load import load_strict

    images = scan_images(**config.data.source())
    queue_len, _ = choose_queue_len(config, len(images))
    model = build_model(config, queue_len)
    if checkpoint is not None:
        load_strict(model, read_arrays(weights_file(checkpoint)), source=checkpoint)
    model.momentum = 1.0  # the key encoder stays as it is
    model.train()
    filling = math.ceil(queue_len / config.batch_size)
    # Another seed than the run's: other crops than those that it has seen last.
    loader = PairLoader(images, config.data.transforms, seed=config.seed + 1, batch_size=config.batch_size)
    found: list[dict[str, float]] = []
    with paddle.no_grad():
        for step, batch in loader.steps(0, filling + CONTRASTIVE_STEPS):
            keys = encode_keys(config, model, batch.key, step)
            for start in range(0, config.batch_size if step >= filling else 0, config.micro_batch_size):
                part = slice(start, start + config.micro_batch_size)
                losses = model(batch.query[part], keys.local.rows(part), config.model.loss_lambda)
                found.append({name: float(value) for name, value in losses.items()})
            model.enqueue(keys)
    terms = [name.removesuffix("_top1") for name in found[0] if name.endswith("_top1")]
    shares = {f"contrastive_{term}": float(np.mean([each[f"{term}_top1"] for each in found])) for term in terms}
    return {**shares, "contrastive_chance": 1 / (queue_len + 1)}


# --- the summary ---------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One line of the table; shares from 0 to 1."""

    name: str
    random: float
    pretrained: float
    chance: float
    samples: int  # how many independent answers the shares rest on, about
    note: str = ""


def table_rows(random: dict[str, float], pretrained: dict[str, float], views: int) -> list[Row]:
    """The lines for which there are numbers. `views`: images that contrastive top-1 was averaged over."""
    rows = []
    for key, name in (("global", "contrastive top-1, global"), ("dense", "contrastive top-1, dense")):
        if f"contrastive_{key}" in random:
            values = random[f"contrastive_{key}"], pretrained[f"contrastive_{key}"]
            # Negatives are means over positions, so a cell that knows its place but no content beats them as well.
            note = "place alone can win here: judge by the correspondences" if key == "dense" else ""
            rows.append(Row(name, *values, random["contrastive_chance"], views, note))
    for key, name in (("crops", "correspondences, crops"), ("augmented", "correspondences, all augmentations")):
        note = f"cells matched with their own place: {random[f'{key}_same_place']:.1%}"
        rows.append(Row(name, random[key], pretrained[key], random[f"{key}_chance"], PAIRS, note))
    for key, name in (("knn", f"{NEIGHBORS}-NN accuracy"), ("linear", "linear accuracy")):
        if key in random:
            rows.append(Row(name, random[key], pretrained[key], random["majority"], int(random["val_images"])))
    return rows


def verdict(row: Row) -> int:
    """1 when pre-training raised a share, -1 when it lowered it, 0 when they differ by two standard errors or less."""
    mean = (row.random + row.pretrained) / 2
    error = math.sqrt(2 * mean * (1 - mean) / row.samples)
    difference = row.pretrained - row.random
    return 0 if abs(difference) <= 2 * error else (1 if difference > 0 else -1)


def print_summary(rows: list[Row], seconds: dict[str, float], epochs: int) -> None:
    print(f"{'':<36}{'random':>10}{'pre-trained':>13}{'chance':>10}")
    for row in rows:
        note = f"   {row.note}" if row.note else ""
        print(f"{row.name:<36}{row.random:>10.1%}{row.pretrained:>13.1%}{row.chance:>10.1%}{note}")
    print()
    print(f"after {quantity(epochs, 'epoch')} of pre-training, against random weights:")
    for answer, label in ((1, "higher"), (-1, "lower"), (0, "no clear difference")):
        names = [row.name for row in rows if verdict(row) == answer]
        if names:
            print(f"  {label}: {'; '.join(names)}")
    print("clear: more than two standard errors, taken as if the columns were independent (they share their images)")
    print("a real run takes hundreds of epochs")
    print()
    each = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
    print(f"seconds: {each}; all {sum(seconds.values()):.0f}")


# --- the way -------------------------------------------------------------------------------------------------------


def demo(output: Path, data: Path | None) -> None:
    watch = Stopwatch()
    where = shown(output)
    with watch.stage("images", "images"):
        prepare(output)
        images = photographs(Path(where)) if data is None else user_folder(Path(shown(data)), Path(where))
        for note in images.notes:
            print(note)

    overrides = [f"output_dir={where}", *images.pretrain.settings("data")]
    if data is not None:
        overrides.append(f"epochs={epochs_for(images.pretrain)}")
    config = pretraining_config(overrides)
    run_dir = f"{where}/{config.name}"
    weights = f"{where}/{config.name}.pdparams"
    with watch.stage("pre-training", "pre-training, without labels"):
        run("train", PRETRAIN, "--devices", f"cpu:{processes(config)}", *overrides)
    checkpoint = f"{run_dir}/checkpoints/epoch_{config.epochs:04d}"
    with watch.stage("extraction", "the backbone alone"):
        run("extract", checkpoint, "--output", weights, "--remove_prefix")

    linear: dict[str, float] = {}
    if images.labeled:
        with watch.stage("linear evaluation", "linear evaluation, of the pre-trained and of a random backbone"):
            for name, source in (("pretrained", weights), ("random", "random")):
                linear[name] = linear_accuracy(name, source, images, where)
    picture, random_picture = f"{where}/match.png", f"{where}/match_random.png"
    size = ["--size", str(PICTURE_SIZE)]
    untrained = ["--depth", str(config.model.depth), "--stem-stride", str(config.model.stem_stride)]
    with watch.stage("pictures", "pictures: the same two views, matched by both backbones"):
        match = ["plot", "match", images.picture]
        run(*match, "--weights", checkpoint, "--output", picture, *size)
        run(*match, "--weights", "random", *untrained, "--output", random_picture, *size)
    with watch.stage("measurements", "correspondences, neighbors and contrastive top-1, of both backbones"):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes(config), mp_context=context) as pool:
            futures = [pool.submit(measure, kind, checkpoint, overrides, images) for kind in ("random", "pretrained")]
            random, pretrained = (future.result() for future in futures)
    for name, result in (("random", random), ("pretrained", pretrained)):
        if name in linear:
            result["linear"] = linear[name]

    rows = table_rows(random, pretrained, CONTRASTIVE_STEPS * config.batch_size)
    print(f"\n── summary {'─' * 92}")
    print_summary(rows, watch.seconds, config.epochs)
    summary = {
        "random": random,
        "pretrained": pretrained,
        "seconds": watch.seconds,
        "epochs": config.epochs,
        "last_logged_step": json.loads((Path(run_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]),
        "picture": picture,
        "weights": weights,
    }
    (Path(where) / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(f"picture  {picture} (with random weights: {random_picture})")
    print(f"numbers  {where}/summary.json\nweights  {weights}")


def pretraining_config(overrides: Sequence[str] = ()) -> PretrainConfig:
    config = load_config(PRETRAIN, overrides)
    assert isinstance(config, PretrainConfig)
    return config


def epochs_for(split: Split) -> int:
    """So many that about as many images are seen as with the photographs, of which there are 600."""
    return max(1, round(pretraining_config().epochs * 600 / len(scan_images(split.root, split.list_file))))


def linear_accuracy(name: str, source: str, images: Images, where: str) -> float:
    """Train a classifier on a backbone and evaluate its best epoch; top-1 from 0 to 1."""
    config = load_config(LINEAR)
    assert isinstance(config, LinearConfig)
    run_name = f"linear_{name}"
    data = [*images.train.settings("data.train"), *images.val.settings("data.val")]
    options = ["--name", run_name, f"output_dir={where}", *data]
    count = 2 if config.batch_size % 2 == 0 and (os.cpu_count() or 1) >= 2 else 1
    run("train", LINEAR, *options, "--devices", f"cpu:{count}", "--pretrained", source)
    best = best_checkpoint(Path(where) / run_name)
    run("train", LINEAR, *options, "--load", shown(best), "--evaluate-only")
    return float(json.loads((Path(where) / run_name / "evaluation.json").read_text(encoding="utf-8"))["top1"])


def best_checkpoint(run_dir: Path) -> Path:
    """The checkpoint of a linear run that its newest one calls the best."""
    from passl_densecl.reliability.checkpoint import STATE, complete

    checkpoints = complete(run_dir / "checkpoints")
    state = json.loads((checkpoints[-1] / STATE).read_text(encoding="utf-8"))
    return run_dir / "checkpoints" / state["best"]["name"]


def prepare(output: Path) -> None:
    """An empty folder. Empties one that the demo made, and refuses any other that holds something."""
    if output.is_dir() and any(output.iterdir()):
        if not (output / MARKER).is_file():
            raise InputError(f"--output {output}: this folder holds files that the demo did not make; choose another")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKER).touch()


def add_options(parser: Parser) -> None:
    data = "your images, in a folder for each class or in any layout (default: photographs of PyPI packages)"
    output = "folder to write; one that the demo made is emptied"
    parser.add_argument("--output", type=Path, default=Path("output/demo"), metavar="DIR", help=output)
    parser.add_argument("--data", type=Path, metavar="DIR", help=data)


def run_demo(args: argparse.Namespace) -> None:
    if args.data is not None and not args.data.is_dir():
        raise InputError(f"--data {args.data}: no such folder")
    demo(args.output.resolve(), None if args.data is None else args.data.resolve())


main = Verb(__doc__, add_options, run_demo, examples=("demo", "demo --data photos"), outputs=())
