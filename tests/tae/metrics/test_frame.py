"""Metrics against scikit-image in float64, and the trilinear baseline against a loop."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from tae.losses import Perceptual
from tae.metrics.baseline import trilinear_baseline
from tae.metrics.frame import LPIPS, psnr, ssim, ssim_uniform
from tae.metrics.metric import NotMeasured


@pytest.fixture
def frames():
    """Smooth frames and noisy copies: (4, 40, 52, 3) uint8; the last pair differs in one value only."""
    coarse = torch.rand(4, 3, 6, 8)
    smooth = torch.nn.functional.interpolate(coarse, size=(40, 52), mode="bicubic").clamp(0, 1)
    noise = torch.randn_like(smooth) * torch.tensor([0.01, 0.05, 0.2, 0.0]).view(4, 1, 1, 1)
    original, noisy = ((x.clamp(0, 1) * 255).round().byte().movedim(1, -1) for x in (smooth, smooth + noise))
    noisy[3, 20, 20, 1] ^= 1
    return original.contiguous(), noisy.contiguous()


def by_skimage(metric, original, reconstruction):
    pairs = zip(original.numpy(), reconstruction.numpy(), strict=True)
    return torch.tensor([metric(x, y) for x, y in pairs], dtype=torch.float64)


def test_psnr_equals_scikit_image(frames):
    expected = by_skimage(lambda x, y: peak_signal_noise_ratio(x, y, data_range=255), *frames)
    # The squared errors are exact integers; float32 of a logarithm near 100 leaves 1e-5 dB.
    torch.testing.assert_close(psnr(*frames).double(), expected, rtol=0, atol=3e-5)


def test_psnr_of_an_exact_frame_is_capped(frames):
    assert psnr(frames[0], frames[0]).tolist() == [100.0] * 4


@pytest.mark.parametrize("metric", [ssim, ssim_uniform])
@pytest.mark.parametrize("pair", [(254, 246), (255, 255), (3, 0)])
def test_ssim_of_flat_frames_is_its_luminance_term(metric, pair):
    """On a CPU bright ones had a variance of float32's rounding: up to 0.003 too little."""
    x, y = (value / 255 for value in pair)
    exact = (2 * x * y + 0.01**2) / (x**2 + y**2 + 0.01**2)
    original, reconstruction = (torch.full((1, 64, 64, 3), value, dtype=torch.uint8) for value in pair)
    # The result itself is float32: 6e-8. In float32 throughout it was off by 1e-4 and more.
    assert metric(original, reconstruction).item() == pytest.approx(exact, abs=2e-7)


def test_ssim_equals_scikit_image_with_a_gaussian_window(frames):
    """scikit-image crops its 11x11 window's border where torchmetrics reflects it, so the whole maps differ there."""

    def gaussian(x, y):
        _, full = structural_similarity(
            x,
            y,
            channel_axis=-1,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        return full.mean()

    expected = by_skimage(gaussian, *frames)
    # Border handling: `reflect` with and without the edge row, 1 % of the map. A sigma of 1 would differ by 0.02.
    torch.testing.assert_close(ssim(*frames).double(), expected, rtol=0, atol=3e-3)


@pytest.mark.parametrize("size", [(8, 8), (37, 50), (128, 64)])
def test_ssim_is_torchmetrics(size):
    """In float64 the two orders of summation agree to 1e-13; one rounding to float32 is left: 6e-8."""
    original, noise = torch.randint(0, 256, (2, 3, *size, 3), dtype=torch.uint8)
    for reconstruction in (original, noise, (original // 2 + noise // 2).byte(), (original.float() * 0.9).byte()):
        x, y = (frames.movedim(-1, 1).double() / 255 for frames in (original, reconstruction))
        expected = structural_similarity_index_measure(y, x, data_range=1.0, reduction="none")
        torch.testing.assert_close(ssim(original, reconstruction).double(), expected, rtol=0, atol=6e-8)


def test_ssim_uniform_equals_scikit_image(frames):
    expected = by_skimage(lambda x, y: structural_similarity(x, y, channel_axis=-1, data_range=255), *frames)
    # float32 variances as differences of squares: 1e-6 seen. Population covariance would differ by 1e-4 and more.
    torch.testing.assert_close(ssim_uniform(*frames).double(), expected, rtol=0, atol=1e-5)


def sample_linearly(values, size):
    """1D resampling with half-pixel centres (align_corners=False), the nearest value beyond the ends."""
    out = np.zeros((size, *values.shape[1:]))
    for i in range(size):
        place = min(max((i + 0.5) * len(values) / size - 0.5, 0), len(values) - 1)
        low = int(place)
        high = min(low + 1, len(values) - 1)
        out[i] = values[low] * (1 - (place - low)) + values[high] * (place - low)
    return out


@pytest.mark.parametrize("size", [(16, 24, 16), (9, 20, 33), (1, 8, 8)])
@pytest.mark.parametrize("factors", [(8, 8), (4, 8), (1, 16)])
def test_trilinear_baseline_equals_its_definition(size, factors):
    clip = torch.rand(2, 3, *size) * 2 - 1
    expected = clip.double().numpy()
    for axis, factor in ((2, factors[0]), (3, factors[1]), (4, factors[1])):
        moved = np.moveaxis(expected, axis, 0)
        small = sample_linearly(moved, math.ceil(len(moved) / factor))
        expected = np.moveaxis(sample_linearly(small, len(moved)), 0, axis)
    # Three float32 interpolations: 1e-6. With align_corners=True the difference would be 0.1.
    torch.testing.assert_close(
        trilinear_baseline(clip, *factors).double(), torch.from_numpy(expected), rtol=0, atol=1e-5
    )


def test_lpips_downloads_nothing(frames, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for metric in (LPIPS(), LPIPS("alex", "alexnet.pth")):  # VGG-16's whatever the objective trains on
        with pytest.raises(NotMeasured, match=r"python -m tae.weights get="):
            metric(*frames)


def test_lpips_is_measured_where_weights_are(frames, monkeypatch):
    network = Perceptual(weight=0, net="vgg", weights_path=None)
    monkeypatch.setattr(network, "per_frame_of_each", lambda x, ys: [(x - y).abs().mean(dim=(1, 3, 4)) for y in ys])
    metric = LPIPS()
    metric._network = network
    expected = (frames[0].float() - frames[1].float()).abs().mean(dim=(1, 2, 3)) / 127.5
    torch.testing.assert_close(metric(*frames), expected, rtol=1e-4, atol=1e-6)
