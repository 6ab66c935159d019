"""A mixture changes nothing of its streams, and which batch comes next is a function of the seed, over any interruption."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import data.loading.samples
import data.loading.stream
from data.batch import Batch
from data.loading.faults import FaultPolicy
from data.loading.loader import ClipLoader
from data.loading.mixture import MixedLoader
from data.loading.samples import Sample
from data.loading.stream import ClipStream, DecodedClip, WorkerItem
from data.sampling.mixture import divide_workers, draw_stream, make_streams, plain_stream, weigh
from data.sampling.table import ClipTable
from data.sampling.types import Sampling, Window
from data.shards.format import Shard
from tae.runtime.errors import UserError

SOURCES = st.lists(
    st.fixed_dictionaries(
        {
            "sizes": st.lists(st.integers(1, 9), min_size=1, max_size=4),  # clips of each shard
            "batch": st.integers(1, 4),
            "buffer": st.integers(1, 6),
            "frames": st.integers(1, 2),
            "workers": st.sampled_from([0, 1, 2]),
            "weight": st.sampled_from([0.5, 1.0, 3.0]),
        }
    ),
    min_size=1,
    max_size=4,
)


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read or decoded, and worker processes are taken in turns in this one."""

    def items(self: ClipLoader) -> Iterator[WorkerItem]:
        stream, count = self._stream(), self.layout.num_workers
        workers = [stream._train((number + stream.first_worker) % count) for number in range(count)]
        while True:
            yield from map(next, workers)

    samples = lambda clips, *_: (Sample(clip) for clip in clips)  # noqa: E731
    monkeypatch.setattr(data.loading.stream, "read_samples", samples)
    monkeypatch.setattr(data.loading.samples, "read_samples", samples)
    monkeypatch.setattr(ClipStream, "_decode", lambda _, sample, *__: DecodedClip(sample.clip, 1.0))
    monkeypatch.setattr(ClipLoader, "_items", items)


def make_loader(number: int, source: dict[str, Any], rank: int, ranks: int, folder: Path) -> ClipLoader:
    shards = [Shard(f"s{i}", {f"{number}_{i}_{j}": 9 for j in range(n)}) for i, n in enumerate(source["sizes"])]
    return ClipLoader(
        name=f"train/{number}",
        clips=ClipTable.of(shards),
        sampling=Sampling(Window(source["frames"], 1, 8), source["batch"], source["buffer"], seed=5),
        faults=FaultPolicy(0.0, folder),
        num_workers=source["workers"],
        rank=rank,
        world_size=ranks,
    )


def make_mixture(sources: list[dict[str, Any]], rank: int, ranks: int, folder: Path) -> MixedLoader:
    loaders = {str(i): make_loader(i, source, rank, ranks, folder) for i, source in enumerate(sources)}
    return MixedLoader(loaders, {str(i): source["weight"] for i, source in enumerate(sources)}, seed=5)


def endless(loader: MixedLoader | ClipLoader) -> Iterator[Batch]:
    while True:
        yield from loader


def told(batch: Batch) -> tuple[str, tuple[str, ...], tuple[int, ...]]:
    return batch["source"], tuple(batch["keys"]), tuple(batch["frames"].shape)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sources=SOURCES, ranks=st.integers(1, 2), stop=st.integers(0, 30))
def test_streams_are_what_they_are_alone_and_go_on_exactly(
    undecoded: None, sources: list[dict[str, Any]], ranks: int, stop: int, tmp_path: Path
) -> None:
    """Each clip once in an epoch, equal parts: what `test_layouts.py` shows of a stream alone."""
    of_ranks = []
    for rank in range(ranks):
        batches = [told(batch) for batch in islice(endless(make_mixture(sources, rank, ranks, tmp_path)), 40)]
        for number, source in enumerate(sources):
            keys = [keys for name, keys, _ in batches if name == str(number)]
            alone = endless(make_loader(number, source, rank, ranks, tmp_path))
            assert keys == [tuple(batch["keys"]) for batch in islice(alone, len(keys))]
        interrupted = make_mixture(sources, rank, ranks, tmp_path)
        list(islice(endless(interrupted), stop))
        state = interrupted.state_dict() | {"streams": {}}
        for name, loader in interrupted.loaders.items():
            saved = loader.state_dict()
            state["streams"][name] = saved | {"ranks": saved["ranks"] * ranks}
        resumed = make_mixture(sources, rank, ranks, tmp_path)
        resumed.load_state_dict(state)
        assert [told(batch) for batch in islice(endless(resumed), 40 - stop)] == batches[stop:]
        of_ranks.append([(name, shape) for name, _, shape in batches])
    assert of_ranks[0] == of_ranks[-1]


