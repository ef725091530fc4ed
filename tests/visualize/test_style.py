"""Files of pictures: equal pictures give equal bytes, and a file is whole or as it was."""

from __future__ import annotations

import builtins
import os
import warnings

import cv2
import pytest

from passl_densecl.disk import whole_file
from passl_densecl.errors import InputError
from passl_densecl.visualize.style import heading, new_figure, save_figure, styled


@styled
def draw(text: str = "a"):
    figure = new_figure(3, 2)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], label=f"line {text}")
    axes.legend()
    heading(figure, text, "note")
    return figure


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf", ".jpg"])
def test_equal_pictures_are_equal_files(tmp_path, ending, monkeypatch):
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF", ".jpg": b"\xff\xd8"}
    files = []
    for number in (1, 2):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(number * 10**9))  # another time of writing
        files.append(tmp_path / f"{number}{ending}")
        save_figure(draw(), files[-1])
    contents = [path.read_bytes() for path in files]
    assert contents[0] == contents[1]
    assert contents[0].startswith(starts[ending])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"1{ending}", f"2{ending}"]


def test_the_user_s_own_settings_change_nothing(tmp_path):
    import matplotlib

    save_figure(draw(), tmp_path / "a.png")
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "savefig.dpi": 10}):
        save_figure(draw(), tmp_path / "b.png")
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("name", ["cost $5 and $x", r"$\frac{$", "照片 \ud800 \udcff", r"\frac{", "_^{}%"])
def test_any_name_can_be_drawn(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(draw(name.encode("utf-8", "backslashreplace").decode()), tmp_path / "a.png")
        figure = draw("plain")
        heading(figure, name)
        save_figure(figure, tmp_path / "b.png")
    assert cv2.imread(str(tmp_path / "b.png")) is not None


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fails)
    with pytest.raises(InputError, match=r"a\.png: cannot be written: No space left"), whole_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("name", "message"), [("a.gif", "must end in .png"), ("no/a.png", "create it first"), ("d.png", "this is a folder")]
)
def test_a_wrong_output_is_named(tmp_path, name, message):
    (tmp_path / "d.png").mkdir()
    with pytest.raises(InputError, match=message):
        save_figure(draw(), tmp_path / name)


def test_without_matplotlib_the_line_that_installs_it_is_named(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match="pip install matplotlib"):
        draw()


def test_a_long_heading_is_wrapped_into_the_picture():
    figure = draw("word " * 40)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    assert figure._suptitle.get_window_extent(renderer).width <= figure.bbox.width  # type: ignore[union-attr]
