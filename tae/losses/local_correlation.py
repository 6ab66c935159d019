"""Local correlation of latents: neighbouring latent values shall be alike."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tae.losses.term import Context, check_weight
from tae.runtime.annotations import Share, Weight
from tae.runtime.schema import check_arguments

SMALLEST_VARIANCE = 1e-6


class LocalCorrelation:
    """mean over channels of max(threshold - r, 0), r a channel's correlation of a value with its 2x2x2 window's mean.

    r is computed over all positions of the batch: 1 - (mean variance inside of windows) / (variance over all). A channel
    whose neighbours agree costs nothing; one that looks like noise costs nearly `threshold`. It acts on the posterior's
    mean, since the sample's noise is not the encoder's to shape. Where an axis is shorter than 2, the window is 1 long.

    After the local correlation regularisation of SSVAE (arXiv 2512.05394), for latents with most of their energy in low
    frequencies; the definition by variances is this project's.

    Args:
        weight: factor in the objective; 0 turns the term off.
        threshold: correlation from which on nothing is gained.
    """

    uses_reconstruction = False

    def __init__(self, weight: Weight, threshold: Share = 0.75) -> None:
        check_arguments(LocalCorrelation, {"threshold": threshold})
        self.weight = check_weight("local_correlation", weight)
        self.threshold = threshold

    def __call__(self, context: Context) -> Tensor:
        return (self.threshold - local_correlation(context.output.posterior.mean)).relu().mean()


def local_correlation(latents: Tensor) -> Tensor:
    """1 - (mean variance inside of 2x2x2 windows) / (variance over all positions), of each channel.

    Shapes:
        latents: (b, c, t', h', w')
        returns: (c,) float32, 1 for a constant channel
    """
    with torch.autocast(latents.device.type, enabled=False):
        z = latents.float()
        window = [min(2, extent) for extent in z.shape[2:]]
        mean, square = F.avg_pool3d(z, window), F.avg_pool3d(z.square(), window)
        inside = (square - mean.square()).clamp_min(0).mean(dim=(0, 2, 3, 4))
        overall = z.var(dim=(0, 2, 3, 4), correction=0)
        return 1 - inside / (overall + SMALLEST_VARIANCE)
