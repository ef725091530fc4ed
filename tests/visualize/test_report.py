"""The report: one file, nothing fetched or run, everything escaped, legible on a telephone, whatever is missing."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from passl_densecl.visualize.report import PARTS, Sources, build_report
from passl_densecl.visualize.runs import read_run
from tests.visualize.conftest import metrics, write_metrics

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PRINTED = """top-1, 3,925 images, bank of 9,469, 96 px          random      densecl_s0
─────────────────────────────────────────  ──────────────  ──────────────
20-NN                                      38.88 ± 0.78 %  60.25 ± 0.78 %"""  # too wide for a telephone: it scrolls
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
    page, missing = build_report(read_run(run_dir), Sources(results=tuple(results.items())), said.append)
    assert missing == []
    assert len(said) == PARTS
    return page


def test_it_holds_everything(report):
    page = Page(report)
    assert page.open == []
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 6 + 1 + 2 + 4 + 2  # curves, schedule, views, matches, colors
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
    ):
        assert words in page.text, words


def test_an_evaluation_shows_the_table_that_was_printed_and_folds_away_the_rest(report):
    assert PRINTED in Page(report).text
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
            assert str(attributes.get(name, "data:")).startswith("data:"), (tag, name)
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
    ]
    assert "Pass the images with --root DIR" in page
    assert "no checkpoint yet" in page
    assert "hidden_dim: 32" in page


def test_root_stands_in_for_images_that_are_elsewhere_and_twice_is_the_same(run_dir, photos, report, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(run_dir, moved)
    config = moved / "config.yaml"
    config.write_text(re.sub(r"root: .*", "root: /gone/photos", config.read_text()))
    page, missing = build_report(read_run(moved), Sources(root=str(photos)))
    assert missing == []

    def pictures(text: str) -> list[str | None]:
        return [attributes["src"] for tag, attributes in Page(text).tags if tag == "img"]

    assert pictures(page) == pictures(report)


# --- in a real browser -----------------------------------------------------------------------------------------------

MEASURE = """
<!DOCTYPE html><html><body><iframe id="f" width="{width}" height="800" srcdoc="{page}"></iframe><pre id="out"></pre>
<script>
const frame = document.getElementById("f");
const images = () => [...frame.contentDocument.images];
function measure() {{
  const root = frame.contentDocument.documentElement, page = frame.contentWindow;
  const wide = [...frame.contentDocument.querySelectorAll("body *")].filter(
    e => e.getBoundingClientRect().right > page.innerWidth + 0.5).map(e => e.tagName);
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
def test_a_browser_shows_it_whole(report, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(report, encoding="utf-8")
    done = browse(tmp_path, path.as_uri())
    assert "</html>" in done.stdout
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    count = report.count("<img ")
    pages = set()
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
