"""Training on files where they lie: found, looked at once, and read through manifests as shards are."""

import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.datamodule import ClipDataModule
from data.drawing import draw_clip, encode_mp4
from data.ingest.files import PROBED, index_files
from data.ingest.indexing import index_shards
from data.loading.stream import times_of_part
from data.processes.pool import Engine
from data.shards.format import Shard
from data.shards.manifest import index_folder, manifest_line
from data.shards.reader import open_samples
from data.storage.remote import Access
from tae.runtime.errors import UserError

ONE = Engine(workers=1)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A class folder with three videos, a file that is broken and one that is no video."""
    folder, rng = tmp_path / "videos" / "waving", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name in "abc":
        (folder / f"{name}.mp4").write_bytes(encode_mp4(draw_clip(rng, 20, 32, 42)))
    (folder / "broken.mp4").write_bytes(b"not a video")
    (folder / "notes.txt").write_text("a.mp4")
    return folder.parent


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def keys_of(manifest: Path) -> list[str]:
    return [json.loads(line)["key"] for line in manifest.read_text().splitlines()]


def index(source: Path, folder: Path, split: str | None = None) -> list[str]:
    return keys_of(index_files(source, folder, split, 60.0, ONE).folder / "files-000000.jsonl")


def test_what_is_found_and_what_is_left_out(videos: Path, tmp_path: Path) -> None:
    assert index(videos, tmp_path / "index") == ["a", "b", "c"]
    rejected = (tmp_path / "index" / "rejected.csv").read_text()
    assert "waving/broken.mp4" in rejected
    assert "waving/notes.txt" in rejected
    assert len(rejected.splitlines()) == 3


def test_training_on_files_is_training_on_their_shards(
    videos: Path, tmp_path: Path, make_module: Callable[..., ClipDataModule], write_shard: Callable
) -> None:
    names = [path.stem for path in sorted((videos / "waving").glob("?.mp4"))]
    write_shard(tmp_path / "shards", {n: ((videos / "waving" / f"{n}.mp4").read_bytes(), 20) for n in names})
    of_files = make_module(shards={}, files={"train": str(videos), "test": str(videos)})
    of_shards = make_module(shards={"train": str(tmp_path / "shards/*.tar")})
    of_files.setup("fit")
    of_shards.setup("fit")
    loaders = [module.train_dataloader() for module in (of_files, of_shards)]
    for _ in range(4):  # several epochs, a batch each
        theirs, ours = (next(iter(loader)) for loader in loaders)
        assert theirs["keys"] == ours["keys"]
        assert torch.equal(theirs["frames"], ours["frames"])
    assert set(theirs["labels"]) == {"waving"}
    of_files.setup("test")
    (batch, *_) = of_files.test_dataloader()
    assert batch["keys"] == ["a", "b"]
    assert of_files.describe("test")["shards"] == [str(videos)]


def test_a_file_is_looked_at_once(videos: Path, tmp_path: Path) -> None:
    """For all splits, unless it has changed, or its line was cut off when the machine stopped."""
    folder, journal = tmp_path / "files" / "train", tmp_path / "files" / PROBED
    index(videos, folder)
    lines = journal.read_text().splitlines()
    assert len(lines) == 4
    index(videos, folder)
    index(videos, tmp_path / "files" / "test")
    assert journal.read_text().splitlines() == lines
    journal.write_text("\n".join(lines)[:-10])
    os.utime(videos / "waving" / "a.mp4", (1, 1))
    assert index(videos, folder) == ["a", "b", "c"]
    again = journal.read_text().splitlines()
    assert again[:3] == lines[:3]
    assert len(again) == 5  # and the last one, and the changed one


def test_a_training_goes_on_when_its_source_has_changed_and_another_has_begun(
    videos: Path, tmp_path: Path, make_module: Callable[..., ClipDataModule]
) -> None:
    table = tmp_path / "list.csv"
    for paths in ("abc", "ca"):
        table.write_text("path\n" + "".join(f"videos/waving/{name}.mp4\n" for name in paths))
        module = make_module(shards={}, files={"train": str(table)}, batch_size=1)
        module.setup("fit")
        if paths == "abc":
            loader = module.train_dataloader()
            first = [batch["keys"] for batch in loader]
        assert len(module.clips["train"]) == len(paths)
    assert sorted(key for _ in range(3) for batch in loader for key in batch["keys"]) == sorted("abc" * 3)
    assert not loader.skipped
    table.write_text("path\n" + "".join(f"videos/waving/{name}.mp4\n" for name in "abc"))
    again = make_module(shards={}, files={"train": str(table)}, batch_size=1)
    again.setup("fit")
    assert [batch["keys"] for batch in again.train_dataloader()] == first


def test_manifests_are_written_once(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other processes of a training, and later trainings, find them."""
    first = index_files(videos, tmp_path / "files" / "train", None, 60.0, ONE)
    monkeypatch.setattr("data.ingest.files.write_manifests", None)
    monkeypatch.setattr("data.ingest.files.run_isolated", None)
    assert index_files(videos, tmp_path / "files" / "train", None, 60.0, ONE) == first


