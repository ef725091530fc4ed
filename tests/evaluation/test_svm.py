"""SVMs a class: average precision by hand and against scikit-learn, the low-shot samples, unsure labels."""

from __future__ import annotations

import numpy as np
import pytest

from passl_densecl.errors import InputError
from passl_densecl.evaluation.svm import COSTS, average_precision, draw, low_shot_accuracy, svm_accuracy


def by_hand(present, scores):
    """The area, recall by recall: the best precision at this recall or a higher one."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], -i))
    points = []
    found = 0
    for rank, index in enumerate(order, start=1):
        found += bool(present[index])
        points.append((found / sum(present), found / rank))
    area, before = 0.0, 0.0
    for recall in sorted({recall for recall, _ in points}):
        area += (recall - before) * max(precision for other, precision in points if other >= recall)
        before = recall
    return area


def test_average_precision_by_hand():
    assert average_precision([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1]) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # Precision 0, 1/2, 2/3 at the hits made to fall: 2/3 at both.
    assert average_precision([0, 1, 1], [3, 2, 1]) == pytest.approx(2 / 3)
    rng = np.random.default_rng(0)
    for _ in range(20):
        present, scores = rng.random(30) < 0.3, rng.integers(0, 12, 30).astype(float)
        present[0] = True
        assert average_precision(present, scores) == pytest.approx(by_hand(present.tolist(), scores.tolist()))
    with pytest.raises(ValueError, match="at least one positive"):
        average_precision([0, 0], [1, 2])


def test_average_precision_is_scikit_learns_but_for_the_envelope():
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(1)
    gaps = []
    for _ in range(20):
        present, scores = rng.random(200) < 0.2, rng.random(200)
        gaps.append(average_precision(present, scores) - average_precision_score(present, scores))
    assert min(gaps) >= -1e-12
    assert max(gaps) < 0.06
    falling = np.array([1, 1, 0, 1, 0, 0, 0])  # precision falls from hit to hit: there is nothing to lift
    assert average_precision(falling, -np.arange(7.0)) == pytest.approx(
        average_precision_score(falling, -np.arange(7.0))
    )


def labeled(count, seed, noise=0.6):
    rng = np.random.default_rng(seed)
    targets = np.where(rng.random((count, 3)) < 0.35, 1, -1).astype(np.int8)
    directions = np.random.default_rng(9).standard_normal((3, 16))
    return targets @ directions + noise * rng.standard_normal((count, 16)) + 2, targets


def test_equals_the_protocol_written_out_and_beats_chance():
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import cross_val_score
    from sklearn.svm import LinearSVC

    (train, targets), (test, truth) = labeled(120, 0), labeled(80, 1)
    costs = (0.01, 1.0, 10.0)
    found = svm_accuracy(train, targets, test, truth, costs=costs)
    unit, test_unit = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (train, test))

    def machine(cost):
        return LinearSVC(C=cost, class_weight={1: 2, -1: 1}, max_iter=2000, dual=True, random_state=0)

    for number in range(3):
        scores = [
            cross_val_score(machine(cost), unit, targets[:, number], cv=3, scoring="average_precision").mean()
            for cost in costs
        ]
        assert found.costs[number] == costs[int(np.argmax(scores))]
        decision = machine(found.costs[number]).fit(unit, targets[:, number]).decision_function(test_unit)
        expected = average_precision_score(truth[:, number] == 1, decision)
        assert found.average_precision[number] == pytest.approx(expected, abs=0.03)
    assert found.mean > 0.8 > 2 * (truth == 1).mean()


def test_unsure_images_are_no_part_of_the_test_and_train_as_absent():
    (train, targets), (test, truth) = labeled(120, 0), labeled(80, 1)
    unsure, held = targets.copy(), truth.copy()
    unsure[targets[:, 0] == -1, 0] = np.where(np.arange((targets[:, 0] == -1).sum()) % 3, -1, 0)
    worst = test.copy()
    worst[:10] *= -1  # images whose scores are nonsense; unsure about all of their labels
    held[:10] = 0
    whole = svm_accuracy(train, targets, test[10:], truth[10:], costs=(1.0,))
    found = svm_accuracy(train, unsure, worst, held, costs=(1.0,))
    np.testing.assert_allclose(found.average_precision, whole.average_precision)


def test_low_shot_draws_k_positives_and_more_shots_are_better():
    (train, targets), (test, truth) = labeled(300, 2, noise=3.0), labeled(150, 3, noise=3.0)
    rows = draw(targets[:, 1], 4, 8, [0, 1])
    assert len(set(rows.tolist())) == 12
    assert targets[rows, 1].tolist() == [1] * 4 + [-1] * 8
    assert rows.tolist() == draw(targets[:, 1], 4, 8, [0, 1]).tolist() != draw(targets[:, 1], 4, 8, [0, 2]).tolist()
    found = low_shot_accuracy(train, targets, test, truth, shots=(1, 32), samples=4, costs=(1.0, 10.0))
    assert found[1].shape == (4, 2)
    assert found[32].mean() > found[1].mean() + 0.1
    assert found[1].std(axis=0).min() > 0  # the samples differ


def test_the_costs_are_the_protocols():
    assert len(COSTS) == 19
    assert COSTS[:4] == (1, 10, 100, 0.0625)
    assert COSTS[-1] == pytest.approx(0.5**19)


def test_too_few_are_named():
    (train, targets), (test, truth) = labeled(60, 0), labeled(40, 1)
    few = targets.copy()
    few[np.flatnonzero(few[:, 2] == 1)[2:], 2] = -1
    with pytest.raises(InputError, match="class number 2 has 2 training positives, expected at least 3"):
        svm_accuracy(train, few, test, truth)
    with pytest.raises(InputError, match="expected at least 96"):
        low_shot_accuracy(train, targets, test, truth)
    none = truth.copy()
    none[:, 0] = -1
    with pytest.raises(InputError, match="class number 0 is on no test image"):
        svm_accuracy(train, targets, test, none)
