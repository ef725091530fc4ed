"""Pre-training: the loop of DenseCL, from a checked config to a checkpoint."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import paddle

from passl_densecl.config import QUEUE_LEN_MAX, PretrainConfig
from passl_densecl.data.datasets import ImageSet, check_decodable, scan_images
from passl_densecl.data.loader import PairLoader
from passl_densecl.distributed import collectives as dist
from passl_densecl.engine.guard import Guard
from passl_densecl.engine.learner import Learner, amp_context
from passl_densecl.engine.run import Evaluation, Resume, Run, open_run
from passl_densecl.errors import InputError, option
from passl_densecl.models import DenseCL, Keys, Losses
from passl_densecl.models.batch_norm import ChainedStatistics
from passl_densecl.reliability.watchdog import Watchdog


def pretrain(
    config: PretrainConfig,
    *,
    resume: str | None = None,
    load: str | None = None,
    pretrained: str | None = None,
    prefix: str | None = None,
    overwrite: bool = False,
    accept_changes: bool = False,
) -> int:
    """Run or continue the experiment. Returns the exit code: 0 when finished, 128 + signal when asked to stop.

    `resume` is "auto" for the run's newest complete checkpoint (a new run when there is none) or a checkpoint's path.
    A new run starts from random weights, from a whole training state of any known kind (`load`: both encoders, heads
    and queues) or from a backbone (`pretrained`, behind `prefix` where the file holds several); its optimizer is
    new in any case. A run that is resumed needs neither. A run folder that holds a run takes a new one only with
    `overwrite`, which removes the old one's checkpoints and metrics once the new one is ready for its first step. A run
    is continued with the recipe that its checkpoint records; another one is refused, or with `accept_changes` logged.
    Raises InputError for invalid input, RunError when the run cannot continue.
    """
    if load is not None and pretrained is not None:
        raise InputError(
            f"give {option('load')} (a whole training state) or {option('pretrained')} (a backbone), not both"
        )
    if prefix is not None and pretrained is None:
        raise InputError(f"{option('prefix', prefix)} chooses a backbone of {option('pretrained')}: give both")
    with open_run(config, Resume(resume, overwrite, accept_changes)) as run:
        return _train(run, load, pretrained, prefix)


def _train(run: Run[PretrainConfig], load: str | None, pretrained: str | None, prefix: str | None) -> int:
    config, log = run.config, run.log
    images, workers = _find_images(run)
    lambda_warmup = _lambda_warmup(run)
    queue_len, warning = choose_queue_len(config, len(images))
    if warning:
        log.line("warning", warning)
    run.evaluation, run.monitor = _evaluation(run, workers), _monitor(run, images)
    model = build_model(config, queue_len)
    if run.start is None and (load, pretrained) != (None, None):
        log.line("weights", _load(config, model, load, pretrained, prefix))
    run.describe_start(load=load, pretrained=pretrained)
    _describe(run, model, queue_len, queues_are_full=load is not None)

    learner = Learner.build(model, config, run.start)
    statistics = ChainedStatistics(model, config.micro_batch_count // dist.world_size())
    loader = PairLoader(
        images,
        config.data.transforms,
        config.matched_side,
        seed=config.seed,
        batch_size=config.batch_size,
        rank=dist.rank(),
        world_size=dist.world_size(),
        num_workers=workers,
    )
    guard = Guard(run, learner, statistics, images)
    run.watchdog = Watchdog(config, queue_len, workers, log)
    run.facts = {"steps_per_epoch": run.steps_per_epoch, "images": len(images)}
    run.begin(learner, images)
    with run.stop.at_steps():
        for step, batch in loader.steps(run.first_step, run.last_step):
            learner.optimizer.set_lr(run.learning_rate(step))
            loss_lambda = config.model.loss_lambda if step >= lambda_warmup else 0.0
            with statistics.step():
                keys = encode_keys(config, model, batch.key, step, batch.matches)
                losses = forward_backward(config, learner, batch.query, keys, loss_lambda)
            if step == 0 and config.loggers:
                from passl_densecl.reliability.pictures import first_pictures

                pictures = partial(first_pictures, model, batch.query, batch.key, keys, config.micro_batch_size)
                log.images(1, pictures)
            good = guard.accepts(step, batch, losses, keys, loss_lambda)
            if good:
                learner.step()
                model.enqueue(keys)
            learner.optimizer.clear_grad()
            facts = {
                "chance": math.log(queue_len + 1),
                "lr": learner.optimizer.get_lr(),
                "loss_lambda": loss_lambda,
                "queue_fill": min(1.0, (step + 1) * config.batch_size / queue_len),
            }
            if run.after_step(step, batch.bad, losses if good else [], facts, waited=loader.wait_seconds, keys=keys):
                return run.stop.exit_code
    end = run.checkpoints.newest()
    log.line("done", f"{end} · next: densecl extract {end} --output {config.name}.pdparams --remove_prefix")
    return 0


def encode_keys(
    config: PretrainConfig, model: DenseCL, images: paddle.Tensor, step: int, matches: paddle.Tensor | None = None
) -> Keys:
    """Move the key encoder, then encode this process's key views, uint8 (N, height, width, 3), of a step."""
    keys = model.encode_keys(
        images,
        micro_batch_size=config.micro_batch_size,
        order=key_order(config, step),
        cells=cell_draws(config, step),
        amp=amp_context(config.amp),
    )
    return keys if matches is None else replace(keys, local=replace(keys.local, matches=matches))


