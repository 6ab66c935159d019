"""A clip of a shard, the window that is taken of it, and how clips are drawn."""

from dataclasses import dataclass

from data.sampling.transforms import NO_AUGMENTATION, Augmentation, Interpolation
from data.sampling.windows import EvalWindow
from data.shards.format import Shard


@dataclass(frozen=True)
class Clip:
    """A sample of a shard.

    number: its place among all clips of the split, the same in every epoch.
    turn:   how often it was taken before in the same epoch, where there are fewer clips than readers.
    alias:  a name that no other clip of the split has, where its key is not one.
    """

    number: int
    key: str
    shard: Shard
    turn: int = 0
    alias: str = ""

    @property
    def name(self) -> str:
        """What a batch, a report and a picture call it."""
        return self.alias or self.key

    @property
    def frames(self) -> int:
        return self.shard.frames[self.key]


@dataclass(frozen=True)
class Window:
    """What becomes of a file: `num_frames` at every `frame_stride`-th frame, as a square of `resolution` pixels.

    In training `augmentation` is done to it; in evaluation it is at the `place` named. `decoder` reads it, see
    `data.decode.choose_reader`.
    """

    num_frames: int
    frame_stride: int
    resolution: int
    augmentation: Augmentation = NO_AUGMENTATION
    decoder: str = "auto"
    place: EvalWindow = "central"
    interpolation: Interpolation = "bicubic"

    def shape(self, clips: int) -> tuple[int, int, int, int, int]:
        """Of a batch of so many: (clips, t, size, size, 3)."""
        return (clips, self.num_frames, self.resolution, self.resolution, 3)


@dataclass(frozen=True)
class Sampling:
    """How clips are drawn and put together.

    Args:
        shuffle_buffer: clips that each reader holds for shuffling; None reads every clip once in the order of the index
            (evaluation), with the window at `Window.place` and the central crop. A number makes the stream endless, with
            random windows.
        seed: of order, windows and crops.
        interleave: places of the epoch's row of shards that each reader reads from in turns; 1 reads shard after shard.
        metadata: fields of the samples' metadata that batches have too.
    """

    window: Window
    batch_size: int
    shuffle_buffer: int | None = None
    seed: int = 0
    interleave: int = 1
    metadata: tuple[str, ...] = ()