def test_what_is_left_out_is_said_once(
    videos: Path, tmp_path: Path, make_module: Callable[..., ClipDataModule], caplog: pytest.LogCaptureFixture
) -> None:
    table = tmp_path / "list.csv"
    table.write_text("path\n" + "".join(f"videos/waving/{name}.mp4\n" for name in ("a", "x", "b", "y", "z")))
    buckets = {"short": {"num_frames": 8, "weight": 1}, "long": {"num_frames": 16, "weight": 1}}
    module = make_module(shards={}, files={"train": str(table)}, buckets=buckets, batch_size=1)
    with caplog.at_level(logging.INFO), suppress(UserError):  # one of the buckets may have no clip
        module.setup("fit")
    (said,) = [record.message for record in caplog.records if str(table) in record.message]
    assert "2 clips can be used, 3 entries cannot: 3 x no such file" in said
    assert Path(said.rpartition(": ")[2]).read_text().count("no such file") == 3


def test_an_index_of_shards_is_not_that_of_files(
    videos: Path, tmp_path: Path, make_module: Callable[..., ClipDataModule], shards: Path
) -> None:
    """Neither of a source nor of a split of files beside shards that have one."""
    elsewhere = tmp_path / "elsewhere"
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    index_shards(urls, elsewhere, True, (), Access(), 60, ONE)
    files, given = {"files": str(videos), "num_frames": 8}, {"index": str(elsewhere)}
    module = make_module(sources={"shards": {}, "files": files}, **given)
    module.setup("fit")
    assert {name: len(clips) for name, clips in module.clips.items() if "/" in name} == {
        "train/shards": 12,
        "train/files": 3,
    }
    module = make_module(shards={"test": str(shards / "*.tar")}, files={"train": str(videos)}, num_frames=8, **given)
    module.setup(None)
    assert {name: len(clips) for name, clips in module.clips.items()} == {"train": 3, "test": 13}
    assert "files" in module.describe("train")["split"]
    with pytest.raises(UserError, match=r"sources\.x\.index is one of shards"):
        make_module(sources={"x": files | given})


def test_a_field_that_no_file_has_is_refused(
    videos: Path, tmp_path: Path, make_module: Callable[..., ClipDataModule]
) -> None:
    table = tmp_path / "list.csv"
    table.write_text("path,caption\nvideos/waving/a.mp4,waves\n")
    files = {"shards": {}, "files": {"train": str(table)}}
    make_module(**files, metadata=["caption", "label"]).setup("fit")
    for wrong in ("captoin", "width"):  # the second is in the index alone
        with pytest.raises(UserError, match=rf"metadata=\[{wrong}\]: no file has it. There are: caption, .*label"):
            make_module(**files, metadata=["caption", wrong]).setup("fit")


