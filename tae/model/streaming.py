"""Streams: frames in as they arrive, latents out as soon as they are final, and the way back.

A stream is cut into tiles in time, counted from its start, so the pieces in which it is pushed do not matter: any pieces
give the same bits. It holds less than a tile and what the next tile is blended with, however long it runs.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol, TypeVar

from torch import Tensor

from tae.model.checks import check_clip, check_kept_size, check_latents, check_range
from tae.model.codec import LatentDecoder, TileableCodec, TileableDecoder
from tae.model.interface import VideoAutoencoder
from tae.model.pairing import tiny_decoder_of
from tae.model.posterior import DiagonalGaussian
from tae.model.tiling import TIME, OverlapAdd, Tiling, Windows, decode_in_space, encode_in_space
from tae.model.tiny_stream import TinyDecoderStream
from tae.runtime.errors import UserError

Out = TypeVar("Out")


class Stream(Protocol[Out]):
    """Takes pieces of a video, or of its latents, and gives what is final."""

    def push(self, piece: Tensor, /) -> list[Out]:
        """Take a piece of any length."""

    def flush(self) -> list[Out]:
        """End the stream."""


class EncoderStream:
    """Encode a video that arrives piece by piece. Without gradient; a video of one tile gives exactly `model.encode`.

    Args:
        model: the autoencoder, which is used as it is: put it in evaluation mode and where the frames are.
        tiling: how the video is cut; its overlap in time is that of decoding. None: tiles of 32 whole frames.

    Raises:
        UserError: the tiling does not fit the model, or the model cannot be cut.
    """

    def __init__(self, model: TileableCodec, tiling: Tiling | None = None) -> None:
        self.tiling = tiling or Tiling()
        check_tiles(model, self.tiling)
        self._model = model
        self._windows = Windows(self.tiling.tile_pixel_frames, overlap=0, dim=TIME)

    @property
    def latency(self) -> int:
        """Most frames that have to follow a frame before its latent is given, where the stream is not flushed."""
        return self.tiling.tile_pixel_frames - 1

    def push(self, clip: Tensor) -> list[DiagonalGaussian]:
        """Take frames, and give the posterior of each tile that they complete, in order.

        Shapes:
            clip:    (b, 3, t, h, w) in [-1, 1], of any t; all else is the same in each push
            returns: over (b, latent_channels, tile_pixel_frames / 8, ceil(h / 8), ceil(w / 8)) each

        Raises:
            ValueError: no clip, values beyond [-1, 1], unlike the first push, or after `flush`.
            TypeError: not floating-point values.
        """
        check_clip(clip, self._model.space_factor, shortest=0)
        check_range(clip)
        tiles = self._windows.push(clip)
        del clip  # its memory is free for the tiles' encoding, unless the caller keeps it
        return self._encode(tiles)

    def flush(self) -> list[DiagonalGaussian]:
        """End the stream, and give what is left: at most one posterior, of a tile that may be shorter.

        Raises:
            ValueError: it was flushed before.
        """
        return self._encode(self._windows.flush())

    def _encode(self, tiles: list[Tensor]) -> list[DiagonalGaussian]:
        return [encode_in_space(self._model, tile, self.tiling) for tile in tiles]


class DecoderStream:
    """Decode latents that arrive piece by piece. Without gradient; latents of one tile give exactly `model.decode`.

    A tiny decoder needs no tiles in time: it decodes frame by frame, and gives what decoding all at once gives, but for
    rounding (`tae.model.tiny_stream`).

    Args:
        model: the autoencoder, or a tiny decoder, which is used as it is.
        num_frames: how many frames to give in all, from the start; None gives all that the latents hold.
        size: height and width to keep, from the upper left; None keeps all.
        tiling: how the video is cut. None: tiles of 32 whole frames, which overlap by 16.

    Raises:
        UserError: the tiling does not fit the model, or the model cannot be cut.
        ValueError: fewer than one frame, row or column to give.
    """

    def __init__(
        self,
        model: TileableDecoder,
        num_frames: int | None = None,
        size: tuple[int, int] | None = None,
        tiling: Tiling | None = None,
    ) -> None:
        if any(wanted is not None and wanted < 1 for wanted in (num_frames, *(size or ()))):
            raise ValueError(f"num_frames={num_frames}, size={size}: give 1 or more, or None for all.")
        self.tiling = tiling or Tiling()
        tiny = tiny_decoder_of(model)
        if tiny is not None:  # in time it needs no tiles, so any fit
            self.tiling = replace(self.tiling, tile_pixel_frames=model.time_factor, overlap_pixel_frames=0)
        check_tiles(model, self.tiling, decoding=True)
        length, overlap = self.tiling.tile_pixel_frames, self.tiling.overlap_pixel_frames
        self._model = model
        self._size = size
        self._num_frames = num_frames
        self._given = 0
        self._frame_by_frame = None if tiny is None else TinyDecoderStream(tiny)
        self._windows = Windows(length // model.time_factor, overlap // model.time_factor, TIME)
        self._seams = OverlapAdd(overlap, TIME)
        self._end: Tensor | None = None  # no latents, of the shape of those that were pushed

    @property
    def latency(self) -> int:
        """Most frames whose latents have to follow that of a frame before it is given, where the stream is not flushed."""
        if self._frame_by_frame is not None:
            return self._frame_by_frame.latency
        return self.tiling.tile_pixel_frames - self._model.time_factor

    def push(self, latents: Tensor) -> list[Tensor]:
        """Take latents, and give the frames that no later latent changes, in order. Not clamped.

        Shapes:
            latents: (b, latent_channels, t', h', w'), of any t'; all else is the same in each push
            returns: clips (b, 3, at most tile_pixel_frames, *size); a tiny decoder's are of at most time_factor frames

        Raises:
            ValueError: no latents of this model, unlike the first push, less than `size`, or after `flush`.
            TypeError: not floating-point values.
        """
        check_latents(latents, self._model.latent_channels)
        factor = self._model.space_factor
        check_kept_size((latents.shape[3] * factor, latents.shape[4] * factor), self._size)
        tiles = self._windows.push(latents)
        self._end = latents[:, :, :0].clone()  # a view would keep what was pushed
        return self._wanted(self._decode(tiles))

    def flush(self) -> list[Tensor]:
        """End the stream, and give the frames that are left: of a tiny decoder, one clip of at most `latency` frames.

        Raises:
            ValueError: it was flushed before, or the latents held fewer than `num_frames` frames.
        """
        tiles = self._windows.flush()
        if self._frame_by_frame is not None and self._end is not None:
            tiles = [self._end]
        clips = self._wanted(self._decode(tiles)) + self._wanted(self._seams.flush())
        if self._num_frames is not None and self._given < self._num_frames:
            raise ValueError(f"num_frames={self._num_frames} was asked for; these latents hold {self._given}.")
        return clips

    def _decode(self, tiles: list[Tensor]) -> Iterator[Tensor]:
        for tile in tiles:
            if self._given == self._num_frames:
                return
            decoder: LatentDecoder = self._model
            if self._frame_by_frame is not None:
                decoder = self._frame_by_frame.next_frames(ends=not tile.shape[TIME])
            yield self._seams.push(decode_in_space(decoder, tile, self._size, self.tiling))

    def _wanted(self, clips: Iterable[Tensor]) -> list[Tensor]:
        """What of these clips belongs to the first `num_frames` frames."""
        wanted = []
        for clip in clips:
            if self._num_frames is not None:
                clip = clip[:, :, : self._num_frames - self._given]
            self._given += clip.shape[TIME]
            if clip.shape[TIME]:
                wanted.append(clip)
        return wanted


def encode_stream(
    model: TileableCodec, clips: Iterable[Tensor], tiling: Tiling | None = None
) -> Iterator[DiagonalGaussian]:
    """Push the clips of an iterator through an `EncoderStream`; what is final, one by one, as it is asked for.

    Shapes:
        clips:  pieces (b, 3, any t, h, w) in [-1, 1], in order
        yields: posteriors over (b, latent_channels, at most tile_pixel_frames / 8, ceil(h / 8), ceil(w / 8)), in order;
                together ceil(t / 8) latent frames for t frames in all

    Raises:
        UserError, ValueError, TypeError: as `EncoderStream`.
    """
    stream = EncoderStream(model, tiling)
    yield from push_all(stream, clips, most=stream.tiling.tile_pixel_frames)


def decode_stream(
    model: TileableDecoder,
    latents: Iterable[Tensor],
    num_frames: int | None = None,
    size: tuple[int, int] | None = None,
    tiling: Tiling | None = None,
) -> Iterator[Tensor]:
    """Push the latents of an iterator through a `DecoderStream`; what is final, one by one, as it is asked for.

    Shapes:
        latents: pieces (b, latent_channels, any t', h', w'), in order
        yields:  clips (b, 3, at most tile_pixel_frames, *size), in order, together `num_frames` frames; not clamped

    Raises:
        UserError, ValueError, TypeError: as `DecoderStream`.
    """
    stream = DecoderStream(model, num_frames, size, tiling)
    yield from push_all(stream, latents, most=1)


def check_tiles(model: LatentDecoder, tiling: Tiling, decoding: bool = False) -> None:
    """Refuse a model that cannot be cut, or a tiling that does not fit it.

    Raises:
        UserError: it is one.
    """
    if isinstance(model, VideoAutoencoder) and not model.cuts_anywhere:
        raise UserError(
            f"{model.name} takes clips of certain lengths only, and is neither streamed nor tiled here: encode and decode "
            "whole clips, or use what was exported with diffusers, which tiles by itself."
        )
    tiling.check(model.time_factor, model.space_factor, decoding)


def push_all(stream: Stream[Out], pieces: Iterable[Tensor], most: int) -> Iterator[Out]:
    """Push every piece, but at most `most` frames at once, so that no more than a tile is given at once; then flush."""
    for piece in pieces:
        parts = list(piece.split(most, dim=TIME))
        del piece
        while parts:
            yield from stream.push(parts.pop(0))
    yield from stream.flush()
