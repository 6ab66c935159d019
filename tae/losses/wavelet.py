"""Absolute error in the bands of a 3D Haar transform."""

import torch
from torch import Tensor

from tae.losses.term import Context, check_weight
from tae.model.folding import haar_bands
from tae.runtime.annotations import AtLeastOne, Weight


class Wavelet:
    """Mean over levels and bands of the mean absolute difference of 3D Haar coefficients of clip and reconstruction.

    The transform is orthonormal; an axis of odd length repeats its last value. Each level takes the low band of the one
    before. An error of a single value costs eight times what the same sum costs when it is spread over its 2x2x2 neighbours,
    which plain L1 cannot tell apart, so edges and motion are minded. WF-VAE (arXiv 2411.17459) trains with wavelet
    coefficients inside of its own network; bands of the clip are the form that any network can use.

    Args:
        weight: factor in the objective; 0 turns the term off.
        levels: of the transform.
    """

    def __init__(self, weight: Weight, levels: AtLeastOne = 1) -> None:
        self.weight = check_weight("wavelet", weight)
        self.levels = levels

    def __call__(self, context: Context) -> Tensor:
        with torch.autocast(context.clip.device.type, enabled=False):
            # The transform is linear: that of the difference is the difference of the transforms, at half the cost.
            low = context.output.reconstruction.float() - context.clip.float()
            means = []
            for _ in range(self.levels):
                bands = haar_bands(low)
                means += [band.abs().mean() for band in bands]
                low = bands[0]
            return torch.stack(means).mean()
