"""Discriminators and their losses against plain definitions."""

import numpy as np
import pytest
import torch

from tae.adversarial.discriminators import PatchDiscriminator, make_discriminators, share_of_right
from tae.adversarial.losses import discriminator_loss, generator_loss, lecam_penalty, r1_penalty


@pytest.mark.parametrize("frames", [1, 2, 5, 9])
def test_a_logit_for_each_patch(frames: int) -> None:
    """An image is a clip of one frame; sizes need not be multiples."""
    clip = torch.rand(2, 3, frames, 24, 41)
    of_frames, of_clips = make_discriminators(4, 4, layers=3).values()
    assert of_frames(clip).shape == (2 * frames, 1, 3, 5)
    assert of_clips(clip).shape == (2, 1, int(np.ceil(np.ceil(frames / 2) / 2)), 3, 5)


def test_one_looks_at_frames_alone_and_the_other_at_motion() -> None:
    of_frames, of_clips = make_discriminators(4, 4, layers=2).eval().values()
    clip = torch.rand(1, 3, 6, 16, 16)
    order = torch.tensor([3, 1, 2, 0, 4, 5])
    assert torch.allclose(of_frames(clip)[order], of_frames(clip[:, :, order]), atol=1e-6)
    assert not torch.allclose(of_clips(clip), of_clips(clip[:, :, order]), atol=1e-3)


def test_no_layer_stretches_its_input() -> None:
    """Spectral normalisation: the largest singular value of each layer's matrix is 1, within power iteration's error."""
    network = PatchDiscriminator("clip", 8, 3)
    for _ in range(20):
        network(torch.rand(1, 3, 4, 16, 16))
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            assert torch.linalg.matrix_norm(module.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)


def test_losses_are_their_definitions() -> None:
    real, fake = torch.randn(40) * 2, torch.randn(40) * 2
    x, y = real.double().numpy(), fake.double().numpy()
    hinge = (np.maximum(1 - x, 0).mean() + np.maximum(1 + y, 0).mean()) / 2
    expected = {
        ("hinge", "discriminator"): hinge,
        ("hinge", "generator"): -y.mean(),
        ("pair", "discriminator"): np.log1p(np.exp(y - x)).mean(),
        ("pair", "generator"): np.log1p(np.exp(x - y)).mean(),
    }
    for kind in ("hinge", "pair"):
        # float32 means of 40 values below 10.
        assert discriminator_loss(kind, real, fake).item() == pytest.approx(expected[kind, "discriminator"], abs=1e-5)
        assert generator_loss(kind, real, fake).item() == pytest.approx(expected[kind, "generator"], abs=1e-5)
    means = torch.tensor(0.3), torch.tensor(-0.4)
    lecam = np.square(np.maximum(x + 0.4, 0)).mean() + np.square(np.maximum(0.3 - y, 0)).mean()
    assert lecam_penalty(real, fake, *means).item() == pytest.approx(lecam, rel=1e-5)
    assert share_of_right(real, fake, pairs=True).item() == pytest.approx((x > y).mean())
    assert share_of_right(real, fake, pairs=False).item() == pytest.approx(((x > 0).mean() + (y < 0).mean()) / 2)


def test_the_penalty_is_the_squared_gradient() -> None:
    """Of a curved function, against autograd's own gradient: the mean over many draws of noise."""
    clip = torch.rand(2, 3, 2, 4, 4)
    weight = torch.randn(3 * 2 * 4 * 4)

    def curved(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x.flatten(1) @ weight * 0.1)

    leaf = clip.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(curved(leaf).sum(), leaf)
    true = gradient.flatten(1).square().sum(1).mean()
    found = torch.stack([r1_penalty(curved, clip, curved(clip), 1e-3) for _ in range(4000)]).mean()
    # A squared normal deviates by 1.4 of its mean: 4,000 draws of two clips by 1.6 %. Without 1/s^2 it is off by 1e6.
    assert found.item() == pytest.approx(true.item(), rel=0.08)
