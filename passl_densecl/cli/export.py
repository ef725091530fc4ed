"""Write a trained network for Paddle's inference engine or as ONNX: python tools/export.py WEIGHTS OUT --format onnx"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from passl_densecl.cli.command import command
from passl_densecl.config import BackboneOptions
from passl_densecl.errors import InputError
from passl_densecl.export.network import INPUTS, STAGES, Network, read_network
from passl_densecl.export.target import FORMATS, check_output, require

if TYPE_CHECKING:
    from passl_densecl.export.write import Report


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Write a trained network for another engine, run it there, and compare the outputs.",
        epilog="Nothing in WEIGHTS is executed, whoever made them. OUT appears only when the comparison is passed.",
    )
    parser.add_argument("weights", metavar="WEIGHTS", help="a checkpoint folder, a run folder or a weight file")
    parser.add_argument("out", metavar="OUT", type=Path, help="paddle: a folder to make; onnx: a file ending in .onnx")
    parser.add_argument("--format", choices=tuple(FORMATS), required=True)
    parser.add_argument(
        "--stage",
        choices=tuple(STAGES),
        help="the output: backbone (map), pooled (vector), classifier (logits), global or dense (the necks' vectors); "
        "default: classifier where there is one, else backbone",
    )
    parser.add_argument(
        "--input",
        choices=tuple(INPUTS),
        default="uint8",
        help="uint8: RGB images as decoded, (B, height, width, 3), normalized inside (default); float32: normalized, "
        "(B, 3, height, width)",
    )
    parser.add_argument(
        "--size",
        type=int,
        default=224,
        metavar="PIXELS",
        help="side of the images that it is tried with (default: 224)",
    )
    parser.add_argument("--check", type=Path, metavar="IMAGE", help="also compare the outputs for this photograph")
    parser.add_argument(
        "--encoder", choices=("query", "key"), default="query", help="of a pre-training checkpoint (default: query)"
    )
    parser.add_argument(
        "--stem_stride", type=int, choices=(4, 2, 1), help="default: as the run's config.yaml says, else 4"
    )
    parser.add_argument(
        "--last_stride", type=int, choices=(2, 1), help="default: as the run's config.yaml says, else 2"
    )
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    if args.size < 32:
        raise InputError(f"--size {args.size}: expected at least 32 pixels")
    check_output(args.out, args.format)
    require(args.format)
    options = BackboneOptions(None, args.stem_stride, args.last_stride)
    network = read_network(args.weights, args.stage, encoder=args.encoder, options=options)
    photo = None if args.check is None else photograph(args.check, args.size)
    print(f"read     {network.source} ({network.kind})")
    print(f"network  {described(network)}")
    assumed = [name for name in ("stem_stride", "last_stride") if not network.recorded and getattr(args, name) is None]
    if assumed:
        values = " and ".join(f"{name} {getattr(network.backbone, name)}" for name in assumed)
        others = " and ".join(f"--{name}" for name in assumed)
        print(f"note     the weights lie in no run folder that says it: assumed {values}; otherwise give {others}")
    os.environ.setdefault("GLOG_minloglevel", "2")  # Paddle's engines report every optimization that they try
    from passl_densecl.export.write import TOLERANCE, export, snippet

    report = export(network, args.out, args.format, kind=args.input, size=args.size, photo=photo)
    for difference in report.differences:
        print(
            f"compare  {FORMATS[args.format]} against Paddle's network, {difference.what} {'×'.join(map(str, difference.images))}: "
            f"largest difference {difference.largest:.2g}, largest output {difference.scale:.3g}"
        )
    print(f"passed   at most {report.worst.relative:.2g} of the largest output; {TOLERANCE:g} is allowed")
    if report.checked is not None and network.stage == "classifier":
        print(f"photo    {args.check}: {best_classes(report.checked[0], network.classes)}")
    show(report, network)
    print(f"run it so:\n\n{snippet(args.out, args.format, report.info, args.size)}")


def photograph(path: Path, size: int) -> np.ndarray:
    """uint8 RGB (size, size, 3): the middle of the image, as in evaluation."""
    from passl_densecl.data.images import decode
    from passl_densecl.transforms import CenterCrop, Resize, apply

    return apply(
        (Resize(size=round(size * 256 / 224)), CenterCrop(size=size)), decode(str(path)), np.random.default_rng(0)
    )


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


def show(report: Report, network: Network) -> None:
    sizes = ", ".join(f"{file.name} {file.stat().st_size / 1e6:.1f} MB" for file in report.files)
    print(f"wrote    {report.out}: {sizes}")
    for name in ("input", "output"):
        facts = report.info[name]
        print(f"{name:<8} {facts['name']}: {facts['dtype']} ({', '.join(facts['axes'])}); {facts['values']}")


@command
def main() -> int:
    run(parse_arguments())
    return 0


if __name__ == "__main__":
    sys.exit(main())
