import numpy as np
import pytest
import torch
from PIL import Image

from data.transforms import centre_crop, random_crop, resize_short_side, to_square


@pytest.mark.parametrize(("height", "width"), [(60, 80), (80, 60), (61, 47), (10, 13), (16, 16)])
@pytest.mark.parametrize("size", [16, 40])
def test_resizing_equals_pillow(height: int, width: int, size: int) -> None:
    y, x = np.mgrid[:height, :width]
    image = np.stack([(x * 7 + y * 3) % 256, (x * y) % 256, 255 * ((x // 4 + y // 4) % 2)], -1).astype(np.uint8)
    resized = resize_short_side(torch.from_numpy(image[None]), size)[0].numpy()
    expected = np.asarray(Image.fromarray(image).resize(resized.shape[1::-1], Image.Resampling.BICUBIC))
    assert min(resized.shape[:2]) == size
    assert abs(resized.shape[0] / resized.shape[1] - height / width) < 0.06
    # Both round after each of two passes; without antialiasing the checks would differ by more than 100.
    np.testing.assert_allclose(resized.astype(int), expected.astype(int), atol=2)


def test_crops_are_where_they_should_be() -> None:
    frames = torch.arange(2 * 5 * 8 * 3).view(2, 5, 8, 3)
    assert torch.equal(centre_crop(frames, 4), frames[:, 0:4, 2:6])
    rng = np.random.default_rng(0)
    corners = {tuple(random_crop(frames, 4, rng)[0, 0, 0].tolist()) for _ in range(200)}
    assert len(corners) == 2 * 5  # every place it fits


@pytest.mark.parametrize("rng", [None, np.random.default_rng(0)])
def test_squares_are_uint8_of_the_size(rng: np.random.Generator | None) -> None:
    square = to_square(np.zeros((3, 9, 31, 3), np.uint8), 16, rng)
    assert square.shape == (3, 16, 16, 3)
    assert square.dtype == torch.uint8
