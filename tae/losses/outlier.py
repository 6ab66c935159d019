"""Outlier penalty: no latent position may stand far out of its frame.

Without it the decoder learns to keep global information in a few positions of large norm, seen as bright spots in the
latents and as artefacts in long generated videos (Movie Gen, arXiv 2410.13720, section 3.1.1).
"""

import math

import torch
from torch import Tensor

from tae.losses.term import Context, check_weight
from tae.runtime.annotations import AboveZero, Weight
from tae.runtime.errors import UserError

RATE_R = 3.0  # the reported rate keeps the paper's r, so that runs with another `r` stay comparable


class OutlierPenalty:
    """mean over latent frames of sum_ij max(||z_ij - m|| - r ||s||, 0) / (h' w').

    `m` and `s` are the mean and the population standard deviation of each channel over the positions of one latent
    frame, the norms run over channels. It acts on the sampled latents. The paper sums over positions and weighs by 1e5,
    which is about 0.5 here at 256x256.

    Args:
        weight: factor in the objective; 0 turns the term off.
        r: how many standard deviations a position may stand out for free; above 0.
    """

    uses_reconstruction = False

    def __init__(self, weight: Weight, r: AboveZero) -> None:
        self.weight = check_weight("opl", weight)
        if isinstance(r, bool) or not isinstance(r, int | float) or not (math.isfinite(r) and r > 0):
            raise UserError(f"r={r} is not a number of standard deviations: give a finite number > 0 (3.0).")
        self.r = float(r)

    def __call__(self, context: Context) -> Tensor:
        distance, spread = _distance_and_spread(context.output.latents)
        return (distance - self.r * spread).relu().mean()


def outlier_rate(latents: Tensor) -> Tensor:
    """Share of latent positions with ||z_ij - m|| > 3 ||s||.

    Shapes:
        latents: (b, c, t', h', w')
        returns: () float32 in [0, 1], without gradient
    """
    distance, spread = _distance_and_spread(latents.detach())
    return (distance > RATE_R * spread).float().mean()


def outlier_distance(latents: Tensor) -> Tensor:
    """How far each position stands out of its frame, ||z_ij - m|| / ||s||; 0 everywhere in a constant frame.

    Shapes:
        latents: (b, c, t', h', w')
        returns: (b, t', h', w') float32, without gradient
    """
    distance, spread = _distance_and_spread(latents.detach())
    return distance / spread.clamp_min(torch.finfo(spread.dtype).tiny)


def _distance_and_spread(latents: Tensor) -> tuple[Tensor, Tensor]:
    """||z_ij - m|| (b, t', h', w') and ||s|| (b, t', 1, 1) of latents (b, c, t', h', w'), in float32.

    ||s|| is written as the norm of all deviations over sqrt(h' w'), which it equals: sqrt(variance) would have an
    infinite gradient where a channel is constant, the norm's gradient at 0 is 0.
    """
    with torch.autocast(latents.device.type, enabled=False):
        z = latents.float()
        deviation = z - z.mean(dim=(3, 4), keepdim=True)
        distance = torch.linalg.vector_norm(deviation, dim=1)
        spread = torch.linalg.vector_norm(distance, dim=(2, 3), keepdim=True) / math.sqrt(z.shape[3] * z.shape[4])
    return distance, spread
