"""Shards from web servers, S3 and commands: the same clips whatever goes wrong on the way, or each loss named."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from data.datamodule import ClipDataModule
from data.loading.loader import ClipLoader
from data.shards.index import find_shards
from data.shards.reader import open_samples
from data.storage.address import beside, file_name
from data.storage.cache import ShardCache
from data.storage.remote import Access, RetriedFile, SourceError, open_file
from tae.runtime.errors import UserError
from tests.fakes.faulty_server import FaultyServer, serve
from tests.fakes.processes import running

Make = Callable[..., ClipDataModule]
QUICK = {"read_tries": 3, "read_timeout": 1.0}


def keys_of(batches: Any) -> list[str]:
    return [key for batch in batches for key in batch["keys"]]


def remote(make_module: Make, address: str, **overrides: Any) -> ClipDataModule:
    pattern = f"{address}/shard-{{000000..000003}}.tar"
    return make_module(shards={"train": pattern, "test": pattern}, **(QUICK | {"batch_size": 1} | overrides))


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("fault", ["", "500", "reset", "short", "stall"])
def test_a_fault_on_the_way_changes_nothing(
    make_module: Make, shards: Path, expected: list[str], fault: str, ranges: bool
) -> None:
    server = FaultyServer(shards, {"*": [fault, fault], "index.json": [fault]}, ranges)
    with serve(server) as address:
        loader = remote(make_module, address).train_dataloader()
        assert keys_of([*loader, *loader, *loader]) == expected
    assert loader.skipped == []
    assert server.met[fault] >= (4 if fault else 0)


def test_a_source_that_only_trickles_is_given_up(shards: Path) -> None:
    server = FaultyServer(shards, {"*": ["trickle!"]})
    started = time.monotonic()
    with (
        serve(server) as address,
        open_file(f"{address}/shard-000000.tar", Access(2, 0.5), 10**6) as file,
        pytest.raises(SourceError, match=r"only \d+ bytes came in"),
    ):
        file.read()
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shard_that_is_gone_is_skipped_clip_by_clip_and_counted(
    make_module: Make, shards: Path, tmp_path: Path, num_workers: int
) -> None:
    with serve(FaultyServer(shards, {"shard-000001.tar": ["404!"]})) as address:
        loader = remote(make_module, address, num_workers=num_workers).test_dataloader()
        kept = keys_of(loader)
    assert {fault["key"] for fault in loader.skipped} == {"clip1_0", "clip1_1", "clip1_2"}
    assert all("404" in fault["reason"] or "FileNotFound" in fault["reason"] for fault in loader.skipped)
    assert all(fault["shard"].endswith("/shard-000001.tar") for fault in loader.skipped)
    lines = [json.loads(line) for line in (tmp_path / "output" / "skipped.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    assert len(kept) == 9


def test_a_local_shard_that_vanishes_in_mid_run_is_skipped(make_module: Make, shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    loader = make_module(shards={"test": f"{copy}/*.tar"}, read_tries=2).test_dataloader()
    batches = iter(loader)
    first = next(batches)
    for shard in copy.glob("*.tar"):
        shard.rename(shard.with_suffix(".gone"))
    kept = keys_of([first, *batches])
    assert len(kept) + len(loader.skipped) == 12
    assert len(loader.skipped) >= 7  # the shard that was open goes on
    assert all("No such file" in fault["reason"] for fault in loader.skipped)


def test_resuming_is_exact_while_things_fail(make_module: Make, shards: Path, expected: list[str]) -> None:
    """A shard that cannot be had keeps its clips' places in the order, so a position means the same with and without."""
    faults = {"shard-000001.tar": ["404!"], "shard-000003.tar": ["reset", "", "500", "", "short", ""] * 20}

    def fresh(address: str) -> ClipLoader:
        return remote(make_module, address, read_tries=2).train_dataloader()

    with serve(FaultyServer(shards, faults)) as address:
        whole = keys_of(islice(iter(fresh(address)), 9))
        loader, got = fresh(address), []
        for stop in (2, 3, 4):
            got += keys_of(islice(iter(loader), stop))
            state = json.loads(json.dumps(loader.state_dict()))
            loader = fresh(address)
            loader.load_state_dict(state)
    assert got == whole
    assert got == [key for key in expected if not key.startswith("clip1")][:9]


