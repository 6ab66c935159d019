"""Video of any length and size in pieces: tiles in time and in space, blended where they overlap.

Everything goes through two classes on one axis: `Windows` cuts a stream into overlapping tiles, `OverlapAdd` blends tiles
back into a stream. Neither holds more than a tile, so with small pieces memory does not depend on the length. A tile of 4K
frames is 3 GB, so what was handed on is let go of at once: a suspended generator keeps its variables.

Units: pixel frames and pixels are those of the video, latent frames those of the latent (`model.time_factor` times fewer).

Source: Movie Gen (arXiv 2410.13720), section 3.1.1, "temporal tiling": tiles of 32 pixel frames, no overlap for
encoding, 16 pixel frames (2 latent frames) blended linearly for decoding. Spatial tiles are the same along
height and width.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tae.model.checks import check_clip, check_kept_size
from tae.model.codec import Codec, LatentDecoder
from tae.model.posterior import DiagonalGaussian
from tae.runtime.errors import UserError

TIME, HEIGHT, WIDTH = 2, 3, 4  # axes of clips and latents, (b, c, t, h, w)


@dataclass(frozen=True)
class Tiling:
    """How a video is cut. All are multiples of the model's factors, and an overlap is smaller than its tile.

    Args:
        tile_pixel_frames: length of a tile in time.
        overlap_pixel_frames: what neighbouring tiles share in time when decoding; encoding has no overlap and does not
            look at it.
        tile_pixels: largest height and width of a tile; None leaves frames whole.
        overlap_pixels: what neighbouring tiles share in height and width, when encoding and decoding.
    """

    tile_pixel_frames: int = 32
    overlap_pixel_frames: int = 16
    tile_pixels: int | None = None
    overlap_pixels: int = 64

    def __post_init__(self) -> None:
        for name, size in vars(self).items():
            if not isinstance(size, int) and (size is not None or name != "tile_pixels"):
                raise UserError(f"{name}={size} cannot be used: give a whole number.")

    def check(self, time_factor: int, space_factor: int, decoding: bool = False) -> None:
        """Refuse what does not fit a model of these factors, for encoding alone or for `decoding` as well.

        Raises:
            UserError: a size is no multiple of its factor, or an overlap does not leave a tile anything of its own.
        """
        overlap_in_time = self.overlap_pixel_frames if decoding else 0
        axes = [("pixel_frames", self.tile_pixel_frames, overlap_in_time, time_factor)]
        if self.tile_pixels is not None:
            axes.append(("pixels", self.tile_pixels, self.overlap_pixels, space_factor))
        for unit, tile, overlap, factor in axes:
            if tile % factor or overlap % factor or not 0 <= overlap < tile:
                raise UserError(
                    f"tile_{unit}={tile} with overlap_{unit}={overlap} cannot be used: both must be multiples of "
                    f"{factor}, and the overlap at least 0 and smaller than the tile."
                )


@torch.no_grad()
def encode_in_space(model: Codec, clip: Tensor, tiling: Tiling) -> DiagonalGaussian:
    """`model.encode`, with blended tiles in height and width where the clip is larger than one."""
    if tiling.tile_pixels is None:
        return model.encode(clip)

    def encode_tile(tile: Tensor) -> Tensor:
        posterior = model.encode(tile)
        return torch.cat([posterior.mean, posterior.logvar], dim=1)

    factor, (height, width) = model.space_factor, clip.shape[3:]
    check_clip(clip, smallest=factor)
    if width % factor or height % factor:  # no tile is too small then
        clip = F.pad(clip, (0, -width % factor, 0, -height % factor, 0, 0), mode="replicate")
    moments = in_tiles(encode_tile, clip, tiling.tile_pixels, tiling.overlap_pixels, unit=factor, scale=1 / factor)
    return DiagonalGaussian(*moments.chunk(2, dim=1))


@torch.no_grad()
def decode_in_space(model: LatentDecoder, latents: Tensor, size: tuple[int, int] | None, tiling: Tiling) -> Tensor:
    """`model.decode`, with blended tiles in height and width where the latents are larger than one."""
    if tiling.tile_pixels is None:
        return model.decode(latents, size=size)
    factor = model.space_factor
    tile, overlap = tiling.tile_pixels // factor, tiling.overlap_pixels // factor
    clip = in_tiles(model.decode, latents, tile, overlap, unit=1, scale=factor)
    check_kept_size((clip.shape[3], clip.shape[4]), size)
    height, width = size or clip.shape[3:]
    return clip[..., :height, :width]


def in_tiles(
    function: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int, unit: int, scale: float
) -> Tensor:
    """Apply a function to blended tiles over height and width.

    Shapes:
        x:       (b, c, t, h, w), with h and w multiples of `unit`
        returns: (b, c', t', h * scale, w * scale), as the function scales

    Args:
        tile, overlap: in rows and columns of `x`; the tiles of one axis are of nearly equal size, at most `tile`.
        unit: what a tile's size is a multiple of.
    """

    def along(dim: int, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def tiled(x: Tensor) -> Tensor:
            if x.shape[dim] <= tile:
                return function(x)
            windows = Windows(even_tile(x.shape[dim], tile, overlap, unit), overlap, dim)
            tiles = map(function, windows.push(x) + windows.flush())
            return join(stitch(tiles, round(overlap * scale), dim), round(x.shape[dim] * scale), dim)

        return tiled

    return along(HEIGHT, along(WIDTH, function))(x)


def join(parts: Iterable[Tensor], extent: int, dim: int) -> Tensor:
    """What torch.cat gives, without ever holding all parts beside the whole; they have `extent` in all along `dim`."""
    whole, start = None, 0
    for part in parts:
        if whole is None:
            whole = part.new_empty([extent if axis == dim else side for axis, side in enumerate(part.shape)])
        whole.narrow(dim, start, part.shape[dim]).copy_(part)
        start += part.shape[dim]
    assert whole is not None  # there is always a tile
    return whole


def even_tile(extent: int, tile: int, overlap: int, unit: int) -> int:
    """The smallest tile that covers `extent`, which is more than `tile`, in as few tiles as `tile` does.

    A last tile of a few columns would have statistics of its own (normalisation, attention) and leave a visible seam.
    """
    count = math.ceil((extent - overlap) / (tile - overlap))
    return math.ceil((extent + (count - 1) * overlap) / count / unit) * unit


class Windows:
    """Cut a stream that arrives in pieces into windows that overlap.

    Args:
        length, overlap: of the windows along `dim`: each starts `length - overlap` after the one before.
        dim: the axis along which the stream runs; pieces are alike in all else.
    """

    def __init__(self, length: int, overlap: int, dim: int) -> None:
        self.length = length
        self.overlap = overlap
        self.dim = dim
        self.pending: list[Tensor] = []
        self.seen = 0  # how much of what is pending has been in a window
        self.form: str | None = None  # of the first piece
        self.flushed = False

    def push(self, piece: Tensor) -> list[Tensor]:
        """The windows that this piece completes; they may be views of it. What is kept of it is a copy.

        Raises:
            ValueError: the piece is unlike the first one, or the stream has ended.
        """
        self.check(piece)
        held = sum(part.shape[self.dim] for part in self.pending)
        if held + piece.shape[self.dim] < self.length:
            self.pending += [piece.clone()] if piece.shape[self.dim] else []
            return []
        whole = concatenate([*self.pending, piece], self.dim)
        windows, rest = cut(whole, self.length, self.overlap, self.dim)
        self.pending, self.seen = [rest] if rest.shape[self.dim] else [], self.overlap
        return windows

    def flush(self) -> list[Tensor]:
        """What remains: a last window, where it holds more than the overlap alone, or all there was if less than a window.

        Raises:
            ValueError: the stream has ended before.
        """
        self.check_open()
        self.flushed = True
        pending, self.pending = self.pending, []
        more = sum(part.shape[self.dim] for part in pending) > self.seen
        return [concatenate(pending, self.dim)] if more else []

    def check(self, piece: Tensor) -> None:
        """Refuse a piece that does not continue the stream."""
        self.check_open()
        shape = ", ".join("any" if axis == self.dim else str(side) for axis, side in enumerate(piece.shape))
        form = f"({shape}) {piece.dtype} on {piece.device}"
        self.form = self.form or form
        if form != self.form:
            raise ValueError(f"A stream began with pieces {self.form}; got {form}. Flush it, and make another one.")

    def check_open(self) -> None:
        if self.flushed:
            raise ValueError("This stream was flushed, which ends it. Make a new one for each video.")


def concatenate(parts: list[Tensor], dim: int) -> Tensor:
    """torch.cat, without the copy that it makes of a single part."""
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]


def cut(x: Tensor, length: int, overlap: int, dim: int) -> tuple[list[Tensor], Tensor]:
    """The windows that lie in `x`, as views of it, and a copy of what the next one begins with."""
    starts = range(0, x.shape[dim] - length + 1, length - overlap)
    begun = starts[-1] + length - overlap
    return [x.narrow(dim, start, length) for start in starts], x.narrow(dim, begun, x.shape[dim] - begun).clone()


class OverlapAdd:
    """Blend tiles, each of which starts `overlap` before the end of the one before, into a stream without overlap.

    A tile may be shorter than the overlap only where it is the only one. Tiles are overwritten.
    """

    def __init__(self, overlap: int, dim: int) -> None:
        self.overlap = overlap
        self.dim = dim
        self.tail: Tensor | None = None  # of the last tile, to be blended with the next

    def push(self, tile: Tensor) -> Tensor:
        """What the next tile does not change of this one; a view of it."""
        if self.tail is not None:
            fade_in(tile.narrow(self.dim, 0, self.overlap), self.tail, self.dim)
        length = tile.shape[self.dim]
        finished = max(length - self.overlap, 0)
        self.tail = tile.narrow(self.dim, finished, length - finished).clone()
        return tile.narrow(self.dim, 0, finished)

    def flush(self) -> list[Tensor]:
        """The end of the last tile, where there was one."""
        tail, self.tail = self.tail, None
        return [] if tail is None else [tail]


def stitch(tiles: Iterable[Tensor], overlap: int, dim: int) -> Iterator[Tensor]:
    """Tiles through an `OverlapAdd`."""
    seams = OverlapAdd(overlap, dim)
    yield from map(seams.push, tiles)
    yield from seams.flush()


def fade_in(after: Tensor, before: Tensor, dim: int) -> None:
    """Overwrite `after` by the fade from `before` over what both hold. Where they are equal that value stays exactly."""
    weights = blending_weights(before.shape[dim]).to(before)
    torch.lerp(before, after, weights.view([-1] + [1] * (before.ndim - 1 - dim)), out=after)


def blending_weights(length: int) -> Tensor:
    """Share of the later tile in each of `length` shared frames (rows, columns): a linear ramp inside (0, 1).

    (i + 1) / (length + 1): even steps from the earlier tile alone, just before, to the later tile alone, just after.
    The earlier tile's share is the same ramp mirrored.
    """
    return torch.arange(1, length + 1) / (length + 1)
