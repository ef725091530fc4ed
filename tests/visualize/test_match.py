"""Matching two images and drawing it; the command line's answers to mistakes."""

from __future__ import annotations

import json

import cv2
import numpy as np
import paddle
import pytest

from passl_densecl.config import BackboneSpec
from passl_densecl.data.geometry import View
from passl_densecl.transforms import Crop
from passl_densecl.visualize.match import as_json, draw_matches, match_images, summary, two_views
from passl_densecl.visualize.style import RIGHT, UNSEEN, WRONG


def cells_are_pixels(images: paddle.Tensor) -> paddle.Tensor:
    """A backbone whose map is the image itself, with a fourth channel of ones: one cell a pixel."""
    return paddle.concat([images, paddle.ones_like(images[:, :1])], axis=1)


def noise(seed: int, size: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8)


def test_an_image_matches_itself_moved():
    image = noise(0)
    moved = np.roll(image, 2, axis=1)
    matches = match_images(cells_are_pixels, image, moved)
    assert len(matches) == 36
    rows, columns = np.divmod(matches.cells_a, 6)
    assert (matches.cells_b == rows * 6 + (columns + 2) % 6).all()
    np.testing.assert_allclose(matches.similarity, 1, atol=1e-5)


def test_mutual_drops_cells_that_are_not_chosen_back():
    image_a = np.zeros((1, 3, 3), np.uint8)
    image_a[0] = [[250, 0, 0], [245, 0, 0], [0, 250, 0]]
    image_b = np.zeros((1, 2, 3), np.uint8)
    image_b[0] = [[250, 0, 0], [0, 250, 0]]
    mutual = match_images(cells_are_pixels, image_a, image_b)
    assert sorted(zip(mutual.cells_a.tolist(), mutual.cells_b.tolist(), strict=True)) == [(0, 0), (2, 1)]
    one_way = match_images(cells_are_pixels, image_a, image_b, mutual=False)
    assert dict(zip(one_way.cells_a.tolist(), one_way.cells_b.tolist(), strict=True)) == {0: 0, 1: 0, 2: 1}


def test_most_similar_first_and_the_threshold_cuts():
    matches = match_images(cells_are_pixels, noise(1), noise(2), mutual=False)
    assert (np.diff(matches.similarity) <= 0).all()
    limit = float(matches.similarity[20])
    kept = match_images(cells_are_pixels, noise(1), noise(2), mutual=False, threshold=limit)
    assert len(kept) == 21
    assert len(matches.top(5)) == 5
    assert (matches.top(5).cells_b == matches.cells_b[:5]).all()


def test_two_views_are_judged_by_their_geometry():
    image = noise(3, size=12)
    views = View(Crop(0, 0, 8, 8), 8), View(Crop(0, 4, 8, 8), 8)
    pictures = [view.render(image) for view in views]
    matches = match_images(cells_are_pixels, *pictures, mutual=False, views=views)
    assert matches.visible is not None
    assert matches.correct is not None
    assert matches.visible.sum() == 32  # the right half of view a
    assert (matches.visible == (matches.cells_a % 8 >= 4)).all()
    assert matches.correct[matches.visible].all()
    assert not matches.correct[~matches.visible].any()
    assert matches.chance == pytest.approx(7.6 / 64, abs=0.02)  # 3×3 cells, fewer at the border
    wrong = match_images(cells_are_pixels, pictures[0], pictures[1][::-1], mutual=False, views=views)
    assert wrong.correct is not None
    assert wrong.correct.sum() <= 8


def test_a_place_outside_the_other_view_is_never_correct():
    views = View(Crop(0, 0, 8, 8), 8), View(Crop(0, 4, 8, 8), 8)
    flat = np.zeros((8, 8, 3), np.uint8)  # every cell then takes the first of the other view
    matches = match_images(cells_are_pixels, flat, flat, mutual=False, views=views)
    assert matches.correct is not None
    assert sorted(matches.cells_a[matches.correct].tolist()) == [4, 5, 12, 13]  # 3 and 11 are next to it, but outside


def test_counts_are_told():
    image = noise(3, size=12)
    views = View(Crop(0, 0, 8, 8), 8), View(Crop(0, 4, 8, 8), 8)
    matches = match_images(cells_are_pixels, *(view.render(image) for view in views), mutual=False, views=views)
    text = summary(matches)
    assert text.startswith("64 nearest neighbors of 64 cells; of 32 that lie in both views 100% are correct (chance 1")
    assert summary(match_images(cells_are_pixels, noise(0), noise(0))) == "36 mutual nearest neighbors among 36 cells"


def line_colors(figure) -> list[str]:
    from matplotlib.colors import to_hex

    patches = figure.axes[0].patches
    return [to_hex(patch.get_edgecolor()).upper() for patch in patches][1::2]  # every line lies on a white one


