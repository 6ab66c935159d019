"""The parts of the Temporal Autoencoder: convolution in space then time, normalisation, attention, resampling.

Shapes in this file: b batch, c channels, t frames, h height, w width. Every activation is `(b, c, t, h, w)` and is stored
channels-last, that is, in memory as `(b, t, h, w, c)`. The same buffer is then, without a copy,

    frames   (b t, c, h, w)   for a spatial convolution,
    columns  (b, c, t, h w)   for a temporal one, a 2D convolution with a (3, 1) kernel,

both channels-last as the fast 2D kernels want them. Nothing here is permuted in memory, and there is no conv3d.

Source: Movie Gen (arXiv 2410.13720), section 3.1.1; the image layers are those of the Stable Diffusion autoencoder.
"""

import importlib.util
import math
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP_NORM_EPS = 1e-6  # of the image autoencoder
GROUP_NORM_MODES = ("frame", "clip")
TEMPORAL_TAPS = 3
FEW_SCORES = 2**26  # 256 MB in float32
HAS_TRITON = importlib.util.find_spec("triton") is not None


def fused_kernels(x: Tensor) -> ModuleType | None:
    """The kernels for this tensor's device, or None: they need a GPU and Triton."""
    if not x.is_cuda or not HAS_TRITON:
        return None
    from tae import kernels  # here, since a machine without a GPU should not have to have Triton

    return kernels


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

    bias: Tensor  # always: its type in nn.Conv2d allows for none

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__(channels, channels, (TEMPORAL_TAPS, 1), stride=(stride, 1), padding=(1, 0))

    def reset_parameters(self) -> None:
        """Centric initialisation (Movie Gen): weight 1 at (i, i, centre tap), 0 elsewhere, bias 0."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.weight[:, :, TEMPORAL_TAPS // 2, 0].fill_diagonal_(1.0)

    def forward(self, x: Tensor, constant: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """Convolve `x + constant` along time and add `residual`.

        constant: (c,), the bias that the spatial convolution before this one has left out. It is the same in every
            frame, so it goes through as one more bias here, for which it need not be added to an activation.
        residual: of the result's shape.
        """
        return self.convolve(x, self.weight, constant, residual, self.stride[0], upsample=False)

    def convolve(
        self, x: Tensor, weight: Tensor, constant: Tensor | None, residual: Tensor | None, stride: int, upsample: bool
    ) -> Tensor:
        bias = self.bias if constant is None else self.bias + (self.weight.sum((2, 3)) * constant).sum(1)
        x, weight = cast_to_autocast(x, weight)
        convolve = ReplicatePaddedConv.apply if torch.is_grad_enabled() else replicate_padded_conv
        return convolve(x, weight, bias, residual, stride, upsample)


class UpsamplingTemporalConv(TemporalConv):
    """A temporal convolution of frames that each stand there twice: (b, c, t, h, w) -> (b, c, 2 t, h, w).

    No frame is written twice: see `upsampling_weight`.
    """

    def forward(self, x: Tensor, constant: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        return self.convolve(x, upsampling_weight(self.weight, (2,)), constant, residual, stride=2, upsample=True)


def upsampling_weight(weight: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Weights with which a transposed convolution of stride 2 equals nearest-neighbour x2, then a 3-tap convolution.

    Shapes: (out, in, 3, 3 or 1) -> (in, out, 4, 4 or 1), along `dims`

    Neighbours that are equal need one product where there were two: along one axis the taps (a, b, c) become
    (a, b + c) for the first of each pair and (a + b, c) for the second. That is 4 products in place of 9 for a 3x3
    kernel, and the enlarged activation is never written.
    """
    for dim in dims:
        nothing = torch.zeros_like(weight.narrow(dim, 0, 1))
        weight = torch.cat((weight, nothing), dim) + torch.cat((nothing, weight), dim)
    return weight.flip(dims).transpose(0, 1)


def replicate_padded_conv(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: int, upsample: bool
) -> Tensor:
    """Convolve (b, c, t, h, w) along t as if the first and the last frame stood there once more, and add `residual`.

    With `upsample` the convolution is a transposed one. Padding the activation would copy all of it. The convolution
    pads with zeros instead, and what the two missing frames would have given is added to the first and the last output.
    """
    if torch.compiler.is_exporting():
        return replicate_padded_conv_for_export(x, weight, bias, residual, stride, upsample)
    kernels = fused_kernels(x)
    if kernels is not None and kernels.convolves(x, weight):
        return kernels.temporal_conv(x, weight, bias, residual, stride, upsample)
    columns, arguments = as_columns(x), ((stride, 1), (1, 0), (1, 1), upsample, (0, 0), 1)
    out = torch.ops.aten.convolution(columns, weight, bias.to(x.dtype), *arguments)
    for frame, tap in boundary_taps(x.shape[2], weight.shape[2], stride, upsample):
        matrix = weight[:, :, tap : tap + 1]
        matrix = matrix.transpose(0, 1) if upsample else matrix
        out.narrow(2, frame, 1).add_(F.conv2d(columns.narrow(2, frame, 1), matrix))
    return (out if residual is None else out.add_(as_columns(residual))).unflatten(3, x.shape[3:])


