"""Encoder and decoder: read this first.

Source: Movie Gen (arXiv 2410.13720), section 3.1.1, on top of the Stable Diffusion 3.5 image autoencoder.
"""

from collections.abc import Callable, Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tae.model.folding import CELL, AveragingDownsample, DuplicatingUpsample, Folding, Unfolding
from tae.model.layers import Attention, Conv2_5d, Downsample, ResidualBlock, Upsample, make_norm
from tae.model.memory_format import per_frame


class Middle(nn.Module):
    """The lowest resolution: residual block, attention over space, then over time, residual block."""

    def __init__(self, channels: int, groups: int, group_norm: str) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, groups, group_norm)
        self.attention = Attention(channels, groups, group_norm, over="space")
        self.temporal_attention = Attention(channels, groups, group_norm, over="time")
        self.block_2 = ResidualBlock(channels, channels, groups, group_norm)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(self.block_1(x))
        return self.block_2(self.temporal_attention(x))


class Level(nn.Module):
    """Residual blocks at one resolution, then a change of resolution (none at the last level)."""

    def __init__(self, blocks: list[ResidualBlock], resample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample
        self.checkpointing = False  # keep only each block's input for the backward pass

    def forward(self, x: Tensor) -> Tensor:
        checkpointing = self.checkpointing and torch.is_grad_enabled() and self.is_differentiated(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if checkpointing else block(x)
        return x if self.resample is None else self.resample(x)

    def is_differentiated(self, x: Tensor) -> bool:
        """Whether there is a backward pass to keep anything for; none through a frozen encoder."""
        return x.requires_grad or any(parameter.requires_grad for parameter in self.parameters())


def make_blocks(count: int, in_channels: int, out_channels: int, groups: int, group_norm: str) -> list[ResidualBlock]:
    """Residual blocks in a row, the first of which changes the number of channels."""
    inputs = [in_channels] + [out_channels] * (count - 1)
    return [ResidualBlock(channels, out_channels, groups, group_norm) for channels in inputs]


def make_levels(
    widths: Sequence[int], blocks: int, groups: int, group_norm: str, resample: Callable[..., nn.Module],
    changes_width: bool,
) -> nn.ModuleList:  # fmt: skip
    """Levels of these widths in the order they run.

    Args:
        resample: made with a level's width and, where it `changes_width`, with the next one's; else the next level's first
            block changes it.
    """
    levels, channels = nn.ModuleList(), widths[0]
    for width, following in zip_longest(widths, widths[1:]):
        row = make_blocks(blocks, channels, width, groups, group_norm)
        sizes = (width, following) if changes_width else (width,)
        levels.append(Level(row, None if following is None else resample(*sizes)))
        channels = following if changes_width else width
    return levels


def make_shortcut(channels: int, out_channels: int, folds: int) -> nn.Conv2d | None:
    """A way around the last norm, of networks that fold. An image autoencoder has no such weights.

    The norm takes away a frame's brightness and contrast, which latents and pixels are proportional to. From random
    weights a network can learn faster where they need not be found again (docs/architecture.md, "Networks").
    """
    return nn.Conv2d(channels, out_channels, 1) if folds else None


def around(shortcut: nn.Conv2d | None, x: Tensor) -> Tensor | None:
    """What the shortcut gives of (b, c, t, h, w); None where there is none."""
    return None if shortcut is None else per_frame(shortcut, x)


class Encoder(nn.Module):
    """A clip (b, 3, t, h, w) to the parameters of its posterior (b, 2 latent, ceil(t / f), h / f, w / f)."""

    def __init__(
        self, widths: Sequence[int], latent_channels: int, blocks: int, groups: int, group_norm: str,
        frontend: str = "conv", folds: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.folding = Folding(frontend, folds)
        self.conv_in = Conv2_5d(3 * CELL**folds, widths[0])
        resample = AveragingDownsample if folds else Downsample
        self.levels = make_levels(widths, blocks, groups, group_norm, resample, changes_width=folds > 0)
        self.middle = Middle(widths[-1], groups, group_norm)
        self.norm_out = make_norm(widths[-1], groups, per=group_norm, silu=True)
        self.conv_out = Conv2_5d(widths[-1], 2 * latent_channels)
        self.shortcut_out = make_shortcut(widths[-1], 2 * latent_channels, folds)

    def forward(self, clip: Tensor) -> Tensor:
        x = self.conv_in(self.folding(clip))
        for level in self.levels:
            x = level(x)
        x = self.middle(x)
        return self.conv_out(self.norm_out(x), residual=around(self.shortcut_out, x))


class Decoder(nn.Module):
    """Latents (b, latent, t, h, w) to a clip (b, 3, f t, f h, f w). Levels are listed in the order they run."""

    def __init__(
        self, widths: Sequence[int], latent_channels: int, blocks: int, groups: int, group_norm: str,
        frontend: str = "conv", folds: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = list(reversed(widths))
        self.conv_in = Conv2_5d(latent_channels, widths[0])
        self.middle = Middle(widths[0], groups, group_norm)
        resample = DuplicatingUpsample if folds else Upsample
        self.levels = make_levels(widths, blocks, groups, group_norm, resample, changes_width=folds > 0)
        self.norm_out = make_norm(widths[-1], groups, per=group_norm, silu=True)
        self.conv_out = Conv2_5d(widths[-1], 3 * CELL**folds)
        self.shortcut_out = make_shortcut(widths[-1], 3 * CELL**folds, folds)
        self.unfolding = Unfolding(frontend, folds)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.middle(self.conv_in(latents))
        for level in self.levels:
            x = level(x)
        return self.unfolding(self.conv_out(self.norm_out(x), residual=around(self.shortcut_out, x)))
