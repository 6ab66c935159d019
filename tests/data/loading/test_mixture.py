"""A mixture changes nothing of its streams, and which batch comes next is a function of the seed, over any interruption."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import data.loading.samples
import data.loading.stream
from data.batch import Batch
from data.loading.faults import FaultPolicy
from data.loading.loader import ClipLoader
from data.loading.mixture import MixedLoader
from data.loading.samples import Sample
from data.loading.stream import ClipStream, DecodedClip, WorkerItem, take_window
from data.sampling.fitting import FitsBest
from data.sampling.mixture import divide_workers, draw_stream, make_streams, plain_stream, weigh
from data.sampling.table import ClipTable
from data.sampling.types import Sampling, Window
from data.shards.columns import Strings
from data.shards.table import Selection, ShardIndex, ShardList, select
from tae.runtime.errors import UserError

PACES = [{"frame_stride": 1}, {"frame_stride": (1, 2)}, {"frame_stride": 1, "fps": (24.0, 12.0)}]
SHAPES = [(2, 8, 8), (4, 8, 8), (2, 8, 16), (3, 16, 8)]  # frames, height, width
CLIPS = st.lists(st.tuples(st.integers(1, 9), st.sampled_from([(8, 8), (9, 16), (16, 9)])), min_size=1, max_size=9)
SOURCES = st.lists(
    st.fixed_dictionaries(
        {
            "shards": st.lists(CLIPS, min_size=1, max_size=4),  # (frames, (height, width)) of each clip
            "batch": st.integers(1, 4),
            "buffer": st.integers(1, 6),
            "shapes": st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3, unique=True),  # of its buckets
            "pace": st.sampled_from(PACES),
            "workers": st.sampled_from([0, 1, 2]),
            "weight": st.sampled_from([0.5, 1.0, 3.0]),
        }
    ),
    min_size=1,
    max_size=3,
)
PLAIN: dict[str, Any] = {
    "shards": [[(9, (8, 8))] * 4],
    **{"batch": 1, "buffer": 1, "shapes": [(1, 8, 8)], "pace": PACES[0], "workers": 0, "weight": 1.0},
}


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read or decoded, though windows are drawn; worker processes are taken in turns in this one."""

    def items(self: ClipLoader) -> Iterator[WorkerItem]:
        stream, count = self._stream(), self.layout.num_workers
        workers = [stream._train((number + stream.first_worker) % count) for number in range(count)]
        while True:
            yield from map(next, workers)

    def decode(self: ClipStream, sample: Sample, epoch: int, place: torch.Tensor) -> DecodedClip:
        rng = np.random.default_rng(self._seed(epoch, sample.clip))
        indices, fps = take_window(self.sampling.window, sample.clip.frames, 24.0, lambda: None, rng)
        place.zero_()[0, 0, 0, 0] = indices[0]
        return DecodedClip(sample.clip, fps)

    samples = lambda clips, *_: (Sample(clip) for clip in clips)  # noqa: E731
    monkeypatch.setattr(data.loading.stream, "read_samples", samples)
    monkeypatch.setattr(data.loading.samples, "read_samples", samples)
    monkeypatch.setattr(ClipStream, "_decode", decode)
    monkeypatch.setattr(ClipLoader, "_items", items)


def table_of(source: dict[str, Any], shape: tuple[int, int, int]) -> tuple[ClipTable, Window]:
    """The clips of one bucket of a source, and its window."""
    clips = [clip for shard in source["shards"] for clip in shard]
    index = ShardIndex(
        url="",
        names=Strings.of(f"s{i}" for i in range(len(source["shards"]))),
        bytes=np.ones(len(source["shards"]), int),
        sha256=Strings.of("" for _ in source["shards"]),
        ends=np.cumsum([len(shard) for shard in source["shards"]]),
        columns={
            "frames": np.array([frames for frames, _ in clips], "uint32"),
            "height": np.array([height for _, (height, _) in clips], "uint32"),
            "width": np.array([width for _, (_, width) in clips], "uint32"),
            "fps": np.full(len(clips), 24.0),
            "key": Strings.of(map(str, range(len(clips)))),
        },
    )
    shards = ShardList(index.names, [index], [0] * len(source["shards"]), range(len(source["shards"])))
    windows = tuple(Window(t, resolution=(h, w), **source["pace"]) for t, h, w in source["shapes"])
    place = source["shapes"].index(shape)
    selection = Selection(rules=(FitsBest(windows, place),))
    return ClipTable(shards, select(shards, selection).counts, selection), windows[place]


