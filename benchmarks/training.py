"""The training step, engine/pretrain.py's own functions, on images of noise. Imported in fresh processes only."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import passl_densecl  # noqa: F401  (chooses the matrix kernels, which must come before Paddle)

# isort: split
import numpy as np
import paddle

from passl_densecl.config import PretrainConfig, load_config
from passl_densecl.distributed import collectives as dist
from passl_densecl.distributed import process_group
from passl_densecl.distributed.device import set_device
from passl_densecl.engine.learner import Learner
from passl_densecl.engine.pretrain import build_model, encode_keys, forward_backward
from passl_densecl.models import densecl
from passl_densecl.models.batch_norm import ChainedStatistics
from passl_densecl.reliability.log import peak_memory_mb
from passl_densecl.tensors import to_tensor

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "densecl" / "densecl_r50.yaml"


class Step:
    """A call is one optimizer step: `micro_batches` of `batch` images, shared by the processes there are."""

    def __init__(
        self,
        depth: int,
        size: int,
        batch: int,
        queue_len: int,
        *,
        dense: bool = True,
        micro_batches: int = 1,
        device: str = "cpu",
        precision: str = "float32",
    ) -> None:
        set_device(device)
        process_group.start()
        config = load_config(
            RECIPE,
            [
                f"model.depth={depth}",
                f"model.queue_len={queue_len}",
                f"batch_size={batch * micro_batches}",
                f"micro_batch_size={batch}",
                f"model.loss_lambda={0.5 if dense else 0}",
                *([] if precision == "float32" else ["amp.enabled=true", f"amp.dtype={precision}"]),
            ],
        )
        assert isinstance(config, PretrainConfig)
        self._config = config
        self.model = build_model(config, queue_len)
        self._learner = Learner.build(self.model, config)
        self.optimizer = self._learner.optimizer
        self._statistics = ChainedStatistics(self.model, micro_batches // dist.world_size())
        noise = np.random.default_rng(0).integers(0, 256, (2, config.batch_size, size, size, 3), dtype=np.uint8)
        self._query, self._key = (to_tensor(images[dist.own_rows(config.batch_size)]) for images in noise)
        self._done = 0

    def __call__(self) -> float:
        with self._statistics.step():
            keys = encode_keys(self._config, self.model, self._key, self._done)
            losses = forward_backward(self._config, self._learner, self._query, keys, self._config.model.loss_lambda)
        self._learner.step()
        self.optimizer.clear_grad()
        self.model.enqueue(keys)
        self._done += 1
        return float(paddle.stack([each["loss"] for each in losses]).mean())


def pair(depth: int, size: int, batch: int, queue_len: int) -> dict[str, Callable[[], float]]:
    """loss_lambda 0.5, and 0 (MoCo-v2: without a dense branch), in one process."""
    return {
        "densecl": Step(depth, size, batch, queue_len, dense=True),
        "moco_v2": Step(depth, size, batch, queue_len, dense=False),
    }


def on_device(
    depth: int, size: int, batch: int, queue_len: int, dense: bool, device: str, precision: str
) -> dict[str, Callable[[], float]]:
    """One of them alone on a device, and the most memory, in MiB, that it has taken."""
    step = Step(depth, size, batch, queue_len, dense=dense, device=device, precision=precision)
    return {"step": step, "peak memory": peak_memory_mb}


def shared(depth: int, size: int, batch: int, queue_len: int, micro_batches: int) -> dict[str, Callable[[], float]]:
    """A whole batch of several micro-batches, of which this process takes its share."""
    return {"step": Step(depth, size, batch, queue_len, micro_batches=micro_batches)}


def from_nothing(depth: int, size: int, batch: int, queue_len: int, dense: bool) -> dict[str, Callable[[], None]]:
    """Building everything and taking two steps: what of memory training needs beside Paddle itself."""

    def run() -> None:
        step = Step(depth, size, batch, queue_len, dense=dense)
        step()
        step()

    return {"two steps": run}


# --- where the time goes -------------------------------------------------------------------------------------------


class Parts:
    """Seconds by part of the step. A part inside another counts for itself, not for the outer one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]  # of the parts under way: seconds that parts inside them took

    def wrap(self, owner: Any, attribute: str, part: str | Callable[..., str]) -> None:
        """Let every call of `owner.attribute` count; `part` names it, from the call's arguments if need be."""
        function = getattr(owner, attribute)

        def counted(*args: Any, **kwargs: Any) -> Any:
            name = part if isinstance(part, str) else part(*args)
            self._inner.append(0.0)
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.perf_counter() - begin
                self.seconds[name] = self.seconds.get(name, 0.0) + whole - self._inner.pop()
                self._inner[-1] += whole

        setattr(owner, attribute, counted)


def profile(depth: int, size: int, batch: int, queue_len: int) -> dict[str, Callable[[], dict[str, float]]]:
    """A step that gives the seconds of its parts. It wraps the model's own functions, so it cannot drift from them."""
    step = Step(depth, size, batch, queue_len)
    model, parts = step.model, Parts()
    parts.wrap(model, "update_key_encoder", "key encoder: moving average")
    for name, encoder in (("key", model.key_encoder), ("query", model.query_encoder)):
        parts.wrap(encoder.backbone, "forward", f"{name} encoder: backbone forward")
        parts.wrap(encoder, "forward", f"{name} encoder: heads forward")
    parts.wrap(densecl, "normalize", "bytes to normalized floats")
    parts.wrap(densecl, "match", "dense loss: match")
    parts.wrap(densecl, "gather_matches", "dense loss: match")

    def which_loss(_query: Any, _positive: Any, negatives: Any, *_: Any) -> str:
        return "global loss" if negatives is model.global_queue.keys else "dense loss: contrast"

    parts.wrap(densecl, "info_nce", which_loss)
    parts.wrap(paddle.Tensor, "backward", "backward")
    parts.wrap(step.optimizer, "step", "optimizer")
    parts.wrap(step.optimizer, "clear_grad", "optimizer")
    parts.wrap(model, "enqueue", "queues")

    def run() -> dict[str, float]:
        parts.seconds.clear()
        begin = time.perf_counter()
        step()
        whole = time.perf_counter() - begin
        return {**parts.seconds, "the rest": whole - sum(parts.seconds.values())}

    return {"step": run}
