"""Divergence of the posterior from the standard normal."""

import torch
from torch import Tensor

from tae.losses.term import Output, check_weight


class KL:
    """Divergence in nats, summed over all latent values and divided by the N = b * 3 * t * h * w values of the clip.

    Dividing by the clip's size, not by the latents', keeps its ratio to the reconstruction term at any compression.
    """

    uses_reconstruction = False

    def __init__(self, weight: float) -> None:
        self.weight = check_weight("kl", weight)

    def __call__(self, clip: Tensor, out: Output) -> Tensor:
        with torch.autocast(clip.device.type, enabled=False):
            return out.posterior.kl().float().sum() / clip.numel()
