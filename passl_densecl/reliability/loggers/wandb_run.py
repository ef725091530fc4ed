"""Weights & Biases: the run `name` of the project $WANDB_PROJECT (or passl_densecl), continued under one id.

Its own variables decide the rest, such as WANDB_MODE=offline (files in `wandb/` of the run folder, for `wandb sync`).
A step that the service already has is not replaced: of the steps that a resumed run repeats, the first record stays.
"""

from __future__ import annotations

import contextlib
import io
import os
import uuid
from collections.abc import Mapping

import numpy as np

from passl_densecl.errors import InputError
from passl_densecl.reliability.loggers.base import LoggedRun, Logger


class WandB(Logger):
    package, install, remote = "wandb", "wandb>=0.31,<1", True

    @classmethod
    def check(cls) -> None:
        super().check()
        import wandb  # type: ignore[import-not-found]

        output = io.StringIO()  # not a terminal: wandb asks for no key
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                wandb.login(verify=False)
        except wandb.Error as error:
            raise InputError(f"loggers: wandb: {error}; or set WANDB_API_KEY, or WANDB_MODE=offline") from None

    def __init__(self, run: LoggedRun) -> None:
        import wandb  # type: ignore[import-not-found]

        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "passl_densecl",
            name=run.config.name,
            id=run.remembered("wandb", lambda: uuid.uuid4().hex[:8])[0],
            resume="allow",
            dir=str(run.folder),
            config=run.settings,
            allow_val_change=True,
            settings=wandb.Settings(console="off", silent=True),
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def image(self, tag: str, pixels: np.ndarray, step: int) -> None:
        self._run.log({tag: self._image(pixels)}, step=step)

    def close(self) -> None:
        self._run.finish()
