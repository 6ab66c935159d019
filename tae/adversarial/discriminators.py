"""Discriminators of patches: one judges frames, one judges clips.

Source: PatchGAN (pix2pix, arXiv 1611.07004) without batch normalisation, with spectral normalisation (arXiv 1802.05957).
"""

import itertools
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

MAX_WIDENING = 8  # of the first layer's channels, as in pix2pix


class PatchDiscriminator(nn.Module):
    """Convolutions that halve height and width, then one logit for each place: how real its neighbourhood looks.

    Shapes (b batch, t frames):
        clip:    (b, 3, t, h, w) in [-1, 1], with t >= 1, h and w >= 2 ** layers
        returns: over "frame" (b t, 1, h', w'), over "clip" (b, 1, t', h', w')

    Args:
        over: "frame" looks at each frame alone, "clip" at three frames, then more, whose number halves in all layers but the
            first.
        channels: of the first layer; each further one has twice as many, up to eight times.
        layers: how many halve height and width.
    """

    def __init__(self, over: Literal["frame", "clip"], channels: int, layers: int) -> None:
        super().__init__()
        self.over = over
        widths = [3] + [channels * min(2**i, MAX_WIDENING) for i in range(layers + 1)]
        blocks: list[nn.Module] = []
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            blocks += [self.convolution(before, after, halve=i < layers, in_time=i > 0), nn.LeakyReLU(0.2)]
        self.blocks = nn.Sequential(*blocks)
        self.head = self.convolution(widths[-1], 1, halve=False, in_time=False)

    def convolution(self, before: int, after: int, halve: bool, in_time: bool) -> nn.Module:
        kernel, stride = (4, 2) if halve else (3, 1)
        if self.over == "frame":
            return spectral_norm(nn.Conv2d(before, after, kernel, stride, padding=1))
        strides = (2 if halve and in_time else 1, stride, stride)
        return spectral_norm(nn.Conv3d(before, after, (3, kernel, kernel), strides, padding=1))

    def forward(self, clip: Tensor) -> Tensor:
        x = clip.movedim(2, 1).flatten(0, 1) if self.over == "frame" else clip
        return self.head(self.blocks(x))


def make_discriminators(frame_channels: int, clip_channels: int, layers: int) -> nn.ModuleDict:
    """The discriminators of frames and of clips; a number of channels of 0 leaves one out."""
    channels: dict[Literal["frame", "clip"], int] = {"frame": frame_channels, "clip": clip_channels}
    return nn.ModuleDict({over: PatchDiscriminator(over, n, layers) for over, n in channels.items() if n})


@torch.no_grad()
def share_of_right(real: Tensor, fake: Tensor, pairs: bool) -> Tensor:
    """Share of logits that are on the right side of 0; of `pairs`, share in which the real one is larger."""
    if pairs:
        return (real > fake).float().mean()
    return ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
