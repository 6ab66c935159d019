"""Shards of others: indexed as they are, resumably, and trained on; what cannot be used is named."""

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import data.ingest.indexing
from data.datamodule import ClipDataModule
from data.decode import DecodeError, open_video, read_frames
from data.drawing import draw_clip, encode_h264, encode_mp4
from data.ingest.check import decode_sound
from data.ingest.index_command import index_command
from data.ingest.indexing import IndexTask, folders_of, index_shard, index_shards, probe_video
from data.ingest.inspection import contact_sheet, describe_samples
from data.ingest.mixing import describe_mixing
from data.ingest.verification import ShardTask, check_shard, read_sample_metadata, shards_of, verify
from data.processes.pool import Engine
from data.shards.format import MAX_JSON_BYTES
from data.shards.index import find_shards, read_index
from data.storage.remote import Access
from tae.runtime.cli import CONFIG_FOLDER
from tae.runtime.errors import UserError

Make = Callable[..., ClipDataModule]
Members = list[tuple[str, bytes]]


@pytest.fixture(scope="module")
def videos() -> list[bytes]:
    rng = np.random.default_rng(0)
    return [encode_mp4(draw_clip(rng, frames, 32, 44)) for frames in (16, 20, 9)]


@pytest.fixture
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are looked through in this process."""

    def run(function: Callable[[IndexTask], str], tasks: list[IndexTask], *_: Any) -> Any:
        return ((task, function(task)) for task in tasks)

    monkeypatch.setattr(data.ingest.indexing, "run_isolated", run)


def pack(path: Path, members: Members) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def sample(name: str, video: bytes, **metadata: Any) -> Members:
    """As video2dataset writes them, the metadata first."""
    return [(f"{name}.json", json.dumps(metadata).encode()), (f"{name}.mp4", video), (f"{name}.txt", b"a caption\n")]


def command_config(name: str, *settings: str) -> DictConfig:
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        return compose(name, overrides=list(settings))


@pytest.fixture
def others(tmp_path: Path, videos: list[bytes]) -> Path:
    """Two shards whose keys have dots, slashes and other letters, with members of other kinds."""
    folder = tmp_path / "others"
    first = [*sample("./part.1/000.5", videos[0], score=4.5, key="x", id=10**400), ("./part.1/000.5.npy", b"?")]
    pack(folder / "00000.tar", first + sample("日本", videos[1], score=6, sha256="0" * 64, caption="its own", id=7))
    no_metadata = [("plain.mp4", videos[2]), ("list.json", b"[1]"), ("list.mp4", videos[0])]
    pack(folder / "00001.tar", no_metadata + sample("broken", b"nothing"))
    return folder


def index(folder: Path, output: Path | None = None, columns: tuple[str, ...] = ()) -> Any:
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    return index_shards(urls, output or folder, output is not None, columns, Access(), 60, Engine("local", 1))


def test_shards_of_others_are_trained_on_as_they_are(
    in_place: None, others: Path, make_module: Make, caplog: pytest.LogCaptureFixture
) -> None:
    found = index(others, columns=("caption", "score", "id"))
    assert (found.shards, found.samples) == (2, 4)
    rows = list(csv.reader((others / "rejected.csv").read_text().splitlines()))
    assert [row[1] for row in rows[1:]] == ["broken"]
    indexed = read_index(str(others / "index.json"), "x", Access())
    keys, frames = indexed.column("key", range(4)), indexed.column("frames", range(4))
    assert dict(zip(keys, frames, strict=True)) == {"./part.1/000.5": 16, "日本": 20, "plain": 9, "list": 16}
    assert indexed.column("caption", range(4)) == ["a caption", "its own", "", ""]
    assert indexed.column("id", range(4)) == [str(10**400), "7", "", ""]  # float64 does not hold the first
    scores = indexed.column("score", range(4))
    assert scores[:2] == [4.5, 6.0]
    assert np.isnan(scores[2:]).all()

    shards = {"shards": {"train": f"{others}/*.tar", "test": f"{others}/*.tar"}, "num_frames": 8, "batch_size": 4}
    caplog.clear()
    loader = make_module(**shards, metadata=["caption", "score", "nowhere"]).test_dataloader()
    (batch,) = loader
    assert not loader.skipped
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "data.metadata=[nowhere]: none of the first clips of test has it" in warning
    assert batch["keys"] == ["part_1_000_5", "日本", "plain", "list"]  # names that may become those of files
    assert batch["fps"] == [24.0] * 4
    assert batch["metadata"] == {
        "caption": ["a caption", "its own", None, None], "score": [4.5, 6, None, None], "nowhere": [None] * 4,
    }  # fmt: skip
    assert sum(len(batch["keys"]) for batch in make_module(**shards).train_dataloader()) == 4
    assert "metadata" not in next(iter(make_module(**shards).train_dataloader()))


def test_frames_are_those_of_prepared_shards(
    in_place: None, others: Path, videos: list[bytes], make_module: Make, write_shard: Callable[..., None], tmp_path: Path
) -> None:  # fmt: skip
    index(others)
    write_shard(tmp_path / "ours", {"a": (videos[0], 16), "b": (videos[1], 20)})
    batches = [
        next(iter(make_module(shards={"test": f"{folder}/*.tar"}, num_frames=8, batch_size=2).test_dataloader()))
        for folder in (others, tmp_path / "ours")
    ]
    assert (batches[0]["frames"] == batches[1]["frames"]).all()


def test_an_index_elsewhere_serves_shards_of_many_folders(
    in_place: None, others: Path, videos: list[bytes], make_module: Make, tmp_path: Path
) -> None:
    pack(tmp_path / "more" / "00000.tar", sample("again", videos[0]))
    urls = [str(path) for path in (others / "00000.tar", tmp_path / "more" / "00000.tar")]
    index_shards(urls, tmp_path / "index", True, (), Access(), 60, Engine("local", 1))
    assert {path.name for path in others.iterdir()} == {"00000.tar", "00001.tar"}
    settings = {"num_frames": 8, "batch_size": 3, "index": str(tmp_path / "index")}
    patterns = [f"{others}/00000.tar", f"{tmp_path}/more/*.tar"]
    (batch,) = make_module(shards={"test": patterns}, **settings).test_dataloader()
    assert batch["keys"] == ["part_1_000_5", "日本", "again"]
    with pytest.raises(UserError, match=r"00001\.tar is not listed in .*data\.index"):
        make_module(shards={"test": f"{others}/*.tar"}, **settings).setup("test")


def test_a_filter_chooses_by_columns_and_is_part_of_the_order(in_place: None, others: Path, make_module: Make) -> None:
    index(others, columns=("score", "caption"))
    shards = {"shards": {"train": f"{others}/*.tar", "test": f"{others}/*.tar"}, "num_frames": 8, "batch_size": 1}

    def names(**settings: Any) -> list[str]:
        return [batch["keys"][0] for batch in make_module(**shards, **settings).test_dataloader()]

    assert names(filter={"score": [5, None]}) == ["日本"]
    assert names(filter={"score": [None, 5], "frames": [16, 16]}) == ["part_1_000_5"]
    assert len(names(filter={"fps": [20, 30], "height": [32, None]})) == 4
    filtered = make_module(**shards, filter={"frames": [16, None]}).train_dataloader()
    assert len({key for batch in filtered for key in batch["keys"]}) == 3
    state = filtered.state_dict()
    with pytest.raises(UserError, match=r"data\.filter was \{'frames': \[15, None\]\} and is|data\.filter was"):
        make_module(**shards, filter={"frames": [15, None]}).train_dataloader().load_state_dict(state)
    for wrong, message in (
        ({"quality": [1, 2]}, r"data\.filter\.quality: .* has no such column of numbers; it has frames"),
        ({"caption": [1, 2]}, "no such column of numbers"),
        ({"score": [7, None]}, "leaves out all 4 clips"),
        ({"score": [3, 2]}, r"filter\.score=\[3, 2\]: give the lowest and the highest"),
        ({"score": [3]}, r"filter\.score=\[3\]: give the lowest and the highest"),
    ):
        with pytest.raises(UserError, match=message):
            make_module(**shards, filter=wrong).setup("test")


def test_indexing_resumes_where_it_was_stopped(in_place: None, others: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def look(task: IndexTask) -> str:
        if len(looked) == 1:
            raise KeyboardInterrupt
        looked.append(task.url)
        return index_shard(task)

    monkeypatch.setattr(data.ingest.indexing, "index_shard", look)
    with pytest.raises(KeyboardInterrupt):
        index(others)
    assert not (others / "index.json").exists()
    monkeypatch.setattr(data.ingest.indexing, "index_shard", lambda task: looked.append(task.url) or index_shard(task))
    index(others)
    assert looked == [f"{others}/00000.tar", f"{others}/00001.tar"]
    resumed = (others / "index.json").read_bytes()
    assert not (others / ".indexing").exists()
    index(others)
    assert (others / "index.json").read_bytes() == resumed


def test_a_shard_that_changed_since_is_looked_through_again(
    in_place: None, others: Path, videos: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    merge = data.ingest.indexing.merge
    monkeypatch.setattr(data.ingest.indexing, "merge", stop)
    with pytest.raises(KeyboardInterrupt):
        index(others)
    monkeypatch.setattr(data.ingest.indexing, "merge", merge)
    pack(others / "00001.tar", sample("new", videos[0]))
    index(others)
    assert [list(shard.frames) for shard in find_shards(f"{others}/*.tar", "x")][1] == ["new"]


def test_what_cannot_be_indexed_is_said(in_place: None, others: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sample has 'mood' in its metadata"):
        index(others, columns=("mood",))
    for wrong in ("key", "Caption", "../x"):
        with pytest.raises(UserError, match="is not allowed: small letters"):
            index(others, columns=(wrong,))
    pack(tmp_path / "empty" / "x.tar", [("readme.md", b"")])
    with pytest.raises(UserError, match="No sample of the shards is usable, as they hold none"):
        index(tmp_path / "empty")
    with pytest.raises(UserError, match="Give output=DIR"):
        folders_of(["s3://bucket/x.tar"])


def test_a_key_that_is_there_twice_counts_once(in_place: None, tmp_path: Path, videos: list[bytes]) -> None:
    pack(tmp_path / "s" / "x.tar", [*sample("a", videos[0]), *sample("b", videos[1]), *sample("a", videos[2])])
    found = index(tmp_path / "s")
    assert (found.samples, dict(found.rejected)) == (2, {"its key was there before": 1})


def test_shards_that_cannot_be_read_are_named_when_all_others_are_done(
    in_place: None, others: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (others / "00000a.tar").write_bytes(b"no tar file" * 1000)
    (others / "00000b.tar").write_bytes(b"x" * 5000)
    with pytest.raises(
        UserError, match=r"^2 of 4 shards .*00000a\.tar \(.+\), .*00000b\.tar \(.*leave them out of shards="
    ):
        index(others)
    for name in ("00000a.tar", "00000b.tar"):
        (others / name).unlink()
    monkeypatch.setattr(data.ingest.indexing, "index_shard", None)  # nothing is looked through again
    assert index(others).shards == 2


def test_an_index_that_says_more_is_not_replaced(
    in_place: None, others: Path, shards: Path, tmp_path: Path, videos: list[bytes]
) -> None:
    prepared = shards / "index.json"
    before = prepared.read_bytes()
    with pytest.raises(UserError, match=r"index\.json was not written by data\.index .*output=DIR"):
        index_command(command_config("index", f"shards={shards}/*.tar"))
    assert prepared.read_bytes() == before
    for output in (None, tmp_path / "elsewhere"):
        index(others, output)
        one = [str(others / "00001.tar")]
        with pytest.raises(UserError, match=r"lists .*00000\.tar too .*Name all shards, or .*output=DIR"):
            index_shards(one, output or others, output is not None, (), Access(), 60, Engine("local", 1))
    index(others, columns=("score",))  # of all that are there, whatever else there was
    (others / "00000.tar").unlink()
    assert index(others).shards == 1


def test_a_name_that_is_not_utf8_and_a_text_that_is_no_caption(
    in_place: None, tmp_path: Path, videos: list[bytes], make_module: Make
) -> None:
    folder = tmp_path / "s"
    long = [("long.mp4", videos[0]), ("long.txt", b"x" * (MAX_JSON_BYTES + 1))]
    latin = [(name, videos[0]) for name in ("caf\udce9.mp4", "caf\udce8.mp4")]
    pack(folder / "x.tar", [*latin, *long, *sample("z", videos[1])])
    found = index(folder, columns=("caption",))
    assert (found.samples, dict(found.rejected)) == (2, {"its name is not UTF-8": 2})
    module = make_module(shards={"test": f"{folder}/*.tar"}, num_frames=8, metadata=["caption"])
    (batch,) = module.test_dataloader()
    assert batch["keys"] == ["long", "z"]
    assert batch["metadata"] == {"caption": [None, "a caption"]}


def encode_avi(images: np.ndarray) -> bytes:
    """H.264 with B-frames in an AVI, which has no times of display."""
    return encode_h264(images, "avi", {"bf": "3", "g": "12", "b_strategy": "0", "threads": "1"})


def assert_frames_are_those_of_the_whole_file(video: bytes) -> None:
    facts, shown = probe_video(video), []
    decode_sound(video, watch=shown.append)
    assert facts["frames"] == len(shown)
    start = len(shown) // 3
    read = read_frames(video, range(start, start + 4), reader=facts["reader"])
    np.testing.assert_array_equal(read, shown[start : start + 4])


def test_frames_without_times_are_those_of_the_whole_file() -> None:
    """No reader is trusted that was not compared: others count wrong where frames are stored in another order."""
    assert_frames_are_those_of_the_whole_file(encode_avi(draw_clip(np.random.default_rng(0), 40, 32, 44)))


@pytest.mark.parametrize("name", ["h264_bframes.avi", "raw_h264_named.mp4"])
def test_what_preparation_accepts_is_indexed_alike(name: str, bug_inputs: Path) -> None:
    assert_frames_are_those_of_the_whole_file((bug_inputs / name).read_bytes())


def test_what_decord_says_is_said_without_its_sources(bug_inputs: Path) -> None:
    video = (bug_inputs / "raw_h264_named.mp4").read_bytes()
    with pytest.raises(DecodeError, match=r"^cannot be opened: Failed to measure"), open_video(video, "decord"):
        pass


def tasks_of(folder: Path) -> list[ShardTask]:
    indexed = read_index(str(folder / "index.json"), "x", Access())
    return [ShardTask(folder / name, indexed.entry(i), True, True) for i, name in enumerate(indexed.names)]


def test_shards_of_others_are_verified(in_place: None, others: Path) -> None:
    index(others)
    assert [check_shard(task) for task in tasks_of(others)] == [[], []]
    members = [("plain.mp4", b"")]  # and "list", which is missing by now
    pack(others / "00001.tar", members)
    problems = check_shard(tasks_of(others)[1])
    assert any("sha256" in problem for problem in problems)
    assert any(problem == "list: is in the index, but not in the shard" for problem in problems)
    assert any("bytes" in problem for problem in verify(others, False, 60, Engine("local", 1)))


def test_tables_and_sheets_show_shards_of_others(in_place: None, others: Path) -> None:
    index(others)
    facts = [facts for _, facts in read_sample_metadata(shards_of(others))]
    assert describe_samples(facts)["frames"] == "61"
    assert contact_sheet(others, 4).size[1] > 100
    assert list(describe_mixing(shards_of(others), 2, 4, 1)) == []
