"""Linear evaluation: how good are frozen features for classification? Trains one linear layer, or only evaluates one."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F

from passl_densecl.config import BackboneConfig, LinearConfig
from passl_densecl.data.datasets import ImageSet, check_decodable, scan_images
from passl_densecl.data.loader import EvaluationLoader, LabeledLoader, choose_workers
from passl_densecl.disk import make_writable, whole_file
from passl_densecl.distributed import collectives as dist
from passl_densecl.distributed import process_group
from passl_densecl.engine.guard import check_finite
from passl_densecl.engine.optim import (
    build_optimizer,
    load_optimizer_state,
    optimizer_state,
    restore_scaler,
    scaler_state,
)
from passl_densecl.engine.start import (
    amp_context,
    check_same_start,
    checkpoint_name,
    enter_folder,
    entered,
    output_bytes,
    parents_of,
    read_fitting_backbone,
    warn_of_amp,
)
from passl_densecl.errors import InputError
from passl_densecl.models import LinearClassifier
from passl_densecl.reliability.bad_images import BadImages
from passl_densecl.reliability.checkpoint import Checkpoint, Checkpoints, bytes_of, report_start
from passl_densecl.reliability.log import SilentLog, Stopwatch, peak_memory_mb, set_device
from passl_densecl.reliability.signals import StopRequest
from passl_densecl.weights import load_strict, recorded_classes, weights_file
from passl_densecl.weights.card import run_card
from passl_densecl.weights.convert import read_classifier

RANDOM = "random"
NO_BEST = {"epoch": 0, "top1": -1.0, "name": ""}


def linear_eval(
    config: LinearConfig,
    *,
    pretrained: str | None = None,
    load: str | None = None,
    evaluate_only: bool = False,
    resume: str | None = None,
    overwrite: bool = False,
) -> int:
    """Train a classifier on the frozen backbone `pretrained` and evaluate it each epoch. Returns the exit code.

    `pretrained` is any file or folder with a backbone (extracted, with a prefix, or a training checkpoint), or "random".
    `load` is a classifier's checkpoint to start from; with `evaluate_only` nothing is trained, a line is printed and
    `evaluation.json` is written into the run folder. `overwrite` is as in `pretrain`. Raises InputError for whatever the
    user can mend, RunError for what befalls the run.
    """
    if evaluate_only:
        if load is None:
            raise InputError(
                "--evaluate-only needs a trained classifier: --load CHECKPOINT (its folder or model.pdparams)"
            )
        return _evaluate_only(config, load)

    def has_weights(start: Checkpoint | None) -> None:
        if start is None and pretrained is None and load is None:
            raise InputError(
                "linear evaluation needs a backbone: --pretrained WEIGHTS (an extracted file or a training checkpoint), or "
                f"--pretrained {RANDOM} for the baseline of untrained weights"
            )

    with entered(config, resume, overwrite, check=has_weights) as (start, checkpoints, log, stop):
        return _train(config, pretrained, load, start, checkpoints, log, stop, overwrite)


def _train(
    config: LinearConfig,
    pretrained: str | None,
    load: str | None,
    start: Checkpoint | None,
    checkpoints: Checkpoints,
    log: SilentLog,
    stop: StopRequest,
    overwrite: bool,
) -> int:
    train_set = scan_images(config.data.train.root, config.data.train.list_file, labeled=True)
    val_set = scan_images(config.data.val.root, config.data.val.list_file, labeled=True, classes=train_set.classes)
    steps_per_epoch = _check_counts(train_set, config)
    for images in (train_set, val_set):
        check_decodable(images)
    workers, why = _workers(config)
    log.line("data", f"train {train_set.describe()}; {why}")
    log.line("data", f"val   {val_set.describe()}")
    check_same_start(start)
    report_start(start, checkpoints, log)
    model = LinearClassifier(config.model.backbone, len(train_set.classes), config.seed)
    best, first = dict(NO_BEST), 0
    optimizer = build_optimizer(config.optimizer, model)
    scaler = paddle.amp.GradScaler(enable=config.amp.enabled and config.amp.dtype == "float16")
    if start is not None:
        load_strict(model, start.model)
        load_optimizer_state(optimizer, model, start.optimizer)
        restore_scaler(scaler, start.state.get("scaler"))
        first, best = start.step, _best_of(start, checkpoints, log)
        log.line("resume", f"{start.path}, step {first:,}")
    elif load is not None:
        load_classifier(model, load, log)
    else:
        load_pretrained(model, str(pretrained), config.model, log)
    frozen, parents = (
        fingerprint(model.backbone),
        parents_of(load or (None if pretrained == RANDOM else pretrained), start),
    )
    log.line(
        "recipe",
        f"{config.epochs} epochs × {steps_per_epoch:,} steps, batch {config.batch_size}, SGD lr {config.base_lr:g} "
        f"{config.schedule.name}; frozen ResNet-{config.model.depth}, one linear layer",
    )
    if config.batch_size != config.optimizer.reference_batch_size:
        log.line(
            "note",
            f"lr {config.optimizer.lr:g} is for batch {config.optimizer.reference_batch_size}; scaled linearly to "
            f"{config.base_lr:g} for batch {config.batch_size}",
        )
    warn_of_amp(config.amp, log)
    checkpoints.check_room(bytes_of(model), log, also=1)
    model.train()
    parallel = dist.parallel(model)
    loader = LabeledLoader(
        train_set,
        config.data.train_transforms,
        seed=config.seed,
        batch_size=config.batch_size,
        rank=dist.rank(),
        world_size=dist.world_size(),
        num_workers=workers,
    )
    last, stopwatch = steps_per_epoch * config.epochs, Stopwatch()
    bad_images = BadImages(
        config.run_dir,
        train_set,
        config.data.max_bad_share,
        log,
        resumed=start is not None,
        in_epoch=start.state.get("bad_in_epoch", 0) if start else 0,
    )
    enter_folder(start, checkpoints, log, overwrite, keep_also=best["name"])
    with stop.at_steps():
        for step, batch in loader.steps(first, last):
            optimizer.set_lr(
                config.base_lr * config.schedule(step, steps_per_epoch=steps_per_epoch, epochs=config.epochs)
            )
            with amp_context(config.amp):
                logits = parallel(batch.images)
            loss = F.cross_entropy(logits.astype("float32"), batch.labels)
            dist.wait_for_all()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.clear_grad()

            done = step + 1
            stopwatch.step(loader.wait_seconds)
            bad_images.add(batch.bad)
            ending = done % steps_per_epoch == 0
            epoch, images_per_epoch = (done - 1) // steps_per_epoch + 1, steps_per_epoch * config.batch_size
            if done % config.log_every_steps == 0 or ending:
                bad_images.meet(epoch, images_per_epoch, ends=ending)
                top1 = (logits.argmax(axis=1) == batch.labels).astype("float32").mean()
                report = dist.all_reduce_mean(paddle.stack([loss.detach(), top1]))
                _log_step(config, log, stopwatch, report, done, steps_per_epoch, optimizer.get_lr())
            before = best
            if ending:
                best = _validate(config, model, val_set, workers, epoch, done, best, bad_images, log)
                stopwatch = Stopwatch()
            stopping = stop.agreed()
            name = checkpoint_name(done, steps_per_epoch, config, last, stopping)
            if ending and best["epoch"] == epoch:
                name = f"epoch_{best['epoch']:04d}"
            if name and not ending:
                bad_images.meet(epoch, images_per_epoch, ends=False, write=True)
            if name:  # a loss between two log lines leaves its mark in the weights, which all processes share
                weights = [float(weight.sum()) for weight in model.fc.parameters()]
                check_finite("the classifier's weights", weights, done, _remedy(optimizer.get_lr()))
            if name and dist.is_main():
                state = {
                    "task": "linear",
                    "classes": list(train_set.classes),
                    "best": best,
                    "scaler": scaler_state(scaler),
                    "bad_in_epoch": bad_images.in_epoch,
                }
                with dist.uninterrupted():
                    saved = checkpoints.save(
                        name,
                        done,
                        model.state_dict(),
                        optimizer_state(optimizer, model),
                        state,
                        card=run_card(
                            config, epoch=done // steps_per_epoch, step=done, classes=train_set.classes, parents=parents
                        ),
                        keep_also=best["name"],
                        must=stopping or done == last,
                        log=log,
                    )
                if saved is None:  # what is called the best must be there to be used
                    best = before
            if stopping and done < last:
                log.line("stopped", f"on request, at step {done:,}; saved {name}; continue with --resume")
                return stop.exit_code
    if fingerprint(model.backbone) != frozen:
        raise RuntimeError("the frozen backbone changed during linear evaluation: its result is not valid")
    log.line("done", f"best top-1 {best['top1']:.2%} in epoch {best['epoch']} · {checkpoints.folder / best['name']}")
    return 0


def _evaluate_only(config: LinearConfig, load: str) -> int:
    set_device(config.device)
    process_group.start()
    path = classifier_file(load)
    arrays, classes = read_classifier(path), recorded_classes(path)
    val_set = scan_images(config.data.val.root, config.data.val.list_file, labeled=True, classes=classes)
    check_decodable(val_set)
    count = len(arrays["fc.bias"]) if "fc.bias" in arrays else len(val_set.classes)
    if count != len(val_set.classes):
        raise InputError(
            f"--load {load}: a classifier of {count} classes, but {config.data.val.root!r} holds {len(val_set.classes)}; "
            "evaluate it on the classes that it was trained for"
        )
    model = LinearClassifier(config.model.backbone, count)
    load_strict(model, arrays, source=load)
    log = _ConsoleLog() if dist.is_main() else SilentLog()
    warn_of_amp(config.amp, log)
    make_writable(config.run_dir, "output_dir")
    bad_images = BadImages(config.run_dir, val_set, config.data.max_bad_share, log, resumed=True)
    top1, top5, images = evaluate(config, model, val_set, _workers(config)[0], bad_images, log)
    if dist.is_main():
        result = {"weights": str(path), "images": images, "bad_images": len(val_set) - images, "classes": count}
        result |= {"top1": top1, "top5": top5}
        target = config.run_dir / "evaluation.json"
        with whole_file(target) as file:
            file.write((json.dumps(result, indent=1) + "\n").encode())
        print(
            f"top-1 {top1:.2%}  top-5 {top5:.2%}  on {images:,} images of {count} classes{left_out(val_set, images)} · {target}"
        )
    process_group.stop()
    return 0


class _ConsoleLog(SilentLog):
    """Notes and progress of a run that has no folder of its own."""

    def line(self, label: str, text: str) -> None:
        print(f"{label:<8} {text}", file=sys.stderr)

    def progress(self, title: str, done: int, total: int, text: str, *, record: bool = False) -> None:
        if sys.stderr.isatty():
            print(f"\r{title} {done}/{total} {text}", end="\n" if done == total else "", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- parts


@paddle.no_grad()
def evaluate(
    config: LinearConfig,
    model: LinearClassifier,
    val_set: ImageSet,
    workers: int,
    bad_images: BadImages,
    log: SilentLog,
    title: str = "evaluate",
) -> tuple[float, float, int]:
    """Exact (top-1, top-5, number of images) over all processes: every image that can be decoded counts once, the others
    are left out. The model is left in train mode. Raises RunError when too many cannot be decoded.
    """
    loader = EvaluationLoader(
        val_set,
        config.data.val_transforms,
        batch_size=max(1, config.batch_size // dist.world_size()),
        rank=dist.rank(),
        world_size=dist.world_size(),
        num_workers=workers,
    )
    model.eval()
    right1 = right5 = seen = 0
    own = math.ceil(len(val_set) / dist.world_size())
    for batch in loader:
        with amp_context(config.amp):
            logits = model(batch.images)
        ranked = logits.astype("float32").topk(min(5, logits.shape[1]), axis=1)[1]
        good = ~np.isin(batch.indices, list(batch.bad))  # an image that stands in for a bad one has its own turn
        hits = (ranked == batch.labels.unsqueeze(1)).numpy()[good].sum(axis=0).tolist()
        right1, right5, seen = right1 + hits[0], right5 + sum(hits), seen + len(batch.indices)
        bad_images.add(batch.bad, val_set)
        log.progress(title, seen, own, "")
    model.train()
    right1, right5, seen = (int(value) for value in dist.all_reduce_sum([right1, right5, seen]))
    if seen != len(val_set):
        raise RuntimeError(
            f"evaluated {seen} of {len(val_set)} images: the processes do not agree on the validation set"
        )
    seen -= bad_images.judge(val_set)
    return right1 / seen, right5 / seen, seen


def _best_of(start: Checkpoint, checkpoints: Checkpoints, log: SilentLog) -> dict[str, Any]:
    """The best epoch so far as the checkpoint says it; none when its own checkpoint is not there any more."""
    best = start.state["best"]
    if best["name"] and not (checkpoints.folder / best["name"]).is_dir():
        log.line(
            "note",
            f"the best epoch so far, {best['epoch']} (top-1 {best['top1']:.2%}), has no checkpoint in {checkpoints.folder}: "
            "the best of those to come counts",
        )
        return dict(NO_BEST)
    return best


def left_out(images: ImageSet, judged: int) -> str:
    """What a line of results says of images that could not be decoded; usually nothing."""
    bad = len(images) - judged
    return f" ({bad:,} more cannot be decoded and are left out)" if bad else ""


def load_pretrained(model: LinearClassifier, path: str, expected: BackboneConfig, log: SilentLog) -> None:
    """Put the backbone of any recognized file into the model; `random` keeps the seeded initialization.

    Raises InputError when it does not fit, or when its run is known to have used other strides than `expected`.
    """
    if path == RANDOM:
        log.line("weights", "random: the backbone was not trained (a baseline)")
        return
    extraction = read_fitting_backbone(path, expected)
    load_strict(model.backbone, extraction.backbone, source=path)
    log.line("weights", f"{path}: {extraction.kind}, ResNet-{extraction.depth}, {len(extraction.backbone)} arrays used")


def load_classifier(model: LinearClassifier, path: str, log: SilentLog) -> None:
    """Put a classifier of any recognized kind into the model."""
    file = classifier_file(path)
    load_strict(model, read_classifier(file), source=path)
    log.line("weights", f"{file}: classifier")


def classifier_file(path: str) -> Path:
    """The model.pdparams of a checkpoint folder or run folder, or the file itself."""
    return Path(weights_file(Path(path)))


def fingerprint(layer: paddle.nn.Layer) -> str:
    """SHA-256 over every tensor of a layer, BatchNorm's statistics included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(layer.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def _check_counts(train_set: ImageSet, config: LinearConfig) -> int:
    if config.batch_size % dist.world_size():
        raise InputError(
            f"batch_size {config.batch_size} cannot be shared by {dist.world_size()} processes; set batch_size "
            f"{max(1, config.batch_size // dist.world_size()) * dist.world_size()}"
        )
    if len(train_set) < config.batch_size:
        raise InputError(
            f"data.train.root: {train_set.describe()}, fewer than batch_size {config.batch_size}; set batch_size "
            f"{2 ** int(math.log2(max(len(train_set), 1)))} or less"
        )
    return len(train_set) // config.batch_size


