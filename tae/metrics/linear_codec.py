"""The best linear codec of blocks: principal components of 8x8x8 blocks of pixels.

Each block of 8x8x8x3 values becomes its coefficients on the first components of other clips' blocks. No linear codec that
treats blocks one by one has a smaller mean squared error on the clips that it is fitted on.
"""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 8  # frames, rows and columns
BLOCK_VALUES = 3 * BLOCK**3


class BlockSums:
    """Count, sum and products of blocks in float64, from which their principal components follow."""

    def __init__(self) -> None:
        self.count = 0
        self.total = torch.zeros(BLOCK_VALUES, dtype=torch.float64)
        self.products = torch.zeros(BLOCK_VALUES, BLOCK_VALUES, dtype=torch.float64)

    def add(self, clip: Tensor) -> None:
        """Count the blocks of clips (b, 3, t, h, w), padded at the end by repetition."""
        blocks = to_blocks(clip).double()
        self.count += len(blocks)
        self.total += blocks.sum(0).cpu()
        self.products += (blocks.T @ blocks).cpu()

    @property
    def mean(self) -> Tensor:
        """(1536,)"""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """(1536, 1536)"""
        return self.products / self.count - torch.outer(self.mean, self.mean)

    def __iadd__(self, other: "BlockSums") -> Self:
        self.count += other.count
        self.total += other.total
        self.products += other.products
        return self


class LinearCodec:
    """Codec of the first principal components.

    Args:
        sums: of the blocks that it is fitted on; at least one.
        numbers: components kept for each block.
    """

    def __init__(self, sums: BlockSums, numbers: int) -> None:
        _, vectors = torch.linalg.eigh(sums.covariance)
        self.mean = sums.mean.float()
        self.components = vectors.flip(1)[:, :numbers].float()  # eigh sorts upwards

    def __call__(self, clip: Tensor, numbers: int | None = None) -> Tensor:
        """The clips (b, 3, t, h, w) after coding, with fewer components where `numbers` says so."""
        mean, components = self.mean.to(clip), self.components[:, :numbers].to(clip)
        coefficients = (to_blocks(clip) - mean) @ components
        return from_blocks(coefficients @ components.T + mean, clip.shape)


def to_blocks(clip: Tensor) -> Tensor:
    """(b, 3, t, h, w) to (blocks, 1536); sides that are no multiple of 8 are padded by repeating the last value."""
    reach = [n for size in reversed(clip.shape[2:]) for n in (0, -size % BLOCK)]
    clip = F.pad(clip, reach, mode="replicate") if any(reach) else clip
    blocks = clip.unfold(2, BLOCK, BLOCK).unfold(3, BLOCK, BLOCK).unfold(4, BLOCK, BLOCK)
    return blocks.permute(0, 2, 3, 4, 1, 5, 6, 7).reshape(-1, BLOCK_VALUES)


def from_blocks(blocks: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `to_blocks`; `shape` is the clip's, to which the padding is cut."""
    batch, channels, frames, height, width = shape
    grid = [-(-side // BLOCK) for side in (frames, height, width)]
    parts = blocks.reshape(batch, *grid, channels, BLOCK, BLOCK, BLOCK).permute(0, 4, 1, 5, 2, 6, 3, 7)
    whole = parts.reshape(batch, channels, *(side * BLOCK for side in grid))
    return whole[:, :, :frames, :height, :width]
