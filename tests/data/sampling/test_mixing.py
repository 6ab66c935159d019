"""How well a set mixes: by a count, not by trust."""

import random

import pytest

from data.sampling.clip import Clip, Sampling, Window
from data.sampling.mixing import chance_in_batches, chance_of_pair
from data.shards.format import Shard

CLASSES, EACH, SHARDS, READERS = 40, 50, 10, 16


def clips_in(order: list[str]) -> list[Clip]:
    """Clips whose keys begin with their class, over shards of equal length."""
    size = len(order) // SHARDS
    keys = [f"{label}-{number}" for number, label in enumerate(order)]
    shards = [Shard(f"s{i}", dict.fromkeys(keys[i * size : (i + 1) * size], 9)) for i in range(SHARDS)]
    return [Clip(n, key, shard) for n, (key, shard) in enumerate((k, s) for s in shards for k in s.frames)]


def chance(clips: list[Clip], **settings: int) -> float:
    sampling = Sampling(Window(1, 1, 8), batch_size=8, **({"shuffle_buffer": 64} | settings))
    return chance_in_batches(clips, [clip.key.split("-")[0] for clip in clips], sampling, READERS)


def test_a_pair_of_independent_draws() -> None:
    assert chance_of_pair(["a", "a", "b"]) == pytest.approx(1 / 3)
    assert chance_of_pair(["a"]) == 0.0


def test_what_stands_together_stays_together_but_for_shuffling_or_interleaving() -> None:
    labels = [f"{number // EACH:02d}" for number in range(CLASSES * EACH)]
    independent = chance_of_pair(labels)
    in_order = clips_in(labels)
    shuffled = clips_in(random.Random(0).sample(labels, len(labels)))
    assert chance(in_order) > 10 * independent
    assert chance(shuffled) < 1.15 * independent
    assert chance(in_order, interleave=32) < 2 * independent
