"""The parts of the Temporal Autoencoder: convolution in space then time, normalisation, attention, resampling.

Shapes in this file: b batch, c channels, t frames, h height, w width. Every activation is `(b, c, t, h, w)` and is stored
channels-last, that is, in memory as `(b, t, h, w, c)`. The same buffer is then, without a copy,

    frames   (b t, c, h, w)   for a spatial convolution,
    columns  (b, c, t, h w)   for a temporal one, a 2D convolution with a (3, 1) kernel,

both channels-last as the fast 2D kernels want them. Nothing here is permuted in memory, and there is no conv3d.

Source: Movie Gen (arXiv 2410.13720), section 3.1.1; the image layers are those of the Stable Diffusion autoencoder.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP_NORM_EPS = 1e-6  # of the image autoencoder
GROUP_NORM_MODES = ("frame", "clip")
TEMPORAL_TAPS = 3


def as_frames(x: Tensor) -> Tensor:
    """View (b, c, t, h, w) as (b t, c, h, w)."""
    return x.transpose(1, 2).flatten(0, 1)


def as_clip(frames: Tensor, batch: int) -> Tensor:
    """View (b t, c, h, w) as (b, c, t, h, w)."""
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)


def per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply an image layer to every frame of (b, c, t, h, w); it may change channels, height and width."""
    return as_clip(layer(as_frames(x)), batch=x.shape[0])


def cast_to_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What autocast does to the arguments of a convolution, for one that autocast cannot see into."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)


