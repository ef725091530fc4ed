"""Augmentations: each against torchvision's or Pillow's result on the same pixels, and what they draw."""

from __future__ import annotations

import colorsys
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter
from pydantic import TypeAdapter, ValidationError

from passl_densecl import transforms as T
from passl_densecl.errors import InputError
from tests.reference.cases import FOLDER as REFERENCE


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """160×240×3: smooth shapes, fine texture and hard edges, in every color."""
    rng = np.random.default_rng(7)
    smooth = cv2.resize(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8), (240, 160), interpolation=cv2.INTER_CUBIC)
    image = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
    image[40:80, 60:120] = (250, 30, 10)
    image[90:130, 150:152] = 0
    return image


def difference(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    assert one.dtype == other.dtype == np.uint8
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


# --- against torchvision -------------------------------------------------------------------------------------------


def test_equals_torchvision():
    folder = REFERENCE / "augment"
    meta = json.loads((folder / "meta.json").read_text())
    for number, facts in meta["photos"].items():
        photo = read(folder / f"{number}.jpg")
        crop, whole = (read(folder / f"{number}_{name}.png") for name in ("crop224", "whole96"))
        strips = np.split(read(folder / f"{number}_strips.png"), len(meta["strips"]), axis=1)
        expected = dict(zip(meta["strips"], strips, strict=True))
        ours = T.resized_crop(photo, *facts["crop_top_left_height_width"], size=224)
        assert difference(ours, crop) <= 2.5, f"photo {number}"
        assert difference(T.resized_crop(photo, 0, 0, *photo.shape[:2], size=96), whole) <= 1.5, f"photo {number}"

        def expect(name, result, most, number=number, expected=expected):
            strip = expected.pop(name)
            assert difference(result[:, : strip.shape[1]], strip) <= most, f"photo {number}: {name}"

        for factor in (0.6, 1.4):
            expect(f"brightness_{factor}", T.adjust_brightness(crop, factor), 0.1)
            expect(f"contrast_{factor}", T.adjust_contrast(crop, factor), 0.1)
            expect(f"saturation_{factor}", T.adjust_saturation(crop, factor), 0.3)
        for shift in (-0.1, 0.07):
            expect(f"hue_{shift}", T.adjust_hue(crop, shift), 0.4)
        for sigma in (0.4, 1.0, 2.0):
            expect(f"blur_{sigma}", T.gaussian_blur(crop, sigma), 1.0)
        expect("gray", T.to_grayscale(crop), 0.1)
        expect("hflip", T.horizontal_flip(crop), 0)
        assert not expected


# --- against Pillow ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4, 2.5])
def test_brightness_contrast_saturation_equal_pillow(photo, factor):
    pillow = Image.fromarray(photo)
    for ours, theirs, mean, most in [
        (T.adjust_brightness, ImageEnhance.Brightness, 0.1, 3),
        (T.adjust_contrast, ImageEnhance.Contrast, 0.1, 3),
        (T.adjust_saturation, ImageEnhance.Color, 0.5, 1),  # Pillow rounds the gray to a whole level first
    ]:
        result, expected = ours(photo, factor), np.asarray(theirs(pillow).enhance(factor))
        assert difference(result, expected) <= mean, ours.__name__
        assert np.abs(result.astype(int) - expected).max() <= most, ours.__name__


def test_saturation_keeps_gray_gray():
    levels = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, 256, 3)
    for factor in np.linspace(0, 2, 41):
        assert (T.adjust_saturation(levels, factor) == levels).all()


def test_gray_equals_pillow(photo):
    gray = T.to_grayscale(photo)
    assert np.abs(gray[..., 0].astype(int) - np.asarray(Image.fromarray(photo).convert("L"))).max() <= 1
    assert (gray == gray[..., :1]).all()


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.07, 0.3])
def test_hue_equals_pillow(photo, shift):
    hue, saturation, value = Image.fromarray(photo).convert("HSV").split()
    turned = (np.asarray(hue).astype(int) + int(shift * 255)) % 256
    merged = Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value))
    assert difference(T.adjust_hue(photo, shift), np.asarray(merged.convert("RGB"))) <= 0.65


