"""Write a trained network for another runtime, run it there, and compare the outputs.

As a model of paddle.inference or as ONNX. Nothing in WEIGHTS is executed, whoever made them. OUT appears only when the
comparison is passed.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from passl_densecl.cli.command import Parser, Verb
from passl_densecl.cli.options import add_backbone_options, add_size, at_least, backbone_options, size_of
from passl_densecl.export.network import INPUTS, STAGES, Network, read_network
from passl_densecl.export.target import FORMATS, check_output, require
from passl_densecl.text import megabytes

if TYPE_CHECKING:
    from passl_densecl.export.write import Report


STAGE = (
    "the output: backbone (map), pooled (vector), classifier (logits), global or dense (vectors of a projection head); "
    "default: classifier where there is one, else backbone"
)
INPUT = (
    "uint8: RGB images as decoded, (B, height, width, 3), normalized inside (default); "
    "float32: normalized, (B, 3, height, width)"
)


def add_options(parser: Parser) -> None:
    weights = "a run or checkpoint folder, a weight file or the name of a published model"
    output = "what to write: a file ending in .onnx, or for paddle a new folder"
    parser.add_place("--weights", metavar="WEIGHTS", help=weights)
    parser.add_place("--output", metavar="OUT", type=Path, help=output)
    parser.add_argument("--format", choices=tuple(FORMATS), help="default: as the name of OUT says")
    parser.add_argument("--stage", choices=tuple(STAGES), help=STAGE)
    parser.add_argument("--input", choices=tuple(INPUTS), default="uint8", help=INPUT)
    add_size(parser, "side of the images that it is tried with")
    parser.add_argument("--check", type=Path, metavar="IMAGE", help="also compare the outputs for this photograph")
    add_backbone_options(parser)


def run(args: argparse.Namespace) -> None:
    at_least(32, size=args.size)
    args.format = args.format or ("onnx" if args.output.suffix == ".onnx" else "paddle")
    check_output(args.output, args.format)
    require(args.format)
    args.size = size_of(args.size, [args.weights])
    network = read_network(args.weights, args.stage, encoder=args.encoder, options=backbone_options(args))
    photo = None if args.check is None else photograph(args.check, args.size)
    print(f"read     {network.source} ({network.kind})")
    print(f"network  {described(network)}")
    assumed = [name for name in ("stem_stride", "last_stride") if not network.recorded and getattr(args, name) is None]
    if assumed:
        values = " and ".join(f"{name} {getattr(network.backbone, name)}" for name in assumed)
        others = " and ".join(f"--{name.replace('_', '-')}" for name in assumed)
        print(
            f"note     no run folder or card records the strides of these weights: assumed {values}; else give {others}"
        )
    os.environ.setdefault("GLOG_minloglevel", "2")  # Paddle's engines report every optimization that they try
    from passl_densecl.export.write import TOLERANCE, export, snippet

    report = export(network, args.output, args.format, kind=args.input, size=args.size, photo=photo)
    for difference in report.differences:
        shape = "×".join(map(str, difference.images))
        print(
            f"compare  {FORMATS[args.format]} against Paddle's network, {difference.what} {shape}: "
            f"largest difference {difference.largest:.2g}, largest output {difference.scale:.3g}"
        )
    print(f"passed   at most {report.worst.relative:.2g} of the largest output; {TOLERANCE:g} is allowed")
    if report.checked is not None and network.stage == "classifier":
        print(f"photo    {args.check}: {best_classes(report.checked[0], network.classes)}")
    show(report)
    print(f"run it so:\n\n{snippet(args.output, args.format, report.info, args.size)}")


def photograph(path: Path, size: int) -> np.ndarray:
    """uint8 RGB (size, size, 3): the middle of the image, as in evaluation."""
    from passl_densecl.data.images import decode
    from passl_densecl.transforms import CenterCrop, Resize, apply

    crop = Resize(size=round(size * 256 / 224)), CenterCrop(size=size)
    return apply(crop, decode(str(path)), np.random.default_rng(0))


def described(network: Network) -> str:
    parts = [f"ResNet-{network.backbone.depth}, stage {network.stage}"]
    if not network.backbone.is_published:
        parts.append(f"stem_stride {network.backbone.stem_stride}, last_stride {network.backbone.last_stride}")
    if network.num_grid is not None:
        parts.append(f"num_grid {network.num_grid}")
    if network.stage == "classifier":
        count = len(network.arrays["fc.bias"])
        parts.append(f"{count:,} classes" + ("" if network.classes else ", their names are not recorded beside it"))
    return "; ".join(parts)


def best_classes(logits: np.ndarray, names: tuple[str, ...], count: int = 5) -> str:
    """The most probable classes with their probabilities."""
    shares = np.exp(logits.astype("float64") - logits.max())
    shares /= shares.sum()
    best = np.argsort(-shares)[:count]
    called = list(names) or [f"class {index}" for index in range(len(shares))]
    return ", ".join(f"{called[index]} {shares[index]:.1%}" for index in best)


def show(report: Report) -> None:
    sizes = ", ".join(f"{file.name} {megabytes(file.stat().st_size)}" for file in report.files)
    print(f"wrote    {report.out}: {sizes}")
    for name in ("input", "output"):
        facts = report.info[name]
        print(f"{name:<8} {facts['name']}: {facts['dtype']} ({', '.join(facts['axes'])}); {facts['values']}")


main = Verb(__doc__, add_options, run, examples=("export output/densecl_r50 r50.onnx",), outputs=())
