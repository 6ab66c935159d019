"""Frames of any size to a square of the resolution. All uint8: the value range is `tae.clip`'s business."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def resize_short_side(frames: Tensor, size: int) -> Tensor:
    """Scale so that the shorter side becomes `size`, keeping the aspect ratio (bicubic, antialiased).

    Shapes:
        frames:  (t, h, w, 3) uint8
        returns: (t, h', w', 3) uint8 with min(h', w') == size

    The input's memory is channels-last already, so the resampling works on a view and copies nothing.
    """
    height, width = frames.shape[1:3]
    short = min(height, width)
    if short == size:
        return frames
    scaled = (max(size, round(height * size / short)), max(size, round(width * size / short)))
    return F.interpolate(frames.movedim(-1, 1), size=scaled, mode="bicubic", antialias=True).movedim(1, -1)


def centre_crop(frames: Tensor, size: int) -> Tensor:
    """The middle (t, size, size, 3) of (t, h, w, 3)."""
    top, left = ((side - size) // 2 for side in frames.shape[1:3])
    return frames[:, top : top + size, left : left + size]


def random_crop(frames: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """A (t, size, size, 3) part of (t, h, w, 3), the same one in every frame."""
    top, left = (int(rng.integers(side - size + 1)) for side in frames.shape[1:3])
    return frames[:, top : top + size, left : left + size]


def to_square(frames: np.ndarray, size: int, rng: np.random.Generator | None) -> Tensor:
    """Short side to `size`, then a crop: the centre without a generator, a random one with it.

    Shapes:
        frames:  (t, h, w, 3) uint8
        returns: (t, size, size, 3) uint8, possibly a view of a larger picture
    """
    scaled = resize_short_side(torch.from_numpy(frames), size)
    return centre_crop(scaled, size) if rng is None else random_crop(scaled, size, rng)
