"""The order of an epoch: a pure function of seed, epoch and layout."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import webdataset as wds

from data.sampling.clip import Clip


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


def epoch_order(clips: Sequence[Clip], seed: int, epoch: int, rounds: int) -> list[Clip]:
    """All clips of an epoch, shard after shard, the shards shuffled.

    Args:
        rounds: how often the data is gone through in one epoch: once, except where there are fewer clips than
            consumers, because none of them may be left with nothing.
    """
    shards = [list(group) for _, group in groupby(clips, key=lambda clip: clip.shard.url)]
    order: list[Clip] = []
    for turn in range(rounds):
        np.random.default_rng((seed, epoch, turn)).shuffle(shards)
        order += [clip for shard in shards for clip in shard]
    return order


def shuffled(items: Iterable[Any], buffer: int, seed: tuple[int, ...]) -> Iterator[Any]:
    """WebDataset's shuffle buffer with a seed: the outgoing order depends on how many items there are, not on them."""
    rng = random.Random(":".join(map(str, seed)))
    return iter(wds.shuffle(buffer, initial=buffer, rng=rng)(iter(items)))
