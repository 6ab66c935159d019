"""A cluster that is not there: what the stream does with 512 ranks of 8 workers over 10^8 clips in 10^5 shards.

    python -m benchmarks.cluster

The plans are those that training makes (`data.sampling.order`), for all workers of some nodes; nothing is read. Tables:

    reads       what planning takes, what an epoch and a resume read, with and without the offsets of samples in their shards
    cache       how often a shard is found in a node's cache
    stragglers  what a step takes where all ranks wait for the slowest, clips being decoded in times that vary

A sample that is passed over for want of offsets costs a read of its header, up to 1 MiB (`data.storage.remote.READ_BLOCK`).
"""

import argparse
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import RESULTS, publish
from data.loading.loader import BATCHES_AHEAD
from data.sampling.order import EpochOrder, Layout, shuffled

FIRST_CLIPS = 256
RESUMES = 16  # at random moments, of as many readers
SEED, EPOCH = 0, 0


@dataclass(frozen=True)
class Cluster:
    """Shards and who reads them.

    Args:
        counts: clips of each shard.
        nodes: machines, each with `ranks` processes of `workers` readers.
        clip_mb: megabytes of a clip's file, the same for all.
        buffer: the shuffle buffer of a reader, in clips.
    """

    counts: np.ndarray
    nodes: int
    ranks: int
    workers: int
    clip_mb: float
    buffer: int

    def readers(self, node: int) -> list[tuple[Layout, int]]:
        """Of a node: for each of its readers the layout of its rank, and its number there."""
        ranks = range(node * self.ranks, (node + 1) * self.ranks)
        return [(Layout(r, self.nodes * self.ranks, self.workers), w) for r in ranks for w in range(self.workers)]


class Runs(NamedTuple):
    """The shards that a reader opens for a part of an epoch, in the order in which it does; an entry for each.

    shards: their numbers
    skips:  samples of each before the first one that is wanted
    at:     when each is opened, as a share of the part
    """

    shards: np.ndarray
    skips: np.ndarray
    at: np.ndarray


def runs_of(counts: np.ndarray, order: EpochOrder, places: np.ndarray) -> Runs:
    """What is opened for these places of an epoch's row: a shard once for each lane."""
    planned = order.at(places)
    ends = np.cumsum(counts)
    shards = np.searchsorted(ends, planned.numbers, side="right")
    inside = planned.numbers - (ends - counts)[shards]
    _, first = np.unique(planned.lanes * len(counts) + shards, return_index=True)
    first.sort()
    return Runs(shards[first], inside[first], first / len(places))


def part_of(order: EpochOrder, reader: tuple[Layout, int]) -> np.ndarray:
    layout, worker = reader
    part = layout.part(len(order), worker)
    return np.arange(part.start, part.stop)


def after_a_resume(cluster: Cluster, order: EpochOrder, reader: tuple[Layout, int], share: float) -> np.ndarray:
    """The places of a part that are read after a resume at this share of it; those in the buffer are read again."""
    places = part_of(order, reader)
    layout, worker = reader
    taken = shuffled(range(len(places)), cluster.buffer, (SEED, EPOCH, layout.rank, worker))
    done = np.zeros(len(places), bool)
    done[list(islice(taken, int(share * len(places))))] = True
    return places[~done]


