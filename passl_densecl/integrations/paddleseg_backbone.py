"""A plain, dilated ResNet for PaddleSeg, whose own ResNets have a deep stem that pre-trained weights do not fit.

As a plug-in: ``from passl_densecl.integrations import paddleseg_backbone; paddleseg_backbone.register()`` before
PaddleSeg reads a config with ``backbone: {type: DenseCLResNet, …}``. As a command, in front of any of PaddleSeg's
tools:
``python …/passl_densecl/integrations/paddleseg_backbone.py tools/train.py --config …``.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import paddle
from paddle import nn
from paddle.vision.models.resnet import BasicBlock, BottleneckBlock

if __name__ == "__main__":
    # A clone of this project need not be installed. What PaddleSeg's tool imports must not be found beside this file.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from passl_densecl.errors import InputError
from passl_densecl.models.resnet import ResNetBackbone, initialize
from passl_densecl.weights.load import load_strict
from passl_densecl.weights.read import read_backbone

DILATIONS = {32: (1, 1), 16: (1, 2), 8: (2, 4)}  # output stride → dilation of the third and fourth stage


class DenseCLResNet(ResNetBackbone):
    """Normalized RGB (B, 3, height, width) → [C2, C3, C4, C5], with C5 at 1/`output_stride` of the image's size.

    Args:
        depth: 18, 34, 50, 101 or 152.
        output_stride: 8 as published for segmentation, 16, or 32 for no dilation. Weights fit all of them.
        pretrained: weights of any kind this project reads; null starts from random ones.
        prefix: what stands before the wanted backbone's names, where the file holds several.
        in_channels: 3; PaddleSeg may name it.

    Raises:
        InputError: a depth, stride or number of channels that is none of these; weights that do not fit whole.
    """

    def __init__(
        self,
        depth: int = 50,
        output_stride: int = 8,
        pretrained: str | None = None,
        in_channels: int = 3,
        prefix: str | None = None,
    ) -> None:
        if depth not in (18, 34, 50, 101, 152):
            raise InputError(f"backbone.depth {depth}: expected 18, 34, 50, 101 or 152")
        if output_stride not in DILATIONS:
            raise InputError(
                f"backbone.output_stride {output_stride}: expected one of {', '.join(map(str, DILATIONS))}"
            )
        if in_channels != 3:
            raise InputError(f"backbone.in_channels {in_channels}: these weights take RGB, 3 channels")
        super().__init__(BasicBlock if depth < 50 else BottleneckBlock, depth, num_classes=0, with_pool=False)
        widest = 512 if depth < 50 else 2048
        self.feat_channels = [widest // 8, widest // 4, widest // 2, widest]  # PaddleSeg's heads ask for it
        previous = 1
        for stage, dilation in zip((self.layer3, self.layer4), DILATIONS[output_stride], strict=True):
            if dilation > 1:
                _dilate(stage, previous, dilation)
            previous = dilation
        initialize(self.named_parameters(), seed=0)
        if pretrained is not None:
            self._load(pretrained, prefix)

    def forward(self, x: paddle.Tensor) -> list[paddle.Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return list(self.extract_feat(x, (0, 1, 2, 3)))

    def _load(self, path: str, prefix: str | None) -> None:
        taken = read_backbone(Path(path), prefix=prefix)
        load_strict(self, taken.backbone)
        # PaddleSeg says nothing of backbones that load themselves, and the count is what users must see.
        print(f"passl_densecl: {len(taken.backbone)}/{len(self.state_dict())} tensors of {path}", flush=True)


def _dilate(stage: nn.Layer, before: int, dilation: int) -> None:
    """Keep the map's size through a stage: strides become 1, and 3×3 convolutions spread instead.

    A convolution that had a stride still looks at the map before it, by the dilation of the stage `before`; those
    behind it spread by `dilation`. So the map holds the plain network's at every second position (every fourth …), and
    more between. Convolutions are replaced by others of the same names and shapes: the same weights fit.
    """
    for parent in stage.sublayers():
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Conv2D):
                outputs, inputs, window = layer.weight.shape[:3]
                gap = 1 if window == 1 else before if layer._stride[0] > 1 else dilation
                same = nn.Conv2D(inputs, outputs, window, 1, padding=gap * (window // 2), dilation=gap, bias_attr=False)
                parent.add_sublayer(name, same)


def register() -> None:
    """Make `DenseCLResNet` known to PaddleSeg's configs; repeated calls do nothing.

    Raises:
        InputError: PaddleSeg cannot be imported.
    """
    try:
        from paddleseg.cvlibs import manager  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"PaddleSeg cannot be imported ({error}); install it, or run from its clone with PYTHONPATH=."
        ) from None
    if "DenseCLResNet" not in manager.BACKBONES.components_dict:
        manager.BACKBONES.add_component(DenseCLResNet)


def main() -> int:
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        print("usage: paddleseg_backbone.py PaddleSeg/tools/TOOL.py ITS ARGUMENTS", file=sys.stderr)
        return 2
    sys.argv = sys.argv[1:]
    sys.path[:0] = [str(Path(sys.argv[0]).resolve().parent), str(Path(sys.argv[0]).resolve().parents[1])]
    try:
        register()
    except InputError as error:
        print(f"paddleseg_backbone.py: {error}", file=sys.stderr)
        return 2
    runpy.run_path(sys.argv[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
