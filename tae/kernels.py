"""The memory-bound parts on a GPU, in as few passes over the activations as they need (Triton).

Everything here takes channels-last tensors, computes in float32 and rounds once, at the end.

**GroupNorm with SiLU.** PyTorch's CUDA kernel normalises (n, c, positions): it copies anything channels-last into that
order, the next convolution copies it back, and SiLU reads and writes it all once more. Here the statistics take one
read, the result one read and one write. The backward pass needs `x` and its moments: the normalised values are computed
again.

**Temporal convolution.** A matrix product for each tap, on rows that lie where they are: frames outside the clip are read
as the nearest one inside, so nothing is padded or corrected; bias and residual are added before the result is written.

**LPIPS distance.** Unit length, difference, square, weight and mean of two feature maps, read once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_VALUES = 4096  # of one step of a program; measured best of 4096, 8192 and 16384
PROGRAMS = 1024  # of one launch, about; measured best of 1024, 2048 and 8192


@triton.jit
def _load_rows(ptr, sample, row, positions, C: tl.constexpr, ROWS: tl.constexpr):  # noqa: N803
    """(ROWS, C) values from `row` on as float32, with their offsets and which of them exist."""
    rows = row + tl.arange(0, ROWS)[:, None]
    offsets = (sample * positions + rows) * C + tl.arange(0, C)[None, :]
    mask = rows < positions
    return tl.load(ptr + offsets, mask=mask, other=0.0).to(tl.float32), offsets, mask


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
        x, _, mask = _load_rows(x_ptr, sample, (part * steps + step) * ROWS, positions, C, ROWS)
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
        x, offsets, mask = _load_rows(x_ptr, sample, (part * steps + step) * ROWS, positions, C, ROWS)
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
    x, offsets, mask = _load_rows(x_ptr, sample, row, positions, C, ROWS)
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


def is_power_of_two(number: int) -> bool:
    """Triton's tiles have no other extents."""
    return number & (number - 1) == 0


def normalizes(x: Tensor, groups: int) -> bool:
    """Whether `group_norm_silu` takes (b, c, t, h, w) `x`: channels-last, a power of two of channels and groups."""
    channels = x.shape[1]
    return (
        x.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and x.is_contiguous(memory_format=torch.channels_last_3d)
        and is_power_of_two(channels)
        and is_power_of_two(groups)
    )


def _launch(x: Tensor, samples: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid (parts, samples) over a channels-last tensor, and the sizes that every kernel takes."""
    channels = x.shape[1]
    positions = x.numel() // (samples * channels)
    rows = max(TILE_VALUES // channels, 1)
    parts = min(triton.cdiv(positions, rows), triton.cdiv(PROGRAMS, samples))
    steps = triton.cdiv(positions, rows * parts)
    sizes = {"positions": positions, "steps": steps, "C": channels, "ROWS": rows, "num_warps": 8}
    return (triton.cdiv(positions, rows * steps), samples), sizes


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
        grid, sizes = _launch(x, samples)
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
        grid, sizes = _launch(x, ctx.samples)
        grad = _channels_last(grad)
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


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


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
    x, weight = _channels_last(x), _channels_last(weight)
    batch, channels, frames_in, height, width = x.shape
    positions = height * width
    out = x.new_empty((batch, frames_out, height, width, channels)).movedim(-1, 1)
    # A row of the weight's matrix is an input channel of this launch; in memory it is (first, tap, second).
    first_is_input = gradient != upsample
    strides = (weight.stride(0), 1) if first_is_input else (1, weight.stride(0))
    columns = 256 if channels >= 512 else min(channels, 128)  # measured; wider tiles pay where products outweigh bytes
    grid = (triton.cdiv(positions, 128) * frames_out, channels // columns, batch)
    _temporal_conv_kernel[grid](
        x, weight, x if bias is None else bias, x if residual is None else _channels_last(residual), out,
        frames_in, frames_out, positions, *strides,
        STEP=step, TAPS=2 if upsample and not gradient else weight.shape[2],
        UPSAMPLE=upsample and not gradient, GRADIENT=gradient, BIAS=bias is not None, RESIDUAL=residual is not None,
        C=channels, ROWS=128, COLUMNS=columns, DEPTH=64, num_warps=8, num_stages=3,
    )  # fmt: skip
    return out


def temporal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, stride: int, upsample: bool
) -> Tensor:
    """`tae.layers.replicate_padded_conv` in one kernel: same arguments, same result."""
    frames = x.shape[2]
    frames_out = 2 * frames if upsample else (frames - 1) // stride + 1
    return _convolve(x, weight, bias, residual, frames_out, False, stride, upsample)


def temporal_conv_gradient(grad: Tensor, weight: Tensor, num_frames: int, upsample: bool) -> Tensor:
    """The gradient of `temporal_conv`'s x, for stride 1 and for upsampling."""
    return _convolve(grad, weight, None, None, num_frames, True, 2 if upsample else 1, upsample)


@triton.jit
def _unit_difference(x_ptr, y_ptr, sample, row, positions, C: tl.constexpr, ROWS: tl.constexpr):  # noqa: N803
    """Rows of y, their lengths, and the difference of y and x at unit length."""
    x, offsets, mask = _load_rows(x_ptr, sample, row, positions, C, ROWS)
    y, _, _ = _load_rows(y_ptr, sample, row, positions, C, ROWS)
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
        x, y = _channels_last(x), _channels_last(y)
        grid, sizes = _launch(y, len(y))
        parts = y.new_empty((grid[1], grid[0]), dtype=torch.float32)
        _distance_kernel[grid](x, y, weight, parts, **sizes)
        ctx.save_for_backward(x, y, weight)
        return parts.sum(1) / sizes["positions"]

    @staticmethod
    def backward(ctx, upstream: Tensor):  # type: ignore[override]
        x, y, weight = ctx.saved_tensors
        grid, sizes = _launch(y, len(y))
        grad = torch.empty_like(y)
        _distance_gradient_kernel[grid](x, y, weight, upstream.contiguous(), grad, **sizes)
        return None, grad, None


def unit_distance(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """`tae.losses.perceptual.level_distance` in one kernel; its gradient goes to `y` alone."""
    return UnitDistance.apply(x, y, weight)
