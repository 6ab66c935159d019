"""The orthonormal discrete cosine transform (DCT-II)."""

import math

import torch
from torch import Tensor


def dct_matrix(size: int) -> Tensor:
    """(size, size) float64; row u times a signal is its coefficient u."""
    place = torch.arange(size, dtype=torch.float64)
    rows = torch.cos(math.pi * (2 * place + 1) * place[:, None] / (2 * size)) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows
