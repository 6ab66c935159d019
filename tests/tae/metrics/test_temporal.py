"""Metrics of motion against slow loops, and on clips that a viewer would call bad."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tae.metrics.metric import NotMeasured
from tae.metrics.temporal import PhasePSNR, Warp, flicker, flow_pair, image_psnr, tpsnr, warping_error
from tests.references.metrics import flicker_by_loops, tpsnr_by_loops, warping_error_by_loops


@pytest.fixture
def moving() -> Tensor:
    """A textured square that moves two pixels a frame over a still, textured ground: (6, 48, 64, 3) uint8."""
    ground = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 16), size=(48, 64), mode="bicubic").clamp(0, 1)
    square = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), size=(20, 20), mode="bicubic").clamp(0, 1)
    frames = ground.repeat(6, 1, 1, 1)
    for t, frame in enumerate(frames):
        frame[:, 12:32, 10 + 2 * t : 30 + 2 * t] = square[0]
    return (frames.movedim(1, -1) * 255).round().byte().contiguous()


def noisy(frames: Tensor, strength: float = 10) -> Tensor:
    return (frames + strength * torch.randn(frames.shape)).round().clamp(0, 255).byte()


def arrays(*frames: Tensor) -> list[np.ndarray]:
    return [clip.numpy() for clip in frames]


def test_tpsnr_equals_its_definition(moving: Tensor) -> None:
    reconstruction = noisy(moving)
    reconstruction[3:5] = moving[3:5]  # one exact step
    # The squared errors are exact integers; float32 of a logarithm near 100 leaves 1e-5 dB.
    expected = tpsnr_by_loops(*arrays(moving, reconstruction))
    assert tpsnr(moving, reconstruction) == pytest.approx(expected, abs=3e-5)


def test_flicker_equals_its_definition(moving: Tensor) -> None:
    reconstruction = noisy(moving, 3)
    original = noisy(moving, 0.4)  # changes of 0, 1 and, rarely, 2 of 255
    expected = flicker_by_loops(*arrays(original, reconstruction))
    assert flicker(original, reconstruction) == pytest.approx(expected, abs=1e-9)
    assert expected > 0.005


def test_wrong_motion_is_bad_where_frames_are_not(moving: Tensor) -> None:
    """A wrong brightness all along leaves motion as it is; the same error with another sign in each frame does not."""
    error = torch.full_like(moving, 8).int()
    alternating = error * torch.tensor([1, -1] * 3).view(6, 1, 1, 1)
    middle = (moving // 2 + 60).int()  # nothing is clipped
    steady, unsteady = ((middle + part).byte() for part in (error, alternating))
    assert tpsnr(middle.byte(), steady) == 100
    assert tpsnr(middle.byte(), unsteady) < 25
    assert flicker(middle.byte(), steady) == 0
    assert flicker(middle.byte(), unsteady) == pytest.approx(16 / 255, rel=0.02)


def test_frozen_video_has_bad_motion(moving: Tensor) -> None:
    frozen = moving[:1].expand_as(moving)
    assert tpsnr(moving, frozen) < 30 < tpsnr(moving, noisy(moving, 2))


def test_smoothed_noise_is_negative_flicker(moving: Tensor) -> None:
    original = noisy(moving[:1].expand(6, -1, -1, -1), 0.4)
    assert flicker(original, moving[:1].expand_as(original)) < 0
    alternating = torch.tensor([0, 255] * 3).view(6, 1, 1, 1).expand_as(moving).byte()
    assert flicker(alternating, moving) == 0, "nothing is still"


def test_warping_error_equals_its_definition(moving: Tensor) -> None:
    x, next_x = arrays(moving[0], moving[1])
    forward, backward = np.random.default_rng(0).normal(0, 1.5, (2, 48, 64, 2)).astype(np.float32)
    backward = np.where(np.arange(64)[None, :, None] % 3 == 0, -forward, backward)  # some agree, some do not
    expected = warping_error_by_loops(x, next_x, forward, backward)
    # OpenCV interpolates with weights of 5 bits: 1/32 of a step between pixels, 0.002 on average here.
    assert warping_error(x, next_x, forward, backward) == pytest.approx(expected, abs=0.004)
    assert expected > 0.02


def test_the_flow_follows_the_square(moving: Tensor) -> None:
    luma = moving.float().mean(-1).byte().numpy()
    forward, backward = flow_pair(luma[0], luma[1])
    assert np.median(forward[16:28, 14:26, 0]) == pytest.approx(2, abs=0.3)
    assert np.median(backward[16:28, 16:28, 0]) == pytest.approx(-2, abs=0.3)


def test_what_does_not_move_with_the_original_is_bad(moving: Tensor) -> None:
    exact, shaking, shuffled = Warp().of_each(moving, [moving, noisy(moving, 20), moving[[0, 3, 1, 5, 2, 4]]])
    assert shaking > 3 * exact
    assert shuffled > 2 * exact


def test_phases_are_counted_from_the_first_frame(moving: Tensor) -> None:
    """Frames 1 and 5 are the second of four."""
    reconstruction = moving.clone()
    reconstruction[1::4] = noisy(moving[1::4], 30)
    metric = PhasePSNR()
    places = metric(moving, reconstruction, time_factor=4)
    assert places[0] == places[2] == places[3] == 100 > 30 > places[1]
    result = metric.compute([places, [100.0, 30.0, 100.0, 100.0]])
    assert result["phases"] == [100.0, pytest.approx((places[1] + 30) / 2), 100.0, 100.0]
    assert result["mean"] == pytest.approx(100 - result["phases"][1])


def test_images_are_every_eighth_frame() -> None:
    original = torch.randint(0, 256, (17, 8, 8, 3)).byte()
    images = original[[0, 8, 16]].clone()
    assert image_psnr(original, original, images=images) == 100
    images[1] ^= 255
    assert image_psnr(original, original, images=images) < 80


@pytest.mark.parametrize("metric", [tpsnr, flicker, Warp()])
def test_one_frame_has_no_motion(metric, moving: Tensor) -> None:
    with pytest.raises(NotMeasured, match="two frames"):
        metric(moving[:1], moving[:1])
    with pytest.raises(NotMeasured, match="latent frame of 8"):
        PhasePSNR()(moving, moving, time_factor=8)
