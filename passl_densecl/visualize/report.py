"""A report of one run: a single HTML file without scripts or external files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from passl_densecl.config import RANDOM, Config, LinearConfig, PretrainConfig, dump_config
from passl_densecl.data.datasets import ImageSet, UndecodableImage, scan_images
from passl_densecl.data.image_set import spread
from passl_densecl.disk import whole_file
from passl_densecl.errors import InputError, option
from passl_densecl.text import and_more, duration, megabytes, printable
from passl_densecl.transforms import CenterCrop, RandomResizedCrop, Resize
from passl_densecl.visualize import page
from passl_densecl.visualize.curves import (
    EVALUATED,
    cost_figures,
    draw_panel,
    has_errors,
    is_smoothed,
    key_figures,
    panels_of,
    readable,
)
from passl_densecl.visualize.evaluations import draw_checkpoints, epochs_of, read_table, title_of
from passl_densecl.visualize.runs import CONFIG, LOG, RecordedRun, read_run
from passl_densecl.visualize.settings import differences, flatten, nearest_base, settings
from passl_densecl.visualize.style import need_matplotlib

REPORT = "report.html"
PARTS = 14  # of a report
_PAIRS = 4  # number of augmented pairs
_IMAGES = 2  # number of images with correspondences and colors
_WIDTH = 5.0  # inches: of figures that stay legible on a telephone
_SEED = 0  # of the two crops of an image
_WARNINGS = 20
_SAMPLE, _QUICK, _FEWEST = 300, 60, 40  # images whose neighbors are looked for, at 64 px; fewer of larger ones


@dataclass(frozen=True)
class Sources:
    """Sources of a report beside the run folder."""

    root: str | None = None  # images to use instead of the config's
    results: tuple[tuple[str, dict[str, Any]], ...] = ()  # (name, object) of results outside the run folder
    images: ImageSet | None = None  # those of the config, where they have been found already
    quick: bool = False  # fewer images, and principal components in place of t-SNE


def build_report(
    run: RecordedRun, sources: Sources = Sources(), progress: Callable[[str], None] | None = None
) -> tuple[str, list[str]]:
    """The page, and a reason for each missing part, as :func:`passl_densecl.visualize.page.build_page`."""
    return page.build_page(run.name, _what(run), _Report(run, sources).sections(), progress)


def write_report(
    run_dir: Path,
    say: Callable[[str, str], None],
    *,
    images: ImageSet | None = None,
    is_wanted: Callable[[], bool] = lambda: True,
) -> None:
    """Write `report.html` into a run folder, at the end of its run. Whatever goes wrong is one line, and no error.

    Args:
        say: takes a label and a line for the log.
        images: of the run, if they are at hand: scanning a large folder again takes long.
        is_wanted: asked before every part; when it says no, nothing is written.
    """
    try:
        need_matplotlib()
    except InputError as error:
        say("note", f"no {REPORT}: {error}, then densecl report {run_dir}")
        return
    began = time.perf_counter()
    try:
        content, _ = build_report(read_run(run_dir), Sources(images=images, quick=True), lambda _: _check(is_wanted))
        with whole_file(run_dir / REPORT) as file:
            file.write(content.encode("utf-8"))
    except _NotWanted:
        say("note", f"no {REPORT}: asked to stop")
    except Exception as error:  # the run is complete, and a picture of it must not make it fail
        why = printable(" ".join(str(error).split())[:300])
        say("warning", f"no {REPORT}: {type(error).__name__}: {why}; the run itself is complete")
    else:
        seconds = duration(time.perf_counter() - began)
        say("report", f"{run_dir / REPORT} ({megabytes(len(content))}, {seconds})")


class _NotWanted(Exception):
    """The report is given up."""


def _check(is_wanted: Callable[[], bool]) -> None:
    if not is_wanted():
        raise _NotWanted


def _what(run: RecordedRun) -> str:
    config = run.config
    if config is None:
        return f"{run.state()}; no config.yaml in the folder"
    if isinstance(config, PretrainConfig):
        kind = "DenseCL pre-training" if config.model.loss_lambda else "MoCo-v2 pre-training (λ = 0)"
    else:
        kind = "linear evaluation"
    return f"ResNet-{config.model.depth}, {kind}, seed {config.seed} · {run.state()}"


class _Report:
    """The sections of one run's report, and what several of them need."""

    def __init__(self, run: RecordedRun, sources: Sources) -> None:
        self.run, self.sources = run, sources

    def sections(self) -> list[page.Section]:
        return [
            ("Key figures", self.key_figures),
            ("Duration and cost", self.cost),
            ("Changed settings", self.changes),
            ("Evaluations", self.evaluations),
            ("Checkpoints over the run", self.checkpoints),
            ("Curves", self.curves),
            ("Schedule", self.schedule),
            ("What training sees", self.views),
            ("Correspondences", self.matches),
            ("Features as colors", self.colors),
            ("Neighbors and embedding", self.neighbors),
            ("Warnings", self.warnings),
            ("Configuration", self.configuration),
            ("Environment", self.environment),
        ]

    # --- numbers

    def key_figures(self) -> Iterator[str]:
        yield page.pairs(key_figures(self.run))
        if isinstance(self.run.config, PretrainConfig):
            yield page.soft(
                "The losses rise until the queue holds real keys and then fall. They are not a reliable measure: "
                "compare k-NN, linear accuracy and correspondences."
            )

    def cost(self) -> Iterator[str]:
        if figures := cost_figures(self.run):
            yield page.pairs(figures)
            yield page.soft(
                "Time is that of the training steps by their logged speed, over all parts of a resumed run."
            )

    def changes(self) -> Iterator[str]:
        if self.run.config is None or (base := nearest_base(self.run.config)) is None:
            return
        name, theirs = base
        own = settings(self.run.config)
        rows = differences([theirs, own])
        if rows:
            yield page.table(["setting", name, "this run"], rows)
        yield page.soft(
            f"Compared with {name}, the packaged config that is nearest to the run's: {len(rows)} of {len(own)} "
            "settings differ, name and output folder aside."
        )

    def evaluations(self) -> Iterator[str]:
        for name, content in [*self.run.results.items(), *self.sources.results]:
            yield f"<h3>{page.text(title_of(name, content))}</h3>\n"
            table = read_table(content)
            if table is None:
                yield page.pairs(_flattened(content))
                continue
            yield page.table([table.what, *table.columns], table.rows)
            yield page.soft(f"{name}. {table.notes}".strip())
            rest = {key: value for key, value in content.items() if key != "table"}
            yield page.folded("Options and every figure", page.pairs(_flattened(rest)))

    def checkpoints(self) -> Iterator[str]:
        figures = []
        panels = [panel for panel in panels_of([self.run]) if panel.key.startswith(EVALUATED)]
        for panel in panels:
            drawn = draw_panel(panel, [self.run])
            caption = "Bars: one standard error." if has_errors(self.run, panel) else ""
            figures.append(page.figure(drawn, f"{panel.title} over the run", caption))
        for name, content in [*self.run.results.items(), *self.sources.results]:
            table = read_table(content)
            epochs = epochs_of(table, self.run.steps_per_epoch) if table else {}
            if table and len(epochs) > 1:
                drawn = draw_checkpoints(table, epochs, title_of(name, content))
                figures.append(
                    page.figure(drawn, f"{table.what} by checkpoint", f"{table.what}; bars: one standard error")
                )
        if figures:
            yield from page.grid(figures)
        elif isinstance(self.run.config, PretrainConfig):
            yield page.note(
                "Nothing is recorded. With the sections evaluation: and monitor: in its config a run measures itself. "
                f"Correspondences of its checkpoints: densecl eval correspondence --images DIR --weights "
                f"{self.run.path}/checkpoints/epoch_* --output {self.run.path}/correspondence.json"
            )

    def curves(self) -> Iterator[str]:
        panels = [panel for panel in panels_of([self.run]) if not panel.key.startswith(EVALUATED)]
        if not panels:
            raise InputError("nothing is logged yet")
        figures = []
        for panel in panels:
            _, values = self.run.series(panel.key)
            ends = f"from {values[0] * panel.scale:.4g} to {values[-1] * panel.scale:.4g} {panel.unit}"
            figures.append(page.figure(draw_panel(panel, [self.run]), f"{panel.title} over the run, {ends}"))
        yield from page.grid(figures)
        if is_smoothed([self.run], panels):
            yield page.soft("Bold: mean over neighboring logged steps; pale: as logged.")
        if any(panel.key.endswith("_similarity") for panel in panels):
            yield page.soft(
                "Similarity of different images: the mean cosine between the keys of two images of a batch. At 1 all "
                "images look alike to the encoder: it has collapsed. Random weights are near 1, and training lowers it."
            )

    def schedule(self) -> Iterator[str]:
        config = self._config()
        if self.run.steps_per_epoch is None:
            raise InputError("the number of steps per epoch is unknown before the first checkpoint")
        from passl_densecl.visualize.schedule import describe, draw_schedule, plan

        planned = plan(config, self.run.steps_per_epoch)
        figure = draw_schedule(config, planned, title=None, width=4.6, height=3.4)
        what = "Learning rate and λ" if isinstance(config, PretrainConfig) else "Learning rate"
        caption = " · ".join(describe(config, planned))
        yield from page.grid([page.figure(figure, f"{what} over the epochs of the run", caption)])

    # --- pictures

    def views(self) -> Iterator[str]:
        config = self.run.config
        if not isinstance(config, PretrainConfig):
            return
        from passl_densecl.visualize.views import draw_pairs, training_pairs

        pairs = training_pairs(config, self.images, min(_PAIRS, len(self.images)))
        figures = []
        for half in filter(None, (pairs[: _PAIRS // 2], pairs[_PAIRS // 2 :])):
            text = f"{len(half)} images with the two crops, and the augmented query and key view of each"
            figures.append(page.figure(draw_pairs(half, columns=1, title=None), text, photographs=True))
        yield from page.grid(figures)
        yield page.soft(
            f"The first images of epoch 1 under {self.images.root}, with the random draws of the run, and their two "
            f"views of {pairs[0].query.shape[0]} px. Solid frame: query; dashed frame: key."
        )

    def matches(self) -> Iterator[str]:
        from passl_densecl.evaluation.features import load_backbone
        from passl_densecl.visualize.match import draw_matches, match_images, summary, two_views
        from passl_densecl.weights.recorded import BackboneOptions

        trained = self.backbone
        random = load_backbone(RANDOM, BackboneOptions(**asdict(self._config().model.backbone)))
        size, figures = self._fine_size(), []
        for name, image in self.photographs[: 1 if self.sources.quick else None]:
            views = two_views(image.shape[0], image.shape[1], size, _SEED)
            a, b = (view.render(image) for view in views)
            for title, backbone in (("This run", trained), ("Random weights", random)):
                matches = match_images(backbone, a, b, views=views)
                figure = draw_matches(a, b, matches, title=None, width=_WIDTH)
                caption = f"{title}: {summary(matches)}."
                figures.append(page.figure(figure, f"Matches between two crops of {name}", caption, photographs=True))
        yield from page.grid(figures)
        yield page.soft(
            f"Two random crops of an image, {size} px each; lines connect cells of the backbone's map that are mutual "
            "nearest neighbors. These are examples; 'densecl eval correspondence' measures the share over many images."
        )

    def colors(self) -> Iterator[str]:
        config = self._config()
        from passl_densecl.evaluation.features import feature_map
        from passl_densecl.visualize.maps import load_map
        from passl_densecl.visualize.pca import describe, draw_colors, map_colors

        models = {"Backbone": self.backbone}
        rng = np.random.default_rng(0)  # Resize draws nothing
        resize = Resize(size=self._fine_size())
        images, names = [resize(image, rng) for _, image in self.photographs], [name for name, _ in self.photographs]
        if isinstance(config, PretrainConfig) and config.model.loss_lambda:
            models["Dense"] = load_map(self.run.path, features="dense")
        figures = []
        for kind, model in models.items():
            colors, share = map_colors([feature_map(model, image) for image in images])
            figure = draw_colors(images, colors, share, names=names, title=None)
            caption = f"{kind} features; {'; '.join(describe(colors, share))}."
            alt = f"{kind} features of {len(images)} images as colors"
            figures.append(page.figure(figure, alt, caption, photographs=True))
        yield from page.grid(figures)

    def neighbors(self) -> Iterator[str]:
        from passl_densecl.visualize.embedding import draw_embedding, lay_out, neighbor_agreement, pooled_sample
        from passl_densecl.visualize.neighbors import draw_nearest

        backbone, size = self.backbone, self._size()
        most = _QUICK if self.sources.quick else _SAMPLE
        count = max(_FEWEST, min(most, round(most * (64 / size) ** 2)))
        sample = pooled_sample(backbone, self.images, count, size)
        layout, how = lay_out(sample.vectors, "pca"), "the first two principal components"
        if not self.sources.quick and find_spec("sklearn") is not None:
            layout, how = lay_out(sample.vectors, "tsne"), "t-SNE: near is similar, and far means nothing"
        agreement = ""
        if len(set(sample.groups)) > 1:
            share, chance = neighbor_agreement(sample.vectors, sample.groups)
            agreement = (
                f" The nearest neighbor is of the same sub-folder for {share:.0%} of them (chance {chance:.0%})."
            )
        figures = [
            (
                draw_nearest(sample, self.images, width=_WIDTH),
                "Images and the nearest others, by the cosine of pooled features",
            ),
            (draw_embedding(sample, layout, title=None, width=_WIDTH), f"A point an image; {how}"),
        ]
        yield from page.grid(page.figure(figure, alt, f"{alt}.") for figure, alt in figures)
        yield page.soft(
            f"{len(sample.groups)} of {sample.total:,} images under {self.images.root}, evenly over the folder, {size} "
            f"px.{agreement}"
        )
        if self.sources.quick:
            yield page.soft(
                f"Written at the end of the run, from few images. densecl report {self.run.path} takes more "
                "of them, and t-SNE where scikit-learn is installed."
            )

    # --- records

    def warnings(self) -> Iterator[str]:
        try:
            lines = (self.run.path / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return
        warnings = list(dict.fromkeys(line for line in lines if line.startswith("warning ")))
        if warnings:
            more = and_more(len(warnings), _WARNINGS)
            text = "\n".join(warnings[:_WARNINGS]) + (f"\n…{more}" if more else "")
            yield f'<pre class="note">{page.text(text)}</pre>'

    def configuration(self) -> Iterator[str]:
        if self.run.config is not None:
            yield page.folded(CONFIG, f"<pre>{page.text(dump_config(self.run.config))}</pre>")

    def environment(self) -> Iterator[str]:
        if self.run.environment:
            yield page.pairs(_flattened(self.run.environment, str))

    # --- sources

    def _config(self) -> Config:
        if self.run.config is None:
            raise InputError("no config.yaml in the run folder")
        return self.run.config

    @cached_property
    def backbone(self) -> Any:
        """The backbone of the newest checkpoint. Raises InputError."""
        from passl_densecl.evaluation.features import load_backbone
        from passl_densecl.weights.files import weights_file

        self._config()
        try:
            weights_file(self.run.path)
        except InputError:
            raise InputError("the run has no checkpoint yet") from None
        return load_backbone(self.run.path)

    @cached_property
    def images(self) -> ImageSet:
        config, sources = self._config(), self.sources
        if sources.images is not None:
            return sources.images
        try:
            data = config.data.val if isinstance(config, LinearConfig) else config.data
            given = {} if sources.root is None else {"root": sources.root, "list_file": None}
            return scan_images(**data.source(**given))
        except InputError as error:
            raise InputError(f"{error}. Pass the images with {option('images')}") from None

    @cached_property
    def photographs(self) -> list[tuple[str, np.ndarray]]:
        """(name, pixels) of a few images, evenly over the set."""
        decoded: list[tuple[str, np.ndarray]] = []
        for index in spread(len(self.images), 10 * _IMAGES):
            try:
                decoded.append((printable(Path(self.images.path(index)).name), self.images.decode(index)))
            except UndecodableImage:
                continue
        if not decoded:
            raise InputError(f"none of the sampled images {self.images.source} can be decoded")
        return [decoded[index] for index in spread(len(decoded), _IMAGES)]

    def _size(self) -> int:
        """What the backbone was trained on, in pixels."""
        config = self._config()
        transforms = config.data.val_transforms if isinstance(config, LinearConfig) else config.data.transforms
        sizes = [each.size for each in transforms if isinstance(each, (RandomResizedCrop, CenterCrop))]
        return sizes[-1] if sizes else 224

    def _fine_size(self) -> int:
        """Twice that, for a finer map, from 160 to 448 pixels."""
        return max(160, min(448, 2 * self._size()))


def _flattened(content: dict[str, Any], name: Callable[[str], str] = readable) -> list[tuple[str, str]]:
    """(name, value) of all entries of an object; the keys of nested ones are joined by dots."""
    return [(key if "." in key else name(key), _value(key, value)) for key, value in flatten(content).items()]


def _value(key: str, value: object) -> str:
    if isinstance(value, float):
        is_share = key.endswith(("top1", "top5", "miou", "accuracy", "share", "chance")) and 0 <= value <= 1
        return f"{value:.2%}" if is_share else f"{value:.6g}"
    if isinstance(value, list):
        if len(value) > 40 or any(isinstance(item, list) for item in value):
            return f"{len(value)} {'rows' if isinstance(value[0], list) else 'values'}"
        return " ".join(item if isinstance(item, str) else json.dumps(item) for item in value) or "none"
    return "none" if value is None else str(value)
