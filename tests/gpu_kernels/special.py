"""What a run on the CPU cannot show, one word each; its kernels count from the line READY on.

encoder: what runs under mixed precision, which Paddle has on GPUs only. It runs in float32 here, and the check looks up
its kernels in float16 and bfloat16 too: all of them, though Paddle's lists would leave some in float32.
scaling: float16's loss scaling. program FOLDER: the operators of an exported model, before a runtime fuses them.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from unittest import mock

import paddle
from paddle.amp import grad_scaler

from passl_densecl.config import BackboneSpec, HeadSpec
from passl_densecl.models import Encoder, normalize

READY = "ready: from here on"
DTYPES = {"fp32": "float32", "fp64": "float64"}  # of a program


def encoder() -> None:
    models = [Encoder(BackboneSpec(50), HeadSpec(hidden_dim=16, out_dim=8, num_grid=grid)) for grid in (None, 3)]
    ready()
    for model in models:
        found = model(normalize(paddle.zeros([2, 64, 64, 3], "uint8")))
        assert found.dense is not None
        (found.global_vector.sum() + found.dense.sum()).backward()


def scaling() -> None:
    """Paddle builds a GradScaler without function on a CPU; its arithmetic works there nevertheless."""
    tracer = SimpleNamespace(_expected_place=SimpleNamespace(is_gpu_place=lambda: True))
    with mock.patch.object(grad_scaler, "_dygraph_tracer", return_value=tracer):
        scaler = paddle.amp.GradScaler(init_loss_scaling=1024.0, decr_every_n_nan_or_inf=1)
    layer = paddle.nn.Linear(2, 2)
    optimizer = paddle.optimizer.Momentum(0.1, parameters=layer.parameters(), weight_decay=1e-4)
    ready()
    with paddle.amp.auto_cast(
        enable=False, dtype="float16"
    ):  # as the losses do; a GradScaler without one turns itself off
        pass
    for value in (1.0, float("inf")):
        scaler.scale((layer.weight * value).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.clear_grad()
    assert scaler.state_dict()["scale"].item() == 512, "the overflow did not halve the scale"


def program(folder: str) -> None:
    """In the words of Paddle's log."""
    paddle.enable_static()
    executor = paddle.static.Executor(paddle.CPUPlace())
    found, *_ = paddle.static.load_inference_model(f"{folder}/inference", executor)
    ready()
    for operator in found.global_block().ops:
        if operator.type in ("feed", "fetch"):
            continue
        name = paddle.base.core._get_phi_kernel_name(operator.type)
        names = operator.input_arg_names or operator.output_arg_names
        dtype = str(found.global_block().var(names[0]).dtype).rsplit(".", 1)[-1].lower()
        print(f"kernel name: {name} | kernel key: (CPU, any, {DTYPES.get(dtype, dtype)})", flush=True)


def ready() -> None:
    print(READY, file=sys.stderr, flush=True)


if __name__ == "__main__":
    paddle.set_device("cpu")
    {"encoder": encoder, "scaling": scaling, "program": program}[sys.argv[1]](*sys.argv[2:])