def forward_backward(
    config: PretrainConfig, learner: Learner, query: paddle.Tensor, keys: Keys, loss_lambda: float
) -> list[Losses]:
    """The losses of each micro-batch of this process's query views; gradients of their mean over the whole batch."""
    size, count, losses = config.micro_batch_size, config.micro_batch_count // dist.world_size(), []
    for index in range(count):
        part = slice(index * size, (index + 1) * size)
        final = index == count - 1
        if final:
            dist.wait_for_all()  # its backward pass averages the gradients over the processes
        with nullcontext() if final else dist.local_gradients(learner.parallel):
            found = learner.parallel(query[part], keys.local.rows(part), loss_lambda, amp_context(config.amp))
            learner.scaler.scale(found["loss"] / count).backward()
        losses.append({name: value.detach() for name, value in found.items()})
    return losses


def key_order(config: PretrainConfig, step: int) -> np.ndarray | None:
    """The permutation of the whole batch's key images at a step; None where one BatchNorm sees them all anyway."""
    if config.micro_batch_count == 1:
        return None
    return np.random.default_rng([config.seed, step, 0x5AFF1E]).permutation(config.batch_size)


def cell_draws(config: PretrainConfig, step: int) -> np.ndarray | None:
    """(whole batch,) from 0 to 1: which cell of each key image becomes a dense negative; None: the mean of them all."""
    if config.model.dense_negatives == "image_mean":
        return None
    return np.random.default_rng([config.seed, step, 0xCE11]).random(config.batch_size)


def _find_images(run: Run[PretrainConfig]) -> tuple[ImageSet, int]:
    """The training images, checked, and how many data workers read them; sets the run's steps per epoch."""
    config = run.config
    images = scan_images(**config.data.source())
    run.steps_per_epoch = check_image_count(images, config)
    check_decodable(images)
    workers, why = run.choose_workers(config.data.transforms, views=2)
    run.log.line("data", f"{images.describe()}; labels are not needed; {why}")
    return images, workers


def _lambda_warmup(run: Run[PretrainConfig]) -> int:
    """The step from which the dense loss counts. Raises InputError when the run ends before it."""
    model = run.config.model
    first = model.lambda_warmup(run.steps_per_epoch)
    if model.loss_lambda > 0 and first >= run.last_step:
        raise InputError(
            f"model.loss_lambda {model.loss_lambda:g} holds from step {first:,}, but the run ends after "
            f"{run.last_step:,} steps ({run.config.epochs} epochs × {run.steps_per_epoch:,}): the dense loss would "
            "never count. Set model.loss_lambda_warmup_steps or model.loss_lambda_warmup_epochs lower, train longer, "
            "or set model.loss_lambda=0, which is MoCo-v2"
        )
    return first


def _load(config: PretrainConfig, model: DenseCL, load: str | None, pretrained: str | None, prefix: str | None) -> str:
    """Put the weights that a new run starts from into its model; returns a description."""
    from passl_densecl.engine.start import load_backbones, load_state

    if load is not None:
        return load_state(model, load, config.model)
    return load_backbones(model, str(pretrained), config.model.backbone, prefix)


