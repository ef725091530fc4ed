"""Choosing the device, and proving that it computes: a GPU for which this Paddle has no code is refused at once."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import numpy as np
import paddle
import paddle.nn.functional as F
import paddle.version

from passl_densecl.errors import InputError
from passl_densecl.tensors import to_tensor


def gpu_problem() -> str | None:
    """Why Paddle sees no GPU, and what to do, in a sentence; None where it sees one."""
    this = f"this Paddle ({paddle.__version__})"
    if not paddle.device.is_compiled_with_cuda():
        return f"{this} is built without CUDA; install paddlepaddle-gpu in its place"
    if paddle.device.cuda.device_count() > 0:
        return None
    from passl_densecl.distributed import driver  # where Paddle sees a GPU, nobody asks the driver

    problem = (
        driver.read_driver().problem
        or "the driver shows GPUs, but Paddle does not (is the driver too old for its CUDA?)"
    )
    return (
        f"{this} is built for CUDA {paddle.version.cuda()}, but {problem}; install the driver, start a container with "
        "--gpus all, or see densecl doctor"
    )


def set_device(requested: str) -> str | None:
    """Choose the device before anything is built; `auto` takes a GPU where this Paddle sees one.

    Returns a sentence where `auto` means the CPU although the Paddle build or the machine is made for GPUs. Raises
    InputError when the GPU cannot be used: at once, not at the first step.
    """
    problem = None if requested == "cpu" else gpu_problem()
    if requested == "gpu" and problem:
        raise InputError(f"device: expected a GPU, but {problem}; or set device: cpu")
    if requested == "cpu" or problem:
        # A build for CUDA would join the processes with NCCL, on GPUs, whatever the device is.
        os.environ["PADDLE_DISTRI_BACKEND"] = "gloo"
        paddle.set_device("cpu")
        if paddle.device.is_compiled_with_cuda():
            with silent(2):  # it looks for cuDNN once, on a CPU too, and complains on the console
                compute()
        meant_for_gpus = paddle.device.is_compiled_with_cuda() or os.path.exists("/proc/driver/nvidia/version")
        return f"device: auto is the CPU: {problem}" if problem and meant_for_gpus else None
    if os.environ.get("PADDLE_DISTRI_BACKEND") == "gloo":
        del os.environ["PADDLE_DISTRI_BACKEND"]
    number = int(os.environ.get("FLAGS_selected_gpus", "0").split(",")[0])  # noqa: SIM112
    paddle.set_device(f"gpu:{number}")
    try:
        compute()
    except Exception as error:  # Paddle raises OSError, RuntimeError, SystemError, …
        from passl_densecl.distributed.gpu_failure import explain

        name, why = paddle.device.cuda.get_device_name(number), explain(str(error), number)
        more = "densecl doctor says more, and device: cpu computes without it"
        raise InputError(f"GPU {number} ({name}): {why}; {more}") from error
    return None


@contextlib.contextmanager
def silent(*numbers: int) -> Iterator[None]:
    """Within it, what this process writes to these files (1: stdout, 2: stderr), native code included, is dropped."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    saved = {number: os.dup(number) for number in numbers}
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in numbers:
            os.dup2(null, number)
        yield
    finally:
        for number, copy in saved.items():
            os.dup2(copy, number)
        for number in (null, *saved.values()):
            os.close(number)


def compute() -> None:
    """What every network here needs, tiny: convolution and matrix product with gradients, on the current device.

    Raises whatever Paddle does, and ArithmeticError for a wrong result: a kernel that never ran leaves zeros.
    """
    image, weight = (to_tensor(np.ones(shape, "float32")) for shape in ((1, 3, 8, 8), (4, 3, 3, 3)))
    weight.stop_gradient = False
    product = paddle.matmul(F.conv2d(image, weight).flatten(2), to_tensor(np.ones((36, 2), "float32")))  # 27 · 36
    (gradient,) = paddle.grad(product.mean(), [weight])
    found = [float(product.mean()), float(gradient.sum())]
    if not np.allclose(found, 972.0):
        raise ArithmeticError(f"it computed {found[0]:g} and {found[1]:g} instead of 972 twice")
