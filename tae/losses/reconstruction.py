"""Absolute or squared error between a clip and its reconstruction."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tae.losses.term import Context, check_weight
from tae.runtime.annotations import Weight
from tae.runtime.errors import UserError

Distance = Literal["l1", "l2"]
DISTANCES = {"l1": F.l1_loss, "l2": F.mse_loss}


class Reconstruction:
    """sum |x - y| / N over the N = b * 3 * t * h * w values of the clip (L1, Movie Gen section 3.1.1).

    Args:
        weight: factor in the objective; 0 turns the term off.
        distance: "l1", or "l2" for the mean of (x - y)^2, by which PSNR is measured: more dB in fewer steps, and blurrier.
        learned_scale: the objective divides this term and the perceptual one by exp(s) and adds s, a number that is trained:
            the negative log likelihood of a Laplace distribution whose scale exp(s) is learned, as in latent diffusion's
            and Stable Diffusion's trainings (arXiv 2112.10752, `logvar`). At the optimum exp(s) is the mean distance.

    Raises:
        UserError: an unknown distance, or a learned scale of squares, of which that likelihood is none.
    """

    is_distance = True

    def __init__(self, weight: Weight, learned_scale: bool = False, distance: Distance = "l1") -> None:
        self.weight = check_weight("reconstruction", weight)
        if distance not in DISTANCES:
            raise UserError(f'distance="{distance}" is unknown. Choose one of: {", ".join(DISTANCES)}.')
        if learned_scale and distance != "l1":
            raise UserError(
                f"learned_scale=true is the likelihood of absolute errors: distance={distance} has to be l1."
            )
        self.distance = DISTANCES[distance]
        self.log_scale = nn.Parameter(torch.zeros(())) if learned_scale else None

    def __call__(self, context: Context) -> Tensor:
        with torch.autocast(context.clip.device.type, enabled=False):
            return self.distance(context.output.reconstruction.float(), context.clip.float())
