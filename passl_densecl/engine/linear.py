"""Linear evaluation: how good are frozen features for classification? Trains a linear layer, or only evaluates one."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F

from passl_densecl.config import RANDOM, LinearConfig
from passl_densecl.data.datasets import ImageSet, check_decodable, scan_images
from passl_densecl.data.labeled import EvaluationLoader, LabeledLoader
from passl_densecl.disk import make_writable, whole_file
from passl_densecl.distributed import collectives as dist
from passl_densecl.distributed import process_group
from passl_densecl.distributed.device import set_device
from passl_densecl.engine.learner import Learner, amp_context
from passl_densecl.engine.record import check_classes
from passl_densecl.engine.run import NO_BEST, Resume, Run, open_run
from passl_densecl.engine.start import check_strides, load_classifier, load_pretrained
from passl_densecl.errors import InputError, option
from passl_densecl.models.linear import LinearClassifier
from passl_densecl.reliability.bad_images import BadImages
from passl_densecl.reliability.checkpoint import Checkpoints
from passl_densecl.reliability.log import SilentLog
from passl_densecl.reliability.pictures import first_views
from passl_densecl.weights.files import weights_file
from passl_densecl.weights.load import load_strict
from passl_densecl.weights.read import read_classifier
from passl_densecl.weights.recorded import recorded_classes


def linear_eval(
    config: LinearConfig,
    *,
    pretrained: str | None = None,
    load: str | None = None,
    prefix: str | None = None,
    evaluate_only: bool = False,
    resume: str | None = None,
    overwrite: bool = False,
    accept_changes: bool = False,
) -> int:
    """Train a classifier on the frozen backbone `pretrained` and evaluate it each epoch. Returns the exit code.

    `pretrained` is any file or folder with a backbone (extracted, with a prefix, or a training checkpoint), or
    "random"; where a file holds several, the one behind `prefix` is taken.
    `load` is a classifier's checkpoint to start from; with `evaluate_only` nothing is trained, a line is printed and
    `evaluation.json` is written into the run folder. `overwrite` is as in `pretrain`. Raises InputError for invalid
    input, RunError when the run cannot continue.
    """
    if evaluate_only:
        if load is None:
            raise InputError(
                f"{option('evaluate_only')} needs a trained classifier: {option('load')}, with its folder or "
                "model.pdparams"
            )
        return _evaluate_only(config, load, prefix)
    refusal = (
        f"linear evaluation needs a backbone: {option('pretrained')}, with an extracted file or a training "
        f"checkpoint, or {option('pretrained', RANDOM)} for the baseline of untrained weights"
    )
    if load is not None and pretrained is not None:
        raise InputError(f"give {option('load')} (a classifier) or {option('pretrained')} (a backbone), not both")
    given, how = pretrained is not None or load is not None, Resume(resume, overwrite, accept_changes)
    with open_run(config, how, refuse_new=None if given else refusal) as run:
        return _train(run, pretrained, load, prefix)


def _train(run: Run[LinearConfig], pretrained: str | None, load: str | None, prefix: str | None) -> int:
    config, log = run.config, run.log
    train_set, val_set, workers = _find_images(run)
    model = LinearClassifier(config.model.backbone, len(train_set.classes), config.seed)
    if run.start is not None:
        check_classes(run.start, train_set.classes)
        run.best = _best_of(run)
    elif load is not None:
        log.line("weights", load_classifier(model, load, config.model.backbone, prefix))
    else:
        log.line("weights", load_pretrained(model, str(pretrained), config.model.backbone, prefix))
    run.describe_start(load=load, pretrained=pretrained)
    run.describe_recipe(
        f", SGD lr {config.base_lr:g} {config.schedule.name}; frozen ResNet-{config.model.depth}, one linear layer"
    )
    learner = Learner.build(model, config, run.start)
    frozen = fingerprint(model.backbone)
    loader = LabeledLoader(
        train_set,
        config.data.train_transforms,
        seed=config.seed,
        batch_size=config.batch_size,
        rank=dist.rank(),
        world_size=dist.world_size(),
        num_workers=workers,
    )
    run.facts = {"classes": list(train_set.classes)}
    run.evaluation = Validation(run, val_set, workers)
    run.begin(learner, train_set)
    with run.stop.at_steps():
        for step, batch in loader.steps(run.first_step, run.last_step):
            learner.optimizer.set_lr(run.learning_rate(step))
            if step == 0:
                log.images(1, partial(first_views, batch.images))
            with amp_context(config.amp):
                logits = learner.parallel(batch.images)
            loss = F.cross_entropy(logits.astype("float32"), batch.labels)
            dist.wait_for_all()
            learner.scaler.scale(loss).backward()
            learner.step()
            learner.optimizer.clear_grad()
            losses = {"loss": loss, "train_top1": (logits.argmax(axis=1) == batch.labels).astype("float32").mean()}
            facts = {"lr": learner.optimizer.get_lr()}
            if run.after_step(step, batch.bad, [losses], facts, waited=loader.wait_seconds):
                return run.stop.exit_code
    if fingerprint(model.backbone) != frozen:
        raise RuntimeError("the frozen backbone changed during linear evaluation: its result is not valid")
    best, folder = run.best, run.checkpoints.folder
    log.line("done", f"best top-1 {best['top1']:.2%} in epoch {best['epoch']} · {folder / best['name']}")
    return 0


def _evaluate_only(config: LinearConfig, load: str, prefix: str | None) -> int:
    set_device(config.device)
    process_group.start()
    path = weights_file(Path(load))
    check_strides("load", load, config.model.backbone)
    arrays, classes = read_classifier(path, prefix=prefix), recorded_classes(path)
    val_set = scan_images(**config.data.val.source(), labeled=True, classes=classes)
    check_decodable(val_set)
    count = len(arrays["fc.bias"]) if "fc.bias" in arrays else len(val_set.classes)
    if count != len(val_set.classes):
        raise InputError(
            f"{option('load', load)}: a classifier of {count} classes, but {config.data.val.root!r} holds "
            f"{len(val_set.classes)}; evaluate it on the classes that it was trained for"
        )
    model = LinearClassifier(config.model.backbone, count)
    load_strict(model, arrays, source=load)
    run = Run(config, None, Checkpoints(config.run_dir, config.checkpoint.keep), _ConsoleLog())
    run.warn_of_amp()
    make_writable(config.run_dir, "output_dir")
    run.bad_images = BadImages(config.run_dir, val_set, config.data.max_bad_share, run.log, resumed=True)
    workers, _ = run.choose_workers(config.data.train_transforms, views=1)
    top1, top5, judged = evaluate(run, model, val_set, workers, "evaluate")
    if dist.is_main():
        result = {"weights": str(path), "images": judged, "bad_images": len(val_set) - judged, "classes": count}
        result |= {"top1": top1, "top5": top5}
        target = config.run_dir / "evaluation.json"
        with whole_file(target) as file:
            file.write((json.dumps(result, indent=1) + "\n").encode())
        print(
            f"top-1 {top1:.2%}  top-5 {top5:.2%}  on {judged:,} images of {count} classes{_left_out(val_set, judged)} "
            f"· {target}"
        )
    process_group.stop()
    return 0


class _ConsoleLog(SilentLog):
    """Notes and progress of the main process of an evaluation, which keeps no log."""

    def line(self, label: str, text: str) -> None:
        if dist.is_main():
            print(f"{label:<8} {text}", file=sys.stderr)

    def progress(self, title: str, done: int, total: int, text: str, *, record: bool = False) -> None:
        if dist.is_main() and sys.stderr.isatty():
            print(f"\r{title} {done}/{total} {text}", end="\n" if done == total else "", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- validation


class Validation:
    """Accuracy on the validation set at the end of each epoch; the best epoch's checkpoint stays."""

    selects_best, key = True, "val_top1"

    def __init__(self, run: Run[LinearConfig], val_set: ImageSet, workers: int) -> None:
        self._run, self._val_set, self._workers = run, val_set, workers

    def due(self, done: int) -> bool:
        return done % self._run.steps_per_epoch == 0

    def run(self, model: LinearClassifier, done: int) -> float:
        """Log top-1 and top-5 after `done` steps, and return top-1 (0 to 1)."""
        run, epoch = self._run, done // self._run.steps_per_epoch
        title = f"epoch {epoch}/{run.config.epochs}"
        top1, top5, judged = evaluate(run, model, self._val_set, self._workers, f"{title} val")
        left_out = _left_out(self._val_set, judged)
        run.log.line("val", f"{title}  top-1 {top1:.2%}  top-5 {top5:.2%}{left_out}")
        run.log.metrics({"step": done, "epoch": epoch, "val_top1": top1, "val_top5": top5})
        return top1


