"""Views of an activation as frames or as columns, without a copy. See `tae.model.layers` for the shapes.

Without gradient (in inference, and inside of an autograd function) a view is one operation, not three: the host's time
for launching operations is what limits a step of small clips on a GPU.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def as_frames(x: Tensor) -> Tensor:
    """View (b, c, t, h, w) as (b t, c, h, w)."""
    if is_viewed_at_once(x):
        b, c, t, h, w = x.shape
        return x.as_strided((b * t, c, h, w), (c * h * w, 1, c * w, c))
    return x.movedim(1, -1).flatten(0, 1).movedim(-1, 1)


def as_clip(frames: Tensor, batch: int) -> Tensor:
    """View (b t, c, h, w) as (b, c, t, h, w)."""
    if is_viewed_at_once(frames):
        n, c, h, w = frames.shape
        return frames.as_strided((batch, c, n // batch, h, w), (n // batch * c * h * w, 1, c * h * w, c * w, c))
    return frames.movedim(1, -1).unflatten(0, (batch, -1)).movedim(-1, 1)


def as_columns(x: Tensor) -> Tensor:
    """View (b, c, t, h, w) as (b, c, t, h w).

    Merged in the order of memory: `x.flatten(3)` is the same view but gives a batch of one a stride by which cuDNN takes
    it for channels-first, and copies it, twice, in every backward pass.
    """
    if is_viewed_at_once(x):
        b, c, t, h, w = x.shape
        return x.as_strided((b, c, t, h * w), (c * t * h * w, 1, c * h * w, c))
    return x.movedim(1, -1).flatten(2, 3).movedim(-1, 1)


def is_viewed_at_once(x: Tensor) -> bool:
    """Whether autograd and compilers need not understand the view, and (b, t, h, w, c) is the order in memory."""
    channels_last = torch.channels_last_3d if x.ndim == 5 else torch.channels_last
    return (
        not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and x.is_contiguous(memory_format=channels_last)
    )


def per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply an image layer to every frame of (b, c, t, h, w); it may change channels, height and width."""
    return as_clip(layer(as_frames(x)), batch=x.shape[0])
