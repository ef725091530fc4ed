"""A report of one run: a single HTML file without scripts or external files."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from passl_densecl.config import RANDOM, Config, LinearConfig, PretrainConfig, dump_config
from passl_densecl.data.datasets import ImageSet, UndecodableImage, scan_images
from passl_densecl.data.image_set import spread
from passl_densecl.errors import InputError
from passl_densecl.text import and_more, printable
from passl_densecl.transforms import CenterCrop, RandomResizedCrop, Resize
from passl_densecl.visualize.curves import draw_panel, key_figures, panels_of
from passl_densecl.visualize.runs import LOG, RecordedRun
from passl_densecl.visualize.style import data_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAIRS = 4  # number of augmented pairs
_IMAGES = 2  # number of images with correspondences and colors
_WIDTH = 5.0  # inches: of figures that stay legible on a telephone
_SEED = 0  # of the two crops of an image
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
details { background: var(--card); border: 1px solid var(--line); border-radius: 6px; }
details { padding: .5rem .8rem; margin: .6rem 0; }
summary { cursor: pointer; font-weight: 500; }
pre { margin: .6rem 0 0; font-size: .82rem; line-height: 1.4; white-space: pre-wrap; overflow-wrap: anywhere; }
.table { white-space: pre; overflow-x: auto; }
.note { background: var(--card); border-left: 3px solid var(--line); padding: .5rem .8rem; margin: .6rem 0; }
""".strip()


@dataclass(frozen=True)
class Sources:
    """Sources of a report beside the run folder."""

    root: str | None = None  # images to use instead of the config's
    results: tuple[tuple[str, dict[str, Any]], ...] = ()  # (name, object) of results outside the run folder


