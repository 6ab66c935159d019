"""The order of an epoch: a pure function of seed, epoch and layout."""

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import webdataset as wds


@dataclass(frozen=True)
class Layout:
    """Who takes part: `world_size` processes, each with `num_workers` readers; this process is `rank`."""

    rank: int
    world_size: int
    num_workers: int

    @property
    def consumers(self) -> int:
        return self.world_size * self.num_workers

    def part(self, total: int, worker: int) -> range:
        """The contiguous share of `total` items for one worker; shares differ by at most one item."""
        consumer = self.rank * self.num_workers + worker
        return range(total * consumer // self.consumers, total * (consumer + 1) // self.consumers)


@dataclass(frozen=True)
class Planned:
    """What stands at some places of an epoch's row.

    numbers: of the clips
    turns:   how often each clip was taken before in the same epoch
    lanes:   which lane each is of; the clips of a lane follow one another in the shuffled shards
    """

    numbers: np.ndarray
    turns: np.ndarray
    lanes: np.ndarray


class EpochOrder:
    """All clips of an epoch in one row, shard after shard, the shards shuffled; known by counts, without a list of clips.

    Args:
        counts: usable clips of each shard, whose numbers follow one another in this order.
        rounds: how often the data is gone through in one epoch: once, except where there are fewer clips than
            consumers, because none of them may be left with nothing.
        interleave: cut this row into so many lanes of equal length and take from them in turns, so that every contiguous
            part of the result holds a contiguous part of each lane. More lanes than each is long would mix less.
    """

    def __init__(self, counts: np.ndarray, seed: int, epoch: int, rounds: int = 1, interleave: int = 1) -> None:
        self.total = int(counts.sum())
        self.rounds = rounds
        self.lanes = max(min(interleave, math.isqrt(self.total)), 1)
        self._lane_starts = np.array([self.total * lane // self.lanes for lane in range(self.lanes + 1)])
        self._longer = np.flatnonzero(np.diff(self._lane_starts) > self.total // self.lanes)
        first = np.cumsum(counts) - counts
        shards = np.flatnonzero(counts).tolist()
        self._rows: list[
            tuple[np.ndarray, np.ndarray]
        ] = []  # for each round: where each shard ends, number minus place
        for turn in range(rounds):
            np.random.default_rng((seed, epoch, turn)).shuffle(shards)
            ends = np.cumsum(counts[shards])
            self._rows.append((ends, first[shards] - (ends - counts[shards])))

    def __len__(self) -> int:
        return self.total * self.rounds

    def at(self, places: np.ndarray) -> Planned:
        """The clips at some places, in ascending order."""
        turns, places = np.divmod(places, self.total)
        lanes, rows = self._lanes_and_rows(places)
        numbers = np.empty_like(rows)
        for turn in np.unique(turns):
            ends, shift = self._rows[turn]
            here = turns == turn
            numbers[here] = rows[here] + shift[np.searchsorted(ends, rows[here], side="right")]
        return Planned(numbers, turns, lanes + turns * self.lanes)

    def _lanes_and_rows(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For places in the interleaved row the lane of each, and the place in the row that was cut into lanes."""
        steps, lanes = np.divmod(places, self.lanes)
        if len(self._longer):  # by one clip, which comes after all others
            beyond = places - (self.total - len(self._longer))
            lanes = np.where(beyond >= 0, self._longer[np.maximum(beyond, 0)], lanes)
            steps = np.where(beyond >= 0, self.total // self.lanes, steps)
        return lanes, self._lane_starts[lanes] + steps


def shuffled(items: Iterable[Any], buffer: int, seed: tuple[int, ...]) -> Iterator[Any]:
    """WebDataset's shuffle buffer with a seed: the outgoing order depends on how many items there are, not on them."""
    rng = random.Random(":".join(map(str, seed)))
    return iter(wds.shuffle(buffer, initial=buffer, rng=rng)(iter(items)))
