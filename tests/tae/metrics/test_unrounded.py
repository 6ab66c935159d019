"""The two metrics of protocol ucf101-17, against a loop over values and against the package lpips."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tae.losses.lpips import features, spatial_distance
from tae.metrics.frame import psnr
from tae.metrics.metric import NotMeasured
from tae.metrics.unrounded import SpatialLPIPS, psnr_float
from tae.model.frame_conversion import frames_to_clip
from tests.references.metrics import psnr_of_floats_by_loops


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """(3, 34, 40, 3) uint8 and a reconstruction (3, 3, 34, 40) some of whose values lie outside of [-1, 1]."""
    original = torch.randint(0, 256, (3, 34, 40, 3)).byte()
    clip = frames_to_clip(original[None])[0]
    return original, clip * 1.02 + 0.003 * torch.randn_like(clip)


def test_psnr_of_floats_equals_its_definition(pair: tuple[Tensor, Tensor]) -> None:
    original, clip = pair
    expected = psnr_of_floats_by_loops(original.numpy(), clip.double().numpy())
    # float32 differences of values near 1: 1e-7 of 0.005 each.
    assert psnr_float(original, original, clip=clip) == pytest.approx(expected, abs=1e-3)
    assert clip.max() > 1.01, "else clamping would not matter"


def test_less_than_a_step_counts() -> None:
    """A third of a step is lost by rounding; here it is 58 dB."""
    original = torch.full((2, 8, 8, 3), 100, dtype=torch.uint8)
    clip = frames_to_clip(original[None])[0] + 2 / 255 / 3
    assert psnr_float(original, original, clip=clip) == pytest.approx(20 * np.log10(255 * 3), abs=1e-3)
    assert psnr(original, original).mean() == 100
    assert psnr_float(original, original, clip=frames_to_clip(original[None])[0]) == 100


def alexnet(**arguments: Any) -> Any:
    """The package's network with random weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lpips

        return lpips.LPIPS(net="alex", pnet_rand=True, verbose=False, **arguments).eval().requires_grad_(False)


def test_the_spatial_distance_equals_the_packages() -> None:
    network = alexnet()
    package = alexnet(spatial=True)
    package.load_state_dict(network.state_dict())
    x, y = torch.rand(2, 3, 3, 47, 70)
    y[..., 20:, :] = x[..., 20:, :]  # all of the error at a border
    expected = package(x, y).mean(dim=(1, 2, 3))
    found = spatial_distance(network, features(network, x, False), features(network, y, False), (47, 70))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)
    assert not torch.allclose(found, network(x, y).flatten(), rtol=2e-5), "the usual mean is another number, if little"


def test_the_network_is_shown_values_from_0_to_1(pair: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    original, clip = pair
    metric = SpatialLPIPS()
    network, package = alexnet(), alexnet(spatial=True)
    package.load_state_dict(network.state_dict())
    monkeypatch.setattr(metric, "_network_on", lambda device: network)
    x = original.movedim(-1, 1).float() / 255
    y = (clip.clamp(-1, 1).movedim(1, 0) + 1) / 2
    assert metric(original, original, clip=clip) == pytest.approx(package(x, y).mean().item(), rel=1e-5)


def test_missing_weights_and_small_frames_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for size, message in ((34, "get=alex"), (20, "31x31")):
        frames = torch.zeros(1, size, size, 3, dtype=torch.uint8)
        with pytest.raises(NotMeasured, match=message):
            SpatialLPIPS()(frames, frames, clip=torch.zeros(3, 1, size, size))
