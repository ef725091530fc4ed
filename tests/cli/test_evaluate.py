"""`tools/evaluate.py`: every verb as a user types it, on small images, with figures that are known beforehand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from passl_densecl.cli.main import main
from passl_densecl.config import BackboneSpec
from passl_densecl.data.datasets import scan_images
from passl_densecl.models import build_backbone
from passl_densecl.weights.writing import write_pickle
from tests.commands import call_tool, understood

ROOT = Path(__file__).resolve().parents[2]
VERBS = ("knn", "linear", "multihead", "svm", "lowshot", "semi", "dense", "correspondence")
RANDOM = ("--weights", "random", "--depth", 18)


@pytest.fixture
def run(capsys, tmp_path):
    """What a command prints, and its JSON."""

    def call(*words: object) -> tuple[str, dict]:
        output = tmp_path / "figures.json"
        assert main(["eval", *map(str, words), "--json", str(output), "--overwrite"]) == 0
        return capsys.readouterr().out, json.loads(output.read_text())

    return call


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A second set of weights."""
    path = tmp_path_factory.mktemp("weights") / "other.pdparams"
    write_pickle(
        path, {name: value.numpy() for name, value in build_backbone(BackboneSpec(18), seed=9).state_dict().items()}
    )
    return path


def test_help_lists_the_verbs_without_paddle():
    code = (
        "import sys; from passl_densecl.cli.main import main; main(['eval', '-h']); assert 'paddle' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in VERBS)


def test_a_bank_that_holds_the_queries_names_them_all(photos, tmp_path):
    result = tmp_path / "knn.json"
    done = call_tool(
        "evaluate", "knn", *RANDOM, "--train", photos, "--val", photos, "--size", 32, "--k", 1, "--output", result
    )
    assert done.returncode == 0, done.stderr
    assert "top-1, 40 images, bank of 40, 32 px" in done.stdout
    assert re.search(r"^1-NN +100\.00 ± 0\.00 %$", done.stdout, re.MULTILINE)
    found = json.loads(result.read_text())
    assert found["results"]["random"]["top1"] == {"1": 1.0}
    assert (found["evaluation"], found["chance"], found["options"]["size"]) == ("knn", 0.25, 32)


def test_labels_follow_the_bank_and_not_the_order_of_the_queries(photos, tmp_path, run):
    """Each query carries the name of another class: none is right."""
    val = tmp_path / "val"
    for label in range(4):
        shutil.copytree(photos / f"class_{label}", val / f"class_{(label + 1) % 4}")
    _, found = run("knn", *RANDOM, "--train", photos, "--val", val, "--size", 32, "--k", 1, 5)
    assert found["results"]["random"]["top1"]["1"] == 0


def test_weights_side_by_side(photos, run, other, tmp_path):
    """'random' without a depth is the other weights' network untrained; columns are told apart."""
    (tmp_path / "x").mkdir()
    same = shutil.copy(other, tmp_path / "x" / "other.pdparams")
    text, found = run(
        "knn", "--weights", "random", other, same, "--train", photos, "--val", photos, "--size", 32, "--k", 3
    )
    columns = found["results"]
    assert list(columns) == ["random", f"{Path(other).parent.name}/other.pdparams", "x/other.pdparams"]
    assert columns["x/other.pdparams"] == columns[f"{Path(other).parent.name}/other.pdparams"]
    _, alone = run("knn", *RANDOM, "--train", photos, "--val", photos, "--size", 32, "--k", 3)
    assert alone["results"]["random"] == columns["random"]
    assert "x/other.pdparams" in text.splitlines()[0]


def test_linear_and_multihead(photos, run):
    options = ("--train", photos, "--val", photos, "--size", 32, "--epochs", 30, "--batch-size", 10, "--lr", 0.03, 0.1)
    text, found = run("linear", *RANDOM, *options, "--copies", 2)
    assert found["results"]["random"]["top1"] > 0.7  # it was trained on them
    assert len(found["results"]["random"]["held_out"]) == 8
    assert "not the official recipe" in text
    text, found = run("multihead", *RANDOM, *options, "--dim", 1024)
    stages = found["results"]["random"]
    assert [stages[name]["grid"] for name in stages] == [4, 4, 2, 2, 1]  # 32 px: the last stage has one cell
    assert len([line for line in text.splitlines() if line.startswith(("stem", "stage"))]) == 5
    assert stages["stage 1"]["top1"] > 0.7


@pytest.fixture(scope="module")
def multilabel(photos, tmp_path_factory):
    """A VOC folder of the photographs: their class, and whether they are in its first half."""
    root = tmp_path_factory.mktemp("voc")
    for folder in ("JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    images = scan_images(photos, labeled=True)
    rows = []
    for index in range(len(images)):
        cv2.imwrite(
            str(root / "JPEGImages" / f"{index:06d}.jpg"),
            images.decode(index)[..., ::-1],
            [cv2.IMWRITE_JPEG_QUALITY, 98],
        )
        rows.append((f"{index:06d}", images.labels[index]))
    for split, part in (("trainval", rows[::2]), ("test", rows[1::2])):
        for label in range(4):
            text = "".join(f"{name} {1 if label == own else -1:2d}\n" for name, own in part)
            (root / "ImageSets/Main" / f"class{label}_{split}.txt").write_text(text)
        (root / f"{split}.list").write_text("".join(f"JPEGImages/{name}.jpg class{own}\n" for name, own in part))
    return root


def test_svm_on_a_voc_folder_and_on_lists_are_the_same(multilabel, run):
    text, found = run("svm", *RANDOM, "--voc", multilabel, "--size", 32, "--costs", 1, 10)
    assert found["results"]["random"]["map"] > 0.35  # of four classes
    assert "mean (mAP)" in text
    lists = ("--root", multilabel, "--train", multilabel / "trainval.list", "--test", multilabel / "test.list")
    _, again = run("svm", *RANDOM, *lists, "--size", 32, "--costs", 1, 10)
    assert again["results"] == found["results"]


def test_lowshot(multilabel, run):
    text, found = run(
        "lowshot", *RANDOM, "--voc", multilabel, "--size", 32, "--shots", 1, 4, "--samples", 2, "--costs", 1, 10
    )
    assert list(found["results"]["random"]) == ["1", "4"]
    assert len(found["results"]["random"]["4"]["samples"]) == 2
    assert "k = 4" in text


def test_semi_writes_its_list_and_learns(photos, run, tmp_path):
    part = tmp_path / "part.txt"
    text, found = run(
        "semi", *RANDOM, "--train", photos, "--val", photos, "--percent", 20, "--list", part, "--list-only"
    )
    assert found["images"] == 8
    assert len(part.read_text().splitlines()) == 8
    options = ("--train", photos, "--val", photos, "--percent", 50, "--size", 32, "--seeds", 0, 1, "--epochs", 16)
    text, found = run("semi", *RANDOM, *options, "--batch-size", 10, "--lr", 0.01, "--head-lr", 0.05)
    assert found["train_images"] == 20
    assert found["results"]["random"]["steps"] == 32
    assert found["results"]["random"]["mean_top1"] > 0.4  # chance is a quarter
    assert "deviation over 2 parts" in text


@pytest.fixture(scope="module")
def segmented(tmp_path_factory):
    """Images of two kinds of ground, told apart by brightness, and a strip that nobody labeled."""
    root = tmp_path_factory.mktemp("segmented")
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for number in range(12):
        rng = np.random.default_rng(number)
        mask = (cv2.resize(rng.random((3, 3)).astype(np.float32), (128, 128)) > 0.5).astype(np.uint8)
        image = np.where(mask[..., None] > 0, 200, 40) + rng.integers(-30, 30, (128, 128, 3))
        mask[:20] = 255
        cv2.imwrite(str(root / "images" / f"{number}.png"), image.astype(np.uint8))
        cv2.imwrite(str(root / "masks" / f"{number}.png"), mask)
    return root


def test_dense_by_folds_with_a_picture(segmented, run, other, tmp_path):
    picture = tmp_path / "dense.png"
    text, found = run(
        "dense",
        "--weights",
        "random",
        other,
        "--images",
        segmented / "images",
        "--masks",
        segmented / "masks",
        "--size",
        128,
        "--picture",
        picture,
        "--picture-images",
        2,
    )
    assert found["val_images"] == 12
    for name in ("random", "other.pdparams"):
        column = found["results"][name]
        assert np.sum(column["confusion"]) == 12 * 108 * 128  # every labeled pixel once
        assert column["miou"][0] > found["results"]["one class"]["miou"][0] + 0.1
        assert 0 < column["standard_error"] < 0.2
    assert set(found["difference_to_first"]) == {"other.pdparams"}
    assert "mIoU − random" in text
    assert cv2.imread(str(picture)).std() > 20


def test_dense_on_images_of_its_own(segmented, run):
    folders = [segmented / "images", segmented / "masks"]
    _, found = run(
        "dense",
        *RANDOM,
        "--images",
        folders[0],
        "--masks",
        folders[1],
        "--val-images",
        folders[0],
        "--val-masks",
        folders[1],
        "--size",
        128,
        "--cells",
        200,
    )
    assert found["val_images"] == 12


def test_correspondence(photos, run, other):
    text, found = run("correspondence", "--weights", "random", other, "--images", photos, "--pairs", 12, "--size", 160)
    one, two = found["results"].values()
    assert (one["same_place"], one["chance"], one["cells"]) == (two["same_place"], two["chance"], two["cells"])
    assert 0 < one["share"] < 1
    assert one["standard_error"] > 0
    assert "same place" in text


@pytest.mark.parametrize(
    ("verb", "words", "message"),
    [
        ("knn", ["--k", 41], "--k 41: "),
        ("knn", ["--size", 4], "--size 4: expected at least 8"),
        ("knn", ["--val", "nowhere"], "no folder 'nowhere'"),
        ("knn", ["--k", 5, "--weights", "gone.pdparams"], "gone.pdparams"),
        ("knn", ["--k", 5], "depth"),
        ("knn", ["--weights", "random", "random", "--k", 5], "--weights names one file twice"),
        ("knn", ["--output", "no/where.json"], "the folder no does not exist"),
        ("linear", ["--epochs", 0], "--epochs 0: expected at least 1"),
        ("semi", ["--percent", 0], "--percent 0: "),
        ("semi", ["--list-only"], "--list-only needs --list"),
    ],
)
def test_a_mistake_is_named(capsys, photos, verb, words, message):
    line = [verb, "--weights", "random", "--train", photos, "--val", photos, *words]
    assert main(["eval", *map(str, line)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dense"], "expected --voc DIR, or --images DIR with --masks DIR"),
        (["svm"], "expected --voc DIR, or --images DIR"),
        (["correspondence", "--images", "x", "--scale", "0.5", "0.1"], "the smaller first"),
    ],
)
def test_what_belongs_together_is_said(capsys, words, message):
    assert main(["eval", *words, "--weights", "random"]) == 2
    assert message in capsys.readouterr().err


def test_the_page_holds_the_same_commands_in_both_languages_and_all_are_understood():
    pages = []
    for name in ("evaluation.md", "evaluation_cn.md"):
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        pages.append([line.split() for line in "".join(blocks).splitlines()])
    assert pages[0] == pages[1]
    verbs = set()
    for words in pages[0]:
        if words[:2] == ["python", "tools/evaluate.py"] or words[0] == "densecl":
            verbs.add(understood(words)[0])
    assert verbs == {"train", *(f"eval {verb}" for verb in VERBS)}
