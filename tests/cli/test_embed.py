"""`tools/embed.py`: the table holds what FeatureExtractor gives, bad images are left out, nothing is half written."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from passl_densecl import FeatureExtractor, get_model
from passl_densecl.api import embeddings as tables
from passl_densecl.api.embeddings import Embeddings, nearest, write
from passl_densecl.cli.main import main
from passl_densecl.config import BackboneSpec, HeadSpec
from passl_densecl.errors import InputError
from passl_densecl.models import DenseCL
from passl_densecl.weights.writing import write_pickle

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "embed.py"
RANDOM = ("--weights", "random", "--depth", 18, "--size", 32, "--workers", 0)


def embed(*words: Any) -> int:
    return main(["embed", *map(str, words)])


@pytest.fixture(scope="module")
def expected(photos) -> np.ndarray:
    return FeatureExtractor(get_model("random", depth=18), size=32)(photos, batch_size=64)


@pytest.fixture
def few(tmp_path) -> Path:
    """Six small images, two of them alike."""
    folder = tmp_path / "few"
    folder.mkdir()
    for index in range(6):
        rng = np.random.default_rng(index % 5)
        cv2.imwrite(str(folder / f"{index}.png"), rng.integers(0, 256, (40, 40, 3)).astype(np.uint8))
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def numbers(row: dict[str, str]) -> np.ndarray:
    return np.array([value for key, value in row.items() if key[0] == "f" and key[1:].isdigit()], dtype=np.float32)


def names_of(photos: Path) -> list[str]:
    return sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))


# --- tables --------------------------------------------------------------------------------------------------------


def test_an_npz_holds_the_features_with_names_labels_and_a_card(photos, tmp_path, expected, capsys):
    output = tmp_path / "f.npz"
    assert embed(photos, *RANDOM, "--output", output, "--labeled") == 0
    assert "embedded 40 × 512 float32 (pooled)" in capsys.readouterr().out
    with np.load(output, allow_pickle=False) as found:
        np.testing.assert_array_equal(found["features"], expected)
        assert found["features"].dtype == np.float32
        assert found["names"].tolist() == names_of(photos)
        assert found["classes"].tolist() == [f"class_{label}" for label in range(4)]
        assert [f"class_{label}" for label in found["labels"]] == [name.split("/")[0] for name in names_of(photos)]
        assert found["left_out"].size == 0
        card = json.loads(str(found["card"]))
    assert card["weights"] == "random weights (seed 0)"
    assert (card["stage"], card["encoder"], card["left_out"]) == ("pooled", "query", [])
    assert card["transforms"] == [{"name": "Resize", "size": 37}, {"name": "CenterCrop", "size": 32}]


def test_a_csv_reads_back_to_the_same_numbers(photos, tmp_path, expected):
    assert embed(photos, *RANDOM, "--output", tmp_path / "f.csv", "--labeled") == 0
    found = rows(tmp_path / "f.csv")
    assert [row["name"] for row in found] == names_of(photos)
    assert all(row["class"] == f"class_{row['label']}" == row["name"].split("/")[0] for row in found)
    np.testing.assert_array_equal(np.stack([numbers(row) for row in found]), expected)
    assert json.loads((tmp_path / "f_card.json").read_text())["weights"] == "random weights (seed 0)"
    assert not (tmp_path / "f.csv").read_bytes().startswith(b"\xef")


def test_processes_and_batches_change_nothing(photos, tmp_path, expected):
    words = ("--weights", "random", "--depth", 18, "--size", 32, "--workers", 2, "--batch-size", 7)
    assert embed(photos, *words, "--output", tmp_path / "f.npz") == 0
    with np.load(tmp_path / "f.npz") as found:
        np.testing.assert_allclose(found["features"], expected, rtol=1e-4, atol=1e-5)
        assert found["names"].tolist() == names_of(photos)
        assert set(found["labels"].tolist()) == {-1}


def test_cells_of_a_pretraining_model(few, tmp_path):
    model = DenseCL(BackboneSpec(18), HeadSpec(hidden_dim=8, out_dim=4), queue_len=16)
    weights = tmp_path / "w.pdparams"
    write_pickle(weights, {name: value.numpy() for name, value in model.state_dict().items()})
    words = (few, "--weights", weights, "--size", 64, "--workers", 0, "--stage", "dense", "--encoder", "key")
    assert embed(*words, "--output", tmp_path / "f.csv") == 0
    features = FeatureExtractor(get_model(weights), size=64)(few, "dense", batch_size=64, encoder="key")
    assert features.shape == (6, 4, 2, 2)
    table = rows(tmp_path / "f.csv")
    assert len(table) == 24
    for row in table:
        at = int(Path(row["name"]).stem), slice(None), int(row["row"]), int(row["column"])
        np.testing.assert_array_equal(numbers(row), features[at])
    assert len({(row["name"], row["row"], row["column"]) for row in table}) == 24


def small(**changes: Any) -> Embeddings:
    values = np.random.default_rng(0).standard_normal((3, 2), dtype=np.float32)
    fields = {
        "names": ["a.jpg", "b.jpg", "c.jpg"],
        "features": values,
        "places": np.arange(3),
        "card": {"stage": "pooled"},
    }
    return Embeddings(**{**fields, **changes})


def test_a_spreadsheet_runs_no_formula_and_reads_every_name(tmp_path):
    names = ["=HYPERLINK(1).jpg", "-1.jpg", "花,“1”.jpg"]
    write(small(names=names), tmp_path / "f.csv")
    assert (tmp_path / "f.csv").read_bytes().startswith(b"\xef\xbb\xbf")  # Excel's sign of UTF-8
    assert [row["name"] for row in rows(tmp_path / "f.csv")] == ["./=HYPERLINK(1).jpg", "./-1.jpg", "花,“1”.jpg"]


def test_parquet_holds_the_same(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    embeddings = small(labels=np.array([1, 0, 1]), classes=("x", "y"))
    write(embeddings, tmp_path / "f.parquet")
    table = parquet.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["name", "label", "class", "feature"]
    assert table["class"].to_pylist() == ["y", "x", "y"]
    assert table["name"].to_pylist() == embeddings.names
    np.testing.assert_array_equal(np.array(table["feature"].to_pylist(), np.float32), embeddings.features)
    assert json.loads(table.schema.metadata[b"passl_densecl"])["stage"] == "pooled"


def test_parquet_without_its_package_names_the_install_line(few, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find(name))
    assert embed(few, *RANDOM, "--output", tmp_path / "f.parquet") == 2
    assert "pip install pyarrow" in capsys.readouterr().err


# --- what goes wrong -----------------------------------------------------------------------------------------------


def test_bad_images_are_left_out_and_listed(few, tmp_path, capsys):
    assert embed(few, *RANDOM, "--output", tmp_path / "good.npz") == 0
    for number in range(25):  # more in a row than a loader of training would go past
        (few / f"0_bad_{number:02}.png").write_bytes(b"broken" if number % 2 else b"")
    words = (*RANDOM[:-1], 2, "--batch-size", 4)
    assert embed(few, *words, "--output", tmp_path / "f.npz", "--neighbors", 2) == 0
    out = capsys.readouterr().out
    assert "25 images cannot be decoded and are left out" in out
    assert "0_bad_00.png: the file is empty" in out
    with np.load(tmp_path / "good.npz") as good, np.load(tmp_path / "f.npz") as found:
        assert found["names"].tolist() == [f"{index}.png" for index in range(6)] == good["names"].tolist()
        np.testing.assert_allclose(found["features"], good["features"], rtol=1e-4, atol=1e-5)
        assert found["left_out"].tolist() == [f"0_bad_{number:02}.png" for number in range(25)]
        left_out = json.loads(str(found["card"]))["left_out"]
    assert left_out[1][0] == "0_bad_01.png"
    assert "damaged" in left_out[1][1]
    assert {row["neighbor"] for row in rows(tmp_path / "f_neighbors.csv")} <= {f"{index}.png" for index in range(6)}


def test_a_folder_of_bad_images_is_refused(tmp_path, capsys):
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "a.png").write_bytes(b"broken")
    assert embed(tmp_path / "all", *RANDOM, "--output", tmp_path / "f.npz") == 2
    assert "no image could be decoded" in capsys.readouterr().err


def test_no_file_is_replaced_unasked(few, tmp_path, capsys):
    words = (few, *RANDOM, "--output", tmp_path / "f.csv", "--neighbors", 2)
    names = ("f.csv", "f_card.json", "f_neighbors.csv", "f_neighbors.png")
    for name in names:
        (tmp_path / name).write_text("mine")
        assert embed(*words) == 2
        assert f"{name} exists already" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [name]
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    for name in names:
        (tmp_path / name).write_text("mine")
    assert embed(*words, "--overwrite") == 0
    assert [name for name in names if b"mine" in (tmp_path / name).read_bytes()] == []


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write(small(), tmp_path / "f.csv")
    before = (tmp_path / "f.csv").read_bytes()

    def fails(header: Any) -> None:
        raise OSError(28, "No space left on device")

    class Writer:
        writerow = staticmethod(fails)

    monkeypatch.setattr(tables.csv, "writer", lambda *_, **__: Writer())
    with pytest.raises(InputError, match="cannot be written: No space left"):
        write(small(), tmp_path / "f.csv")
    assert (tmp_path / "f.csv").read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / "f.csv"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "f.txt"], "the name must end in .npz or .csv or .parquet"),
        (["--output", "gone/f.npz"], "the folder gone does not exist"),
        (["--size", 3], "size 3: expected"),
        (["--neighbors", 6], "--neighbors 6: expected at most 5"),
        (["--neighbors", 0], "--neighbors 0: expected at least 1"),
        (["--neighbors", 2, "--stage", "backbone"], "use --stage pooled or global"),
        (["--stage", "dense"], "these weights have no projection head"),
        (["--batch-size", 0], "--batch-size 0"),
        (["--workers", -1], "--workers -1"),
        (["--encoder", "key"], "one backbone only"),
        (["--labeled"], "directly in"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(few, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert embed(few, *RANDOM, "--output", "f.npz", *words) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_help_and_mistakes_need_no_paddle(few, tmp_path):
    code = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    print('paddle' in sys.modules, end.code)"
    )
    for words, ending in ((["--help"], "False 0"), ([str(few), "--weights", "w", "--output", "f.txt"], "False 2")):
        command = [sys.executable, "-c", code, str(TOOL), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
        assert done.stdout.endswith(f"{ending}\n"), done.stdout + done.stderr


# --- neighbors ----------------------------------------------------------------------------------------------------


def test_neighbors_are_those_of_brute_force(monkeypatch):
    features = np.random.default_rng(0).standard_normal((50, 7), dtype=np.float32)
    features *= np.random.default_rng(1).uniform(0.1, 10, (50, 1)).astype("f4")  # lengths must not matter
    unit = features.astype("f8") / np.linalg.norm(features.astype("f8"), axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    order = np.argsort(-cosine, axis=1)
    for at_once in (2**24, 120):  # in one piece, and in pieces of two rows
        monkeypatch.setattr(tables, "_SIMILARITIES_AT_ONCE", at_once)
        for count in (1, 5, 49):
            indices, cosines = nearest(features, count)
            np.testing.assert_array_equal(indices, order[:, :count])
            np.testing.assert_allclose(cosines, np.take_along_axis(cosine, indices, axis=1), atol=1e-5)
    with pytest.raises(InputError, match="expected from 1 to 49"):
        nearest(features, 50)
    with pytest.raises(InputError, match="one vector per image"):
        nearest(np.zeros((3, 2, 2, 2), "f4"), 1)


def test_an_image_and_its_copy_are_each_others_nearest(few, tmp_path, capsys):
    assert embed(few, *RANDOM, "--output", tmp_path / "f.npz", "--neighbors", 3) == 0
    assert "f_neighbors.csv" in capsys.readouterr().out
    table = rows(tmp_path / "f_neighbors.csv")
    assert len(table) == 18
    first = {row["image"]: row for row in table if row["rank"] == "1"}
    assert (first["0.png"]["neighbor"], first["5.png"]["neighbor"]) == ("5.png", "0.png")
    assert first["0.png"]["cosine"] == "1.0000"
    assert all(row["image"] != row["neighbor"] for row in table)
    pytest.importorskip("matplotlib")
    picture = cv2.imread(str(tmp_path / "f_neighbors.png"))
    assert picture.shape[0] > 6 * 100
    assert picture.std() > 20


def test_the_picture_shows_query_and_neighbors_framed_by_class(tmp_path):
    pytest.importorskip("matplotlib")
    from passl_densecl.visualize.neighbors import OTHER, SAME, draw_neighbors

    tiles = [np.full((8, 8, 3), 40 * index, np.uint8) for index in range(4)]
    indices, cosines = np.array([[2, 1], [0, 3], [0, 1], [1, 0]]), np.full((4, 2), 0.5)
    figure = draw_neighbors(
        tiles.__getitem__,
        [0, 3],
        indices,
        cosines,
        labels=np.array([0, 1, 0, 1]),
        names=["$a$", "b", "c", "d"],
        title="$t$",
    )
    axes = figure.axes
    shown = [int(one.images[0].get_array()[0, 0, 0]) // 40 for one in axes]
    assert shown == [0, 2, 1, 3, 1, 0]
    from matplotlib.colors import to_hex

    frames = [to_hex(one.spines["top"].get_edgecolor()) for one in axes]
    assert [frames[index] for index in (1, 2, 4, 5)] == [color.lower() for color in (SAME, OTHER, SAME, OTHER)]
    assert [one.spines["top"].get_visible() for one in axes] == [False, True, True] * 2
    figure.savefig(tmp_path / "p.png")  # a $ in a name is no formula
