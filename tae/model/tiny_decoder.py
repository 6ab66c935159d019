"""A decoder of 2D convolutions, small enough to watch latents while they are generated.

After TAESD and TAEHV (github.com/madebyollin), but symmetric in time: each block sees the frame before and the frame after.
Nothing is normalised over frames and nothing attends, so what is far away in time or space changes nothing.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tae.model.checks import MAX_PARAMETERS, check_latents, kept_extents
from tae.model.hub_mixin import StrictHubMixin
from tae.model.memory_format import per_frame
from tae.runtime.errors import UserError

WIDEST = 4  # times `width`, of the levels of the lowest resolutions
LARGEST_FACTOR = 128


class JoinedBlock(nn.Module):
    """Two convolutions of each frame joined with its neighbours in time, around a shortcut.

    Shapes: (b, c, t, h, w) -> the same. The first and the last frame are their own neighbours.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.join = nn.Conv2d(3 * channels, channels, 3, padding=1)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv.weight)  # the block starts as its shortcut: there is no normalisation to tame it
        nn.init.zeros_(self.conv.get_parameter("bias"))

    def forward(self, x: Tensor) -> Tensor:
        before = torch.cat([x[:, :, :1], x[:, :, :-1]], 2)
        after = torch.cat([x[:, :, 1:], x[:, :, -1:]], 2)
        return self.join_with(before, x, after)

    def join_with(self, before: Tensor, x: Tensor, after: Tensor) -> Tensor:
        """The same, of frames whose neighbours are given: three of (b, c, t, h, w) -> (b, c, t, h, w)."""
        joined = torch.cat([before, x, after], 1)
        return x + per_frame(lambda frames: self.conv(F.relu(self.join(F.relu(frames)))), joined)


