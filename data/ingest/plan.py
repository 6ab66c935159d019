"""Which source file is written where, settled from names and sizes before anything is read.

The files of each split are shuffled by the seed and cut into buckets of about equal size, so that a bucket is a random
sample of its split and neighbours in the source are apart. A bucket becomes one shard.
"""

import hashlib
import random
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data.ingest.splits import Video

# A source too small for so many shards of the wished size gets smaller ones, for as many processes to be at work; but
# not so small ones that they would cost more to open than to read.
MIN_BUCKETS = 64
MIN_BYTES = 2_000_000
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
    splits: Mapping[str, Sequence[Video]],
    states: np.ndarray,
    seed: int,
    shuffle: bool,
    shard_bytes: int,
) -> BucketPlan:
    """Cut every split into buckets.

    Args:
        videos: of the source.
        splits: some of them, by the name of the split.
        states: size and time of change of each video, int64 (n, 2).
        shuffle: False keeps the source's order.
        shard_bytes: of a bucket at most, but for a file.
    """
    sizes = states[:, 0] + OVERHEAD
    bucket_bytes = min(shard_bytes, max(int(sizes.sum()) // MIN_BUCKETS, MIN_BYTES))
    buckets = {}
    for name, members in splits.items():
        places = places_of(members, videos)
        if shuffle:
            random.Random(f"{seed} {name}").shuffle(places)
        buckets[name] = cut_evenly(np.array(places, np.int64), sizes, bucket_bytes)
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


def places_of(members: Iterable[Video], videos: Iterable[Video]) -> "array[int]":
    """The places of some videos among all, in whose order they are."""
    places, rest = array("q"), enumerate(videos)
    for member in members:
        places.append(next(place for place, video in rest if video is member))
    return places


def cut_evenly(places: np.ndarray, sizes: np.ndarray, bucket_bytes: int) -> list[np.ndarray]:
    """Contiguous pieces of a row of files, of about equal size and of `bucket_bytes` at most, but for a file."""
    if not len(places):
        return []
    ends = np.cumsum(sizes[places])
    count = -(-int(ends[-1]) // bucket_bytes)
    # A file goes where its middle lies, so that pieces are off by half a file.
    bucket = ((ends - sizes[places] / 2) * count / ends[-1]).astype(np.int64)
    return np.split(places, np.flatnonzero(np.diff(bucket)) + 1)
