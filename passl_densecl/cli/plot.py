"""Pictures: what training sees, how runs went, what a backbone has learned."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from passl_densecl.cli.command import Parser, Verb
from passl_densecl.cli.console import progress
from passl_densecl.cli.options import (
    add_images,
    add_size,
    add_weights_options,
    at_least,
    backbone_options,
    sixteen_bit_for,
    size_of,
)
from passl_densecl.config import PretrainConfig
from passl_densecl.data.datasets import decode, scan_images
from passl_densecl.disk import whole_file
from passl_densecl.errors import InputError
from passl_densecl.text import printable, quantity
from passl_densecl.transforms import Resize
from passl_densecl.visualize.style import check_output, need_matplotlib, save_figure


def match_options(parser: Parser) -> None:
    threshold = "leave out pairs with a cosine below T, from -1 to 1"
    one_way = "the nearest neighbor of every cell, one way, as the dense loss takes it"
    augment = "of one image: also change colors, blur and flip, as in training"
    add_weights_options(parser)
    add_pictures(parser, "one image, of which two random crops are matched, or two images")
    add_feature_options(parser, "match")
    parser.add_argument("--threshold", type=float, metavar="T", help=threshold)
    parser.add_argument("--all", action="store_true", help=one_way)
    parser.add_argument("--count", type=int, metavar="N", help="draw only the N most similar pairs (default: all)")
    parser.aliases["--top"] = "--count"
    parser.add_argument("--augment", action="store_true", help=augment)
    parser.add_argument("--json", type=Path, metavar="F.json", help="also write counts, shares and every pair there")


def heatmap_options(parser: Parser) -> None:
    point = "a pixel of the first image, from its upper left corner (default: the middle)"
    add_weights_options(parser)
    add_pictures(parser, "one image, or two: the cosine of one cell of the first to all cells")
    parser.add_argument("--point", type=parse_point, metavar="X,Y", help=point)
    add_feature_options(parser, "heatmap")


def pca_options(parser: Parser) -> None:
    margin = "leave N cells along the border out of the components; zero padding marks these"
    add_weights_options(parser)
    add_pictures(parser, "images, whose components are taken together")
    parser.add_argument("--margin", type=int, default=0, metavar="N", help=margin)
    add_feature_options(parser, "pca")


def embedding_options(parser: Parser) -> None:
    add_weights_options(parser)
    parser.add_place("--images", type=Path, metavar="DIR", help="a folder of images, or a pack (.lmdb)")
    add_feature_options(parser, "embedding", features=False)
    method = "how the points are laid out; tsne needs scikit-learn"
    count = "images at the most, evenly over the folder"
    thumbnails = "also draw up to N of the images themselves"
    parser.add_argument("--method", choices=("tsne", "pca"), default="tsne", help=method)
    parser.add_argument("--count", type=int, default=1000, metavar="N", help=count)
    parser.add_argument("--thumbnails", type=int, default=0, metavar="N", help=thumbnails)


def views_options(parser: Parser) -> None:
    add_config(parser)
    parser.add_argument("--count", type=int, default=8, metavar="N", help="pairs of views")
    parser.add_argument("--epoch", type=int, default=1, metavar="E", help="counted from 1")
    add_images(parser, "images instead of those that the config names", place=False)
    add_output(parser, "views")


def schedule_options(parser: Parser) -> None:
    add_config(parser)
    count = "images of the set, where it is not on this machine: determines the steps (default: counted)"
    parser.add_argument("--count", type=int, metavar="N", help=count)
    add_output(parser, "schedule")


def curves_options(parser: Parser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    add_output(parser, "curves")


def add_config(parser: Parser) -> None:
    help = "a config file, a packaged config's name, or a run folder"
    parser.add_argument("config", type=Path, metavar="CONFIG", help=help)


def add_pictures(parser: Parser, help: str) -> None:
    parser.add_place("--images", type=Path, nargs="+", metavar="IMAGE", help=help)


def add_output(parser: Parser, name: str) -> None:
    help = "the picture: .png, .svg, .pdf or .jpg"
    parser.add_argument("--output", type=Path, default=Path(f"{name}.png"), metavar="F.png", help=help)


def add_feature_options(parser: Parser, name: str, *, features: bool = True) -> None:
    """What every verb needs that shows the features of a backbone."""
    which = "the backbone's map, or its dense projection in a pre-training checkpoint"
    if features:
        parser.add_argument("--features", choices=("backbone", "dense"), default="backbone", help=which)
    add_size(parser, "shorter side of what the backbone sees; larger gives a finer map")
    add_output(parser, name)


def parse_point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected X,Y in pixels, for example 120,80; got {text!r}") from None
    return x, y


# --- features of a backbone ----------------------------------------------------------------------------------------


def draw_match(args: argparse.Namespace) -> None:
    """Lines between the cells of two images that match.

    Mutual nearest neighbors of two images, or of two random crops of one image, where the right answer is known.
    """
    check_backbone_options(args)
    if args.threshold is not None and not -1 <= args.threshold <= 1:
        raise InputError(f"--threshold {args.threshold}: a cosine is from -1 to 1")
    at_least(1, count=args.count)
    first_path, second_path = one_or_two(args.images)
    if args.augment and second_path is not None:
        raise InputError("--augment goes with one image, of which two views are drawn; omit it or the second image")
    if args.json is not None:
        check_output(args.json, (".json",), "json")
    from passl_densecl.evaluation.correspondence import PHOTOMETRIC  # Paddle takes seconds; a wrong option should not
    from passl_densecl.visualize.match import as_json, draw_matches, match_images, summary, two_views

    reading = sixteen_bit_for([args.weights])
    first = decode(str(first_path), reading)
    views = None
    if second_path is None:
        views = two_views(first.shape[0], first.shape[1], args.size, args.seed, flip=0.5 if args.augment else 0.0)
        rng = np.random.default_rng([args.seed, 1])
        image_a, image_b = (view.render(first, PHOTOMETRIC if args.augment else (), rng) for view in views)
    else:
        image_a, image_b = resized(first, args.size), resized(decode(str(second_path), reading), args.size)
    matches = match_images(model_of(args), image_a, image_b, threshold=args.threshold, mutual=not args.all, views=views)
    names = " and ".join(path.name for path in args.images)
    figure = draw_matches(image_a, image_b, matches, title=f"{names} · {weights_name(args)}", top=args.count)
    print(f"match    {summary(matches)}")
    save(figure, args.output)
    if args.json is not None:
        images = [str(path) for path in args.images]
        content = {"weights": args.weights, "features": args.features, "size": args.size, "images": images}
        if views is not None:
            content["crops"] = [{**view.crop._asdict(), "flipped": view.flipped} for view in views]
        with whole_file(args.json) as file:
            file.write((json.dumps(content | as_json(matches)) + "\n").encode())
        print(f"wrote    {printable(str(args.json))}")


def draw_heat(args: argparse.Namespace) -> None:
    """How similar every cell is to one cell.

    The cosine of one cell of IMAGE to all cells of IMAGE and of IMAGE2.
    """
    check_backbone_options(args)
    one_or_two(args.images)
    reading = sixteen_bit_for([args.weights])
    pictures = [decode(str(path), reading) for path in args.images]
    height, width = pictures[0].shape[:2]
    x, y = args.point or (width // 2, height // 2)
    if not (0 <= x < width and 0 <= y < height):
        raise InputError(
            f"--point {x:g},{y:g}: {args.images[0]} is {width}×{height} pixels; x is below {width}, y below {height}"
        )
    from passl_densecl.visualize.heatmap import draw_heatmap, similarity_to

    images = [resized(picture, args.size) for picture in pictures]
    similarity = similarity_to(model_of(args), images, (x / width, y / height))
    names = [path.name for path in args.images]
    figure = draw_heatmap(
        images, similarity, names=names, title=f"pixel {x:g}, {y:g} of {names[0]} · {weights_name(args)}"
    )
    save(figure, args.output)


def draw_pca(args: argparse.Namespace) -> None:
    """Features as colors.

    The first three principal components of the features of all IMAGES together, as red, green and blue.
    """
    check_backbone_options(args)
    at_least(0, margin=args.margin)
    reading = sixteen_bit_for([args.weights])
    pictures = [decode(str(path), reading) for path in args.images]
    from passl_densecl.evaluation.features import feature_map
    from passl_densecl.visualize.pca import draw_colors, map_colors

    model = model_of(args)
    images = [resized(picture, args.size) for picture in pictures]
    maps = []
    with progress("features") as bar:
        for number, image in enumerate(images):
            maps.append(feature_map(model, image))
            bar(number + 1, len(images))
    colors, share = map_colors(maps, args.margin)
    cells = sum(each.shape[0] * each.shape[1] for each in colors)
    print(f"pca      three components hold {share:.1%} of the variance of {cells} cells")
    names = [path.name for path in args.images]
    save(draw_colors(images, colors, share, names=names, title=weights_name(args), margin=args.margin), args.output)


def draw_folder(args: argparse.Namespace) -> None:
    """The images of a folder as points in the plane.

    They are near each other where their features are similar, and colored by sub-folder.
    """
    check_backbone_options(args)
    at_least(5, count=args.count)
    at_least(0, thumbnails=args.thumbnails)
    if args.method == "tsne":
        from importlib.util import find_spec

        if find_spec("sklearn") is None:
            raise InputError("t-SNE needs scikit-learn: pip install scikit-learn; or take --method pca")
    images = scan_images(args.images, sixteen_bit=sixteen_bit_for([args.weights]))
    from passl_densecl.visualize.embedding import draw_embedding, lay_out, neighbor_agreement, pooled_sample

    args.features = "backbone"
    model = model_of(args)
    print(f"data     {images.describe()}")
    with progress("features") as bar:
        sample = pooled_sample(model, images, args.count, args.size, bar)
    for path in sample.bad[:5]:
        print(f"warning  cannot decode {path}; left out")
    if len(set(sample.groups)) > 1:
        share, chance = neighbor_agreement(sample.vectors, sample.groups)
        count = len(sample.groups)
        print(f"result   nearest neighbor in the same sub-folder: {share:.1%} of {count:,} (chance {chance:.1%})")
    layout = lay_out(sample.vectors, args.method, args.seed)
    title = f"{args.images.name or args.images} · {weights_name(args)}"
    save(draw_embedding(sample, layout, title=title, thumbnails=args.thumbnails), args.output)


def one_or_two(images: list[Path]) -> tuple[Path, Path | None]:
    if len(images) > 2:
        raise InputError(f"--images: expected one image or two, got {len(images)}")
    return images[0], images[1] if len(images) == 2 else None


def check_backbone_options(args: argparse.Namespace) -> None:
    """Check, before anything slow, what `add_feature_options` added; settle --size."""
    at_least(32, size=args.size)
    at_least(0, seed=args.seed)
    args.size = size_of(args.size, [args.weights])


def model_of(args: argparse.Namespace) -> Callable:
    from passl_densecl.visualize.maps import load_map

    options = backbone_options(args)
    if args.weights == "random" and options.depth is None:
        options = replace(options, depth=50)
    return load_map(args.weights, options, seed=args.seed, encoder=args.encoder, features=args.features)


def weights_name(args: argparse.Namespace) -> str:
    """The weights and the kind of features, for a title."""
    features = "dense features, " if args.features == "dense" else ""
    if args.weights == "random":
        return f"{features}random weights, ResNet-{args.depth or 50}"
    return f"{features}weights {args.weights}"


def resized(image: np.ndarray, size: int) -> np.ndarray:
    return Resize(size=size)(image, np.random.default_rng(0))  # Resize draws nothing


# --- configs and runs ----------------------------------------------------------------------------------------------


def draw_views(args: argparse.Namespace) -> None:
    """Pairs of augmented views, as training sees them.

    The first images of an epoch with both crops and both views, from the same random draws as in the run.
    """
    from passl_densecl.visualize.runs import config_and_run

    config, _ = config_and_run(args.config)
    if not isinstance(config, PretrainConfig):
        raise InputError(f"{args.config}: pairs of views belong to pre-training; this is linear evaluation")
    root = args.images or config.data.root
    instead = {"root": root, "list_file": None} if args.images else {}
    images = scan_images(**config.data.source(**instead))
    from passl_densecl.visualize.views import draw_pairs, training_pairs

    with progress("views") as bar:
        pairs = training_pairs(config, images, args.count, args.epoch, bar)
    if args.images and Path(args.images) != Path(config.data.root):
        print(
            "note     the run's own views only where --images holds the same files as its data.root: order and draws "
            "go by position in the list"
        )
    images, size = quantity(len(pairs), "image"), pairs[0].query.shape[0]
    title = f"{config.name}: the first {images} of epoch {args.epoch} and their two views, {size} px"
    save(draw_pairs(pairs, title=title), args.output)


def draw_plan(args: argparse.Namespace) -> None:
    """Learning rate and λ over a run.

    Warm-ups are marked.
    """
    from passl_densecl.visualize.runs import config_and_run
    from passl_densecl.visualize.schedule import draw_schedule, plan

    config, run = config_and_run(args.config)
    if args.count is not None:
        steps = args.count // config.batch_size
    elif run is not None and run.steps_per_epoch:
        steps = run.steps_per_epoch
    else:
        data = config.data if isinstance(config, PretrainConfig) else config.data.train
        try:
            steps = len(scan_images(**data.source())) // config.batch_size
        except InputError as error:
            raise InputError(f"{error}. Or say how many images there are: --count N") from None
    planned = plan(config, steps)
    print(f"schedule {config.epochs} epochs × {steps:,} steps; learning rate up to {planned.lr.max():g}")
    save(draw_schedule(config, planned, title=config.name), args.output)


def draw_runs(args: argparse.Namespace) -> None:
    """Losses, accuracy and speed of runs.

    One run or several, finished or not; losses with their chance lines.
    """
    from passl_densecl.visualize.curves import draw_curves, names_of
    from passl_densecl.visualize.runs import read_run

    runs = [read_run(path) for path in args.runs]
    for name, run in zip(names_of(runs), runs, strict=True):
        print(f"run      {printable(name)}: {run.state()}")
    save(draw_curves(runs), args.output)


def save(figure: object, output: Path) -> None:
    save_figure(figure, output)  # type: ignore[arg-type]
    print(f"wrote    {printable(str(output))}")


def _verb(draw: Callable[[argparse.Namespace], None], add_options: Callable[[Parser], None], example: str) -> Verb:
    def run(args: argparse.Namespace) -> None:
        need_matplotlib()
        check_output(args.output)
        draw(args)

    return Verb(str(inspect.getdoc(draw)), add_options, run, examples=(f"plot {example}",))


VERBS = {
    "match": _verb(draw_match, match_options, "match output/densecl_r50 left.jpg right.jpg"),
    "heatmap": _verb(draw_heat, heatmap_options, "heatmap output/densecl_r50 dog.jpg --point 120,80"),
    "pca": _verb(draw_pca, pca_options, "pca output/densecl_r50 1.jpg 2.jpg 3.jpg"),
    "embedding": _verb(draw_folder, embedding_options, "embedding output/densecl_r50 photos --count 500"),
    "views": _verb(draw_views, views_options, "views densecl_r50 --images photos"),
    "schedule": _verb(draw_plan, schedule_options, "schedule densecl_r50 --count 118287"),
    "curves": _verb(draw_runs, curves_options, "curves output/densecl_r50 output/moco_v2_r50"),
}
