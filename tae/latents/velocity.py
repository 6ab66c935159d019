"""Velocity Irreducible Variance (VIV): how ambiguous the velocity is that flow matching learns on these latents.

Zhong et al., "Diffusing in the Right Space" (arXiv 2606.03578). Noise x_0 and a latent x_1 meet in
x_t = t x_1 + (1 - t) x_0. Many pairs give the same x_t, so their velocity x_1 - x_0 cannot be told from it: what is left
is E |v - E[v | x_t]|^2. For latents of a normal distribution with eigenvalues lambda_i of the covariance, and t uniform,
it is pi / 2 * sum of sqrt(lambda_i).
"""

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

CROP = (2, 4, 4)  # latent frames, rows and columns: the sum grows with the number of values, so it must be one size
MIN_CLIPS = 8
MIN_CLIPS_OF_LABEL = 4
ITERATIONS = 10
RIDGE = 1e-6  # of the mean eigenvalue: with few clips a factor may have none in some directions


def central_crop(latents: Tensor) -> Tensor | None:
    """The central 2x4x4 positions of (c, t', h', w'), as (c, 32); None where there are fewer."""
    if any(size < wanted for size, wanted in zip(latents.shape[1:], CROP, strict=True)):
        return None
    for axis, wanted in enumerate(CROP, start=1):
        latents = latents.narrow(axis, (latents.shape[axis] - wanted) // 2, wanted)
    return latents.flatten(1)


def velocity_variance(crops: Tensor) -> float:
    """VIV of each value: pi / 2 times the mean over the eigenvalues of their square root.

    pi / 2 (1.571) for white noise of variance 1; less where latents are alike, or correlated among themselves.

    Shapes:
        crops: (n, c, s), n of 2 or more clips, each channel of mean 0 and variance 1 over the whole set
    """
    return math.pi / 2 * separable_eigenvalues(crops).sqrt().mean().item()


def velocity_variance_within(crops: Tensor, labels: Sequence[str]) -> tuple[float, int] | None:
    """The mean over labels of the VIV of their clips, and how many labels have enough of them; None where none has."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        members[label].append(i)
    found = [
        velocity_variance(crops[places])
        for label, places in members.items()
        if label and len(places) >= MIN_CLIPS_OF_LABEL
    ]
    return (sum(found) / len(found), len(found)) if found else None


def separable_eigenvalues(crops: Tensor) -> Tensor:
    """Eigenvalues (c s,) of a covariance over channels times one over positions, fitted to crops (n, c, s).

    n is far below c s, so the whole covariance cannot be estimated. The two factors are found in turns, each from the
    samples whitened by the other (the flip-flop algorithm), and scaled so that the total variance is that of the samples
    (divided by n - 1).
    """
    values = crops.double()
    values = values - values.mean(0)
    total = values.square().sum() / (len(values) - 1)
    across_positions = torch.eye(values.shape[2], dtype=torch.float64)
    for _ in range(ITERATIONS):
        across_channels = torch.einsum("ncs,sr,ndr->cd", values, _inverse(across_positions), values)
        across_positions = torch.einsum("ncs,cd,ndr->sr", values, _inverse(across_channels), values)
    eigenvalues = torch.outer(*(torch.linalg.eigvalsh(m).clamp_min(0) for m in (across_channels, across_positions)))
    return (eigenvalues * total / eigenvalues.sum().clamp_min(1e-300)).flatten()


def _inverse(matrix: Tensor) -> Tensor:
    """Of a covariance, made regular and scaled to a mean eigenvalue of 1."""
    scale = matrix.diagonal().mean().clamp_min(1e-300)
    return torch.linalg.inv(matrix / scale + RIDGE * torch.eye(len(matrix), dtype=matrix.dtype))
