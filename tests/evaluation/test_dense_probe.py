"""The linear segmentation head: geometry, the fit against scikit-learn, and exact scores."""

from __future__ import annotations

import numpy as np
import pytest

from passl_densecl.errors import InputError
from passl_densecl.evaluation.dense_probe import (
    Cells,
    DenseScores,
    Probe,
    cell_targets,
    confusion,
    fit,
    gather_cells,
    image_map,
    jackknife,
    minimize,
    with_place,
)
from passl_densecl.evaluation.features import load_backbone
from passl_densecl.weights.recorded import BackboneOptions


def test_targets_are_shares_around_the_centers():
    mask = np.zeros((8, 8), np.int16)
    mask[:, 6:] = 1  # centers of 3 cells are at columns 0, 4 and 8: the last, half a cell wide, sees columns 6 and 7
    found = cell_targets(mask, 3, 3, 3).reshape(3, 3, 3)
    np.testing.assert_allclose(found[..., 1], [[0, 0, 1]] * 3)
    np.testing.assert_allclose(found[..., 0], [[1, 1, 0]] * 3)
    mask[:, 5] = 2
    mask[0:2] = -1  # the uppermost half cell
    found = cell_targets(mask, 3, 3, 3).reshape(3, 3, 3)
    np.testing.assert_allclose(found[1:, 1], [[0.75, 0, 0.25]] * 2)
    np.testing.assert_allclose(found[0], 0)
    assert cell_targets(np.zeros((5, 5), np.int16), 1, 1, 2).tolist() == [[1, 0]]


def test_a_column_in_the_truth_is_found_where_it_is():
    """Features that say the class at the exact place of their cell must be scored without a shift."""
    rng = np.random.default_rng(0)
    coarse = np.kron(rng.integers(0, 2, (5, 6)), np.ones((2, 2), int))[:9, :11]  # (9, 11) cells
    rows, columns = np.meshgrid(np.arange(256) / 255 * 8, np.arange(320) / 319 * 10, indexing="ij")
    mask = coarse[rows.round().astype(int), columns.round().astype(int)].astype(np.int16)
    features = np.stack([coarse, 1 - coarse]).astype(np.float32)

    def read(index):
        return features, mask

    probe = Probe.train(gather_cells(read, [0, 1], 2), l2s=(1e-4,))
    score = DenseScores.of(confusion(read, probe, [0]).sum(axis=0))
    assert score.pixel_accuracy > 0.97  # corners of the pattern are rounded off by interpolation
    shifted = np.roll(features, 1, axis=2)
    assert DenseScores.of(confusion(lambda index: (shifted, mask), probe, [0]).sum(axis=0)).pixel_accuracy < 0.9


def test_the_fit_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    features = (rng.standard_normal((3, 6))[labels] + rng.standard_normal((300, 6))).astype(np.float32)
    targets = np.eye(3, dtype=np.float32)[labels]
    weight, bias = fit(Cells(features, targets), 0.01, tolerance=1e-12)
    other = LogisticRegression(C=1 / (300 * 0.01), tol=1e-10, max_iter=5000).fit(features, labels)
    np.testing.assert_allclose(weight.T, other.coef_, atol=1e-3)
    np.testing.assert_allclose(bias - bias.mean(), other.intercept_ - other.intercept_.mean(), atol=1e-3)


def test_shares_weigh_as_much_as_their_area():
    """A cell of two classes counts as two cells of one each, with its shares for weights."""
    rng = np.random.default_rng(1)
    features = rng.standard_normal((60, 4)).astype(np.float32)
    shares = rng.random(60).astype(np.float32)
    mixed = np.stack([shares, 1 - shares], axis=1) * rng.random((60, 1)).astype(np.float32)
    twice = np.concatenate([mixed * [1, 0], mixed * [0, 1]]).astype(np.float32)
    cells = Cells(features, mixed), Cells(np.concatenate([features, features]), twice)
    one, other = (fit(each, 0.01, tolerance=1e-12) for each in cells)
    np.testing.assert_allclose(one[0], other[0], atol=1e-3)


def test_minimize_finds_the_bottom_of_a_badly_scaled_bowl():
    scale = np.logspace(0, 4, 20)
    goal = np.arange(20.0)
    calls = []

    def bowl(point):
        calls.append(1)
        return float(scale @ (point - goal) ** 2), 2 * scale * (point - goal)

    np.testing.assert_allclose(minimize(bowl, np.zeros(20), most=2000, small=1e-4), goal, atol=1e-3)
    assert len(calls) < 1000  # about 500, by machine; plain gradient descent would need tens of thousands