@pytest.mark.parametrize("shift", [-0.5, -0.34, -0.1, -0.02, 0.05, 0.1, 0.16, 0.3, 0.5])
def test_hue_is_turned_exactly(shift):
    """Against arithmetic with real numbers, for colors of every order, and with equal and extreme values."""
    colors = np.random.default_rng(0).integers(0, 256, (2000, 3))
    colors[:500] = np.random.default_rng(1).choice([0, 1, 128, 254, 255], (500, 3))
    turn = (int(shift * 255) - 0.375) / 255
    turned = T.adjust_hue(colors.astype(np.uint8).reshape(50, 40, 3), shift).reshape(-1, 3)
    for color, ours in zip(colors, turned, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*color)
        assert np.abs(ours - colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)).max() <= 0.51


def test_hue_by_a_third_exchanges_the_primary_colors():
    red = np.full((4, 4, 3), (255, 0, 0), np.uint8)
    assert difference(T.adjust_hue(red, 1 / 3), np.full((4, 4, 3), (0, 255, 0), np.uint8)) < 3
    assert difference(T.adjust_hue(red, -1 / 3), np.full((4, 4, 3), (0, 0, 255), np.uint8)) < 3


@pytest.mark.parametrize("sigma", [0.1, 0.4, 0.8, 1.3, 2.0, 3.9, 4.1, 12.0])
def test_blur_equals_pillow(photo, sigma):
    expected = np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(sigma)))
    assert difference(T.gaussian_blur(photo, sigma), expected) <= 0.9


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.7, 2.0, 3.3, 8.0])
def test_blur_neither_brightens_nor_darkens(sigma):
    for level in (1, 100, 255):
        flat = np.full((20, 30, 3), level, np.uint8)
        assert (T.gaussian_blur(flat, sigma) == flat).all()


@pytest.mark.parametrize(
    ("height", "width"), [(224, 224), (160, 240), (100, 100), (53, 200), (200, 120), (24, 36), (9, 9), (160, 40)]
)
def test_resize_equals_pillow(photo, height, width):
    result = T.resize(photo, height, width)
    expected = np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BILINEAR))
    assert difference(result, expected) <= 2.0
    assert not np.shares_memory(result, photo)


def test_resize_to_one_pixel(photo):
    assert np.abs(T.resize(photo, 1, 1).astype(int) - photo.mean((0, 1))).max() <= 16


def test_a_large_image_shrinks_without_aliasing():
    stripes = np.zeros((1200, 1600, 3), np.uint8)
    stripes[:, ::2] = 255  # one pixel white, one black: must become flat gray
    small = T.resize(stripes, 30, 40)
    assert np.abs(small.astype(int) - 127.5).max() < 6


def test_crop_keeps_out_what_lies_outside(photo):
    around = photo.copy()
    around[:30] = around[100:] = 0
    around[:, :50] = around[:, 180:] = 255
    inside = T.resized_crop(photo, 30, 50, 70, 130, 48)
    assert (T.resized_crop(around, 30, 50, 70, 130, 48) == inside).all()
    assert (T.resized_crop(photo, 31, 50, 70, 130, 48) != inside).any()


# --- the transforms ------------------------------------------------------------------------------------------------

ALL = [
    T.RandomResizedCrop(size=32),
    T.ColorJitter(p=1.0),
    T.RandomGrayscale(p=1.0),
    T.GaussianBlur(p=1.0),
    T.RandomHorizontalFlip(p=1.0),
    T.Resize(size=64),
    T.CenterCrop(size=64),
]


@pytest.mark.parametrize("transform", ALL, ids=lambda transform: transform.name)
def test_every_transform_repeats_itself_and_leaves_its_input_alone(photo, transform):
    before = photo.copy()
    first, second = (transform(photo, np.random.default_rng(3)) for _ in range(2))
    assert (first == second).all()
    assert first.dtype == np.uint8
    assert first.shape[2] == 3
    assert (photo == before).all()
    assert first.shape != photo.shape or (first != photo).any()