def test_streams_are_drawn_by_their_weights_and_without_a_rhythm() -> None:
    drawn = np.array([draw_stream([3, 1], seed=0, batch=n) for n in range(4000)])
    assert 930 < drawn.sum() < 1070  # 1000 +- 2.5 standard deviations of 27
    after = drawn[1:][drawn[:-1] == 1]
    assert 0.2 < after.mean() < 0.3  # a quarter, +- 3.6 standard deviations: independent of the batch before
    assert drawn.tolist() != [draw_stream([3, 1], seed=1, batch=n) for n in range(4000)]


def test_the_first_batches_are_one_of_each_stream_and_the_largest_is_first(undecoded: None, tmp_path: Path) -> None:
    plain = {"sizes": [4], "batch": 1, "buffer": 1, "frames": 1, "workers": 0, "weight": 1.0}
    sources = [plain, plain | {"batch": 4, "weight": 0.001}, plain | {"frames": 17}]
    mixture = make_mixture(sources, 0, 1, tmp_path)
    assert [batch["source"] for batch in islice(mixture, 3)] == ["1", "2", "0"]  # 32, 24 and 8 frames in latent ones
    assert len(mixture) == 4 + 1 + 4


@pytest.mark.parametrize(
    ("change", "named"),
    [({"weight": 2.0}, "data.sources was 0 1, 1 1 and is 0 2, 1 1"), ({"batch": 2}, "data.batch_size was 1 and is 2")],
)
def test_another_mixture_is_refused(undecoded: None, change: dict[str, Any], named: str, tmp_path: Path) -> None:
    plain = {"sizes": [4], "batch": 1, "buffer": 1, "frames": 1, "workers": 0, "weight": 1.0}
    state = make_mixture([plain, plain], 0, 1, tmp_path).state_dict()
    with pytest.raises(UserError, match=named):
        make_mixture([plain | change, plain], 0, 1, tmp_path).load_state_dict(state)
    with pytest.raises(UserError, match=r"data\.sources was 0 1, 1 1 and is None"):
        make_loader(0, plain, 0, 1, tmp_path).load_state_dict(state)
    with pytest.raises(UserError, match=r"data\.sources was None and is 0 1, 1 1"):
        make_mixture([plain, plain], 0, 1, tmp_path).load_state_dict(make_loader(0, plain, 0, 1, tmp_path).state_dict())


def test_workers_are_divided_by_the_frames_that_they_have_to_decode() -> None:
    sources = {"video": {"weight": 3}, "images": {"num_frames": 1, "batch_size": 16}, "rare": {"weight": 0.01}}
    streams = make_streams(plain_stream(16, 64, 1), sources)
    weights = weigh(streams, [9, 9, 9])
    assert divide_workers(0, streams, weights) == [0, 0, 0]
    assert divide_workers(2, streams, weights) == [1, 1, 1]
    assert divide_workers(9, streams, weights) == [6, 2, 1]  # 48 to 16 frames


