"""The parts of the Temporal Autoencoder: convolution in space then time, normalisation, attention, resampling.

Shapes in this file: b batch, c channels, t frames, h height, w width. Every activation is `(b, c, t, h, w)` and is stored
channels-last, that is, in memory as `(b, t, h, w, c)`. The same buffer is then, without a copy,

    frames   (b t, c, h, w)   for a spatial convolution,
    columns  (b, c, t, h w)   for a temporal one, a 2D convolution with a (3, 1) kernel,

both channels-last as the fast 2D kernels want them. Nothing here is permuted in memory, and there is no conv3d.

Source: Movie Gen (arXiv 2410.13720), section 3.1.1; the image layers are those of the Stable Diffusion autoencoder.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tae.kernels.available import fused_kernels
from tae.model.conv2_5d import conv2_5d
from tae.model.group_norm import EagerGroupNormSiLU
from tae.model.memory_format import as_clip, as_columns, as_frames, per_frame
from tae.model.temporal_conv import TemporalConv, UpsamplingTemporalConv, upsampling_weight

GROUP_NORM_EPS = 1e-6  # of the image autoencoder
RMS_NORM_EPS = 1e-6
GROUP_NORM_MODES = ("frame", "clip")
NORMS = ("group", "rms")
FEW_SCORES = 2**26  # 256 MB in float32


class Conv2_5d(nn.Module):  # noqa: N801  (the paper's name)
    """A 3x3 convolution of every frame, then a temporal convolution, with nothing in between (Movie Gen's "2.5D").

    Shapes: (b, in, t, h, w) -> (b, out, t, h, w), to which `residual` is added
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.temporal = TemporalConv(out_channels)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        spatial, temporal = self.spatial, self.temporal
        if temporal.zero_padded:  # the spatial bias is not the same in every frame then: it has no taps outside
            return temporal(per_frame(spatial, x), residual=residual)
        return conv2_5d(x, spatial.weight, cast(Tensor, spatial.bias), temporal.weight, temporal.bias, residual)


class GroupNorm(nn.GroupNorm):
    """Group normalisation of a clip, with statistics of each frame alone or of the whole clip, and SiLU on request.

    Shapes: (b, c, t, h, w) -> the same

    `per="frame"` keeps a frame's latent independent of how many frames come with it; `per="clip"` is the reference's.
    """

    def __init__(self, channels: int, groups: int, per: str, silu: bool) -> None:
        super().__init__(groups, channels, eps=GROUP_NORM_EPS)
        self.per = per
        self.silu = silu

    def forward(self, x: Tensor) -> Tensor:
        kernels = fused_kernels(x, "group_norm")
        if kernels is not None and kernels.normalizes(x, self.num_groups):
            samples = len(x) * x.shape[2] if self.per == "frame" else len(x)
            return kernels.group_norm_silu(x, samples, self.weight, self.bias, self.num_groups, self.eps, self.silu)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return EagerGroupNormSiLU.apply(x, self.weight, self.bias, self.num_groups, self.eps, self.per, self.silu)
        out = self.normalize(as_frames(x) if self.per == "frame" else as_columns(x))
        return as_clip(out, batch=x.shape[0]) if self.per == "frame" else out.unflatten(3, x.shape[3:])

    def normalize(self, x: Tensor) -> Tensor:
        """Normalise (n, c, ...) over its positions and each group of channels."""
        # Autocast would give float32 back and double the memory of every activation; the statistics are
        # accumulated in float32 by the kernel itself.
        with torch.autocast(x.device.type, enabled=False):
            out = F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        return F.silu(out, inplace=not torch.is_grad_enabled()) if self.silu else out


class RMSNorm(nn.Module):
    """Root-mean-square normalisation of each position over its channels (arXiv 1910.07467), and SiLU on request.

    Shapes: (b, c, t, h, w) -> the same

    No position knows of another, so a tile and a part of a stream are normalised as the whole video is.
    """

    def __init__(self, channels: int, silu: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.silu = silu

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return self.normalize_for_export(x)
        with torch.autocast(x.device.type, enabled=False):  # as in GroupNorm
            out = F.rms_norm(x.movedim(1, -1), (x.shape[1],), self.weight.to(x.dtype), RMS_NORM_EPS).movedim(-1, 1)
        return F.silu(out, inplace=not torch.is_grad_enabled()) if self.silu else out

    def normalize_for_export(self, x: Tensor) -> Tensor:
        """The same by its definition: the function of PyTorch asks for the order in memory, which a graph leaves open."""
        scale = torch.rsqrt(x.square().mean(1, keepdim=True) + RMS_NORM_EPS)
        out = x * scale * self.weight.view(-1, 1, 1, 1)
        return F.silu(out) if self.silu else out


def make_norm(channels: int, groups: int, per: str, silu: bool) -> nn.Module:
    """GroupNorm with statistics per "frame" or "clip", or RMSNorm, whose statistics are per "position"."""
    return RMSNorm(channels, silu) if per == "position" else GroupNorm(channels, groups, per, silu)


class ResidualBlock(nn.Module):
    """Twice normalisation, SiLU, Conv2.5d, around a shortcut (a 1x1 convolution where the channels change).

    Shapes: (b, in, t, h, w) -> (b, out, t, h, w)
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int, group_norm: str) -> None:
        super().__init__()
        self.norm1 = make_norm(in_channels, groups, per=group_norm, silu=True)
        self.conv1 = Conv2_5d(in_channels, out_channels)
        self.norm2 = make_norm(out_channels, groups, per=group_norm, silu=True)
        self.conv2 = Conv2_5d(out_channels, out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else per_frame(self.shortcut, x)
        return self.conv2(self.norm2(self.conv1(self.norm1(x))), residual=shortcut)


class Attention(nn.Module):
    """Single-head self-attention with a residual connection, over space or over time.

    Shapes: (b, c, t, h, w) -> the same

    `over="space"` attends among the h w positions of each frame, `over="time"` among the t frames at each position. The
    temporal one does not exist in an image autoencoder, so its output projection starts at zero: no effect at first.
    """

    def __init__(self, channels: int, groups: int, group_norm: str, over: str) -> None:
        super().__init__()
        self.over = over
        self.norm = make_norm(channels, groups, per=group_norm, silu=False)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        if over == "time":
            nn.init.zeros_(self.output.weight)
            nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).movedim(1, -1).flatten(2, 3)  # (b, t, h w, c), a view
        if self.over == "time":
            tokens = tokens.transpose(1, 2)  # (b, h w, t, c)
        out = self.output(attend(self.query(tokens), self.key(tokens), self.value(tokens)))
        if self.over == "time":
            out = out.transpose(1, 2)
        return x + out.unflatten(2, x.shape[3:]).movedim(-1, 1)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention of (..., s, c).

    No fast CUDA kernel takes heads of 512 channels. The one that PyTorch falls back to needs no memory for the scores,
    but is several times slower than two matrix products, which serve while the scores are few.
    """
    if query.is_cuda and query[..., 0].numel() * key.shape[-2] <= FEW_SCORES:
        return attend_with_scores(query, key, value)
    return F.scaled_dot_product_attention(query, key, value)


def attend_with_scores(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`attend` by two matrix products. The query is scaled, not the scores, which would be too large for float16."""
    scores = query / math.sqrt(query.shape[-1]) @ key.mT
    return scores.softmax(-1).to(value.dtype) @ value


class Downsample(nn.Module):
    """Halve height and width, then the frame rate: a strided 3x3 convolution, then a strided temporal one.

    Shapes: (b, c, t, h, w) with even h and w -> (b, c, ceil(t / 2), h / 2, w / 2)
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 3, stride=2)
        self.temporal = TemporalConv(channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        # The image autoencoder pads right and below only, which no convolution does by itself.
        halve = lambda frames: F.conv2d(F.pad(frames, (0, 1, 0, 1)), self.spatial.weight, stride=2)  # noqa: E731
        return self.temporal(per_frame(halve, x), self.spatial.bias)


class Upsample(nn.Module):
    """Double height and width, then the frame rate: nearest neighbour and a convolution, for space and for time.

    Shapes: (b, c, t, h, w) -> (b, c, 2 t, 2 h, 2 w)
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 3, padding=1)
        self.temporal = UpsamplingTemporalConv(channels)

    def forward(self, x: Tensor) -> Tensor:
        weight = upsampling_weight(self.spatial.weight, (2, 3))
        x = per_frame(lambda frames: F.conv_transpose2d(frames, weight, stride=2, padding=1), x)
        return self.temporal(x, self.spatial.bias)
