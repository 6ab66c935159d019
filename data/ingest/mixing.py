"""How well the clips of a folder of shards mix in training, by their labels and groups."""

from collections.abc import Iterator, Sequence

import numpy as np

from data.ingest.verification import read_sample_metadata
from data.sampling.mixing import chance_in_batches, chance_of_pair
from data.sampling.types import Sampling, Window
from data.shards.format import Shard

MIXED_FIELDS = ("label", "group")
MUCH = 1.5  # times the chance of independent draws, from which on something can be done about it
ANY_WINDOW = Window(1, 1, 8)  # the order of clips does not depend on it


def describe_mixing(shards: Sequence[Shard], batch_size: int, shuffle_buffer: int, readers: int) -> Iterator[str]:
    """A line for the labels and one for the groups of the shards, where there are several.

    Args:
        readers: processes times workers.
    """
    samples = [metadata for _, metadata in read_sample_metadata(shards)]
    counts = np.array([len(shard.frames) for shard in shards])
    for field in MIXED_FIELDS:
        values = [metadata.get(field) for metadata in samples]
        if len(set(values)) in (1, len(values)):
            continue  # all alike, or all different
        sampling = Sampling(ANY_WINDOW, batch_size, shuffle_buffer)
        found, best = chance_in_batches(counts, values, sampling, readers), chance_of_pair(values)
        line = f"two clips of a batch have one {field} with a chance of {found:.2%} (independent draws: {best:.2%})"
        if found > MUCH * best:
            line += "; to mix better, prepare again with shuffle=true, or train with data.interleave=32"
        yield line
