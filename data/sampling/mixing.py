"""How well a set mixes: the chance that two clips of one batch are alike, as the stream draws them."""

from collections import Counter
from collections.abc import Hashable, Sequence

from data.sampling.clip import Clip, Sampling
from data.sampling.order import Layout, epoch_order, shuffled


def chance_of_pair(values: Sequence[Hashable]) -> float:
    """The chance that two different items, drawn independently, have one value."""
    pairs = len(values) * (len(values) - 1)
    return sum(count * (count - 1) for count in Counter(values).values()) / pairs if pairs else 0.0


def chance_in_batches(clips: Sequence[Clip], values: Sequence[Hashable], sampling: Sampling, readers: int) -> float:
    """The chance that two clips of one batch have one value, over an epoch of so many readers.

    Args:
        values: of each clip, by its number.
    """
    assert sampling.shuffle_buffer is not None
    order = epoch_order(clips, sampling.seed, 0, 1, sampling.interleave)
    same = pairs = 0
    for reader in range(readers):
        layout = Layout(reader, readers, 1)
        part = [order[i] for i in layout.part(len(order), 0)]
        row = [values[clip.number] for clip in shuffled(part, sampling.shuffle_buffer, (sampling.seed, 0, reader, 0))]
        for start in range(0, len(row), sampling.batch_size):
            batch = row[start : start + sampling.batch_size]
            same += sum(count * (count - 1) for count in Counter(batch).values())
            pairs += len(batch) * (len(batch) - 1)
    return same / pairs if pairs else 0.0
