"""A folder in the plane."""

from __future__ import annotations

import builtins

import numpy as np
import paddle
import pytest

from passl_densecl.data.datasets import scan_images
from passl_densecl.errors import InputError
from passl_densecl.visualize.embedding import Sample, draw_embedding, lay_out, neighbor_agreement, pooled_sample


def two_groups(count: int = 20) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(0)
    centers = np.repeat(np.eye(2, 8) * 10, count, axis=0)
    return (centers + rng.standard_normal((2 * count, 8))).astype(np.float32), ["a"] * count + ["b"] * count


def mean_color(images: paddle.Tensor) -> paddle.Tensor:
    return paddle.nn.functional.avg_pool2d(images, 4)


def test_the_sample_follows_the_folder(photos):
    steps = []
    sample = pooled_sample(mean_color, scan_images(photos), 12, 32, lambda *step: steps.append(step))
    assert sample.vectors.shape == (12, 3)
    assert set(sample.groups) == {f"class_{n}" for n in range(4)}
    assert sample.total == 40
    assert steps[-1] == (12, 12)
    assert all(thumbnail.shape == (32, 32, 3) for thumbnail in sample.thumbnails)
    from passl_densecl.evaluation.features import pooled_features
    from passl_densecl.transforms import CenterCrop, Resize

    whole = pooled_sample(mean_color, scan_images(photos), 40, 32)
    expected = pooled_features(mean_color, scan_images(photos), (Resize(size=37), CenterCrop(size=32)))
    np.testing.assert_allclose(whole.vectors, expected.vectors, atol=1e-5)


def test_bad_images_are_left_out_and_named(tmp_path, photos):
    import shutil

    folder = tmp_path / "images"
    shutil.copytree(photos / "class_0", folder)
    names = sorted(path.name for path in folder.iterdir())
    (folder / names[-1]).write_text("no image")  # the last one: the batch before it must not be lost
    sample = pooled_sample(mean_color, scan_images(folder), 100, 32)
    assert len(sample.vectors) == len(sample.groups) == len(names) - 1
    assert sample.groups[0] == "."
    assert sample.bad == [str(folder / names[-1])]
    for name in names[3:]:
        (folder / name).write_text("no image")
    with pytest.raises(InputError, match=f"of which {len(names) - 3} cannot be decoded: expected at least 5"):
        pooled_sample(mean_color, scan_images(folder), 100, 32)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_groups_stay_together_and_twice_is_the_same(method):
    pytest.importorskip("sklearn")
    vectors, groups = two_groups()
    layout = lay_out(vectors, method)
    np.testing.assert_array_equal(layout.places, lay_out(vectors, method).places)
    distances = np.linalg.norm(layout.places[:, None] - layout.places[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    same = np.asarray(groups)[distances.argmin(axis=1)] == np.asarray(groups)
    assert same.mean() > 0.95


def test_agreement_and_chance_are_counted():
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [0.8, 0.3]])
    share, chance = neighbor_agreement(vectors, ["a", "a", "b", "b", "b"])
    assert share == pytest.approx(4 / 5)
    assert chance == pytest.approx((2 * 1 + 3 * 2) / (5 * 4))


def test_without_scikit_learn_the_line_that_installs_it_is_named(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match="pip install scikit-learn; or use method='pca'"):
        lay_out(two_groups()[0], "tsne")
    assert lay_out(two_groups()[0], "pca").labels[0].endswith("of the variance")


def test_every_group_has_its_own_look_and_a_line_in_the_legend():
    rng = np.random.default_rng(0)
    groups = [f"class {n:02d}" for n in range(35) for _ in range(2)]
    vectors = rng.standard_normal((70, 8)).astype(np.float32)
    sample = Sample(vectors, list(range(70)), groups, [np.zeros((8, 8, 3), np.uint8)] * 70, [], 100)
    figure = draw_embedding(sample, lay_out(vectors, "pca"), title="$x$", thumbnails=3)
    axes = figure.axes[0]
    looks = {
        (tuple(points.get_facecolor()[0]), points.get_paths()[0].vertices.tobytes()) for points in axes.collections
    }
    assert len(axes.collections) == len(looks) == 35
    legend = axes.get_legend()
    assert legend is not None
    assert len(legend.get_texts()) == 30
    assert legend.get_title().get_text() == "and 5 more"
    assert legend.get_texts()[0].get_text() == "class 00 (2)"
    assert "70 of 100 images · $x$" in figure.get_suptitle()
    assert 1 <= len(axes.artists) <= 3
