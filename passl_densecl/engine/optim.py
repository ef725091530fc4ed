"""SGD and the loss scaling of float16, and their states as plain data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import paddle

from passl_densecl.config import SGDConfig
from passl_densecl.errors import InputError
from passl_densecl.tensors import to_tensor

_STATE = "_velocity_0"


def trained(layer: paddle.nn.Layer) -> dict[str, paddle.Tensor]:
    """The weights that receive a gradient, by structured name; BatchNorm's statistics are not among them."""
    return {name: parameter for name, parameter in layer.named_parameters() if not parameter.stop_gradient}


def build_optimizer(config: SGDConfig, layer: paddle.nn.Layer) -> paddle.optimizer.Optimizer:
    """SGD with momentum over all trained weights; the weight decay is on every one of them, as in the original."""
    return paddle.optimizer.Momentum(
        learning_rate=config.lr,
        momentum=config.momentum,
        parameters=list(trained(layer).values()),
        weight_decay=config.weight_decay or None,
    )


def optimizer_state(optimizer: paddle.optimizer.Optimizer, layer: paddle.nn.Layer) -> dict[str, np.ndarray]:
    """Velocity by the structured name of its weight. Paddle's own names depend on what the process built before."""
    state = optimizer.state_dict()
    return {
        name: state[parameter.name + _STATE].numpy()
        for name, parameter in trained(layer).items()
        if parameter.name + _STATE in state
    }


def load_optimizer_state(
    optimizer: paddle.optimizer.Optimizer, layer: paddle.nn.Layer, state: Mapping[str, np.ndarray]
) -> None:
    """Put back what optimizer_state gave, strictly. Raises InputError naming what does not fit."""
    weights = trained(layer)
    if not state:  # saved before the first step
        return
    wrong = [name for name in weights if name not in state or list(state[name].shape) != list(weights[name].shape)]
    wrong += [name for name in state if name not in weights]
    if wrong:
        raise InputError(
            f"the optimizer's state does not fit the model: {', '.join(wrong[:3])}"
            f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}; the checkpoint is of another experiment"
        )
    optimizer.set_state_dict({weights[name].name + _STATE: to_tensor(value) for name, value in state.items()})


def restore_scaler(scaler: paddle.amp.GradScaler, saved: dict[str, float] | None) -> None:
    """Put what `scaler_state` gave back; nothing when the scaler is off, or was off in the run that saved."""
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