def build_report(
    run: RecordedRun, sources: Sources = Sources(), progress: Callable[[str], None] | None = None
) -> tuple[str, list[str]]:
    """The page, and a reason for each missing part.

    A part that cannot be made (images not on this machine, no checkpoint yet) is replaced by the reason; the others are
    not affected.
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


def _sections(run: RecordedRun, sources: Sources) -> list[tuple[str, Callable[[], Iterable[str]]]]:
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


def _page(run: RecordedRun, body: str) -> str:
    title = _text(f"{run.name} · report")
    # This policy guarantees a single file: browsers neither fetch nor run anything for this page.
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


def _what(run: RecordedRun) -> str:
    config = run.config
    if config is None:
        return f"{run.state()}; no config.yaml in the folder"
    if isinstance(config, PretrainConfig):
        kind = "DenseCL pre-training" if config.model.loss_lambda else "MoCo-v2 pre-training (λ = 0)"
    else:
        kind = "linear evaluation"
    return f"ResNet-{config.model.depth}, {kind}, seed {config.seed} · {run.state()}"


# --- the parts -----------------------------------------------------------------------------------------------------


def _key_figures(run: RecordedRun) -> Iterator[str]:
    yield _table(key_figures(run))
    if run.config is not None and isinstance(run.config, PretrainConfig):
        yield _soft(
            "The losses rise until the queue holds real keys and then fall. They are not a reliable measure: compare "
            "k-NN, linear accuracy and correspondences."
        )


def _results(run: RecordedRun, sources: Sources) -> Iterator[str]:
    for name, content in [*run.results.items(), *sources.results]:
        yield f"<h3>{_text(name)}</h3>\n"
        every = {key: value for key, value in content.items() if key != "table"}
        if isinstance(content.get("table"), str):  # as printed by tools/evaluate.py
            yield f'<pre class="table">{_text(content["table"])}</pre>\n'
            yield f"<details><summary>Options and every figure</summary>{_table(_flattened(every))}</details>\n"
        else:
            yield _table(_flattened(content))


def _curves(run: RecordedRun) -> Iterator[str]:
    if not run.metrics:
        raise InputError("nothing is logged yet")
    yield '<div class="grid">\n'
    for panel in panels_of([run]):
        _, values = run.series(panel.key)
        ends = f"from {values[0] * panel.scale:.4g} to {values[-1] * panel.scale:.4g} {panel.unit}"
        yield _figure(draw_panel(panel, [run]), f"{panel.title} over the run, {ends}")
    yield "</div>\n"
    yield _soft("Bold: mean over neighboring logged steps; pale: as logged.")


def _schedule(run: RecordedRun) -> Iterator[str]:
    if run.config is None:
        raise InputError("no config.yaml in the run folder")
    if run.steps_per_epoch is None:
        raise InputError("the number of steps per epoch is unknown before the first checkpoint")
    from passl_densecl.visualize.schedule import describe, draw_schedule, plan

    planned = plan(run.config, run.steps_per_epoch)
    figure = draw_schedule(run.config, planned, title=None, width=_WIDTH)
    what = "Learning rate and λ" if isinstance(run.config, PretrainConfig) else "Learning rate"
    caption = " · ".join(describe(run.config, planned))
    yield f'<div class="one">\n{_figure(figure, f"{what} over the epochs of the run", caption)}</div>\n'


def _views(run: RecordedRun, sources: Sources) -> Iterator[str]:
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


def _matches(run: RecordedRun, sources: Sources) -> Iterator[str]:
    config = _needed(run)
    from passl_densecl.evaluation.features import load_backbone
    from passl_densecl.visualize.match import draw_matches, match_images, summary, two_views

    trained = load_backbone(run.path)
    random = load_backbone(RANDOM, config.model.backbone.as_options())
    size = _size(config)
    yield '<div class="grid wide">\n'
    for name, image in _photographs(config, sources):
        views = two_views(image.shape[0], image.shape[1], size, _SEED)
        a, b = (view.render(image) for view in views)
        for title, backbone in (("This run", trained), ("Random weights", random)):
            matches = match_images(backbone, a, b, views=views)
            caption = f"{title}: {summary(matches)}."
            figure = draw_matches(a, b, matches, title=None, width=_WIDTH)
            yield _figure(figure, f"Matches between two crops of {name}", caption, photographs=True)
    yield "</div>\n"
    yield _soft(
        f"Two random crops of an image, {size} px each; lines connect cells of the backbone's map that are mutual "
        "nearest neighbors. These are examples; tools/evaluate.py measures the share over many images."
    )


def _colors(run: RecordedRun, sources: Sources) -> Iterator[str]:
    config = _needed(run)
    from passl_densecl.evaluation.features import feature_map
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


def _warnings(run: RecordedRun) -> Iterator[str]:
    try:
        lines = (run.path / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    warnings = list(dict.fromkeys(line for line in lines if line.startswith("warning ")))
    if warnings:
        more = and_more(len(warnings), _WARNINGS)
        text = "\n".join(warnings[:_WARNINGS]) + (f"\n…{more}" if more else "")
        yield f'<pre class="note">{_text(text)}</pre>'


def _settings(run: RecordedRun) -> Iterator[str]:
    if run.config is not None:
        yield f"<details open><summary>config.yaml</summary><pre>{_text(dump_config(run.config))}</pre></details>"
    if run.environment:
        yield f"<details open><summary>environment.json</summary>{_table(_flattened(run.environment))}</details>"


# --- sources ----------------------------------------------------------------------------------------------------


def _needed(run: RecordedRun) -> Config:
    """The config of a run that has weights. Raises InputError."""
    if run.config is None:
        raise InputError("no config.yaml in the run folder")
    from passl_densecl.weights.files import weights_file

    try:
        weights_file(run.path)
    except InputError:
        raise InputError("the run has no checkpoint yet") from None
    return run.config


def _images(config: Config, sources: Sources) -> ImageSet:
    try:
        data = config.data.val if isinstance(config, LinearConfig) else config.data
        given = {} if sources.root is None else {"root": sources.root, "list_file": None}
        return scan_images(**data.source(**given))
    except InputError as error:
        raise InputError(f"{error}. Pass the images with --root DIR") from None


def _photographs(config: Config, sources: Sources) -> list[tuple[str, np.ndarray]]:
    """(name, pixels) of a few images, evenly over the set."""
    images = _images(config, sources)
    decoded: list[tuple[str, np.ndarray]] = []
    for index in spread(len(images), 10 * _IMAGES):
        try:
            decoded.append((printable(Path(images.path(index)).name), images.decode(index)))
        except UndecodableImage:
            continue
    if not decoded:
        raise InputError(f"none of the sampled images {images.source} can be decoded")
    return [decoded[index] for index in spread(len(decoded), _IMAGES)]


def _size(config: Config) -> int:
    """Twice the size in training, for a finer map, from 160 to 448 pixels."""
    transforms = config.data.val_transforms if isinstance(config, LinearConfig) else config.data.transforms
    sizes = [each.size for each in transforms if isinstance(each, (RandomResizedCrop, CenterCrop))]
    return max(160, min(448, 2 * (sizes[-1] if sizes else 224)))


# --- HTML ----------------------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    """Any value as escaped text."""
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
    """(dotted name, value) of all entries of an object."""
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
