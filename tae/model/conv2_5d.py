"""A spatial convolution and the temporal one after it as one function of autograd.

Its gradient is what autograd would give, bit for bit, from a third of the operations: autograd would take every view on the
way, and each step of the folded bias, back by itself.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tae.model.memory_format import as_clip, as_frames, per_frame
from tae.model.temporal_conv import (
    cast_to_autocast,
    folded_bias,
    replicate_padded_conv,
    replicate_padded_conv_gradients,
)


def conv2_5d(
    x: Tensor, spatial: Tensor, constant: Tensor, temporal: Tensor, bias: Tensor, residual: Tensor | None
) -> Tensor:
    """Convolve every frame of (b, in, t, h, w) by `spatial`, add `constant`, convolve along time, and add `residual`.

    Args:
        spatial: (out, in, 3, 3), with zeros around each frame.
        constant: (out,), the spatial bias.
        temporal: (out, out, 3, 1), with the first and the last frame repeated.
        bias: (out,).
        residual: (b, out, t, h, w).
    """
    (x,) = cast_to_autocast(x)
    if torch.is_grad_enabled():
        return Conv25D.apply(x, spatial, constant, temporal, bias, residual)
    spatial, weight = cast_to_autocast(spatial, temporal)
    between = spatial_conv(x, spatial)
    return replicate_padded_conv(between, weight, folded_bias(temporal, bias, constant), residual, 1, upsample=False)


def spatial_conv(x: Tensor, weight: Tensor) -> Tensor:
    return per_frame(lambda frames: F.conv2d(frames, weight, padding=1), x)


class Conv25D(torch.autograd.Function):
    """`conv2_5d` with its gradient."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx, x: Tensor, spatial: Tensor, constant: Tensor, temporal: Tensor, bias: Tensor, residual: Tensor | None
    ) -> Tensor:
        cast_spatial, weight = cast_to_autocast(spatial, temporal)
        between = spatial_conv(x, cast_spatial)
        taps = temporal.sum((2, 3))
        ctx.save_for_backward(x, cast_spatial, constant, between, weight, taps)
        folded = bias + (taps * constant).sum(1)
        return replicate_padded_conv(between, weight, folded, residual, 1, upsample=False)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x, spatial, constant, between, weight, taps = ctx.saved_tensors
        needs_x, needs_spatial, needs_constant, needs_temporal, _, needs_residual = ctx.needs_input_grad
        needs = (needs_x or needs_spatial, needs_temporal)
        grad_between, grad_temporal, grad_bias = replicate_padded_conv_gradients(grad, between, weight, 1, False, needs)
        grad_bias = grad_bias.to(taps.dtype)
        each = grad_bias.unsqueeze(1)
        if grad_temporal is not None:
            grad_temporal = grad_temporal.to(taps.dtype).add_((each * constant).view(*taps.shape, 1, 1))
        grad_constant = (each * taps).sum(0) if needs_constant else None
        grad_x = grad_spatial = None
        if grad_between is not None:
            grad_x, grad_spatial, _ = torch.ops.aten.convolution_backward(
                as_frames(grad_between), as_frames(x), spatial, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1,
                [needs_x, needs_spatial, False],
            )  # fmt: skip
        grad_x = None if grad_x is None else as_clip(grad_x, batch=len(x))
        return grad_x, grad_spatial, grad_constant, grad_temporal, grad_bias, grad if needs_residual else None
