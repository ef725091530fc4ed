"""Pictures: what training sees, how runs went, what a backbone has learned: python tools/visualize.py VERB --help"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from passl_densecl.cli.command import command
from passl_densecl.config import DEPTHS, BackboneOptions, PretrainConfig
from passl_densecl.data.datasets import decode, scan_images
from passl_densecl.disk import whole_file
from passl_densecl.errors import InputError
from passl_densecl.text import plural, printable
from passl_densecl.transforms import Resize
from passl_densecl.visualize.style import check_output, need_matplotlib, save_figure

REPORT = "report.html"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Pictures of what training sees, how runs went and what a backbone has learned."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_match(verbs)
    _add_heatmap(verbs)
    _add_pca(verbs)
    _add_embedding(verbs)
    _add_views(verbs)
    _add_schedule(verbs)
    _add_curves(verbs)
    _add_report(verbs)
    return parser.parse_args(arguments)


def _verb(
    verbs: argparse._SubParsersAction, run: Callable, name: str, short: str, long: str
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=short, description=long)
    parser.set_defaults(run=run)
    return parser


def _add_match(verbs: argparse._SubParsersAction) -> None:
    match = _verb(
        verbs,
        draw_match,
        "match",
        "lines between the cells of two images that are taken for the same",
        "Lines between mutual nearest neighbors of two images, or of two random crops of one image, where the right "
        "answer is known.",
    )
    match.add_argument("image", type=Path, metavar="IMAGE")
    match.add_argument("image2", type=Path, nargs="?", metavar="IMAGE2", help="without it: two random crops of IMAGE")
    _add_weights(match)
    _add_output(match)
    match.add_argument(
        "--threshold", type=float, metavar="T", help="leave out pairs with a cosine below T, from -1 to 1"
    )
    match.add_argument(
        "--all", action="store_true", help="the nearest neighbor of every cell, one way, as the dense loss takes it"
    )
    match.add_argument("--top", type=int, metavar="N", help="draw only the N most similar pairs")
    match.add_argument(
        "--augment", action="store_true", help="of one image: also change colors, blur and flip, as in training"
    )
    match.add_argument("--json", type=Path, metavar="F.json", help="also write counts, shares and every pair there")


def _add_heatmap(verbs: argparse._SubParsersAction) -> None:
    heatmap = _verb(
        verbs,
        draw_heat,
        "heatmap",
        "how similar every cell is to one cell",
        "The cosine of one cell of IMAGE to all cells of IMAGE and of IMAGE2.",
    )
    heatmap.add_argument("image", type=Path, metavar="IMAGE")
    heatmap.add_argument("image2", type=Path, nargs="?", metavar="IMAGE2")
    heatmap.add_argument(
        "--point", type=_point, metavar="X,Y", help="a pixel of IMAGE, from its upper left corner (default: the middle)"
    )
    _add_weights(heatmap)
    _add_output(heatmap)


def _add_pca(verbs: argparse._SubParsersAction) -> None:
    pca = _verb(
        verbs,
        draw_pca,
        "pca",
        "features as colors",
        "The first three principal components of the features of all IMAGES together, as red, green and blue.",
    )
    pca.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    pca.add_argument(
        "--margin",
        type=int,
        default=0,
        metavar="N",
        help="leave N cells along the border out of the components; zero padding marks these (default: 0)",
    )
    _add_weights(pca)
    _add_output(pca)


def _add_embedding(verbs: argparse._SubParsersAction) -> None:
    embedding = _verb(
        verbs,
        draw_folder,
        "embedding",
        "the images of a folder as points in the plane",
        "The images of a folder as points, near each other where the backbone finds them alike, colored by sub-folder.",
    )
    embedding.add_argument("folder", type=Path, metavar="DIR", help="a folder of images, or a pack (.lmdb)")
    _add_weights(embedding, features=False)
    _add_output(embedding)
    embedding.add_argument(
        "--method", choices=("tsne", "pca"), default="tsne", help="tsne needs scikit-learn (default: tsne)"
    )
    embedding.add_argument(
        "--images", type=int, default=1000, metavar="N", help="at most so many, evenly over the folder (default: 1000)"
    )
    embedding.add_argument(
        "--thumbnails", type=int, default=0, metavar="N", help="also draw up to N of the images themselves (default: 0)"
    )


def _add_views(verbs: argparse._SubParsersAction) -> None:
    views = _verb(
        verbs,
        draw_views,
        "views",
        "pairs of augmented views, as training sees them",
        "The first images of an epoch with both crops and both views, from the same random draws as in the run.",
    )
    _add_config(views)
    views.add_argument("--images", type=int, default=8, metavar="N", help="how many (default: 8)")
    views.add_argument("--epoch", type=int, default=1, metavar="E", help="counted from 1 (default: 1)")
    views.add_argument("--root", metavar="DIR", help="images instead of those that the config names")
    _add_output(views)


def _add_schedule(verbs: argparse._SubParsersAction) -> None:
    schedule = _verb(
        verbs,
        draw_plan,
        "schedule",
        "learning rate and λ over a run",
        "Learning rate and λ over a run, warm-ups marked.",
    )
    _add_config(schedule)
    schedule.add_argument(
        "--images", type=int, metavar="N", help="images of the set, where it is not on this machine: sets the steps"
    )
    _add_output(schedule)


def _add_curves(verbs: argparse._SubParsersAction) -> None:
    curves = _verb(
        verbs,
        draw_runs,
        "curves",
        "losses, accuracy and speed of runs",
        "Losses with their chance lines, top-1s, accuracy and speed of one run or of several, finished or not.",
    )
    curves.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    _add_output(curves)


def _add_report(verbs: argparse._SubParsersAction) -> None:
    report = _verb(
        verbs,
        draw_report,
        "report",
        "everything about a run on one HTML page",
        "One HTML file that needs no other: figures, curves, views, correspondences, config and environment of a run.",
    )
    report.add_argument("run_dir", type=Path, metavar="RUN", help="a run folder")
    report.add_argument("--root", metavar="DIR", help="images instead of those that the config names")
    report.add_argument(
        "--results",
        type=Path,
        nargs="+",
        default=[],
        metavar="F.json",
        help="results of tools/evaluate.py to show; JSON files in the run folder are shown anyway",
    )
    report.add_argument("--output", type=Path, metavar="F.html", help=f"default: RUN/{REPORT}")


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a config file, or a run folder")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="F.png", help=".png, .svg, .pdf or .jpg")


def _add_weights(parser: argparse.ArgumentParser, *, features: bool = True) -> None:
    """What every verb needs that looks through a backbone."""
    parser.add_argument(
        "--weights",
        required=True,
        metavar="W",
        help="a checkpoint folder, a run folder, a weight file, or the word 'random' for untrained weights",
    )
    if features:
        parser.add_argument(
            "--features",
            choices=("backbone", "dense"),
            default="backbone",
            help="the backbone's map, or what the dense head of a pre-training checkpoint makes of it (default: backbone)",
        )
    parser.add_argument("--depth", type=int, choices=DEPTHS, help="of random weights (default: 50)")
    parser.add_argument(
        "--stem_stride", type=int, choices=(4, 2, 1), help="default: as the run's config.yaml says, else 4"
    )
    parser.add_argument(
        "--last_stride", type=int, choices=(2, 1), help="default: as the run's config.yaml says, else 2"
    )
    parser.add_argument(
        "--encoder", choices=("query", "key"), default="query", help="of a pre-training checkpoint (default: query)"
    )
    parser.add_argument(
        "--size",
        type=int,
        default=224,
        help="shorter side of what the backbone sees, pixels; larger gives a finer map (default: 224)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all random draws, random weights included (default: 0)")


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected X,Y in pixels, for example 120,80; got {text!r}") from None
    return x, y


# --- looking through a backbone ------------------------------------------------------------------------------------


def draw_match(args: argparse.Namespace) -> None:
    check_looking(args)
    if args.threshold is not None and not -1 <= args.threshold <= 1:
        raise InputError(f"--threshold {args.threshold}: a cosine is from -1 to 1")
    if args.top is not None and args.top < 1:
        raise InputError(f"--top {args.top}: expected at least 1")
    if args.augment and args.image2 is not None:
        raise InputError(
            "--augment goes with one image, of which two views are drawn; leave it out or leave IMAGE2 out"
        )
    if args.json is not None:
        check_output(args.json, (".json",), "--json")
    from passl_densecl.evaluation.correspondence import PHOTOMETRIC  # Paddle takes seconds; a wrong option should not
    from passl_densecl.visualize.match import as_json, draw_matches, match_images, summary, two_views

    first = decode(str(args.image))
    views = None
    if args.image2 is None:
        views = two_views(first.shape[0], first.shape[1], args.size, args.seed, flip=0.5 if args.augment else 0.0)
        rng = np.random.default_rng([args.seed, 1])
        image_a, image_b = (view.render(first, PHOTOMETRIC if args.augment else (), rng) for view in views)
    else:
        image_a, image_b = resized(first, args.size), resized(decode(str(args.image2)), args.size)
    matches = match_images(model_of(args), image_a, image_b, threshold=args.threshold, mutual=not args.all, views=views)
    names = args.image.name if args.image2 is None else f"{args.image.name} and {args.image2.name}"
    figure = draw_matches(image_a, image_b, matches, title=f"{names} · {weights_name(args)}", top=args.top)
    print(f"match    {summary(matches)}")
    save(figure, args.output)
    if args.json is not None:
        images = [str(path) for path in (args.image, args.image2) if path is not None]
        content = {"weights": args.weights, "features": args.features, "size": args.size, "images": images}
        if views is not None:
            content["crops"] = [{**view.crop._asdict(), "flipped": view.flipped} for view in views]
        with whole_file(args.json) as file:
            file.write((json.dumps(content | as_json(matches)) + "\n").encode())
        print(f"wrote    {printable(str(args.json))}")


def draw_heat(args: argparse.Namespace) -> None:
    check_looking(args)
    pictures = [decode(str(path)) for path in (args.image, args.image2) if path is not None]
    height, width = pictures[0].shape[:2]
    x, y = args.point or (width // 2, height // 2)
    if not (0 <= x < width and 0 <= y < height):
        raise InputError(
            f"--point {x:g},{y:g}: {args.image} is {width}×{height} pixels; x is below {width}, y below {height}"
        )
    from passl_densecl.visualize.heatmap import draw_heatmap, similarity_to

    images = [resized(picture, args.size) for picture in pictures]
    similarity = similarity_to(model_of(args), images, (x / width, y / height))
    names = [path.name for path in (args.image, args.image2) if path is not None]
    figure = draw_heatmap(
        images, similarity, names=names, title=f"pixel {x:g}, {y:g} of {names[0]} · {weights_name(args)}"
    )
    save(figure, args.output)


def draw_pca(args: argparse.Namespace) -> None:
    check_looking(args)
    if args.margin < 0:
        raise InputError(f"--margin {args.margin}: expected 0 or more")
    pictures = [decode(str(path)) for path in args.images]
    from passl_densecl.evaluation import feature_map
    from passl_densecl.visualize.pca import draw_colors, map_colors

    model = model_of(args)
    images = [resized(picture, args.size) for picture in pictures]
    maps = []
    with progress_bar("features") as progress:
        for number, image in enumerate(images):
            maps.append(feature_map(model, image))
            progress(number + 1, len(images))
    colors, share = map_colors(maps, args.margin)
    print(
        f"pca      three components hold {share:.1%} of the variance of {sum(c.shape[0] * c.shape[1] for c in colors)} cells"
    )
    names = [path.name for path in args.images]
    save(draw_colors(images, colors, share, names=names, title=weights_name(args), margin=args.margin), args.output)


def draw_folder(args: argparse.Namespace) -> None:
    check_looking(args)
    if args.images < 5:
        raise InputError(f"--images {args.images}: expected at least 5")
    if args.thumbnails < 0:
        raise InputError(f"--thumbnails {args.thumbnails}: expected 0 or more")
    if args.method == "tsne":
        from importlib.util import find_spec

        if find_spec("sklearn") is None:
            raise InputError("t-SNE needs scikit-learn: pip install scikit-learn; or take --method pca")
    images = scan_images(args.folder)
    from passl_densecl.visualize.embedding import draw_embedding, lay_out, neighbor_agreement, pooled_sample

    args.features = "backbone"
    model = model_of(args)
    print(f"data     {images.describe()}")
    with progress_bar("features") as progress:
        sample = pooled_sample(model, images, args.images, args.size, progress)
    for path in sample.bad[:5]:
        print(f"warning  cannot decode {path}; left out")
    if len(set(sample.groups)) > 1:
        share, chance = neighbor_agreement(sample.vectors, sample.groups)
        print(
            f"result   nearest neighbor in the same sub-folder: {share:.1%} of {len(sample.groups):,} (chance {chance:.1%})"
        )
    layout = lay_out(sample.vectors, args.method, args.seed)
    title = f"{args.folder.name or args.folder} · {weights_name(args)}"
    save(draw_embedding(sample, layout, title=title, thumbnails=args.thumbnails), args.output)


def check_looking(args: argparse.Namespace) -> None:
    """Before anything slow: the options that all verbs share which look through a backbone."""
    need_matplotlib()
    if args.size < 32:
        raise InputError(f"--size {args.size}: expected at least 32 pixels")
    if args.seed < 0:
        raise InputError(f"--seed {args.seed}: expected 0 or more")
    check_output(args.output)


def model_of(args: argparse.Namespace) -> Callable:
    from passl_densecl.visualize.maps import load_map

    depth = args.depth or (50 if args.weights == "random" else None)
    options = BackboneOptions(depth, args.stem_stride, args.last_stride)
    return load_map(args.weights, options, seed=args.seed, encoder=args.encoder, features=args.features)


def weights_name(args: argparse.Namespace) -> str:
    """What is looked through, for a title."""
    features = "dense features, " if args.features == "dense" else ""
    if args.weights == "random":
        return f"{features}random weights, ResNet-{args.depth or 50}"
    return f"{features}weights {args.weights}"


def resized(image: np.ndarray, size: int) -> np.ndarray:
    return Resize(size=size)(image, np.random.default_rng(0))  # Resize draws nothing


# --- configs and runs ----------------------------------------------------------------------------------------------


def draw_views(args: argparse.Namespace) -> None:
    need_matplotlib()
    check_output(args.output)
    from passl_densecl.visualize.runs import config_and_run

    config, _ = config_and_run(args.config)
    if not isinstance(config, PretrainConfig):
        raise InputError(f"{args.config}: pairs of views belong to pre-training; this is linear evaluation")
    root = args.root or config.data.root
    images = scan_images(root, None if args.root else config.data.list_file)
    from passl_densecl.visualize.views import draw_pairs, training_pairs

    with progress_bar("views") as progress:
        pairs = training_pairs(config, images, args.images, args.epoch, progress)
    if args.root and Path(args.root) != Path(config.data.root):
        print(
            "note     the run's own views only where --root holds the same files as its data.root: order and draws "
            "go by position in the list"
        )
    size = pairs[0].query.shape[0]
    title = f"{config.name}: the first {len(pairs)} {plural(len(pairs), 'image')} of epoch {args.epoch} and their two views, {size} px"
    save(draw_pairs(pairs, title=title), args.output)


def draw_plan(args: argparse.Namespace) -> None:
    need_matplotlib()
    check_output(args.output)
    from passl_densecl.visualize.runs import config_and_run
    from passl_densecl.visualize.schedule import draw_schedule, plan

    config, run = config_and_run(args.config)
    if args.images is not None:
        steps = args.images // config.batch_size
    elif run is not None and run.steps_per_epoch:
        steps = run.steps_per_epoch
    else:
        data = config.data if isinstance(config, PretrainConfig) else config.data.train
        try:
            steps = len(scan_images(data.root, data.list_file)) // config.batch_size
        except InputError as error:
            raise InputError(f"{error}. Or say how many images there are: --images N") from None
    planned = plan(config, steps)
    print(f"schedule {config.epochs} epochs × {steps:,} steps; learning rate up to {planned.lr.max():g}")
    save(draw_schedule(config, planned, title=config.name), args.output)


def draw_runs(args: argparse.Namespace) -> None:
    need_matplotlib()
    check_output(args.output)
    from passl_densecl.visualize.curves import draw_curves, names_of
    from passl_densecl.visualize.runs import read_run

    runs = [read_run(path) for path in args.runs]
    for name, run in zip(names_of(runs), runs, strict=True):
        print(f"run      {printable(name)}: {run.state()}")
    save(draw_curves(runs), args.output)


def draw_report(args: argparse.Namespace) -> None:
    need_matplotlib()
    output = args.output or args.run_dir / REPORT
    from passl_densecl.visualize.report import PARTS, Sources, build_report
    from passl_densecl.visualize.runs import read_result, read_run

    run = read_run(args.run_dir, need_metrics=False)
    check_output(output, (".html", ".htm"))
    results = tuple((path.name, read_result(path)) for path in args.results)
    with progress_bar("report") as progress:
        done = iter(range(1, PARTS + 1))
        page, missing = build_report(run, Sources(args.root, results), lambda _: progress(next(done), PARTS))
    for reason in missing:
        print(f"note     not shown: {printable(reason)}")
    with whole_file(output) as file:
        file.write(page.encode("utf-8"))
    print(f"wrote    {printable(str(output))} ({len(page) / 1e6:.1f} MB)")


# --- shared --------------------------------------------------------------------------------------------------------


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of (done, total); drawn on a terminal only, and gone afterwards."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def save(figure: object, output: Path) -> None:
    save_figure(figure, output)  # type: ignore[arg-type]
    print(f"wrote    {printable(str(output))}")


@command
def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    args.run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
