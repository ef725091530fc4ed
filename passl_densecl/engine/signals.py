"""A polite end: the first SIGTERM or SIGINT asks the loop to save and stop, a second one stops at once."""

from __future__ import annotations

import os
import signal
from types import FrameType

import paddle

from passl_densecl import dist


class StopRequest:
    """Within it, signals set a flag; `agreed` becomes true in every process at once when one of them was asked."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._vote: paddle.Tensor | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        paddle.disable_signal_handler()  # Paddle's own prints a native stack trace and dies
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def agreed(self) -> bool:
        """Whether any process was asked to stop; every process must call it at the same place, once a step.

        Several processes vote, and read the votes of the call before: waiting for this one's would make the device idle.
        """
        if dist.world_size() == 1:
            return self.signal is not None
        before, self._vote = self._vote, dist.vote(self.signal is not None)
        return before is not None and bool(before.numpy() > 0)

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as a shell gives it; SIGTERM's where another process was asked."""
        return 128 + (self.signal or signal.SIGTERM)

    def _asked(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number
