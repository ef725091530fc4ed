"""The original implementation's first training steps, with weights and images that are functions of their names."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from passl_densecl.config import AmpConfig, BackboneSpec, HeadSpec
from passl_densecl.engine.learner import amp_context
from passl_densecl.models import DenseCL, Keys
from passl_densecl.tensors import to_tensor

REFERENCE: dict[str, Any] = json.loads(Path(__file__).with_name("reference.json").read_text(encoding="utf-8"))
TERMS = ("global_loss", "dense_loss", "loss")
_NAMES = {  # of the original's modules
    "backbone": "0",
    "global_head.0": "1.mlp.0",
    "global_head.2": "1.mlp.2",
    "dense_head.0": "1.mlp2.0",
    "dense_head.2": "1.mlp2.2",
}


def named_array(name: str, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """float32 normal values that depend on the name and the case's seed only."""
    generator = np.random.Generator(np.random.PCG64(REFERENCE["case"]["seed"] ^ zlib.crc32(name.encode())))
    return (generator.standard_normal(shape) * scale).astype(np.float32)


def build() -> DenseCL:
    """The case's model on the current device, with its weights and queues, in train mode."""
    case = REFERENCE["case"]
    heads = HeadSpec(case["hid_channels"], case["out_channels"], case["num_grid"])
    model = DenseCL(BackboneSpec(case["depth"]), heads, queue_len=case["K"], temperature=case["T"], momentum=case["m"])
    for name, parameter in model.query_encoder.named_parameters():
        if not name.endswith(("_mean", "_variance")):
            parameter.set_value(_weight(name, list(parameter.shape)))
    for key, query in zip(model.key_encoder.parameters(), model.query_encoder.parameters(), strict=True):
        key.set_value(query)
    assert model.dense_queue is not None
    for queue, name in ((model.global_queue, "queue"), (model.dense_queue, "queue2")):
        keys = named_array(name, (case["out_channels"], case["K"]))
        queue.keys.set_value((keys / np.linalg.norm(keys, axis=0, keepdims=True)).T)
    model.train()
    return model


def _weight(name: str, shape: list[int]) -> np.ndarray:
    ours = next(prefix for prefix in _NAMES if name.startswith(prefix + "."))
    theirs, linear = _NAMES[ours] + name[len(ours) :], len(shape) == 2  # its linear weights are transposed
    kind = tuple(shape[::-1] if linear else shape)
    if len(kind) == 1:
        noise = named_array(theirs, kind, 0.1)
        return noise if theirs.endswith("bias") else 1 + noise
    value = named_array(theirs, kind, (2 / np.prod(kind[1:])) ** 0.5)
    return value.T if linear else value


def run_steps(count: int, amp: AmpConfig = AmpConfig()) -> list[dict[str, float]]:
    """The losses of the first steps on the current device, in float32 or mixed precision with loss scaling."""
    case, model = REFERENCE["case"], build()
    parameters = [one for one in model.query_encoder.parameters() if not one.stop_gradient]
    optimizer = paddle.optimizer.Momentum(
        case["lr"], case["momentum"], parameters=parameters, weight_decay=case["weight_decay"]
    )
    scaler = paddle.amp.GradScaler(enable=amp.enabled and amp.dtype == "float16")
    found = []
    for step in range(count):
        query_images, key_images = (to_tensor(_images(step, view)) for view in "qk")
        model.update_key_encoder()
        with amp_context(amp):
            with paddle.no_grad():
                key = model.key_encoder(key_images)
            query = model.query_encoder(query_images)
        losses = model.losses(query, key, case["loss_lambda"])
        scaler.scale(losses["loss"]).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.clear_grad()
        model.enqueue(Keys(key, key.global_vector, key.dense_mean))
        found.append({term: float(losses[term]) for term in TERMS})
    return found


def _images(step: int, view: str) -> np.ndarray:
    case = REFERENCE["case"]
    coarse = named_array(f"image.{step}.{view}", (case["batch"], 3, case["size"] // 8, case["size"] // 8))
    return np.repeat(np.repeat(coarse, 8, 2), 8, 3)
