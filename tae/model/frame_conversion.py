"""Frames to clips and back: the only place that knows the model's value range."""

import torch
from torch import Tensor


def frames_to_clip(frames: Tensor) -> Tensor:
    """Turn decoded frames into what the model takes.

    Shapes (b batch, t frames, h height, w width):
        frames:  (b, t, h, w, 3) uint8 RGB
        returns: (b, 3, t, h, w) float32 in [-1, 1], stored channels-last (the frames' own order, so nothing is permuted)

    Raises:
        TypeError: frames are not uint8 (their value range would be a guess).
        ValueError: frames do not have five axes ending in 3 channels.
    """
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames must be uint8 RGB as a video decoder gives them; got {frames.dtype}.")
    if frames.ndim != 5 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be (b, t, h, w, 3); got {tuple(frames.shape)}.")
    return frames.movedim(-1, 1).float().div_(127.5).sub_(1.0)


def clip_to_frames(clip: Tensor) -> Tensor:
    """Turn a clip back into frames: clamp to [-1, 1], round to the nearest of 256 levels.

    Shapes:
        clip:    (b, 3, t, h, w) float
        returns: (b, t, h, w, 3) uint8 RGB

    `clip_to_frames(frames_to_clip(frames))` gives the same frames again.
    """
    levels = clip.float().clamp(-1.0, 1.0).add(1.0).mul(127.5).round()
    return levels.to(torch.uint8).movedim(1, -1)
