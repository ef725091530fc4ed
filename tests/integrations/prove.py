"""`make test-downstream`: PaddleDetection, PaddleClas and PaddleSeg from PyPI load our weights and train from them.

Every tensor of the toolboxes' backbones is compared with the weights that went in, their last map with ours; a
classifier and a segmenter train a few steps, and FCOS trains and is evaluated. Each step is a process of its own,
because PaddleDetection keeps its configuration in one global table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

import numpy as np
from steps import Arrays, compare, image, random_weights, run

from passl_densecl.integrations.matching import Network
from passl_densecl.integrations.prepare import Prepared, coco_layout, prepare
from passl_densecl.integrations.toolboxes import Kind
from passl_densecl.integrations.yaml_files import dump, put, read_yaml
from passl_densecl.weights.files import read_arrays
from passl_densecl.weights.writing import write_pickle

HERE = Path(__file__).resolve().parent
DEPTHS = (18, 34, 50, 101, 152)


def last_map(arrays: Arrays, depth: int, image: np.ndarray) -> np.ndarray:
    """C5 of paddle.vision's network with these weights."""
    import paddle
    from paddle.vision.models.resnet import BasicBlock, BottleneckBlock, ResNet

    network = ResNet(BasicBlock if depth < 50 else BottleneckBlock, depth, num_classes=0, with_pool=False)
    network.set_state_dict({name: paddle.to_tensor(array) for name, array in arrays.items()})
    network.eval()
    with paddle.no_grad():
        return network(paddle.to_tensor(image)).numpy()


# Steps: each gives one line for the summary, or raises.


def prepared(toolbox: Kind, scratch: Path, model: str | None = None, data: Path | None = None) -> Prepared:
    clone = HERE / "bases" if toolbox != "paddleclas" else None
    weights, output = scratch / "r50.pdparams", scratch / f"{toolbox}_{model}"
    small = {"gpus": 0, "images_per_gpu": 2}
    return prepare(toolbox, weights, output, model=model, data=data, toolbox_dir=clone, **small)


def ppdet_model(config: Path):
    from ppdet.core.workspace import create, load_config

    with contextlib.redirect_stdout(sys.stderr):
        return create(load_config(str(config)).architecture)


def prove_ppdet(scratch: Path, model: str) -> str:
    """Every tensor and the last map of a detector's backbone, loaded by PaddleDetection itself."""
    import paddle
    from ppdet.utils.checkpoint import load_pretrain_weight

    done = prepared("paddledetection", scratch, "fcos" if model == "faster_rcnn_c4" else model)
    is_c4 = model == "faster_rcnn_c4"
    detector = ppdet_model(HERE / "faster_rcnn_c4.yml" if is_c4 else done.config)
    load_pretrain_weight(detector, str(done.conversion.output))
    arrays = read_arrays(scratch / "r50.pdparams")
    equal = compare(detector.state_dict(), arrays, Network("paddledetection", 50, res5_in_head=is_c4))
    detector.eval()
    with paddle.no_grad():
        maps = detector.backbone({"image": paddle.to_tensor(image())})
        c5 = (detector.bbox_head.head.res5(maps[-1]) if is_c4 else maps[-1]).numpy()
    difference = float(np.abs(c5 - last_map(arrays, 50, image())).max())
    assert equal == 265, f"{equal} of 265 tensors"
    assert difference < 1e-4, f"C5 differs by {difference}"
    return f"PaddleDetection {model}: {equal}/265 tensors equal, largest difference of C5 {difference:.1e}"


def prove_control(scratch: Path, _: str) -> str:
    """The comparison can fail: a file in paddle.vision's names loads nothing, and the toolbox does not mind."""
    from ppdet.utils.checkpoint import load_pretrain_weight

    detector = ppdet_model(prepared("paddledetection", scratch, "fcos").config)
    load_pretrain_weight(detector, str(scratch / "r50.pdparams"))
    arrays = read_arrays(scratch / "r50.pdparams")
    equal = compare(detector.state_dict(), arrays, Network("paddledetection", 50))
    assert equal == 0, f"{equal} tensors of a file with foreign names were loaded"
    return "control: of a file with paddle.vision's names PaddleDetection takes 0/265, without an error"


def prove_names(scratch: Path, _: str) -> str:
    """The names of all five depths in both toolboxes' own networks."""
    from paddleclas.ppcls.arch.backbone.legendary_models import resnet as ppcls
    from ppdet.modeling.backbones.resnet import ResNet

    for depth in DEPTHS:
        theirs = set(ResNet(depth=depth, norm_type="bn", freeze_norm=False, freeze_at=-1).state_dict())
        ours = set(Network("paddledetection", depth).plain_shapes())
        assert theirs == ours, f"PaddleDetection ResNet-{depth}: {sorted(theirs ^ ours)[:5]}"
        theirs = {n for n in getattr(ppcls, f"ResNet{depth}")().state_dict() if not n.startswith("fc.")}
        ours = set(Network("paddleclas", depth).plain_shapes())
        assert theirs == ours, f"PaddleClas ResNet-{depth}: {sorted(theirs ^ ours)[:5]}"
    return (
        f"names: ResNet-{', -'.join(map(str, DEPTHS))} equal those of PaddleDetection's and PaddleClas's own networks"
    )


