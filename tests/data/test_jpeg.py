"""The size in the header of a JPEG, and views of large photographs that are decoded at reduced size."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from passl_densecl.data import datasets
from passl_densecl.data.datasets import PairDataset, scan_images
from passl_densecl.data.images import UndecodableImage, checked_size, decode_bytes, decode_pixels
from passl_densecl.transforms import ColorJitter, RandomHorizontalFlip, RandomResizedCrop, apply

RECIPE = (RandomResizedCrop(size=96), ColorJitter(), RandomHorizontalFlip())


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 RGB, with detail at every scale, as photographs have."""
    rng, total = np.random.default_rng(seed), np.zeros((height, width, 3))
    for cells in (3, 9, 27, 81):
        noise = rng.standard_normal((cells, cells, 3)).astype(np.float32)
        total += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) / cells**0.5
    return np.clip(128 + 60 * total, 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, mode: str = "RGB", orientation: int | None = None, **options: object) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, "jpeg", exif=exif, **options)
    return file.getvalue()


@pytest.mark.parametrize("orientation", [None, 1, 2, 3, 4, 5, 6, 7, 8, 99])
@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_the_header_tells_the_upright_size(orientation, reduction):
    data = jpeg(photograph(90, 133), orientation=orientation)
    height, width = checked_size(data, "it") or (0, 0)
    assert (height, width) == ((133, 90) if orientation in (5, 6, 7, 8) else (90, 133))
    shape = decode_pixels(data, "it", reduction).shape
    assert shape == (-(-height // reduction), -(-width // reduction), 3)


@pytest.mark.parametrize(
    ("mode", "options"),
    [("RGB", {"progressive": True}), ("L", {}), ("CMYK", {}), ("RGB", {"comment": b"\xff\xc0" * 9})],
)
def test_every_kind_of_jpeg_has_its_size(mode, options):
    assert checked_size(jpeg(photograph(20, 31), mode, **options), "it") == (20, 31)


def test_a_damaged_header_raises_nothing():
    data, rng = bytearray(jpeg(photograph(30, 40), orientation=6)[:700]), np.random.default_rng(0)
    for _ in range(3000):
        broken = bytearray(data[: rng.integers(2, len(data))])
        for place in rng.integers(2, len(broken), 4) if len(broken) > 2 else ():
            broken[place] = rng.integers(0, 256)
        try:
            size = checked_size(bytes(broken), "it")
        except UndecodableImage:  # a size beyond the limit
            continue
        assert size is None or min(size) >= 0


@pytest.fixture
def reductions(monkeypatch):
    """The reductions that were asked for."""
    asked = []

    def spy(data, path, reduction=1):
        asked.append(reduction)
        return decode_pixels(data, path, reduction)

    monkeypatch.setattr(datasets, "decode_pixels", spy)
    return asked


def views(folder, data: bytes, epoch: int = 0) -> tuple[np.ndarray, np.ndarray]:
    (folder / "photo.jpg").write_bytes(data)
    return PairDataset(scan_images(folder), RECIPE, seed=1)[epoch, 0][:2]


def from_all_pixels(data: bytes, epoch: int = 0) -> list[np.ndarray]:
    image = decode_bytes(data, "it")
    return [apply(RECIPE, image, np.random.default_rng([1, epoch, 0, view])) for view in (0, 1)]


@pytest.mark.parametrize("orientation", [1, 6])
def test_views_of_a_large_photograph_hardly_differ(tmp_path, reductions, orientation):
    data = jpeg(photograph(900, 1300), orientation=orientation, quality=92)
    for epoch in range(6):
        for ours, expected in zip(views(tmp_path, data, epoch), from_all_pixels(data, epoch), strict=True):
            assert ours.shape == (96, 96, 3)
            assert np.abs(ours.astype(int) - expected).mean() < 4.5
            assert np.abs(ours.astype(int) - expected[::-1]).mean() > 9  # the comparison can fail
    assert set(reductions) == {4}  # the shorter side of a crop is at least 4 × 96 here, and less than 8 × 96


def test_views_of_a_small_photograph_are_those_of_all_its_pixels(tmp_path, reductions):
    data = jpeg(photograph(130, 170))
    for ours, expected in zip(views(tmp_path, data), from_all_pixels(data), strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert reductions == [1]


@pytest.mark.parametrize("told", [(170, 130), (1300, 1700), (1, 1)])
def test_a_header_that_is_wrong_changes_nothing(tmp_path, monkeypatch, told):
    data = jpeg(photograph(130, 170))
    monkeypatch.setattr(datasets, "checked_size", lambda data, path: told)
    for ours, expected in zip(views(tmp_path, data), from_all_pixels(data), strict=True):
        np.testing.assert_array_equal(ours, expected)
