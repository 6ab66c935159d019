"""The Temporal Autoencoder written down the straightforward way: what the benchmarks compare the package with.

A transcription of the reference's style into eager PyTorch. Clips are stored `(b, c, t, h, w)`, contiguous. Each spatial
layer permutes the clip into frames and back, each temporal convolution permutes it into rows of time and back, padding
copies, GroupNorm and SiLU are two kernels, upsampling writes what it repeats. `temporal="conv3d"` is the other usual
way: every convolution, of space or time, as a 3D one on the clip as it lies.

The parameters are the package's, by name; nothing else is shared with it.
"""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

TEMPORAL = ("conv1d", "conv3d")


class Conv(nn.Module):
    """A spatial convolution with parameters (out, in, 3, 3)."""

    def __init__(self, in_channels: int, out_channels: int, how: str, stride: int = 1) -> None:
        super().__init__()
        self.how, self.stride = how, stride
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.empty(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        padding = 1 if self.stride == 1 else 0
        if self.how == "conv3d":
            weight = self.weight.unsqueeze(2)
            return F.conv3d(x, weight, self.bias, (1, self.stride, self.stride), (0, padding, padding))
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        return rearrange(
            F.conv2d(frames, self.weight, self.bias, self.stride, padding), "(b t) c h w -> b c t h w", b=len(x)
        )


class TemporalConv(nn.Module):
    """A temporal convolution with parameters (c, c, 3, 1) and replicate padding."""

    def __init__(self, channels: int, how: str, stride: int = 1) -> None:
        super().__init__()
        self.how, self.stride = how, stride
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 1))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "conv3d":
            padded = F.pad(x, (0, 0, 0, 0, 1, 1), mode="replicate")
            return F.conv3d(padded, self.weight.unsqueeze(-1), self.bias, (self.stride, 1, 1))
        height, width = x.shape[3:]
        rows = F.pad(rearrange(x, "b c t h w -> (b h w) c t"), (1, 1), mode="replicate")
        out = F.conv1d(rows, self.weight.squeeze(-1), self.bias, self.stride)
        return rearrange(out, "(b h w) c t -> b c t h w", h=height, w=width)


class Conv2_5d(nn.Module):  # noqa: N801  (the paper's name)
    def __init__(self, in_channels: int, out_channels: int, how: str) -> None:
        super().__init__()
        self.spatial = Conv(in_channels, out_channels, how)
        self.temporal = TemporalConv(out_channels, how)

    def forward(self, x: Tensor) -> Tensor:
        return self.temporal(self.spatial(x))


class GroupNorm(nn.GroupNorm):
    """Statistics per frame, which needs the frames side by side, or over the clip, which does not."""

    def __init__(self, channels: int, groups: int, per: str) -> None:
        super().__init__(groups, channels, eps=1e-6)
        self.per = per

    def forward(self, x: Tensor) -> Tensor:
        if self.per == "clip":
            return super().forward(x)
        frames = super().forward(rearrange(x, "b c t h w -> (b t) c h w"))
        return rearrange(frames, "(b t) c h w -> b c t h w", b=len(x))


class ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, groups: int, per: str, how: str) -> None:
        super().__init__()
        self.norm1 = GroupNorm(in_channels, groups, per)
        self.conv1 = Conv2_5d(in_channels, out_channels, how)
        self.norm2 = GroupNorm(out_channels, groups, per)
        self.conv2 = Conv2_5d(out_channels, out_channels, how)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        if self.shortcut is not None:
            frames = self.shortcut(rearrange(x, "b c t h w -> (b t) c h w"))
            x = rearrange(frames, "(b t) c h w -> b c t h w", b=len(x))
        return residual + x


class Attention(nn.Module):
    def __init__(self, channels: int, groups: int, per: str, over: str) -> None:
        super().__init__()
        self.tokens = {"space": "b c t h w -> (b t) (h w) c", "time": "b c t h w -> (b h w) t c"}[over]
        self.norm = GroupNorm(channels, groups, per)
        self.query, self.key, self.value, self.output = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, h, w = x.shape
        tokens = rearrange(self.norm(x), self.tokens)
        weights = (self.query(tokens) @ self.key(tokens).mT / math.sqrt(c)).softmax(-1)
        source, target = reversed(self.tokens.split(" -> ")), {"b": b, "h": h, "w": w}
        return x + rearrange(self.output(weights @ self.value(tokens)), " -> ".join(source), **target)


