"""Learning-rate schedules: frozen settings that are functions, (step, steps_per_epoch, epochs) → factor of the base
rate.

`step` is the number of optimizer steps already taken; the factor is a float from 0 to 1.
Source: cosine with one value per epoch and step decay are the recipes of DenseCL (CVPR 2021) and MoCo.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Schedule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    warmup_epochs: float = Field(0.0, ge=0, description="length of a linear ramp from 0, in epochs")

    def __call__(self, step: int, *, steps_per_epoch: int, epochs: int) -> float:
        """The factor of the learning rate for the optimizer step number `step` (from 0)."""
        warmup_steps = self.warmup_epochs * steps_per_epoch
        ramp = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        return ramp * self.factor(step, steps_per_epoch, epochs)

    def factor(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        raise NotImplementedError


class Cosine(_Schedule):
    """Half a cosine from 1 to 0 over the run; `per: epoch` keeps one value through an epoch, as the original does."""

    name: Literal["cosine"] = "cosine"
    per: Literal["epoch", "step"] = "epoch"

    def factor(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        done = step // steps_per_epoch / epochs if self.per == "epoch" else step / (steps_per_epoch * epochs)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class StepDecay(_Schedule):
    """Multiply by `gamma` at the start of each epoch of `milestones` (counted from 0)."""

    name: Literal["step"] = "step"
    milestones: Annotated[tuple[int, ...], Field(strict=False, description="epochs at which the rate drops")]
    gamma: float = Field(0.1, gt=0, le=1)

    def factor(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        epoch = step // steps_per_epoch
        return self.gamma ** sum(epoch >= milestone for milestone in self.milestones)


class Constant(_Schedule):
    """The base rate throughout."""

    name: Literal["constant"] = "constant"

    def factor(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        return 1.0


Schedule = Annotated[Cosine | StepDecay | Constant, Field(discriminator="name")]
