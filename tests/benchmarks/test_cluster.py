"""The simulation of a cluster against what a walk through the plan, clip by clip, gives."""

import numpy as np
import pytest

from benchmarks.cluster import Cluster, after_a_resume, measure_cache, measure_stragglers, opened, part_of, runs_of
from data.loading.loader import BATCHES_AHEAD
from data.sampling.order import EpochOrder, Layout

COUNTS = np.array([7, 0, 12, 5, 9, 40, 8])
CLUSTER = Cluster(COUNTS, nodes=2, ranks=1, workers=2, clip_mb=1.0, buffer=4)


@pytest.mark.parametrize("interleave", [1, 3])
def test_the_shards_that_a_reader_opens(interleave: int) -> None:
    order = EpochOrder(COUNTS, 0, 0, interleave=interleave)
    shard_of = [number for number, count in enumerate(COUNTS) for _ in range(count)]
    clips = 0
    for reader in CLUSTER.readers(0) + CLUSTER.readers(1):
        places = part_of(order, reader)
        planned = order.at(places)
        opened: dict[tuple[int, int], tuple[int, float]] = {}
        for position, (lane, number) in enumerate(zip(planned.lanes, planned.numbers, strict=True)):
            inside = number - shard_of.index(shard_of[number])
            opened.setdefault((lane, shard_of[number]), (inside, position / len(places)))
        runs = runs_of(COUNTS, order, places)
        assert list(zip(runs.shards, runs.skips, runs.at, strict=True)) == [
            (shard, skips, at) for (_, shard), (skips, at) in opened.items()
        ]
        clips += len(places)
    assert clips == COUNTS.sum()


def test_after_a_resume_the_rest_is_read() -> None:
    order = EpochOrder(COUNTS, 0, 0)
    reader = (Layout(0, 2, 2), 1)
    places = part_of(order, reader)
    rest = after_a_resume(CLUSTER, order, reader, 0.5)
    assert set(rest) < set(places)
    assert len(rest) == len(places) - len(places) // 2


def test_a_cache_that_holds_the_set_misses_nothing_but_what_is_new() -> None:
    (row,) = measure_cache(CLUSTER, 1, [1.0], epochs=8)
    assert row["found, epoch 8"] == 1.0
    assert row["fetched by a node in that (TB)"] == 0.0
    (none,) = measure_cache(CLUSTER, 1, [0.0], epochs=2)
    assert none["found, epoch 2"] == 0.0


@pytest.mark.parametrize("room", [1, 2, 3, 4])
def test_the_longest_unused_shard_is_dropped(room: int) -> None:
    recent: list[int] = []
    for epoch in range(4):
        stream = list(opened(CLUSTER, 0, epoch, 3))
        found = 0
        for shard in stream:
            found += shard in recent
            recent = [*(kept for kept in recent if kept != shard), shard][-room:]
    (row,) = measure_cache(CLUSTER, 3, [room * COUNTS.mean() / 1e6], epochs=4)
    assert row["found, epoch 4"] == found / len(stream)


@pytest.mark.parametrize(("workers", "expected"), [(1, 0.4), (2, 0.2), (4, 0.17)])
def test_a_step_takes_as_long_as_the_slower_of_computing_and_decoding(workers: int, expected: float) -> None:
    row = measure_stragglers(3, workers, 0.17, 0.4, 0.0, 0.0, 0.0, 400)
    assert row["step (s)"] == pytest.approx(expected, rel=0.01)  # the window ends in the middle of a round


def test_what_is_ready_outlasts_a_stall() -> None:
    """All batches ahead cover their number times the step; a longer stall is waited for."""
    ahead = (BATCHES_AHEAD + 1) * 4 * 0.17
    assert measure_stragglers(64, 4, 0.17, 0.1, 0.0, 0.5 * ahead, 0.001, 2_000)["of that waiting"] < 0.01
    assert measure_stragglers(64, 4, 0.17, 0.1, 0.0, 4 * ahead, 0.001, 2_000)["of that waiting"] > 0.05
