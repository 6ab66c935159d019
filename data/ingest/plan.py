"""Which source file is written where, settled from names and sizes before anything is read.

The files of each split are shuffled by the seed and cut into buckets of about equal size, so that a bucket is a random
sample of its split and neighbours in the source are apart. A bucket becomes one shard.
"""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data.ingest.splits import Video, shuffle_array

# A source too small for so many shards of the wished size gets smaller ones, for as many processes to be at work; but
# not so small ones that they would cost more to open than to read.
MIN_BUCKETS = 64
MIN_BYTES = 2_000_000
BLOCK = 1 << 16  # files that are added up at once
OVERHEAD = 2_048  # bytes of a sample beside its file: two headers, the metadata


@dataclass(frozen=True)
class BucketPlan:
    """For each split the buckets in their order, and in each the places of its files among the source's."""

    buckets: Mapping[str, Sequence[np.ndarray]]
    digest: str  # changes with any file's name, size, time of change, bucket, and what a list says of it

    def names(self, split: str) -> list[str]:
        return [f"{split}-{number:06d}" for number in range(len(self.buckets[split]))]


def make_plan(
    videos: Sequence[Video],
    splits: Mapping[str, np.ndarray],
    states: np.ndarray,
    seed: int,
    shuffle: bool,
    shard_bytes: int,
) -> BucketPlan:
    """Cut every split into buckets.

    Args:
        videos: of the source.
        splits: the places of some of them, by the name of the split.
        states: size and time of change of each video, int64 (n, 2).
        shuffle: False keeps the source's order.
        shard_bytes: of a bucket at most, but for a file.
    """
    sizes = states[:, 0]
    total = int(sizes.sum()) + OVERHEAD * len(sizes)
    bucket_bytes = min(shard_bytes, max(total // MIN_BUCKETS, MIN_BYTES))
    buckets = {}
    for name, members in splits.items():
        places = members.astype(np.int32)
        if shuffle:
            shuffle_array(places, random.Random(f"{seed} {name}"))
        buckets[name] = cut_evenly(places, sizes, bucket_bytes)
    digest = hashlib.sha256()
    for name, cuts in buckets.items():
        for bucket in cuts:
            digest.update(f"\n{name}\n".encode())
            for place in bucket.tolist():
                video = videos[place]
                said = (
                    f"{video.path}\0{video.key}\0{states[place].tolist()}\0{video.label}\0{video.more}\0{video.cuts}\n"
                )
                digest.update(said.encode(errors="replace"))
    return BucketPlan(buckets, digest.hexdigest())


def cut_evenly(places: np.ndarray, sizes: np.ndarray, bucket_bytes: int) -> list[np.ndarray]:
    """Contiguous pieces of a row of files, of about equal size in a shard and of `bucket_bytes` at most, but for a file.

    Args:
        places: of the files among all.
        sizes: of all files.
    """
    blocks = [places[start : start + BLOCK] for start in range(0, len(places), BLOCK)]
    total = sum(int(sizes[block].sum()) for block in blocks) + OVERHEAD * len(places)
    count = -(-total // bucket_bytes)
    begin, before = 0, None
    cuts: list[np.ndarray] = []
    for number, block in enumerate(blocks):
        own = sizes[block] + OVERHEAD
        ends = begin + np.cumsum(own)
        # A file goes where its middle lies, so that pieces are off by half a file.
        bucket = ((ends - own / 2) * count / total).astype(np.int64)
        before = bucket[0] if before is None else before
        cuts.append(np.flatnonzero(np.diff(bucket, prepend=before)) + number * BLOCK)
        begin, before = int(ends[-1]), bucket[-1]
    return np.split(places, np.concatenate(cuts)) if blocks else []
