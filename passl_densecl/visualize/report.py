"""Everything about one run on one page: a single HTML file without scripts and without anything to fetch."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from passl_densecl.config import Config, LinearConfig, PretrainConfig, dump_config
from passl_densecl.data.datasets import ImageSet, UndecodableImage, scan_images
from passl_densecl.data.image_set import spread
from passl_densecl.errors import InputError
from passl_densecl.text import printable
from passl_densecl.transforms import CenterCrop, RandomResizedCrop, Resize
from passl_densecl.visualize.curves import draw_panel, key_figures, panels_of
from passl_densecl.visualize.runs import LOG, Run
from passl_densecl.visualize.style import data_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAIRS = 4  # augmented pairs that are shown
_IMAGES = 2  # of which correspondences and colors are shown
_WIDTH = 5.0  # inches: of a figure whose letters a telephone shows in a legible size
_SEED = 0  # of the two views of an image
_WARNINGS = 20

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --page: #ffffff; --card: #f6f8fa; --line: #d1d9e0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9198a1; --page: #0d1117; --card: #161b22; --line: #30363d; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
p, figcaption, td, th, summary { overflow-wrap: anywhere; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }
.wide { grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
h3 { font-size: 1rem; margin: 1rem 0 .2rem; overflow-wrap: anywhere; }
.one { max-width: 42rem; }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 500; color: var(--soft); width: 42%; }
figcaption { padding-top: .3rem; }
td { font-variant-numeric: tabular-nums; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .5rem .8rem; margin: .6rem 0; }
summary { cursor: pointer; font-weight: 500; }
pre { margin: .6rem 0 0; font-size: .82rem; line-height: 1.4; white-space: pre-wrap; overflow-wrap: anywhere; }
.table { white-space: pre; overflow-x: auto; }
.note { background: var(--card); border-left: 3px solid var(--line); padding: .5rem .8rem; margin: .6rem 0; }
""".strip()


@dataclass(frozen=True)
class Sources:
    """What the pictures of a report are made from."""

    root: str | None = None  # images instead of those that the config names
    results: tuple[tuple[str, dict[str, Any]], ...] = ()  # (name, object) of results that lie outside the run folder


def build_report(
    run: Run, sources: Sources = Sources(), progress: Callable[[str], None] | None = None
) -> tuple[str, list[str]]:
    """The page, and why parts of it are missing, where some are.

    A part that cannot be made (images that are not on this machine, no checkpoint yet) says so in its place; it never
    takes the others with it.
    """
    missing: list[str] = []
    parts: list[str] = []
    for title, make in _sections(run, sources):
        if progress is not None:
            progress(title)
        try:
            body = "".join(make())
        except InputError as error:
            missing.append(f"{title}: {error}")
            body = f'<p class="note">Not shown: {_text(error)}</p>'
        if body:
            parts.append(f"<section>\n<h2>{_text(title)}</h2>\n{body}</section>\n")
    return _page(run, "".join(parts)), missing


PARTS = 9  # of a report


def _sections(run: Run, sources: Sources) -> list[tuple[str, Callable[[], Iterable[str]]]]:
    return [
        ("Key figures", lambda: _key_figures(run)),
        ("Evaluation", lambda: _results(run, sources)),
        ("Curves", lambda: _curves(run)),
        ("Schedule", lambda: _schedule(run)),
        ("What training sees", lambda: _views(run, sources)),
        ("Correspondences", lambda: _matches(run, sources)),
        ("Features as colors", lambda: _colors(run, sources)),
        ("Warnings", lambda: _warnings(run)),
        ("Configuration and environment", lambda: _settings(run)),
    ]