def prove_paddleclas(scratch: Path, _: str) -> str:
    """Every tensor and the last map of PaddleClas's ResNet50."""
    import paddle
    from paddleclas.ppcls.arch.backbone.legendary_models.resnet import ResNet50
    from paddleclas.ppcls.utils.save_load import load_dygraph_pretrain

    done = prepared("paddleclas", scratch)
    network = ResNet50(class_num=7)
    load_dygraph_pretrain(network, str(done.conversion.output.with_suffix("")))
    arrays = read_arrays(scratch / "r50.pdparams")
    equal = compare(network.state_dict(), arrays, Network("paddleclas", 50))
    network.eval()
    with paddle.no_grad():
        features = network.blocks(network.max_pool(network.stem(paddle.to_tensor(image())))).numpy()
    difference = float(np.abs(features - last_map(arrays, 50, image())).max())
    assert equal == 265, f"{equal} of 265 tensors"
    assert difference < 1e-4, f"C5 differs by {difference}"
    return f"PaddleClas ResNet50: {equal}/265 tensors equal, largest difference of C5 {difference:.1e}"


def prove_training(scratch: Path, data: str) -> str:
    """FCOS trains from the weights, nothing of the backbone stays frozen, and COCO evaluation gives its numbers."""
    import paddle
    from coco import write_coco
    from ppdet.core.workspace import load_config
    from ppdet.engine import Trainer

    root = Path(data) if data else write_coco(scratch / "coco")
    done = prepared("paddledetection", scratch, "fcos", root)
    content = read_yaml(done.config)
    for section in ("TrainDataset", "EvalDataset"):
        content[section]["sample_num"] = 8  # a few of a folder of any size
    # After four steps no score of 80 classes passes the usual 0.025, and the toolbox evaluates nothing where nothing is
    # found.
    put(content, ("FCOSHead", "nms", "score_threshold"), 0.0001)
    done.config.write_text(dump(content))
    config = load_config(str(done.config))
    config.epoch, config.save_dir, config.log_iter = 1, str(scratch / "trained"), 1
    paddle.seed(0)
    trainer = Trainer(config, mode="train")
    trainer.load_weights(config.pretrain_weights)
    trainer.train(validate=False)
    loss = float(trainer.status["training_staus"].get()["loss"])  # the toolbox spells it so
    assert np.isfinite(loss), f"the loss is {loss}"
    arrays, state = read_arrays(scratch / "r50.pdparams"), trainer.model.state_dict()
    still = compare(state, arrays, Network("paddledetection", 50))
    assert still == 0, f"{still} of 265 tensors did not move: something is frozen"
    evaluator = Trainer(config, mode="eval")
    evaluator._reset_metrics = lambda: None  # it forgets its numbers at the end of an evaluation
    evaluator.load_weights(str(next((scratch / "trained").rglob("model_final.pdparams"))))
    evaluator.evaluate()
    results = evaluator._metrics[0].get_results()["bbox"]
    assert len(results) == 12, f"no COCO numbers: {results}"
    assert all(-1 <= value <= 1 for value in results), f"no COCO numbers: {results}"
    perfect = evaluate_truth(root / coco_layout(root)[1][1], scratch)
    assert perfect > 0.999, f"ground truth as predictions has AP {perfect}"
    return (
        f"FCOS: {len(trainer.loader)} steps, all 265 tensors of the backbone moved; COCO evaluation: AP "
        f"{results[0]:.3f}, and {perfect:.3f} for the ground truth itself"
    )


def prove_classifier(scratch: Path, _: str) -> str:
    """PaddleClas's network, built from our config and loaded by its own function, trains a few steps.

    Its wheel holds networks and loading, and neither data nor trainer: the loop is here, with the config's optimizer.
    """
    import paddle
    from coco import write_labels
    from paddleclas.ppcls.arch import build_model
    from paddleclas.ppcls.utils.save_load import load_dygraph_pretrain

    root = write_labels(scratch / "labels")
    config = read_yaml(prepared("paddleclas", scratch, data=root).config)
    network = build_model(config)
    load_dygraph_pretrain(network, config["Global"]["pretrained_model"])
    arrays, ours = read_arrays(scratch / "r50.pdparams"), Network("paddleclas", 50)
    before = compare(network.state_dict(), arrays, ours)
    recipe = config["Optimizer"]
    rate, momentum, decay = recipe["lr"]["learning_rate"], recipe["momentum"], recipe["regularizer"]["coeff"]
    optimizer = paddle.optimizer.Momentum(rate, momentum, network.parameters(), weight_decay=decay)
    images, labels = labeled(root)
    losses = []
    for _step in range(3):
        loss = paddle.nn.functional.cross_entropy(network(paddle.to_tensor(images)), paddle.to_tensor(labels))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    after = compare(network.state_dict(), arrays, ours)
    assert before == 265, f"{before} of 265 tensors at the first step"
    assert np.isfinite(losses).all(), f"losses {losses}"
    assert after == 0, f"{after} of 265 tensors did not move: something is frozen"
    start = f"PaddleClas ResNet50 trains: {before}/265 tensors at the first step"
    return f"{start}, losses {numbers(losses)}, all of them moved"