def make_loader(source: dict[str, Any], shape: tuple[int, int, int], rank: int, ranks: int, folder: Path) -> ClipLoader:
    clips, window = table_of(source, shape)
    return ClipLoader(
        name="train",
        clips=clips,
        sampling=Sampling(window, source["batch"], source["buffer"], seed=5),
        faults=FaultPolicy(0.0, folder),
        num_workers=source["workers"],
        rank=rank,
        world_size=ranks,
    )


def buckets_of(sources: list[dict[str, Any]]) -> dict[str, tuple[dict[str, Any], tuple[int, int, int]]]:
    """Every bucket that has clips, by its name."""
    buckets = {f"{i}_{j}": (s, shape) for i, s in enumerate(sources) for j, shape in enumerate(s["shapes"])}
    return {name: bucket for name, bucket in buckets.items() if len(table_of(*bucket)[0])}


def make_mixture(sources: list[dict[str, Any]], rank: int, ranks: int, folder: Path) -> MixedLoader:
    buckets = buckets_of(sources)
    loaders = {name: make_loader(*bucket, rank, ranks, folder) for name, bucket in buckets.items()}
    return MixedLoader(loaders, {name: source["weight"] for name, (source, _) in buckets.items()}, seed=5)


def endless(loader: MixedLoader | ClipLoader) -> Iterator[Batch]:
    while True:
        yield from loader


def told(batch: Batch) -> tuple[Any, ...]:
    starts = batch["frames"][:, 0, 0, 0, 0].tolist()
    return batch["source"], (batch["keys"], batch["fps"], starts), tuple(batch["frames"].shape)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sources=SOURCES, ranks=st.integers(1, 2), stop=st.integers(0, 24))
def test_streams_are_what_they_are_alone_and_go_on_exactly(
    undecoded: None, sources: list[dict[str, Any]], ranks: int, stop: int, tmp_path: Path
) -> None:
    """Each clip once in an epoch, equal parts: what `test_layouts.py` shows of a stream alone."""
    buckets, of_ranks = buckets_of(sources), []
    if not buckets:
        return
    for rank in range(ranks):
        batches = [told(batch) for batch in islice(endless(make_mixture(sources, rank, ranks, tmp_path)), 24)]
        for name, bucket in buckets.items():
            given_ = [clips for stream, clips, _ in batches if stream == name]
            alone = endless(make_loader(*bucket, rank, ranks, tmp_path))
            assert given_ == [told({**batch, "source": name})[1] for batch in islice(alone, len(given_))]
        interrupted = make_mixture(sources, rank, ranks, tmp_path)
        list(islice(endless(interrupted), stop))
        state = interrupted.state_dict()
        for stream in state["streams"].values():
            stream["ranks"] = stream["ranks"] * ranks  # this one's, in the place of each
        resumed = make_mixture(sources, rank, ranks, tmp_path)
        resumed.load_state_dict(state)
        assert [told(batch) for batch in islice(endless(resumed), 24 - stop)] == batches[stop:]
        of_ranks.append([(name, shape) for name, _, shape in batches])
    assert of_ranks[0] == of_ranks[-1]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(source=SOURCES.map(lambda sources: sources[0]), ranks=st.integers(1, 2))
