"""The index of version 2: the same clips, order and bytes as by version 1, read lazily; what lies in it is refused."""

import json
import pickle
import weakref
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import data.shards.index_writer
from data.datamodule import ClipDataModule
from data.ingest.verification import verify
from data.processes.pool import Engine
from data.sampling.table import ClipTable
from data.shards.columns import Strings, TableWriter, map_column
from data.shards.index import find_shards, read_index
from data.shards.index_writer import write_index
from data.shards.writer import ShardWriter
from data.storage.remote import Access
from tae.runtime.errors import UserError
from tests.references.order import list_hash

Make = Callable[..., ClipDataModule]


def of(folder: Path) -> dict[str, Any]:
    return {"shards": dict.fromkeys(("train", "val", "test"), f"{folder}/shard-*.tar")}


def test_a_table_gives_the_batches_that_a_list_gives(make_module: Make, shards: Path, table: Path) -> None:
    assert json.loads((table / "index.json").read_text())["version"] == 2
    for settings in ({}, {"num_workers": 2}, {"interleave": 3}, {"short_clip": "repeat_last"}):
        one, two = (make_module(**of(folder), **settings).train_dataloader() for folder in (shards, table))
        for ours, theirs in zip(one, two, strict=True):
            assert ours["keys"] == theirs["keys"]
            assert torch.equal(ours["frames"], theirs["frames"])
    tests = [[*make_module(**of(folder)).test_dataloader()] for folder in (shards, table)]
    assert [batch["keys"] for batch in tests[0]] == [batch["keys"] for batch in tests[1]]


def test_a_position_saved_with_a_list_is_resumed_with_a_table(make_module: Make, shards: Path, table: Path) -> None:
    """And one that names every clip, as version 0.2 saved it."""
    loader = make_module(batch_size=1).train_dataloader()
    expected = [batch["keys"] for batch in loader][5:]
    loader = make_module(batch_size=1).train_dataloader()
    list(islice(loader, 5))
    state = json.loads(json.dumps(loader.state_dict()))
    older = json.loads(json.dumps(state))
    del older["layout"]["list of shards"]
    older["layout"]["list of clips"] = list_hash(list(loader.clips))
    for saved in (state, older):
        for folder in (shards, table):
            resumed = make_module(batch_size=1, **of(folder)).train_dataloader()
            resumed.load_state_dict(saved)
            assert [batch["keys"] for batch in islice(resumed, len(expected))] == expected
    older["layout"]["list of clips"] = list_hash(list(loader.clips)[:-1])
    with pytest.raises(UserError, match="list of clips was"):
        make_module(batch_size=1).train_dataloader().load_state_dict(older)


def test_a_worker_is_sent_paths_and_not_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.shards.index_writer, "MAX_LISTED", 3)
    sizes = []
    for samples in (10, 10_000):
        folder = tmp_path / str(samples)
        folder.mkdir()
        (folder / "a.tar").write_bytes(b"x")
        entry = {"name": "a.tar", "samples": samples, "bytes": 1, "frames": {f"key{i}": 9 for i in range(samples)}}
        write_index(folder, {}, [entry])
        shards = find_shards(f"{folder}/*.tar", "x")
        sizes.append(len(pickle.dumps(ClipTable(shards, shards.samples()))))
    assert max(sizes) - min(sizes) < 100
    assert max(sizes) < 5_000


def test_the_state_of_a_loader_is_small_whatever_was_skipped(make_module: Make) -> None:
    loader = make_module(num_workers=8).train_dataloader()
    loader._positions = [(10**6, 10**8)] * 8
    loader._count.add(0, [{"key": "a", "shard": f"s3://bucket/some/folder/{i}.tar", "reason": ""} for i in range(3000)])
    loader._poisoned = {10**8 - i: "decoding it ended a worker process: killed by SIGSEGV" for i in range(1000)}
    (rank,) = loader.state_dict()["ranks"]
    assert len(pickle.dumps(rank)) < 10_000


def test_the_layout_is_hashed_once(make_module: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make_module().train_dataloader()
    first = loader.state_dict()
    monkeypatch.setattr("data.loading.loader._hash", lambda lines: pytest.fail("hashed again"))
    assert loader.state_dict() == first


def test_a_writer_of_many_samples_writes_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.shards.index_writer, "MAX_LISTED", 3)
    facts = {"num_frames": 9, "fps": 29.97, "width": 4, "height": 2}
    with ShardWriter(tmp_path, "train", {"seed": 0}, shard_bytes=4_000) as writer:
        for number in range(7):
            writer.write(f"k{number}", "mp4", bytes([number]) * 2_000, facts)
    index = read_index(str(tmp_path / "index.json"), "x", Access())
    entries = [index.entry(place) for place in range(len(index.names))]
    assert [key for entry in entries for key in entry["frames"]] == [f"k{number}" for number in range(7)]
    assert {fps for entry in entries for fps in entry["fps"]} == {29.97}
    assert len(entries) > 1
    assert all(entry["offsets"][0] == 0 < entry["offsets"][-1] for entry in entries[:-1])
    assert not list(tmp_path.rglob(".*"))