class TemporalConv(nn.Conv2d):
    """Convolution along time at every position: 3 taps, replicate padding (1, 1), starting as the identity.

    Shapes:
        x:       (b, c, t, h, w) with t >= 1
        returns: (b, c, ceil(t / stride), h, w)

    With stride 2 output frame i is centred on input frame 2 i, so at the start it *is* input frame 2 i.
    """

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__(channels, channels, (TEMPORAL_TAPS, 1), stride=(stride, 1), padding=(1, 0))

    def reset_parameters(self) -> None:
        """Centric initialisation (Movie Gen): weight 1 at (i, i, centre tap), 0 elsewhere, bias 0."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.weight[:, :, TEMPORAL_TAPS // 2, 0].fill_diagonal_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        columns, weight, bias = cast_to_autocast(x.flatten(3), self.weight, self.bias)
        stride = self.stride[0]
        if torch.is_grad_enabled():
            out = ReplicatePaddedConv.apply(columns, weight, bias, stride)
        else:
            out = replicate_padded_conv(columns, weight, bias, stride)
        return out.unflatten(3, x.shape[3:])


def replicate_padded_conv(columns: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """Convolve (b, c, t, n) along t as if the first and the last frame stood there once more.

    Padding the activation would copy all of it. The convolution pads with zeros instead, and what the two missing frames
    would have given is added to the first and the last output frame.
    """
    out = F.conv2d(columns, weight, bias, (stride, 1), (1, 0))
    out[:, :, :1] += F.conv2d(columns[:, :, :1], weight[:, :, :1])
    if last_tap_is_outside(columns.shape[2], stride):
        out[:, :, -1:] += F.conv2d(columns[:, :, -1:], weight[:, :, -1:])
    return out


def last_tap_is_outside(num_frames: int, stride: int) -> bool:
    """Whether the last output frame of a padded 3-tap convolution reads the frame behind the end."""
    return (num_frames - 1) % stride == 0


class ReplicatePaddedConv(torch.autograd.Function):
    """`replicate_padded_conv` with its gradient: autograd would copy the whole gradient for each in-place slice."""

    @staticmethod
    def forward(ctx, columns: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:  # type: ignore[override]  # noqa: ANN001
        ctx.save_for_backward(columns, weight)
        ctx.stride = stride
        return replicate_padded_conv(columns, weight, bias, stride)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]  # noqa: ANN001, ANN205
        columns, weight = ctx.saved_tensors
        edges = [(0, 0)]
        if last_tap_is_outside(columns.shape[2], ctx.stride):
            edges.append((-1, TEMPORAL_TAPS - 1))
        needs = ctx.needs_input_grad[:3]
        grad_columns, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad, columns, weight, [len(weight)], (ctx.stride, 1), (1, 0), (1, 1), False, (0, 0), 1, needs
        )
        for frame, tap in edges:  # frame 0 met tap 0, and the last frame the last tap, once more
            frame_grad = grad[:, :, frame].movedim(1, -1).flatten(0, -2)  # (b n, c out)
            if grad_columns is not None:
                grad_columns[:, :, frame] += torch.einsum("oc,bon->bcn", weight[:, :, tap, 0], grad[:, :, frame])
            if grad_weight is not None:
                frame_values = columns[:, :, frame].movedim(1, -1).flatten(0, -2)  # (b n, c in)
                grad_weight[:, :, tap, 0] += frame_grad.T @ frame_values
        return grad_columns, grad_weight, grad_bias, None


class Conv2_5d(nn.Module):  # noqa: N801  (the paper's name)
    """A 3x3 convolution of every frame, then a temporal convolution, with nothing in between (Movie Gen's "2.5D").

    Shapes: (b, in, t, h, w) -> (b, out, t, h, w)
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.temporal = TemporalConv(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.temporal(per_frame(self.spatial, x))


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
        view = as_frames(x) if self.per == "frame" else x.flatten(3)
        # Autocast would give float32 back and double the memory of every activation; the statistics are
        # accumulated in float32 by the kernel itself.
        with torch.autocast(x.device.type, enabled=False):
            out = F.group_norm(view, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        out = F.silu(out, inplace=not torch.is_grad_enabled()) if self.silu else out
        return as_clip(out, batch=x.shape[0]) if self.per == "frame" else out.unflatten(3, x.shape[3:])


class ResidualBlock(nn.Module):
    """Twice GroupNorm, SiLU, Conv2.5d, around a shortcut (a 1x1 convolution where the channels change).

    Shapes: (b, in, t, h, w) -> (b, out, t, h, w)
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int, group_norm: str) -> None:
        super().__init__()
        self.norm1 = GroupNorm(in_channels, groups, per=group_norm, silu=True)
        self.conv1 = Conv2_5d(in_channels, out_channels)
        self.norm2 = GroupNorm(out_channels, groups, per=group_norm, silu=True)
        self.conv2 = Conv2_5d(out_channels, out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return residual + (x if self.shortcut is None else per_frame(self.shortcut, x))


class Attention(nn.Module):
    """Single-head self-attention with a residual connection, over space or over time.

    Shapes: (b, c, t, h, w) -> the same

    `over="space"` attends among the h w positions of each frame, `over="time"` among the t frames at each position. The
    temporal one does not exist in an image autoencoder, so its output projection starts at zero: no effect at first.
    """

    def __init__(self, channels: int, groups: int, group_norm: str, over: str) -> None:
        super().__init__()
        self.over = over
        self.norm = GroupNorm(channels, groups, per=group_norm, silu=False)
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
        attended = F.scaled_dot_product_attention(self.query(tokens), self.key(tokens), self.value(tokens))
        out = self.output(attended)
        if self.over == "time":
            out = out.transpose(1, 2)
        return x + out.unflatten(2, x.shape[3:]).movedim(-1, 1)


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
        return self.temporal(per_frame(lambda frames: self.spatial(F.pad(frames, (0, 1, 0, 1))), x))


class Upsample(nn.Module):
    """Double height and width, then the frame rate: nearest neighbour and a convolution, for space and for time.

    Shapes: (b, c, t, h, w) -> (b, c, 2 t, 2 h, 2 w)
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 3, padding=1)
        self.temporal = TemporalConv(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = per_frame(lambda frames: self.spatial(F.interpolate(frames, scale_factor=2.0, mode="nearest")), x)
        # Doubling the frames as rows of (b, t, h w c) keeps the memory channels-last.
        doubled = x.movedim(1, -1).repeat_interleave(2, dim=1).movedim(-1, 1)
        return self.temporal(doubled)
