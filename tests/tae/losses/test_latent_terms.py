"""Equivariance, spectrum and learned scale against plain definitions, and that each does what it is for."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tae import TemporalAutoencoder, UserError
from tae.losses import KL, Context, Equivariance, Objective, Reconstruction, Spectrum
from tae.losses.equivariance import View, area_resized, numbers_of
from tae.losses.spectrum import band_shares
from tae.losses.step import compute_loss
from tests.references.losses import area_by_loops, spectrum_by_loops


def small_model(**changes: int) -> TemporalAutoencoder:
    return TemporalAutoencoder(
        4, (1, 1, 1, 2), **({"encoder_blocks": 1, "decoder_blocks": 1, "norm_groups": 2} | changes)
    )


def of_latents(clip: torch.Tensor, latents: torch.Tensor, model: torch.nn.Module | None = None) -> Context:
    """What a term is called with."""
    out = SimpleNamespace(reconstruction=clip, latents=latents, posterior=SimpleNamespace(mean=latents))
    return Context(clip, out, model or torch.nn.Identity(), step=0)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (6, 9), (3, 4), (8, 12), (1, 1)])
def test_sizes_are_changed_by_averages_over_areas(height: int, width: int) -> None:
    values = torch.randn(1, 2, 3, 8, 12)
    by_loops = area_by_loops(area_by_loops(values.double().numpy(), height, 3), width, 4)
    # float32 means of at most 96 values.
    torch.testing.assert_close(
        area_resized(values, height, width).double(), torch.from_numpy(by_loops), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(("height", "width", "turns"), [(32, 48, 0), (27, 45, 1)])
def test_a_view_of_the_clip_has_the_size_of_what_its_latents_decode_to(height: int, width: int, turns: int) -> None:
    model, clip = small_model(), torch.rand(1, 3, 1, height, width)
    for scale in (0.25, 0.75):
        view = View(scale, turns)
        out = model(clip, transform=view.of_latents)
        assert out.reconstruction.shape == view.of_clip(model, clip).shape
        assert out.latents.shape[3:] == (4, 6)


def nearest(latents: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Decodes to eight times the size: whatever is done to latents by areas is done to the clip."""
    return F.interpolate(latents[:, :3], scale_factor=(1, 8, 8))


def test_a_latent_is_never_less_than_one_position() -> None:
    assert View(0.25, 0).scaled(1, 3) == (1, 1)
    assert View(0.25, 0).of_latents(torch.ones(1, 4, 2, 1, 3)).shape == (1, 4, 2, 1, 1)