@pytest.mark.parametrize(
    ("transform", "share"),
    [
        (T.ColorJitter(), 0.8),
        (T.RandomGrayscale(), 0.2),
        (T.GaussianBlur(sigma=(1.0, 2.0)), 0.5),
        (T.RandomHorizontalFlip(), 0.5),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_probability(photo, transform, share):
    image, rng = photo[:16, :16].copy(), np.random.default_rng(0)
    changed = sum((transform(image, rng) != image).any() for _ in range(2000))
    assert abs(changed / 2000 - share) < 0.04


def test_probability_zero_never_and_one_always(photo):
    rng = np.random.default_rng(0)
    image = photo[:16, :16].copy()
    for kind in (T.ColorJitter, T.RandomGrayscale, T.RandomHorizontalFlip):
        assert all((kind(p=0.0)(image, rng) == image).all() for _ in range(50))
        assert all((kind(p=1.0)(image, rng) != image).any() for _ in range(50))


def test_crop_distribution():
    """Area and log ratio are even over their ranges, and the place is even over where the crop fits."""
    crop, rng = T.RandomResizedCrop(size=8), np.random.default_rng(0)
    height, width = 1000, 1000
    drawn = np.array([crop.draw(rng, height, width) for _ in range(6000)], float)
    top, left, tall, wide = drawn.T
    area, ratio = tall * wide / (height * width), wide / tall
    assert area.min() >= 0.199
    assert ratio.min() >= 0.749
    assert ratio.max() <= 1.336
    assert (top + tall).max() <= height
    assert (left + wide).max() <= width
    small = area < 0.7  # there every shape fits, so no draw is rejected
    np.testing.assert_allclose(np.quantile(area[small], [0.25, 0.5, 0.75]), [0.325, 0.45, 0.575], atol=0.015)
    np.testing.assert_allclose(
        np.quantile(np.log(ratio[small]), [0.25, 0.5, 0.75]), np.log(4 / 3) * np.array([-0.5, 0, 0.5]), atol=0.02
    )
    for start, length in ((top, tall), (left, wide)):
        place = start[small] / (1000 - length[small])
        np.testing.assert_allclose(np.quantile(place, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)


def test_crop_of_an_extreme_shape_falls_back_to_the_middle():
    crop = T.RandomResizedCrop(size=8, scale=(1.0, 1.0))
    assert crop.draw(np.random.default_rng(0), 100, 1000) == T.Crop(0, 433, 100, 133)
    assert crop.draw(np.random.default_rng(0), 1000, 100) == T.Crop(433, 0, 133, 100)
    assert T.RandomResizedCrop(size=8, scale=(0.2, 0.2)).draw(np.random.default_rng(0), 1, 1) == T.Crop(0, 0, 1, 1)


def test_crop_uses_what_it_draws(photo):
    crop = T.RandomResizedCrop(size=40)
    for seed in range(5):
        drawn = crop.draw(np.random.default_rng(seed), *photo.shape[:2])
        expected = T.resized_crop(photo, *drawn, size=40)
        assert (crop(photo, np.random.default_rng(seed)) == expected).all()


def test_color_jitter_draws_every_order_and_the_whole_range(photo, monkeypatch):
    seen: list[tuple[int, float]] = []

    def record(which):
        return lambda image, amount: seen.append((which, amount)) or image

    monkeypatch.setattr(T, "_ADJUSTMENTS", tuple(record(which) for which in range(4)))
    jitter, rng = T.ColorJitter(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1, p=1.0), np.random.default_rng(0)
    for _ in range(2400):
        jitter(photo, rng)
    orders = [tuple(which for which, _ in seen[start : start + 4]) for start in range(0, len(seen), 4)]
    counts = {order: orders.count(order) for order in set(orders)}
    assert len(counts) == 24
    assert all(60 <= count <= 145 for count in counts.values())  # 100 expected, standard deviation 10
    for which, (low, high) in enumerate([(0.6, 1.4), (0.7, 1.3), (0.8, 1.2), (-0.1, 0.1)]):
        amounts = np.array([amount for number, amount in seen if number == which])
        span = high - low
        np.testing.assert_allclose(
            np.quantile(amounts, [0, 0.25, 0.5, 0.75, 1]), np.linspace(low, high, 5), atol=span / 25
        )


def test_color_jitter_of_strength_zero_does_nothing(photo):
    still = T.ColorJitter(brightness=0, contrast=0, saturation=0, hue=0, p=1.0)
    assert (still(photo, np.random.default_rng(0)) == photo).all()


def test_blur_draws_sigma_evenly(photo, monkeypatch):
    sigmas: list[float] = []
    monkeypatch.setattr(T, "gaussian_blur", lambda image, sigma: sigmas.append(sigma) or image)
    blur, rng = T.GaussianBlur(p=1.0), np.random.default_rng(0)
    for _ in range(3000):
        blur(photo, rng)
    np.testing.assert_allclose(np.quantile(sigmas, [0, 0.25, 0.5, 0.75, 1]), np.linspace(0.1, 2.0, 5), atol=0.06)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(160, 240, (64, 96)), (240, 160, (96, 64)), (64, 99, (64, 99))]
)
def test_resize_sets_the_shorter_side(height, width, expected):
    image = np.zeros((height, width, 3), np.uint8)
    assert T.Resize(size=64)(image, np.random.default_rng(0)).shape[:2] == expected


def test_center_crop(photo):
    assert (T.center_crop(photo, 100) == photo[30:130, 70:170]).all()
    padded = T.center_crop(photo, 200)
    assert padded.shape == (200, 200, 3)
    assert (padded[20:180] == photo[:, 20:220]).all()
    assert not padded[:20].any()
    assert not padded[180:].any()


def test_apply_runs_all_in_order_from_one_generator(photo):
    recipe = [T.RandomResizedCrop(size=48), T.ColorJitter(), T.GaussianBlur(), T.RandomHorizontalFlip()]
    rng, expected = np.random.default_rng(5), photo
    for transform in recipe:
        expected = transform(expected, rng)
    assert (T.apply(recipe, photo, np.random.default_rng(5)) == expected).all()
    assert (T.apply(recipe, photo, np.random.default_rng(6)) != expected).any()
    assert T.apply([], photo, rng) is photo


# --- as configuration ----------------------------------------------------------------------------------------------

entry = TypeAdapter(T.Transform)


def test_configuration_chooses_by_name():
    crop = entry.validate_python({"name": "RandomResizedCrop", "size": 96, "scale": [0.08, 1]})
    assert crop == T.RandomResizedCrop(size=96, scale=(0.08, 1.0))
    assert entry.validate_python(crop.model_dump()) == crop
    assert {transform.name for transform in ALL} == {type(transform).__name__ for transform in ALL}


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "RandomResizedCrop"},
        {"name": "RandomResizedCrop", "size": 0},
        {"name": "RandomResizedCrop", "size": "224"},
        {"name": "RandomResizedCrop", "size": 224, "scale": [1.0, 0.2]},
        {"name": "RandomResizedCrop", "size": 224, "scale": [0.0, 1.0]},
        {"name": "RandomResizedCrop", "size": 224, "scale": [0.2, 1.2]},
        {"name": "RandomResizedCrop", "size": 224, "ratio": [0, 1]},
        {"name": "RandomResizedCrop", "size": 224, "interpolation": "cubic"},
        {"name": "ColorJitter", "hue": 0.6},
        {"name": "ColorJitter", "brightness": -0.1},
        {"name": "ColorJitter", "p": 1.1},
        {"name": "RandomGrayscale", "p": -0.1},
        {"name": "GaussianBlur", "sigma": [0, 2]},
        {"name": "GaussianBlur", "sigma": [2, 1]},
        {"name": "GaussianBlur", "sigma": [0.1, float("inf")]},
        {"name": "GaussianBlur", "sigma": 2.0},
        {"name": "Resize", "size": -1},
        {"name": "Solarize"},
    ],
    ids=str,
)
def test_configuration_refuses(wrong):
    with pytest.raises(ValidationError):
        entry.validate_python(wrong)


def test_a_transform_cannot_be_changed():
    with pytest.raises(ValidationError):
        T.RandomGrayscale().p = 0.5  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("transforms", "size"),
    [
        ((T.RandomResizedCrop(size=48), T.ColorJitter(), T.GaussianBlur()), 48),
        ((T.Resize(size=64), T.CenterCrop(size=48), T.RandomGrayscale()), 48),
        ((T.RandomResizedCrop(size=48), T.Resize(size=32)), 32),
        ((T.Resize(size=64), T.RandomHorizontalFlip()), None),
        ((), None),
    ],
)
def test_output_size(transforms, size):
    if size is None:
        with pytest.raises(InputError, match=r"do not fix the size.*CenterCrop"):
            T.output_size(transforms)
        return
    assert T.output_size(transforms) == size
    for height, width in ((70, 90), (20, 31)):
        image = T.apply(transforms, np.zeros((height, width, 3), np.uint8), np.random.default_rng(0))
        assert image.shape == (size, size, 3)
