"""Views of an activation as frames or as columns, without a copy. See `tae.model.layers` for the shapes."""

from collections.abc import Callable

from torch import Tensor


def as_frames(x: Tensor) -> Tensor:
    """View (b, c, t, h, w) as (b t, c, h, w)."""
    return x.movedim(1, -1).flatten(0, 1).movedim(-1, 1)


def as_clip(frames: Tensor, batch: int) -> Tensor:
    """View (b t, c, h, w) as (b, c, t, h, w)."""
    return frames.movedim(1, -1).unflatten(0, (batch, -1)).movedim(-1, 1)


def as_columns(x: Tensor) -> Tensor:
    """View (b, c, t, h, w) as (b, c, t, h w).

    Merged in the order of memory: `x.flatten(3)` is the same view but gives a batch of one a stride by which cuDNN takes
    it for channels-first, and copies it, twice, in every backward pass.
    """
    return x.movedim(1, -1).flatten(2, 3).movedim(-1, 1)


def per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply an image layer to every frame of (b, c, t, h, w); it may change channels, height and width."""
    return as_clip(layer(as_frames(x)), batch=x.shape[0])