def test_a_list_gives_each_split_its_files(videos: Path, tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text(
        "path,split,label\nvideos/waving/b.mp4,train,x\nvideos/waving/a.mp4,train,\nvideos/waving/c.mp4,test,\n"
    )
    assert index(table, tmp_path / "train", "train") == ["b", "a"]  # in the list's order
    assert index(table, tmp_path / "test", "test") == ["c"]
    with pytest.raises(UserError, match="no video or image for the split val"):
        index(table, tmp_path / "val", "val")


def test_parts_of_files_are_clips_of_their_own(
    videos: Path, tmp_path: Path, make_module: Callable[..., ClipDataModule]
) -> None:
    """The frames of a part are those of the file from its start on; further columns are metadata, and filtered by."""
    table, rate, first = tmp_path / "list.csv", 24.0, 5
    rows = ["path,start,end,caption,score", f"videos/waving/a.mp4,{first / rate},,late,0.9"]
    rows += [f"videos/waving/a.mp4,0,{4 / rate},early,0.1", "videos/waving/b.mp4,100,,never,1"]
    table.write_text("\n".join(rows))
    chosen: dict[str, Any] = {
        "metadata": ["caption"],
        "filter": {"score": [0.5, None]},
        "num_frames": 4,
        "batch_size": 1,
    }
    whole = make_module(shards={}, files={"test": str(videos)}, num_frames=20, batch_size=1)
    whole.setup("test")
    start = first + (20 - first - 4) // 2  # the central window of the part
    expected = next(iter(whole.test_dataloader()))["frames"][:, start : start + 4]
    for fps in (None, rate):  # every frame, and by their times
        part = make_module(shards={}, files={"test": str(table)}, fps=fps, **chosen)
        part.setup("test")
        (batch,) = part.test_dataloader()
        assert batch["keys"] == ["a_part000"]
        assert batch["metadata"] == {"caption": ["late"]}
        assert torch.equal(batch["frames"], expected)
    times = times_of_part(lambda: np.array([0.0, 0.1, 0.5, 0.6]), range(1, 3))  # of a changing rate
    assert times is not None
    assert times.tolist() == [0.1, 0.5]
    rejected = (index_folder(table, "test") / "rejected.csv").read_text()
    assert "nothing of it is in 100 to the end s" in rejected


def test_nothing_usable_is_refused(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    with pytest.raises(UserError, match="names no video or image"):
        index(tmp_path / "videos", tmp_path / "index")
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match=r"None of the 1 files of .* is usable: see .*rejected\.csv"):
        index(tmp_path / "videos", tmp_path / "index")


def test_a_file_that_cannot_be_read_costs_its_own_sample(videos: Path, tmp_path: Path) -> None:
    """Also one that asks for a command to be run, or for more memory than there is."""
    huge = tmp_path / "huge.mp4"
    with huge.open("wb") as file:
        os.truncate(file.fileno(), 100 << 30)
    paths = {
        "gone": "/nowhere/gone.mp4", "huge": str(huge), "command": f"pipe:touch {tmp_path}/run.mp4", "text": "/etc/passwd",
        "scheme": "file:///etc/a.mp4", "good": str(videos / "waving/a.mp4"),
    }  # fmt: skip
    manifest = tmp_path / "files-000000.jsonl"
    manifest.write_bytes(b"".join(manifest_line(key, path, {}) for key, path in paths.items()))
    with open_samples(Shard(str(manifest), {}), None) as samples:
        found = {sample["__key__"]: sample for sample in samples}
    assert found["good"]["mp4"] == (videos / "waving/a.mp4").read_bytes()
    faults = {key: sample["__fault__"] for key, sample in found.items() if "__fault__" in sample}
    assert set(faults) == set(paths) - {"good"}
    assert "no such file" in faults["gone"]
    assert "4 GiB" in faults["huge"]
    assert "only paths" in faults["command"]
    assert not (tmp_path / "run.mp4").exists()


def test_a_source_of_several_may_be_files(videos: Path, make_module: Callable[..., ClipDataModule]) -> None:
    module = make_module(sources={"shards": {"weight": 1}, "files": {"files": str(videos), "num_frames": 8}})
    module.setup("fit")
    assert {name: len(clips) for name, clips in module.clips.items() if "/" in name} == {
        "train/shards": 12,
        "train/files": 3,
    }
    batches = list(module.train_dataloader())
    assert {batch["source"]: batch["frames"].shape[1] for batch in batches} == {"shards": 16, "files": 8}
    with pytest.raises(UserError, match="both say what it reads"):
        make_module(sources={"one": {"shards": "a", "files": "b"}})
    missing = make_module(sources={"one": {"files": "/nowhere/list.csv"}})
    with pytest.raises(UserError, match=r"data.sources.one.files=/nowhere/list.csv does not exist"):
        missing.setup("fit")


def test_files_that_are_not_there_are_named(make_module: Callable[..., ClipDataModule]) -> None:
    module = make_module(shards={}, files={"train": "/nowhere/list.csv"})
    with pytest.raises(UserError, match=r"data.files.train=/nowhere/list.csv does not exist"):
        module.setup("fit")