def measure_reads(cluster: Cluster, interleave: int, nodes: Sequence[int]) -> dict[str, Any]:
    """One row of the first table; the readers of some nodes stand for all."""
    started = time.process_time()
    order = EpochOrder(cluster.counts, SEED, EPOCH, interleave=interleave)
    planned = time.process_time() - started
    readers = [reader for node in nodes for reader in cluster.readers(node)]
    started = time.process_time()
    order.at(part_of(order, readers[0])[:FIRST_CLIPS])
    first = time.process_time() - started
    parts = [part_of(order, reader) for reader in readers]
    runs = [runs_of(cluster.counts, order, places) for places in parts]
    clips, skipped = sum(map(len, parts)), sum(int(each.skips.sum()) for each in runs)
    shares = np.random.default_rng(SEED).random(RESUMES)
    again = passed = 0
    for reader, share in zip(readers[:: len(readers) // RESUMES], shares, strict=False):
        buffered = after_a_resume(cluster, order, reader, share)[: cluster.buffer]
        again += len(buffered)
        passed += int(runs_of(cluster.counts, order, buffered).skips.sum())
    readers_in_all = cluster.nodes * cluster.ranks * cluster.workers
    return {
        "interleave": interleave,
        "order of an epoch (CPU s)": planned,
        f"first {FIRST_CLIPS} clips (CPU s)": first,
        "clips of a reader, fewest": min(map(len, parts)),
        "most": max(map(len, parts)),
        "shards that a reader opens": float(np.mean([len(each.shards) for each in runs])),
        "epoch, with offsets (TB)": len(order) * cluster.clip_mb / 1e6,
        "samples passed over without, in 100 clips": 100 * skipped / clips,
        "resume, read again (TB)": again / RESUMES * readers_in_all * cluster.clip_mb / 1e6,
        "passed over without, for a reader": passed / RESUMES,
    }


def opened(cluster: Cluster, node: int, epoch: int, interleave: int) -> Iterator[int]:
    """The shards that a node's readers open in an epoch, in the order of time: all go at one pace."""
    order = EpochOrder(cluster.counts, SEED, epoch, interleave=interleave)
    runs = [runs_of(cluster.counts, order, part_of(order, reader)) for reader in cluster.readers(node)]
    shards, at = np.concatenate([each.shards for each in runs]), np.concatenate([each.at for each in runs])
    yield from shards[np.argsort(at, kind="stable")].tolist()


def measure_cache(
    cluster: Cluster, interleave: int, caches_tb: Sequence[float], epochs: int
) -> Iterator[dict[str, Any]]:
    """Rows of the second table: for each size of the cache of a node, which drops what was not used for longest."""
    streams = [list(opened(cluster, 0, epoch, interleave)) for epoch in range(epochs)]
    shard_tb = cluster.counts.mean() * cluster.clip_mb / 1e6
    for size in caches_tb:
        cache: OrderedDict[int, None] = OrderedDict()
        hits = []
        for stream in streams:
            hits.append(0)
            for shard in stream:
                hits[-1] += shard in cache
                cache[shard] = None
                cache.move_to_end(shard)
                if len(cache) > size / shard_tb:
                    cache.popitem(last=False)
        rates = [found / len(stream) for found, stream in zip(hits, streams, strict=True)]
        fetched = (len(streams[-1]) - hits[-1]) * shard_tb
        yield {
            "interleave": interleave,
            "cache of a node (TB)": size,
            "shards opened in an epoch": len(streams[0]),
            "found, first epoch": rates[0],
            f"found, epoch {epochs}": rates[-1],
            "fetched by a node in that (TB)": fetched,
            "of all nodes, times the set": fetched * cluster.nodes / (len(cluster.counts) * shard_tb),
        }


def measure_stragglers(
    ranks: int, workers: int, step: float, decode: float, spread: float, stall: float, stalls: float, steps: int
) -> dict[str, Any]:
    """A row of the third table: seconds of a step, and of that the wait for batches.

    Args:
        step: seconds that a step computes.
        decode: mean seconds of a batch in a worker, log-normal with `spread` as the deviation of its logarithm.
        stall, stalls: seconds that some batches take longer, and the share of them.
    """
    rng = np.random.default_rng(0)
    free = np.zeros((ranks, workers))  # when each worker has finished its latest batch
    room = np.zeros((BATCHES_AHEAD + 1, ranks, workers))  # when the places for its batches became free, oldest first
    now, started = 0.0, 0.0
    warm = steps // 5
    for number in range(steps):
        worker, turn = number % workers, (number // workers) % (BATCHES_AHEAD + 1)
        taken = rng.lognormal(np.log(decode) - spread**2 / 2, spread, ranks) + stall * (rng.random(ranks) < stalls)
        free[:, worker] = np.maximum(free[:, worker], room[turn, :, worker]) + taken
        now = max(now, float(free[:, worker].max())) + step  # the gradients' sum waits for all
        room[turn, :, worker] = now - step  # the batch is copied out before the step
        if number == warm:
            started = now
    mean = (now - started) / (steps - 1 - warm)
    return {"ranks": ranks, "workers of each": workers, "step (s)": mean, "of that waiting": 1 - step / mean}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10**5)
    parser.add_argument("--clips-per-shard", type=int, default=1_000, help="on average; they vary by a tenth")
    parser.add_argument("--clip-mb", type=float, default=1.0)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--ranks", type=int, default=8, help="of each node")
    parser.add_argument("--workers", type=int, default=8, help="of each rank")
    parser.add_argument("--buffer", type=int, default=256)
    parser.add_argument("--step", type=float, default=0.17, help="seconds that a step computes")
    parser.add_argument("--decode", type=float, default=0.4, help="mean seconds of a batch in a worker")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    tenth = arguments.clips_per_shard // 10
    counts = arguments.clips_per_shard + np.random.default_rng(0).integers(-tenth, tenth + 1, arguments.shards)
    sizes = (arguments.nodes, arguments.ranks, arguments.workers, arguments.clip_mb, arguments.buffer)
    cluster = Cluster(counts, *sizes)
    sample = np.linspace(0, arguments.nodes - 1, 4).astype(int).tolist()
    reads = [measure_reads(cluster, interleave, sample) for interleave in (1, 32)]
    publish("cluster_reads", "cpu", settings, reads, arguments.output)
    whole = counts.sum() * arguments.clip_mb / 1e6
    caches = [round(share * whole, 2) for share in (0.005, 0.02, 0.1)]
    cached = [row for interleave in (1, 32) for row in measure_cache(cluster, interleave, caches, 3)]
    publish("cluster_cache", "cpu", settings, cached, arguments.output)
    rows = [
        {"stalls": f"{share:.1%} of batches, {stall:g} s"}
        | measure_stragglers(ranks, workers, arguments.step, arguments.decode, 0.4, stall, share, 2_000)
        for share, stall in ((0.0, 0.0), (0.001, 2.0))
        for workers in (3, 4, 8)
        for ranks in (1, 8, 64, arguments.nodes * arguments.ranks)
    ]
    publish("cluster_stragglers", "cpu", settings, rows, arguments.output)


if __name__ == "__main__":
    main()