def labeled(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """((B, 3, 96, 128) normalized RGB, (B,) labels) of a list as PaddleClas reads it."""
    import cv2

    from passl_densecl.transforms import MEAN, STD

    rows = [line.split() for line in (root / "train_list.txt").read_text().splitlines()]
    pixels = [cv2.resize(cv2.imread(str(root / name)), (128, 96))[:, :, ::-1] / 255 for name, _ in rows]
    images = (np.stack(pixels) - MEAN) / STD
    return images.transpose(0, 3, 1, 2).astype("float32"), np.array([int(label) for _, label in rows])


def prove_segmenter(scratch: Path, _: str) -> str:
    """PaddleSeg's own trainer runs FCN with the plug-in backbone, from our config, on a few masks in VOC's layout.

    The release 2.8.0 fails on Paddle 3.3.1 twice: its cross-entropy multiplies floats by integers, and its log indexes
    a number. So the cross-entropy is Paddle's own here, and the log would come after the last step.
    """
    import paddle
    from coco import write_voc
    from paddleseg.core import train
    from paddleseg.cvlibs import Config, SegBuilder

    from passl_densecl.integrations import paddleseg_backbone

    paddleseg_backbone.register()
    done = prepared("paddleseg", scratch, "fcn_voc", write_voc(scratch / "voc"))
    content = read_yaml(done.config)
    for step in content["train_dataset"]["transforms"]:
        if "crop_size" in step:
            step["crop_size"] = [128, 128]
    done.config.write_text(dump(content))
    config = Config(str(done.config), iters=3)
    builder = SegBuilder(config)
    model = builder.model
    arrays, ours = read_arrays(scratch / "r50.pdparams"), Network("paddleseg", 50)
    before = compare(model.backbone.state_dict(), arrays, ours)
    losses, criterion = [], paddle.nn.CrossEntropyLoss(axis=1, ignore_index=255)

    def kept(logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        losses.append(criterion(logits, labels))
        return losses[-1]

    lengths = {"iters": 3, "batch_size": config.batch_size, "log_iters": 1000, "save_dir": str(scratch / "trained_fcn")}
    terms = {"types": [kept], "coef": [1]}
    train(model, builder.train_dataset, optimizer=builder.optimizer, losses=terms, **lengths)
    after = compare(model.backbone.state_dict(), arrays, ours)
    losses = [float(loss) for loss in losses]
    assert before == 265, f"{before} of 265 tensors at the first step"
    assert len(losses) == 3, f"{len(losses)} steps"
    assert np.isfinite(losses).all(), f"losses {losses}"
    assert after == 0, f"{after} of 265 tensors did not move: something is frozen"
    return f"PaddleSeg FCN trains: {before}/265 tensors at the first step, losses {numbers(losses)}, all of them moved"


def numbers(losses: list[float]) -> str:
    return " ".join(f"{loss:.3f}" for loss in losses)


def evaluate_truth(annotations: Path, scratch: Path) -> float:
    """AP of PaddleDetection's COCO evaluation when the annotations themselves are the predictions: 1."""
    from ppdet.metrics.coco_utils import cocoapi_eval

    truth = json.loads(annotations.read_text())["annotations"]
    boxes = [{key: one[key] for key in ("image_id", "category_id", "bbox")} | {"score": 1.0} for one in truth]
    (scratch / "truth.json").write_text(json.dumps(boxes))
    return float(cocoapi_eval(str(scratch / "truth.json"), "bbox", anno_file=str(annotations))[0])


STEPS = {
    "names": (prove_names, ""),
    "fcos": (prove_ppdet, "fcos"),
    "solov2": (prove_ppdet, "solov2"),
    "faster_rcnn_c4": (prove_ppdet, "faster_rcnn_c4"),
    "control": (prove_control, ""),
    "paddleclas": (prove_paddleclas, ""),
    "classifier": (prove_classifier, ""),
    "segmenter": (prove_segmenter, ""),
    "training": (prove_training, ""),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scratch", type=Path, required=True, help="a folder for weights, configs and logs")
    parser.add_argument("--data", type=Path, help="a folder in COCO's layout (default: drawn shapes)")
    parser.add_argument("--step", choices=tuple(STEPS), help="run one step here, in this process")
    parser.add_argument("--time-limit", type=float, default=240, help="seconds a step may take")
    args = parser.parse_args()
    scratch, data = args.scratch.resolve(), str(args.data.resolve()) if args.data else ""
    scratch.mkdir(parents=True, exist_ok=True)
    if args.step:
        step, argument = STEPS[args.step]
        print(f"proved {step(scratch, argument or data)}", flush=True)
        return 0
    write_pickle(scratch / "r50.pdparams", random_weights(50))
    arguments = ["--data", data] if data else []
    return 1 if [name for name in STEPS if not run(__file__, name, scratch, arguments, args.time_limit)] else 0


if __name__ == "__main__":
    sys.exit(main())
