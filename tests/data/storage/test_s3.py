"""Shards in S3 (moto's server): the same clips whatever goes wrong on the way, or each loss named."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from data.shards.index import find_shards
from data.shards.reader import open_samples
from data.storage.remote import READ_BLOCK, RetriedFile
from tae.runtime.errors import UserError
from tests.data.storage.test_remote import QUICK, Make, keys_of
from tests.fakes.faulty_server import FaultyServer, serve


@pytest.fixture(scope="module")
def s3(shards: Path) -> Iterator[str]:
    """A bucket of moto's S3 server that holds the shards; skipped where moto or s3fs are not installed."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    import s3fs

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        store = s3fs.S3FileSystem()
        store.mkdir("bucket")
        for path in shards.iterdir():
            if path.is_file():
                store.put_file(str(path), f"bucket/ucf/{path.name}")
        yield "s3://bucket/ucf"
        server.stop()


@pytest.mark.parametrize("pattern", ["shard-{000000..000003}.tar", "shard-*.tar"])
def test_s3_gives_what_local_shards_give(
    make_module: Make, s3: str, expected: list[str], tmp_path: Path, pattern: str
) -> None:
    def keys(**overrides: Any) -> list[str]:
        loader = make_module(shards={"train": f"{s3}/{pattern}"}, batch_size=1, **overrides).train_dataloader()
        return keys_of([*loader, *loader, *loader])

    assert keys() == expected
    if "*" in pattern:
        assert keys(cache_dir=tmp_path / "cache") == expected
        assert len(list((tmp_path / "cache").glob("*.tar"))) == 3  # the fourth holds no clip that is long enough


def test_a_table_on_s3_gives_what_local_shards_give(
    make_module: Make, s3: str, table: Path, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = s3fs.S3FileSystem()
    for path in table.rglob("*"):
        if path.is_file():
            store.put_file(str(path.resolve()), f"bucket/table/{path.relative_to(table)}")
    pattern = "s3://bucket/table/shard-*.tar"
    loader = make_module(shards={"train": pattern}, batch_size=1).train_dataloader()
    assert keys_of([*loader, *loader, *loader]) == expected


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_a_part_that_begins_inside_a_remote_shard_reads_its_own_bytes(
    kind: str, s3: str, write_shard: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 35th to 37th of 40 clips of 500 kB."""
    import s3fs

    write_shard(tmp_path / "s", {f"clip{number}": (bytes([number]) * 500_000, 9) for number in range(40)})
    received: list[int] = []
    receive = RetriedFile._receive
    monkeypatch.setattr(
        RetriedFile, "_receive", lambda file, wanted: received.append(len(data := receive(file, wanted))) or data
    )
    for path in (tmp_path / "s").iterdir():
        s3fs.S3FileSystem().put_file(str(path), f"bucket/part/{path.name}")
    with serve(FaultyServer(tmp_path / "s")) as address:
        folder = address if kind == "http" else "s3://bucket/part"
        (shard,) = find_shards(f"{folder}/shard-000000.tar", "x")
        received.clear()
        wanted = ["clip35", "clip36", "clip37"]
        with open_samples(shard, set(wanted)) as samples:
            assert [sample["__key__"] for sample in islice(samples, 3)] == wanted
    assert 1_500_000 < sum(received) < 1_500_000 + 2 * READ_BLOCK  # of 20,000,000


@contextmanager
def s3_with(faults: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """The bucket behind a server that sometimes answers badly."""
    import s3fs

    host, port = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://").split(":")
    server = FaultyServer(Path(), faults, upstream=(host, int(port)))
    with serve(server) as address, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", address)
        s3fs.S3FileSystem.clear_instance_cache()  # which would go on asking the address of before
        yield server
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("fault", ["503", "500", "reset", "short", "stall"])
def test_s3_faults_change_nothing(
    make_module: Make, s3: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Each shard is answered for badly twice, then well."""
    with s3_with({f"bucket/ucf/shard-{n:06d}.tar": [fault, fault] for n in range(4)}, monkeypatch) as server:
        pattern = f"{s3}/shard-{{000000..000003}}.tar"
        loader = make_module(shards={"train": pattern}, batch_size=1, **QUICK).train_dataloader()
        assert keys_of([*loader, *loader, *loader]) == expected
    assert loader.skipped == []
    assert server.met[fault] >= 6  # the fourth shard holds no clip that is long enough


def test_a_broken_s3_object_costs_its_clips_alone(make_module: Make, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_with({"bucket/ucf/shard-000003.tar": ["503!"]}, monkeypatch) as server:
        module = make_module(shards={"test": f"{s3}/shard-{{000000..000003}}.tar"}, **QUICK)
        module.setup("test")
        loader = module.test_dataloader()
        assert len(keys_of(loader)) == 8
    assert {fault["key"] for fault in loader.skipped} == {f"clip3_{number}" for number in range(4)}
    assert server.met["503"] == QUICK["read_tries"]


def test_s3_errors_are_named(make_module: Make, s3: str, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="matches no shard"):
        make_module(shards={"test": f"{s3}/nothing-*.tar"}, **QUICK).setup("test")
    with pytest.raises(UserError, match=r"index\.json cannot be read"):
        make_module(shards={"test": "s3://nowhere/shard-000000.tar"}, **QUICK).setup("test")
    module = make_module(shards={"test": f"{s3}/shard-*.tar"}, **QUICK)
    module.setup("test")
    import s3fs

    s3fs.S3FileSystem().rm_file("bucket/ucf/shard-000003.tar")
    loader = module.test_dataloader()
    assert len(keys_of(loader)) == 8
    assert {fault["key"] for fault in loader.skipped} == {f"clip3_{number}" for number in range(4)}
    s3fs.S3FileSystem().put_file(str(shards / "shard-000003.tar"), "bucket/ucf/shard-000003.tar")


def test_s3_without_its_package_names_the_extra(make_module: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"temporal-autoencoder\[s3\]"):
        make_module(shards={"test": "s3://bucket/shard-000000.tar"}).setup("test")
    with pytest.raises(UserError, match=r"temporal-autoencoder\[s3\]"):
        make_module(shards={"test": "s3://bucket/shard-*.tar"}).setup("test")