def _evaluation(run: Run[PretrainConfig], workers: int) -> Evaluation | None:
    if run.config.evaluation is None:
        return None
    from passl_densecl.engine.knn import OnlineKNN

    return OnlineKNN(run, workers)


def _monitor(run: Run[PretrainConfig], images: ImageSet) -> Evaluation | None:
    if run.config.monitor is None:
        return None
    from passl_densecl.engine.monitor import Monitor

    return Monitor(run, images)


def check_image_count(images: ImageSet, config: PretrainConfig) -> int:
    """Steps per epoch. Raises InputError when there is not even one, or the processes cannot share a batch."""
    if len(images) < config.batch_size:
        raise InputError(
            f"data.root: {images.describe()}, fewer than batch_size {config.batch_size}: there is not one full step; "
            f"add images, or set batch_size {2 ** int(math.log2(max(len(images), 1)))} or less"
        )
    if config.micro_batch_count % dist.world_size():
        fitting = [count for count in range(1, dist.world_size()) if config.micro_batch_count % count == 0]
        raise InputError(
            f"{dist.world_size()} processes cannot share {config.micro_batch_count} micro-batches (batch_size "
            f"{config.batch_size} / micro_batch_size {config.micro_batch_size}) evenly; start {fitting[-1]} processes, "
            f"or set batch_size {config.micro_batch_size * dist.world_size()}"
        )
    return len(images) // config.batch_size


def choose_queue_len(config: PretrainConfig, image_count: int) -> tuple[int, str | None]:
    """(K, a warning or None). `auto` is the largest power of two up to half of the images, from the batch to 65,536."""
    wanted = config.model.queue_len
    fitting = max(min(2 ** int(math.log2(max(image_count // 2, 1))), QUEUE_LEN_MAX), config.batch_size)
    if wanted == "auto":
        return fitting, None
    if wanted <= image_count:
        return wanted, None
    return wanted, (
        f"model.queue_len {wanted:,} is longer than the data set ({image_count:,} images): an image would be compared "
        f"with old keys of itself as negatives; -o model.queue_len={fitting} (or auto) fits"
    )


def build_model(config: PretrainConfig, queue_len: int) -> DenseCL:
    """The model of a config; without a dense head and queue when loss_lambda is 0."""
    model = config.model
    return DenseCL(
        model.backbone,
        model.heads,
        queue_len=queue_len,
        temperature=model.temperature,
        momentum=model.momentum,
        seed=config.seed,
    )


def _describe(run: Run[PretrainConfig], model: DenseCL, queue_len: int, *, queues_are_full: bool) -> None:
    config, images = run.config, run.steps_per_epoch * run.config.batch_size
    sizes = {name: int(np.prod(p.shape)) for name, p in model.named_parameters()}
    weights = sum(size for name, size in sizes.items() if not name.endswith(("._mean", "._variance")))
    trained = sum(int(np.prod(p.shape)) for p in model.parameters() if not p.stop_gradient)
    cells = ", negatives: single cells" if config.model.dense_negatives == "cells" else ""
    geometry = ", matched by geometry" if config.model.dense_matches == "geometry" else ""
    method = f"DenseCL{geometry}{cells}" if config.model.loss_lambda > 0 else "MoCo-v2 (loss_lambda 0: no dense branch)"
    auto = f" (auto, for {images:,} images)" if config.model.queue_len == "auto" else ""
    run.log.line(
        "model",
        f"ResNet-{config.model.depth}, {method}: {weights / 1e6:.2f} M weights, {trained / 1e6:.2f} M trained; "
        f"queue {queue_len:,}{auto}",
    )
    run.describe_recipe(
        f" = {config.micro_batch_count} micro-batches of {config.micro_batch_size}, SGD lr {config.base_lr:g} "
        f"{config.schedule.name}"
    )
    filled = math.ceil(queue_len / config.batch_size)
    rising = f"a rising loss is expected until the queue holds real keys (step {filled:,}), then it falls"
    if queues_are_full:
        rising = "the queues were loaded with the weights, so the loss need not rise at first"
    if warning := config.batch_norm_warning():
        run.log.line("warning", warning)
    run.log.line("note", f"{rising}; chance is {math.log(queue_len + 1):.2f}")
