"""Shared fixtures: small photographs, and the removal of temporary files."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Shells start background jobs with SIGINT ignored, and the programs that tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-folder tree of 40 small synthetic photographs in 4 classes: colored shapes on noise."""
    return write_photos(tmp_path_factory.mktemp("photos"), 40)


@pytest.fixture(scope="session")
def few_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 16 of them: two steps of eight."""
    return write_photos(tmp_path_factory.mktemp("few"), 16)


def write_photos(root: Path, count: int) -> Path:
    import cv2
    import numpy as np

    for index in range(count):
        rng = np.random.default_rng(index)
        label = index % 4
        image = rng.integers(0, 90, (72, 80, 3), dtype=np.uint8)
        color = [(220, 40, 40), (40, 220, 40), (40, 40, 220), (220, 220, 40)][label]
        x, y = (int(value) for value in rng.integers(20, 52, 2))
        if label % 2:
            cv2.circle(image, (x, y), 16, color, -1)
        else:
            cv2.rectangle(image, (x - 15, y - 15), (x + 15, y + 15), color, -1)
        (root / f"class_{label}").mkdir(exist_ok=True)
        cv2.imwrite(str(root / f"class_{label}" / f"{index:02d}.png"), image)
    return root


@pytest.fixture(scope="module", autouse=True)
def _tidy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, photos: Path, few_photos: Path
) -> Iterator[None]:
    """Remove what a module's fixtures wrote, unless a test failed in it; the photographs are for all modules."""
    before, failed = set(tmp_path_factory.getbasetemp().iterdir()), request.session.testsfailed
    yield
    if request.session.testsfailed == failed:
        for path in set(tmp_path_factory.getbasetemp().iterdir()) - before:
            path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)
