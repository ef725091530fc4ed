"""What NVIDIA's driver says of this machine's GPUs, asked without Paddle, which may be broken or built for CPUs."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR in cuda.h
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver describes it."""

    name: str
    memory: int  # bytes
    capability: tuple[int, int]  # compute capability, (8, 0) for an A100


@dataclass(frozen=True)
class Driver:
    """The driver: the newest CUDA that it runs, its GPUs, and why there is none."""

    cuda: tuple[int, int] | None = None
    gpus: tuple[Gpu, ...] = ()
    problem: str | None = None


def read_driver() -> Driver:
    """Ask the driver of this machine. CUDA_VISIBLE_DEVICES chooses and numbers the GPUs, as for Paddle."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Driver(problem="there is no NVIDIA driver here (libcuda.so.1 cannot be opened)")
    code = library.cuInit(0)
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    cuda = (version.value // 1000, version.value % 1000 // 10)
    if code in (0, _NO_DEVICE):
        library.cuDeviceGetCount(ctypes.byref(count))
        gpus = tuple(_gpu(library, number) for number in range(count.value))
        return Driver(cuda, gpus, None if gpus else "the driver shows no GPU (CUDA_VISIBLE_DEVICES may hide them)")
    return Driver(cuda, (), f"the NVIDIA driver cannot be used: cuInit returns error {code}; restart the machine")


def _gpu(library: ctypes.CDLL, number: int) -> Gpu:
    device, value, memory, name = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(100)
    library.cuDeviceGet(ctypes.byref(device), number)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in _CAPABILITY:
        library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return Gpu(name.value.decode(errors="replace"), memory.value, (capability[0], capability[1]))
