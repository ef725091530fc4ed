"""What tests share: the folder of real images and reference values, where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `../shared` beside the repository (or $DENSECL_SHARED); tests that want it skip without it."""
    folder = Path(os.environ.get("DENSECL_SHARED", ROOT.parent / "shared"))
    if not (folder / "reference").is_dir():
        pytest.skip(f"no reference data at {folder}")
    return folder