def _page(run: Run, body: str) -> str:
    title = _text(f"{run.name} · report")
    # The policy makes the promise of one file hold: a browser neither fetches nor runs anything for this page.
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{_STYLE}
</style>
</head>
<body>
<header>
<h1>{_text(run.name)}</h1>
<p class="soft">{_text(_what(run))}</p>
</header>
<main>
{body}</main>
</body>
</html>
"""


def _what(run: Run) -> str:
    config = run.config
    if config is None:
        return f"{run.state()}; no config.yaml in the folder"
    if isinstance(config, PretrainConfig):
        kind = "DenseCL pre-training" if config.model.loss_lambda else "MoCo-v2 pre-training (λ = 0)"
    else:
        kind = "linear evaluation"
    return f"ResNet-{config.model.depth}, {kind}, seed {config.seed} · {run.state()}"


# --- the parts -----------------------------------------------------------------------------------------------------


def _key_figures(run: Run) -> Iterator[str]:
    yield _table(key_figures(run))
    if run.config is not None and isinstance(run.config, PretrainConfig):
        yield _soft(
            "The losses rise until the queue holds real keys and then fall; judge by k-NN, linear accuracy and "
            "correspondences, not by the loss."
        )


def _results(run: Run, sources: Sources) -> Iterator[str]:
    for name, content in [*run.results.items(), *sources.results]:
        yield f"<h3>{_text(name)}</h3>\n"
        every = {key: value for key, value in content.items() if key != "table"}
        if isinstance(content.get("table"), str):  # of tools/evaluate.py, as it was printed
            yield f'<pre class="table">{_text(content["table"])}</pre>\n'
            yield f"<details><summary>Options and every figure</summary>{_table(_flattened(every))}</details>\n"
        else:
            yield _table(_flattened(content))


def _curves(run: Run) -> Iterator[str]:
    if not run.metrics:
        raise InputError("nothing is logged yet")
    yield '<div class="grid">\n'
    for panel in panels_of([run]):
        _, values = run.series(panel.key)
        ends = f"from {values[0] * panel.scale:.4g} to {values[-1] * panel.scale:.4g} {panel.unit}"
        yield _figure(draw_panel(panel, [run]), f"{panel.title} over the run, {ends}")
    yield "</div>\n"
    yield _soft("Bold: mean over neighboring logged steps; pale: as logged.")


def _schedule(run: Run) -> Iterator[str]:
    if run.config is None:
        raise InputError("no config.yaml in the run folder")
    if run.steps_per_epoch is None:
        raise InputError("the steps in an epoch are known from the first checkpoint on")
    from passl_densecl.visualize.schedule import describe, draw_schedule, plan

    planned = plan(run.config, run.steps_per_epoch)
    figure = draw_schedule(run.config, planned, title=None, width=_WIDTH)
    what = "Learning rate and λ" if isinstance(run.config, PretrainConfig) else "Learning rate"
    caption = " · ".join(describe(run.config, planned))
    yield f'<div class="one">\n{_figure(figure, f"{what} over the epochs of the run", caption)}</div>\n'


def _views(run: Run, sources: Sources) -> Iterator[str]:
    config = run.config
    if not isinstance(config, PretrainConfig):
        return
    from passl_densecl.visualize.views import draw_pairs, training_pairs

    images = _images(config, sources)
    pairs = training_pairs(config, images, min(_PAIRS, len(images)))
    yield '<div class="grid wide">\n'
    for half in filter(None, (pairs[: _PAIRS // 2], pairs[_PAIRS // 2 :])):
        figure = draw_pairs(half, columns=1, title=None)
        text = f"{len(half)} images with the two crops, and the augmented query and key view of each"
        yield _figure(figure, text, photographs=True)
    yield "</div>\n"
    yield _soft(
        f"The first images of epoch 1 under {sources.root or config.data.root}, with the random draws of the run, and "
        f"their two views of {pairs[0].query.shape[0]} px. Solid frame: query; dashed frame: key."
    )


def _matches(run: Run, sources: Sources) -> Iterator[str]:
    config = _needed(run)
    from passl_densecl.evaluation import load_backbone
    from passl_densecl.visualize.match import draw_matches, match_images, summary, two_views

    trained = load_backbone(run.path)
    random = load_backbone("random", config.model.backbone.as_options())
    size = _size(config)
    yield '<div class="grid wide">\n'
    for name, image in _photographs(config, sources):
        views = two_views(image.shape[0], image.shape[1], size, _SEED)
        a, b = (view.render(image) for view in views)
        for title, backbone in (("This run", trained), ("Random weights", random)):
            found = match_images(backbone, a, b, views=views)
            caption = f"{title}: {summary(found)}."
            figure = draw_matches(a, b, found, title=None, width=_WIDTH)
            yield _figure(figure, f"Matches between two crops of {name}", caption, photographs=True)
    yield "</div>\n"
    yield _soft(
        f"Two random crops of an image, {size} px each; lines join cells of the backbone's map that are each other's nearest "
        "neighbor. A few images illustrate; for a number over many there is tools/evaluate.py."
    )


def _colors(run: Run, sources: Sources) -> Iterator[str]:
    config = _needed(run)
    from passl_densecl.evaluation import feature_map
    from passl_densecl.visualize.maps import load_map
    from passl_densecl.visualize.pca import describe, draw_colors, map_colors

    rng = np.random.default_rng(0)  # Resize draws nothing
    photographs = [(name, Resize(size=_size(config))(image, rng)) for name, image in _photographs(config, sources)]
    images, names = [image for _, image in photographs], [name for name, _ in photographs]
    models = {"Backbone": load_map(run.path)}
    if isinstance(config, PretrainConfig) and config.model.loss_lambda:
        models["Dense"] = load_map(run.path, features="dense")
    yield '<div class="grid wide">\n'
    for kind, model in models.items():
        colors, share = map_colors([feature_map(model, image) for image in images])
        figure = draw_colors(images, colors, share, names=names, title=None)
        caption = f"{kind} features; {'; '.join(describe(colors, share))}."
        yield _figure(figure, f"{kind} features of {len(images)} images as colors", caption, photographs=True)
    yield "</div>\n"


def _warnings(run: Run) -> Iterator[str]:
    try:
        lines = (run.path / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    found = list(dict.fromkeys(line for line in lines if line.startswith("warning ")))
    if found:
        more = f"\n… and {len(found) - _WARNINGS:,} more" if len(found) > _WARNINGS else ""
        yield f'<pre class="note">{_text(chr(10).join(found[:_WARNINGS]) + more)}</pre>'


def _settings(run: Run) -> Iterator[str]:
    if run.config is not None:
        yield f"<details open><summary>config.yaml</summary><pre>{_text(dump_config(run.config))}</pre></details>"
    if run.environment:
        yield f"<details open><summary>environment.json</summary>{_table(_flattened(run.environment))}</details>"


# --- what they are made from ---------------------------------------------------------------------------------------


def _needed(run: Run) -> Config:
    """The config, of a run that has weights. Raises InputError."""
    if run.config is None:
        raise InputError("no config.yaml in the run folder")
    from passl_densecl.weights import weights_file

    try:
        weights_file(run.path)
    except InputError:
        raise InputError("the run has no checkpoint yet") from None
    return run.config


def _images(config: Config, sources: Sources) -> ImageSet:
    try:
        if sources.root is not None:
            return scan_images(sources.root)
        data = config.data.val if isinstance(config, LinearConfig) else config.data
        return scan_images(data.root, data.list_file)
    except InputError as error:
        raise InputError(f"{error}. Give the images with --root DIR") from None


def _photographs(config: Config, sources: Sources) -> list[tuple[str, np.ndarray]]:
    """(name, pixels) of a few images, from all over the set."""
    images = _images(config, sources)
    found: list[tuple[str, np.ndarray]] = []
    for index in spread(len(images), 10 * _IMAGES):
        try:
            found.append((printable(Path(images.path(index)).name), images.decode(index)))
        except UndecodableImage:
            continue
    if not found:
        raise InputError(f"none of the images {images.source} that were tried can be decoded")
    return [found[index] for index in spread(len(found), _IMAGES)]


def _size(config: Config) -> int:
    """Twice the size in training, for a finer map; of 160 pixels at least, so that there is something to see."""
    transforms = config.data.val_transforms if isinstance(config, LinearConfig) else config.data.transforms
    sizes = [each.size for each in transforms if isinstance(each, (RandomResizedCrop, CenterCrop))]
    return max(160, min(448, 2 * (sizes[-1] if sizes else 224)))


# --- HTML ----------------------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    """Text as text, whatever is in it."""
    return html.escape(printable(str(value)), quote=True)


def _soft(text: str) -> str:
    return f'<p class="soft">{_text(text)}</p>\n'


def _figure(figure: Figure, alt: str, caption: str = "", *, photographs: bool = False) -> str:
    width, height = (round(side * 100) for side in figure.get_size_inches())
    source = data_uri(figure, photographs=photographs)
    below = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="{source}" width="{width}" height="{height}" alt="{_text(alt)}">{below}</figure>\n'


def _table(rows: Iterable[tuple[str, str]]) -> str:
    body = "".join(f'<tr><th scope="row">{_text(name)}</th><td>{_text(value)}</td></tr>\n' for name, value in rows)
    return f"<table><tbody>\n{body}</tbody></table>\n"


def _flattened(content: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """(dotted name, value) of everything in an object."""
    rows: list[tuple[str, str]] = []
    for key, value in content.items():
        if isinstance(value, dict):
            rows += _flattened(value, f"{before}{key}.")
        else:
            rows.append((f"{before}{key}", _value(str(key), value)))
    return rows


def _value(key: str, value: object) -> str:
    if isinstance(value, float):
        is_share = key.endswith(("top1", "top5", "miou", "accuracy", "share", "chance")) and 0 <= value <= 1
        return f"{value:.2%}" if is_share else f"{value:.6g}"
    if isinstance(value, list):
        if len(value) > 40 or any(isinstance(item, list) for item in value):
            return f"{len(value)} {'rows' if isinstance(value[0], list) else 'values'}"
        return " ".join(item if isinstance(item, str) else json.dumps(item) for item in value)
    return "none" if value is None else str(value)