def test_bytes_that_change_on_the_way_are_noticed(shards: Path, make_module: Make, tmp_path: Path) -> None:
    """Without a cache by the hash in each clip's metadata, with it by the shard's."""
    folder = tmp_path / "hashed"
    folder.mkdir()
    _copy_with_hashes(shards, folder)
    content = bytearray((folder / "shard-000000.tar").read_bytes())
    content[content.index(b"mdat") + 20] ^= 1  # in the first clip's video
    with serve(FaultyServer(folder)) as address:
        good = remote(make_module, address).test_dataloader()
        assert len(keys_of(good)) == 12
        (folder / "shard-000000.tar").write_bytes(content)
        streamed = remote(make_module, address).test_dataloader()
        assert len(keys_of(streamed)) == 11
        assert ["by their hash" in fault["reason"] for fault in streamed.skipped] == [True]
        cached = remote(make_module, address, cache_dir=tmp_path / "cache").test_dataloader()
        assert len(keys_of(cached)) == 7
        assert all("by their hash" in fault["reason"] for fault in cached.skipped)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix == ".partial"]


def _copy_with_hashes(shards: Path, folder: Path) -> None:
    """The same clips, with the hash of each video in its metadata, as `data.prepare` writes it."""
    from data.shards.writer import ShardWriter

    index: list[dict[str, Any]] = []
    for shard in find_shards(str(shards / "*.tar"), "x"):
        with (
            open_samples(shard, set(shard.frames)) as samples,
            ShardWriter(folder / "part", "train", {}, 10**9) as writer,
        ):
            for sample in samples:
                digest = hashlib.sha256(sample["mp4"]).hexdigest()
                writer.write(sample["__key__"], "mp4", sample["mp4"], json.loads(sample["json"]) | {"sha256": digest})
        name = shard.url.rsplit("/", 1)[-1]
        (folder / "part" / "shard-000000.tar").rename(folder / name)
        index.append(json.loads((folder / "part" / "index.json").read_text())["shards"][0] | {"name": name})
    (folder / "index.json").write_text(json.dumps({"version": 1, "shards": index}))


def test_the_cache_downloads_once_and_gives_the_same(
    make_module: Make, shards: Path, expected: list[str], tmp_path: Path
) -> None:
    server = FaultyServer(shards, {"*": ["short", "garbage"], "index.json": []})
    with serve(server) as address:
        loader = remote(make_module, address, cache_dir=tmp_path / "cache").train_dataloader()
        assert keys_of([*loader, *loader, *loader]) == expected
        requests = server.requests.total()
        again = remote(make_module, address, cache_dir=tmp_path / "cache", num_workers=2).test_dataloader()
        assert len(keys_of(again)) == 12
    assert server.requests.total() == requests + 1  # the index
    assert server.met["garbage"] == server.met["short"] == 3  # the fourth holds no clip that is long enough


def test_the_cache_is_bounded_and_streams_what_does_not_fit(tmp_path: Path) -> None:
    contents = [bytes([number]) * 1000 for number in range(6)]
    cache = ShardCache(tmp_path / "cache", 2500)
    cache.prepare()

    def open_cached(number: int) -> Any:
        path = tmp_path / f"{number}"
        path.write_bytes(contents[number])
        return cache.open(hashlib.sha256(contents[number]).hexdigest(), 1000, lambda: path.open("rb"))

    def kept() -> int:
        return sum(path.stat().st_size for path in cache.folder.iterdir())

    for number in range(6):
        with open_cached(number) as file:
            assert file.read() == contents[number]
        assert kept() <= 2500
    with open_cached(0) as first, open_cached(1) as second:
        assert open_cached(2) is None  # both that are there are being read
        assert first.read() + second.read() == contents[0] + contents[1]
    with open_cached(2) as third:
        assert third.read() == contents[2]
    assert kept() == 2000