class Expand(nn.Module):
    """A convolution of each frame to the values of each of its cells, unfolded, around a shortcut that repeats.

    Shapes: (b, in, t, h, w) -> (b, out, time * t, space * h, space * w)

    The shortcut is that of DC-AE (arXiv 2410.10733, section 3.2), for as many channels or half; to pixels there is none. No
    activation comes first, so that a decoder starts as a linear one, whose every part learns (docs/tiny-decoder.md).
    """

    def __init__(self, in_channels: int, out_channels: int, time: int, space: int, shortcut: bool) -> None:
        super().__init__()
        self.time = time
        self.space = space
        self.kept = in_channels // out_channels if shortcut else 0
        self.conv = nn.Conv2d(in_channels, time * space**2 * out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        cells = per_frame(self.conv, x)
        if self.kept:
            repeats = self.time * self.space**2 // self.kept
            cells = cells + x.unflatten(1, (self.kept, -1)).repeat_interleave(repeats, 1).flatten(1, 2)
        cells = cells.movedim(1, -1).unflatten(-1, (self.time, self.space, self.space, -1))
        unfolded = cells.permute(0, 1, 4, 2, 5, 3, 6, 7)  # from (b, t, h, w, time, space, space, out)
        return unfolded.flatten(5, 6).flatten(3, 4).flatten(1, 2).movedim(-1, 1)


class TinyLevel(nn.Module):
    """Blocks at one resolution, then the way to the next one."""

    def __init__(self, channels: int, out_channels: int, blocks: int, time: int, space: int, last: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(JoinedBlock(channels) for _ in range(blocks)))
        self.expand = Expand(channels, out_channels, time, space, shortcut=not last)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the blocks give, and the same at the next resolution."""
        features = self.blocks(x)
        return features, self.expand(features)


class TinyDecoder(nn.Module, StrictHubMixin, library_name="temporal-autoencoder", tags=["video", "autoencoder", "vae"]):
    """Latents of some encoder to a clip, by 2D convolutions on single frames: a tenth of the time or less.

    Args:
        encoder: SHA-256 of the encoder whose latents it decodes (`tae.model.encoder_identity`); None before that is known.
        latent_channels: channels of these latents.
        width: channels at half of the full resolution; the resolutions below have twice and four times as many.
        blocks: at each resolution.
        time_factor: frames for each of the latent, a power of 2.
        space_factor: pixels along an axis for each of the latent, a power of 2 of at least 4 and `time_factor`.
        lone_first_frame: the first latent frame holds one frame alone, as in autoencoders that are causal in time:
            1 + time_factor * (t' - 1) frames in all.

    Raises:
        UserError: an argument is not allowed.
    """

    def __init__(
        self,
        encoder: str | None = None,
        latent_channels: int = 16,
        width: int = 64,
        blocks: int = 2,
        time_factor: int = 8,
        space_factor: int = 8,
        lone_first_frame: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(latent_channels, width, blocks, time_factor, space_factor)
        # Goes to config.json and into checkpoints.
        self.architecture: dict[str, Any] = {
            "encoder": encoder,
            "latent_channels": latent_channels,
            "width": width,
            "blocks": blocks,
            "time_factor": time_factor,
            "space_factor": space_factor,
            "lone_first_frame": lone_first_frame,
        }
        self._hub_mixin_config = self.architecture
        self.of_encoder = encoder
        self.latent_channels = latent_channels
        self.time_factor = time_factor
        self.space_factor = space_factor
        self.lone_first_frame = lone_first_frame
        # {"teacher": source, "sha256": of its file}; in checkpoints.
        self.starting_weights: dict[str, str | None] | None = None
        self.widths = widths_of(width, int(math.log2(space_factor)))
        self.conv_in = nn.Conv2d(latent_channels, self.widths[0], 3, padding=1)
        steps = list(zip(self.widths, [*self.widths[1:], 3], strict=True))
        self.levels = nn.ModuleList(
            TinyLevel(*channels, blocks, time=2 if 2**i < time_factor else 1, space=2, last=i == len(steps) - 1)
            for i, channels in enumerate(steps)
        )
        self.to(memory_format=torch.channels_last)

    def decode(self, latents: Tensor, num_frames: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """Give the clip of these latents.

        Shapes:
            latents: (b, latent_channels, t', h', w')
            returns: (b, 3, num_frames, *size), by default all that the latents hold, in the weights' type; not clamped

        Args:
            num_frames: how many frames to keep, from the start.
            size: height and width to keep, from the upper left.

        Raises:
            ValueError: not latents of this shape, or fewer frames, rows or columns than are to be kept.
        """
        check_latents(latents, self.latent_channels)
        clip = self(latents.to(self.conv_in.weight.dtype))
        t, h, w = clip.shape[2:]
        frames, height, width = kept_extents((t, h, w), num_frames, size)
        return clip[:, :, :frames, :height, :width]

    def forward(self, latents: Tensor) -> Tensor:
        """All that latents (b, latent_channels, t', h', w') hold: (b, 3, t, space_factor h', space_factor w')."""
        return self.with_features(latents)[0]

    def with_features(self, latents: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The clip, and what the blocks of each resolution give, that of the latents first: (b, c, t, h, w) each."""
        x, features = per_frame(self.conv_in, latents.contiguous(memory_format=torch.channels_last_3d)), []
        for level in self.levels:
            given, x = level(x)
            features.append(given)
        return x[:, :, self.surplus_frames :], features

    @property
    def last_layer(self) -> Tensor:
        """The last weight."""
        return self.get_parameter(f"levels.{len(self.levels) - 1}.expand.conv.weight")

    @property
    def surplus_frames(self) -> int:
        """Frames of the first latent frame that are not part of the clip."""
        return self.time_factor - 1 if self.lone_first_frame else 0


def describes_decoder(settings: Mapping[str, Any]) -> bool:
    """Whether the architecture in a file is that of a tiny decoder, and not of an autoencoder."""
    return {"encoder", "width"} <= settings.keys()


def widths_of(width: int, levels: int) -> list[int]:
    """Channels of each level, the lowest resolution first."""
    return [width * min(WIDEST, 2**left) for left in reversed(range(levels))]


def check_sizes(latent_channels: int, width: int, blocks: int, time_factor: int, space_factor: int) -> None:
    """Refuse what cannot be built, before building it; the sizes may come from a stranger's file.

    Raises:
        UserError: what is wrong.
    """
    sizes = {"latent_channels": latent_channels, "width": width, "blocks": blocks}
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise UserError(f"{name}={size} is not allowed: give a whole number of 1 or more.")
    factors = (time_factor, space_factor)
    if any(factor not in (1, 2, 4, 8, 16, 32, 64, LARGEST_FACTOR) for factor in factors) or not (
        4 <= space_factor >= time_factor
    ):
        raise UserError(
            f"time_factor={time_factor} with space_factor={space_factor}: a tiny decoder doubles frames, rows and columns, "
            f"so both are powers of 2, and space_factor is 4 to {LARGEST_FACTOR} and no less than time_factor."
        )
    widths = widths_of(width, int(math.log2(space_factor)))
    if (parameters := sum((36 * blocks + 72) * channels**2 for channels in widths)) > MAX_PARAMETERS:
        raise UserError(
            f"width={width} with blocks={blocks} makes a decoder of about {parameters:.0e} parameters, which is beyond all "
            f"bounds: at most {MAX_PARAMETERS:.0e}."
        )
