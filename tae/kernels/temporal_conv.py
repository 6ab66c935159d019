"""Temporal convolution in Triton.

A matrix product for each tap, on rows that lie where they are: frames outside the clip are read as the nearest one inside,
so nothing is padded or corrected; bias and residual are added before the result is written.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tae.kernels.common import channels_last, is_power_of_two


@triton.jit
def _temporal_conv_kernel(
    x_ptr, weight_ptr, bias_ptr, residual_ptr, out_ptr, frames_in, frames_out, positions,
    weight_in_stride, weight_out_stride,
    STEP: tl.constexpr, TAPS: tl.constexpr, UPSAMPLE: tl.constexpr, GRADIENT: tl.constexpr,  # noqa: N803
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, C: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """ROWS positions of one output frame, COLUMNS of its channels.

    Output frame i reads frame STEP i - 1 + k with tap k. A gradient of a convolution of stride 1 runs its taps backwards.
    With UPSAMPLE, of four taps frame i meets the two of its parity. The gradient that would flow into a frame outside
    the clip flows into the nearest one inside, with the tap that met it there: the opposite one.
    """
    frame, clip = tl.program_id(0) % frames_out, tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) // frames_out * ROWS + tl.arange(0, ROWS)
    columns, depth = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, DEPTH)
    mask = rows < positions
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for number in range(TAPS * (C // DEPTH)):
        k, start = number // (C // DEPTH), number % (C // DEPTH) * DEPTH
        if UPSAMPLE:
            wanted, tap = (frame + 1) // 2 - k, (frame + 1) % 2 + 2 * k
        else:
            wanted, tap = STEP * frame - 1 + k, TAPS - 1 - k if GRADIENT and STEP == 1 else k
        source = tl.minimum(tl.maximum(wanted, 0), frames_in - 1)
        if GRADIENT:
            tap = tl.where(source == wanted, tap, TAPS - 1 - tap)
        x_start = x_ptr + (clip * frames_in + source) * positions * C + start
        x = tl.load(x_start + rows[:, None] * C + depth[None, :], mask=mask[:, None], other=0.0)
        weight_start = weight_ptr + tap * C + start * weight_in_stride
        weight = tl.load(weight_start + depth[:, None] * weight_in_stride + columns[None, :] * weight_out_stride)
        total = tl.dot(x, weight, total)
    if BIAS:
        total += tl.load(bias_ptr + columns).to(tl.float32)[None, :]
    offsets = (clip * frames_out + frame) * positions * C + rows[:, None] * C + columns[None, :]
    if RESIDUAL:
        total += tl.load(residual_ptr + offsets, mask=mask[:, None], other=0.0).to(tl.float32)
    tl.store(out_ptr + offsets, total.to(out_ptr.dtype.element_ty), mask=mask[:, None])


def convolves(x: Tensor, weight: Tensor) -> bool:
    """Whether `temporal_conv` takes these: half precision, a power of two of channels, 64 or more."""
    channels, positions = x.shape[1], x.shape[3] * x.shape[4]
    return (
        x.dtype in (torch.float16, torch.bfloat16)
        and weight.shape[:2] == (channels, channels)
        and channels >= 64
        and is_power_of_two(channels)
        and channels * positions < 2**31  # offsets within a frame are 32-bit
    )


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    frames_out: int,
    gradient: bool,
    step: int,
    upsample: bool,
) -> Tensor:
    """Launch the kernel; `weight` is the forward pass's, (out, in, taps, 1) or, with upsampling, (in, out, 4, 1)."""
    x, weight = channels_last(x), channels_last(weight)
    batch, channels, frames_in, height, width = x.shape
    positions = height * width
    out = x.new_empty((batch, frames_out, height, width, channels)).movedim(-1, 1)
    # A row of the weight's matrix is an input channel of this launch; in memory it is (first, tap, second).
    first_is_input = gradient != upsample
    strides = (weight.stride(0), 1) if first_is_input else (1, weight.stride(0))
    columns = 256 if channels >= 512 else min(channels, 128)  # measured; wider tiles pay where products outweigh bytes
    grid = (triton.cdiv(positions, 128) * frames_out, channels // columns, batch)
    _temporal_conv_kernel[grid](
        x, weight, x if bias is None else bias, x if residual is None else channels_last(residual), out,
        frames_in, frames_out, positions, *strides,
        STEP=step, TAPS=2 if upsample and not gradient else weight.shape[2],
        UPSAMPLE=upsample and not gradient, GRADIENT=gradient, BIAS=bias is not None, RESIDUAL=residual is not None,
        C=channels, ROWS=128, COLUMNS=columns, DEPTH=64, num_warps=8, num_stages=3,
    )  # fmt: skip
    return out


def temporal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: int, upsample: bool
) -> Tensor:
    """`tae.model.temporal_conv.replicate_padded_conv` in one kernel: same arguments, same result."""
    frames = x.shape[2]
    frames_out = 2 * frames if upsample else (frames - 1) // stride + 1
    return _convolve(x, weight, bias, residual, frames_out, False, stride, upsample)


def temporal_conv_gradient(grad: Tensor, weight: Tensor, num_frames: int, upsample: bool) -> Tensor:
    """The gradient of `temporal_conv`'s x, for stride 1 and for upsampling."""
    return _convolve(grad, weight, None, None, num_frames, True, 2 if upsample else 1, upsample)