class Downsample(nn.Module):
    def __init__(self, channels: int, how: str) -> None:
        super().__init__()
        self.spatial = Conv(channels, channels, how, stride=2)
        self.temporal = TemporalConv(channels, how, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.temporal(self.spatial(F.pad(x, (0, 1, 0, 1))))


class Upsample(nn.Module):
    def __init__(self, channels: int, how: str) -> None:
        super().__init__()
        self.spatial = Conv(channels, channels, how)
        self.temporal = TemporalConv(channels, how)

    def forward(self, x: Tensor) -> Tensor:
        x = self.spatial(F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest"))
        return self.temporal(F.interpolate(x, scale_factor=(2, 1, 1), mode="nearest"))


class Middle(nn.Sequential):
    def __init__(self, channels: int, groups: int, per: str, how: str) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, groups, per, how)
        self.attention = Attention(channels, groups, per, "space")
        self.temporal_attention = Attention(channels, groups, per, "time")
        self.block_2 = ResidualBlock(channels, channels, groups, per, how)


class Level(nn.Module):
    def __init__(self, blocks: list[nn.Module], resample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return x if self.resample is None else self.resample(x)


class Stack(nn.Module):
    """Encoder or decoder: the middle comes last or first."""

    def __init__(self, widths, ends, blocks, groups, per, how, resample) -> None:
        super().__init__()
        self.middle_first = resample is Upsample
        self.conv_in = Conv2_5d(ends[0], widths[0], how)
        levels = []
        for i, width in enumerate(widths):
            inputs = [widths[max(i - 1, 0)]] + [width] * (blocks - 1)
            row = [ResidualBlock(channels, width, groups, per, how) for channels in inputs]
            levels.append(Level(row, resample(width, how) if i < len(widths) - 1 else None))
        self.levels = nn.Sequential(*levels)
        self.middle = Middle(widths[0] if self.middle_first else widths[-1], groups, per, how)
        self.norm_out = GroupNorm(widths[-1], groups, per)
        self.conv_out = Conv2_5d(widths[-1], ends[1], how)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        x = self.levels(self.middle(x)) if self.middle_first else self.middle(self.levels(x))
        return self.conv_out(F.silu(self.norm_out(x)))


class Posterior:
    def __init__(self, mean: Tensor, logvar: Tensor) -> None:
        self.mean, self.logvar = mean, logvar.clamp(-30, 20)

    def kl(self) -> Tensor:
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar)


class NaiveAutoencoder(nn.Module):
    """Takes the state dict of `tae.TemporalAutoencoder`, and clips of any size like it."""

    def __init__(
        self,
        base_channels: int = 128,
        channel_multipliers: tuple[int, ...] = (1, 2, 4, 4),
        latent_channels: int = 16,
        encoder_blocks: int = 2,
        decoder_blocks: int = 3,
        norm_groups: int = 32,
        group_norm: str = "frame",
        temporal: str = "conv1d",
    ) -> None:
        super().__init__()
        widths = [base_channels * multiplier for multiplier in channel_multipliers]
        shared = (norm_groups, group_norm, temporal)
        self.encoder = Stack(widths, (3, 2 * latent_channels), encoder_blocks, *shared, Downsample)
        self.decoder = Stack(widths[::-1], (latent_channels, 3), decoder_blocks, *shared, Upsample)

    def encode(self, clip: Tensor) -> Posterior:
        return Posterior(*self.encoder(clip).float().chunk(2, dim=1))

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents)

    def forward(self, clip: Tensor) -> SimpleNamespace:
        frames, height, width = clip.shape[2:]
        padding = (0, -width % 8, 0, -height % 8, 0, 0)
        posterior = self.encode(F.pad(clip, padding, mode="replicate") if any(padding) else clip)
        noise = torch.randn(posterior.mean.shape, device=clip.device)
        latents = posterior.mean + (0.5 * posterior.logvar).exp() * noise
        reconstruction = self.decode(latents)[:, :, :frames, :height, :width]
        return SimpleNamespace(reconstruction=reconstruction, posterior=posterior, latents=latents)
