"""Take the backbone out of a checkpoint: python tools/extract_weight.py CKPT --output W.pdparams --remove_prefix"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from passl_densecl.cli.command import Parser, command
from passl_densecl.cli.options import add_encoder_option
from passl_densecl.config import BackboneSpec
from passl_densecl.errors import InputError
from passl_densecl.weights.card import BACKBONE, FOREIGN, PRETRAINING, Card, Parent
from passl_densecl.weights.files import weights_file
from passl_densecl.weights.read import read_backbone
from passl_densecl.weights.recorded import recorded_backbone, recorded_card
from passl_densecl.weights.writing import write_pickle

ROOT = Path(__file__).resolve().parents[2]
LINEAR_CONFIGS = {  # the linear evaluation that goes with a backbone
    BackboneSpec(18, 2, 2): "configs/demo/linear_r18.yaml",
    BackboneSpec(18, 4, 1): "configs/small/linear_r18.yaml",
    BackboneSpec(50, 4, 2): "configs/moco/moco_clas_r50.yaml",
    BackboneSpec(101, 4, 2): "configs/moco/moco_clas_r101.yaml",
}


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    description = "Take the backbone out of a checkpoint, under the names of paddle.vision."
    parser = Parser(description=description, epilog="Nothing in CKPT is executed, whoever made it.")
    checkpoint = "a checkpoint folder, a run folder (its newest checkpoint) or a file of weights, ours or PASSL's"
    remove = "write conv1.weight instead of backbone.conv1.weight"
    prefix = "what stands before conv1.weight in the file, where it holds several backbones"
    parser.add_argument("checkpoint", metavar="CKPT", type=Path, help=checkpoint)
    parser.add_argument("--output", type=Path, required=True, metavar="W.pdparams", help="the file to write")
    parser.add_argument("--remove_prefix", "--remove-prefix", action="store_true", help=remove)  # the first is PASSL's
    add_encoder_option(parser)
    parser.add_argument("--prefix", help=prefix)
    return parser.parse_args(words)


def extract(args: argparse.Namespace) -> None:
    source = weights_file(args.checkpoint)
    if args.output.suffix != ".pdparams":
        raise InputError(f"--output {args.output}: the name must end in .pdparams for PaddleDetection and PaddleClas")
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
        strides = f"model.stem_stride {backbone.stem_stride}, model.last_stride {backbone.last_stride}"
        print(f"note     trained with {strides}: passl_densecl reads this from the file, other libraries must be told")
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
    taken = encoder if card.kind == PRETRAINING else card.encoder
    return card.replace(kind=BACKBONE, encoder=taken, depth=depth, classes=None, parents=(parent,))


@command
def main(words: list[str] | None = None) -> int:
    extract(parse_arguments(words))
    return 0
