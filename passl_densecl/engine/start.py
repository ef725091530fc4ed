"""How a run begins, for pre-training and linear evaluation alike: its folder, its checkpoint, the weights it starts from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import paddle

from passl_densecl.config import AmpConfig, BackboneConfig, Config, RunConfig
from passl_densecl.distributed import collectives as dist
from passl_densecl.distributed import process_group
from passl_densecl.errors import InputError
from passl_densecl.reliability import checkpoint as checkpoint_files
from passl_densecl.reliability.checkpoint import Checkpoint, Checkpoints
from passl_densecl.reliability.lock import locked
from passl_densecl.reliability.log import SilentLog, open_log, set_device
from passl_densecl.reliability.signals import StopRequest
from passl_densecl.transforms import CenterCrop, RandomResizedCrop, Transform
from passl_densecl.weights import (
    Extraction,
    Parent,
    read_backbone,
    read_card,
    recorded_backbone,
    recorded_card,
    weights_file,
)
from passl_densecl.weights.card import FOREIGN


@contextmanager
def entered(
    config: Config, resume: str | None, overwrite: bool, check: Callable[[Checkpoint | None], None] | None = None
) -> Iterator[tuple[Checkpoint | None, Checkpoints, SilentLog, StopRequest]]:
    """A run folder for one run alone, its log open, signals heard, and the processes together until the end.

    `check` is given the checkpoint to go on from before anything is written.
    """
    with StopRequest() as stop, locked(config.run_dir) as warning:
        checkpoints = Checkpoints(config.run_dir, config.checkpoint.keep)
        start = find_start(config.run_dir, checkpoints, resume, overwrite)
        if check:
            check(start)
        set_device(config.device)
        log = open_log(config, resumed=start is not None)
        try:
            if warning:
                log.line("warning", warning)
            with process_group.session(config.dist_timeout):
                yield start, checkpoints, log, stop
        finally:
            log.close()


def find_start(
    run_dir: Path, checkpoints: Checkpoints, resume: str | None, overwrite: bool = False
) -> Checkpoint | None:
    """The checkpoint to go on from, whole and undamaged; None for a new run.

    Raises InputError when a new run would write into a folder that holds one, when the checkpoint that was named is damaged, or
    all are.
    """
    if overwrite and resume is not None:
        raise InputError("give --resume (continue the run) or --overwrite (start it anew), not both")
    if resume is None:
        present, metrics = checkpoints.present(), run_dir / "metrics.jsonl"
        begun = "no checkpoint yet" if metrics.is_file() and metrics.stat().st_size else None
        if present:
            begun = (checkpoints.newest() or present[-1]).name
        if begun is not None and not overwrite:
            raise InputError(
                f"output_dir {str(run_dir)!r} already holds a run ({begun}); continue it with --resume, start another with "
                "-o name=NAME, or replace it with --overwrite"
            )
        return None
    if resume == "auto":
        return checkpoint_files.read_newest(checkpoints.folder)
    return checkpoint_files.read(Path(resume))


def enter_folder(
    start: Checkpoint | None, checkpoints: Checkpoints, log: SilentLog, overwrite: bool, keep_also: str | None = None
) -> None:
    """Leave in the run folder what the run as it goes on from `start` would have written; right before its first step."""
    if not dist.is_main():
        return
    if overwrite:
        checkpoints.clear()
    log.rewind(-1 if start is None else start.step)
    checkpoints.tidy(0 if start is None else start.step, log, keep_also)


def check_same_start(start: Checkpoint | None) -> None:
    """Raises InputError when the processes would not continue from the same step."""
    step = start.step if start is not None else 0
    mean = dist.all_reduce_sum([step])[0] / dist.world_size()
    if dist.any_process(step != mean):
        raise InputError(
            f"--resume: process {dist.rank()} found step {step}, others another one; every host must see the same output_dir "
            "(shared storage)"
        )


def checkpoint_name(done: int, steps_per_epoch: int, config: RunConfig, last: int, stopping: bool) -> str | None:
    """The name of the checkpoint that is due after `done` steps, or None."""
    epoch, within = divmod(done, steps_per_epoch)
    every = config.checkpoint
    if within == 0 and (epoch % every.every_epochs == 0 or done == last or stopping):
        return f"epoch_{epoch:04d}"
    if stopping or (every.every_steps and done % every.every_steps == 0):
        return f"epoch_{epoch:04d}" if within == 0 else f"step_{done:08d}"
    return None


def parents_of(path: str | None, start: Checkpoint | None) -> tuple[Parent, ...]:
    """The file that a run's weights came from; a run that is continued has told it in its checkpoint's card."""
    if start is not None:
        card = read_card(start.path / checkpoint_files.MODEL)
        return card.parents if card else ()
    if path is None:
        return ()
    file = weights_file(Path(path))
    card = recorded_card(file)
    return (Parent.of(file, card.kind if card else FOREIGN),)


def read_fitting_backbone(path: str, expected: BackboneConfig) -> Extraction:
    """The backbone for --pretrained. Raises InputError when its depth, or the strides it is known to need, are others."""
    extraction = read_backbone(Path(path))
    if extraction.depth != expected.depth:
        raise InputError(
            f"--pretrained {path} holds a ResNet-{extraction.depth}, the config asks for ResNet-{expected.depth}: set "
            f"model.depth {extraction.depth}, or choose another file"
        )
    check_strides("--pretrained", path, expected)
    return extraction


def check_strides(option: str, path: str, expected: BackboneConfig) -> None:
    """Raises InputError when the weights are known to come from a run with other strides than the config's."""
    trained = recorded_backbone(weights_file(Path(path)))
    for key in ("stem_stride", "last_stride"):
        if trained and getattr(trained, key) != getattr(expected, key):
            raise InputError(
                f"{option} {path} was trained with model.{key} {getattr(trained, key)}, the config says "
                f"{getattr(expected, key)}; set -o model.{key}={getattr(trained, key)}"
            )


def output_size(transforms: Sequence[Transform]) -> int:
    """Pixels a side of the image that the transforms give; 224 is assumed where none sets it."""
    sizes = [t.size for t in transforms if isinstance(t, (RandomResizedCrop, CenterCrop))]
    return sizes[-1] if sizes else 224


def output_bytes(transforms: Sequence[Transform]) -> int:
    """Bytes of the uint8 RGB image that the transforms give."""
    return 3 * output_size(transforms) ** 2


def amp_context(config: AmpConfig) -> AbstractContextManager:
    """Automatic mixed precision (O1) around the encoders; similarities and losses stay outside, in float32."""
    return paddle.amp.auto_cast(enable=True, level="O1", dtype=config.dtype) if config.enabled else nullcontext()


def warn_of_amp(config: AmpConfig, log: SilentLog) -> None:
    """Say it when mixed precision is asked for on a device where Paddle ignores it."""
    if config.enabled and not paddle.get_device().startswith("gpu"):
        log.line("warning", "amp.enabled: Paddle has mixed precision on GPUs only; this run is in float32 throughout")
