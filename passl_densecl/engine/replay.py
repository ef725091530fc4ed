"""Computing a step that was not finite again, in one process, from what the guard kept, to find where it begins."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from passl_densecl.config import PretrainConfig
from passl_densecl.distributed import collectives as dist
from passl_densecl.distributed.device import set_device
from passl_densecl.engine.learner import Learner, trained
from passl_densecl.engine.nonfinite import BATCH, REPORT
from passl_densecl.engine.pretrain import build_model, encode_keys, forward_backward, key_order
from passl_densecl.errors import InputError, option
from passl_densecl.models import DenseCL
from passl_densecl.reliability import restore
from passl_densecl.reliability.checkpoint import Checkpoint
from passl_densecl.tensors import to_tensor
from passl_densecl.text import listed

Say = Callable[[str], object]


def replay(config: PretrainConfig, folder: str | Path, *, say: Say = print) -> int:
    """Compute the step in `folder` (RUN/nonfinite/step_…) again and say what is not finite. Returns the exit code, 0.

    One process takes the whole batch, whatever number the run had. The files of the run are only read. Raises
    InputError when something is missing or the config is another experiment's.
    """
    if dist.world_size() > 1:
        raise InputError(
            f"{option('replay')} runs in one process, not in {dist.world_size()}: run it without the launcher"
        )
    folder = Path(folder)
    report, batch = _read(folder)
    start = restore.read(folder)
    if len(batch["indices"]) != config.batch_size:
        raise InputError(
            f"{option('replay', folder)}: a batch of {len(batch['indices'])}, the config says {config.batch_size}; "
            "give the config.yaml in the run's folder"
        )
    if ("matches" in batch) != (config.matched_side is not None):
        held = "geometry" if "matches" in batch else "features"
        raise InputError(
            f"{option('replay', folder)}: a batch of a run with model.dense_matches {held}, the config says "
            f"{config.model.dense_matches}; give the config.yaml in the run's folder"
        )
    set_device(config.device)
    learner = _restored(config, start)
    say(
        f"replay   step {report['step']:,} of epoch {report['epoch']}, from {folder}: {config.batch_size} images in "
        f"{config.micro_batch_count} micro-batches, loss_lambda {report['loss_lambda']:g}, lr {report['lr']:g}"
    )
    broken = [name for name, value in start.model.items() if not np.isfinite(value).all()]
    say(f"state    {_some(broken, len(start.model), 'arrays')} before the step")
    order = key_order(config, start.step)
    names = np.array(report["images"])
    images = {"key_encoder": names if order is None else names[order], "query_encoder": names}
    watch = _watched(learner.model, {name: paths.tolist() for name, paths in images.items()}, config.micro_batch_size)
    with warnings.catch_warnings(), watch as found:
        warnings.simplefilter("ignore")  # Paddle's, about BatchNorm; a run has them in train.log
        losses_finite = _step(config, learner, batch, start.step, float(report["loss_lambda"]), say)
    gradients = {name: weight.grad for name, weight in trained(learner.model).items() if weight.grad is not None}
    bad = [name for name, gradient in gradients.items() if not np.isfinite(gradient.numpy()).all()]
    say(f"forward  {found[0] if found else 'every output of every layer is finite'}")
    # Backward goes from the last layer to the first.
    say(f"backward {_some(bad[::-1], len(gradients), 'gradients')}")
    if not broken and not bad and losses_finite:
        say(
            "result   everything is finite this time. Batch and weights are not the cause: suspect the device (memory "
            "errors, overheating), another process of the run, or mixed precision on another device"
        )
    return 0


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The report and the arrays of the batch. Raises InputError."""
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        with np.load(folder / BATCH, allow_pickle=False) as file:
            batch = {name: file[name] for name in ("query", "key", "indices", *({"matches"} & {*file}))}
        paths = [image["path"] for image in report["images"]]
        return {key: report[key] for key in ("step", "epoch", "lr", "loss_lambda")} | {"images": paths}, batch
    except FileNotFoundError as error:
        raise InputError(
            f"{option('replay', folder)}: {Path(str(error.filename)).name} is missing; give a folder such as "
            "RUN/nonfinite/step_00001234. Of a run's later such steps only the report is kept (guard.keep_dumps)"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise InputError(f"{option('replay', folder)}: cannot be read ({type(error).__name__}: {error})") from None


def _restored(config: PretrainConfig, start: Checkpoint) -> Learner:
    """The model before the step, and the loss scaling that it was computed with."""
    keys = start.model.get("global_queue.keys")
    return Learner.build(build_model(config, len(keys) if keys is not None else config.batch_size), config, start)


def _step(
    config: PretrainConfig, learner: Learner, batch: dict[str, np.ndarray], step: int, loss_lambda: float, say: Say
) -> bool:
    """Losses and gradients as in the training loop; prints the losses and returns whether all are finite."""
    assert isinstance(learner.model, DenseCL)
    matches = to_tensor(batch["matches"]) if "matches" in batch else None
    keys = encode_keys(config, learner.model, to_tensor(batch["key"]), step, matches)
    losses = forward_backward(config, learner, to_tensor(batch["query"]), keys, loss_lambda)
    size, rows = config.micro_batch_size, [{name: float(value) for name, value in each.items()} for each in losses]
    for index, row in enumerate(rows):
        shown = "  ".join(f"{name} {value:.6g}" for name, value in row.items())
        say(f"losses   micro-batch {index} (images {index * size} to {(index + 1) * size - 1}): {shown}")
    return all(math.isfinite(value) for row in rows for value in row.values())


@contextmanager
def _watched(model: paddle.nn.Layer, images: dict[str, list[str]], size: int) -> Iterator[list[str]]:
    """Yields a list that gets the first layer whose output is not finite; `images`: inputs of each encoder."""
    found: list[str] = []
    hooks = []
    for encoder, names in images.items():
        layer, seen = getattr(model, encoder), [0]  # micro-batches that the encoder has begun
        hooks.append(layer.register_forward_pre_hook(_counter(seen)))
        for name, part in layer.named_sublayers():
            if not part.sublayers():
                hooks.append(part.register_forward_post_hook(_watcher(f"{encoder}.{name}", found, names, seen, size)))
    yield found
    for hook in hooks:
        hook.remove()


def _counter(seen: list[int]) -> Callable[..., None]:
    def count(*_: object) -> None:
        seen[0] += 1

    return count


def _watcher(name: str, found: list[str], images: list[str], seen: list[int], size: int) -> Callable[..., None]:
    def look(layer: paddle.nn.Layer, inputs: tuple[paddle.Tensor, ...], output: paddle.Tensor) -> None:
        if found:  # only the first one tells something, and a look takes time
            return
        rows = np.flatnonzero(~np.isfinite(output.astype("float32").flatten(1).numpy()).all(axis=1))
        if not len(rows):
            return
        weights = [
            key
            for key, value in layer.named_parameters()
            if not key.startswith("_")
            and not np.isfinite(value.numpy()).all()  # the call has moved BatchNorm's statistics
        ]
        had = "finite" if np.isfinite(inputs[0].astype("float32").numpy()).all() else "not finite either"
        first = (seen[0] - 1) * size
        of = [images[first + row] for row in rows]
        found.append(
            f"first not finite: the output of {name}, in micro-batch {seen[0] - 1}, for {len(of)} of {size} images "
            f"({', '.join(of[:3])}{', …' if len(of) > 3 else ''}); its input was {had}"
            + (f", its {' and '.join(weights)} not" if weights else "")
        )

    return look


def _some(names: list[str], count: int, what: str) -> str:
    if not names:
        return f"all {count} {what} are finite"
    return f"{len(names)} of {count} {what} are not finite: {listed(names, quoted=False)}"
