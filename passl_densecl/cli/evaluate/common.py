"""What the verbs share: the options of backbones, loading them, progress bars, tables and the JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import passl_densecl
from passl_densecl.config import DEPTHS, BackboneOptions
from passl_densecl.data.datasets import ImageSet, Transforms
from passl_densecl.errors import InputError
from passl_densecl.transforms import CenterCrop, Resize

if TYPE_CHECKING:
    from passl_densecl.evaluation import Features
    from passl_densecl.models import ResNetBackbone

RANDOM = "random"
Bar = Callable[[int, int], None]


def add_backbone_options(parser: argparse.ArgumentParser) -> None:
    """Which backbones, and what no weight file says of them."""
    parser.add_argument(
        "--weights",
        required=True,
        nargs="+",
        metavar="W",
        help="checkpoints, run folders or weight files, and 'random' for untrained ones: a column each",
    )
    parser.add_argument(
        "--depth", type=int, choices=DEPTHS, help="of random weights (default: as the first other weights)"
    )
    parser.add_argument(
        "--stem_stride", type=int, choices=(4, 2, 1), help="default: as the run's config.yaml says, else 4"
    )
    parser.add_argument(
        "--last_stride", type=int, choices=(2, 1), help="default: as the run's config.yaml says, else 2"
    )
    parser.add_argument("--encoder", choices=("query", "key"), default="query", help="of a pre-training checkpoint")
    parser.add_argument(
        "--seed", type=int, default=0, help="of random weights, and of whatever else is drawn (default: 0)"
    )


def add_folders(parser: argparse.ArgumentParser, bank: str) -> None:
    """Two labeled folders, and how large their images are."""
    parser.add_argument("--train", required=True, metavar="DIR", help=f"labeled images, one folder a class: {bank}")
    parser.add_argument("--val", required=True, metavar="DIR", help="labeled images to classify")
    add_size(parser)


def add_size(parser: argparse.ArgumentParser, default: int = 224) -> None:
    parser.add_argument("--size", type=int, default=default, help="pixels of the center crop (default: %(default)s)")


def add_sweep(parser: argparse.ArgumentParser, epochs: int) -> None:
    """The options of linear classifiers on cached features."""
    parser.add_argument(
        "--lr",
        type=float,
        nargs="+",
        default=[0.001, 0.003, 0.01, 0.03, 0.1, 0.3],
        metavar="X",
        help="learning rates to choose from (default: 0.001 to 0.3)",
    )
    parser.add_argument(
        "--weight_decay",
        type=float,
        nargs="+",
        default=[0.0, 0.0001, 0.001, 0.01],
        metavar="X",
        help="and weight decays (default: 0 to 0.01)",
    )
    parser.add_argument("--epochs", type=int, default=epochs, help="over the cached features (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=256, help="of the classifiers (default: %(default)s)")


def check_common(args: argparse.Namespace) -> None:
    """Mistakes that need no images to be seen. Raises InputError."""
    for name, least in (
        ("size", 8),
        ("epochs", 1),
        ("batch_size", 1),
        ("copies", 1),
        ("pairs", 1),
        ("samples", 1),
        ("folds", 2),
        ("splits", 1),
        ("dim", 64),
        ("cells", 1),
    ):
        value = getattr(args, name, None)
        if value is not None and value < least:
            raise InputError(f"expected --{name} of at least {least}, got {value}")
    for name in ("output", "picture"):
        path = getattr(args, name, None)
        if path is not None and not path.resolve().parent.is_dir():
            raise InputError(f"--{name} {path}: no folder {str(path.parent)!r}; make it first")


# ---------------------------------------------------------------- backbones


def backbones(args: argparse.Namespace) -> Iterator[tuple[str, ResNetBackbone]]:
    """(column title, backbone in eval mode) for each of --weights, one at a time.

    Random weights without --depth are those of the first other backbone before it was trained: same depth and strides.
    """
    from passl_densecl.evaluation import load_backbone, untrained_like

    def load(path: str) -> ResNetBackbone:
        options = BackboneOptions(args.depth, args.stem_stride, args.last_stride)
        return load_backbone(path, options, seed=args.seed, encoder=args.encoder)

    others = [path for path in args.weights if path != RANDOM]
    for title, path in zip(titles(args.weights), args.weights, strict=True):
        if path == RANDOM and args.depth is None and others:
            yield title, untrained_like(load(others[0]), args.seed)
        else:
            yield title, load(path)


def titles(weights: Sequence[str]) -> list[str]:
    """Short and different names: the last part of a path, or as many as it takes."""
    if len(set(weights)) < len(weights):
        raise InputError("--weights names one file twice; leave it out once")
    for parts in range(1, 20):
        names = ["/".join(Path(one).parts[-parts:]) if one != RANDOM else one for one in weights]
        if len(set(names)) == len(weights):
            return names
    return list(weights)


def labeled(args: argparse.Namespace) -> tuple[ImageSet, ImageSet]:
    """The images of --train and --val."""
    from passl_densecl.data.datasets import check_decodable, scan_images

    train = scan_images(args.train, labeled=True)
    val = scan_images(args.val, labeled=True, classes=train.classes)
    for images in (train, val):
        check_decodable(images)
    return train, val


def center(size: int) -> Transforms:
    """The test transforms of the field: the shorter side to 8/7 of the size, then its middle."""
    return (Resize(size=round(size * 256 / 224)), CenterCrop(size=size))


def workers(size: int) -> int:
    """How many processes decode."""
    from passl_densecl.data.loader import choose_workers

    return choose_workers("auto", batch_bytes=3 * 64 * size**2, world_size_local=1)[0]


def features(title: str, backbone: ResNetBackbone, images: ImageSet, transforms: Transforms, size: int) -> Features:
    """Pooled vectors under a progress bar; images that cannot be decoded are named."""
    from passl_densecl.evaluation import pooled_features

    with progress(title) as bar:
        found = pooled_features(backbone, images, transforms, num_workers=workers(size), progress=bar)
    warn_of_bad(images, found.bad)
    return found


def warn_of_bad(images: ImageSet, bad: Sequence[int]) -> None:
    if bad:
        import sys

        print(
            f"warning  {len(bad):,} images cannot be decoded, such as {images.path(bad[0])!r}; another one took the place "
            "of each, label and all",
            file=sys.stderr,
        )


# ---------------------------------------------------------------- what users see


@contextlib.contextmanager
def progress(title: str) -> Iterator[Bar]:
    """A bar on the terminal while it lasts; called with (done, total)."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(transient=True, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def percent(value: float, error: float | None = None) -> str:
    """'52.9 ± 0.8 %', the second number a standard error."""
    if value is None or math.isnan(value):
        return "–"
    if error is None or math.isnan(error):
        return f"{100 * value:.2f} %"
    return f"{100 * value:.2f} ± {100 * error:.2f} %"


def binomial(share: float, count: int) -> float:
    """Standard error of a share of `count` independent cases."""
    return math.sqrt(max(share * (1 - share), 0) / count)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need be, the first to the left and the others to the right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    shown = [
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([shown[0], "  ".join("─" * width for width in widths), *shown[1:]])


def save(args: argparse.Namespace, text: str, figures: Mapping[str, Any]) -> None:
    """Verb, version, options, the table as printed (what a report shows) and every figure as JSON."""
    options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    whole = {
        "evaluation": options.pop("verb"),
        "version": passl_densecl.__version__,
        "options": options,
        "table": text,
        **figures,
    }
    args.output.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
