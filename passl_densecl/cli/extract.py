"""Take the backbone out of a checkpoint: python tools/extract_weight.py CKPT --output W.pdparams --remove_prefix"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
from passl_densecl.cli.command import command
from passl_densecl.config import BackboneSpec
from passl_densecl.errors import InputError
from passl_densecl.weights import (
    Card,
    Parent,
    read_backbone,
    recorded_backbone,
    recorded_card,
    weights_file,
    write_pickle,
)
from passl_densecl.weights.card import BACKBONE, FOREIGN, PRETRAINING

LINEAR_CONFIGS = {  # the linear evaluation that goes with a backbone
    BackboneSpec(18, 2, 2): "configs/demo/linear_r18.yaml",
    BackboneSpec(18, 4, 1): "configs/small/linear_r18.yaml",
    BackboneSpec(50, 4, 2): "configs/moco/moco_clas_r50.yaml",
    BackboneSpec(101, 4, 2): "configs/moco/moco_clas_r101.yaml",
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Take the backbone out of a checkpoint, under the names of paddle.vision.",
        epilog="Nothing in CKPT is executed, whoever made it.",
    )
    parser.add_argument(
        "checkpoint",
        metavar="CKPT",
        type=Path,
        help="a checkpoint folder, a run folder (its newest checkpoint) or a file of weights, ours or PASSL's",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="W.pdparams", help="the file to write")
    parser.add_argument(
        "--remove_prefix",
        "--remove-prefix",
        action="store_true",
        help="write conv1.weight instead of backbone.conv1.weight",
    )
    parser.add_argument(
        "--encoder", choices=("query", "key"), default="query", help="of a pre-training file (default: query)"
    )
    parser.add_argument(
        "--prefix", help="what stands before conv1.weight in the file, where it holds several backbones"
    )
    return parser.parse_args(arguments)


def extract(args: argparse.Namespace) -> None:
    source = weights_file(args.checkpoint)
    if args.output.suffix != ".pdparams":
        raise InputError(
            f"--output {args.output}: the name must end in .pdparams, PaddleDetection and PaddleClas insist on it"
        )
    if args.output.exists() and args.output.samefile(source):
        raise InputError(f"--output {args.output} is the file to read; choose another name")
    taken = read_backbone(source, encoder=args.encoder, prefix=args.prefix)
    backbone = recorded_backbone(source) or BackboneSpec(taken.depth)
    prefix = "" if args.remove_prefix else "backbone."
    arrays = {prefix + name: array for name, array in taken.backbone.items()}
    write_pickle(args.output, arrays, card=backbone_card(source, taken.depth, args.encoder))

    print(f"read     {source} ({taken.kind})")
    print(f"kept     {len(taken.backbone)} arrays: ResNet-{taken.depth}, {taken.weight_count / 1e6:.2f} M weights")
    print(f"dropped  {', '.join(f'{group} {count}' for group, count in taken.dropped.items()) or 'nothing'}")
    print(f"wrote    {args.output}, names like {prefix}conv1.weight")
    if not backbone.is_published:
        print(
            f"note     trained with model.stem_stride {backbone.stem_stride}, model.last_stride {backbone.last_stride}: the file says so to "
            "passl_densecl; say it yourself where another library uses it"
        )
    config = LINEAR_CONFIGS.get(backbone, "")
    config = config if (ROOT / config).is_file() else "YOUR_LINEAR_CONFIG.yaml"
    print(f"next     python tools/train.py -c {config} --pretrained {shlex.quote(str(args.output))}")


def backbone_card(source: Path, depth: int, encoder: str) -> Card:
    """What the extracted file is. A backbone that is taken out of a backbone stays what it was."""
    card = recorded_card(source)
    if card is not None and card.kind == BACKBONE:
        return card
    parent = Parent.of(source, card.kind if card else FOREIGN)
    if card is None:
        return Card(kind=BACKBONE, depth=depth, parents=(parent,))
    return card.replace(
        kind=BACKBONE,
        encoder=encoder if card.kind == PRETRAINING else card.encoder,
        depth=depth,
        classes=None,
        parents=(parent,),
    )


@command
def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    extract(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
