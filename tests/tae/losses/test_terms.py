"""Reconstruction, KL, outlier penalty and their sum against float64 loops."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir

from tae.losses import KL, Context, Objective, OutlierPenalty, Perceptual, Reconstruction, outlier_rate
from tae.model.posterior import DiagonalGaussian
from tae.runtime.cli import CONFIG_FOLDER
from tae.runtime.errors import UserError
from tests.references.losses import kl_by_loops, opl_by_loops


def make_output(b=2, t=3, h=6, w=5, dtype=torch.float32):
    """A clip and an output like a model's, with a few latent positions far out of their frame."""
    latents = torch.randn(b, 16, t, h, w)
    latents[0, :, 1, 2, 3] *= 40
    latents[1, :, 0, 0, 0] += 25
    clip, reconstruction = (torch.rand(b, 3, 8 * t, 8, 8) * 2 - 1 for _ in range(2))
    posterior = DiagonalGaussian(torch.randn_like(latents), torch.randn_like(latents))
    return clip, SimpleNamespace(
        reconstruction=reconstruction.to(dtype), posterior=posterior, latents=latents.to(dtype)
    )


def of(clip, out):
    """What a term is called with."""
    return Context(clip, out, torch.nn.Identity(), step=0)


def test_reconstruction_is_the_mean_absolute_error():
    clip, out = make_output()
    expected = (clip.double() - out.reconstruction.double()).abs().sum() / clip.numel()
    # 6,000 summands below 2 in float32, pairwise: rounding < 1e-6; a squared error would be off by 0.1.
    assert Reconstruction(weight=1)(of(clip, out)).item() == pytest.approx(expected.item(), abs=1e-6)


def test_reconstruction_by_squares_is_the_mean_squared_error():
    clip, out = make_output()
    expected = (clip.double() - out.reconstruction.double()).square().mean()
    assert Reconstruction(weight=1, distance="l2")(of(clip, out)).item() == pytest.approx(expected.item(), abs=1e-6)
    with pytest.raises(UserError, match='distance="l3" is unknown'):
        Reconstruction(weight=1, distance="l3")
    with pytest.raises(UserError, match=r"learned_scale=true .* distance=l2 has to be l1"):
        Reconstruction(weight=1, learned_scale=True, distance="l2")


