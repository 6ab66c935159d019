"""VMAF against Netflix's libvmaf, and ColorVideoVDP against what is known of screens and eyes."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tae.metrics.video_quality import _cvvdp, _luma, _vmaf, cvvdp, vmaf
from tests.references.metrics import box_blur, drifting_texture, luma_of_bt709, luminance_on_a_screen

CPU = torch.device("cpu")
packages_warn = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

# Of each frame by libvmaf (Netflix), model vmaf_v0.6.1, of the pairs below as 8-bit luma of yuv420p 176x144:
# ffmpeg -f rawvideo -pix_fmt yuv420p -s 176x144 -i distorted.yuv (the same for reference.yuv) -lavfi libvmaf -f null -
LIBVMAF = {
    3: [71.628, 90.920, 91.100, 91.268, 91.136],
    7: [17.394, 34.496, 34.566, 34.813, 34.753],
}


@pytest.mark.parametrize("window", LIBVMAF)
def test_vmaf_equals_libvmaf(window: int) -> None:
    pytest.importorskip("vmaf_torch")
    reference = drifting_texture()
    distorted = box_blur(reference, window).round().astype(np.uint8)
    score = _vmaf()(*(torch.from_numpy(luma)[:, None].float() for luma in (reference, distorted)))
    # libvmaf computes in integers, the package in float32: 0.005 seen in a frame.
    assert score.item() == pytest.approx(np.mean(LIBVMAF[window]), abs=0.01)


def test_vmaf_is_of_bt709_luma_in_limited_range() -> None:
    frames = torch.randint(0, 256, (2, 9, 8, 3)).byte()
    np.testing.assert_allclose(_luma(frames)[:, 0].numpy(), luma_of_bt709(frames.numpy()), atol=1e-4)
    pytest.importorskip("vmaf_torch")
    reference = drifting_texture()
    distorted = box_blur(reference, 3)
    grey = [torch.from_numpy((luma - 16) * 255 / 219).round().byte() for luma in (reference.astype(float), distorted)]
    pair = [frames[..., None].expand(-1, -1, -1, 3) for frames in grey]
    # Rounding to steps of grey that are not steps of luma: 0.1 seen. Luma of full range would differ by 2.
    assert vmaf(*pair) == pytest.approx(np.mean(LIBVMAF[3]), abs=0.4)


@packages_warn
def test_cvvdp_knows_the_screen() -> None:
    """A 24-inch screen of 1920 columns and 200 cd/m2 in a room of 250 lux, seen from 60 cm."""
    pytest.importorskip("pycvvdp")
    metric = _cvvdp(CPU)
    width = 24 * 0.0254 * 16 / math.hypot(16, 9)
    degree = 2 * 0.6 * math.tan(math.radians(0.5))
    assert metric.pix_per_deg == pytest.approx(degree / (width / 1920), rel=0.01)
    values = np.linspace(0, 1, 9)
    expected = [luminance_on_a_screen(value, peak=200, contrast=1000, lux=250) for value in values]
    shown = metric.display_photometry.forward(torch.from_numpy(values))
    np.testing.assert_allclose(shown.numpy(), expected, rtol=0.02)


@packages_warn
def test_cvvdp_says_10_less_a_power_of_what_is_seen() -> None:
    """JOD = 10 - 0.0440 Q^0.930, linear below Q = 0.1."""
    pytest.importorskip("pycvvdp")
    seen = torch.tensor([0.0, 0.05, 0.1, 1.0, 50.0])
    expected = [10 - 0.0439569 * (q**0.9302043 if q > 0.1 else 0.1**0.9302043 * q / 0.1) for q in seen.tolist()]
    np.testing.assert_allclose(_cvvdp(CPU).met2jod(seen).numpy(), expected, rtol=1e-5)


def grating(period: float, amplitude: float, colour: tuple[float, float, float] = (1, 1, 1)) -> Tensor:
    """(6, 96, 96, 3) uint8: vertical stripes on grey, still."""
    wave = amplitude * torch.sin(2 * math.pi * torch.arange(96) / period + 0.5)
    frame = 128 + wave[None, :, None] * torch.tensor(colour)
    return frame.round().byte().expand(6, 96, 96, 3)


GREY = torch.full((6, 96, 96, 3), 128, dtype=torch.uint8)
TEXTURE = grating(8, 60)


def in_turns(frames: Tensor, step: int) -> Tensor:
    """Every second frame brighter by `step`."""
    bright = torch.tensor([0, step] * 3).view(6, 1, 1, 1)
    return (frames.int() + bright).byte()


# A worse and a better one of two reconstructions, as eyes see it.
SEEN: dict[str, Callable[[], tuple[float, float]]] = {
    "stripes of 5 cycles a degree rather than of 19, the finest that there are": lambda: (
        cvvdp(GREY, grating(8, 6), fps=25),
        cvvdp(GREY, grating(2, 6), fps=25),
    ),
    "stripes of brightness rather than of colour": lambda: (
        cvvdp(GREY, grating(8, 6), fps=25),
        cvvdp(GREY, grating(8, 6, (1, -0.3, 0)), fps=25),
    ),
    "stripes on grey rather than on stronger ones": lambda: (
        cvvdp(GREY, grating(8, 6), fps=25),
        cvvdp(TEXTURE, grating(8, 66), fps=25),
    ),
    "brightness that flickers rather than a steady one": lambda: (
        cvvdp(GREY, in_turns(GREY, 8), fps=25),
        cvvdp(GREY, GREY + 4, fps=25),
    ),
    "strong rather than faint": lambda: (cvvdp(GREY, grating(8, 30), fps=25), cvvdp(GREY, grating(8, 6), fps=25)),
}


@packages_warn
@pytest.mark.parametrize("what", SEEN)
def test_cvvdp_sees_as_eyes_do(what: str) -> None:
    pytest.importorskip("pycvvdp")
    worse, better = SEEN[what]()
    assert worse < better - 0.02
    assert better <= 10.0001


@packages_warn
def test_cvvdp_of_a_step_that_nobody_sees() -> None:
    """One level of 255 in the finest stripes: a contrast of 2 % at 19 cycles a degree, near the threshold."""
    pytest.importorskip("pycvvdp")
    assert cvvdp(GREY, grating(2, 1), fps=25) > 9.9
