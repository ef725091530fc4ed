"""The process group: joining the other processes, watching that they stay alive, and leaving them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import paddle
import paddle.distributed

from passl_densecl.distributed import collectives
from passl_densecl.distributed.collectives import barrier, world_size
from passl_densecl.errors import RunError


def start(limit: float = 60) -> None:
    """Join the other processes (NCCL on GPUs, gloo on CPUs) and watch that they stay alive. A single process: nothing.

    A process that dies, or sends no heartbeat for `limit` seconds, ends the others: with a RunError, with exit code 3
    where they hang in native code, and by SIGKILL where that native code holds Python's lock.
    """
    if world_size() > 1 and not paddle.distributed.is_initialized():
        from passl_densecl.distributed.join import join  # a single process needs none of it

        collectives.peers = join(limit)


def stop() -> None:
    """Leave the group, after all processes have called this."""
    if world_size() > 1 and paddle.distributed.is_initialized():
        barrier()
        _leave()
        paddle.distributed.destroy_process_group()


@contextlib.contextmanager
def running(limit: float) -> Iterator[None]:
    """From `start` to `stop`. Errors are announced to the others; one caused by the end of another names it."""
    start(limit)
    try:
        yield
    except Exception as error:
        # A collective raises whatever its library does (RuntimeError, mostly), perhaps before the connection breaks.
        foreign = isinstance(error, (RuntimeError, OSError, SystemError)) and not isinstance(error, RunError)
        lost = collectives.peers.lost_within(3) if collectives.peers and foreign else None
        _leave(error)
        if lost:
            raise RunError(lost) from error
        if foreign and "gloo" in str(error) and "TIMEOUT" in str(error):
            raise RunError(
                "another process was more than 30 s late for a collective operation on CPUs, though it is alive: it is "
                "too slow, or waits for its disk. Whole checkpoints stay whole; continue with --resume auto"
            ) from error
        raise
    stop()


def _leave(error: BaseException | None = None) -> None:
    if collectives.peers is not None:
        collectives.peers.leave(error)
        collectives.peers = None
