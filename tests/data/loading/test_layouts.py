"""Any shards over any ranks and workers: equal steps, every clip once, exact resume. Reading and decoding are left out."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import data.loading.samples
import data.loading.stream
from data.loading.faults import FaultPolicy
from data.loading.loader import ClipLoader
from data.loading.samples import Sample
from data.loading.stream import ClipStream, DecodedClip, WorkerItem
from data.sampling.order import Layout
from data.sampling.table import ClipTable
from data.sampling.types import Clip, Sampling, Window
from data.shards.format import Shard

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=6)  # clips of each shard
FAULTS = st.sets(st.integers(0, 71), max_size=8)  # numbers of clips that do not decode
BATCH, BUFFER = st.integers(1, 5), st.integers(1, 9)
LANES = st.integers(1, 7)
RANKS, WORKERS = st.integers(1, 6), st.integers(1, 4)
BROKEN: set[int] = set()
PLAN = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams give the number of each clip in the place of its frames."""

    def samples(clips: Iterable[Clip], *_: Any) -> Iterator[Sample]:
        return (Sample(clip, fault="broken" if clip.number in BROKEN else "") for clip in clips)

    def decode(_: ClipStream, sample: Sample, epoch: int | None, place: torch.Tensor) -> DecodedClip:
        place.copy_(torch.tensor(list(sample.clip.number.to_bytes(3, "big"))))
        return DecodedClip(sample.clip, 1.0, sample.fault)

    monkeypatch.setattr(data.loading.stream, "read_samples", samples)
    monkeypatch.setattr(data.loading.samples, "read_samples", samples)
    monkeypatch.setattr(ClipStream, "_decode", decode)


def make_clips(sizes: list[int]) -> ClipTable:
    return ClipTable.of([Shard(f"s{i}", {f"{i}_{j}": 9 for j in range(n)}) for i, n in enumerate(sizes)])


def make_stream(
    clips: ClipTable, layout: Layout, batch: int, buffer: int | None, lanes: int = 1,
    starts: list[tuple[int, int]] | None = None,
) -> ClipStream:  # fmt: skip
    sampling = Sampling(Window(1, 1, 8), batch, buffer, interleave=lanes)
    return ClipStream(clips=clips, sampling=sampling, layout=layout, starts=starts or [(0, 0)] * layout.num_workers)


def make_loader(clips: ClipTable, batch: int, buffer: int, folder: Path, rank: int, ranks: int) -> ClipLoader:
    sampling, faults = Sampling(Window(1, 1, 8), batch, buffer), FaultPolicy(0.0, folder)
    return ClipLoader(
        name="train", clips=clips, sampling=sampling, faults=faults, num_workers=0, rank=rank, world_size=ranks
    )


def items_of(stream: ClipStream, worker: int) -> Iterator[WorkerItem]:
    """What a worker process with this number gives."""
    return stream._train(worker) if stream.sampling.shuffle_buffer is not None else stream._evaluate(worker)


def numbers_of(item: WorkerItem) -> list[int]:
    frames = [] if item.frames is None else item.frames[:, 0, 0, 0].tolist()
    return [int.from_bytes(bytes(pixel), "big") for pixel in frames]


def set_faults(faults: set[int]) -> None:
    BROKEN.clear()
    BROKEN.update(faults)


@PLAN
@given(sizes=SIZES, ranks=RANKS, workers=WORKERS, batch=BATCH, faults=FAULTS)
def test_an_evaluation_takes_every_clip_once(
    undecoded: None, sizes: list[int], ranks: int, workers: int, batch: int, faults: set[int]
) -> None:
    set_faults(faults)
    clips = make_clips(sizes)
    given_, failed = Counter[int](), 0
    for rank in range(ranks):
        layout = Layout(rank, ranks, workers)
        stream = make_stream(clips, layout, batch, None)
        for worker in range(workers):
            for item in items_of(stream, worker):
                given_.update(numbers_of(item))
                failed += len(item.faults)
    assert given_ == Counter(number for number in range(len(clips)) if number not in faults)
    assert failed == len(faults & set(range(len(clips))))