def test_kl_equals_its_definition():
    clip, out = make_output()
    posterior = out.posterior
    expected = kl_by_loops(posterior.mean.double().numpy(), posterior.logvar.double().numpy(), clip.numel())
    # Rounding of a float32 sum: 1e-6 relative. Dividing by the latents' size instead would change it by a factor of 3.
    assert KL(weight=1)(of(clip, out)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("r", [0.5, 1.0, 3.0])
def test_outlier_penalty_equals_its_definition(r):
    clip, out = make_output()
    expected, _ = opl_by_loops(out.latents.double().numpy(), r)
    # float32 rounding: 1e-6 relative. The sample (not population) deviation would differ by 2 % of r ||s||.
    assert OutlierPenalty(weight=1, r=r)(of(clip, out)).item() == pytest.approx(expected, rel=1e-5)
    assert expected > 0, "a penalty of 0 would prove nothing"


def test_outlier_rate_equals_its_definition():
    _, out = make_output()
    _, expected = opl_by_loops(out.latents.double().numpy(), 3.0)
    assert outlier_rate(out.latents).item() == pytest.approx(expected, abs=1e-7)
    assert expected > 0


@pytest.mark.parametrize("size", [(1, 1), (4, 4)])
def test_outlier_penalty_of_constant_latents_has_a_finite_gradient(size):
    """Standard deviation and norm are 0 everywhere: written with sqrt(var) the gradient would be NaN."""
    latents = torch.ones(1, 16, 2, *size, requires_grad=True)
    value = OutlierPenalty(weight=1, r=3)(of(torch.zeros(1, 3, 16, 8, 8), SimpleNamespace(latents=latents)))
    value.backward()
    assert value.item() == 0
    assert latents.grad.isfinite().all()


def test_outlier_penalty_pulls_the_outlier_in():
    latents = torch.randn(1, 16, 1, 8, 8)
    latents[0, :, 0, 3, 3] += 50
    latents.requires_grad_()
    OutlierPenalty(weight=1, r=3)(of(torch.zeros(1, 3, 8, 64, 64), SimpleNamespace(latents=latents))).backward()
    assert (latents.grad[0, :, 0, 3, 3] > 0).all(), "a step against the gradient must lower the outlier"


def test_total_is_the_weighted_sum_and_terms_are_unweighted():
    clip, out = make_output()
    loss = Objective(reconstruction=Reconstruction(2.0), kl=KL(1e-3), opl=OutlierPenalty(0.5, r=3))
    total, terms = loss(of(clip, out))
    assert set(terms) == {"reconstruction", "kl", "opl", "outlier_rate"}
    expected = 2.0 * terms["reconstruction"] + 1e-3 * terms["kl"] + 0.5 * terms["opl"]
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
    assert all(term.dtype == torch.float32 and not term.requires_grad for term in terms.values())


def test_terms_are_float32_under_autocast():
    clip, out = make_output(dtype=torch.bfloat16)
    loss = Objective(reconstruction=Reconstruction(1.0), kl=KL(1e-6), opl=OutlierPenalty(1.0, r=3))
    plain, _ = loss(of(clip, out))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, terms = loss(of(clip, out))
    assert {term.dtype for term in (total, *terms.values())} == {torch.float32}
    assert total.item() == plain.item()


def test_a_term_of_weight_0_is_not_computed():
    class Exploding(Reconstruction):
        def __call__(self, context):
            raise AssertionError("computed")

    clip, out = make_output()
    objective = Objective(reconstruction=Exploding(0), perceptual=None, kl=KL(1.0), opl=OutlierPenalty(0, r=3))
    _, terms = objective(of(clip, out))
    assert set(terms) == {"kl", "outlier_rate"}


@pytest.mark.parametrize("weight", [-1, math.nan, math.inf, "much", True])
@pytest.mark.parametrize(
    ("name", "term"),
    [
        ("reconstruction", Reconstruction),
        ("perceptual", lambda weight: Perceptual(weight, net="vgg", weights_path=None)),
        ("kl", KL),
        ("opl", lambda weight: OutlierPenalty(weight, r=3)),
    ],
)
def test_an_impossible_weight_is_refused_by_name(name, term, weight):
    with pytest.raises(UserError, match=rf"^weight={weight} of {name}"):
        term(weight)


@pytest.mark.parametrize("r", [0, -3.0, math.nan])
def test_an_impossible_r_is_refused(r):
    with pytest.raises(UserError, match=r"^r="):
        OutlierPenalty(1.0, r=r)


def test_an_objective_of_nothing_is_refused():
    with pytest.raises(UserError, match="nothing to train"):
        Objective(reconstruction=Reconstruction(0), kl=KL(0))


class Late:
    """A term that is on from step 10, and looks at the model."""

    weight = 2.0

    def __call__(self, context):
        assert isinstance(context.model, torch.nn.Identity)
        return context.clip.mean() if context.step >= 10 else context.clip.new_zeros(())


def test_any_term_by_name_is_weighed_and_logged():
    clip, out = make_output()
    objective = Objective(reconstruction=Reconstruction(1.0), late=Late())
    for step, expected in ((9, 0.0), (10, clip.mean().item())):
        total, terms = objective(Context(clip, out, torch.nn.Identity(), step))
        assert terms["late"].item() == expected
        assert total.item() == pytest.approx(terms["reconstruction"].item() + 2 * expected, rel=1e-6)


@pytest.mark.parametrize(
    ("terms", "told"),
    [
        ({"psnr": KL(1.0)}, "train/psnr is logged in any case"),
        ({"motion": torch.square}, "loss.motion makes a builtin"),
        ({"motion": type("Motion", (Late,), {"weight": -1.0})()}, r"weight=-1\.0 of motion"),
    ],
)
def test_what_is_no_term_is_refused_by_name(terms, told):
    with pytest.raises(UserError, match=told):
        Objective(**terms)


def test_the_default_config_builds_the_objective():
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    config = OmegaConf.load(Path(__file__).parents[3] / "conf" / "loss" / "default.yaml")
    config.perceptual.weight = 0  # its weights need a download
    loss = instantiate(config)
    assert {name: term.weight for name, term in loss.terms.items()} == {"reconstruction": 1, "kl": 1e-6, "opl": 1}


@pytest.mark.parametrize(
    ("preset", "weights"),
    [
        ("movie_gen", {"reconstruction": 1, "perceptual": 1, "kl": 1e-6, "opl": 0.5}),
        ("hunyuan", {"reconstruction": 1, "perceptual": 0.1, "kl": 1e-6}),
        ("wan", {"reconstruction": 3, "perceptual": 3, "kl": 3e-6}),
        ("cosmos", {"reconstruction": 1, "perceptual": 1, "temporal": 1}),
    ],
)
def test_presets_have_the_weights_of_their_papers(preset, weights):
    """In this project's reduction; docs/losses.md derives them."""
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        cfg = compose("train", overrides=[f"loss={preset}", "output_dir=x"]).loss
    found = {name: term.weight for name, term in cfg.items() if name != "_target_" and term.weight}
    assert found == weights


def test_a_common_factor_separates_sums_from_means():
    """Sum over C, H, W and T of |x - y| + w LPIPS, plus w' times the sum of KL, is N times ours of the same weights."""
    clip, out = make_output()
    distance = 0.7  # LPIPS, one number added to every value, as in latent diffusion's code
    of_sums = ((clip - out.reconstruction).abs() + 0.1 * distance).sum() + 1e-6 * out.posterior.kl().sum()
    ours = Reconstruction(1.0)(of(clip, out)) + 0.1 * distance + 1e-6 * KL(1.0)(of(clip, out))
    assert of_sums.item() == pytest.approx(clip.numel() * ours.item(), rel=1e-5)
    # A KL that is a mean over latent values weighs N / n times as much here: 96 at 8x8x8 with 16 channels.
    mean = out.posterior.kl().mean().item()
    assert mean == pytest.approx(96 * KL(1.0)(of(torch.zeros(2, 3, 24, 48, 40), out)).item(), rel=1e-5)
