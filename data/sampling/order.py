"""The order of an epoch: a pure function of seed, epoch and layout."""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, zip_longest
from typing import Any

import numpy as np
import webdataset as wds

from data.sampling.clip import Clip

GAP = object()  # where a lane is one item shorter than the others


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


def epoch_order(clips: Sequence[Clip], seed: int, epoch: int, rounds: int, interleave: int = 1) -> list[Clip]:
    """All clips of an epoch, shard after shard, the shards shuffled.

    Args:
        interleave: cut this row into so many lanes of equal length and take from them in turns, so that every contiguous
            part of the result holds a contiguous part of each lane.
        rounds: how often the data is gone through in one epoch: once, except where there are fewer clips than
            consumers, because none of them may be left with nothing.
    """
    shards = [list(group) for _, group in groupby(clips, key=lambda clip: clip.shard.url)]
    order: list[Clip] = []
    for turn in range(rounds):
        np.random.default_rng((seed, epoch, turn)).shuffle(shards)
        row = in_turns([clip for shard in shards for clip in shard], interleave)
        order += row if turn == 0 else [replace(clip, turn=turn) for clip in row]
    return order


def in_turns(row: Sequence[Any], lanes: int) -> list[Any]:
    """The items of a row, from `lanes` contiguous pieces of it in turns; more lanes than each is long would mix less."""
    lanes = max(min(lanes, math.isqrt(len(row))), 1)
    cut = [row[len(row) * lane // lanes : len(row) * (lane + 1) // lanes] for lane in range(lanes)]
    return [item for turn in zip_longest(*cut, fillvalue=GAP) for item in turn if item is not GAP]


def find_runs(clips: Sequence[Clip]) -> list[int]:
    """For each clip the number of its run: clips that follow one another in the split, whatever lies between them here."""
    runs: list[int] = []
    open_runs: dict[tuple[int, int], int] = {}  # (turn, number of the clip that would continue it) -> run
    count = 0
    for clip in clips:
        run = open_runs.pop((clip.turn, clip.number), None)
        if run is None:
            run, count = count, count + 1
        open_runs[clip.turn, clip.number + 1] = run
        runs.append(run)
    return runs


def shuffled(items: Iterable[Any], buffer: int, seed: tuple[int, ...]) -> Iterator[Any]:
    """WebDataset's shuffle buffer with a seed: the outgoing order depends on how many items there are, not on them."""
    rng = random.Random(":".join(map(str, seed)))
    return iter(wds.shuffle(buffer, initial=buffer, rng=rng)(iter(items)))
