"""Pre-training: the loop of DenseCL, from a checked config to a checkpoint."""

from __future__ import annotations

import math
from contextlib import nullcontext

import numpy as np
import paddle

from passl_densecl.config import QUEUE_LEN_MAX, PretrainConfig, PretrainModelConfig
from passl_densecl.data.datasets import ImageSet, check_decodable, scan_images
from passl_densecl.data.loader import PairLoader, choose_workers
from passl_densecl.distributed import collectives as dist
from passl_densecl.engine.guard import Guard
from passl_densecl.engine.online_knn import OnlineKNN
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
    check_strides,
    checkpoint_name,
    enter_folder,
    entered,
    output_bytes,
    output_size,
    parents_of,
    read_fitting_backbone,
    warn_of_amp,
)
from passl_densecl.errors import InputError
from passl_densecl.models import DenseCL
from passl_densecl.models.batch_norm import ChainedStatistics
from passl_densecl.models.densecl import Keys
from passl_densecl.reliability import checkpoint as checkpoint_files
from passl_densecl.reliability.bad_images import BadImages
from passl_densecl.reliability.checkpoint import Checkpoint, Checkpoints
from passl_densecl.reliability.log import SilentLog, Stopwatch, peak_memory_mb
from passl_densecl.reliability.signals import StopRequest
from passl_densecl.reliability.watchdog import Watchdog, similarity
from passl_densecl.weights import load_strict
from passl_densecl.weights.card import run_card
from passl_densecl.weights.convert import read_training_state


def pretrain(
    config: PretrainConfig,
    *,
    resume: str | None = None,
    load: str | None = None,
    pretrained: str | None = None,
    overwrite: bool = False,
) -> int:
    """Run or continue the experiment. Returns the exit code: 0 when finished, 128 + signal when asked to stop.

    `resume` is "auto" for the run's newest complete checkpoint (a new run when there is none) or a checkpoint's path.
    A new run starts from random weights, from a whole training state of any known kind (`load`: both encoders, necks and
    queues) or from a backbone (`pretrained`); its optimizer is new in any case. A run that is resumed needs neither.
    A run folder that holds a run takes a new one only with `overwrite`, which removes the old one's checkpoints and metrics
    once the new one is ready for its first step.
    Raises InputError for whatever the user can mend, RunError for what befalls the run.
    """
    if load is not None and pretrained is not None:
        raise InputError("give --load (a whole training state) or --pretrained (a backbone), not both")
    with entered(config, resume, overwrite) as (start, checkpoints, log, stop):
        return _train(config, start, checkpoints, log, stop, load, pretrained, overwrite)


