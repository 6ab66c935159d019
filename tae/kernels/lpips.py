"""LPIPS distance in Triton: unit length, difference, square, weight and mean of two feature maps, read once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tae.kernels.common import channels_last, is_power_of_two, launch_size, load_rows


@triton.jit
def _unit_difference(x_ptr, y_ptr, sample, row, positions, C: tl.constexpr, ROWS: tl.constexpr):  # noqa: N803
    """Rows of y, their lengths, and the difference of y and x at unit length."""
    x, offsets, mask = load_rows(x_ptr, sample, row, positions, C, ROWS)
    y, _, _ = load_rows(y_ptr, sample, row, positions, C, ROWS)
    x_length, y_length = tl.sqrt(tl.sum(x * x, 1)), tl.sqrt(tl.sum(y * y, 1))
    difference = y / (y_length + 1e-10)[:, None] - x / (x_length + 1e-10)[:, None]
    return y, y_length, difference, offsets, mask


@triton.jit
def _distance_kernel(x_ptr, y_ptr, weight_ptr, parts_ptr, positions, steps, C: tl.constexpr, ROWS: tl.constexpr):  # noqa: N803
    """Sum of the weighted squared differences of this program's rows: one of (n, parts)."""
    part, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    weight = tl.load(weight_ptr + tl.arange(0, C))
    total = tl.zeros((ROWS,), tl.float32)
    for step in range(steps):
        _, _, difference, _, _ = _unit_difference(
            x_ptr, y_ptr, sample, (part * steps + step) * ROWS, positions, C, ROWS
        )
        total += tl.sum(difference * difference * weight[None, :], 1)
    tl.store(parts_ptr + sample * tl.num_programs(0) + part, tl.sum(total, 0))


@triton.jit
def _distance_gradient_kernel(
    x_ptr, y_ptr, weight_ptr, upstream_ptr, grad_ptr, positions, steps, C: tl.constexpr, ROWS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Gradient of the mean distance to y: what arrives at unit length, without its part along y, over y's length."""
    part, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    weight = tl.load(weight_ptr + tl.arange(0, C)) * (2.0 * tl.load(upstream_ptr + sample) / positions)
    for step in range(steps):
        row = (part * steps + step) * ROWS
        y, length, difference, offsets, mask = _unit_difference(x_ptr, y_ptr, sample, row, positions, C, ROWS)
        arriving = difference * weight[None, :]
        # Where y is 0 it has no direction; it comes from a ReLU there, which lets no gradient through.
        scale = tl.where(length > 0.0, 1.0 / (length + 1e-10), 0.0)
        along = tl.sum(arriving * y, 1) * scale * scale
        grad = (arriving - y * along[:, None]) * scale[:, None]
        tl.store(grad_ptr + offsets, grad.to(grad_ptr.dtype.element_ty), mask=mask)


class UnitDistance(torch.autograd.Function):
    """Mean over positions of sum_c weight_c (x_c / ||x|| - y_c / ||y||)^2: (n, c, h, w) twice and (c,) to (n,) float32."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        x, y = channels_last(x), channels_last(y)
        grid, sizes = launch_size(y, len(y))
        parts = y.new_empty((grid[1], grid[0]), dtype=torch.float32)
        _distance_kernel[grid](x, y, weight, parts, **sizes)
        ctx.save_for_backward(x, y, weight)
        return parts.sum(1) / sizes["positions"]

    @staticmethod
    def backward(ctx, upstream: Tensor):  # type: ignore[override]
        x, y, weight = ctx.saved_tensors
        grid, sizes = launch_size(y, len(y))
        grad = torch.empty_like(y)
        _distance_gradient_kernel[grid](x, y, weight, upstream.contiguous(), grad, **sizes)
        return None, grad, None


def unit_distance(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """`tae.losses.lpips.level_distance` in one kernel; its gradient goes to `y` alone."""
    return UnitDistance.apply(x, y, weight)


def measures(y: Tensor) -> bool:
    """Whether the kernels take features (n, c, h, w) of so many channels."""
    return is_power_of_two(y.shape[1])
