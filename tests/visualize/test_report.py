"""The report: one file, nothing fetched or run, everything escaped, legible on a telephone, whatever is missing."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from passl_densecl.errors import InputError
from passl_densecl.visualize import report as report_module
from passl_densecl.visualize.compare import build_comparison, compare
from passl_densecl.visualize.evaluations import draw_checkpoints, epochs_of, read_table
from passl_densecl.visualize.report import PARTS, REPORT, Sources, build_report, write_report
from passl_densecl.visualize.runs import config_and_run, read_run
from tests.visualize.conftest import metrics, write_metrics

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PRINTED = """top-1, 3,925 images, bank of 9,469, 96 px          random      densecl_s0
─────────────────────────────────────────  ──────────────  ──────────────
20-NN                                      38.88 ± 0.78 %  60.25 ± 0.78 %
(not the official recipe)"""
NASTY = "<script>alert(1)</script>&\"'"


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def cells_of(page: str) -> list[list[str]]:
    """The text of every cell, row by row."""
    rows = re.findall("<tr>(.*?)</tr>", page)
    return [[Page(cell).text for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


@pytest.fixture(scope="module")
def report(run_dir) -> str:
    said: list[str] = []
    results = {
        "knn.json": {"top1": 0.5, "k": 20},
        "side_by_side.json": {
            "options": {"k": [20]},
            "table": PRINTED,
            "results": {"confusion": [[1, 2], [3, 4], [5, 6]]},
        },
    }
    page, missing = build_report(read_run(run_dir), Sources(results=tuple(results.items()), quick=True), said.append)
    assert missing == []
    assert len(said) == PARTS
    return page


def test_it_holds_everything(report):
    page = Page(report)
    assert page.open == []
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 6 + 1 + 2 + 2 + 2 + 2  # curves, schedule, views, matches, colors, neighbors and embedding
    assert all(attributes["alt"] for attributes in images)
    for words in (
        "finished: 6 epochs, 30 steps",
        "50.00%",
        "hidden_dim: 32",
        "3.3.1",
        "cannot decode '<b>.jpg'",
        "Random weights: ",
        "Dense features",
        "chance 4.17",
        "30 steps, 240 images",  # what it cost
        "the packaged config that is nearest to the run's",
        "of the same sub-folder for",
    ):
        assert words in page.text, words


def test_the_table_of_contents_leads_to_every_part(report):
    tags = Page(report).tags
    links = [attributes["href"] for tag, attributes in tags if tag == "a"]
    assert links == [f"#{attributes['id']}" for tag, attributes in tags if tag == "section"]
    assert len(links) == PARTS


def test_what_was_printed_as_a_table_is_a_table(report):
    rows = cells_of(report)
    assert ["top-1, 3,925 images, bank of 9,469, 96 px", "random", "densecl_s0"] in rows
    assert ["20-NN", "38.88 ± 0.78 %", "60.25 ± 0.78 %"] in rows
    assert "─" not in report
    assert "(not the official recipe)" in Page(report).text
    # Whatever is not such a table stays text: nothing is lost.
    assert read_table({"table": "a  b\n─  ─\nlong and wide  2"}) is None
    assert read_table({"table": 3}) is None


def test_results_of_checkpoints_are_drawn_over_the_epochs(run_dir, tmp_path):
    table = "right, 32 pairs  random         a/epoch_0002   a/epoch_0004\n"
    table += "───────────────  ─────────────  ─────────────  ─────────────\n"
    table += "right            50.0 ± 1.00 %  55.0 ± 1.00 %  60.0 ± 2.00 %\n"
    table += "chance                   4.0 %          4.0 %          4.0 %"
    found = read_table({"table": table})
    assert found is not None
    assert epochs_of(found, None) == {1: 2.0, 2: 4.0}
    (name, values, errors), (_, _, none) = found.values()
    assert (name, values.tolist(), errors.tolist()) == ("right", [50, 55, 60], [1, 1, 2])
    assert np.isnan(none).all()
    axes = draw_checkpoints(found, {1: 2.0, 2: 4.0}, "title").axes[0]
    assert any(line.get_ydata()[0] == 50 for line in axes.lines)  # random weights
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder, ignore=shutil.ignore_patterns("checkpoints"))
    (folder / "correspondence.json").write_text(json.dumps({"evaluation": "correspondence", "table": table}))
    page, _ = build_report(read_run(folder))
    assert "Checkpoints over the run" in page
    assert "Correspondences between two crops of an image" in page
    assert "Nothing is recorded" not in page


def test_an_evaluation_folds_away_all_but_its_table(report):
    folded = re.search(r"<details><summary>Options and every figure</summary>(.*?)</details>", report, re.DOTALL)
    assert folded
    rest = Page(folded[1]).text
    assert "options.k" in rest
    assert "3 rows" in rest
    assert "20-NN" not in rest


def test_nothing_is_fetched_and_nothing_runs(report):
    page = Page(report)
    assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "object", "embed", "base", "form")]
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "data"):
            assert str(attributes.get(name, "data:")).startswith(("data:", "#")), (tag, name)
    assert "url(" not in report
    assert "@import" not in report
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_what_is_in_names_and_values_stays_text(tmp_path):
    folder = tmp_path / ("x<img src=a onerror=alert(1)>" + "$")
    write_metrics(folder, [row | {f"{NASTY}_top1": 0.5} for row in metrics(3)])
    (folder / "environment.json").write_text(json.dumps({NASTY: [NASTY]}))
    (folder / "evaluation.json").write_text(json.dumps({"deep": {NASTY: NASTY}}))
    (folder / "train.log").write_text(f"warning  {NASTY}\n")
    text, _ = build_report(read_run(folder))
    page = Page(text)
    assert page.open == []
    assert "script" not in {tag for tag, _ in page.tags}
    assert all(str(a["src"]).startswith("data:") for t, a in page.tags if t == "img")
    assert page.text.count(NASTY) >= 4
    assert folder.name in page.text


def test_parts_that_cannot_be_made_say_why_and_take_no_other_with_them(run_dir, tmp_path):
    folder = tmp_path / "young"
    folder.mkdir()
    text = (run_dir / "config.yaml").read_text()
    (folder / "config.yaml").write_text(re.sub(r"root: .*", "root: /gone/photos", text))
    page, missing = build_report(read_run(folder, need_metrics=False))
    assert [reason.split(":")[0] for reason in missing] == [
        "Curves",
        "Schedule",
        "What training sees",
        "Correspondences",
        "Features as colors",
        "Neighbors and embedding",
    ]
    assert "Pass the images with images" in page
    assert "no checkpoint yet" in page
    assert "hidden_dim: 32" in page


def test_root_stands_in_for_images_that_are_elsewhere_and_twice_is_the_same(run_dir, photos, report, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(run_dir, moved)
    config = moved / "config.yaml"
    config.write_text(re.sub(r"root: .*", "root: /gone/photos", config.read_text()))
    sections = dict(report_module._Report(read_run(moved), Sources(root=str(photos), quick=True)).sections())
    for name in ("Schedule", "What training sees", "Features as colors"):
        pictures = [attributes["src"] for tag, attributes in Page("".join(sections[name]())).tags if tag == "img"]
        assert pictures
        assert all(picture in report for picture in pictures)


# --- at the end of a run ---------------------------------------------------------------------------------------------


def test_at_the_end_of_a_run_nothing_but_a_line_comes_of_what_goes_wrong(run_dir, tmp_path, monkeypatch):
    said: list[tuple[str, str]] = []
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    write_report(folder, lambda *line: said.append(line), is_wanted=lambda: False)
    write_report(tmp_path / "gone", lambda *line: said.append(line))
    monkeypatch.setattr(report_module, "build_report", lambda *_: 1 / 0)
    write_report(folder, lambda *line: said.append(line))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_report(folder, lambda *line: said.append(line))
    assert [label for label, _ in said] == ["note", "warning", "warning", "note"]
    assert "ZeroDivisionError: division by zero; the run itself is complete" in said[2][1]
    assert "pip install matplotlib" in said[3][1]
    assert not (folder / REPORT).exists()


def test_images_of_a_relative_root_are_found_from_anywhere(run_dir, photos, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder, ignore=shutil.ignore_patterns("checkpoints"))
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(re.sub(r"root: .*", f"root: {photos.name}", text))
    (folder / "environment.json").write_text(json.dumps({"working_directory": str(photos.parent)}))
    monkeypatch.chdir(tmp_path)
    config, _ = config_and_run(folder)
    assert config.data.root == str(photos)
    (folder / "environment.json").write_text(json.dumps({"working_directory": "/gone"}))
    assert config_and_run(folder)[0].data.root == photos.name  # as it was written


# --- several runs ----------------------------------------------------------------------------------------------------


def test_runs_side_by_side(run_dir, tmp_path):
    """Their settings, figures and curves, and evaluations on the same images; seeds together with their spread."""
    folders = []
    for number in range(3):
        folder = tmp_path / f"run{number}"
        shutil.copytree(run_dir, folder, ignore=shutil.ignore_patterns("checkpoints"))
        write_metrics(folder, [row | {"global_loss": row["global_loss"] + number} for row in metrics(30)])
        config = folder / "config.yaml"
        text = config.read_text().replace("seed: 3", f"seed: {number}")
        config.write_text(text.replace("temperature: 0.2", "temperature: 0.5") if number == 2 else text)
        (folder / "knn.json").write_text(json.dumps({"evaluation": "knn", "table": PRINTED}))
        folders.append(folder)
    output = tmp_path / "runs.html"
    assert compare(folders, output, results=[folders[0] / "knn.json"]) == []
    page = Page(output.read_text(encoding="utf-8"))
    assert page.open == []
    rows = cells_of(output.read_text(encoding="utf-8"))
    assert ["model.temperature", "0.2", "0.2", "0.5"] in rows
    assert ["seed", "0", "1", "2"] in rows
    assert ["Global loss", "3.00 ± 0.71 nats"] in rows  # of the two that differ by their seed alone
    score = "60.25 ± 0.78 %"
    assert ["20-NN", score, "38.88 ± 0.78 %", score, score, score] in rows  # random weights once
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 6 + 1  # curves, and the evaluation
    for given, message in (([folders[0]] * 2, "two or more different run folders"), (folders, "exists already")):
        with pytest.raises(InputError, match=message):
            compare(given, output if given is folders else tmp_path / "other.html")


# --- in a real browser -----------------------------------------------------------------------------------------------

MEASURE = """
<!DOCTYPE html><html><body><iframe id="f" width="{width}" height="800" srcdoc="{page}"></iframe><pre id="out"></pre>
<script>
const frame = document.getElementById("f");
const images = () => [...frame.contentDocument.images];
function measure() {{
  const root = frame.contentDocument.documentElement, page = frame.contentWindow;
  const wide = [...frame.contentDocument.querySelectorAll("body *")].filter(
    e => e.getBoundingClientRect().right > page.innerWidth + 0.5 && !e.closest(".scroll table")).map(e => e.tagName);
  document.getElementById("out").textContent = JSON.stringify({{
    inner: page.innerWidth, scroll: root.scrollWidth, wide,
    images: images().map(i => [i.naturalWidth, i.getBoundingClientRect().width]),
    dark: page.matchMedia("(prefers-color-scheme: dark)").matches,
    page: page.getComputedStyle(frame.contentDocument.body).backgroundColor,
    ink: page.getComputedStyle(frame.contentDocument.body).color,
  }});
}}
window.addEventListener("load", measure);
</script></body></html>
"""


def browse(folder: Path, url: str, *options: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    profile = folder / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-pings",
        f"--user-data-dir={profile}",
        "--enable-logging=stderr",
        "--virtual-time-budget=10000",
        *options,
        "--dump-dom",
        url,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def measured(folder: Path, page: str, width: int, *options: str) -> dict:
    harness = folder / f"harness_{width}.html"
    harness.write_text(MEASURE.format(width=width, page=html.escape(page, quote=True)), encoding="utf-8")
    done = browse(folder, harness.as_uri(), *options)
    found = re.search(r'<pre id="out">(.+?)</pre>', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_it_whole(report, run_dir, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(report, encoding="utf-8")
    done = browse(tmp_path, path.as_uri())
    assert "</html>" in done.stdout
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    count = report.count("<img ")
    pages = set()
    runs, _ = build_comparison([read_run(run_dir)] * 5)
    seen = measured(tmp_path, runs, 420)
    assert seen["scroll"] <= 420, seen["wide"]
    for width, options in ((390, ()), (1200, ("--blink-settings=preferredColorScheme=0",))):  # the second is dark
        seen = measured(tmp_path, report, width, *options)
        pages.add((seen["page"], seen["ink"]))
        assert seen["inner"] == width
        assert seen["scroll"] <= width, seen["wide"]
        assert seen["wide"] == []
        assert len(seen["images"]) == count
        assert all(natural > 0 and shown > 100 for natural, shown in seen["images"])
    assert pages == {("rgb(255, 255, 255)", "rgb(31, 35, 40)"), ("rgb(13, 17, 23)", "rgb(230, 237, 243)")}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_browser_checks_can_fail(report, tmp_path):
    """A broken image, a wide element and a console message are noticed."""
    broken = report.replace("data:image/png;base64,", "data:image/png;base64,broken", 1)
    broken = broken.replace("<main>", '<main><div style="width: 2000px">wide</div>')
    seen = measured(tmp_path, broken, 390)
    assert seen["images"][0][0] == 0
    assert seen["scroll"] > 390
    assert "DIV" in seen["wide"]
    path = tmp_path / "loud.html"
    path.write_text(report.replace("</main>", '<img src="https://example.invalid/a.png"></main>'), encoding="utf-8")
    console = [line for line in browse(tmp_path, path.as_uri()).stderr.splitlines() if "CONSOLE" in line]
    assert console  # the page's own policy refuses it
