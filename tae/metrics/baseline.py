"""The trivial codec that every model is compared with."""

import math

import torch.nn.functional as F
from torch import Tensor


def trilinear_baseline(clip: Tensor) -> Tensor:
    """A codec on the autoencoder's own grid without anything learned: 8x8x8 trilinear down- and upsampling.

    Shapes: (b, 3, t, h, w) -> the same, through (b, 3, ceil(t / 8), ceil(h / 8), ceil(w / 8)).
    """
    coarse = [math.ceil(size / 8) for size in clip.shape[2:]]
    small = F.interpolate(clip, size=coarse, mode="trilinear", align_corners=False)
    return F.interpolate(small, size=clip.shape[2:], mode="trilinear", align_corners=False)
