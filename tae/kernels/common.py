"""Loading rows of channels-last tensors, and the size of a launch, for all Triton kernels.

Everything in this package takes channels-last tensors, computes in float32 and rounds once, at the end.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_VALUES = 4096  # of one step of a program; measured best of 4096, 8192 and 16384
PROGRAMS = 1024  # of one launch, about; measured best of 1024, 2048 and 8192


@triton.jit
def load_rows(ptr, sample, row, positions, C: tl.constexpr, ROWS: tl.constexpr):  # noqa: N803
    """(ROWS, C) values from `row` on as float32, with their offsets and which of them exist."""
    rows = row + tl.arange(0, ROWS)[:, None]
    offsets = (sample * positions + rows) * C + tl.arange(0, C)[None, :]
    mask = rows < positions
    return tl.load(ptr + offsets, mask=mask, other=0.0).to(tl.float32), offsets, mask


def is_power_of_two(number: int) -> bool:
    """Triton's tiles have no other extents."""
    return number & (number - 1) == 0


def launch_size(x: Tensor, samples: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid (parts, samples) over a channels-last tensor, and the sizes that every kernel takes."""
    channels = x.shape[1]
    positions = x.numel() // (samples * channels)
    rows = max(TILE_VALUES // channels, 1)
    parts = min(triton.cdiv(positions, rows), triton.cdiv(PROGRAMS, samples))
    steps = triton.cdiv(positions, rows * parts)
    sizes = {"positions": positions, "steps": steps, "C": channels, "ROWS": rows, "num_warps": 8}
    return (triton.cdiv(positions, rows * steps), samples), sizes


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
