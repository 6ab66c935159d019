import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.sampling.transforms import Augmentation, Crop, change_colours, draw_colours, resize_short_side


@pytest.mark.parametrize(("height", "width"), [(60, 80), (80, 60), (61, 47), (10, 13), (16, 16)])
@pytest.mark.parametrize("size", [16, 40])
def test_resizing_equals_pillow(height: int, width: int, size: int) -> None:
    y, x = np.mgrid[:height, :width]
    image = np.stack([(x * 7 + y * 3) % 256, (x * y) % 256, 255 * ((x // 4 + y // 4) % 2)], -1).astype(np.uint8)
    resized = resize_short_side(image, size)
    expected = np.asarray(Image.fromarray(image).resize(resized.shape[1::-1], Image.Resampling.BICUBIC))
    assert min(resized.shape[:2]) == size
    assert abs(resized.shape[0] / resized.shape[1] - height / width) < 0.06
    # Both round after each of two passes; without antialiasing the checks would differ by more than 100.
    np.testing.assert_allclose(resized.astype(int), expected.astype(int), atol=2)


def test_crops_are_where_they_should_be() -> None:
    image = np.arange(5 * 8 * 3, dtype=np.uint8).reshape(5, 8, 3)
    np.testing.assert_array_equal(Crop(5, 8, 5)(image), image[:, 1:6])
    rng = np.random.default_rng(0)
    corners = {tuple(Crop(5, 8, 5, rng)(image)[0, 0].tolist()) for _ in range(200)}
    assert corners == {tuple(image[0, left].tolist()) for left in range(4)}  # every place it fits
    upright = {tuple(Crop(8, 5, 5, rng)(image.transpose(1, 0, 2))[0, 0].tolist()) for _ in range(200)}
    assert upright == corners


@pytest.mark.parametrize("rng", [None, np.random.default_rng(0)])
def test_squares_are_uint8_of_the_size(rng: np.random.Generator | None) -> None:
    square = Crop(9, 31, 16, rng)(np.zeros((9, 31, 3), np.uint8))
    assert square.shape == (16, 16, 3)
    assert square.dtype == np.uint8


class Drawn:
    """A generator whose every draw is known: `at` says where between low and high each lies."""

    def __init__(self, *at: float) -> None:
        self.at = list(at)

    def uniform(self, low: Any, high: Any, size: int | None = None) -> np.ndarray:
        low, high = np.broadcast_arrays(np.asarray(low, float), high) if size is None else (np.full(size, low), high)
        return low + (high - low) * np.array([self.at.pop(0) for _ in range(low.size)]).reshape(low.shape)


RANDOM_IMAGE = np.random.default_rng(0).integers(60, 190, (4, 4, 3), dtype=np.uint8)


def changed(strength: float, **at: float) -> np.ndarray:
    """`RANDOM_IMAGE` with all draws in the middle, where nothing changes, but for the given ones."""
    names = ("contrast", "saturation", "hue", "brightness")
    rng: Any = Drawn(*(at.get(name, 0.5) for name in names))
    return change_colours(RANDOM_IMAGE, *draw_colours(strength, rng)).astype(int)


def test_colours_change_as_documented() -> None:
    before = RANDOM_IMAGE.astype(float)
    grey = before.mean(-1, keepdims=True)
    expected = {
        "contrast": 127.5 + 0.5 * (before - 127.5),
        "saturation": grey + 0.5 * (before - grey),
        "brightness": before - 32,
    }
    np.testing.assert_array_equal(changed(0.5), before)
    for name, values in expected.items():
        np.testing.assert_allclose(changed(0.5, **{name: 0.0}), values, atol=0.51)  # rounded to whole steps
    third_of_a_turn = 0.5 + (2 * math.pi / 3) / (2 * math.pi)
    np.testing.assert_array_equal(changed(1.0, hue=third_of_a_turn), before[..., [2, 0, 1]])  # red becomes green
    np.testing.assert_array_equal(changed(1.0, saturation=0.0), grey.repeat(3, -1).round())
    bright = changed(1.0, brightness=1.0, contrast=1.0)
    np.testing.assert_allclose(bright, (2 * before - 127.5 + 64).clip(0, 255), atol=0.51)
    assert bright.max() == 255  # clamped, not wrapped


@pytest.mark.parametrize("name", ["height", "width", "diagonal"])
def test_half_of_the_clips_are_flipped(name: Any) -> None:
    flipped = {"height": RANDOM_IMAGE[::-1], "width": RANDOM_IMAGE[:, ::-1], "diagonal": np.rot90(RANDOM_IMAGE)[::-1]}
    rng, augmentation = np.random.default_rng(0), Augmentation(flips=[name])
    found = Counter(Crop(4, 4, 4, rng, augmentation)(RANDOM_IMAGE).tobytes() for _ in range(400))
    assert set(found) == {RANDOM_IMAGE.tobytes(), flipped[name].tobytes()}
    assert 150 < found[flipped[name].tobytes()] < 250  # 200 +- 5 standard deviations


def test_half_of_the_clips_are_to_be_read_backwards() -> None:
    rng = np.random.default_rng(0)
    squares = [Crop(4, 4, 4, rng, Augmentation(flips=["time"])) for _ in range(400)]
    assert 150 < sum(square.backwards for square in squares) < 250
    assert all(np.array_equal(square(RANDOM_IMAGE), RANDOM_IMAGE) for square in squares)


@pytest.mark.parametrize(
    ("rows", "widest", "closest"), [(64, 2.0, 1.0), (40, 1.25, 1.0), (32, 1.0, 1.0), (16, 0.5, 0.5)]
)
def test_zoom_scales_before_the_crop_and_not_beyond_the_files_own_pixels(
    rows: int, widest: float, closest: float
) -> None:
    """How many of the file's pixels one pixel of a square spans, on a slope: never less than one, but in small files."""
    slope = np.tile(np.arange(84, dtype=np.uint8)[None, :, None] * 3, (rows, 1, 3))
    spans = []
    for seed in range(60):
        square = Crop(rows, 84, 32, np.random.default_rng(seed), Augmentation(zoom=2.0))(slope).astype(float)
        assert square.shape == (32, 32, 3)
        spans.append((square[16, 26, 0] - square[16, 6, 0]) / 3 / 20)
    tolerance = 0.04  # a step of 255, and sizes in whole pixels
    assert closest - tolerance < min(spans) < closest + 0.08
    assert widest - 0.13 < max(spans) < widest + tolerance


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_scaling_interpolates_as_asked(interpolation: Any) -> None:
    """An edge: bilinear stays between its sides, bicubic overshoots them."""
    edge = np.full((12, 12, 3), 64, dtype=np.uint8)
    edge[:, 6:] = 192
    scaled = Crop(12, 12, 30, interpolation=interpolation)(edge)
    assert (scaled.min() < 64 and scaled.max() > 192) == (interpolation == "bicubic")
    assert scaled.shape == (30, 30, 3)


@pytest.mark.parametrize(("height", "width"), [(30, 90), (90, 30), (24, 40), (50, 50), (8, 9)])
def test_a_rectangle_is_covered_and_no_more(height: int, width: int) -> None:
    """Of a slope in both directions: the scale is that of the side that needs it, and the crop is centred."""
    rows, columns = np.mgrid[:height, :width]
    step = 250 // max(height, width)
    slope = np.stack([rows * step, columns * step, rows * 0], -1).astype(np.uint8)
    crop = Crop(height, width, (24, 40), interpolation="bilinear")(slope).astype(float) / step
    assert crop.shape == (24, 40, 3)
    scale = max(24 / height, 40 / width)
    down, across = np.diff(crop[6:-6, 20, 0]).mean(), np.diff(crop[12, 8:-8, 1]).mean()
    assert down == pytest.approx(1 / scale, rel=0.05)  # sizes in whole pixels, values in whole steps
    assert across == pytest.approx(1 / scale, rel=0.05)
    assert crop[11:13, :, 0].mean() == pytest.approx((height - 1) / 2, abs=1)
    assert crop[:, 19:21, 1].mean() == pytest.approx((width - 1) / 2, abs=1)


def test_crops_of_a_rectangle_are_everywhere_alike() -> None:
    image = np.arange(6 * 7 * 3, dtype=np.uint8).reshape(6, 7, 3)
    rng = np.random.default_rng(0)
    corners = Counter(tuple(Crop(6, 7, (6, 4), rng)(image)[0, 0].tolist()) for _ in range(800))
    assert corners.keys() == {tuple(image[0, left].tolist()) for left in range(4)}
    assert min(corners.values()) > 150  # 200 expected each, standard deviation 12
