"""Plans made of counts are those that were made of lists of clips: positions in old checkpoints count in them."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data.loading.stream
from data.loading.stream import plan_part
from data.sampling.order import EpochOrder, Layout, shuffled
from data.sampling.table import ClipTable
from data.sampling.types import Clip
from data.shards.format import Shard
from data.shards.table import Selection, ShardList, select
from tests.references.order import epoch_order, in_turns, worker_clips

FRAMES = st.lists(st.lists(st.integers(1, 12), max_size=9), min_size=1, max_size=7)  # of each clip of each shard


def tables(frames: list[list[int]], shortest: int) -> tuple[ClipTable, list[Clip]]:
    """The usable clips as they are planned, and as the list that they were."""
    shards = [Shard(f"a/s{i}", {f"{i}_{j}": n for j, n in enumerate(counts)}) for i, counts in enumerate(frames)]
    listed = ShardList.of(shards)
    usable = [(key, shard) for shard in shards for key, n in shard.frames.items() if n >= shortest]
    clips = [Clip(number, key, shard) for number, (key, shard) in enumerate(usable)]
    selection = Selection(shortest)
    return ClipTable(listed, select(listed, selection).counts, selection), clips


@settings(max_examples=200, deadline=None)
@given(frames=FRAMES, shortest=st.integers(1, 12), number=st.integers(0, 99))
def test_a_table_of_clips_is_the_list_of_clips(frames: list[list[int]], shortest: int, number: int) -> None:
    table, clips = tables(frames, shortest)
    assert len(table) == len(clips)
    assert list(table) == clips
    assert all(table[i] == clips[i] for i in range(len(clips))[number % 3 :: -2])
    with pytest.raises(IndexError):
        table[len(clips)]


@settings(max_examples=200, deadline=None)
@given(
    frames=FRAMES, shortest=st.integers(1, 3), seed=st.integers(0, 9), epoch=st.integers(0, 3), rounds=st.integers(1, 4),
    lanes=st.integers(1, 40),
)  # fmt: skip
def test_an_epoch_has_the_order_that_it_had(
    frames: list[list[int]], shortest: int, seed: int, epoch: int, rounds: int, lanes: int
) -> None:
    table, clips = tables(frames, shortest)
    if not clips:
        return
    planned = EpochOrder(table.counts, seed, epoch, rounds, lanes)
    found = planned.at(np.arange(len(planned)))
    expected = epoch_order(clips, seed, epoch, rounds, lanes)
    assert found.numbers.tolist() == [clip.number for clip in expected]
    assert found.turns.tolist() == [clip.turn for clip in expected]


@settings(max_examples=100, deadline=None)
@given(
    frames=FRAMES, ranks=st.integers(1, 4), workers=st.integers(1, 3), lanes=st.integers(1, 9), buffer=st.integers(1, 9),
    taken=st.integers(0, 30),
)  # fmt: skip
def test_a_worker_goes_on_with_what_it_would_have_given(
    frames: list[list[int]], ranks: int, workers: int, lanes: int, buffer: int, taken: int
) -> None:
    """From any position on, through the plan, its blocks and the shuffle buffer."""
    table, clips = tables(frames, 1)
    if not clips:
        return
    for rank in range(ranks):
        layout = Layout(rank, ranks, workers)
        order = EpochOrder(table.counts, 5, 1, -(-layout.consumers // len(table)), lanes)
        part = layout.part(len(order), workers - 1)
        places = shuffled(range(len(part)), buffer, (5, 1, rank, workers - 1))
        done = np.zeros(len(part), bool)
        done[list(islice(places, taken))] = True
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(data.loading.stream, "PLANNED_AT_ONCE", 5)
            waiting = dict(zip(np.flatnonzero(~done), plan_part(table, order, part, done), strict=True))
        expected = worker_clips(clips, layout, workers - 1, 5, 1, buffer, lanes, taken)
        assert [waiting[place][1] for place in places] == expected


def test_a_lane_holds_contiguous_pieces() -> None:
    order = EpochOrder(np.array([50] * 4), 0, 0, interleave=7)
    found = order.at(np.arange(len(order)))
    row = EpochOrder(np.array([50] * 4), 0, 0).at(np.arange(200)).numbers
    assert in_turns(row.tolist(), 7) == found.numbers.tolist()
    assert np.concatenate([found.numbers[found.lanes == lane] for lane in range(7)]).tolist() == row.tolist()
