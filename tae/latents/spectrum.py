"""How the energy of latents is spread over frequencies, by the orthonormal discrete cosine transform (DCT-II)."""

import torch
from torch import Tensor

from tae.losses.dct import dct_matrix
from tae.losses.spectrum import BANDS  # the first two reach to a quarter of the band, the first four to its half


def energy_in_space(values: Tensor) -> Tensor:
    """Energy in each band of spatial frequency, the sum over frames.

    The distance of a coefficient (u, v) is `(u + v) / (h + w - 2)`; band b holds those in (b / 8, (b + 1) / 8]. The constant
    part (0, 0) is in none. After Spectral Energy Concentration, arXiv 2606.03578, whose two shares are sums of these bands.

    Shapes: (c, t, h, w) float64 -> (c, 8)
    """
    height, width = values.shape[2:]
    coefficients = dct_matrix(height) @ values @ dct_matrix(width).T
    distance = torch.arange(height)[:, None] + torch.arange(width)
    return _in_bands(coefficients.square().sum(1), distance)


def energy_in_time(values: Tensor) -> Tensor:
    """Energy in each band of temporal frequency u / (t - 1), the sum over positions; as `energy_in_space`.

    Shapes: (c, t, h, w) float64 -> (c, 8)
    """
    frames = values.shape[1]
    coefficients = dct_matrix(frames) @ values.flatten(2)
    return _in_bands(coefficients.square().sum(2), torch.arange(frames))


def _in_bands(energy: Tensor, distance: Tensor) -> Tensor:
    """Sum energies (c, ...) by their distance (...), whole numbers from 0 for the constant part to the largest."""
    largest = int(distance.max())
    bands = energy.new_zeros(len(energy), BANDS + 1)
    if largest:  # -(-a // b) rounds up, without the rounding error of a division
        bands.index_add_(1, -(-BANDS * distance.flatten() // largest), energy.flatten(1))
    return bands[:, 1:]


def log_spectral_distance(bands: Tensor, others: Tensor) -> float:
    """Root mean square of the level differences of two spectra in dB.

    A spectrum is the share of each band in the energy, the mean over channels. Bands in which either has nothing are left
    out.

    Shapes: (c, 8) and (d, 8) energies.
    """
    first, second = mean_share(bands), mean_share(others)
    known = (first > 0) & (second > 0)
    return (10 * torch.log10(first[known] / second[known])).square().mean().sqrt().item()


def mean_share(bands: Tensor) -> Tensor:
    """Each band's share of the energy in all bands, the mean over the channels that have any: (c, 8) -> (8,)."""
    total = bands.sum(1, keepdim=True)
    return (bands / total)[total[:, 0] > 0].mean(0)
