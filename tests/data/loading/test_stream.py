"""The stream's promises: each clip once an epoch, exact resume, nothing replaced, no hang."""

import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import data.loading.stream
from data.datamodule import ClipDataModule
from data.drawing import draw_clip, encode_mp4
from data.loading.loader import BATCHES_AHEAD, ClipLoader
from data.sampling.order import EpochOrder, Layout, shuffled
from data.sampling.types import Clip
from data.shards.format import Shard
from tae.runtime.errors import UserError

Make = Callable[..., ClipDataModule]
CLIPS = 12


def keys_of(batches: Any) -> list[str]:
    return [key for batch in batches for key in batch["keys"]]


def numbers_of(order: EpochOrder) -> list[int]:
    return order.at(np.arange(len(order))).numbers.tolist()


def loader_of_rank(module: ClipDataModule, rank: int, world_size: int, split: str = "train") -> ClipLoader:
    module._place = lambda: (rank, world_size)  # type: ignore[method-assign]
    return module.train_dataloader() if split == "train" else module.eval_dataloader(split)


@pytest.mark.parametrize("shards", [[1], [7, 1, 3], [2] * 9])
@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 1), (2, 3), (3, 1), (8, 4)])
def test_the_plan_gives_every_clip_once_whatever_the_layout(
    shards: list[int], world_size: int, num_workers: int
) -> None:
    counts = np.array(shards)
    rounds = -(-world_size * num_workers // counts.sum())
    for epoch in (0, 1):
        order = numbers_of(EpochOrder(counts, 5, epoch, rounds))
        parts = [
            Layout(rank, world_size, num_workers).part(len(order), worker)
            for rank in range(world_size)
            for worker in range(num_workers)
        ]
        assert Counter(order[i] for part in parts for i in part) == Counter(list(range(counts.sum())) * rounds)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert min(map(len, parts)) >= 1  # nobody is left with nothing


def test_the_shuffle_buffer_is_seeded_and_loses_nothing() -> None:
    first = list(shuffled(range(100), 10, (1, 2)))
    assert sorted(first) == list(range(100))
    assert first == list(shuffled(range(100), 10, (1, 2)))
    assert first != list(shuffled(range(100), 10, (1, 3)))
    assert np.abs(np.array(first) - np.arange(100)).mean() > 3  # really shuffled


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_has_each_clip_once(make_module: Make, num_workers: int) -> None:
    loader = make_module(num_workers=num_workers).train_dataloader()
    assert len(loader) == CLIPS // 2
    first, second = keys_of(loader), keys_of(loader)
    assert len(set(first)) == len(set(second)) == CLIPS
    assert first != second


def test_ranks_share_an_epoch_and_make_equally_many_steps(make_module: Make) -> None:
    loaders = [loader_of_rank(make_module(batch_size=1), rank, 3) for rank in range(3)]
    parts = [keys_of(loader) for loader in loaders]
    assert [len(part) for part in parts] == [4, 4, 4]
    assert len({key for part in parts for key in part}) == CLIPS


def test_more_ranks_than_clips_still_gives_every_rank_its_steps(make_module: Make) -> None:
    loaders = [loader_of_rank(make_module(batch_size=2), rank, 20) for rank in range(20)]
    assert {len(keys_of(loader)) for loader in loaders} == {2}


def test_copies_of_a_clip_are_different_windows(
    make_module: Make, write_shard: Callable[..., None], tmp_path: Path
) -> None:
    """Two clips, eight ranks: a step must not see the same window four times."""
    rng = np.random.default_rng(0)
    write_shard(tmp_path / "s", {f"clip{i}": (encode_mp4(draw_clip(rng, 48, 32, 44)), 48) for i in range(2)})
    shards = {"train": str(tmp_path / "s" / "shard-*.tar")}
    loaders = [loader_of_rank(make_module(shards=shards, num_frames=4, batch_size=1), rank, 8) for rank in range(8)]
    batches = [next(iter(loader)) for loader in loaders]
    assert Counter(key for batch in batches for key in batch["keys"]) == {"clip0": 4, "clip1": 4}
    assert len({batch["frames"].numpy().tobytes() for batch in batches}) == 8


def test_interleaved_shards_mix_what_stands_together(tmp_path: Path) -> None:
    """Shards in the order of their classes: a part of the row holds a few, of the interleaved row all of them."""
    for interleave, fewest in ((1, 1), (8, 8), (16, 16), (1000, 16)):
        order = numbers_of(EpochOrder(np.full(16, 50), 0, 0, interleave=interleave))
        assert sorted(order) == list(range(800))
        classes = [{number // 50 for number in order[i : i + 100]} for i in range(0, len(order), 100)]
        assert min(map(len, classes)) >= fewest


def test_interleaved_shards_are_read_in_one_pass_each(make_module: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same clips, same windows, and each resumed position exact; a shard is opened once for each lane that begins in it."""
    opened: list[str] = []
    open_samples = data.loading.samples.open_samples
    monkeypatch.setattr(
        data.loading.samples,
        "open_samples",
        lambda shard, *rest: opened.append(shard.url) or open_samples(shard, *rest),
    )
    whole = make_module(batch_size=1, interleave=3).train_dataloader()
    expected = list(whole)
    assert sorted(keys_of(expected)) == sorted(clip.key for clip in whole.clips)
    assert len(opened) <= 4 + 3  # shards and lanes
    loader = make_module(batch_size=1, interleave=3).train_dataloader()
    list(islice(loader, 5))
    resumed = make_module(batch_size=1, interleave=3).train_dataloader()
    resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    for ours, theirs in zip(islice(resumed, 7), expected[5:], strict=True):
        assert ours["keys"] == theirs["keys"]
        assert torch.equal(ours["frames"], theirs["frames"])
    with pytest.raises(UserError, match=r"data\.interleave was 3 and is None"):
        make_module(batch_size=1).train_dataloader().load_state_dict(loader.state_dict())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_has_the_labels_of_its_clips(make_module: Make, num_workers: int) -> None:
    for batch in make_module(num_workers=num_workers).eval_dataloader("test"):
        assert batch["labels"] == [f"of {key}" for key in batch["keys"]]


@pytest.mark.parametrize("change", [{"num_frames": 12}, {"resolution": 24}, {"augmentation": {"zoom": 2.0}}])
def test_resuming_says_what_differs_beside_the_order(
    make_module: Make, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    state = make_module().train_dataloader().state_dict()
    make_module().train_dataloader().load_state_dict(state)
    assert not warnings_in(caplog)
    make_module(**change).train_dataloader().load_state_dict(state)
    assert f"data.{next(iter(change))} was" in warnings_in(caplog)[0]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_resuming_says_that_the_shards_are_others(
    make_module: Make, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = make_module().train_dataloader().state_dict()
    other = Path(shutil.copytree(shards, tmp_path / "other"))
    index = json.loads((other / "index.json").read_text())
    index["shards"][0]["sha256"] = "0" * 64
    (other / "index.json").write_text(json.dumps(index))
    make_module(shards={"train": f"{other}/*.tar"}).train_dataloader().load_state_dict(state)
    assert "content of the shards was" in warnings_in(caplog)[0]


@pytest.mark.parametrize("world_size", [1, 2, 5, 20])
@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_evaluation_takes_each_clip_once(make_module: Make, world_size: int, batch_size: int) -> None:
    loaders = [
        loader_of_rank(make_module(batch_size=batch_size), rank, world_size, "test") for rank in range(world_size)
    ]
    batches = [list(loader) for loader in loaders]
    assert sorted(key for part in batches for key in keys_of(part)) == sorted(clip.key for clip in loaders[0].clips)
    assert all(len(part) == len(loader) or not part for part, loader in zip(batches, loaders, strict=True))


def test_evaluation_can_be_repeated_and_narrowed(make_module: Make) -> None:
    module = make_module()
    loader = module.test_dataloader()
    first, second = list(loader), list(loader)
    assert all(torch.equal(a["frames"], b["frames"]) for a, b in zip(first, second, strict=True))
    assert keys_of(module.eval_dataloader("test", only=["clip3_2", "clip0_1"])) == ["clip0_1", "clip3_2"]
    with pytest.raises(UserError, match="no usable clip clip2_0"):  # the short one
        module.eval_dataloader("test", only=["clip2_0"])


def test_a_batch_is_what_the_contract_says(make_module: Make) -> None:
    batch = next(iter(make_module(frame_stride=2, num_frames=8).train_dataloader()))
    assert set(batch) == {"frames", "keys", "fps", "labels"}
    assert batch["frames"].shape == (2, 8, 16, 16, 3)
    assert batch["frames"].dtype == torch.uint8
    assert batch["fps"] == [12.0, 12.0]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batches_stay_what_they_are_while_a_worker_writes_the_next_ones(make_module: Make, batch_size: int) -> None:
    """Workers write into the same shared memory again and again."""
    kept = list(make_module(num_workers=1, batch_size=batch_size).test_dataloader())
    alone = list(make_module(num_workers=0, batch_size=batch_size).test_dataloader())
    assert len(kept) > BATCHES_AHEAD + 1
    for batch, expected in zip(kept, alone, strict=True):
        assert batch["keys"] == expected["keys"]
        assert torch.equal(batch["frames"], expected["frames"])


def test_windows_and_crops_do_not_depend_on_the_layout(make_module: Make) -> None:
    def frames_by_key(loaders: list[ClipLoader]) -> dict[str, torch.Tensor]:
        batches = [batch for loader in loaders for batch in loader]
        return {key: frames for batch in batches for key, frames in zip(batch["keys"], batch["frames"], strict=True)}

    alone = frames_by_key([make_module(batch_size=1).train_dataloader()])
    shared = frames_by_key([loader_of_rank(make_module(batch_size=1), rank, 2) for rank in range(2)])
    assert alone.keys() == shared.keys()
    assert all(torch.equal(alone[key], shared[key]) for key in alone)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_goes_on_exactly_where_it_stopped(make_module: Make, num_workers: int) -> None:
    """Saved twice, in the middle of two epochs, as JSON (nothing but plain values): the same batches follow."""
    augmentation = {"zoom": 2.0, "flips": ["time", "width"], "colour": 0.5}

    def fresh() -> ClipLoader:
        return make_module(num_workers=num_workers, batch_size=1, augmentation=augmentation).train_dataloader()

    whole = fresh()
    expected = [batch for _ in range(3) for batch in whole]
    loader, got = fresh(), []
    for stop in (5, 6):
        got += list(islice(loader, stop))
        state = json.loads(json.dumps(loader.state_dict()))
        loader = fresh()
        loader.load_state_dict(state)
    got += list(loader)
    assert len(got) == 23
    for ours, theirs in zip(got, expected, strict=False):
        assert ours["keys"] == theirs["keys"]
        assert torch.equal(ours["frames"], theirs["frames"])


def test_augmentation_is_of_training_alone(make_module: Make) -> None:
    plain, changed = make_module(batch_size=1), make_module(batch_size=1, augmentation={"colour": 0.9})
    for split, same in (("test", True), ("train", False)):
        pairs = zip(*(list(getattr(module, f"{split}_dataloader")()) for module in (plain, changed)), strict=True)
        assert {torch.equal(a["frames"], b["frames"]) for a, b in pairs} == {same}


def test_evaluation_takes_the_place_that_is_asked_for(make_module: Make) -> None:
    """Files of 20 and 24 frames: 16 of them begin at frame 2 or 4, or at frame 0."""
    everything = {"num_frames": 20, "short_clip": "repeat_last", "eval_window": "first"}
    modules = (make_module(batch_size=1, **it) for it in ({}, {"eval_window": "first"}, everything))
    for central, first, all_frames in zip(*(module.test_dataloader() for module in modules), strict=False):
        if central["keys"] == all_frames["keys"] and not central["keys"][0].startswith("clip1"):
            assert torch.equal(first["frames"], all_frames["frames"][:, :16])
            assert torch.equal(central["frames"], all_frames["frames"][:, 2:18])


def test_scaling_is_the_one_that_is_asked_for(make_module: Make) -> None:
    modules = (make_module(batch_size=1, **it) for it in ({}, {"interpolation": "bilinear"}))
    assert not torch.equal(*(next(iter(module.test_dataloader()))["frames"] for module in modules))


def test_some_augmented_clips_run_backwards(make_module: Make) -> None:
    plain, turned = (make_module(batch_size=2, augmentation=change) for change in ({}, {"flips": ["time"]}))
    directions = set()
    for before, after in zip(plain.train_dataloader(), turned.train_dataloader(), strict=True):
        assert before["keys"] == after["keys"]
        for clip, found in zip(before["frames"], after["frames"], strict=True):
            assert torch.equal(found, clip) or torch.equal(found, clip.flip(0))
            directions.add(torch.equal(found, clip))
    assert directions == {True, False}


@pytest.mark.parametrize("wrong", [{"zoom": 0.5}, {"zoom": "big"}, {"flips": ["sideways"]}, {"colour": 2}])
def test_augmentation_out_of_range_is_refused(make_module: Make, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(wrong))}="):
        make_module(augmentation=wrong)


def test_reading_ahead_ends_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """An abandoned stream is closed wherever Python collects it; a wait in a thread that is being started never ends."""
    clip = Clip(0, "a", Shard("s", {"a": 9}))
    ahead = data.loading.samples.read_ahead(data.loading.samples.Sample(clip) for _ in range(3))
    next(ahead)
    monkeypatch.setattr(threading.Thread, "join", lambda *_: pytest.fail("waited for a thread"))
    ahead.close()  # type: ignore[attr-defined]


def test_resuming_decodes_nothing_that_was_consumed(make_module: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make_module(batch_size=1, shuffle_buffer=3).train_dataloader()
    taken = keys_of(islice(loader, 7))
    state = loader.state_dict()
    read: list[str] = []
    parse = data.loading.samples._parse
    monkeypatch.setattr(data.loading.samples, "_parse", lambda clip, *rest: read.append(clip.key) or parse(clip, *rest))
    resumed = make_module(batch_size=1, shuffle_buffer=3).train_dataloader()
    resumed.load_state_dict(state)
    rest = keys_of(islice(resumed, 5))
    assert sorted(taken + rest) == sorted(clip.key for clip in resumed.clips)
    assert not set(read) & set(taken)


@pytest.mark.parametrize("change", [{"num_workers": 2}, {"batch_size": 3}, {"seed": 1}, {"num_frames": 22}])
def test_another_layout_is_refused(make_module: Make, change: dict[str, int]) -> None:
    state = make_module().train_dataloader().state_dict()
    with pytest.raises(UserError, match="cannot be resumed"):
        make_module(**change).train_dataloader().load_state_dict(state)


@pytest.fixture
def broken_shards(write_shard: Callable[..., None], tmp_path: Path) -> Callable[[int, int], str]:
    """Make a shard with so many good and so many broken clips; gives its pattern."""

    def make(good: int, broken: int) -> str:
        video = encode_mp4(draw_clip(np.random.default_rng(0), 16, 32, 44))
        names = [(f"good{i}", video) for i in range(good)] + [(f"broken{i}", b"nothing") for i in range(broken)]
        write_shard(tmp_path / "s", {name: (content, 16) for name, content in names})
        return str(tmp_path / "s" / "shard-*.tar")

    return make


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_clip_is_skipped_named_and_never_replaced(
    make_module: Make, broken_shards: Callable[[int, int], str], tmp_path: Path, num_workers: int
) -> None:
    pattern = broken_shards(6, 2)
    module = make_module(shards={"train": pattern, "test": pattern}, batch_size=1, num_workers=num_workers)
    train, test = module.train_dataloader(), module.test_dataloader()
    # Exactly one data epoch with one worker: 6 of 8 steps; two more come from the next epoch.
    keys = keys_of(train)
    assert len(keys) == len(train) == 8
    assert set(keys) == {f"good{i}" for i in range(6)}
    assert sorted(keys_of(test)) == [f"good{i}" for i in range(6)]
    assert {fault["key"] for fault in test.skipped} == {"broken0", "broken1"}
    lines = [json.loads(line) for line in (tmp_path / "output" / "skipped.jsonl").read_text().splitlines()]
    assert {(line["split"], line["key"]) for line in lines} >= {("train", "broken0"), ("test", "broken1")}
    assert all("cannot be opened" in line["reason"] for line in lines)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_without_any_clip_stops_training(
    make_module: Make, broken_shards: Callable[[int, int], str], tmp_path: Path, num_workers: int
) -> None:
    pattern = broken_shards(0, 3)
    loader = make_module(shards={"train": pattern}, num_workers=num_workers).train_dataloader()
    with pytest.raises(UserError, match=r"No clip of train could be decoded in a whole epoch .*skipped\.jsonl"):
        list(loader)


def test_a_part_without_any_clip_does_not_hang_the_others(
    make_module: Make, broken_shards: Callable[[int, int], str], tmp_path: Path
) -> None:
    pattern = broken_shards(3, 3)  # two workers: one reads the good, one the broken ones
    loader = make_module(shards={"train": pattern}, num_workers=2, batch_size=1).train_dataloader()
    assert set(keys_of(loader)) == {"good0", "good1", "good2"}


def test_too_many_broken_clips_stop_training(
    make_module: Make, broken_shards: Callable[[int, int], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.loading.faults.JUDGED_FROM", 20)
    pattern = broken_shards(9, 1)
    few = make_module(shards={"train": pattern}, batch_size=1, max_skipped=0.2).train_dataloader()
    assert len(keys_of([*few, *few, *few])) == 30
    many = make_module(shards={"train": pattern}, batch_size=1, max_skipped=0.05).train_dataloader()
    with pytest.raises(UserError, match=r"clips of train could not be decoded .* allows 5\.0%"):
        keys_of([*many, *many, *many])


def test_a_sample_missing_from_its_shard_and_a_cut_shard_are_skipped(
    make_module: Make, broken_shards: Callable[[int, int], str], tmp_path: Path
) -> None:
    pattern = broken_shards(4, 0)
    index = tmp_path / "s" / "index.json"
    entry = json.loads(index.read_text())
    entry["shards"][0]["frames"]["ghost"] = 16
    del entry["shards"][0]["offsets"], entry["shards"][0]["fps"]
    entry["shards"][0]["samples"] += 1
    index.write_text(json.dumps(entry))
    loader = make_module(shards={"test": pattern}).test_dataloader()
    assert len(keys_of(loader)) == 4
    assert [(fault["key"], fault["reason"][:16]) for fault in loader.skipped] == [("ghost", "not in the shard")]

    shard = tmp_path / "s" / "shard-000000.tar"
    module = make_module(shards={"test": pattern})
    module.setup("test")
    shard.write_bytes(shard.read_bytes()[:5000])
    loader = module.test_dataloader()
    kept = keys_of(loader)
    assert len(kept) + len(loader.skipped) == 5
    assert any("cannot be read" in fault["reason"] for fault in loader.skipped)
