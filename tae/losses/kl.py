"""Divergence of the posterior from the standard normal."""

import torch
from torch import Tensor

from tae.losses.term import Context, check_weight
from tae.runtime.annotations import Weight


class KL:
    """Divergence in nats, summed over all latent values and divided by the N = b * 3 * t * h * w values of the clip.

    Dividing by the clip's size, not by the latents', keeps its ratio to the reconstruction term at any compression.
    """

    uses_reconstruction = False
    needs_variance = True

    def __init__(self, weight: Weight) -> None:
        self.weight = check_weight("kl", weight)

    def __call__(self, context: Context) -> Tensor:
        with torch.autocast(context.clip.device.type, enabled=False):
            return context.output.posterior.kl().float().sum() / context.source.numel()
