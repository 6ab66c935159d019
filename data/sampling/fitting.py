"""Which clips a stream can use, or should have: rules for `data.shards.table.Selection`, by whole columns of an index."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from data.sampling.types import Window
from data.shards.table import ShardList

SAME = 6  # decimals to which two shapes fit a clip equally well


@dataclass(frozen=True)
class FitsIn:
    """Clips that are fast enough for a window, and long enough; whatever their length where they are filled up."""

    window: Window
    filled: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Of numbers, that an index has to have."""
        return ("fps",) if self.window.needs_rate else ()

    @property
    def settings(self) -> dict[str, str]:
        """What decides, as the position of a stream names it."""
        return {"data.fps": str(list(self.window.fps))} if self.window.needs_rate else {}

    def of(self, shards: ShardList, number: int) -> np.ndarray:
        """Which samples of a shard these are."""
        missing = self.missing(shards, number)
        return np.isfinite(missing) if self.filled else missing == 0

    def missing(self, shards: ShardList, number: int) -> np.ndarray:
        """How many frames each sample has too few; infinite where it is too slow."""
        frames = shards.numbers("frames", number).astype(float)
        rates = shards.numbers("fps", number) if self.window.needs_rate else np.zeros(len(frames))
        return np.maximum(self.window.spans(rates).min(0) - frames, 0)


@dataclass(frozen=True)
class FitsAny:
    """Clips that fit into one of several windows at least."""

    windows: tuple[Window, ...]
    filled: bool = False
    settings: ClassVar[dict[str, str]] = {}

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple({name for window in self.windows for name in FitsIn(window).columns})

    def of(self, shards: ShardList, number: int) -> np.ndarray:
        """Which samples of a shard these are."""
        return np.any([FitsIn(window, self.filled).of(shards, number) for window in self.windows], axis=0)


@dataclass(frozen=True)
class FitsBest:
    """Clips for which one of several windows is the best, of those that they fit in.

    The best one shows most of the picture; of several it is the one for which the picture is least scaled up, then the one
    of the most frames, then of the most pixels. A clip that is too short for all has the one that lacks the fewest frames.

    Args:
        windows: to choose from.
        place: of the one among them.
        filled: clips fit in whatever their length.
    """

    windows: tuple[Window, ...]
    place: int
    filled: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        rates = ("fps",) if any(window.needs_rate for window in self.windows) else ()
        return rates + (("width", "height") if len({window.size for window in self.windows}) > 1 else ())

    @property
    def settings(self) -> dict[str, str]:
        shapes = [f"{w.num_frames}x{w.size[0]}x{w.size[1]}" for w in self.windows]
        rule = FitsIn(self.windows[self.place])
        return rule.settings | {"data.buckets": f"{', '.join(shapes)}, of which this is {shapes[self.place]}"}

    def of(self, shards: ShardList, number: int) -> np.ndarray:
        """Which samples of a shard these are."""
        fitting = FitsIn(self.windows[self.place], self.filled).of(shards, number)
        missing = np.stack([FitsIn(window).missing(shards, number) for window in self.windows])
        kept, enlarged = self._pictures(shards, number)
        length = [(window.num_frames, window.num_frames * window.size[0] * window.size[1]) for window in self.windows]
        preferred = np.array(
            sorted(range(len(length)), key=length.__getitem__, reverse=True)
        )  # where all else is equal
        order = np.lexsort((enlarged[preferred], -kept[preferred], missing[preferred]), axis=0)
        return fitting & (preferred[order[0]] == self.place)

    def _pictures(self, shards: ShardList, number: int) -> tuple[np.ndarray, np.ndarray]:
        """For each window and clip the share of the picture that is kept, and how far it is scaled up (at least 1)."""
        samples = len(shards.numbers("frames", number))
        if "width" not in self.columns:
            return np.ones((len(self.windows), samples)), np.ones((len(self.windows), samples))
        height, width = (np.maximum(shards.numbers(name, number).astype(float), 1) for name in ("height", "width"))
        rows, columns = np.array([window.size for window in self.windows], float).T[:, :, None]
        down, across = rows / height, columns / width
        kept = np.minimum(down, across) / np.maximum(down, across)
        return kept.round(SAME), np.maximum(np.maximum(down, across), 1).round(SAME)
