"""Absolute error in the bands of a 3D Haar transform."""

import torch
from torch import Tensor

from tae.losses.term import Context, check_weight
from tae.runtime.annotations import AtLeastOne, Weight

HALF = 0.5**0.5


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


def haar_bands(clip: Tensor) -> list[Tensor]:
    """The eight bands of one level of the orthonormal 3D Haar transform, the low one first.

    Shapes:
        clip:    (b, c, t, h, w)
        returns: eight of (b, c, ceil(t / 2), ceil(h / 2), ceil(w / 2))
    """
    bands = [clip]
    for dim in (2, 3, 4):
        bands = [half for band in bands for half in haar_halves(band, dim)]
    return bands


def haar_halves(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Sums and differences of neighbours along an axis, by the root of 2."""
    if x.shape[dim] % 2:
        x = torch.cat([x, x.narrow(dim, x.shape[dim] - 1, 1)], dim)
    first, second = x.unflatten(dim, (-1, 2)).unbind(dim + 1)
    return (first + second) * HALF, (first - second) * HALF
