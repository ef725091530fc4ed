"""Shared by all pictures: colors, fonts, and writing files.

Colors are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which color-blind people can distinguish. Line
style or marker repeats the meaning of every color.
"""

from __future__ import annotations

import base64
import io
import logging
import warnings
from collections.abc import Callable
from functools import lru_cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import cv2
import numpy as np

from passl_densecl.disk import whole_file
from passl_densecl.errors import InputError, option
from passl_densecl.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PINK, SKY, YELLOW = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
INK, GRAY, PALE = "#222222", "#8c8c8c", "#d9d9d9"

# The first of two views, images or encoders, and the second.
FIRST, SECOND = BLUE, ORANGE
# State of a match → color and line style.
RIGHT, WRONG, UNSEEN = BLUE, ORANGE, GRAY
# Several runs, or several classes.
SERIES = (BLUE, ORANGE, GREEN, PINK, SKY, YELLOW, INK)
LINES = ("solid", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HEAT = "viridis"  # monotonic in brightness

FORMATS = (".png", ".svg", ".pdf", ".jpg")
WIDTH = 9.0  # inches: 900 pixels
DPI = 100

# Fonts for names in other scripts, where installed; the first one covers nearly everything else.
_FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "SimHei")
_SETTINGS: dict[str, Any] = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.edgecolor": GRAY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": "#e6e6e6",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "figure.dpi": DPI,
    "text.parse_math": False,  # a dollar in a file name stays a dollar
    "svg.hashsalt": "passl_densecl",  # equal pictures give equal files
}
# Metadata that would depend on the clock or the installation.
_METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}

P = ParamSpec("P")
T = TypeVar("T")


def need_matplotlib() -> None:
    """Raise InputError, with the install command, when matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("pictures need matplotlib: pip install matplotlib") from None


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Run a drawing function with the settings of this module, independent of the user's matplotlibrc."""

    @wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        need_matplotlib()
        import matplotlib

        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it reports its search for fonts
        with matplotlib.rc_context(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*Glyph .* missing from")
            matplotlib.rcdefaults()
            matplotlib.rcParams.update({**_SETTINGS, "font.family": list(_installed_fonts())})  # type: ignore[arg-type]
            return draw(*args, **kwargs)

    return wrapped


@lru_cache(maxsize=1)
def _installed_fonts() -> tuple[str, ...]:
    from matplotlib.font_manager import fontManager

    names = {font.name for font in fontManager.ttflist}
    return tuple(name for name in _FONTS if name in names) or ("sans-serif",)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches. Without pyplot: no window, no global state, any thread."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08))


def check_output(path: Path, endings: tuple[str, ...] = FORMATS, name: str = "output") -> None:
    """Raise InputError, before minutes of work, for a missing folder or a name with another ending."""
    if path.suffix.lower() not in endings:
        raise InputError(f"{option(name, path)}: the name must end in {' or '.join(endings)}")
    if not path.parent.is_dir():
        raise InputError(f"{option(name, path)}: the folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise InputError(f"{option(name, path)}: this is a folder; pass the name of a file in it")


@styled
def save_figure(figure: Figure, path: Path, dpi: int | None = None) -> None:
    """Write a figure in the format of the path's ending, completely or not at all; equal figures give equal bytes.

    Raises:
        InputError: another ending, no such folder, or a failed write.
    """
    check_output(path)
    picture = _rendered(figure, path.suffix.lower(), dpi)
    with whole_file(path) as file:
        file.write(picture)


@styled
def data_uri(figure: Figure, *, photographs: bool = False, dpi: int = 144) -> str:
    """The figure as a `data:` URL, for a page without other files: PNG, or JPEG for photographs."""
    kind = "jpeg" if photographs else "png"
    data = _rendered(figure, ".jpg" if photographs else ".png", dpi)
    return f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii")


def _rendered(figure: Figure, ending: str, dpi: int | None) -> bytes:
    memory = io.BytesIO()
    options: dict[str, Any] = {"pil_kwargs": {"quality": 88}} if ending == ".jpg" else {"metadata": _METADATA[ending]}
    figure.savefig(memory, format=ending[1:], dpi=dpi or DPI, **options)
    return memory.getvalue()


def heading(figure: Figure, *texts: str | None) -> None:
    """Lines of text above the figure, wrapped to its width."""
    import textwrap

    letters = int(figure.get_figwidth() * 12)  # average width at this font size
    lines = [textwrap.fill(printable(text), letters) for text in texts if text]
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=11)


def show_image(axes: Axes, image: np.ndarray) -> None:
    """Show uint8 RGB (height, width, 3) without ticks, scales or frame."""
    axes.imshow(image, interpolation="bicubic" if max(image.shape[:2]) < 256 else "antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def frame(axes: Axes, color: str, line: Any = "solid", width: float = 2.5) -> None:
    """Draw a frame around an image."""
    for spine in axes.spines.values():
        spine.set(visible=True, edgecolor=color, linestyle=line, linewidth=width)


def at_most(image: np.ndarray, side: int) -> np.ndarray:
    """The image, reduced to a longer side of at most `side` pixels."""
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
