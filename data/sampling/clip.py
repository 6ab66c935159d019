"""A clip of a shard, and the window that becomes of it."""

from dataclasses import dataclass

from data.sampling.transforms import NO_AUGMENTATION, Augmentation
from data.shards.format import Shard


@dataclass(frozen=True)
class Clip:
    """A sample of a shard; `number` is its place among all clips of the split, the same in every epoch."""

    number: int
    key: str
    shard: Shard

    @property
    def frames(self) -> int:
        return self.shard.frames[self.key]


@dataclass(frozen=True)
class Window:
    """What becomes of a file: `num_frames` at every `frame_stride`-th frame, as a square of `resolution` pixels.

    In training `augmentation` is done to it. `decoder` reads it, see `data.decode.choose_reader`.
    """

    num_frames: int
    frame_stride: int
    resolution: int
    augmentation: Augmentation = NO_AUGMENTATION
    decoder: str = "auto"

    def shape(self, clips: int) -> tuple[int, ...]:
        """Of a batch of so many: (clips, t, size, size, 3)."""
        return (clips, self.num_frames, self.resolution, self.resolution, 3)
