"""How well a set mixes: the chance that two clips of one batch are alike, as the stream draws them."""

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from data.sampling.order import EpochOrder, Layout, shuffled
from data.sampling.types import Sampling


def chance_of_pair(values: Sequence[Hashable]) -> float:
    """The chance that two different items, drawn independently, have one value."""
    pairs = len(values) * (len(values) - 1)
    return sum(count * (count - 1) for count in Counter(values).values()) / pairs if pairs else 0.0


def chance_in_batches(counts: np.ndarray, values: Sequence[Hashable], sampling: Sampling, readers: int) -> float:
    """The chance that two clips of one batch have one value, over an epoch of so many readers.

    Args:
        counts: clips of each shard.
        values: of each clip, by its number.
    """
    assert sampling.shuffle_buffer is not None
    order = EpochOrder(counts, sampling.seed, 0, interleave=sampling.interleave)
    same = pairs = 0
    for reader in range(readers):
        part = Layout(reader, readers, 1).part(len(order), 0)
        numbers = order.at(np.arange(part.start, part.stop)).numbers.tolist()
        row = [values[n] for n in shuffled(numbers, sampling.shuffle_buffer, (sampling.seed, 0, reader, 0))]
        for start in range(0, len(row), sampling.batch_size):
            batch = row[start : start + sampling.batch_size]
            same += sum(count * (count - 1) for count in Counter(batch).values())
            pairs += len(batch) * (len(batch) - 1)
    return same / pairs if pairs else 0.0