def _workers(config: LinearConfig) -> tuple[int, str]:
    bytes_per_batch = output_bytes(config.data.train_transforms) * config.batch_size // dist.world_size()
    return choose_workers(
        config.data.num_workers, batch_bytes=bytes_per_batch, world_size_local=dist.local_world_size()
    )


def _validate(
    config: LinearConfig,
    model: LinearClassifier,
    val_set: ImageSet,
    workers: int,
    epoch: int,
    done: int,
    best: dict[str, Any],
    bad_images: BadImages,
    log: SilentLog,
) -> dict[str, Any]:
    title = f"epoch {epoch}/{config.epochs} val"
    top1, top5, judged = evaluate(config, model, val_set, workers, bad_images, log, title)
    log.line("val", f"epoch {epoch}/{config.epochs}  top-1 {top1:.2%}  top-5 {top5:.2%}{left_out(val_set, judged)}")
    log.metrics({"step": done, "epoch": epoch, "val_top1": top1, "val_top5": top5})
    return {"epoch": epoch, "top1": top1, "name": f"epoch_{epoch:04d}"} if top1 > best["top1"] else best


def _remedy(lr: float) -> str:
    return f"Continue from the last checkpoint with --resume auto and a lower optimizer.lr (the rate is {lr:g} now)"


def _log_step(
    config: LinearConfig,
    log: SilentLog,
    stopwatch: Stopwatch,
    report: list[float],
    done: int,
    steps_per_epoch: int,
    lr: float,
) -> None:
    loss, top1 = report
    check_finite("the loss", [loss], done, _remedy(lr))
    rate, waited, eta = stopwatch.read(config.batch_size, steps_per_epoch * config.epochs - done)
    epoch, within = divmod(done - 1, steps_per_epoch)
    log.progress(
        f"epoch {epoch + 1}/{config.epochs}",
        within + 1,
        steps_per_epoch,
        f"loss {loss:.3f}  top-1 {top1:.1%}  {rate:.0f} img/s  data {waited:.0%}  eta {eta}",
        record=True,
    )
    values: dict[str, float] = {"step": done, "epoch": epoch + 1, "loss": loss, "train_top1": top1, "lr": lr}
    log.metrics(values | {"images_per_second": rate, "data_share": waited, "peak_memory_mb": peak_memory_mb()})
