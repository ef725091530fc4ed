"""Training as it is meant, on the chosen device: numbers against other devices and precisions, and speed."""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paddle

from passl_densecl.config import AmpConfig, PretrainConfig
from passl_densecl.data.datasets import scan_images
from passl_densecl.data.loader import PairLoader
from passl_densecl.data.workers import available_cores
from passl_densecl.distributed.device import set_device, silent
from passl_densecl.distributed.gpu_failure import amp_problem
from passl_densecl.doctor.findings import Finding, each
from passl_densecl.doctor.reference import REFERENCE, TERMS, run_steps
from passl_densecl.doctor.several import config_of, start, train_steps
from passl_densecl.engine.pretrain import pretrain
from passl_densecl.models.losses import info_nce
from passl_densecl.tensors import to_tensor
from passl_densecl.text import quantity
from passl_densecl.weights.files import read_arrays

SMALL = ("model.depth=18", "model.hidden_dim=64", "model.out_dim=32", "loggers=[]", "report=false", "log_every_steps=1")
RECIPE = "densecl_r50"


@dataclass(frozen=True)
class Plan:
    """Where to test, and how much: the published network on GPUs, a small one on a CPU."""

    gpus: tuple[int, ...]  # none: the CPU
    processes: int  # that share a batch; 1: nothing is shared
    folder: Path  # for images and runs
    steps: int = 5  # of the reference

    @property
    def device(self) -> str:
        return "gpu" if self.gpus else "cpu"

    def config(self, name: str, *overrides: str) -> PretrainConfig:
        return config_of(RECIPE, self.words(name, *overrides))

    def words(self, name: str, *overrides: str) -> list[str]:
        count = max(2, self.processes)
        shared = [f"name={name}", f"output_dir={self.folder}", f"data.root={self.folder / 'images'}"]
        shared += [f"device={self.device}", "micro_batch_size=4", f"batch_size={4 * count}", "epochs=2"]
        sizes = ["data.transforms.0.size=64", f"model.queue_len={8 * count}", "data.num_workers=0"]
        return [*shared, *SMALL, *sizes, *overrides]


def self_test(plan: Plan) -> Iterator[Finding]:
    """Every trial, in order. Reads and writes below the plan's folder only."""
    warnings.filterwarnings("ignore", message="When training, we now always track")  # BatchNorm, and it is meant to
    os.environ["FLAGS_selected_gpus"] = str(plan.gpus[0]) if plan.gpus else "0"  # noqa: SIM112
    set_device(plan.device)
    trials = (reference_steps, exact_losses, mixed_precision, several_processes, resumed_run, speed)
    return each([_named(trial, plan) for trial in trials])


def _named(trial: Callable[[Plan], Any], plan: Plan) -> Callable[[], Any]:
    call = partial(trial, plan)
    call.__name__ = trial.__name__  # type: ignore[attr-defined]
    return call


def _largest(found: Sequence[dict[str, float]], expected: Sequence[dict[str, float]]) -> float:
    """The largest difference of a loss; NaN where one is not a number."""
    return float(np.max([abs(a[term] - b[term]) for a, b in zip(found, expected, strict=True) for term in TERMS]))


def reference_steps(plan: Plan) -> Iterator[Finding]:
    """The original's losses, and on a GPU also this machine's CPU's."""
    expected = REFERENCE["steps"][: plan.steps]
    found = run_steps(plan.steps)
    limits = (1e-4, 1e-4) if not plan.gpus else (5e-3, 5e-2)  # TF32 convolutions; later steps amplify
    first, later = _largest(found[:1], expected[:1]), _largest(found, expected)
    text = f"losses of {plan.steps} steps differ from the original's by {first:.1e} at first, {later:.1e} at most"
    good = first <= limits[0] and later <= limits[1]
    remedy = f"expected at most {limits[0]:g} and {limits[1]:g}: do not train here, and report this page"
    yield Finding("ok" if good else "problem", "reference", text, remedy, {"losses": found})
    if plan.gpus:
        paddle.set_device("cpu")
        try:
            own = _largest(found[:1], run_steps(1))
        finally:
            set_device(plan.device)
        good = own <= limits[0]
        yield Finding("ok" if good else "problem", "against the CPU", f"the first losses differ by {own:.1e}")


def exact_losses(plan: Plan) -> Finding:
    """The contrastive loss against float64: TF32 in its products would show as an error of 1e-4 and more."""
    rng = np.random.default_rng(0)
    vectors = [rng.standard_normal((count, 128)) for count in (256, 256, 4096)]
    query, positive, negatives = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in vectors)
    logits = np.concatenate([(query * positive).sum(1, keepdims=True), query @ negatives.T], axis=1) / 0.07
    right = float(np.mean(np.log(np.exp(logits).sum(1)) - logits[:, 0]))
    tensors = [to_tensor(one.astype("float32")) for one in (query, positive, negatives)]
    found, _ = info_nce(tensors[0], tensors[1], tensors[2], 0.07)
    error = abs(float(found) - right)
    text = f"the contrastive loss differs from float64 by {error:.1e}"
    remedy = "its products run in TF32:\n$ export NVIDIA_TF32_OVERRIDE=0"
    return Finding("ok" if error < 2e-5 else "warning", "exact losses", text, remedy, {"error": error})


def mixed_precision(plan: Plan) -> Iterator[Finding]:
    """bfloat16, and float16 with loss scaling, against float32."""
    for dtype in ("bfloat16", "float16"):
        amp = AmpConfig(enabled=True, dtype=dtype)
        problem = amp_problem(dtype)
        if problem:
            yield Finding("skipped", dtype, problem if plan.gpus else "needs a GPU")
            continue
        error = _largest(run_steps(2, amp), REFERENCE["steps"][:2])
        good = error < 0.1
        yield Finding("ok" if good else "problem", dtype, f"losses of 2 steps differ from float32's by {error:.1e}")


