"""Numbers that are not finite: which they are, and what is kept of them for --replay.

A run opens this module when it has met some.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle

from passl_densecl.config import PretrainConfig
from passl_densecl.data.datasets import ImageSet
from passl_densecl.data.loader import PairBatch
from passl_densecl.disk import whole_file
from passl_densecl.distributed import collectives as dist
from passl_densecl.engine.learner import Learner, trained
from passl_densecl.errors import InputError, RunError
from passl_densecl.models import Keys, Losses
from passl_densecl.reliability.checkpoint import Checkpoints
from passl_densecl.tensors import to_tensor

if TYPE_CHECKING:
    from passl_densecl.engine.run import Run

FOLDER, REPORT, BATCH = "nonfinite", "report.json", "batch.npz"


def find_nonfinite(learner: Learner, losses: Sequence[Losses], keys: Keys) -> dict[str, list[Any]]:
    """What is not finite: every loss of every process, and the names of keys, statistics and gradients."""
    rows = paddle.stack([paddle.stack([value.detach() for value in each.values()]) for each in losses])
    table = dist.gather_rows(rows).numpy().tolist()  # (micro-batches of all processes, number of losses)
    broken = [
        # JSON has no word for infinity and NaN.
        {"micro_batch": number}
        | {name: value if math.isfinite(value) else str(value) for name, value in zip(losses[0], row, strict=True)}
        for number, row in enumerate(table)
        if not np.isfinite(row).all()
    ]
    tensors = {
        "keys": {"global": keys.global_vector, "dense_mean": keys.dense_mean},
        "BatchNorm statistics": {
            name: value for name, value in learner.model.named_parameters() if name.endswith(("._mean", "._variance"))
        },
        "gradients": {name: weight.grad for name, weight in trained(learner.model).items()},
    }
    return {"losses": broken} | {
        kind: [name for name, one in named.items() if one is not None and not np.isfinite(one.numpy()).all()]
        for kind, named in tensors.items()
    }


def keep(run: Run[PretrainConfig], images: ImageSet, skipped: int, batch: PairBatch, report: dict[str, Any]) -> str:
    """Write the report, and of the first such steps the batch and the state; returns where, for a message.

    The state is the one before the step: it has been undone. A disk that refuses ends no run.
    """
    done = report["step"]
    if skipped > run.config.guard.max_nonfinite_steps + 1:  # a limit that was lowered: reports are bounded too
        return ""
    whole = skipped <= run.config.guard.keep_dumps
    indices = dist.gather_rows(to_tensor(batch.indices)).numpy()
    parts = {"query": batch.query, "key": batch.key} | ({} if batch.matches is None else {"matches": batch.matches})
    arrays = {name: dist.gather_rows(part).numpy() for name, part in parts.items()} if whole else {}
    if not dist.is_main():
        return ""
    folder = run.config.run_dir / FOLDER / f"step_{done:08d}"
    share = len(indices) // dist.world_size()
    rows = [
        {"process": row // share, "index": int(index), "path": images.path(int(index))}
        for row, index in enumerate(indices)
    ]
    report |= {"processes": dist.world_size(), "nonfinite_steps": skipped, "images": rows}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if whole:  # the state before the step, as a checkpoint like any other
            state = run.snapshot(done - 1, nonfinite_steps=skipped - 1)
            Checkpoints(folder, keep=1).save(f"step_{done - 1:08d}", state, must=True)
            with whole_file(folder / BATCH) as file:
                np.savez(file, indices=indices, **arrays)  # pyright: ignore[reportArgumentType]
        with whole_file(folder / REPORT) as file:  # last: where it is, the rest is
            file.write((json.dumps(report, indent=1) + "\n").encode())
    except (OSError, InputError, RunError) as error:
        return f"; what it was could not be kept: {error}"
    return f"; kept for --replay: {folder}" if whole else f"; see {folder / REPORT}"