def replicate_padded_conv_for_export(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: int, upsample: bool
) -> Tensor:
    """The same by its definition, the activation padded: one graph for any number of frames, even or odd."""
    columns = as_columns(x)
    padded = torch.cat((columns[:, :, :1], columns, columns[:, :, -1:]), dim=2)
    if upsample:
        out = F.conv_transpose2d(padded, weight, bias, stride=(2, 1), padding=(3, 0))
    else:
        out = F.conv2d(padded, weight, bias, stride=(stride, 1))
    out = out.unflatten(3, x.shape[3:])
    return out if residual is None else out + residual


def boundary_taps(num_frames: int, taps: int, stride: int, upsample: bool) -> list[tuple[int, int]]:
    """(frame, tap) that a convolution padded with zeros is short of: frame 0 for the one before it, -1 for the one after."""
    if upsample:
        return [(0, taps - 1), (-1, 0)]
    last_is_outside = (num_frames - 1) % stride == 0
    return [(0, 0), (-1, taps - 1)] if last_is_outside else [(0, 0)]


class ReplicatePaddedConv(torch.autograd.Function):
    """`replicate_padded_conv` with its gradient: autograd would copy the whole gradient for each in-place slice."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        stride: int,
        upsample: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.upsample = stride, upsample
        return replicate_padded_conv(x, weight, bias, residual, stride, upsample)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        kernels = fused_kernels(x)
        if kernels is not None and not (kernels.convolves(x, weight) and (ctx.stride == 1 or ctx.upsample)):
            kernels = None
        columns, grad_columns = as_columns(x), as_columns(grad)
        grad_x, grad_weight = replicate_padded_conv_backward(
            grad_columns, columns, weight, ctx.stride, ctx.upsample, (needs[0] and kernels is None, needs[1])
        )
        if kernels is not None and needs[0]:
            grad_x = kernels.temporal_conv_gradient(grad, weight, x.shape[2], ctx.upsample)
        elif grad_x is not None:
            grad_x = grad_x.unflatten(3, x.shape[3:])
        return grad_x, grad_weight, sum_per_channel(grad_columns), grad if needs[3] else None, None, None


def frame_rows(columns: Tensor, frame: int) -> Tensor:
    """One frame of (b, c, t, n) as (b n, c)."""
    return columns.select(2, frame).movedim(1, -1).flatten(0, 1)


def sum_per_channel(grad: Tensor) -> Tensor:
    """Sum (b, c, t, n) to (c,) in at least float32; in two steps, since one leaves most of a GPU idle."""
    rows = grad.movedim(1, -1).flatten(0, 2)
    at_least_float32 = torch.promote_types(grad.dtype, torch.float32)
    return rows.unflatten(0, (math.gcd(len(rows), 1024), -1)).sum(1, dtype=at_least_float32).sum(0)


def replicate_padded_conv_backward(
    grad: Tensor, columns: Tensor, weight: Tensor, stride: int, upsample: bool, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of columns and weight, each where it is needed."""
    arguments = (stride, 1), (1, 0), (1, 1), upsample, (0, 0), 1
    grad_columns, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, columns, weight, None, *arguments, [*needs, False]
    )
    for frame, tap in boundary_taps(columns.shape[2], weight.shape[2], stride, upsample):
        grad_rows = frame_rows(grad, frame)
        if grad_columns is not None:
            matrix = weight[:, :, tap, 0].T if upsample else weight[:, :, tap, 0]  # (out, in)
            short = (grad_rows @ matrix).unflatten(0, (len(grad), -1)).movedim(-1, 1)
            grad_columns.select(2, frame).add_(short)
        if grad_weight is not None:
            product = grad_rows.T @ frame_rows(columns, frame)
            grad_weight[:, :, tap, 0].add_(product.T if upsample else product)
    return grad_columns, grad_weight


class Conv2_5d(nn.Module):  # noqa: N801  (the paper's name)
    """A 3x3 convolution of every frame, then a temporal convolution, with nothing in between (Movie Gen's "2.5D").

    Shapes: (b, in, t, h, w) -> (b, out, t, h, w), to which `residual` is added
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.temporal = TemporalConv(out_channels)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x = per_frame(lambda frames: F.conv2d(frames, self.spatial.weight, padding=1), x)
        return self.temporal(x, self.spatial.bias, residual)


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
        kernels = fused_kernels(x)
        if kernels is not None and kernels.normalizes(x, self.num_groups):
            samples = len(x) * x.shape[2] if self.per == "frame" else len(x)
            return kernels.group_norm_silu(x, samples, self.weight, self.bias, self.num_groups, self.eps, self.silu)
        out = self.normalize(as_frames(x) if self.per == "frame" else as_columns(x))
        return as_clip(out, batch=x.shape[0]) if self.per == "frame" else out.unflatten(3, x.shape[3:])

    def normalize(self, x: Tensor) -> Tensor:
        """Normalise (n, c, ...) over its positions and each group of channels."""
        # Autocast would give float32 back and double the memory of every activation; the statistics are
        # accumulated in float32 by the kernel itself.
        with torch.autocast(x.device.type, enabled=False):
            out = F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        return F.silu(out, inplace=not torch.is_grad_enabled()) if self.silu else out


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
