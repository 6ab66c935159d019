"""Streaming moments of latents, in float64."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from tae.latents.stats import LatentStats
from tae.losses.outlier import outlier_rate


@dataclass
class Moments:
    """Sums over latent positions in float64, from which the statistics follow whatever the order of adding."""

    clips: int = 0
    frames: int = 0
    positions: int = 0
    outliers: int = 0
    mean: list[float] = field(default_factory=list)  # of each channel, as the next two
    mean_square: list[float] = field(default_factory=list)
    variance: list[float] = field(default_factory=list)

    def add(self, mean: Tensor, std: Tensor) -> None:
        """Count a piece (1, c, t', h', w') of one clip."""
        positions = mean[0, 0].numel()
        self.frames += mean.shape[2]
        self.positions += positions
        self.outliers += round(outlier_rate(mean).item() * positions)
        mean, std = mean[0].flatten(1).double(), std[0].flatten(1).double()
        self._add_sums(mean.sum(1).tolist(), mean.square().sum(1).tolist(), std.square().sum(1).tolist())

    def __iadd__(self, other: "Moments") -> "Moments":
        self.clips += other.clips
        self.frames += other.frames
        self.positions += other.positions
        self.outliers += other.outliers
        self._add_sums(other.mean, other.mean_square, other.variance)
        return self

    def _add_sums(self, *sums: list[float]) -> None:
        for own, more in zip((self.mean, self.mean_square, self.variance), sums, strict=True):
            own[:] = [a + b for a, b in itertools.zip_longest(own, more, fillvalue=0.0)]

    def stats(self, checkpoint: Mapping[str, Any]) -> LatentStats:
        """What they amount to. A sample's variance is the variance of the means plus the mean of the variances."""
        mean, square, variance = (
            np.array(sums) / self.positions for sums in (self.mean, self.mean_square, self.variance)
        )
        shift = mean.mean()
        return LatentStats(
            num_clips=self.clips,
            num_latent_frames=self.frames,
            num_positions=self.positions,
            mean=tuple(mean.tolist()),
            std=tuple(np.sqrt(np.maximum(square - mean**2, 0) + variance).tolist()),  # rounding may give -1e-18
            posterior_std=tuple(np.sqrt(variance).tolist()),
            shift=float(shift),
            scale=float(1 / np.sqrt((square + variance).mean() - shift**2)),
            outlier_rate=self.outliers / self.positions,
            checkpoint=checkpoint,
        )
