"""Learning-rate factors, value by value."""

from __future__ import annotations

import itertools
import math

import pytest
from pydantic import ValidationError

from passl_densecl.schedules import Constant, Cosine, StepDecay

RUN = {"steps_per_epoch": 10, "epochs": 4}


HIGH, LOW = 0.5 + math.sqrt(0.125), 0.5 - math.sqrt(0.125)


@pytest.mark.parametrize(("step", "factor"), [(0, 1.0), (9, 1.0), (10, HIGH), (19, HIGH), (20, 0.5), (39, LOW)])
def test_cosine_per_epoch_keeps_one_value_through_an_epoch(step, factor):
    assert Cosine(per="epoch")(step, **RUN) == pytest.approx(factor, abs=1e-12)


def test_cosine_per_step_decreases_from_one_to_zero():
    factors = [Cosine(per="step")(step, **RUN) for step in range(41)]
    assert factors[0] == 1.0
    assert factors[20] == pytest.approx(0.5, abs=1e-12)
    assert factors[10] == pytest.approx(0.5 + math.sqrt(0.125), abs=1e-12)
    assert factors[40] == pytest.approx(0.0, abs=1e-12)
    assert all(before > after for before, after in itertools.pairwise(factors))


def test_cosine_stays_at_zero_after_the_end():
    assert Cosine(per="step")(95, **RUN) == pytest.approx(0.0, abs=1e-12)
    assert Cosine(per="epoch")(95, **RUN) == pytest.approx(0.0, abs=1e-12)


def test_cosine_is_per_epoch_by_default():
    """The original sets the rate at the start of an epoch."""
    assert Cosine().per == "epoch"
    assert Cosine()(9, **RUN) == 1.0
    assert Cosine(per="step")(9, **RUN) < 0.9


def test_imagenet_recipe_ends_its_first_and_last_epoch_as_published():
    schedule = Cosine(per="epoch")
    last = 0.5 * (1 + math.cos(math.pi * 199 / 200))
    assert 0.03 * schedule(5003, steps_per_epoch=5004, epochs=200) == pytest.approx(0.03)
    assert schedule(200 * 5004 - 1, steps_per_epoch=5004, epochs=200) == pytest.approx(last)


@pytest.mark.parametrize(("epoch", "factor"), [(0, 1.0), (59, 1.0), (60, 0.1), (79, 0.1), (80, 0.01), (99, 0.01)])
def test_step_decay_drops_at_the_start_of_its_epochs(epoch, factor):
    schedule = StepDecay(milestones=(60, 80), gamma=0.1)
    for step in (epoch * 7, epoch * 7 + 6):
        assert schedule(step, steps_per_epoch=7, epochs=100) == pytest.approx(factor)


def test_warmup_is_linear_up_to_the_full_rate():
    factors = [Constant(warmup_epochs=0.5)(step, **RUN) for step in range(8)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0])


def test_warmup_multiplies_the_schedule():
    plain, warm = Cosine(per="step"), Cosine(per="step", warmup_epochs=2)
    assert warm(0, **RUN) == pytest.approx(plain(0, **RUN) / 20)
    assert warm(9, **RUN) == pytest.approx(plain(9, **RUN) / 2)
    assert warm(19, **RUN) == plain(19, **RUN)
    assert StepDecay(milestones=(1,), gamma=0.5, warmup_epochs=2)(10, **RUN) == pytest.approx(0.5 * 11 / 20)


@pytest.mark.parametrize("values", [{"gamma": 0.0}, {"gamma": 1.5}, {"warmup_epochs": -1.0}])
def test_impossible_settings_are_errors(values):
    with pytest.raises(ValidationError):
        StepDecay(milestones=(1,), **values)
