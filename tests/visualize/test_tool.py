"""`tools/visualize.py` as a user types it; `match` has its own tests."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import cv2
import numpy as np
import pytest

from tests.commands import understood
from tests.visualize.conftest import ROOT


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("picture") / "a.png"
    small = np.random.default_rng(5).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    cv2.imwrite(str(path), cv2.resize(small, (160, 120), interpolation=cv2.INTER_CUBIC))
    return str(path)


DENSE_KEY = ["--features", "dense", "--encoder", "key"]
LOOK = ["--weights", "random", "--depth", "18", "--size", "64"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["heatmap", "PICTURE", *LOOK, "--point", "10,20"], "wrote"),
        (["heatmap", "PICTURE", "PICTURE", "--weights", "RUN", "--features", "dense", "--size", "64"], "wrote"),
        (["pca", "PICTURE", "PICTURE", "--weights", "RUN", *DENSE_KEY, "--size", "128"], "%"),
        (["match", "PICTURE", "--weights", "RUN", "--features", "dense", "--size", "96"], "nearest neighbors"),
        (["embedding", "PHOTOS", *LOOK, "--method", "pca", "--images", "12", "--thumbnails", "4"], "of 12 (chance"),
        (["views", "RUN", "--images", "3", "--epoch", "2"], "wrote"),
        (["views", "RUN", "--root", "PHOTOS"], "only where --images holds the same files"),
        (["schedule", "RUN"], "6 epochs × 5 steps"),
        (["schedule", "CONFIG", "--images", "1281167"], "200 epochs × 5,004 steps"),
        (["curves", "RUN", "RUN"], "finished: 6 epochs, 30 steps"),
    ],
)
def test_every_verb_writes_a_picture(tool, run_dir, photos, picture, tmp_path, capsys, words, said):
    config = ROOT / "configs/densecl/densecl_r50.yaml"
    given = {"PICTURE": picture, "RUN": str(run_dir), "PHOTOS": str(photos), "CONFIG": str(config)}
    target = tmp_path / "out.png"
    if words[:3] == ["views", "RUN", "--root"]:
        given["PHOTOS"] = str(photos / "class_0")
        words = [*words, "--images", "2"]
    assert tool.main([given.get(word, word) for word in words] + ["--output", str(target)]) == 0
    image = cv2.imread(str(target))
    assert image is not None
    assert image.shape[1] <= 900
    assert image.std() > 10
    assert said in capsys.readouterr().out


def test_the_report_lies_in_the_run_folder_and_can_lie_elsewhere(tool, run_dir, tmp_path, capsys):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder, ignore=shutil.ignore_patterns("checkpoints"))
    result = tmp_path / "knn.json"
    result.write_text('{"top1": 0.25}')
    assert tool.main(["report", str(folder), "--results", str(result)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"not shown: Correspondences: the run has no checkpoint yet", said)
    assert "25.00%" in (folder / "report.html").read_text(encoding="utf-8")
    other = tmp_path / "other.html"
    assert tool.main(["report", str(folder), "--output", str(other)]) == 0
    assert "25.00%" not in other.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["heatmap", "PICTURE", *LOOK, "--point", "160,20"], "is 160×120 pixels; x is below 160, y below 120"),
        (["heatmap", "PICTURE", *LOOK, "--point=-1,20"], "--point -1,20"),
        (["heatmap", "gone.png", *LOOK], "gone.png: cannot be read"),
        (["pca", "PICTURE", *LOOK, "--margin", "1"], "lower --margin"),
        (["pca", "PICTURE", *LOOK, "--margin", "-1"], "--margin -1"),
        (["pca", "PICTURE", *LOOK, "--output", "a.gif"], "must end in .png"),
        (["embedding", "EMPTY", *LOOK], "no images under"),
        (["embedding", "PHOTOS", *LOOK, "--images", "4"], "--count 4: expected at least 5"),
        (["embedding", "PHOTOS", *LOOK, "--thumbnails", "-1"], "--thumbnails -1"),
        (["embedding", "PHOTOS", *LOOK, "--size", "8"], "--size 8"),
        (["views", "CONFIG"], "did you mean|no folder|ImageNet|ILSVRC2012"),
        (["views", "LINEAR"], "pairs of views belong to pre-training"),
        (["schedule", "CONFIG"], "Or say how many images there are: --count N"),
        (["schedule", "CONFIG", "--images", "3"], "fewer images than batch_size 256"),
        (["curves", "EMPTY"], "neither metrics.jsonl nor config.yaml"),
        (["report", "RUN", "--output", "a.png"], "must end in .html"),
        (["report", "RUN", "--results", "gone.json"], "gone.json: no such file"),
    ],
)
def test_mistakes_are_named(tool, run_dir, photos, picture, tmp_path, capsys, words, message):
    empty = tmp_path / "empty"
    empty.mkdir()
    configs = {"CONFIG": "configs/densecl/densecl_r50.yaml", "LINEAR": "configs/moco/moco_clas_r50.yaml"}
    given = {"PICTURE": picture, "RUN": str(run_dir), "PHOTOS": str(photos), "EMPTY": str(empty)}
    given |= {name: str(ROOT / path) for name, path in configs.items()}
    words = [given.get(word, word) for word in words]
    if words[0] != "report" and "--output" not in words:
        words += ["--output", str(tmp_path / "out.png")]
    assert tool.main(words) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.glob("out.*"))


@pytest.mark.parametrize("words", [["--point", "5"], ["--point", "a,b"]])
def test_a_point_that_is_none_is_named_by_the_parser(tool, picture, tmp_path, capsys, words):
    with pytest.raises(SystemExit) as stop:
        tool.main(["heatmap", picture, *LOOK, "--output", str(tmp_path / "a.png"), *words])
    assert stop.value.code == 2
    assert "expected X,Y in pixels" in capsys.readouterr().err


def test_help_and_pictures_of_runs_need_no_paddle(run_dir, tmp_path):
    """They are there in a second, and on a machine without Paddle."""
    code = (
        "import runpy, sys; sys.modules['paddle'] = None; sys.argv = ['visualize.py', *sys.argv[1:]];"
        f"runpy.run_path({str(ROOT / 'tools' / 'visualize.py')!r}, run_name='__main__')"
    )
    for words in (["--help"], ["curves", str(run_dir), "--output", str(tmp_path / "c.png")]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr


# --- docs/pictures.md ------------------------------------------------------------------------------------------------

PAGES = ("pictures.md", "pictures_cn.md")


def shown_commands(name: str) -> list[str]:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    return [
        line
        for block in re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]


def test_both_languages_show_the_same_commands_and_all_are_understood():
    commands = shown_commands(PAGES[0])
    assert commands == shown_commands(PAGES[1])
    verbs = set()
    for command in commands:
        verbs.add(understood(shlex.split(command))[0])
    names = ("match", "heatmap", "pca", "embedding", "views", "schedule", "curves")
    assert verbs == {*(f"plot {name}" for name in names), "report"}


@pytest.mark.parametrize("name", PAGES)
def test_every_picture_of_the_page_is_there_and_small(name):
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    named = re.findall(r"!\[(.*?)\]\((.*?)\)", text)
    assert len(named) == 10
    for alt, path in named:
        assert alt
        assert 10_000 < (ROOT / "docs" / path).stat().st_size < 300_000


def test_every_picture_is_on_a_page():
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    assert [file.name for file in (ROOT / "docs" / "images").iterdir() if f"(images/{file.name})" not in pages] == []