def several_processes(plan: Plan) -> Iterator[Finding]:
    """Collectives, exchanged rows, the same batch shared, and a process that dies."""
    if plan.processes < 2:
        yield Finding("skipped", "several devices", "needs two GPUs, or two cores (--devices cpu:2)")
        return
    words = plan.words("shared")
    alone = train_steps(config_of(RECIPE, words), 2, 32)
    found, why = start(plan.gpus, plan.processes, plan.folder, (RECIPE, *words), 300)
    if why:
        yield Finding("problem", "several devices", why, "the lines on NCCL, /dev/shm and libraries above may say why")
        return
    together, codes, seconds = found
    wrong = ", ".join(together["wrong"])
    kind = f"{plan.processes} processes ({'NCCL' if plan.gpus else 'gloo'})"
    text = f"{kind}: every collective and 40 exchanges of rows equal numpy's"
    yield Finding("problem" if wrong else "ok", "collectives", f"{kind}: {wrong} wrong" if wrong else text)
    close = np.allclose(together["losses"], alone["losses"], atol=1e-5 if not plan.gpus else 1e-3)
    close = close and np.allclose(together["norms"], alone["norms"], rtol=1e-4, atol=1e-5)
    text = f"1 process × {plan.processes} micro-batches {'=' if close else '≠'} {plan.processes} × 1"
    losses = f": losses {alone['losses'][-1]:.6f} and {together['losses'][-1]:.6f}"
    yield Finding("ok" if close else "problem", "micro-batches", text + losses)
    ended = all(code == 3 for code in codes[:-1])
    text = f"one was killed: the others ended with exit codes {codes[:-1]} after {seconds:.0f} s"
    yield Finding("ok" if ended else "problem", "a dead process", text)


def _run(config: PretrainConfig, **options: str) -> Path:
    """Train without a word; the run's folder."""
    with silent(1, 2):
        pretrain(config, **options)  # type: ignore[arg-type]
    return config.run_dir


def _write_images(folder: Path, count: int, size: int) -> None:
    """Smooth random pictures, as JPEG files."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (size * 4 // 3, size), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{number:04d}.jpg"), picture)


def resumed_run(plan: Plan) -> Finding:
    """Two epochs at once, and the second of them resumed from the first's checkpoint."""
    _write_images(plan.folder / "images", 4 * max(2, plan.processes), 96)
    whole = _run(plan.config("whole"))
    resumed = _run(plan.config("resumed"), resume=str(whole / "checkpoints" / "epoch_0001"))
    ends = [read_arrays(run / "checkpoints" / "epoch_0002" / "model.pdparams") for run in (whole, resumed)]
    same = sum(np.array_equal(ends[0][name], ends[1][name]) for name in ends[0])
    text = f"a resumed run ends with the same bits in {same} of {len(ends[0])} arrays"
    if same == len(ends[0]):
        return Finding("ok", "resume", text)
    close = all(np.allclose(ends[0][name], ends[1][name], rtol=1e-2, atol=1e-3) for name in ends[0])
    text += f"; the others differ {'little' if close else 'much'}"
    return Finding("ok" if close and plan.gpus else "problem", "resume", text)  # GPU kernels add in any order


def speed(plan: Plan) -> Iterator[Finding]:
    """Images a second, memory, waiting for data, and how many loader processes this device needs."""
    config = plan.config("whole")
    if plan.gpus:
        _write_images(plan.folder / "images", 256, 375)
        sizes = ["model.depth=50", "model.hidden_dim=2048", "model.out_dim=128", "data.transforms.0.size=224"]
        sizes += ["batch_size=64", "micro_batch_size=32", "epochs=8", "model.queue_len=256"]
        sizes += ["data.num_workers=auto", "log_every_steps=4", "checkpoint.every_epochs=8"]
        config = plan.config("speed", *sizes)
        _run(config)
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    settled = lines[len(lines) // 2 :]  # the first steps choose kernels and fill the loader
    rate, waited = (float(np.mean([line[key] for line in settled])) for key in ("images_per_second", "data_share"))
    memory = max(line["peak_memory_mb"] for line in lines)
    what = f"ResNet-{config.model.depth}, {64 if not plan.gpus else 224} px, micro-batches of {config.micro_batch_size}"
    text = f"{what}: {rate:,.0f} images/s, {waited:.0%} of the time waiting for data, {memory:,.0f} MiB at most"
    figures = {"images_per_second": rate, "data_share": waited, "peak_memory_mb": memory}
    yield Finding("ok", "speed", text, figures=figures)
    cores = max(1, available_cores() // max(1, len(plan.gpus)))
    loader = PairLoader(
        scan_images(**config.data.source()), config.data.transforms, seed=0, batch_size=config.batch_size
    )
    began = time.perf_counter()
    batches = sum(1 for _ in loader.steps(0, loader.steps_per_epoch))
    each_core = batches * config.batch_size / (time.perf_counter() - began)
    needed = math.ceil(rate / max(0.05, 1 - waited) / each_core)
    text = f"one process reads and augments {each_core:,.0f} images/s of this size: {needed} feed this device"
    figures = {"images_per_second_and_worker": each_core, "workers": needed, "cores_of_a_device": cores}
    remedy = f"it has {quantity(cores, 'core')}; smaller images on disk help: densecl data pack --shorter-side 256"
    yield Finding("ok" if needed <= cores else "warning", "loader", text, remedy, figures)
