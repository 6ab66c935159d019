"""Folding 2x2x2 pixels into channels: front ends that shorten a clip before any convolution, and resampling with shortcuts.

Convolutions at full resolution are nearly all of a network's cost; on folded clips they cost 8 times less for each level.
An axis of odd length repeats its last value; what unfolding gives beyond the clip is cut off by `decode`.

Sources: the Haar front end is that of Cosmos' tokenizer (arXiv 2501.03575, section 4.1.2), the shortcuts around resampling
are those of DC-AE (arXiv 2410.10733, section 3.2), here in three dimensions.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tae.model.layers import Conv2_5d
from tae.model.memory_format import per_frame
from tae.model.temporal_conv import TemporalConv

HALF = 0.5**0.5
CELL = 8  # pixels in 2x2x2
AXES = (2, 3, 4)  # t, h, w


def haar_bands(x: Tensor) -> list[Tensor]:
    """The eight bands of one level of the orthonormal 3D Haar transform, the low one first.

    Shapes:
        x:       (b, c, t, h, w)
        returns: eight of (b, c, ceil(t / 2), ceil(h / 2), ceil(w / 2))
    """
    bands = [x]
    for dim in AXES:
        bands = [half for band in bands for half in haar_halves(band, dim)]
    return bands


def haar_halves(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Sums and differences of neighbours along an axis, by the root of 2."""
    first, second = repeat_to_even(x, dim).unflatten(dim, (-1, 2)).unbind(dim + 1)
    return (first + second) * HALF, (first - second) * HALF


def haar_merge(bands: list[Tensor]) -> Tensor:
    """The inverse of `haar_bands`, of even length along every axis."""
    for dim in reversed(AXES):
        pairs = zip(bands[::2], bands[1::2], strict=True)
        bands = [torch.stack((low + high, low - high), dim + 1).flatten(dim, dim + 1) * HALF for low, high in pairs]
    return bands[0]


def repeat_to_even(x: Tensor, dim: int) -> Tensor:
    """Repeat the last value along an axis of odd length."""
    if torch.compiler.is_exporting():
        return repeat_to_multiple(x, dim, 2)
    return torch.cat([x, x.narrow(dim, x.shape[dim] - 1, 1)], dim) if x.shape[dim] % 2 else x


def repeat_to_multiple(x: Tensor, dim: int, factor: int) -> Tensor:
    """Repeat the last value along an axis up to a multiple of `factor`: for graphs, with one path for any length.

    The places are counted by `nonzero`, whose length is a new symbol to what traces. Divided and rounded up it would be a
    term that grows with each fold, and tracing would spend minutes on reasoning about it.
    """
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # slow to import, and for graphs alone

    length = x.shape[dim]
    if statically_known_true(length % factor == 0):
        return x
    starts = (torch.arange(length, device=x.device) % factor == 0).nonzero()
    torch._check(starts.shape[0] >= 1)
    places = (starts + torch.arange(factor, device=x.device)).flatten()
    return x.index_select(dim, places.clamp(max=length - 1))


def space_to_channels(x: Tensor) -> Tensor:
    """Fold each 2x2x2 cell: (b, c, t, h, w) -> (b, 8 c, ceil(t / 2), ceil(h / 2), ceil(w / 2)), pixel by pixel."""
    for dim in AXES:
        x = repeat_to_even(x, dim)
    b, c, t, h, w = x.shape
    cells = x.movedim(1, -1).reshape(b, t // 2, 2, h // 2, 2, w // 2, 2, c)
    return cells.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4).movedim(-1, 1)


def channels_to_space(x: Tensor) -> Tensor:
    """The inverse of `space_to_channels`: (b, 8 c, t, h, w) -> (b, c, 2 t, 2 h, 2 w)."""
    b, c, t, h, w = x.shape
    cells = x.movedim(1, -1).reshape(b, t, h, w, 2, 2, 2, c // CELL)
    return cells.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, 2 * t, 2 * h, 2 * w, c // CELL).movedim(-1, 1)


def fold_haar(x: Tensor) -> Tensor:
    """`haar_bands` one after the other among the channels."""
    return torch.cat(haar_bands(x), 1)


def unfold_haar(x: Tensor) -> Tensor:
    """The inverse of `fold_haar`."""
    return haar_merge(list(x.chunk(CELL, 1)))


# A front end folds and unfolds by one level; none convolves at full resolution, as image autoencoders do.
Fold = Callable[[Tensor], Tensor]
FRONTENDS: dict[str, tuple[Fold, Fold] | None] = {
    "conv": None,
    "haar": (fold_haar, unfold_haar),
    "patch": (space_to_channels, channels_to_space),
}


class Folding(nn.Module):
    """The front end of an encoder: (b, 3, t, h, w) -> (b, 3 * 8^levels, t, h and w divided by 2^levels, rounded up)."""

    def __init__(self, frontend: str, levels: int) -> None:
        super().__init__()
        self.frontend = frontend
        self.levels = levels

    def forward(self, clip: Tensor) -> Tensor:
        functions = FRONTENDS[self.frontend]
        if functions is None:
            return clip
        for _ in range(self.levels):
            clip = functions[0](clip)
        return clip.contiguous(memory_format=torch.channels_last_3d)


class Unfolding(Folding):
    """The inverse of `Folding`, at the end of a decoder."""

    def forward(self, x: Tensor) -> Tensor:
        functions = FRONTENDS[self.frontend]
        if functions is None:
            return x
        folded = x.float()  # sums of 8 values for each level, which half precision would round 3 times
        for _ in range(self.levels):
            folded = functions[1](folded)
        return folded.to(x.dtype)


class AveragingDownsample(nn.Module):
    """Fold each 2x2x2 cell and convolve, around a shortcut that averages the cell: no value is out of the gradient's reach.

    Shapes: (b, in, t, h, w) -> (b, out, ceil(t / 2), ceil(h / 2), ceil(w / 2)), `out` 1, 2, 4 or 8 times `in`

    Of the 8 folded values of a channel as many neighbours are averaged as leaves `out` of them.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.kept = out_channels // in_channels
        self.conv = Conv2_5d(CELL * in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        folded = space_to_channels(x)
        shortcut = folded.unflatten(1, (self.kept, CELL // self.kept, x.shape[1])).mean(2).flatten(1, 2)
        return self.conv(folded, residual=shortcut.contiguous(memory_format=torch.channels_last_3d))


class DuplicatingUpsample(nn.Module):
    """A convolution to the values of each 2x2x2 cell, unfolded, around a shortcut that repeats what there is.

    Shapes: (b, in, t, h, w) -> (b, out, 2 t, 2 h, 2 w), `in` 1, 2, 4 or 8 times `out`
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.kept = in_channels // out_channels
        self.spatial = nn.Conv2d(in_channels, CELL * out_channels, 3, padding=1)
        self.temporal = TemporalConv(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        repeated = x.unflatten(1, (self.kept, -1)).repeat_interleave(CELL // self.kept, 1).flatten(1, 2)
        detail = channels_to_space(per_frame(self.spatial, x))
        return self.temporal(detail, residual=channels_to_space(repeated))