def test_the_standardization_is_inside_the_head():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 400)
    features = (np.array([[1.0, 0], [-1, 0]])[labels] + rng.standard_normal((400, 2))) * [1000, 0.001] + [5e3, 7]
    parts = [Cells(features[k::4].astype(np.float32), np.eye(2, dtype=np.float32)[labels[k::4]]) for k in range(4)]
    probe = Probe.train(parts)
    found = (features @ probe.weight + probe.bias).argmax(axis=1)
    assert (found == labels).mean() > 0.8


def test_the_penalty_is_chosen_by_images_it_was_not_fitted_to():
    rng = np.random.default_rng(3)
    noise = [
        Cells(rng.standard_normal((20, 50)).astype(np.float32), np.eye(2, dtype=np.float32)[rng.integers(0, 2, 20)])
        for _ in range(8)
    ]
    assert Probe.train(noise).l2 == 1  # nothing to learn: the strongest
    plain = rng.integers(0, 2, (8, 200))
    clear = [
        Cells(
            np.eye(2, dtype=np.float32)[one] + rng.standard_normal((200, 2)).astype(np.float32) / 8,
            np.eye(2, dtype=np.float32)[one],
        )
        for one in plain
    ]
    assert Probe.train(clear).l2 < 0.01


def test_confusion_counts_every_labeled_pixel_once():
    probe = Probe(np.array([[0.0, 1.0]], np.float32), np.array([0.5, 0.0], np.float32), 0.0)
    masks = [np.array([[0, 0], [1, -1]]), np.array([[1, 1], [1, 1]]), np.array([[-1, -1], [-1, 0]])]
    maps = [np.array([[[0.0, 1], [1, 1]]], np.float32), np.zeros((1, 2, 2), np.float32), np.ones((1, 2, 2), np.float32)]
    seen = {}
    found = confusion(
        lambda i: (maps[i], masks[i]), probe, [0, 1, 2], on_prediction=lambda index, one: seen.update({index: one})
    )
    assert found.tolist() == [[[1, 1], [0, 1]], [[0, 0], [4, 0]], [[0, 1], [0, 0]]]
    assert seen[0].tolist() == [[0, 1], [1, 1]]


def test_scores_by_hand():
    score = DenseScores.of(np.array([[6, 2, 0], [1, 1, 0], [0, 0, 0]]))
    assert score.pixel_accuracy == 0.7
    assert score.mean_accuracy == pytest.approx((0.75 + 0.5) / 2)
    np.testing.assert_allclose(score.iou, [6 / 9, 1 / 4, np.nan])
    assert score.miou == pytest.approx((6 / 9 + 1 / 4) / 2)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).standard_normal(50)
    groups = np.stack([values, np.ones(50)], axis=1)
    error = jackknife(groups, lambda total: total[0] / total[1])
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(50))
    assert np.isnan(jackknife(groups[:1], lambda total: 0.0))


def test_maps_cover_the_whole_image_from_border_to_border():
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)
    assert image_map(load_backbone("random", BackboneOptions(18)), image, 64).shape == (512, 3, 4)
    assert image_map(load_backbone("random", BackboneOptions(18, last_stride=1)), image, 64).shape == (512, 5, 7)


def test_told_its_place_a_blind_network_finds_what_place_tells():
    rng = np.random.default_rng(4)
    mask = np.zeros((90, 120), np.int16)
    mask[50:] = 1

    def read(index):
        return with_place(rng.standard_normal((3, 10, 13)).astype(np.float32)), mask

    assert read(0)[0].shape == (8, 10, 13)
    score = DenseScores.of(confusion(read, Probe.train(gather_cells(read, range(8), 2)), range(2)).sum(axis=0))
    assert score.pixel_accuracy > 0.95


def test_too_many_cells_are_thinned_and_none_are_named():
    features, mask = np.zeros((2, 10, 10), np.float32), np.zeros((50, 50), np.int16)
    parts = gather_cells(lambda index: (features, mask), range(4), 2, most=120)
    assert [len(part.features) for part in parts] == [30] * 4
    with pytest.raises(InputError, match="have no labeled pixel"):
        gather_cells(lambda index: (features, mask - 1), range(2), 2)
