"""Take the backbone out of a checkpoint, under the names of paddle.vision.

Nothing in CKPT is executed, whoever made it.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from passl_densecl.cli.command import Parser, Verb, check_outputs
from passl_densecl.cli.options import add_dtype_option, add_encoder_option
from passl_densecl.config import BackboneSpec
from passl_densecl.errors import InputError
from passl_densecl.weights.card import BACKBONE, FOREIGN, PRETRAINING, Card, Parent
from passl_densecl.weights.files import weights_file
from passl_densecl.weights.read import read_backbone
from passl_densecl.weights.recorded import recorded_backbone, recorded_card
from passl_densecl.weights.writing import write_pickle

CHECKPOINT = "a run folder (its newest checkpoint), a checkpoint folder, or a file of weights, ours or PASSL's"
LINEAR_CONFIGS = {  # the linear evaluation that goes with a backbone
    BackboneSpec(18, 2, 2): "demo/linear_r18",
    BackboneSpec(18, 4, 1): "small/linear_r18",
    BackboneSpec(50, 4, 2): "moco_clas_r50",
    BackboneSpec(101, 4, 2): "moco_clas_r101",
}


def add_options(parser: Parser) -> None:
    remove = "write conv1.weight instead of backbone.conv1.weight"
    output = "the file to write (default: in the run's folder, backbone_CHECKPOINT.pdparams)"
    parser.add_place("--weights", metavar="CKPT", type=Path, help=CHECKPOINT)
    parser.add_argument("--output", type=Path, metavar="W.pdparams", help=output)
    parser.add_argument("--remove_prefix", "--remove-prefix", action="store_true", help=remove)  # the first is PASSL's
    add_encoder_option(parser)
    add_dtype_option(parser)


def extract(args: argparse.Namespace) -> None:
    source = weights_file(args.weights)
    if args.output is None:
        args.output = derived_output(source)
        check_outputs(args, ("output",))
    if args.output.suffix != ".pdparams":
        raise InputError(f"--output {args.output}: the name must end in .pdparams for PaddleDetection and PaddleClas")
    if args.output.exists() and args.output.samefile(source):
        raise InputError(f"--output {args.output} is the file to read; choose another name")
    taken = read_backbone(source, encoder=args.encoder, prefix=args.prefix, dtype=args.dtype)
    backbone = recorded_backbone(source) or BackboneSpec(taken.depth)
    prefix = "" if args.remove_prefix else "backbone."
    arrays = {prefix + name: array for name, array in taken.backbone.items()}
    write_pickle(args.output, arrays, card=backbone_card(source, taken.depth, args.encoder))

    print(f"read     {source} ({taken.kind})")
    print(f"kept     {len(taken.backbone)} arrays: ResNet-{taken.depth}, {taken.weight_count / 1e6:.2f} M weights")
    print(f"dropped  {', '.join(f'{group} {count}' for group, count in taken.dropped.items()) or 'nothing'}")
    if taken.converted:
        print(f"dtype    {taken.converted}")
    print(f"wrote    {args.output}, names like {prefix}conv1.weight")
    if not backbone.is_published:
        strides = f"model.stem_stride {backbone.stem_stride}, model.last_stride {backbone.last_stride}"
        print(f"note     trained with {strides}: passl_densecl reads this from the file, other libraries must be told")
    config = LINEAR_CONFIGS.get(backbone, "YOUR_LINEAR_CONFIG.yaml")
    print(f"next     densecl train {config} --pretrained {shlex.quote(str(args.output))}")


def derived_output(source: Path) -> Path:
    """RUN/backbone_epoch_0200.pdparams for a checkpoint of a run, else W_backbone.pdparams beside the file."""
    folder = source.parent
    if folder.parent.name == "checkpoints":
        return folder.parent.parent / f"backbone_{folder.name}.pdparams"
    return source.with_name(f"{source.stem}_backbone.pdparams")


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


main = Verb(
    __doc__, add_options, extract, examples=("extract output/densecl_r50 --output r50.pdparams --remove_prefix",)
)
