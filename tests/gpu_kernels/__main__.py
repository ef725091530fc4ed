"""Every operator that this project uses has a kernel in Paddle's GPU build: a check on a machine without a GPU.

`python -m tests.gpu_kernels` (make test-gpu-kernels) runs under the GPU build what a user runs, on the CPU. It looks up
every kernel that Paddle's log names, with its dtype, among those that the build has registered for GPUs. Exit code 1
when one has none or is unknown, when a run fails, or when the operator planted to be found is not. What it cannot see:
whether a kernel works, NCCL, and what Paddle's C++ computes without its registry (the averaging of gradients).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path

import cv2
import numpy as np
import paddle

from tests.engine.runs import ROOT, environment
from tests.gpu_kernels.kernels import Kernel, problem, registered_forms, used_kernels
from tests.gpu_kernels.special import READY

HALF = ("bfloat16", "float16")
PLANTED = "eig"  # Paddle has it for CPUs only: the check must say so
SMALL = ["device=cpu", "data.num_workers=0", "report=false", "loggers=[]", "batch_size=8", "log_every_steps=1"]
PRETRAIN = ["micro_batch_size=4", "model.queue_len=16", "model.hidden_dim=16", "data.transforms.0.size=32", "epochs=1"]


def runs(folder: Path) -> dict[str, list[str]]:
    """What is run, in this order, as arguments of Python."""
    images, masks, weights = str(folder / "train"), str(folder / "masks"), str(folder / "dense")

    def train(config: str, data: object, name: str, *words: str) -> list[str]:
        words = (config, str(data), f"output_dir={folder}", f"name={name}", *SMALL, *words)
        return ["-m", "passl_densecl", "train", *words]

    def pretrain(name: str, *words: str) -> list[str]:
        return train("small/densecl_r18", images, name, *PRETRAIN, "model.loss_lambda_warmup_epochs=0", *words)

    def evaluate(verb: str, *words: str) -> list[str]:
        return ["-m", "passl_densecl", "eval", verb, weights, "--size", "64", *words]

    labeled = ["--train", images, "--val", str(folder / "val")]
    special = ["-m", "tests.gpu_kernels.special"]
    return {
        "planted": ["-c", f"import paddle; paddle.set_device('cpu'); paddle.linalg.{PLANTED}(paddle.eye(2))"],
        "DenseCL, online k-NN": pretrain(
            "dense",
            f"evaluation.train={images}",
            f"evaluation.val={images}",
            "evaluation.k=5",
            "epochs=2",
            "model.dense_matches=features",
        ),
        "num_grid": pretrain("grid", "model.num_grid=3"),
        "MoCo-v2 (λ = 0)": pretrain("moco", "model.loss_lambda=0"),
        "guard and undo": pretrain("guard", "optimizer.lr=1e6", "optimizer.reference_batch_size=1", "epochs=2"),
        "two processes": pretrain("two", "--devices", "cpu:2"),
        "linear evaluation": train("small/linear_r18", folder, "linear", "epochs=1", "--pretrained", weights),
        "k-NN": evaluate("knn", *labeled),
        "cached linear": evaluate("linear", *labeled),
        "dense probe": evaluate("dense", "--images", images + "/a", "--masks", masks, "--folds", "2"),
        "correspondence": evaluate("correspondence", "--images", images),
        "export": ["-m", "passl_densecl", "export", weights, str(folder / "exported")],
        "exported program": [*special, "program", str(folder / "exported")],
        "mixed precision": [*special, "encoder"],
        "loss scaling": [*special, "scaling"],
    }


def write_images(folder: Path) -> None:
    """train/ and val/ with two classes of noise, and masks for the images of one of them."""
    rng = np.random.default_rng(0)
    for place in ("train/a", "train/b", "val/a", "val/b", "masks"):
        (folder / place).mkdir(parents=True)
        shape, values = ((72, 80), 2) if place == "masks" else ((72, 80, 3), 255)
        for index in range(8):
            cv2.imwrite(str(folder / place / f"{index}.png"), rng.integers(0, values, shape, dtype=np.uint8))


def log_of(words: list[str], folder: Path) -> Iterator[str]:
    """Run Python; its log, and what its run folders hold of it, line by line. Raises RuntimeError when it fails."""
    tail: deque[str] = deque(maxlen=15)
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment() | {"GLOG_v": "6", "GLOG_minloglevel": "0"},  # GLOG_vmodule breaks the GPU build's memory
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    for line in process.stdout:
        yield line
        if line[:1] != "I":
            tail.append(line)
    if process.wait():
        raise RuntimeError(f"exit code {process.returncode}\n{''.join(tail)}")
    for log in [*folder.rglob("workerlog.*"), *folder.rglob("train.log")]:
        yield from log.open(errors="replace")
        log.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only the runs whose name has this in it")
    args = parser.parse_args()
    if not paddle.device.is_compiled_with_cuda():
        parser.error(f"Paddle {paddle.__version__} here is built without CUDA: it has no kernels for GPUs")
    core = paddle.base.core
    forms = registered_forms(core._get_all_register_op_kernels("phi"), core._get_phi_kernel_name, "gpu")
    failures: list[str] = []
    used: dict[str, dict[str, set[str]]] = {}  # operator → dtype → runs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder)
        for run, words in runs(folder).items():
            if args.only not in run and run != "planted":
                continue
            kernels: set[Kernel] = set()
            try:
                lines = log_of(words, folder)
                if "tests.gpu_kernels.special" in words:
                    lines = dropwhile(lambda line: READY not in line, lines)
                kernels.update(used_kernels(lines))
            except RuntimeError as error:
                failures.append(f"{run}: {error}")
            if run == "guard and undo" and not (folder / "guard" / "nonfinite").is_dir():
                failures.append(f"{run}: no step was undone")
            if run == "mixed precision":
                cast = {kernel for kernel, dtype in kernels if dtype == "float32"} - {"assign_value"}  # constants stay
                kernels |= {(kernel, half) for kernel in cast for half in HALF}
            for kernel, dtype in kernels:
                used.setdefault(kernel, {}).setdefault(dtype, set()).add(run)
            print(f"{run:24s}{len({kernel for kernel, _ in kernels}):4d} operators", flush=True)
    print(f"\n{'operator':34s}{'GPU kernel':12s}dtypes")
    for kernel, dtypes in sorted(used.items()):
        what = problem(kernel, dtypes, forms)
        print(f"{kernel:34s}{what or 'yes':12s}{' '.join(sorted(dtypes))}")
        if what and kernel != PLANTED:
            failures.append(f"{kernel}: {what}; used by {', '.join(sorted(set().union(*dtypes.values())))}")
    if PLANTED not in used or not problem(PLANTED, used[PLANTED], forms):
        failures.append(f"{PLANTED}, planted to be found without a GPU kernel, was not")
    print(f"\n{len(used)} operators, Paddle {paddle.__version__}; {len(failures)} problems", *failures, sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
