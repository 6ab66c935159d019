"""The order of an epoch as versions up to 0.2 planned it, with an object for each clip: saved positions count in it."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, islice, zip_longest
from typing import Any

import numpy as np

from data.sampling.order import Layout, shuffled
from data.sampling.types import Clip

GAP = object()


def epoch_order(clips: Sequence[Clip], seed: int, epoch: int, rounds: int, interleave: int = 1) -> list[Clip]:
    """All clips of an epoch, shard after shard, the shards shuffled, in `interleave` lanes."""
    shards = [list(group) for _, group in groupby(clips, key=lambda clip: clip.shard.url)]
    order: list[Clip] = []
    for turn in range(rounds):
        np.random.default_rng((seed, epoch, turn)).shuffle(shards)
        row = in_turns([clip for shard in shards for clip in shard], interleave)
        order += row if turn == 0 else [replace(clip, turn=turn) for clip in row]
    return order


def in_turns(row: Sequence[Any], lanes: int) -> list[Any]:
    """The items of a row, from `lanes` contiguous pieces of it in turns."""
    lanes = max(min(lanes, math.isqrt(len(row))), 1)
    cut = [row[len(row) * lane // lanes : len(row) * (lane + 1) // lanes] for lane in range(lanes)]
    return [item for turn in zip_longest(*cut, fillvalue=GAP) for item in turn if item is not GAP]


def worker_clips(
    clips: Sequence[Clip], layout: Layout, worker: int, seed: int, epoch: int, buffer: int, interleave: int, taken: int
) -> list[Clip]:
    """What a worker gives of an epoch from the `taken`-th clip on."""
    rounds = -(-layout.consumers // len(clips))
    order = epoch_order(clips, seed, epoch, rounds, interleave)
    part = [order[i] for i in layout.part(len(order), worker)]
    return list(islice(shuffled(part, buffer, (seed, epoch, layout.rank, worker)), taken, None))


def list_hash(clips: Sequence[Clip]) -> str:
    """By which a checkpoint knows its clips."""
    lines = "\n".join(f"{clip.shard.url.rsplit('/', 1)[-1]} {clip.key} {clip.frames}" for clip in clips)
    return hashlib.sha256(lines.encode()).hexdigest()[:12]
