"""Choosing a device: what a user reads where a GPU is missing, hidden, too new or too old. No GPU is needed."""

from __future__ import annotations

import ctypes
import os

import paddle
import pytest

from passl_densecl.distributed import device, driver
from passl_densecl.distributed.device import set_device
from passl_densecl.distributed.driver import Driver, Gpu, read_driver
from passl_densecl.distributed.gpu_failure import amp_problem
from passl_densecl.errors import InputError

NO_KERNEL = """

--------------------------------------
C++ Traceback (most recent call last):
0   phi::backends::gpu::GpuMemsetAsync()
----------------------
Error Message Summary:
----------------------
ExternalError: CUDA error(209), no kernel image is available for execution on the device. (at gpu_info.cc:301)
"""
NO_CUDNN = "Error Message Summary:\n----------------------\nPreconditionNotMetError: Cannot load cudnn shared library. "
NO_CUDNN += "Cannot invoke method cudnnGetVersion.\n  [Hint: cudnn_dso_handle should not be null.] (at cudnn.cc:60)"
NO_CUBLAS = (
    "PreconditionNotMetError: The third-party dynamic library (libcublas.so) that Paddle depends on is not configured"
)


class Library:
    """libcuda with these GPUs."""

    def __init__(self, gpus: list[Gpu], code: int = 0) -> None:
        self.gpus, self.code = gpus, code

    def cuInit(self, _: int) -> int:
        return self.code

    def cuDriverGetVersion(self, version) -> None:
        version._obj.value = 12040

    def cuDeviceGetCount(self, count) -> None:
        count._obj.value = len(self.gpus)

    def cuDeviceGet(self, found, number: int) -> None:
        found._obj.value = number

    def cuDeviceGetName(self, name, _: int, found) -> None:
        name.value = self.gpus[found.value].name.encode()

    def cuDeviceTotalMem_v2(self, memory, found) -> None:
        memory._obj.value = self.gpus[found.value].memory

    def cuDeviceGetAttribute(self, value, attribute: int, found) -> None:
        value._obj.value = self.gpus[found.value].capability[attribute - 75]


T4, H100 = Gpu("Tesla T4", 15 * 2**30, (7, 5)), Gpu("NVIDIA H100 80GB HBM3", 80 * 2**30, (9, 0))


@pytest.mark.parametrize("gpus", [[], [T4], [T4, H100]])
def test_the_driver_tells_its_gpus(monkeypatch, gpus):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library(gpus))
    found = read_driver()
    assert (found.cuda, found.gpus) == ((12, 4), tuple(gpus))
    assert (found.problem is None) == bool(gpus)


def test_a_driver_that_is_missing_or_broken(monkeypatch):
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert read_driver() == Driver(problem="there is no NVIDIA driver here (libcuda.so.1 cannot be opened)")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library([T4], 999))
    assert "cuInit returns error 999" in str(read_driver().problem)


@pytest.fixture
def machine(monkeypatch):
    """A Paddle for CUDA 11.8 and these GPUs; what it computes, or the message it fails with."""

    def build(gpus: list[Gpu], failure: str = "") -> list[str]:
        chosen: list[str] = []

        def compute() -> None:
            if failure:
                raise RuntimeError(failure)

        cuda = paddle.device.cuda
        monkeypatch.setattr(paddle.device, "is_compiled_with_cuda", lambda: True)
        monkeypatch.setattr(paddle.version, "cuda", lambda: "11.8")
        monkeypatch.setattr(cuda, "device_count", lambda: len(gpus))
        monkeypatch.setattr(cuda, "get_device_capability", lambda number=0: gpus[number].capability)
        monkeypatch.setattr(cuda, "get_device_name", lambda number=0: gpus[number].name)
        monkeypatch.setattr(paddle, "set_device", chosen.append)
        monkeypatch.setattr(paddle, "get_device", lambda: chosen[-1])
        monkeypatch.setattr(device, "compute", compute)
        monkeypatch.setattr(driver, "read_driver", lambda: Driver((12, 4), tuple(gpus)))
        monkeypatch.setenv("FLAGS_selected_gpus", "0")
        monkeypatch.delenv("PADDLE_DISTRI_BACKEND", raising=False)
        return chosen

    return build


def test_a_build_for_cpus(monkeypatch):
    monkeypatch.setattr(paddle.device, "is_compiled_with_cuda", lambda: False)
    with pytest.raises(
        InputError, match=r"expected a GPU, but this Paddle \(.+\) is built without CUDA; install paddle"
    ):
        set_device("gpu")
    assert set_device("auto") is None or os.path.exists("/proc/driver/nvidia/version")


def test_a_build_for_gpus_without_a_driver(machine, monkeypatch):
    chosen = machine([])
    monkeypatch.setattr(driver, "read_driver", read_driver)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library([]))
    with pytest.raises(InputError, match=r"built for CUDA 11\.8, but the driver shows no GPU .*--gpus all"):
        set_device("gpu")
    said = set_device("auto")
    assert said is not None
    assert said.startswith("device: auto is the CPU: this Paddle")
    assert chosen == ["cpu"]
    assert os.environ["PADDLE_DISTRI_BACKEND"] == "gloo"


def test_the_cpu_of_a_machine_with_gpus_joins_with_gloo(machine):
    chosen = machine([T4])
    assert set_device("cpu") is None
    assert os.environ["PADDLE_DISTRI_BACKEND"] == "gloo"
    assert set_device("auto") is None
    assert "PADDLE_DISTRI_BACKEND" not in os.environ
    assert chosen == ["cpu", "gpu:0"]


@pytest.mark.parametrize(
    ("failure", "gpu", "said"),
    [
        (NO_KERNEL, H100, r"has no code for compute capability 9\.0; install Paddle 3 for GPUs as https"),
        (NO_KERNEL, Gpu("Tesla P100", 2**34, (6, 0)), r"no code for compute capability 6\.0; it needs another build"),
        ("it computed 0 and 0 instead of 972 twice", H100, r"has no code for compute capability 9\.0"),
        (NO_CUDNN, T4, r"the library libcudnn\.so that Paddle .+ for CUDA 11\.8 opens is missing"),
        (NO_CUBLAS, T4, r"the library libcublas\.so that Paddle"),
        ("ResourceExhaustedError: Out of memory error on GPU 0", T4, "it has no free memory"),
        ("Error Message Summary:\n-----\nFatalError: what\n", T4, r"cannot compute .*: FatalError: what;"),
    ],
)
def test_a_gpu_that_does_not_compute_is_refused_in_a_sentence(machine, failure, gpu, said):
    machine([gpu], failure)
    for requested in ("gpu", "auto"):
        with pytest.raises(InputError, match=rf"GPU 0 \({gpu.name}\): .*{said}") as error:
            set_device(requested)
        assert len(str(error.value).splitlines()) == 1


def test_mixed_precision_that_a_gpu_lacks_is_said(machine):
    machine([T4])
    set_device("gpu")
    said = amp_problem("bfloat16")
    assert said is not None
    assert "needs compute capability 8.0, and Tesla T4 has 7.5" in said
    assert "set amp.dtype=float16" in said
    assert amp_problem("float16") is None


def test_the_computation_that_proves_a_device():
    device.compute()
