"""The trivial codec that every model is compared with."""

import math

import torch.nn.functional as F
from torch import Tensor


def trilinear_baseline(clip: Tensor, time_factor: int, space_factor: int) -> Tensor:
    """A codec on the autoencoder's own grid without anything learned: trilinear down- and upsampling.

    Shapes: (b, 3, t, h, w) -> the same, through (b, 3, ceil(t / time_factor), ceil(h / space_factor),
    ceil(w / space_factor)).
    """
    factors = (time_factor, space_factor, space_factor)
    coarse = [math.ceil(size / factor) for size, factor in zip(clip.shape[2:], factors, strict=True)]
    small = F.interpolate(clip, size=coarse, mode="trilinear", align_corners=False)
    return F.interpolate(small, size=clip.shape[2:], mode="trilinear", align_corners=False)