def _train(
    config: PretrainConfig,
    start: Checkpoint | None,
    checkpoints: Checkpoints,
    log: SilentLog,
    stop: StopRequest,
    load: str | None,
    pretrained: str | None,
    overwrite: bool,
) -> int:
    images = scan_images(config.data.root, config.data.list_file)
    steps_per_epoch = check_image_count(images, config)
    check_decodable(images)
    workers, why = choose_workers(
        config.data.num_workers, batch_bytes=_batch_bytes(config), world_size_local=dist.local_world_size()
    )
    log.line("data", f"{images.describe()}; labels are not needed; {why}")
    queue_len = choose_queue_len(config, len(images), log)
    check_same_start(start)
    checkpoint_files.report_start(start, checkpoints, log)
    neighbors = OnlineKNN(
        config.evaluation,
        size=output_size(config.data.transforms),
        num_workers=workers,
        steps_per_epoch=steps_per_epoch,
        epochs=config.epochs,
        log=log,
    )
    model = build_model(config, queue_len)
    optimizer = build_optimizer(config.optimizer, model)
    scaler = paddle.amp.GradScaler(enable=config.amp.enabled and config.amp.dtype == "float16")
    first = 0
    if start is not None:
        first = start.step
        restore(start, model, optimizer, scaler)
        log.line("resume", f"{start.path}, step {first:,}")
        if load or pretrained:
            log.line("note", f"{load or pretrained} was for the start of this run and is not read again")
    elif load is not None:
        load_state(model, load, config.model, log)
    elif pretrained is not None:
        load_backbones(model, pretrained, config.model, log)
    parents = parents_of(load or pretrained, start)
    _describe(config, model, queue_len, steps_per_epoch, log, queues_are_full=load is not None)
    warn_of_amp(config.amp, log)
    checkpoints.check_room(checkpoint_files.bytes_of(model), log)

    model.train()
    parallel = dist.parallel(model)
    statistics = ChainedStatistics(model, config.micro_batch_count // dist.world_size())
    loader = PairLoader(
        images,
        config.data.transforms,
        seed=config.seed,
        batch_size=config.batch_size,
        rank=dist.rank(),
        world_size=dist.world_size(),
        num_workers=workers,
    )
    guard = Guard(
        config,
        model,
        optimizer,
        scaler,
        statistics,
        images,
        log,
        steps_per_epoch=steps_per_epoch,
        skipped=start.state.get("nonfinite_steps", 0) if start is not None else 0,
        parents=parents,
    )
    watchdog = Watchdog(config, queue_len, workers, log)
    last = steps_per_epoch * config.epochs
    bad_images = BadImages(
        config.run_dir,
        images,
        config.data.max_bad_share,
        log,
        resumed=start is not None,
        in_epoch=start.state.get("bad_in_epoch", 0) if start else 0,
    )
    enter_folder(start, checkpoints, log, overwrite)
    if neighbors.missing(first):
        neighbors.run(model, first)
    stopwatch = Stopwatch()
    with stop.at_steps():
        for step, batch in loader.steps(first, last):
            optimizer.set_lr(
                config.base_lr * config.schedule(step, steps_per_epoch=steps_per_epoch, epochs=config.epochs)
            )
            loss_lambda = config.model.loss_lambda if step >= config.model.loss_lambda_warmup_steps else 0.0
            with statistics.step():
                keys, reports = forward_backward(
                    config, model, parallel, scaler, batch.query, batch.key, step=step, loss_lambda=loss_lambda
                )
            good = guard.finite(reports, keys)
            if good:
                scaler.step(optimizer)
                scaler.update()
                model.enqueue(keys)
            else:
                guard.skip(step, batch, reports, keys, loss_lambda)
            optimizer.clear_grad()

            done = step + 1
            stopwatch.step(loader.wait_seconds)
            bad_images.add(batch.bad)
            stopping = stop.agreed()
            name = checkpoint_name(done, steps_per_epoch, config, last, stopping)
            log_due = done % config.log_every_steps == 0 or done in (1, last)
            ends = done % steps_per_epoch == 0
            if log_due or name or ends:
                bad_images.meet(
                    (done - 1) // steps_per_epoch + 1, steps_per_epoch * config.batch_size, ends=ends, write=bool(name)
                )
            if good and log_due:
                values = _log_step(
                    config,
                    log,
                    stopwatch,
                    dist.all_reduce_mean(paddle.stack(reports).mean(axis=0)),
                    done=done,
                    steps_per_epoch=steps_per_epoch,
                    lr=optimizer.get_lr(),
                    loss_lambda=loss_lambda,
                    queue_len=queue_len,
                    similar=similarity(keys),
                    skipped=guard.skipped,
                )
                watchdog.look(values)
            if name:
                guard.check_weights(done)
            if name and dist.is_main():
                with dist.uninterrupted():
                    saved = checkpoints.save(
                        name,
                        done,
                        model.state_dict(),
                        optimizer_state(optimizer, model),
                        {
                            "task": "pretrain",
                            "steps_per_epoch": steps_per_epoch,
                            "images": len(images),
                            "scaler": scaler_state(scaler),
                            "bad_in_epoch": bad_images.in_epoch,
                            "nonfinite_steps": guard.skipped,
                        },
                        card=run_card(config, epoch=done // steps_per_epoch, step=done, parents=parents),
                        must=stopping or done == last,
                        log=log,
                    )
                if stopping and done < last:
                    log.line("stopped", f"on request, at step {done:,}; saved {saved}; continue with --resume")
            if stopping and done < last:
                return stop.exit_code
            if neighbors.due(done):  # after the checkpoint: killed in it, a run goes on with it
                neighbors.run(model, done)
                stopwatch.skip()
    end = checkpoints.newest()
    log.line(
        "done", f"{end} · next: python tools/extract_weight.py {end} --output {config.name}.pdparams --remove_prefix"
    )
    return 0


# ---------------------------------------------------------------- before the loop


def check_image_count(images: ImageSet, config: PretrainConfig) -> int:
    """Steps in an epoch. Raises InputError when there is not even one, or the processes cannot share a batch."""
    if len(images) < config.batch_size:
        raise InputError(
            f"data.root: {images.describe()}, fewer than batch_size {config.batch_size}: there is not one full step; "
            f"add images, or set batch_size {2 ** int(math.log2(max(len(images), 1)))} or less"
        )
    if config.micro_batch_count % dist.world_size():
        fitting = [count for count in range(1, dist.world_size()) if config.micro_batch_count % count == 0]
        raise InputError(
            f"{dist.world_size()} processes cannot share {config.micro_batch_count} micro-batches (batch_size "
            f"{config.batch_size} / micro_batch_size {config.micro_batch_size}) evenly; start {fitting[-1]} processes, or "
            f"set batch_size {config.micro_batch_size * dist.world_size()}"
        )
    return len(images) // config.batch_size


def choose_queue_len(config: PretrainConfig, image_count: int, log: SilentLog) -> int:
    """K. `auto` is the largest power of two up to half of the images, at least the batch, at most 65,536."""
    wanted = config.model.queue_len
    fitting = max(min(2 ** int(math.log2(max(image_count // 2, 1))), QUEUE_LEN_MAX), config.batch_size)
    if wanted == "auto":
        return fitting
    if wanted > image_count:
        log.line(
            "warning",
            f"model.queue_len {wanted:,} is longer than the data set ({image_count:,} images): an image would meet old "
            f"keys of itself as negatives; -o model.queue_len={fitting} (or auto) fits",
        )
    return wanted


def build_model(config: PretrainConfig, queue_len: int) -> DenseCL:
    """The model of a config; without a dense branch when loss_lambda is 0."""
    model = config.model
    return DenseCL(
        model.backbone,
        model.heads,
        queue_len=queue_len,
        temperature=model.temperature,
        momentum=model.momentum,
        seed=config.seed,
    )


def restore(
    start: Checkpoint, model: DenseCL, optimizer: paddle.optimizer.Optimizer, scaler: paddle.amp.GradScaler
) -> None:
    """Continue exactly where the checkpoint was made."""
    load_strict(model, start.model)
    load_optimizer_state(optimizer, model, start.optimizer)
    restore_scaler(scaler, start.state.get("scaler"))


def load_state(model: DenseCL, path: str, expected: PretrainModelConfig, log: SilentLog) -> None:
    """Put a whole training state, of whatever project, into the model of a new run: weights, statistics and queues.

    Raises InputError when it is none, or when its sizes are not those of the model; nothing is put then.
    """
    state = read_training_state(path)
    queue_len, out_dim = model.global_queue.keys.shape
    sizes = (
        ("depth", state.depth, expected.depth),
        ("hidden_dim", state.hidden_dim, expected.hidden_dim),
        ("out_dim", state.out_dim, out_dim),
        ("queue_len", state.queue_len, queue_len),
    )
    unfit = [(key, there, here) for key, there, here in sizes if there != here]
    if unfit:
        said = "; ".join(f"model.{key} is {there} there and {here} here" for key, there, here in unfit)
        raise InputError(
            f"--load {path} does not fit the config: {said}. Set "
            f"{' '.join(f'-o model.{key}={there}' for key, there, _ in unfit)}, or choose another state"
        )
    if state.has_dense != (model.dense_queue is not None):
        what = "a dense neck and queue" if state.has_dense else "no dense neck and queue (as MoCo-v2)"
        raise InputError(
            f"--load {path} has {what}, the config has model.loss_lambda {expected.loss_lambda:g}: set it "
            f"{'above 0' if state.has_dense else 'to 0'}, or take only the state's backbone, with --pretrained"
        )
    check_strides("--load", path, expected)
    load_strict(model, state.arrays, source=path)
    log.line("weights", f"{path}: {state.kind}, {state.describe()}; into a new run")


def load_backbones(model: DenseCL, path: str, expected: PretrainModelConfig, log: SilentLog) -> None:
    """Put the backbone of any recognized file into both encoders of a new run; the necks and queues stay random."""
    extraction = read_fitting_backbone(path, expected)
    for encoder in (model.query_encoder, model.key_encoder):
        load_strict(encoder.backbone, extraction.backbone, source=path)
    log.line(
        "weights",
        f"{path}: {extraction.kind}, ResNet-{extraction.depth}, into both encoders; necks and queues are random",
    )


def _describe(
    config: PretrainConfig,
    model: DenseCL,
    queue_len: int,
    steps_per_epoch: int,
    log: SilentLog,
    *,
    queues_are_full: bool,
) -> None:
    weights = sum(int(np.prod(p.shape)) for p in model.parameters() if not _is_statistic(p))
    trained = sum(int(np.prod(p.shape)) for p in model.parameters() if not p.stop_gradient)
    method = "DenseCL" if config.model.loss_lambda > 0 else "MoCo-v2 (loss_lambda 0: no dense branch)"
    auto = f" (auto, for {steps_per_epoch * config.batch_size:,} images)" if config.model.queue_len == "auto" else ""
    log.line(
        "model",
        f"ResNet-{config.model.depth}, {method}: {weights / 1e6:.2f} M weights, {trained / 1e6:.2f} M trained; "
        f"queue {queue_len:,}{auto}",
    )
    log.line(
        "recipe",
        f"{config.epochs} epochs × {steps_per_epoch:,} steps, batch {config.batch_size} = {config.micro_batch_count} "
        f"micro-batches of {config.micro_batch_size}, SGD lr {config.base_lr:g} {config.schedule.name}",
    )
    if config.batch_size != config.optimizer.reference_batch_size:
        log.line(
            "note",
            f"lr {config.optimizer.lr:g} is for batch {config.optimizer.reference_batch_size}; scaled linearly to "
            f"{config.base_lr:g} for batch {config.batch_size}",
        )
    filled = math.ceil(queue_len / config.batch_size)
    rising = f"a rising loss is expected until the queue holds real keys (step {filled:,}), then it falls"
    if queues_are_full:
        rising = "the queues were loaded with the weights, so the loss need not rise at first"
    log.line("note", f"{rising}; chance is {math.log(queue_len + 1):.2f}")


def _is_statistic(parameter: paddle.Tensor) -> bool:
    return parameter.name.rsplit(".", 1)[-1].startswith(("w_1", "w_2"))


def _batch_bytes(config: PretrainConfig) -> int:
    """Bytes of one process's share of a batch: two uint8 RGB views an image."""
    return 2 * output_bytes(config.data.transforms) * config.batch_size // dist.world_size()


# ---------------------------------------------------------------- in the loop


def forward_backward(
    config: PretrainConfig,
    model: DenseCL,
    parallel: paddle.nn.Layer,
    scaler: paddle.amp.GradScaler,
    query: paddle.Tensor,
    key: paddle.Tensor,
    *,
    step: int,
    loss_lambda: float,
) -> tuple[Keys, list[paddle.Tensor]]:
    """The keys of a step, and its losses with their gradients, averaged over its micro-batches and the processes.

    `query` and `key` are this process's views; `parallel` is the model, or what `dist.parallel` made of it. A loss is
    (weighted sum, *those of the model): 3 numbers, with the dense branch 5, for each micro-batch.
    """
    size, count, reports = config.micro_batch_size, config.micro_batch_count // dist.world_size(), []
    keys = model.encode_keys(key, micro_batch_size=size, order=key_order(config, step), amp=amp_context(config.amp))
    for index in range(count):
        part = slice(index * size, (index + 1) * size)
        final = index == count - 1
        if final:
            dist.wait_for_all()  # the gradients of all processes do in its backward pass
        with nullcontext() if final else dist.local_gradients(parallel):
            losses = parallel(query[part], keys.local.rows(part), amp_context(config.amp))
            loss = losses[0]
            if len(losses) > 2:
                loss = (1 - loss_lambda) * losses[0] + loss_lambda * losses[2]
            scaler.scale(loss / count).backward()
        reports.append(paddle.stack([loss.detach(), *(value.detach() for value in losses)]))
    return keys, reports


def key_order(config: PretrainConfig, step: int) -> np.ndarray | None:
    """The permutation of the whole batch's key images at a step; None where one BatchNorm sees them all anyway."""
    if config.micro_batch_count == 1:
        return None
    return np.random.default_rng([config.seed, step, 0x5AFF1E]).permutation(config.batch_size)


def _log_step(
    config: PretrainConfig,
    log: SilentLog,
    stopwatch: Stopwatch,
    report: list[float],
    *,
    done: int,
    steps_per_epoch: int,
    lr: float,
    loss_lambda: float,
    queue_len: int,
    similar: dict[str, float],
    skipped: int,
) -> dict[str, float]:
    """One line and one object of metrics, which comes back."""
    loss, global_loss, global_top1, *dense = report
    fill = min(1.0, done * config.batch_size / queue_len)
    rate, waited, eta = stopwatch.read(config.batch_size, steps_per_epoch * config.epochs - done)
    epoch, within = divmod(done - 1, steps_per_epoch)
    values = {"step": done, "epoch": epoch + 1, "loss": loss, "global_loss": global_loss, "global_top1": global_top1}
    if dense:
        values |= {"dense_loss": dense[0], "dense_top1": dense[1]}
    values |= {"chance": math.log(queue_len + 1), "lr": lr, "loss_lambda": loss_lambda, "queue_fill": fill}
    values |= {**similar, "nonfinite_steps": skipped}
    values |= {"images_per_second": rate, "data_share": waited, "peak_memory_mb": peak_memory_mb()}
    parts = f"loss {loss:.2f} (global {global_loss:.2f}, dense {dense[0]:.2f})" if dense else f"loss {loss:.2f}"
    top1 = f"top-1 {global_top1:.1%} and {dense[1]:.1%} dense" if dense else f"top-1 {global_top1:.1%}"
    filling = f"  queue {fill:.0%}" if fill < 1 else ""
    filling += f"  {skipped} not finite" if skipped else ""
    log.progress(
        f"epoch {epoch + 1}/{config.epochs}",
        within + 1,
        steps_per_epoch,
        f"{parts}  {top1}{filling}  {rate:.0f} img/s  data {waited:.0%}  eta {eta}",
        record=True,
    )
    log.metrics(values)
    return values
