"""Losses of discriminator and generator on logits, and penalties of the discriminator. All are float32 scalars."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

AdversarialLoss = Literal["hinge", "pair"]


def discriminator_loss(kind: AdversarialLoss, real: Tensor, fake: Tensor) -> Tensor:
    """How badly originals and reconstructions are told apart.

    hinge: (mean max(1 - real, 0) + mean max(1 + fake, 0)) / 2 (arXiv 1705.02894; halved as in VQGAN)
    pair:  mean log(1 + exp(fake - real)), each patch against the original's same patch (relativistic, arXiv 1807.00734;
           R3GAN, arXiv 2501.05441)
    """
    real, fake = real.float(), fake.float()
    if kind == "hinge":
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    return F.softplus(fake - real).mean()


def generator_loss(kind: AdversarialLoss, real: Tensor, fake: Tensor) -> Tensor:
    """How well reconstructions are told apart: hinge -mean fake; pair mean log(1 + exp(real - fake))."""
    real, fake = real.float(), fake.float()
    return -fake.mean() if kind == "hinge" else F.softplus(real - fake).mean()


def r1_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor, logits: Tensor, deviation: float) -> Tensor:
    """mean (D(x + s n) - D(x))^2 / s^2 with normal noise n: for small s the mean squared norm of a logit's gradient.

    By finite difference, since the true one (R1, arXiv 1801.04406) needs a second derivative, which few fast kernels have
    (Seaweed-APT, arXiv 2501.08316). In float32, where the difference of two close logits is not lost in rounding.

    Args:
        real: (b, 3, t, h, w), originals.
        logits: the discriminator's of them, in float32.
        deviation: s.
    """
    noisy = discriminator(real + deviation * torch.randn_like(real))
    return (noisy.float() - logits.float()).square().mean() / deviation**2


def lecam_penalty(real: Tensor, fake: Tensor, mean_real: Tensor, mean_fake: Tensor) -> Tensor:
    """mean max(real - mean_fake, 0)^2 + mean max(mean_real - fake, 0)^2 (LeCAM, arXiv 2104.03310, as its code has it).

    Args:
        mean_real, mean_fake: moving averages of earlier logits.
    """
    return F.relu(real.float() - mean_fake).square().mean() + F.relu(mean_real - fake.float()).square().mean()
