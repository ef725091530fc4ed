"""The position score: 1 for maps that say their place, 0 for those that do not."""

from __future__ import annotations

import numpy as np
import pytest

from passl_densecl.evaluation.position import coordinates, position_score


def test_place_is_found_where_it_is_and_only_there():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((40, 6, 5, 7)).astype(np.float32)
    place = coordinates(5, 7).T.reshape(2, 5, 7)
    assert place[:, 0, 0].tolist() == [-1, -1]
    assert place[:, 4, 6].tolist() == [1, 1]
    mixed = noise.copy()
    mixed[:, :2] = 0.1 * noise[:, :2] + 7 * place  # two channels say it, at another scale
    assert position_score(mixed)[0] > 0.99
    score, error = position_score(noise)
    assert score == pytest.approx(0, abs=0.1)
    assert 0 < error < 0.05
    mixed[:, 0] = noise[:, 0]  # the column only
    assert position_score(mixed)[0] == pytest.approx(0.5, abs=0.1)