@PLAN
@given(sizes=SIZES, ranks=RANKS, workers=WORKERS, batch=BATCH, buffer=BUFFER, lanes=LANES, faults=FAULTS)
def test_a_training_epoch_takes_every_clip_once(
    undecoded: None, sizes: list[int], ranks: int, workers: int, batch: int, buffer: int, lanes: int, faults: set[int]
) -> None:
    """As often as it needs to for every worker to have one, where clips are fewer than workers."""
    set_faults(faults)
    clips = make_clips(sizes)
    seen = Counter[int]()
    for rank in range(ranks):
        stream = make_stream(clips, Layout(rank, ranks, workers), 1, buffer, lanes)
        for worker in range(workers):
            items = items_of(stream, worker)
            for item in items:
                if item.position[0] > 0:
                    break
                seen.update(numbers_of(item))
                seen.update(clip.number for clip in clips for fault in item.faults if clip.key == fault["key"])
    # An item of the first epoch ends with a clip that decodes; faults behind the last one go out with the next epoch.
    expected = {number: -(-ranks * workers // len(clips)) for number in range(len(clips))}
    assert {n: seen[n] for n in expected if n not in faults} == {n: expected[n] for n in expected if n not in faults}
    assert all(seen[n] <= expected[n] for n in expected)


@PLAN
@given(sizes=SIZES, ranks=RANKS, batch=BATCH, buffer=BUFFER)
def test_every_rank_makes_as_many_steps(
    undecoded: None, tmp_path: Path, sizes: list[int], ranks: int, batch: int, buffer: int
) -> None:
    set_faults(set())
    clips = make_clips(sizes)
    steps = []
    for rank in range(ranks):
        loader = make_loader(clips, batch, buffer, tmp_path, rank, ranks)
        counts = [sum(1 for _ in loader) for _ in range(2)]
        steps.append((len(loader), *counts))
    assert set(steps) == {(max(1, len(clips) // (ranks * batch)),) * 3}


@PLAN
@given(
    sizes=SIZES, ranks=RANKS, workers=WORKERS, batch=BATCH, buffer=BUFFER, lanes=LANES, faults=FAULTS,
    cut=st.integers(1, 20), evaluate=st.booleans(),
)  # fmt: skip
def test_a_stream_goes_on_from_any_item(
    undecoded: None, sizes: list[int], ranks: int, workers: int, batch: int, buffer: int, lanes: int, faults: set[int],
    cut: int, evaluate: bool,
) -> None:  # fmt: skip
    clips = make_clips(sizes)
    if faults >= set(range(len(clips))):
        faults = set()
    set_faults(faults)

    def stream(starts: list[tuple[int, int]]) -> ClipStream:
        layout = Layout(ranks - 1, ranks, workers)
        return make_stream(clips, layout, batch, None if evaluate else buffer, lanes, starts)

    def shown(items: Iterator[WorkerItem]) -> list[tuple[list[str], list[str]]]:
        return [(item.keys, [fault["key"] for fault in item.faults]) for item in islice(items, 12)]

    whole = items_of(stream([(0, 0)] * workers), workers - 1)
    taken = list(islice(whole, cut))
    starts = [(0, 0)] * (workers - 1) + [taken[-1].position if taken else (0, 0)]
    assert shown(items_of(stream(starts), workers - 1)) == shown(whole)


def test_one_clip_serves_any_number_of_workers(undecoded: None, tmp_path: Path) -> None:
    set_faults(set())
    clips = make_clips([1])
    for rank in range(3):
        loader = make_loader(clips, 2, 4, tmp_path, rank, 3)
        assert [len(batch["keys"]) for batch in [*loader, *loader]] == [2, 2]