def test_lines_have_the_color_of_the_truth_and_end_at_the_cells():
    image = noise(4, size=12)
    views = View(Crop(0, 0, 8, 8), 8), View(Crop(0, 4, 8, 8), 8)
    a, b = (view.render(image) for view in views)
    matches = match_images(cells_are_pixels, a, b[:, ::-1].copy(), mutual=False, views=views)
    assert matches.visible is not None
    assert matches.correct is not None
    figure = draw_matches(a, b, matches)
    colors = line_colors(figure)
    assert colors.count(RIGHT) == matches.correct.sum()
    assert colors.count(WRONG) == (matches.visible & ~matches.correct).sum() > 0
    assert colors.count(UNSEEN.upper()) == (~matches.visible).sum() > 0
    styles = {color: patch.get_linestyle() for color, patch in zip(colors, figure.axes[0].patches[1::2], strict=True)}
    assert len({str(style) for style in styles.values()}) == 3  # told apart without color
    one = matches.top(1)
    ends = draw_matches(a, b, one).axes[0].patches[0].get_path().vertices[[0, 2]]
    scale = 480 / 8
    (row_a, column_a), (row_b, column_b) = np.divmod(one.cells_a[0], 8), np.divmod(one.cells_b[0], 8)
    np.testing.assert_allclose(ends[0], [(column_a + 0.5) * scale, (row_a + 0.5) * scale])
    np.testing.assert_allclose(ends[1][1], (row_b + 0.5) * scale)
    assert ends[1][0] >= 8 * scale + column_b * scale


def test_top_limits_the_lines_and_not_the_counts():
    matches = match_images(cells_are_pixels, noise(1), noise(2), mutual=False)
    figure = draw_matches(noise(1), noise(2), matches, title="a and b", top=4)
    assert len(line_colors(figure)) == 4
    assert figure.get_suptitle() == "a and b\n36 nearest neighbors of 36 cells; the 4 most similar are drawn"


def test_two_views_have_a_common_part_and_follow_the_seed():
    from passl_densecl.data.geometry import true_positions

    for seed in range(20):
        views = two_views(300, 200, 224, seed)
        assert true_positions(*views, (16, 16), (16, 16))[1].mean() >= 0.4
        assert two_views(300, 200, 224, seed) == views
    assert two_views(300, 200, 224, 0) != two_views(300, 200, 224, 1)


def test_json_tells_the_same_as_the_picture():
    image = noise(3, size=12)
    views = View(Crop(0, 0, 8, 8), 8), View(Crop(0, 4, 8, 8), 8)
    matches = match_images(cells_are_pixels, *(view.render(image) for view in views), mutual=False, views=views)
    told = json.loads(json.dumps(as_json(matches)))
    assert (told["matches"], told["visible"], told["correct"], told["share"]) == (64, 32, 32, 1.0)
    assert told["chance"] == matches.chance
    for pair in told["pairs"]:
        (row_a, column_a), (row_b, column_b) = pair["cell_a"], pair["cell_b"]
        assert pair["visible"] == (column_a >= 4)
        assert pair["correct"] == pair["visible"]
        if pair["correct"]:
            assert (row_b, column_b) == (row_a, column_a - 4)
    pictures = [view.render(image) for view in views]
    half = np.concatenate([pictures[1][:4], pictures[1][:3:-1]])  # the lower half upside down
    told = as_json(match_images(cells_are_pixels, pictures[0], half, mutual=False, views=views))
    assert 0 < told["correct"] < told["visible"] == 32
    assert sum(pair["correct"] for pair in told["pairs"]) == told["correct"]
    assert told["share"] == told["correct"] / 32
    assert "share" not in as_json(match_images(cells_are_pixels, noise(0), noise(1)))


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    smooth = cv2.resize(noise(5, size=16), (160, 120), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(path), smooth)
    return str(path)


def test_the_command_writes_a_picture(tool, photo, tmp_path, capsys):
    target, arguments = tmp_path / "m.png", ["--all", "--top", "3", "--augment", "--threshold", "0.5", "--seed", "4"]
    options = ["--weights", "random", "--depth", "18", "--size", "96", "--output", str(target)]
    assert tool.main(["match", photo, *options, *arguments]) == 0
    picture = cv2.imread(str(target))
    assert picture is not None
    assert picture.shape[1] > picture.shape[0] > 400
    assert "nearest neighbors" in capsys.readouterr().out


def test_weights_of_a_run_bring_their_stem_and_two_images_their_shapes(tool, photo, tmp_path, capsys):
    from passl_densecl.models import build_backbone
    from passl_densecl.weights.writing import write_pickle

    weights = tmp_path / "w.pdparams"
    write_pickle(
        weights, {name: value.numpy() for name, value in build_backbone(BackboneSpec(18)).state_dict().items()}
    )
    options = ["--weights", str(weights), "--all", "--size", "64", "--output", str(tmp_path / "m.png")]
    assert tool.main(["match", photo, photo, *options]) == 0
    assert "6 nearest neighbors of 6 cells" in capsys.readouterr().out  # 64×85 pixels, stride 32: 2×3
    assert tool.main(["match", photo, photo, *options, "--stem-stride", "2", "--overwrite"]) == 0
    assert "24 nearest neighbors of 24 cells" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--weights", "nowhere.pdparams"], "nowhere.pdparams does not exist"),
        (["--threshold", "2"], "a cosine is from -1 to 1"),
        (["--top", "0"], "--count 0"),
        (["--features", "dense", "--weights", "nowhere"], "nowhere does not exist"),
        (["--json", "m.txt"], "--json m.txt: the name must end in .json"),
    ],
)
def test_mistakes_are_named(tool, photo, tmp_path, capsys, change, message):
    options = ["--weights", "random", "--depth", "18", "--output", str(tmp_path / "m.png"), "--size", "64"]
    assert tool.main(["match", photo, *options, *change]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_no_image_is_named(tool, tmp_path, capsys):
    path = tmp_path / "text.png"
    path.write_text("no image")
    assert tool.main(["match", str(path), "--weights", "random", "--output", str(tmp_path / "m.png")]) == 2
    assert "text.png" in capsys.readouterr().err