def test_an_epoch_of_all_buckets_takes_each_clip_that_fits_once(
    undecoded: None, source: dict[str, Any], ranks: int, tmp_path: Path
) -> None:
    taken: Counter[str] = Counter()
    for bucket in buckets_of([source | {"batch": 1}]).values():
        of_bucket: Counter[str] = Counter()
        for rank in range(ranks):
            stream = make_loader(*bucket, rank, ranks, tmp_path)._stream()
            for worker in range(stream.layout.num_workers):
                items = takewhile(lambda item: item.position[0] == 0, stream._train(worker))
                of_bucket.update(key for item in items for key in item.keys)
        assert set(of_bucket.values()) == {stream.rounds}  # once, except where there are fewer clips than readers
        taken.update(of_bucket.keys())
    clips = [frames for shard in source["shards"] for frames, _ in shard]
    shortest = min(frames for frames, _, _ in source["shapes"])
    assert taken == Counter(str(number) for number, frames in enumerate(clips) if frames >= shortest)


def test_streams_are_drawn_by_their_weights_and_without_a_rhythm() -> None:
    drawn = np.array([draw_stream([3, 1], seed=0, batch=n) for n in range(4000)])
    assert 930 < drawn.sum() < 1070  # 1000 +- 2.5 standard deviations of 27
    after = drawn[1:][drawn[:-1] == 1]
    assert 0.2 < after.mean() < 0.3  # a quarter, +- 3.6 standard deviations: independent of the batch before
    assert drawn.tolist() != [draw_stream([3, 1], seed=1, batch=n) for n in range(4000)]


def test_the_first_batches_are_one_of_each_stream_and_the_largest_is_first(undecoded: None, tmp_path: Path) -> None:
    sources = [PLAIN, PLAIN | {"batch": 4, "weight": 0.001}, PLAIN | {"shapes": [(9, 8, 8)]}]
    mixture = make_mixture(sources, 0, 1, tmp_path)
    assert [batch["source"] for batch in islice(mixture, 3)] == [
        "1_0",
        "2_0",
        "0_0",
    ]  # 32, 16 and 8 latent frames' pixels
    assert len(mixture) == 4 + 1 + 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weight": 2.0}, "data.sources was 0_0 1, 1_0 1 and is 0_0 2, 1_0 1"),
        ({"batch": 2}, "data.batch_size was 1 and is 2"),
        ({"pace": {"frame_stride": (1, 2)}, "shapes": [(2, 8, 8)]}, r"data.frame_stride was None and is \[1, 2\]"),
        ({"pace": PACES[2], "shapes": [(2, 8, 8)]}, r"data.fps was None and is \[24.0, 12.0\]"),
        ({"shapes": [(2, 8, 8)]}, "data.buckets was 1x8x8, of which this is 1x8x8 and is 2x8x8"),
    ],
)
def test_another_mixture_is_refused(undecoded: None, change: dict[str, Any], named: str, tmp_path: Path) -> None:
    state = make_mixture([PLAIN, PLAIN], 0, 1, tmp_path).state_dict()
    alone = make_loader(PLAIN, (1, 8, 8), 0, 1, tmp_path)
    with pytest.raises(UserError, match=named):
        make_mixture([PLAIN | change, PLAIN], 0, 1, tmp_path).load_state_dict(state)
    with pytest.raises(UserError, match=r"data\.sources was 0_0 1, 1_0 1 and is None"):
        alone.load_state_dict(state)
    with pytest.raises(UserError, match=r"data\.sources was None and is 0_0 1, 1_0 1"):
        make_mixture([PLAIN, PLAIN], 0, 1, tmp_path).load_state_dict(alone.state_dict())


def test_workers_are_divided_by_the_frames_that_they_have_to_decode() -> None:
    sources = {"video": {"weight": 3}, "images": {"num_frames": 1, "batch_size": 16}, "rare": {"weight": 0.01}}
    streams = make_streams(plain_stream(16, 64, 1), sources)
    weights = weigh(streams, [9, 9, 9])
    assert divide_workers(0, streams, weights) == [0, 0, 0]
    assert divide_workers(2, streams, weights) == [1, 1, 1]
    assert divide_workers(9, streams, weights) == [6, 2, 1]  # 48 to 16 frames
    assert divide_workers(2, [], []) == []  # of a split that is not set


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
