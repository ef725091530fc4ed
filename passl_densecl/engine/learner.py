"""What training changes and a checkpoint holds: the model, its optimizer and the loss scaling of float16."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import paddle

from passl_densecl.config import AmpConfig, RunConfig
from passl_densecl.distributed import collectives as dist
from passl_densecl.errors import InputError, RunError
from passl_densecl.reliability.checkpoint import Checkpoint
from passl_densecl.tensors import to_tensor
from passl_densecl.text import listed

_VELOCITY = "_velocity_0"  # what Paddle appends to a weight's automatic name


@dataclass(frozen=True)
class Learner:
    """A model in training. `parallel` is the model itself, or what averages its gradients over the processes."""

    model: paddle.nn.Layer
    optimizer: paddle.optimizer.Optimizer
    scaler: paddle.amp.GradScaler
    parallel: paddle.nn.Layer

    @classmethod
    def build(cls, model: paddle.nn.Layer, config: RunConfig, start: Checkpoint | None = None) -> Learner:
        """The model in train mode with a new optimizer, or exactly as it was when the checkpoint `start` was saved.

        SGD with momentum over all trained weights; the weight decay is on every one of them, as in the original.
        """
        sgd = config.optimizer
        optimizer = paddle.optimizer.Momentum(
            learning_rate=sgd.lr,
            momentum=sgd.momentum,
            parameters=list(trained(model).values()),
            weight_decay=sgd.weight_decay or None,
        )
        scaler = paddle.amp.GradScaler(enable=config.amp.enabled and config.amp.dtype == "float16")
        if start is not None:
            from passl_densecl.weights.load import load_strict  # a new run from random weights needs none of it

            load_strict(model, start.model)
            load_optimizer_state(optimizer, model, start.optimizer)
            restore_scaler(scaler, start.state.get("scaler"))
        model.train()
        return cls(model, optimizer, scaler, dist.parallel(model))

    def step(self) -> None:
        """One optimizer step with the gradients that are there; with float16, unless they overflowed."""
        self.scaler.step(self.optimizer)
        self.scaler.update()


def trained(layer: paddle.nn.Layer) -> dict[str, paddle.Tensor]:
    """The weights that receive a gradient, by structured name; BatchNorm's statistics are not among them."""
    return {name: parameter for name, parameter in layer.named_parameters() if not parameter.stop_gradient}


def optimizer_state(optimizer: paddle.optimizer.Optimizer, layer: paddle.nn.Layer) -> dict[str, np.ndarray]:
    """Velocity by the structured name of its weight. Paddle's own names depend on what the process built before."""
    state = optimizer.state_dict()
    return {
        name: state[parameter.name + _VELOCITY].numpy()
        for name, parameter in trained(layer).items()
        if parameter.name + _VELOCITY in state
    }


def load_optimizer_state(
    optimizer: paddle.optimizer.Optimizer, layer: paddle.nn.Layer, state: Mapping[str, np.ndarray]
) -> None:
    """Restore what `optimizer_state` returned, strictly. Raises InputError naming what does not fit."""
    weights = trained(layer)
    if not state:  # saved before the first step
        return
    wrong = [name for name in weights if name not in state or list(state[name].shape) != list(weights[name].shape)]
    wrong += [name for name in state if name not in weights]
    if wrong:
        raise InputError(
            f"the optimizer's state does not fit the model: {listed(wrong)}; the checkpoint is of another experiment"
        )
    optimizer.set_state_dict({weights[name].name + _VELOCITY: to_tensor(value) for name, value in state.items()})


def restore_scaler(scaler: paddle.amp.GradScaler, saved: dict[str, float] | None) -> None:
    """Restore what `scaler_state` returned; nothing when the scaler is off, or was off in the run that saved."""
    if scaler.is_enable() and saved:
        scale = np.asarray([saved["scale"]], "float32")
        scaler.load_state_dict(scaler.state_dict() | saved | {"scale": scale})  # type: ignore[arg-type]


def scaler_state(scaler: paddle.amp.GradScaler) -> dict[str, float]:
    """What changes in a GradScaler over a run, as plain numbers; empty when it is off."""
    if not scaler.is_enable():
        return {}
    state = scaler.state_dict()
    return {"scale": float(np.asarray(state["scale"]).ravel()[0])} | {
        key: int(state[key]) for key in ("incr_count", "decr_count")
    }


def amp_context(config: AmpConfig) -> AbstractContextManager:
    """Automatic mixed precision (O1) around the encoders; similarities and losses stay outside, in float32."""
    return paddle.amp.auto_cast(enable=True, level="O1", dtype=config.dtype) if config.enabled else nullcontext()


def check_finite(what: str, values: Sequence[float], done: int, remedy: str) -> None:
    """Raises RunError, with the remedy, when one of the values is not finite: for loops that skip no steps."""
    if not all(math.isfinite(value) for value in values):
        numbers = ", ".join(f"{value:g}" for value in values)
        raise RunError(f"step {done:,}: {what} is not finite ({numbers}) and was not saved. {remedy}")
