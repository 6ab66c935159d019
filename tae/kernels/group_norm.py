"""GroupNorm with SiLU in Triton, in as few passes over the activations as it needs.

PyTorch's CUDA kernel normalises (n, c, positions): it copies anything channels-last into that order, the next convolution
copies it back, and SiLU reads and writes it all once more. Here the statistics take one read, the result one read and one
write. The backward pass needs `x` and its moments: the normalised values are computed again.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tae.kernels.common import channels_last, is_power_of_two, launch_size, load_rows


@triton.jit
def _over_group(per_channel, C: tl.constexpr, GROUPS: tl.constexpr):  # noqa: N803
    """Sum (C,) within each group, and give every channel its group's sum."""
    grouped = tl.reshape(per_channel, (GROUPS, C // GROUPS))
    return tl.reshape(tl.broadcast_to(tl.sum(grouped, 1, keep_dims=True), (GROUPS, C // GROUPS)), (C,))


@triton.jit
def _anchor(x_ptr, sample, positions, C: tl.constexpr, GROUPS: tl.constexpr):  # noqa: N803
    """One value of each group, for every channel of it. Moments are taken about it: no cancellation far from zero."""
    first = tl.arange(0, C) // (C // GROUPS) * (C // GROUPS)
    return tl.load(x_ptr + sample * positions * C + first).to(tl.float32)


@triton.jit
def _statistics(x_ptr, moments_ptr, sample, positions, eps, C: tl.constexpr, GROUPS: tl.constexpr):  # noqa: N803
    """Mean and 1 / deviation of each channel's group, as (C,)."""
    channels = tl.arange(0, C)
    count = 1.0 * positions * (C // GROUPS)
    first = _over_group(tl.load(moments_ptr + sample * 2 * C + channels), C, GROUPS) / count
    second = _over_group(tl.load(moments_ptr + sample * 2 * C + C + channels), C, GROUPS) / count
    mean = _anchor(x_ptr, sample, positions, C, GROUPS) + first
    return mean, tl.rsqrt(tl.maximum(second - first * first, 0.0) + eps)


@triton.jit
def _moments_kernel(x_ptr, parts_ptr, positions, steps, C: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr):  # noqa: N803
    """Sums of x and of its square, about the anchor, over this program's rows: (2, C) of (n, parts, 2, C)."""
    part, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    anchor = _anchor(x_ptr, sample, positions, C, GROUPS)[None, :]
    first, second = tl.zeros((ROWS, C), tl.float32), tl.zeros((ROWS, C), tl.float32)
    for step in range(steps):
        x, _, mask = load_rows(x_ptr, sample, (part * steps + step) * ROWS, positions, C, ROWS)
        x = tl.where(mask, x - anchor, 0.0)
        first += x
        second += x * x
    out = parts_ptr + (sample * tl.num_programs(0) + part) * 2 * C + tl.arange(0, C)
    tl.store(out, tl.sum(first, 0))
    tl.store(out + C, tl.sum(second, 0))


@triton.jit
def _normalize_kernel(
    x_ptr, moments_ptr, weight_ptr, bias_ptr, y_ptr, positions, steps,
    eps: tl.constexpr, SILU: tl.constexpr, C: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """y = silu((x - mean) / deviation * weight + bias)."""
    part, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channels = tl.arange(0, C)
    mean, rstd = _statistics(x_ptr, moments_ptr, sample, positions, eps, C, GROUPS)
    scale = tl.load(weight_ptr + channels).to(tl.float32) * rstd
    shift = tl.load(bias_ptr + channels).to(tl.float32)
    for step in range(steps):
        x, offsets, mask = load_rows(x_ptr, sample, (part * steps + step) * ROWS, positions, C, ROWS)
        y = (x - mean[None, :]) * scale[None, :] + shift[None, :]
        if SILU:
            y = y * tl.sigmoid(y)
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _load_pair(
    x_ptr, grad_ptr, mean, rstd, weight, bias, sample, row, positions,
    SILU: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Normalised values and the gradient that arrives at `normalised * weight + bias`, with offsets and mask."""
    x, offsets, mask = load_rows(x_ptr, sample, row, positions, C, ROWS)
    grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    normalised = (x - mean[None, :]) * rstd[None, :]
    if SILU:
        z = normalised * weight[None, :] + bias[None, :]
        gate = tl.sigmoid(z)
        grad = grad * gate * (1.0 + z * (1.0 - gate))
    return normalised, grad, offsets, mask


@triton.jit
def _gradient_sums_kernel(
    x_ptr, grad_ptr, moments_ptr, weight_ptr, bias_ptr, parts_ptr, positions, steps,
    eps: tl.constexpr, SILU: tl.constexpr, C: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Gradients of bias and weight from this program's rows: (2, C) of (n, parts, 2, C)."""
    part, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channels = tl.arange(0, C)
    mean, rstd = _statistics(x_ptr, moments_ptr, sample, positions, eps, C, GROUPS)
    weight, bias = tl.load(weight_ptr + channels).to(tl.float32), tl.load(bias_ptr + channels).to(tl.float32)
    to_bias, to_weight = tl.zeros((ROWS, C), tl.float32), tl.zeros((ROWS, C), tl.float32)
    for step in range(steps):
        row = (part * steps + step) * ROWS
        normalised, grad, _, _ = _load_pair(
            x_ptr, grad_ptr, mean, rstd, weight, bias, sample, row, positions, SILU, C, ROWS
        )
        to_bias += grad
        to_weight += grad * normalised
    out = parts_ptr + (sample * tl.num_programs(0) + part) * 2 * C + channels
    tl.store(out, tl.sum(to_bias, 0))
    tl.store(out + C, tl.sum(to_weight, 0))


@triton.jit
def _gradient_kernel(
    x_ptr, grad_ptr, moments_ptr, sums_ptr, weight_ptr, bias_ptr, grad_x_ptr, positions, steps,
    eps: tl.constexpr, SILU: tl.constexpr, C: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Gradient of x: the arriving one without its mean and without its part along the normalised values."""
    part, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channels = tl.arange(0, C)
    mean, rstd = _statistics(x_ptr, moments_ptr, sample, positions, eps, C, GROUPS)
    weight, bias = tl.load(weight_ptr + channels).to(tl.float32), tl.load(bias_ptr + channels).to(tl.float32)
    count = 1.0 * positions * (C // GROUPS)
    grad_mean = _over_group(weight * tl.load(sums_ptr + sample * 2 * C + channels), C, GROUPS) / count
    grad_along = _over_group(weight * tl.load(sums_ptr + sample * 2 * C + C + channels), C, GROUPS) / count
    for step in range(steps):
        row = (part * steps + step) * ROWS
        normalised, grad, offsets, mask = _load_pair(
            x_ptr, grad_ptr, mean, rstd, weight, bias, sample, row, positions, SILU, C, ROWS
        )
        grad_x = rstd[None, :] * (grad * weight[None, :] - grad_mean[None, :] - normalised * grad_along[None, :])
        tl.store(grad_x_ptr + offsets, grad_x.to(grad_x_ptr.dtype.element_ty), mask=mask)


def normalizes(x: Tensor, groups: int) -> bool:
    """Whether `group_norm_silu` takes (b, c, t, h, w) `x`: channels-last, a power of two of channels and groups."""
    channels = x.shape[1]
    return (
        x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and x.is_contiguous(memory_format=torch.channels_last_3d)
        and is_power_of_two(channels)
        and is_power_of_two(groups)
    )


class GroupNormSiLU(torch.autograd.Function):
    """GroupNorm of as many samples as `x` is cut into, then SiLU where asked for."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx,
        x: Tensor,
        samples: int,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        silu: bool,
    ) -> Tensor:
        grid, sizes = launch_size(x, samples)
        parts = x.new_empty((grid[1], grid[0], 2, x.shape[1]), dtype=torch.float32)
        _moments_kernel[grid](x, parts, GROUPS=groups, **sizes)
        moments = parts.sum(1)
        y = torch.empty_like(x)
        _normalize_kernel[grid](x, moments, weight, bias, y, eps=eps, SILU=silu, GROUPS=groups, **sizes)
        ctx.save_for_backward(x, moments, weight, bias)
        ctx.samples, ctx.settings = samples, {"eps": eps, "SILU": silu, "GROUPS": groups}
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x, moments, weight, bias = ctx.saved_tensors
        grid, sizes = launch_size(x, ctx.samples)
        grad = channels_last(grad)
        parts = x.new_empty((grid[1], grid[0], 2, x.shape[1]), dtype=torch.float32)
        _gradient_sums_kernel[grid](x, grad, moments, weight, bias, parts, **sizes, **ctx.settings)
        sums = parts.sum(1)
        grad_x = torch.empty_like(x)
        _gradient_kernel[grid](x, grad, moments, sums, weight, bias, grad_x, **sizes, **ctx.settings)
        grad_bias, grad_weight = sums.sum(0).unbind()
        return grad_x, None, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), None, None, None


def group_norm_silu(
    x: Tensor, samples: int, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> Tensor:
    """Normalise channels-last (b, c, t, h, w), over groups of channels and all positions of a sample, then SiLU.

    samples: b t to normalise each frame alone, b to normalise each clip.
    """
    return GroupNormSiLU.apply(x, samples, weight, bias, groups, eps, silu)
