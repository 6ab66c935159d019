"""Spectrum matching: latents shall spread their energy over frequencies as the clip does, somewhat flattened."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tae.losses.dct import dct_matrix
from tae.losses.term import Context, check_weight
from tae.runtime.annotations import Weight
from tae.runtime.schema import check_arguments

BANDS = 8  # of equal width, as in the latents report
SMALLEST_SHARE = 1e-8


class Spectrum:
    """KL(p || q) over bands of spatial frequency, q the latents' shares of energy and p the clip's times f^delta.

    Energy is the squared DCT of each frame, the clip averaged down to the latents' grid first. A coefficient (u, v) has the
    frequency f = (u + v) / (h' + w' - 2), in (0, 1]; the constant part is left out. A band's share is the mean over channels
    of its share in the channel's energy. It acts on the posterior's mean, since the sample's noise is white by definition.

    After encoding spectrum matching (arXiv 2603.14645), where latents follow a power law as pictures do, flattened by
    f^delta; there bands are rings and each picture is compared by itself, here the whole batch, since a latent frame of a
    small clip has few coefficients. The latents report measures the same bands (`spectrum.distance`, which is that of
    delta 0).

    Args:
        weight: factor in the objective; 0 turns the term off. The paper's is 0.01, in place of the KL term.
        delta: how far the target is flattened; 0: the clip's own spectrum, 1: the paper's.
    """

    uses_reconstruction = False

    def __init__(self, weight: Weight, delta: float = 1.0) -> None:
        check_arguments(Spectrum, {"delta": delta})
        self.weight = check_weight("spectrum", weight)
        self.delta = delta

    def __call__(self, context: Context) -> Tensor:
        mean = context.output.posterior.mean
        with torch.autocast(mean.device.type, enabled=False):
            with torch.no_grad():
                t, h, w = mean.shape[2:]
                pictures = F.adaptive_avg_pool3d(context.source.float(), (t, h, w))
                target = band_shares(pictures, self.delta)
            found = band_shares(mean.float())
            return (target * (target.clamp_min(SMALLEST_SHARE) / found.clamp_min(SMALLEST_SHARE)).log()).sum()


def band_shares(values: Tensor, delta: float = 0.0) -> Tensor:
    """Share of each band of spatial frequency in the energy times f^delta, the mean over channels.

    Shapes: (b, c, t, h, w) float32 -> (8,); all 0 where there is nothing but a constant part
    """
    height, width = values.shape[3:]
    rows, columns = (dct_matrix(size).to(values, non_blocking=True) for size in (height, width))
    energy = (rows @ values @ columns.T).square().sum(dim=(0, 2)).flatten(1)  # (c, h w)
    distance = (torch.arange(height)[:, None] + torch.arange(width)).flatten()
    largest = max(height + width - 2, 1)
    weight = (distance / largest) ** delta * (distance > 0)
    band = -(-BANDS * distance // largest) - 1  # of (b / 8, (b + 1) / 8]; -1: the constant part
    in_band = (band[:, None] == torch.arange(BANDS)) * weight[:, None]
    energies = energy @ in_band.to(values, non_blocking=True)
    return (energies / energies.sum(1, keepdim=True).clamp_min(SMALLEST_SHARE)).mean(0)
