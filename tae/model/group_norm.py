"""Group normalisation and SiLU as one function of autograd, where no kernel does both: views on the way cost nothing."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tae.model.memory_format import as_clip, as_columns, as_frames


class EagerGroupNormSiLU(torch.autograd.Function):
    """Normalise (b, c, t, h, w) over the positions of each "frame", or of the "clip", and each group of channels.

    Everything is in the type of `x`: autocast would give float32 back and double the memory of every activation; the
    statistics are accumulated in float32 by the kernel itself.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, per: str, silu: bool
    ) -> Tensor:
        rows = positions(x, per)
        ctx.sizes = len(rows), x.shape[1], rows.shape[2:].numel(), groups
        ctx.per, ctx.silu = per, silu
        scale = weight.to(x.dtype)
        out, mean, deviation = torch.ops.aten.native_group_norm(rows, scale, bias.to(x.dtype), *ctx.sizes, eps)
        ctx.save_for_backward(x, scale, out if silu else None, mean, deviation)
        return restored(F.silu(out) if silu else out, x, per)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x, scale, out, mean, deviation = ctx.saved_tensors
        grad = positions(grad, ctx.per)
        if ctx.silu:
            grad = torch.ops.aten.silu_backward(grad, out)
        needs = list(ctx.needs_input_grad[:3])
        rows = positions(x, ctx.per)
        grad_x, *others = torch.ops.aten.native_group_norm_backward(
            grad, rows, mean, deviation, scale, *ctx.sizes, needs
        )
        grad_x = restored(grad_x, x, ctx.per) if needs[0] else None
        return grad_x, *(other if need else None for other, need in zip(others, needs[1:], strict=True)), *[None] * 4


def positions(x: Tensor, per: str) -> Tensor:
    """(n, c, ...), of which each n is normalised alone; in the order of memory that the kernels give back."""
    rows = as_frames(x) if per == "frame" else as_columns(x)
    return rows.contiguous(memory_format=torch.channels_last)


def restored(rows: Tensor, x: Tensor, per: str) -> Tensor:
    """What `positions` gives, in the shape of `x`."""
    return as_clip(rows, batch=len(x)) if per == "frame" else rows.unflatten(3, x.shape[3:])
