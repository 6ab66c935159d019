"""How well a set mixes: by a count, not by trust."""

import random

import numpy as np
import pytest

from data.sampling.mixing import chance_in_batches, chance_of_pair
from data.sampling.types import Sampling, Window

CLASSES, EACH, SHARDS, READERS = 40, 50, 10, 16


def chance(labels: list[str], **settings: int) -> float:
    """Of clips with these labels in the order of shards of equal length."""
    sampling = Sampling(Window(1, 1, 8), batch_size=8, **({"shuffle_buffer": 64} | settings))
    return chance_in_batches(np.full(SHARDS, len(labels) // SHARDS), labels, sampling, READERS)


def test_a_pair_of_independent_draws() -> None:
    assert chance_of_pair(["a", "a", "b"]) == pytest.approx(1 / 3)
    assert chance_of_pair(["a"]) == 0.0


def test_what_stands_together_stays_together_but_for_shuffling_or_interleaving() -> None:
    labels = [f"{number // EACH:02d}" for number in range(CLASSES * EACH)]
    independent = chance_of_pair(labels)
    shuffled = random.Random(0).sample(labels, len(labels))
    assert chance(labels) > 10 * independent
    assert chance(shuffled) < 1.15 * independent
    assert chance(labels, interleave=32) < 2 * independent
