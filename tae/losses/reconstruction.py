"""Absolute error between a clip and its reconstruction."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tae.losses.term import Context, check_weight
from tae.runtime.annotations import Weight


class Reconstruction:
    """sum |x - y| / N over the N = b * 3 * t * h * w values of the clip (L1, Movie Gen section 3.1.1)."""

    def __init__(self, weight: Weight) -> None:
        self.weight = check_weight("reconstruction", weight)

    def __call__(self, context: Context) -> Tensor:
        with torch.autocast(context.clip.device.type, enabled=False):
            return F.l1_loss(context.output.reconstruction.float(), context.clip.float())