@paddle.no_grad()
def evaluate(
    run: Run[LinearConfig], model: LinearClassifier, val_set: ImageSet, workers: int, title: str
) -> tuple[float, float, int]:
    """Exact (top-1, top-5, number of images) over all processes: every image that can be decoded counts once, the
    others are left out. The model is left in train mode. Raises RunError when too many cannot be decoded.
    """
    config, world = run.config, dist.world_size()
    loader = EvaluationLoader(
        val_set,
        config.data.val_transforms,
        batch_size=max(1, config.batch_size // world),
        rank=dist.rank(),
        world_size=world,
        num_workers=workers,
    )
    model.eval()
    right1 = right5 = seen = 0
    for batch in loader:
        with amp_context(config.amp):
            logits = model(batch.images)
        ranked = logits.astype("float32").topk(min(5, logits.shape[1]), axis=1)[1]
        good = ~np.isin(batch.indices, list(batch.bad))  # an image that replaces a bad one is counted at its own index
        hits = (ranked == batch.labels.unsqueeze(1)).numpy()[good].sum(axis=0).tolist()
        right1, right5, seen = right1 + hits[0], right5 + sum(hits), seen + len(batch.indices)
        run.bad_images.add(batch.bad, val_set)
        run.log.progress(title, seen, math.ceil(len(val_set) / world), "")
    model.train()
    right1, right5, seen = (int(value) for value in dist.all_reduce_sum([right1, right5, seen]))
    if seen != len(val_set):
        raise RuntimeError(
            f"evaluated {seen} of {len(val_set)} images: the processes do not agree on the validation set"
        )
    seen -= run.bad_images.judge(val_set)
    return right1 / seen, right5 / seen, seen


def _left_out(images: ImageSet, judged: int) -> str:
    """What a line of results says of images that could not be decoded; usually nothing."""
    bad = len(images) - judged
    return f" ({bad:,} more cannot be decoded and are left out)" if bad else ""


# ---------------------------------------------------------------- before the loop


def _find_images(run: Run[LinearConfig]) -> tuple[ImageSet, ImageSet, int]:
    """(training set, validation set, data workers); sets the run's steps per epoch. Raises InputError."""
    config, world = run.config, dist.world_size()
    train, val = config.data.train, config.data.val
    train_set = scan_images(**train.source(), labeled=True)
    val_set = scan_images(**val.source(), labeled=True, classes=train_set.classes)
    if config.batch_size % world:
        raise InputError(
            f"batch_size {config.batch_size} cannot be shared by {world} processes; set batch_size "
            f"{max(1, config.batch_size // world) * world}"
        )
    if len(train_set) < config.batch_size:
        raise InputError(
            f"data.train.root: {train_set.describe()}, fewer than batch_size {config.batch_size}; set batch_size "
            f"{2 ** int(math.log2(max(len(train_set), 1)))} or less"
        )
    run.steps_per_epoch = len(train_set) // config.batch_size
    for images in (train_set, val_set):
        check_decodable(images)
    workers, why = run.choose_workers(config.data.train_transforms, views=1)
    run.log.line("data", f"train {train_set.describe()}; {why}")
    run.log.line("data", f"val   {val_set.describe()}")
    return train_set, val_set, workers


def _best_of(run: Run[LinearConfig]) -> dict[str, Any]:
    """The best epoch so far by the checkpoint that is continued; none when its own checkpoint no longer exists."""
    assert run.start is not None
    best, folder = run.start.state["best"], run.checkpoints.folder
    if best["name"] and not (folder / best["name"]).is_dir():
        run.log.line(
            "note",
            f"the best epoch so far, {best['epoch']} (top-1 {best['top1']:.2%}), has no checkpoint in {folder}: the "
            "best of those to come counts",
        )
        return dict(NO_BEST)
    return best


def fingerprint(layer: paddle.nn.Layer) -> str:
    """SHA-256 over every tensor of a layer, BatchNorm's statistics included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(layer.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()
