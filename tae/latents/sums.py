"""Sums over latents in float64, clip by clip, from which the latents report follows."""

from dataclasses import dataclass, field
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from tae.latents.spectrum import energy_in_space, energy_in_time
from tae.latents.velocity import central_crop

MAX_CROPS = 4096  # clips of a process that the velocity variance is of: they are kept, not summed
NEIGHBOURHOOD = 2  # latent frames, rows and columns
CONSTANT = 1e-12  # of its mean square: a variance that is rounding alone


@dataclass
class LatentSums:
    """Sums of the posteriors' means, in float64 on the CPU; `+=` joins those of several processes.

    Shapes (c channels):
        total, variance:  (c,) sums of means, and of the posteriors' variances
        products:         (c, c) of every two channels at one position
        space, time:      (c, 8) energy by frequency, of the means as they are
        pictures:         (3, 8) energy by frequency of the frames, averaged down to the latents' grid
        pair_products, pair_sums: (c,) over pairs of positions of one neighbourhood, z_i z_j and z_i + z_j
        crops:            (c, 32) float32 of each clip that is large enough, with its label and key
    """

    clips: int = 0
    positions: int = 0
    pairs: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    crops: list[Tensor] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def add(
        self, latents: Tensor, std: Tensor | None = None, clip: Tensor | None = None, key: str = "", label: str = ""
    ) -> None:
        """Count one clip.

        Args:
            latents: (c, t', h', w'), the posterior's mean.
            std: the posterior's deviation, the same shape; None where there is none to look at.
            clip: (3, t, h, w), the frames that were encoded; None where they are not there any more.
            key, label: of the clip; "" for no label.
        """
        values = latents.detach().to("cpu", torch.float64)
        flat = values.flatten(1)
        self.clips += 1
        self.positions += flat.shape[1]
        found = {
            "total": flat.sum(1),
            "products": flat @ flat.T,
            "space": energy_in_space(values),
            "time": energy_in_time(values),
        }
        found["pair_products"], found["pair_sums"], pairs = neighbour_sums(values)
        self.pairs += pairs
        if std is not None:
            found["variance"] = std.detach().to("cpu", torch.float64).flatten(1).square().sum(1)
        if clip is not None:
            t, h, w = values.shape[1:]
            small = F.adaptive_avg_pool3d(clip.detach().float(), (t, h, w))
            found["pictures"] = energy_in_space(small.to("cpu", torch.float64))
        self._add(found)
        crop = central_crop(values)
        if crop is not None and len(self.crops) < MAX_CROPS:
            self.crops.append(crop.float().clone())
            self.labels.append(label)
            self.keys.append(key)

    def __iadd__(self, other: "LatentSums") -> Self:
        self.clips += other.clips
        self.positions += other.positions
        self.pairs += other.pairs
        self._add(other.sums)
        self.crops += other.crops
        self.labels += other.labels
        self.keys += other.keys
        return self

    def _add(self, found: dict[str, Tensor]) -> None:
        for name, value in found.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    @property
    def mean(self) -> Tensor:
        """(c,) of each channel over all positions."""
        return self.sums["total"] / self.positions

    @property
    def covariance(self) -> Tensor:
        """(c, c) of the channels over all positions."""
        return self.sums["products"] / self.positions - torch.outer(self.mean, self.mean)

    @property
    def channel_variance(self) -> Tensor:
        """(c,) of each channel over all positions; never below 0, which rounding may give."""
        return self.covariance.diagonal().clamp_min(0)

    @property
    def varying(self) -> Tensor:
        """(c,) which channels are not constant."""
        return self.channel_variance > CONSTANT * self.sums["products"].diagonal() / self.positions


def neighbour_sums(values: Tensor) -> tuple[Tensor, Tensor, int]:
    """Sums over the pairs of positions of each 2x2x2 neighbourhood: of z_i z_j, of z_i + z_j, and how many pairs.

    The neighbourhoods do not overlap; one axis of size 1 (an image has one frame) makes them flat, an odd rest is left out.

    Shapes: (c, t', h', w') -> (c,), (c,)
    """
    sides = [min(NEIGHBOURHOOD, size) for size in values.shape[1:]]
    for axis, side in enumerate(sides, start=1):
        values = values.narrow(axis, 0, values.shape[axis] // side * side)
    blocks = values
    for axis, side in enumerate(sides, start=1):
        blocks = blocks.unfold(axis, side, side)
    blocks = blocks.flatten(4).flatten(1, 3)  # (c, neighbourhoods, positions in one)
    size = blocks.shape[2]
    sums = blocks.sum(2)
    products = (sums.square() - blocks.square().sum(2)).sum(1) / 2
    return products, (size - 1) * sums.sum(1), blocks.shape[1] * size * (size - 1) // 2