def test_processes_share_a_cache_also_when_some_are_killed(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}").write_bytes(os.urandom(10_000))
    ShardCache(tmp_path / "cache", 1).prepare()
    script = Path(__file__).parents[2] / "fakes" / "cache_readers.py"
    commands = [[sys.executable, str(script), str(tmp_path), str(seed)] for seed in range(4)]
    root = Path(__file__).parents[3]
    with ExitStack() as stack:
        readers = [stack.enter_context(running(command, cwd=root, stdout=subprocess.PIPE)) for command in commands]
        assert [reader.communicate(timeout=300)[0] for reader in readers] == [b""] * 4
    for path in (tmp_path / "cache").glob("*.tar"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem


def test_a_cache_that_cannot_serve_is_refused_before_anything_starts(
    make_module: Make, shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with serve(FaultyServer(shards)) as address:
        with pytest.raises(UserError, match=r"data\.cache_gb=1e-06 is less than one shard"):
            remote(make_module, address, cache_dir=tmp_path / "c", cache_gb=1e-6).setup("test")
        with pytest.raises(UserError, match=r"data\.cache_dir=.*file cannot be used"):
            remote(make_module, address, cache_dir=tmp_path / "file").setup("test")
        with pytest.raises(UserError, match="http servers do not list files"):
            make_module(shards={"test": f"{address}/*.tar"}).setup("test")
        with pytest.raises(UserError, match=r"nothing/index\.json cannot be read .*404|FileNotFound"):
            make_module(shards={"test": f"{address}/nothing/shard-000000.tar"}, **QUICK).setup("test")


def test_a_server_that_nobody_answers_for_is_named(make_module: Make) -> None:
    with pytest.raises(UserError, match=r"index\.json cannot be read"):
        remote(make_module, "http://127.0.0.1:9").setup("test")


def test_a_table_is_fetched_once_for_a_machine(
    make_module: Make, table: Path, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server = FaultyServer(table, {"index/frames.npy": ["", "garbage"], "index/key.npy": ["500", "short"]})
    with serve(server) as address:
        for workers in (0, 2):
            loader = remote(make_module, address, num_workers=workers).train_dataloader()
            assert sorted(keys_of(loader)) == sorted(set(expected))
        assert server.requests["index/frames.npy"] == 1
        assert keys_of([*(loader := remote(make_module, address).train_dataloader()), *loader, *loader]) == expected
        shutil.rmtree(tmp_path / "cache")
        with pytest.raises(UserError, match=r"frames\.npy is not the file that its index describes, by its hash"):
            remote(make_module, address).setup("test")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_command_gives_what_local_shards_give(make_module: Make, shards: Path, expected: list[str]) -> None:
    pattern = f"pipe:cat {shards}/shard-{{000000..000003}}.tar"
    loader = make_module(shards={"train": pattern}, batch_size=1, allow_pipe=True, **QUICK).train_dataloader()
    assert keys_of([*loader, *loader, *loader]) == expected
    with pytest.raises(UserError, match=r"data\.allow_pipe=true"):
        make_module(shards={"train": pattern}).setup("fit")
    with pytest.raises(UserError, match=r"does not name a \.tar file"):
        make_module(shards={"train": "pipe:cat something"}, allow_pipe=True).setup("fit")


@pytest.mark.parametrize(
    ("command", "reason"),
    [("cat nothing.tar", "exit code 1"), ("sleep 30; cat shard.tar", "printed nothing for 0.5 s")],
)
def test_a_command_that_fails_is_given_up(command: str, reason: str) -> None:
    file = RetriedFile(f"pipe:{command} 2>/dev/null", Access(2, 0.5), 100)
    with pytest.raises(SourceError, match=reason):
        file.read(10)
    file.close()


def test_the_address_of_a_neighbour() -> None:
    cases = {
        "a/b/shard-0.tar": "a/b/index.json",
        "shard-0.tar": "index.json",
        "http://host:1/a/shard-0.tar?token=x/y": "http://host:1/a/index.json?token=x/y",
        "s3://bucket/a/shard-0.tar": "s3://bucket/a/index.json",
        "pipe:aws s3 cp s3://b/shard-0.tar -": "pipe:aws s3 cp s3://b/index.json -",
    }
    assert {address: beside(address, "index.json") for address in cases} == cases
    assert {file_name(address) for address in cases} == {"shard-0.tar"}
