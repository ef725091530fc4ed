"""The five toolboxes: their names, where their files are, how to start them, and what shows that the weights load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from passl_densecl.config.packaged import TOOLBOX_CONFIGS, config_folder
from passl_densecl.errors import InputError, option

CONFIGS = config_folder() / TOOLBOX_CONFIGS
TOTAL_BATCH = 16  # images a step over all devices, in every published detection and segmentation recipe
IMAGES_PER_DEVICE_MAX = 4  # as many 800×1333 images as fit a usual device; `images_per_gpu` overrules it

Kind = Literal["paddledetection", "paddleseg", "paddleclas", "detectron2", "adelaidet"]


@dataclass(frozen=True)
class Toolbox:
    """One toolbox. Paths are relative to its clone; `models` maps a --model to a file under configs/downstream."""

    name: Kind
    title: str
    target: str  # of weights/convert.py
    suffix: str  # of the file of weights
    models: Mapping[str, str]
    place: str  # the folder of the clone from which the `_BASE_` paths of our configs are right
    train: str
    proof: str  # the line of the log that tells whether the weights were used
    total_batch: int = TOTAL_BATCH
    images_per_device: int = IMAGES_PER_DEVICE_MAX

    def config(self, model: str | None) -> tuple[str, Path]:
        """(model, our config for it); the first model where none is named.

        Raises:
            InputError: no such model for this toolbox, or the configs are missing (an installed package has none).
        """
        model = model or next(iter(self.models))
        if model not in self.models:
            raise InputError(f"{option('model', model)}: for {self.title} there are {', '.join(self.models)}")
        path = CONFIGS / self.name / self.models[model]
        if not path.is_file():
            raise InputError(f"{path} is missing: the package was installed without its configs")
        return model, path


TOOLBOXES: dict[Kind, Toolbox] = {
    toolbox.name: toolbox
    for toolbox in (
        Toolbox(
            "paddledetection",
            "PaddleDetection",
            "paddledetection",
            ".pdparams",
            {
                "fcos": "fcos_r50_fpn_1x_coco.yml",
                "solov2": "solov2_r50_fpn_1x_coco.yml",
                "mask_rcnn": "mask_rcnn_r50_fpn_1x_coco.yml",
                "faster_rcnn": "faster_rcnn_r50_fpn_1x_coco.yml",
                "faster_rcnn_voc": "faster_rcnn_r50_fpn_voc0712.yml",
            },
            "configs/densecl",
            "tools/train.py -c {config} --eval",
            "'Finish loading model weights' comes even when nothing fits; proof is that no line '… is not used in the "
            "model' comes before it",
        ),
        Toolbox(
            "paddleseg",
            "PaddleSeg",
            "paddle",
            ".pdparams",
            {"fcn_voc": "fcn_r50_voc12aug.yml", "fcn_cityscapes": "fcn_r50_cityscapes.yml"},
            "configs/densecl",
            "{plugin} tools/train.py --config {config} --do_eval --use_vdl",
            "'passl_densecl: {count}/{count} tensors of {weights}'",
        ),
        Toolbox(
            "paddleclas",
            "PaddleClas",
            "paddleclas",
            ".pdparams",
            {"finetune": "resnet50_finetune.yml"},
            "ppcls/configs/densecl",
            "tools/train.py -c {config}",
            "'Finish load pretrained model' comes even when nothing fits; Paddle warns about each name that is "
            "missing: only fc's may be",
            total_batch=256,
            images_per_device=64,
        ),
        Toolbox(
            "detectron2",
            "detectron2",
            "detectron2",
            ".pkl",
            {"faster_rcnn_voc": "faster_rcnn_r50_c4_voc_24k.yml", "mask_rcnn": "mask_rcnn_r50_fpn_1x_coco.yml"},
            "configs/densecl",
            "tools/train_net.py --config-file {config} --num-gpus {gpus}",
            "a table of names, and after it no backbone name under 'Some model parameters or buffers are not found'",
        ),
        Toolbox(
            "adelaidet",
            "AdelaiDet",
            "detectron2",
            ".pkl",
            {"fcos": "FCOS_R50_1x_DenseCL.yml", "solov2": "SOLOv2_R50_1x_DenseCL.yml"},
            "configs/densecl",
            "tools/train_net.py --config-file {config} --num-gpus {gpus}",
            "a table of names, and after it no backbone name under 'Some model parameters or buffers are not found'",
        ),
    )
}
