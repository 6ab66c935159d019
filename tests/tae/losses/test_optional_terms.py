"""The optional terms against float64 loops, and that each does what it is for."""

from types import SimpleNamespace

import pytest
import torch

from tae.losses import Context, LocalCorrelation, Temporal, Wavelet
from tae.losses.local_correlation import local_correlation
from tae.model.folding import haar_bands
from tests.references.losses import local_correlation_by_loops, wavelet_by_loops


def with_sizes(t: int, h: int, w: int) -> tuple[torch.Tensor, SimpleNamespace]:
    """A clip, and an output like a model's."""
    clip, reconstruction = (torch.rand(1, 3, t, h, w) * 2 - 1 for _ in range(2))
    return clip, SimpleNamespace(reconstruction=reconstruction)


def of(clip: torch.Tensor, out: SimpleNamespace) -> Context:
    """What a term is called with."""
    return Context(clip, out, torch.nn.Identity(), step=0)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("size", [(4, 8, 8), (3, 5, 6), (1, 4, 4)])
def test_wavelet_equals_its_definition(levels: int, size: tuple[int, int, int]) -> None:
    """Odd sizes and images too."""
    clip, out = with_sizes(*size)
    expected = wavelet_by_loops((out.reconstruction - clip).double().numpy(), levels)
    # float32 sums of a few values; a band left out would change it by an eighth.
    assert Wavelet(1.0, levels)(of(clip, out)).item() == pytest.approx(expected, rel=1e-5)


def test_the_transform_keeps_the_energy() -> None:
    clip = torch.randn(2, 3, 4, 6, 8)
    assert sum(band.square().sum() for band in haar_bands(clip)).item() == pytest.approx(clip.square().sum().item())


def test_wavelet_minds_sharp_errors_eight_times_as_much_as_flat_ones() -> None:
    """Plain L1 cannot tell an error of one value from the same sum spread over its 2x2x2 neighbours."""
    clip, out = with_sizes(8, 8, 8)
    sharp, flat = torch.zeros_like(clip), torch.zeros_like(clip)
    sharp[:, :, 2, 4, 6] = 0.8
    flat[:, :, 2:4, 4:6, 6:8] = 0.1
    assert sharp.sum() == pytest.approx(flat.sum())
    losses = []
    for error in (sharp, flat):
        out.reconstruction = clip + error
        losses.append(Wavelet(1.0)(of(clip, out)).item())
    assert losses[0] == pytest.approx(8 * losses[1], rel=1e-4)


def test_temporal_minds_flicker_and_no_shift_of_brightness() -> None:
    clip, out = with_sizes(8, 8, 8)
    sign = torch.tensor([1.0, -1.0]).repeat(4).view(1, 1, 8, 1, 1)
    for error, expected in ((torch.full_like(clip, 0.1), 0.0), (0.1 * sign.expand_as(clip), 0.2)):
        out.reconstruction = clip + error
        assert Temporal(1.0)(of(clip, out)).item() == pytest.approx(expected, abs=1e-6)


def test_temporal_is_the_error_of_frame_differences() -> None:
    clip, out = with_sizes(5, 4, 4)
    x, y = clip.double(), out.reconstruction.double()
    expected = ((y[:, :, 1:] - y[:, :, :-1]) - (x[:, :, 1:] - x[:, :, :-1])).abs().mean()
    assert Temporal(1.0)(of(clip, out)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_an_image_has_no_motion_and_its_gradient_is_zero() -> None:
    clip, out = with_sizes(1, 4, 4)
    out.reconstruction.requires_grad_()
    loss = Temporal(1.0)(of(clip, out))
    loss.backward()
    assert loss.item() == 0
    assert out.reconstruction.grad.abs().max() == 0


def test_local_correlation_equals_its_definition() -> None:
    latents = torch.randn(2, 4, 4, 6, 8) + torch.linspace(-2, 2, 8)
    expected = local_correlation_by_loops(latents.double().numpy())
    torch.testing.assert_close(local_correlation(latents).double(), torch.from_numpy(expected), rtol=0, atol=1e-5)


def test_local_correlation_smooths_noise_and_leaves_smooth_latents_alone() -> None:
    """Descending on it raises the correlation to the threshold, where the term is 0."""
    latents = torch.randn(1, 4, 4, 8, 8).requires_grad_()
    clip, out = with_sizes(8, 8, 8)
    term, optimizer = LocalCorrelation(1.0), torch.optim.Adam([latents], lr=0.05)
    assert local_correlation(latents).max() < 0.3  # windows of eight independent values: about an eighth
    for _ in range(150):
        out.posterior = SimpleNamespace(mean=latents)
        optimizer.zero_grad()
        term(of(clip, out)).backward()
        optimizer.step()
    found = local_correlation(latents)
    assert found.min() > 0.74
    assert term(of(clip, out)).item() == pytest.approx(0, abs=0.01)
    out.posterior = SimpleNamespace(mean=torch.linspace(-1, 1, 16).expand(1, 4, 2, 16, 16).contiguous())
    assert term(of(clip, out)).item() == 0
