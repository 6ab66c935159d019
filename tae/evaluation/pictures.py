"""Pictures to look at: clips side by side in one video, latent channels and their outliers as an image."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tae.losses.outlier import RATE_R, outlier_distance

MIN_VIDEO_HEIGHT = 256  # smaller clips are shown enlarged by a whole factor, each pixel a square
MAX_VIDEO_SIZE = 4096  # pixels a side; decoders in hardware take no more
LINE = 4  # pixels between the pictures of one video
CHANNEL_RANGE = 2.5  # standard deviations of a channel that its picture spans to each side of the mean
OUTLIER_RANGE = 2 * RATE_R  # where the map's colours end
OUTLIER_COLOUR = (0, 229, 255)  # of positions beyond RATE_R, which no colour of the map resembles


def enlargement(frames: Tensor) -> int:
    """The whole factor by which frames (t, h, w, 3) are shown enlarged."""
    return max(1, math.ceil(MIN_VIDEO_HEIGHT / frames.shape[1]))


def enlarged(frames: Tensor) -> Tensor:
    """(t, h, w, 3) -> (t, k h, k w, 3)."""
    factor = enlargement(frames)
    return frames.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


def mosaic_columns(count: int) -> int:
    """How many pictures stand in a row of a video of `count`: two side by side, more in a square."""
    return math.ceil(math.sqrt(count))


def places(count: int, height: int, width: int, columns: int) -> list[tuple[int, int]]:
    """(x, y) of each picture in a video of rows of `columns` pictures with lines between."""
    return [((i % columns) * (width + LINE), (i // columns) * (height + LINE)) for i in range(count)]


def mosaic(pictures: Sequence[Tensor], columns: int) -> Tensor:
    """Clips (t, h, w, 3) uint8 of one size in rows of `columns`, as `places` says, white lines between."""
    t, height, width, _ = pictures[0].shape
    spots = places(len(pictures), height, width, columns)
    whole = torch.full((t, max(y for _, y in spots) + height, max(x for x, _ in spots) + width, 3), 255).byte()
    for picture, (x, y) in zip(pictures, spots, strict=True):
        whole[:, y : y + height, x : x + width] = picture
    return whole


def side_by_side(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Original left, reconstruction right, a white line between.

    Shapes: (t, h, w, 3) uint8 twice -> (t, k h, k (2 w) + 4, 3) uint8, enlarged by the whole factor k.
    """
    return mosaic([enlarged(original), enlarged(reconstruction)], columns=2)


def reduction(count: int, height: int, width: int) -> int:
    """The whole factor by which pictures must shrink for a video of `count` of them to be one that browsers play."""
    columns = mosaic_columns(count)
    rows = math.ceil(count / columns)
    return math.ceil(max(columns * (width + LINE), rows * (height + LINE)) / MAX_VIDEO_SIZE)


def reduced(frames: Tensor, factor: int) -> Tensor:
    """(t, h, w, 3) uint8 -> (t, h // factor, w // factor, 3), each pixel the mean of those it stands for."""
    if factor == 1:
        return frames
    return F.avg_pool2d(frames.movedim(-1, 1).float(), factor).round().byte().movedim(1, -1)


def latent_picture(latents: Tensor) -> tuple[np.ndarray, dict[str, Any]]:
    """Latents (c, t', h', w') as one picture, a pixel for each position: a row for each latent frame, in it every channel in
    grey (mean +- 2.5 standard deviations over the clip) and then the map of outliers.

    Returns:
        (t' h', (c + 1) w', 3) uint8, and
        {"channels": c, "frames": t', "height": h', "width": w', "outliers": [their share of each latent frame]}
    """
    channels, frames, height, width = latents.shape
    flat = latents.float().flatten(1)
    mean, spread = flat.mean(1, keepdim=True), flat.std(1, correction=0, keepdim=True).clamp_min(1e-12)
    grey = ((flat - mean) / (2 * CHANNEL_RANGE * spread) + 0.5).clamp(0, 1).mul(255).round().byte()
    rows = grey.unflatten(1, (frames, height, width)).permute(1, 2, 0, 3).reshape(frames * height, channels * width, 1)
    distance = outlier_distance(latents[None])[0]
    colours = outlier_map(distance).reshape(frames * height, width, 3)
    shares = (distance > RATE_R).float().mean(dim=(1, 2)).tolist()
    about = {"channels": channels, "frames": frames, "height": height, "width": width, "outliers": shares}
    return np.concatenate([rows.numpy().repeat(3, 2), colours], axis=1), about


def outlier_map(distance: Tensor) -> np.ndarray:
    """(t', h', w') distances in standard deviations as colours (t', h', w', 3) uint8, outliers in a colour of their own."""
    from matplotlib import colormaps

    colours = colormaps["magma"](np.clip(distance.numpy() / OUTLIER_RANGE, 0, 1), bytes=True)[..., :3].copy()
    colours[distance.numpy() > RATE_R] = OUTLIER_COLOUR
    return colours
