"""TensorBoard: event files in `tensorboard/` of the run folder, one for each start of the run; the viewer joins them.

Written by tensorboardX, which needs only numpy and protobuf (TensorBoard itself brings gRPC and a web server), and by
its synchronous writer: the thread of its SummaryWriter dies of a full disk, and the next calls wait for it forever.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from passl_densecl.reliability.loggers.base import LoggedRun, Logger


class TensorBoard(Logger):
    package, install = "tensorboardX", "tensorboardX>=2.6.5"

    def __init__(self, run: LoggedRun) -> None:
        from tensorboardX import event_file_writer, summary  # type: ignore[import-not-found]
        from tensorboardX.proto import event_pb2  # type: ignore[import-not-found]

        self._make: Any = summary
        self._event: Any = event_pb2.Event
        folder = run.folder / "tensorboard"
        folder.mkdir(exist_ok=True)
        if run.step < 0:
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
        # The name has the second; a run that is resumed within it must not replace its own file.
        self._writer = event_file_writer.EventsWriter(str(folder / "events"), f".{len(list(folder.iterdir()))}")
        if run.step >= 0:  # the viewer drops what earlier files say of this step and later ones
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(run.step + 1, session_log=start)
        for part in summary.hparams(run.settings, dict.fromkeys(run.results))[:2]:
            self._write(0, summary=part)
        self._writer.flush()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            self._write(step, summary=self._make.scalar(tag, value))
        self._writer.flush()

    def image(self, tag: str, pixels: np.ndarray, step: int) -> None:
        self._write(step, summary=self._make.image(tag, pixels, dataformats="HWC"))

    def close(self) -> None:
        self._writer.close()

    def _write(self, step: int, **what: Any) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), step=step, **what))
