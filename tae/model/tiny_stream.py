"""A tiny decoder on latents that arrive frame by frame: the same clip as of all of them at once.

Each block looks one frame back and one ahead, at its own rate. So it keeps two frames and waits for one: nothing is decoded
twice, nothing is blended, and there is no seam. What is given differs from `TinyDecoder.decode` by rounding alone.
"""

import math
from typing import Self, cast

import torch
from torch import Tensor

from tae.model.memory_format import per_frame
from tae.model.tiny_decoder import JoinedBlock, TinyDecoder, TinyLevel

TIME = 2


class JoinedFrames:
    """A block on frames that arrive piece by piece.

    Shapes: (b, c, any t, h, w) -> (b, c, as many as have a frame after them, h, w)
    """

    def __init__(self, block: JoinedBlock) -> None:
        self.block = block
        self.before: Tensor | None = None  # of the frame that waits for the one after it
        self.waiting: Tensor | None = None

    def push(self, x: Tensor) -> Tensor:
        """What the block gives of the frames whose next one is there."""
        if not x.shape[TIME]:
            return x
        x = x if self.waiting is None else torch.cat([self.waiting, x], TIME)
        given = self._joined(x[:, :, :-1], after=x[:, :, 1:])
        self.waiting = x[:, :, -1:].clone()
        return given

    def flush(self, x: Tensor) -> Tensor:
        """The same of the last frames, the very last one being its own next one."""
        given = self.push(x)
        if self.waiting is None:
            return given
        return torch.cat([given, self._joined(self.waiting, after=self.waiting)], TIME)

    def _joined(self, x: Tensor, after: Tensor) -> Tensor:
        if not x.shape[TIME]:
            return x
        first = x[:, :, :1] if self.before is None else self.before
        self.before = x[:, :, -1:].clone()
        return self.block.join_with(torch.cat([first, x[:, :, :-1]], TIME), x, after)


class JoinedStream:
    """One tile in space of the latents, frame by frame.

    Args:
        decoder: is used as it is.
    """

    def __init__(self, decoder: TinyDecoder) -> None:
        self.decoder = decoder
        self.blocks = [
            [JoinedFrames(cast(JoinedBlock, block)) for block in level.blocks] for level in levels_of(decoder)
        ]
        self.surplus = decoder.surplus_frames  # still to be left out

    @torch.no_grad()
    def push(self, latents: Tensor, ends: bool) -> Tensor:
        """Take latents, and give the frames that no later latent changes; all that are left where the stream `ends`.

        Shapes: (b, latent_channels, any t', h', w') -> (b, 3, any t, space_factor h', space_factor w')
        """
        latents = latents.to(self.decoder.conv_in.weight.dtype).contiguous(memory_format=torch.channels_last_3d)
        x = per_frame(self.decoder.conv_in, latents)
        for level, blocks in zip(levels_of(self.decoder), self.blocks, strict=True):
            for block in blocks:
                x = block.flush(x) if ends else block.push(x)
            x = level.expand(x)
        left_out = min(self.surplus, x.shape[TIME])
        self.surplus -= left_out
        return x[:, :, left_out:]


class TinyDecoderStream:
    """`decode` for latents that arrive frame by frame: each tile in space has a stream of its own.

    Args:
        decoder: is used as it is.
    """

    def __init__(self, decoder: TinyDecoder) -> None:
        self.decoder = decoder
        self.time_factor, self.space_factor = decoder.time_factor, decoder.space_factor
        self._streams: list[JoinedStream] = []
        self._tile = 0
        self._ends = False

    @property
    def latency(self) -> int:
        """How far the decoder looks ahead of a latent's last frame, in whole latents, as frames."""
        ahead, rate = 0.0, 1
        for level in levels_of(self.decoder):
            ahead += len(level.blocks) / rate
            rate *= level.expand.time
        return math.ceil(ahead) * self.time_factor

    def next_frames(self, ends: bool) -> Self:
        """Begin with the first tile again, of the frames that follow or, with none, of the end."""
        self._tile, self._ends = 0, ends
        return self

    def decode(self, latents: Tensor, num_frames: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """The frames of the next tile that are final, as many as there are, also none."""
        if self._tile == len(self._streams):
            self._streams.append(JoinedStream(self.decoder))
        clip = self._streams[self._tile].push(latents, self._ends)
        self._tile += 1
        height, width = size or clip.shape[3:]
        return clip[:, :, :num_frames, :height, :width]


def levels_of(decoder: TinyDecoder) -> list[TinyLevel]:
    return [level for level in decoder.levels if isinstance(level, TinyLevel)]
