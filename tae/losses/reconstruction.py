"""Absolute error between a clip and its reconstruction."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tae.losses.term import Context, check_weight
from tae.runtime.annotations import Weight


class Reconstruction:
    """sum |x - y| / N over the N = b * 3 * t * h * w values of the clip (L1, Movie Gen section 3.1.1).

    Args:
        weight: factor in the objective; 0 turns the term off.
        learned_scale: the objective divides this term and the perceptual one by exp(s) and adds s, a number that is trained:
            the negative log likelihood of a Laplace distribution whose scale exp(s) is learned, as in latent diffusion's
            and Stable Diffusion's trainings (arXiv 2112.10752, `logvar`). At the optimum exp(s) is the mean distance.
    """

    is_distance = True

    def __init__(self, weight: Weight, learned_scale: bool = False) -> None:
        self.weight = check_weight("reconstruction", weight)
        self.log_scale = nn.Parameter(torch.zeros(())) if learned_scale else None

    def __call__(self, context: Context) -> Tensor:
        with torch.autocast(context.clip.device.type, enabled=False):
            return F.l1_loss(context.output.reconstruction.float(), context.clip.float())
