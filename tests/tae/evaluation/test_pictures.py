"""Pictures that people look at: where each one lies in a video, what the latents' picture shows."""

import numpy as np
import pytest
import torch

from tae.evaluation.pictures import (
    LINE,
    MAX_VIDEO_SIZE,
    OUTLIER_COLOUR,
    latent_picture,
    mosaic,
    mosaic_columns,
    places,
    reduced,
    reduction,
    side_by_side,
)
from tae.losses.outlier import outlier_rate


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_each_picture_lies_where_the_page_looks_for_it(count: int) -> None:
    pictures = [torch.full((2, 6, 10, 3), 40 * i, dtype=torch.uint8) for i in range(count)]
    columns = mosaic_columns(count)
    whole = mosaic(pictures, columns)
    covered = torch.zeros(whole.shape[1:3], dtype=torch.bool)
    for picture, (x, y) in zip(pictures, places(count, 6, 10, columns), strict=True):
        assert torch.equal(whole[:, y : y + 6, x : x + 10], picture)
        covered[y : y + 6, x : x + 10] = True
    assert (whole[:, ~covered] == 255).all(), "white between"


def test_a_video_of_many_large_pictures_stays_playable() -> None:
    assert reduction(2, 256, 256) == 1
    for count in (3, 8, 30):
        factor, columns = reduction(count, 1080, 1920), mosaic_columns(count)
        assert columns * (1920 // factor + LINE) <= MAX_VIDEO_SIZE + columns * LINE
    frames = torch.randint(0, 256, (2, 9, 8, 3)).byte()
    assert reduced(frames, 1) is frames
    expected = frames[:, :8].double().reshape(2, 4, 2, 4, 2, 3).mean(dim=(2, 4))
    # The mean of four whole numbers may lie half way between two; either is right.
    assert (reduced(frames, 2).double() - expected).abs().max() <= 0.5


def test_the_latents_picture_has_every_channel_and_the_outliers() -> None:
    latents = torch.randn(3, 2, 6, 5)
    latents[:, 1, 4, 2] = 50.0
    picture, about = latent_picture(latents)
    assert picture.shape == (2 * 6, 4 * 5, 3)
    assert about | {"outliers": None} == {"channels": 3, "frames": 2, "height": 6, "width": 5, "outliers": None}
    assert np.mean(about["outliers"]) == pytest.approx(outlier_rate(latents[None]).item())
    assert tuple(picture[6 + 4, 3 * 5 + 2]) == OUTLIER_COLOUR
    assert (picture[6 + 4, 2::5][:3] == 255).all(), "beyond the range of grey"
    channel = latents[1]
    grey = ((channel - channel.mean()) / (5 * channel.std(correction=0)) + 0.5).clamp(0, 1) * 255
    assert np.abs(picture[:, 5:10, 0].astype(float) - grey.reshape(12, 5).numpy()).max() <= 0.5 + 1e-3


def test_constant_latents_have_no_outliers() -> None:
    picture, about = latent_picture(torch.ones(2, 1, 4, 4))
    assert about["outliers"] == [0.0]
    assert len(np.unique(picture[:, :8])) == 1


def test_side_by_side_enlarges_small_clips() -> None:
    left = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    right = 255 - left
    both = side_by_side(left, right)
    assert both.shape == (2, 256, 516, 3)
    assert torch.equal(both[:, ::4, :256:4], left)
    assert torch.equal(both[:, ::4, 260::4], right)
    assert (both[:, :, 256:260] == 255).all()