def test_the_extra_term_is_the_error_of_what_smaller_latents_decode_to() -> None:
    model = SimpleNamespace(decode=nearest, padded=lambda clip: clip, space_factor=8)
    latents = torch.randn(1, 4, 2, 2, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    clip = nearest(latents, 2)
    term = Equivariance(0.25, mode="extra")
    assert term(of_latents(clip, latents, model)).item() == pytest.approx(0, abs=1e-6)
    shifted = term(of_latents(clip + 0.5, latents, model))
    assert shifted.item() == pytest.approx(0.5, abs=1e-6)
    views = [term.draw(numbers_of(step)) for step in range(40)]
    assert {view.scale for view in views} == {0.5, 0.25}
    assert {view.turns for view in views} == {0}


def test_a_replaced_step_compares_all_with_the_transformed_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clip = small_model(), torch.rand(1, 3, 1, 32, 48)
    term = Equivariance(1.0, scales=[0.5], turns=True)
    monkeypatch.setattr(term, "draw", lambda numbers: View(0.5, 1))
    torch.manual_seed(1)
    out = model(clip, transform=lambda z: F.avg_pool3d(z, (1, 2, 2)).rot90(1, (3, 4)))
    wanted = F.avg_pool3d(clip, (1, 2, 2)).rot90(1, (3, 4))
    torch.manual_seed(1)
    found = compute_loss(model, Objective(reconstruction=Reconstruction(1.0), kl=KL(0.1), equivariance=term), clip)
    assert found.terms.keys() == {"reconstruction", "kl", "outlier_rate"}
    assert found.terms["reconstruction"].item() == pytest.approx(
        (out.reconstruction - wanted).abs().mean().item(), rel=1e-5
    )
    assert found.terms["kl"].item() == pytest.approx(out.posterior.kl().sum().item() / clip.numel(), rel=1e-5)
    torch.testing.assert_close(found.clip, wanted)


def test_the_share_of_replaced_steps_is_the_weight() -> None:
    term = Equivariance(0.3)
    views = [term.view_of_step(step) for step in range(2000)]
    drawn = [view for view in views if view is not None]
    assert len(drawn) / 2000 == pytest.approx(0.3, abs=0.04)  # four standard deviations
    assert {view.scale for view in drawn} == {0.25, 0.5, 0.75, 1.0}
    assert {view.turns for view in drawn} == {0, 1, 2, 3}
    assert Objective(reconstruction=Reconstruction(1.0), equivariance=Equivariance(0.0)).draw_view(0) is None
    torch.manual_seed(0)
    first = [term.view_of_step(step) for step in range(20)]
    torch.manual_seed(1)
    assert first != [term.view_of_step(step) for step in range(20)]
    torch.manual_seed(0)
    assert first == [term.view_of_step(step) for step in range(20)]


@pytest.mark.slow
def test_training_on_replaced_steps_makes_a_decoder_equivariant() -> None:
    """Of a frozen encoder's latents: what the smaller ones decode to comes closer to the smaller clip."""
    torch.manual_seed(0)
    clip = F.interpolate(torch.rand(2, 3, 1, 4, 4) * 2 - 1, scale_factor=(1, 8, 8), mode="trilinear")
    view, errors = View(0.5, 0), []
    for term in (None, Equivariance(0.5, scales=[0.5], turns=False)):
        torch.manual_seed(1)
        model = small_model()
        model.encoder.requires_grad_(False)
        objective = Objective(reconstruction=Reconstruction(1.0), equivariance=term)
        optimizer = torch.optim.Adam(model.decoder.parameters(), lr=3e-3)
        for step in range(60):
            optimizer.zero_grad()
            compute_loss(model, objective, clip, step).total.backward()
            optimizer.step()
        with torch.no_grad():
            out = model(clip, sample_posterior=False, transform=view.of_latents)
            errors.append((out.reconstruction - view.of_clip(model, clip)).abs().mean().item())
    assert errors[1] < 0.9 * errors[0], errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 1.5}, "share of steps"),
        ({"weight": 0.5, "scales": [0.0]}, "numbers above 0"),
        ({"weight": 0.5, "mode": "both"}, "mode=both is not allowed"),
    ],
)
def test_views_that_cannot_be(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Equivariance(**settings)


def test_a_replaced_reconstruction_that_nothing_looks_at_is_refused() -> None:
    with pytest.raises(UserError, match="transforms what is decoded"):
        Objective(kl=KL(1.0), equivariance=Equivariance(0.5))


@pytest.mark.parametrize("delta", [0.0, 1.0, 0.5])
def test_spectrum_equals_its_definition(delta: float) -> None:
    latents, clip = torch.randn(2, 3, 2, 4, 5) + 3, torch.rand(2, 3, 16, 32, 40)
    pictures = F.avg_pool3d(clip, 8)
    expected = spectrum_by_loops(latents.double().numpy(), pictures.double().numpy(), delta)
    found = Spectrum(1.0, delta)(of_latents(clip, latents))
    assert found.item() == pytest.approx(expected, rel=1e-4)  # float32 transforms of 40 values


def test_descending_on_it_gives_latents_the_spectrum_that_is_wanted() -> None:
    """White latents become as smooth as the clip, times f."""
    clip = F.interpolate(torch.rand(1, 3, 2, 6, 6), size=(16, 64, 64), mode="trilinear")
    latents = torch.randn(1, 4, 2, 8, 8).requires_grad_()
    term, optimizer = Spectrum(1.0), torch.optim.Adam([latents], lr=0.1)
    before = term(of_latents(clip, latents)).item()
    for _ in range(60):
        optimizer.zero_grad()
        term(of_latents(clip, latents)).backward()
        optimizer.step()
    assert before > 0.3
    assert term(of_latents(clip, latents)).item() < 0.01
    wanted = band_shares(F.adaptive_avg_pool3d(clip, (2, 8, 8)), delta=1.0)
    assert (band_shares(latents) - wanted).abs().max() < 0.05


def test_one_position_has_no_spectrum() -> None:
    latents = torch.randn(1, 4, 1, 1, 1).requires_grad_()
    value = Spectrum(1.0)(of_latents(torch.rand(1, 3, 1, 8, 8), latents))
    value.backward()
    assert value.item() == 0
    assert latents.grad.abs().max() == 0


class Distance(Reconstruction):
    """A second distance, three times the first."""

    def __call__(self, context: Context) -> torch.Tensor:
        return 3 * super().__call__(context)


def test_a_learned_scale_is_the_laplace_likelihoods() -> None:
    clip, reconstruction = (torch.rand(1, 3, 4, 8, 8) for _ in range(2))
    latents = torch.randn(1, 4, 1, 1, 1)
    context = of_latents(clip, latents)
    context.output.reconstruction = reconstruction
    term = Reconstruction(2.0, learned_scale=True)
    objective = Objective(reconstruction=term, perceptual=Distance(1.0), spectrum=Spectrum(1.0))
    distance = 5 * (clip - reconstruction).abs().mean().item()
    with torch.no_grad():
        term.log_scale.fill_(0.7)
    total, terms = objective(context)
    assert total.item() == pytest.approx(distance / 2.718281828**0.7 + 0.7, rel=1e-5)
    assert terms["reconstruction"].item() == pytest.approx(distance / 5, rel=1e-5)  # logged as without a scale
    assert terms["log_scale"].item() == pytest.approx(0.7)
    optimizer = torch.optim.SGD(objective.parameters, lr=0.5)
    for _ in range(40):
        optimizer.zero_grad()
        objective(context)[0].backward()
        optimizer.step()
    assert term.log_scale.exp().item() == pytest.approx(distance, rel=1e-3)
    assert Objective(reconstruction=Reconstruction(1.0)).parameters == []