def test_a_source_has_what_it_does_not_say_from_outside() -> None:
    base = plain_stream(16, 64, 3)
    same, other = make_streams(base, {"same": {}, "other": {"shards": "x", "num_frames": 1, "filter": {"fps": [1, 2]}}})
    assert (same.window, same.batch_size, same.option, same.weight) == (base.window, 3, "data.shards.train", 1.0)
    assert (other.shape, other.option) == ((3, 1, 64, 64, 3), "data.sources.other.shards")
    assert other.bounds == {"fps": (1, 2)}
    assert make_streams(base, None) == (base,)
    assert [stream.name for stream in make_streams(base, {"a": None, "b": {}})] == ["b"]


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ({}, "sources={} names none"),
        ({"a": None}, "names none"),
        ({"a/b": {}}, "sources.a/b: a name is of letters"),
        ({"a": {"weight": 0}}, "sources.a.weight=0 is not allowed: give a number, greater than 0"),
        ({"a": {"weight": float("nan")}}, "sources.a.weight=nan is not allowed"),
        ({"a": {"num_frmes": 3}}, "sources.a.num_frmes is unknown"),
        ({"a": 3}, "sources.a=3 is not allowed: give a mapping"),
        ({"a": {"filter": {"fps": [2, 1]}}}, "sources.a.filter.fps="),
        ({"a": {"fps": float("nan")}}, "sources.a.fps=nan is not allowed: give a number, greater than 0, "),
        ({"a": {"fps": [24, 0]}}, "sources.a.fps=[24, 0] is not allowed"),
        ({"a": {"fps": -1}}, "sources.a.fps=-1 is not allowed"),
        ({"a": {"fps": []}}, "sources.a.fps=[] names none"),
        ({"a": {"frame_stride": [1, 0]}}, "sources.a.frame_stride=[1, 0] is not allowed"),
        ({"a": {"fps": 24, "frame_stride": 2}}, "sources.a.frame_stride=2 and sources.a.fps=24 ask for two rates"),
        ({"a": {"buckets": {}}}, "sources.a.buckets={} names none"),
        ({"a": {"buckets": {"b": {"height": "tall"}}}}, "sources.a.buckets.b.height=tall is not allowed"),
        ({"a": {"buckets": {"b": {"heigth": 64}}}}, "sources.a.buckets.b.heigth is unknown"),
        ({"a": {"buckets": {"b": {"weight": 1}, "c": {}}}}, "sources.a.buckets: give each bucket a weight, or none"),
        (
            {"a": {"buckets": {"b": {"width": 32}}, "augmentation": {"flips": ["diagonal"]}}},
            "sources.a.buckets.b is 64 high",
        ),
    ],
)
def test_what_is_wrong_with_a_source_is_a_sentence(sources: Any, said: str) -> None:
    with pytest.raises(UserError) as refused:
        make_streams(plain_stream(16, 64, 1), sources)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_buckets_are_streams_of_their_source() -> None:
    buckets = {"wide": {"height": 32, "weight": 2}, "long": {"num_frames": 33, "batch_size": 1, "weight": 1}}
    base = plain_stream(16, 64, 3)
    wide, long = make_streams(base, None, buckets)
    assert (wide.name, wide.shape, long.shape) == ("wide", (3, 16, 32, 64, 3), (1, 33, 64, 64, 3))
    assert wide.buckets == (wide.window, long.window)
    assert (wide.bucket, long.bucket, wide.key) == (0, 1, "data")
    sources = {"a": {"weight": 3}, "b": {"buckets": {"x": {}, "y": {"batch_size": 1}}}}
    streams = make_streams(base, sources, buckets)
    assert [stream.name for stream in streams] == ["a/wide", "a/long", "b/x", "b/y"]
    assert weigh(streams, [9, 9, 30, 10]) == [2, 1, 0.5, 0.5]  # 10 batches of 3 clips, and 10 of one


def test_a_rate_of_a_source_makes_the_stride_outside_void() -> None:
    base = plain_stream(16, 64, 3)
    strided = replace(base, window=replace(base.window, frame_stride=(1, 2)))
    timed = replace(base, window=replace(base.window, fps=(24.0,)))
    pace = lambda stream: (stream.window.frame_stride, stream.window.fps)  # noqa: E731
    assert [pace(s) for s in make_streams(strided, {"a": {}, "b": {"fps": 12}})] == [((1, 2), ()), (1, (12.0,))]
    assert [pace(s) for s in make_streams(timed, {"a": {}, "b": {"frame_stride": [2, 3]}})] == [
        (1, (24.0,)),
        ((2, 3), ()),
    ]
    assert pace(replace(strided, window=strided.window.first_pace())) == (1, ())
