"""How well the clips of a folder of shards mix in training, by their labels and groups."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.ingest.verification import read_members
from data.sampling.clip import Sampling, Window
from data.sampling.mixing import chance_in_batches, chance_of_pair
from data.shards.format import Shard

MIXED_FIELDS = ("label", "group")
MUCH = 1.5  # times the chance of independent draws, from which on something can be done about it
ANY_WINDOW = Window(1, 1, 8)  # the order of clips does not depend on it


def describe_mixing(shards: Sequence[Shard], batch_size: int, shuffle_buffer: int, readers: int) -> Iterator[str]:
    """A line for the labels and one for the groups of the shards, where there are several.

    Args:
        readers: processes times workers.
    """
    metadata = {
        (shard.url, name.partition(".")[0]): json.loads(content)
        for shard in shards
        for name, content in read_members(Path(shard.url), wanted=())
        if name.endswith(".json")
    }
    counts = np.array([len(shard.frames) for shard in shards])
    for field in MIXED_FIELDS:
        values = [metadata[shard.url, key].get(field) for shard in shards for key in shard.frames]
        if len(set(values)) in (1, len(values)):
            continue  # all alike, or all different
        sampling = Sampling(ANY_WINDOW, batch_size, shuffle_buffer)
        found, best = chance_in_batches(counts, values, sampling, readers), chance_of_pair(values)
        line = f"two clips of a batch have one {field} with a chance of {found:.2%} (independent draws: {best:.2%})"
        if found > MUCH * best:
            line += "; to mix better, prepare again with shuffle=true, or train with data.interleave=32"
        yield line
