"""Absolute error of frame differences."""

import torch
from torch import Tensor

from tae.losses.term import Context, check_weight
from tae.runtime.annotations import Weight


class Temporal:
    """mean |(y[i+1] - y[i]) - (x[i+1] - x[i])| over all values and neighbouring frames; 0 for a clip of one frame.

    An error that all frames share costs nothing here, one that flickers costs twice, so it punishes the step in quality from
    one latent frame to the next. Frame differences are what the metric `tpsnr` measures.

    Args:
        weight: factor in the objective; 0 turns the term off.
    """

    def __init__(self, weight: Weight) -> None:
        self.weight = check_weight("temporal", weight)

    def __call__(self, context: Context) -> Tensor:
        with torch.autocast(context.clip.device.type, enabled=False):
            error = context.output.reconstruction.float() - context.clip.float()
            if error.shape[2] == 1:
                return error.sum() * 0  # of an image, with a gradient for every parameter, which DDP waits for
            return error.diff(dim=2).abs().mean()
