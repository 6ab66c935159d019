"""What an autoencoder does to a changed clip, and to changed latents: two measures that run it a few times more."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tae.metrics.frame import psnr
from tae.model.codec import Codec
from tae.model.frame_conversion import clip_to_frames

PROBED_FRAMES = 17  # of a clip that is probed: 2 x 8 + 1, 4 x 4 + 1
NOISE = (0.0, 0.05, 0.1, 0.2, 0.4)  # standard deviations of each channel
SEED = 0


class Probed(NamedTuple):
    """One clip's: {transform: error}, without those that it is too small for; PSNR in dB for each of `NOISE`."""

    key: str
    equivariance: dict[str, float]
    decode_noise: list[float]


def probe(codec: Codec, key: str, clip: Tensor, variance: Tensor) -> Probed:
    """Both measures of one clip.

    Args:
        codec: the autoencoder.
        key: of the clip.
        clip: (1, 3, t, h, w) in [-1, 1]; its first frames and upper left are taken, see `aligned`.
        variance: (c,) of each channel over the set.
    """
    clip = aligned(clip, codec.time_factor, codec.space_factor)
    latents = codec.encode(clip).mode().float()
    variance = variance.to(latents)
    return Probed(
        key, equivariance(codec, clip, latents, variance), decode_noise(codec, clip, latents, variance.sqrt())
    )


def aligned(clip: Tensor, time_factor: int, space_factor: int) -> Tensor:
    """The part of a clip on which transforms of pixels and of latents can agree.

    k time_factor + 1 frames, at most 17, so that the first and the last one have a latent frame of their own; rows and
    columns in multiples of twice the space factor (of the space factor where there are fewer).
    """
    frames, *size = clip.shape[2:]
    frames = (min(frames, PROBED_FRAMES) - 1) // time_factor * time_factor + 1
    step = 2 * space_factor if min(size) >= 2 * space_factor else space_factor
    height, width = (max(side // step * step, min(side, step)) for side in size)
    return clip[:, :, :frames, :height, :width]


def halved(values: Tensor) -> Tensor:
    """Height and width halved by 2x2 means."""
    return F.avg_pool3d(values, (1, 2, 2))


TRANSFORMS: dict[
    str, Callable[[Tensor], Tensor]
] = {  # each of pixels and, in the same words, of latents (b, c, t, h, w)
    "flip": lambda values: values.flip(4),
    "quarter_turn": lambda values: values.rot90(1, (3, 4)),
    "half_size": halved,
    "time_reversal": lambda values: values.flip(2),
}


def equivariance(codec: Codec, clip: Tensor, latents: Tensor, variance: Tensor) -> dict[str, float]:
    """How far E(T x) is from T(E(x)): the mean over channels of the mean square of the difference / (2 variance).

    0 where they are equal, 1 where they are as far apart as unrelated latents.

    Args:
        codec: the autoencoder.
        clip: (1, 3, t, h, w), aligned.
        latents: (1, c, t', h', w') of the clip.
        variance: (c,) of each channel over the set.
    """
    found = {}
    for name, transform in TRANSFORMS.items():
        small = name == "half_size" and min(clip.shape[3:]) < 2 * codec.space_factor
        if small or (name == "time_reversal" and latents.shape[2] < 2):
            continue
        wanted = transform(latents)
        given = codec.encode(transform(clip).contiguous()).mode().float()
        if given.shape == wanted.shape:
            known = variance > 0
            error = (given - wanted).square().mean(dim=(0, 2, 3, 4))[known] / (2 * variance[known])
            found[name] = error.mean().item()
    return found


def decode_noise(codec: Codec, clip: Tensor, latents: Tensor, std: Tensor) -> list[float]:
    """PSNR in dB of D(z + s std n), n normal noise, the same for every s: what a generator's small errors cost.

    Args:
        codec: the autoencoder.
        clip: (1, 3, t, h, w) in [-1, 1].
        latents: (1, c, t', h', w') of the clip.
        std: (c,) of each channel over the set.
    """
    frames, *size = clip.shape[2:]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(SEED)).to(latents)
    noise = noise * std.view(1, -1, 1, 1, 1)
    original = clip_to_frames(clip)[0]
    found = []
    for scale in NOISE:
        decoded = codec.decode(latents + scale * noise, num_frames=frames, size=(size[0], size[1]))
        values = psnr(original, clip_to_frames(decoded.float())[0])
        found.append(values.mean().item() if decoded.isfinite().all() else math.nan)
    return found
