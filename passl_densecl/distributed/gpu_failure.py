"""Why a GPU that Paddle sees does not compute: missing libraries, no code for it, no memory, no mixed precision."""

from __future__ import annotations

import re

import paddle
import paddle.version

_LEAST = {"float16": (7, 0), "bfloat16": (8, 0)}  # compute capability below which Paddle turns mixed precision off
_PADDLE_3 = "install Paddle 3 for GPUs as https://www.paddlepaddle.org.cn/install/quick shows"


def explain(message: str, number: int) -> str:
    """What Paddle's message about GPU `number` means, and what to do."""
    capability = paddle.device.cuda.get_device_capability(number)
    shown = f"compute capability {capability[0]}.{capability[1]}"
    build = f"Paddle {paddle.__version__} for CUDA {paddle.version.cuda()}"
    library = re.search(r"library \(lib(\w+)\.so|lib(\w+)\.so[.\d]*: cannot open|load (\w+) shared library", message)
    if library:
        return f"the library lib{library[library.lastindex or 0]}.so that {build} opens is missing or does not fit"
    if re.search(r"no kernel image|invalid device function|CUDA error\((209|98|8)\)|PTX", message) or (
        message.startswith("it computed")
    ):
        remedy = _PADDLE_3 if capability >= (8, 9) else "it needs another build of Paddle, or another GPU"
        return f"{build} has no code for {shown}; {remedy}"
    if re.search(r"out of memory|ResourceExhausted", message, re.IGNORECASE):
        return "it has no free memory: another program uses it (nvidia-smi lists them)"
    lines = [line.strip() for line in message.partition("Error Message Summary:")[2].splitlines() or [message]]
    told = [line for line in lines if line.strip("- ")] or message.strip().splitlines()[-1:]
    return f"it cannot compute ({build}, {shown}): {told[0][:300] if told else 'no message'}"


def amp_problem(dtype: str) -> str | None:
    """Why Paddle turns mixed precision off on the current device, without an error; None where it does not."""
    if not paddle.get_device().startswith("gpu"):
        return "amp.enabled: Paddle has mixed precision on GPUs only; this run is in float32 throughout"
    capability, least = paddle.device.cuda.get_device_capability(), _LEAST[dtype]
    if capability >= least:
        return None
    instead = "set amp.dtype=float16, or " if capability >= _LEAST["float16"] else ""
    return (
        f"amp.dtype {dtype} needs compute capability {least[0]}.{least[1]}, and {paddle.device.cuda.get_device_name()} "
        f"has {capability[0]}.{capability[1]}: Paddle computes in float32 throughout; {instead}amp.enabled=false"
    )
