"""A clip of a shard, the window that is taken of it, and how clips are drawn."""

from dataclasses import dataclass, replace

import numpy as np

from data.sampling.transforms import NO_AUGMENTATION, Augmentation, Interpolation, as_size
from data.sampling.windows import EvalWindow, span_at_rate, window_span
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
    """What becomes of a file: `num_frames` of its frames, as a square of `resolution` pixels or another rectangle.

    In training `augmentation` is done to it; in evaluation it is at the `place` named. `decoder` reads it, see
    `data.decode.choose_reader`.

    frame_stride: take every n-th frame; of several one is drawn for each clip, of those that fit into it
    resolution:   side of a square, or (height, width)
    fps:          frames a second, instead of a stride; of several one is drawn as of strides
    """

    num_frames: int
    frame_stride: int | tuple[int, ...]
    resolution: int | tuple[int, int]
    augmentation: Augmentation = NO_AUGMENTATION
    decoder: str = "auto"
    place: EvalWindow = "central"
    interpolation: Interpolation = "bicubic"
    fps: tuple[float, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return as_size(self.resolution)

    @property
    def strides(self) -> tuple[int, ...]:
        return (self.frame_stride,) if isinstance(self.frame_stride, int) else self.frame_stride

    @property
    def needs_rate(self) -> bool:
        """Whether what it takes of a file depends on the file's rate; an image has none."""
        return bool(self.fps) and self.num_frames > 1

    def first_pace(self) -> "Window":
        """The same with the first of several strides or rates alone: evaluation has one protocol."""
        return replace(self, frame_stride=self.strides[0], fps=self.fps[:1])

    def shape(self, clips: int) -> tuple[int, int, int, int, int]:
        """Of a batch of so many: (clips, t, h, w, 3)."""
        return (clips, self.num_frames, *self.size, 3)

    def spans(self, rates: np.ndarray) -> np.ndarray:
        """Frames that a window spans in files of some mean rates, for each stride or rate: (choices, files).

        Infinite where a file is slower than asked. Where rates do not matter any will do.
        """
        if self.needs_rate:
            return np.stack([span_at_rate(self.num_frames, rates, fps) for fps in self.fps])
        spans = [window_span(self.num_frames, stride) for stride in self.strides]
        return np.repeat(np.array(spans, float)[:, None], len(rates), 1)

    def paces(self, frames: int, rate: float) -> list[int]:
        """Which strides or rates a file of so many frames at a mean rate can be taken at, by their places.

        In one that is too short for all of them, that of the shortest span; in one that is too slow, none.
        """
        spans = self.spans(np.array([rate]))[:, 0]
        if np.isinf(spans).all():
            return []
        return np.flatnonzero(spans <= frames).tolist() or [int(spans.argmin())]


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
