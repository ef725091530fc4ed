"""Warnings about runs that continue without learning, once each, from numbers that are logged anyway. Nothing stops."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

import paddle

from passl_densecl.config import PretrainConfig
from passl_densecl.models.densecl import Keys
from passl_densecl.reliability.log import SilentLog

# Of ln(K+1). A loss that learns was below 0.85 of it within ten fillings of the queue in every run that was observed;
# one that cannot distinguish images stays at 1.00 to 1.02.
STUCK_AT = 0.98
# Mean cosine between the keys of two images. Untrained encoders give 0.9 and more, which the loss brings down within
# some hundred steps; collapsed ones give 1.
COLLAPSED_AT = 0.95
# Both must hold over so many steps after the queue was filled, and so many fillings of it: long queues turn slowly.
PATIENCE_STEPS, PATIENCE_FILLINGS = 500, 5
# A share of the time. Below one half the device is the bottleneck; five readings in a row, because the first ones of a
# run, and those beside other work on the machine, are not reliable.
WAITING, WAITING_READINGS = 0.5, 5
_FEWEST_READINGS = 5


@paddle.no_grad()
def similarity(keys: Keys) -> dict[str, float]:
    """Mean cosine between the keys of two different images of the batch, global and dense mean; 1: all alike."""
    count = keys.global_vector.shape[0]
    if count < 2:
        return {}
    vectors = {"global_similarity": keys.global_vector, "dense_similarity": keys.dense_mean}
    # Of unit vectors: |Σk|² is the sum of all cosines, `count` of them those of a vector with itself.
    squares = {name: value.sum(axis=0).square().sum() for name, value in vectors.items() if value is not None}
    values = paddle.stack(list(squares.values())).numpy().tolist()
    return {name: (value - count) / (count * (count - 1)) for name, value in zip(squares, values, strict=True)}


class Watchdog:
    """Checks the values of every logged step and warns, once each, of what makes a run worthless or slow."""

    def __init__(self, config: PretrainConfig, queue_len: int, workers: int, log: SilentLog) -> None:
        self._workers, self._log = workers, log
        self._filled = math.ceil(queue_len / config.batch_size)
        self._patience = max(PATIENCE_STEPS, PATIENCE_FILLINGS * self._filled)
        self._past: dict[str, deque[tuple[int, float]]] = {}
        self._waited: deque[float] = deque(maxlen=WAITING_READINGS)
        self._warned: set[str] = set()
        self.dense_top1 = 0.0  # of the last logged step

    def check(self, values: Mapping[str, float]) -> None:
        """Check the values of one logged step."""
        step, loss_lambda = int(values["step"]), values["loss_lambda"]
        self.dense_top1 = values.get("dense_top1", 0.0)
        untrained = {"global": loss_lambda == 1, "dense": loss_lambda == 0}
        for name, loss in values.items():
            term = name.removesuffix("_loss")
            if term == name or untrained.get(term) or step < self._filled:
                continue
            similar = values.get(f"{term}_similarity")
            if similar is not None and self._stays_above(f"{term}_similarity", step, similar, COLLAPSED_AT):
                self._warn(
                    f"{term} collapsed",
                    f"the {term} features of all images are alike (mean cosine {similar:.2f} for {self._patience:,} "
                    "steps; 0 is ideal): the encoder has collapsed and probably learns nothing from here on. Lower or "
                    "warm up the learning rate (optimizer.lr, schedule.warmup_epochs), and check its input: densecl "
                    "plot views",
                )
            if self._stays_above(name, step, loss / values["chance"], STUCK_AT):
                self._warn(
                    f"{term} stuck",
                    f"the {term} loss has been at chance (ln(K+1) = {values['chance']:.2f}) for {self._patience:,} "
                    "steps with a full queue: it does not distinguish images. The learning rate is far too high or too "
                    "low (optimizer.lr), or the two views of an image have nothing in common: densecl plot views shows "
                    "them",
                )
        self._waited.append(values["data_share"])
        if len(self._waited) == WAITING_READINGS and min(self._waited) > WAITING:
            more = f"more data.num_workers (now {self._workers}) if cores are free"
            self._warn(
                "waiting",
                f"over {WAITING:.0%} of the time is spent waiting for images: "
                f"{more if self._workers else 'data.num_workers: auto'}; densecl data pack with --shorter-side puts "
                "small copies of them into one file, which data.root accepts",
            )

    def _stays_above(self, name: str, step: int, value: float, limit: float) -> bool:
        """Whether the mean over the last `_patience` steps reaches the limit, once that many have passed."""
        past = self._past.setdefault(name, deque())
        past.append((step, value))
        while len(past) > _FEWEST_READINGS and step - past[1][0] >= self._patience:
            past.popleft()
        long_enough = step - past[0][0] >= self._patience and len(past) >= _FEWEST_READINGS
        return long_enough and sum(value for _, value in past) / len(past) >= limit

    def _warn(self, what: str, sentence: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            self._log.line("warning", sentence)
