"""Clips that an architecture takes: which numbers of frames, rows and columns, and how many latents come of them."""

from dataclasses import dataclass
from typing import NamedTuple


class Axis(NamedTuple):
    """Lengths `first + k * step`, k = 0, 1, ..., of which `latents + k * more` latent positions come.

    `Axis(1, 4)` are the 4k+1 frames of a causal encoder, `Axis(8, 8)` multiples of 8.
    """

    first: int
    step: int
    latents: int = 1
    more: int = 1

    def takes(self, length: int) -> bool:
        return self.at_least(length) == length

    def at_least(self, length: int) -> int:
        """The smallest length that is allowed and not below this one."""
        return self.first + self._steps(length) * self.step

    def below(self, length: int) -> int | None:
        """The largest length that is allowed and below this one; None where there is none."""
        return self.first + (self._steps(length) - 1) * self.step if length > self.first else None

    def num_latents(self, length: int) -> int:
        """Latent positions of the smallest allowed length that holds this one."""
        return self.latents + self._steps(length) * self.more

    def _steps(self, length: int) -> int:
        return max(0, -(-(length - self.first) // self.step))

    def __str__(self) -> str:
        if self.first == self.step == 1:
            return "any number of"
        return f"multiples of {self.step}" if self.first == self.step else f"{self.step}k+{self.first}"


@dataclass(frozen=True)
class Grid:
    """The three axes of clips, and how many frames and pixels along an axis there are for each of the latent."""

    frames: Axis
    height: Axis
    width: Axis
    time_factor: int
    space_factor: int

    def padded(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """The smallest size that is taken and holds this one."""
        return self.frames.at_least(frames), self.height.at_least(height), self.width.at_least(width)

    def misfits(self, frames: int, height: int, width: int) -> list[str]:
        """For each axis that a size does not fit, what it may be, with the nearest lengths."""
        axes = (
            ("frames", self.frames, frames),
            ("rows", self.height, height),
            ("columns", self.width, width),
        )
        found = []
        for name, axis, length in axes:
            if not axis.takes(length):
                nearest = [str(near) for near in (axis.below(length), axis.at_least(length)) if near is not None]
                found.append(f"{length} {name}, where it takes {axis} {name}: the nearest are {' and '.join(nearest)}")
        return found
