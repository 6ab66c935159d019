"""Temporal convolution, with replicate padding or with zeros: forward, backward, upsampling and export.

Shapes as in `tae.model.layers`; source: Movie Gen (arXiv 2410.13720), section 3.1.1.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tae.kernels.available import fused_kernels
from tae.model.memory_format import as_columns

TEMPORAL_TAPS = 3
TEMPORAL_INITS = ("centric", "random")
TEMPORAL_PADDINGS = ("replicate", "zeros")


def cast_to_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What autocast does to the arguments of a convolution, for one that autocast cannot see into."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)


class TemporalConv(nn.Conv2d):
    """Convolution along time at every position: 3 taps, padding (1, 1), by default replicate, starting as the identity.

    Shapes:
        x:       (b, c, t, h, w) with t >= 1
        returns: (b, c, ceil(t / stride), h, w)

    With stride 2 output frame i is centred on input frame 2 i, so at the start it *is* input frame 2 i.
    """

    bias: Tensor  # always: its type in nn.Conv2d allows for none
    zero_padded = False  # zeros outside the clip, in place of its first and last frame

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__(channels, channels, (TEMPORAL_TAPS, 1), stride=(stride, 1), padding=(1, 0))

    def reset_parameters(self) -> None:
        """Centric initialisation (Movie Gen): weight 1 at (i, i, centre tap), 0 elsewhere, bias 0."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.weight[:, :, TEMPORAL_TAPS // 2, 0].fill_diagonal_(1.0)

    def randomize(self) -> None:
        """Random initialisation, as PyTorch gives it to every convolution."""
        super().reset_parameters()

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
        if self.zero_padded:
            x = x if constant is None else x + constant.to(x.dtype).view(-1, 1, 1, 1)
            x, weight = cast_to_autocast(x, weight)
            return zero_padded_conv(x, weight, self.bias, residual, stride, upsample)
        bias = self.bias if constant is None else folded_bias(self.weight, self.bias, constant)
        x, weight = cast_to_autocast(x, weight)
        convolve = ReplicatePaddedConv.apply if torch.is_grad_enabled() else replicate_padded_conv
        return convolve(x, weight, bias, residual, stride, upsample)


def folded_bias(weight: Tensor, bias: Tensor, constant: Tensor) -> Tensor:
    """(c,), the bias with which a convolution gives of `x` what it gives of `x + constant`."""
    return bias + (weight.sum((2, 3)) * constant).sum(1)


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


def zero_padded_conv(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: int, upsample: bool
) -> Tensor:
    """Convolve (b, c, t, h, w) along t with zeros before the first frame and after the last, and add `residual`.

    Differentiated by autograd and without a kernel of ours: it is there to be compared with, not to be fast.
    """
    columns, bias = as_columns(x), bias.to(x.dtype)
    if upsample:
        out = F.conv_transpose2d(columns, weight, bias, stride=(2, 1), padding=(1, 0))
    else:
        out = F.conv2d(columns, weight, bias, stride=(stride, 1), padding=(1, 0))
    out = out.unflatten(3, x.shape[3:])
    return out if residual is None else out + residual


def replicate_padded_conv(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: int, upsample: bool
) -> Tensor:
    """Convolve (b, c, t, h, w) along t as if the first and the last frame stood there once more, and add `residual`.

    With `upsample` the convolution is a transposed one. Padding the activation would copy all of it. The convolution
    pads with zeros instead, and what the two missing frames would have given is added to the first and the last output.
    """
    if torch.compiler.is_exporting():
        return replicate_padded_conv_for_export(x, weight, bias, residual, stride, upsample)
    kernels = fused_kernels(x, "temporal_conv")
    if kernels is not None and kernels.convolves(x, weight):
        return kernels.temporal_conv(x, weight, bias, residual, stride, upsample)
    columns, arguments = as_columns(x), ((stride, 1), (1, 0), (1, 1), upsample, (0, 0), 1)
    out = torch.ops.aten.convolution(columns, weight, bias.to(x.dtype), *arguments)
    taps = weight.split(1, dim=2)
    for frame, tap in boundary_taps(x.shape[2], weight.shape[2], stride, upsample):
        matrix = taps[tap].transpose(0, 1) if upsample else taps[tap]
        out.narrow(2, frame, 1).add_(F.conv2d(columns.narrow(2, frame, 1), matrix))
    out = out.unflatten(3, x.shape[3:])
    return out if residual is None else out.add_(residual)


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
        gradients = replicate_padded_conv_gradients(grad, x, weight, ctx.stride, ctx.upsample, (needs[0], needs[1]))
        return *gradients, grad if needs[3] else None, None, None


def replicate_padded_conv_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, upsample: bool, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Gradients of x and weight, each where it is needed, and of the bias."""
    kernels = fused_kernels(x, "temporal_conv")
    if kernels is not None and not (kernels.convolves(x, weight) and (stride == 1 or upsample)):
        kernels = None
    columns, grad_columns = as_columns(x), as_columns(grad)
    grad_x, grad_weight = replicate_padded_conv_backward(
        grad_columns, columns, weight, stride, upsample, (needs[0] and kernels is None, needs[1])
    )
    if kernels is not None and needs[0]:
        grad_x = kernels.temporal_conv_gradient(grad, weight, x.shape[2], upsample)
    elif grad_x is not None:
        grad_x = grad_x.unflatten(3, x.shape[3:])
    return grad_x, grad_weight, sum_per_channel(grad_columns)


def sum_per_channel(grad: Tensor) -> Tensor:
    """Sum (b, c, t, n) to (c,) in at least float32; in two steps, since one leaves most of a GPU idle."""
    rows = grad.movedim(1, -1).flatten(0, 2)
    at_least_float32 = torch.float64 if grad.dtype == torch.float64 else torch.float32
    return rows.unflatten(0, (math.gcd(len(rows), 1024), -1)).sum(1, dtype=at_least_float32).sum(0)


def replicate_padded_conv_backward(
    grad: Tensor, columns: Tensor, weight: Tensor, stride: int, upsample: bool, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of columns and weight, each where it is needed."""
    arguments = (stride, 1), (1, 0), (1, 1), upsample, (0, 0), 1
    grad_columns, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, columns, weight, None, *arguments, [*needs, False]
    )
    by_frame = lambda x: x.movedim(1, -1)  # noqa: E731  (b, c, t, n) to (b, t, n, c)
    by_tap = lambda x: x.squeeze(3).unbind(2)  # noqa: E731  (out, in, taps, 1) to one matrix for each
    grads, frames, taps = by_frame(grad), by_frame(columns), by_tap(weight)
    grad_taps = None if grad_weight is None else by_tap(grad_weight)
    grad_frames = None if grad_columns is None else by_frame(grad_columns)
    for frame, tap in boundary_taps(columns.shape[2], weight.shape[2], stride, upsample):
        grad_rows = grads[:, frame].flatten(0, 1)
        if grad_frames is not None:
            matrix = taps[tap].T if upsample else taps[tap]  # (out, in)
            grad_frames[:, frame].add_((grad_rows @ matrix).unflatten(0, (len(grad), -1)))
        if grad_taps is not None:
            product = grad_rows.T @ frames[:, frame].flatten(0, 1)
            grad_taps[tap].add_(product.T if upsample else product)
    return grad_columns, grad_weight
