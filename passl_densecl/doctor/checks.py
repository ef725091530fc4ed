"""What this machine and installation have and lack for training; nothing here imports Paddle, which may be broken."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from passl_densecl.distributed.driver import read_driver
from passl_densecl.doctor.findings import Finding, Status, ask, each
from passl_densecl.text import megabytes, quantity

GIB = 2**30
BUILD = """
import json
import passl_densecl
import numpy, cv2, paddle
from paddle import version
facts = {name: getattr(version, name, bool)() for name in ("cuda", "cudnn", "nccl", "cuda_archs")}
try:
    float(paddle.ones([1]))
    facts["conversion"] = ""
except Exception as error:
    facts["conversion"] = f"{type(error).__name__}: {error}"
facts |= {"paddle": paddle.__version__, "versioned": getattr(version, "with_pip_cuda_libraries", "OFF") == "ON"}
print(json.dumps(facts))
"""
COMPUTE = """
import json
from passl_densecl.distributed.device import set_device
from passl_densecl.errors import InputError
try:
    set_device("gpu")
    print(json.dumps(""))
except InputError as error:
    print(json.dumps(str(error)))
"""
# What Paddle opens by name, what of it, and the wheel for CUDA 11 that holds it. Source: dynamic_loader.cc
LIBRARIES = {
    "libcudnn": "nvidia-cudnn-cu11==8.6.0.163",
    "libcublas": "nvidia-cublas-cu11",
    "libcublasLt": "nvidia-cublas-cu11",
    "libcurand": "nvidia-curand-cu11",
    "libcusolver": "nvidia-cusolver-cu11",
    "libcusparse": "nvidia-cusparse-cu11",
    "libcufft": "nvidia-cufft-cu11",
    "libnvrtc": "nvidia-cuda-nvrtc-cu11",
    "libnccl": "nvidia-nccl-cu11",
}
LINKS = """\
The wheels hold versioned names only; give them the names that this Paddle opens:
$ cd "$(python -c 'import nvidia; print(list(nvidia.__path__)[0])')" && mkdir -p links
$ for f in */lib/lib*.so.*; do ln -sf "../$f" "links/$(basename "${f%%.so.*}").so"; done
$ export LD_LIBRARY_PATH="$PWD/links$(printf ":$PWD/%s" */lib):$LD_LIBRARY_PATH"; cd -
Or use an image that has CUDA 11.8 and cuDNN 8.6."""


def inspect() -> Iterator[Finding]:
    """Every check, in the order in which problems are best mended."""
    return each([python, packages, driver, gpus, cuda_libraries, cores, memory, shared_memory, disk, open_files, mkl])


def python() -> Finding:
    text = f"{platform.python_version()}, {platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}"
    tested = (3, 10) <= sys.version_info[:2] <= (3, 13) and platform.system() == "Linux"
    remedy = "tested with Python 3.10 to 3.13 on Linux (Paddle 2.6.2 for GPUs: up to 3.12)"
    return Finding("ok" if tested else "warning", "python", text, remedy)


def installed(name: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@cache
def build() -> tuple[dict[str, Any] | None, str]:
    """What this Paddle says of itself, or why it cannot be imported."""
    return ask(BUILD)


nvidia = cache(read_driver)


def packages() -> Iterator[Finding]:
    """Paddle, the package of its name that is another project, numpy and OpenCV."""
    trap = installed("paddle")
    found = [(name, installed(name)) for name in ("paddlepaddle", "paddlepaddle-gpu")]
    present = [f"{name} {version}" for name, version in found if version]
    again = present[0].replace(" ", "==") if present else "paddlepaddle"
    if trap:
        text = f"'paddle' {trap} of PyPI is another project, in the same folder as PaddlePaddle"
        remedy = f"$ python -m pip uninstall -y paddle {again.partition('=')[0]} && python -m pip install {again}"
        yield Finding("problem", "package paddle", text, remedy)
    if len(present) == 2:
        remedy = "remove both, then install one:\n$ python -m pip uninstall -y paddlepaddle paddlepaddle-gpu"
        yield Finding("problem", "paddle", f"{' and '.join(present)} overwrite each other", remedy)
    facts, why = build()
    if facts:
        cuda = f"CUDA {facts['cuda']}, cuDNN {facts['cudnn']}" if has_cuda() else "built for CPUs"
        nccl = f", NCCL {facts['nccl']}" if has_cuda() and facts["nccl"] else ""
        yield Finding("ok", "paddle", f"{present[0] if present else facts['paddle']}: {cuda}{nccl}", figures=facts)
    elif present:
        remedy = f"is numpy or opencv below at fault? Else:\n$ python -m pip install --force-reinstall {again}"
        yield Finding("problem", "paddle", f"{' and '.join(present)} cannot be imported: {why}", remedy)
    else:
        remedy = "$ python -m pip install 'passl_densecl[cpu]'    (or [gpu]; 'paddle' on PyPI is another project)"
        yield Finding("problem", "paddle", "PaddlePaddle is not installed", remedy)
    yield from numbers_and_images(facts, again)


def numbers_and_images(facts: dict[str, Any] | None, paddle: str) -> Iterator[Finding]:
    """numpy and OpenCV, and whether this Paddle works with them."""
    old, this = "==2." in paddle, paddle.replace("==", " ")
    pin = "'numpy<2' 'opencv-python-headless<4.12'" if old else "'numpy<2.4'"
    numpy = installed("numpy") or "0.0"
    unfit = not (1, 0) <= tuple(map(int, numpy.split(".")[:2])) < ((2, 0) if old else (2, 4))
    status: Status = "warning" if unfit and facts else "problem" if unfit else "ok"
    text = numpy + (f", expected {pin} with {this}" if unfit else "")
    if facts and facts["conversion"]:
        status, text = "problem", f"{numpy}: float() of a tensor of one number fails in {this} ({facts['conversion']})"
    yield Finding(status, "numpy", text, f"$ python -m pip install {pin}")
    names = ("opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")
    kinds = [f"{name} {version}" for name in names if (version := installed(name))]
    _, why = ask("import cv2; print(1)")
    if why or not kinds:
        yield Finding("problem", "opencv", why or "missing", "$ python -m pip install opencv-python-headless")
    elif len(kinds) > 1:
        remedy = f"one of them is enough:\n$ python -m pip uninstall {kinds[-1].split()[0]}"
        yield Finding("warning", "opencv", f"{', '.join(kinds)} write into the same folder", remedy)
    else:
        yield Finding("ok", "opencv", kinds[0])


def has_cuda() -> bool:
    facts, _ = build()
    return bool(facts) and str(facts["cuda"]) not in ("False", "None", "")


def driver() -> Finding:
    found = nvidia()
    if found.problem is None and found.cuda:
        return Finding("ok", "driver", f"NVIDIA driver for CUDA up to {found.cuda[0]}.{found.cuda[1]}")
    text = found.problem or "the NVIDIA driver tells no version"
    if not has_cuda():
        return Finding("ok", "driver", f"{text}; training is on the CPU")
    remedy = "install NVIDIA's driver (CUDA 11.8 needs 520 or newer); start a container with --gpus all"
    return Finding("problem", "driver", f"{text}, though this Paddle is built for GPUs", remedy)


def gpus() -> Iterator[Finding]:
    """Each GPU, and whether this Paddle computes on it: tried in a process of its own."""
    for number, gpu in enumerate(nvidia().gpus):
        capability = ".".join(map(str, gpu.capability))
        text = f"{gpu.name}, {gpu.memory / GIB:.0f} GiB, compute capability {capability}"
        figures = {"gpu": gpu.name, "memory": gpu.memory, "capability": capability}
        status: Status = "ok"
        answer, remedy = "this Paddle computes on it", ""
        if not has_cuda():
            status, answer = "warning", "not used, this Paddle is built for CPUs"
            remedy = "$ python -m pip uninstall -y paddlepaddle && python -m pip install 'passl_densecl[gpu]'"
        elif any(found := ask(COMPUTE, FLAGS_selected_gpus=str(number))):
            status, answer = "problem", f"the first kernels fail: {found[1] or found[0]}"
        yield Finding(status, f"gpu {number}", f"{text}: {answer}", remedy, figures)


def cuda_libraries() -> Finding:
    """The libraries that a build for CUDA opens when it first needs them, by the names that it uses."""
    facts, _ = build()
    if not facts or not has_cuda():
        return Finding("ok", "CUDA libraries", "none needed: this Paddle is built for CPUs")
    missing = [name for name in LIBRARIES if not can_open(name, facts["versioned"])]
    if not missing:
        return Finding("ok", "CUDA libraries", f"all {len(LIBRARIES)} that Paddle opens are found")
    alone = missing == ["libnccl"]
    found = f"{', '.join(name + '.so' for name in missing)} cannot be opened" + (" (for several GPUs)" if alone else "")
    if str(facts["cuda"]).startswith("11"):
        wheels = " ".join(dict.fromkeys(LIBRARIES[name] for name in missing))
        remedy = f"$ python -m pip install {wheels}\n" + ("" if facts["versioned"] else LINKS)
    else:
        remedy = "install Paddle again with the nvidia-* packages that its metadata names"
    return Finding("warning" if alone else "problem", "CUDA libraries", found, remedy, {"missing": missing})


def can_open(name: str, versioned: bool) -> bool:
    """Whether a library opens as Paddle would open it: LD_LIBRARY_PATH, the system, CUDA's usual folder, FLAGS_…_dir;
    for the builds that come with wheels of libraries, also those."""
    folders = [
        "",
        "/usr/local/cuda/lib64",
        *(os.environ.get(f"FLAGS_{kind}_dir", "") for kind in ("cuda", "cudnn", "nccl")),
    ]
    paths = [os.path.join(folder, f"{name}.so") for folder in dict.fromkeys(folders)]
    if versioned:
        paths += map(str, Path(sysconfig.get_path("purelib")).glob(f"nvidia/*/lib/{name}.so*"))
    for path in paths:
        try:
            ctypes.CDLL(path)
            return True
        except OSError:
            continue
    return False


def cores() -> Finding:
    from passl_densecl.data.workers import available_cores

    count, gpus = available_cores(), len(nvidia().gpus)
    text = f"{quantity(count, 'core')} may be used" + (f", for {quantity(gpus, 'GPU')}" if gpus else "")
    remedy = "data loading may be slower than the GPU: --self-test measures it; densecl data pack makes it faster"
    return Finding("ok" if count >= 8 * gpus else "warning", "cores", text, remedy)


def memory() -> Finding:
    with open("/proc/meminfo", encoding="ascii") as file:
        fields = {name: int(value.split()[0]) * 1024 for name, value in (line.split(":", 1) for line in file)}
    free, text = (
        fields["MemAvailable"],
        f"{megabytes(fields['MemAvailable'])} of {megabytes(fields['MemTotal'])} are free",
    )
    remedy = "the published recipe takes more: a smaller micro_batch_size, fewer workers"
    return Finding("ok" if free >= 4 * GIB else "warning", "memory", text, remedy)


def shared_memory() -> Finding:
    total = os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize if os.path.isdir("/dev/shm") else 0
    status: Status = "ok" if total >= GIB else "problem" if len(nvidia().gpus) > 1 else "warning"
    remedy = "enough for one device; several GPUs exchange data there (NCCL): start the container with --shm-size=1g"
    return Finding(status, "/dev/shm", f"{megabytes(total)}; data workers use none of it", remedy)


def disk() -> Finding:
    free = shutil.disk_usage(".").free
    remedy = "three checkpoints of the published recipe take 1.2 GB: set output_dir, or free some"
    return Finding("ok" if free >= 5 * GIB else "warning", "disk", f"{megabytes(free)} free in this folder", remedy)


def open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    remedy = f"$ ulimit -n {min(4096, hard)}"
    return Finding("ok" if soft >= 1024 else "warning", "open files", f"at most {soft:,} at once", remedy)


def mkl() -> Iterator[Finding]:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        if "AuthenticAMD" in file.read(8192):
            value = os.environ.get("MKL_DEBUG_CPU_TYPE")
            remedy = "unset it: passl_densecl sets 5, with which Paddle's CPU kernels are three times as fast on AMD"
            text = f"AMD processor, MKL_DEBUG_CPU_TYPE is {value}"
            yield Finding("ok" if value == "5" else "warning", "MKL", text, remedy)