def test_a_table_is_verified(shards: Path, table: Path) -> None:
    assert not [problem for problem in verify(table, False, 60, Engine("local", 1)) if "sha256" not in problem]
    index = json.loads((table / "index.json").read_text())
    index["shards"][0]["sha256"] = "0" * 64
    (table / "index.json").write_text(json.dumps(index))
    assert any("its sha256 is not the one" in problem for problem in verify(table, False, 60, Engine("local", 1)))


def shorten(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


def float_counts(path: Path) -> None:
    np.save(path, np.load(path).astype(np.float32))


def objects(path: Path) -> None:
    np.save(path, np.array([print] * 13, dtype=object), allow_pickle=True)


def no_frames(path: Path) -> None:
    np.save(path, np.zeros_like(np.load(path)))


@pytest.mark.parametrize(
    ("change", "file", "message"),
    [
        (shorten, "frames.npy", r"frames\.npy holds uint32 \(12,\), not 13 of uint32"),
        (float_counts, "frames.npy", r"holds float32 \(13,\), not 13 of uint32"),
        (objects, "frames.npy", "Object arrays cannot be loaded|[Pp]ython objects in dtype"),
        (no_frames, "frames.npy", r"has frame counts that are not from 1 to"),
        (Path.unlink, "key.npy", "cannot be read"),
        (shorten, "key.npy", "its strings end elsewhere"),
    ],
)
def test_a_table_that_lies_is_refused_before_training(
    make_module: Make, table: Path, change: Callable[[Path], None], file: str, message: str
) -> None:
    change(table / "index" / file)
    with pytest.raises(UserError, match=message):
        make_module(**of(table)).setup("fit")


@pytest.mark.parametrize(
    "change",
    [
        {"columns": {"frames": "uint32"}},
        {"columns": {"frames": "uint32", "key": "string", "../x": "uint32"}},
        {"columns": {"frames": "object", "key": "string"}},
        {"files": {}},
    ],
)
def test_an_index_that_names_no_table_is_refused(table: Path, change: dict[str, Any]) -> None:
    index = json.loads((table / "index.json").read_text())
    (table / "index.json").write_text(json.dumps(index | change))
    with pytest.raises(UserError, match="is not an index of shards"):
        find_shards(f"{table}/*.tar", "x")


def test_what_a_table_cannot_know_costs_its_clips_alone(make_module: Make, table: Path) -> None:
    """Offsets into the middle of members, keys that repeat: found when they are read, skipped and counted."""
    offsets = np.load(table / "index" / "offset.npy")
    offsets[:5] = 700
    np.save(table / "index" / "offset.npy", offsets)
    ends = np.load(table / "index" / "key.ends.npy")
    keys = np.load(table / "index" / "key.npy")
    keys[ends[5] : ends[6]] = keys[ends[4] + 0 : ends[5]]  # the second shard's first key again
    np.save(table / "index" / "key.npy", keys)
    loader = make_module(batch_size=1, **of(table)).test_dataloader()
    names = [batch["keys"][0] for batch in loader]
    assert len(names) + len(loader.skipped) == 12
    assert {"clip1_0", "clip1_2", *(f"clip3_{i}" for i in range(4))} <= set(names)
    assert any("not in the shard" in fault["reason"] for fault in loader.skipped)


@pytest.mark.parametrize("texts", [[], [""], ["a", "", "ü/b.c", "日本"]])
def test_strings_of_any_kind_are_what_was_written(tmp_path: Path, texts: list[str]) -> None:
    writer = TableWriter(tmp_path, {"text": "string", "count": "uint32"})
    for text in texts:
        writer.append({"text": [text], "count": [len(text)]})
    files = writer.close()
    paths = {name: tmp_path / name for name in files}
    column = map_column("text", "string", len(texts), paths)
    assert isinstance(column, Strings)
    assert list(column) == texts == column[:]
    assert pickle.loads(pickle.dumps(column))[:] == texts


class Entries:
    """A hundred shards, which know how many of them are in memory at most."""

    most = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        given: list[weakref.ref[Any]] = []
        for number in range(100):
            scores = np.ones(1)
            given.append(weakref.ref(scores))
            self.most = max(self.most, sum(one() is not None for one in given))
            entry = {"name": f"{number}.tar", "samples": 1, "bytes": 1, "sha256": "", "frames": {str(number): 8}}
            yield entry | {"columns": {"score": scores}}


def test_a_table_of_many_shards_holds_few_of_them_in_memory(tmp_path: Path) -> None:
    """Each may have ten thousand samples: the one that is written, its next one, and nothing that grows."""
    entries = Entries()
    write_index(tmp_path, {"split": "train", "recipe": {}}, entries, {"score": "float64"})
    assert entries.most <= 3
