"""The parts of a report as HTML: one file without scripts that fetches nothing, for narrow and wide screens."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from passl_densecl.errors import InputError
from passl_densecl.text import printable
from passl_densecl.visualize.style import LINES, SERIES, data_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Section = tuple[str, Callable[[], Iterable[str]]]  # a title, and what makes the HTML below it

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --page: #ffffff; --card: #f6f8fa; --line: #d1d9e0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9198a1; --page: #0d1117; --card: #161b22; --line: #30363d; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 1rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .2rem; overflow-wrap: anywhere; }
main { min-width: 0; }
p, figcaption, td, th, summary, pre { overflow-wrap: anywhere; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
nav { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .9rem; margin-top: .6rem; }
nav a { color: var(--soft); padding: .15rem 0; }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
.grid { margin: .6rem 0; }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 6px; }
figcaption { padding-top: .3rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 500; color: var(--soft); }
td { font-variant-numeric: tabular-nums; }
.pairs th { width: 38%; }
.scroll { overflow-x: auto; }
.scroll th, .scroll td { min-width: 7rem; }
.whole { white-space: nowrap; }
.scroll tbody th { white-space: pre-wrap; }
svg { display: inline-block; vertical-align: middle; background: #fff; margin-right: .4rem; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 6px; }
details { padding: .5rem .8rem; margin: .6rem 0; }
summary { cursor: pointer; font-weight: 500; }
pre { margin: .6rem 0 0; font-size: .82rem; line-height: 1.4; white-space: pre-wrap; }
.note { background: var(--card); border-left: 3px solid var(--line); padding: .5rem .8rem; margin: .6rem 0; }
@media (min-width: 60rem) {
  body { display: grid; grid-template-columns: 10.5rem minmax(0, 1fr); column-gap: 2rem; }
  header { grid-column: 1 / -1; }
  nav { position: sticky; top: 1rem; align-self: start; flex-direction: column; padding-top: 2.2rem; }
}
""".strip()


def build_page(
    title: str, subtitle: str, sections: Sequence[Section], progress: Callable[[str], None] | None = None
) -> tuple[str, list[str]]:
    """The page, and a reason for each missing section.

    A section that cannot be made (images not on this machine, no checkpoint yet) is replaced by the reason; the others
    are not affected. One that makes nothing is left out. `progress` is called with the title of each section before it
    is made.
    """
    missing: list[str] = []
    links: list[str] = []
    parts: list[str] = []
    for name, make in sections:
        if progress is not None:
            progress(name)
        try:
            body = "".join(make())
        except InputError as error:
            missing.append(f"{name}: {error}")
            body = note(f"Not shown: {error}")
        if body:
            anchor = re.sub("[^a-z]+", "-", name.lower())
            links.append(f'<a href="#{anchor}">{text(name)}</a>\n')
            parts.append(f'<section id="{anchor}">\n<h2>{text(name)}</h2>\n{body}</section>\n')
    return _page(text(title), text(subtitle), "".join(links), "".join(parts)), missing


def _page(title: str, subtitle: str, links: str, body: str) -> str:
    # This policy guarantees a single file: browsers neither fetch nor run anything for this page.
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{title} · report</title>
<style>
{_STYLE}
</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="soft">{subtitle}</p>
</header>
<nav>
{links}</nav>
<main>
{body}</main>
</body>
</html>
"""


def text(value: object) -> str:
    """Any value as escaped text."""
    return html.escape(printable(str(value)), quote=True)


def soft(sentence: str) -> str:
    return f'<p class="soft">{text(sentence)}</p>\n'


def note(sentence: str) -> str:
    return f'<p class="note">{text(sentence)}</p>\n'


def folded(title: str, body: str) -> str:
    return f"<details><summary>{text(title)}</summary>{body}</details>\n"


def figure(drawn: Figure, alt: str, caption: str = "", *, photographs: bool = False) -> str:
    width, height = (round(side * 100) for side in drawn.get_size_inches())
    source = data_uri(drawn, photographs=photographs)
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="{source}" width="{width}" height="{height}" alt="{text(alt)}">{below}</figure>\n'


def grid(figures: Iterable[str]) -> Iterator[str]:
    yield '<div class="grid">\n'
    yield from figures
    yield "</div>\n"


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """A table of names with their values."""
    body = "".join(f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>\n' for name, value in rows)
    return f'<table class="pairs"><tbody>\n{body}</tbody></table>\n'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, lines: bool = False) -> str:
    """A table with a head; the first column names the rows. It scrolls by itself where it is too wide.

    `lines`: a column each for the runs of the curves, whose line is shown above it.
    """
    marks = ["", *(_line(number) if lines else "" for number in range(len(head) - 1))]
    top = "".join(f'<th scope="col">{mark}{text(cell)}</th>' for mark, cell in zip(marks, head, strict=True))
    body = "".join(
        f'<tr><th scope="row">{text(name)}</th>{"".join(f"<td>{_unbroken(cell)}</td>" for cell in cells)}</tr>\n'
        for name, *cells in rows
    )
    head_row = f"<thead>\n<tr>{top}</tr>\n</thead>"
    return f'<div class="scroll"><table>{head_row}<tbody>\n{body}</tbody></table></div>\n'


def _unbroken(cell: str) -> str:
    """A figure with its error and unit on one line."""
    return re.sub(r"[0-9.]+ ± [0-9.]+(?: %)?", r'<span class="whole">\g<0></span>', text(cell))


def legend(names: Sequence[str]) -> str:
    """The names of the runs with their lines in the curves."""
    return f"<p>{'<br>'.join(f'{_line(number)}{text(name)}' for number, name in enumerate(names))}</p>\n"


def _line(number: int) -> str:
    """The color and line style of a run in the curves."""
    style = LINES[number % len(LINES)]
    dashes = "" if isinstance(style, str) else f' stroke-dasharray="{" ".join(str(2 * each) for each in style[1])}"'
    line = f'<line x1="0" y1="5" x2="36" y2="5" stroke="{SERIES[number % len(SERIES)]}" stroke-width="3"{dashes}/>'
    return f'<svg width="36" height="10" aria-hidden="true">{line}</svg>'
