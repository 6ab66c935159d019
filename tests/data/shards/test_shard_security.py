"""Shards and indexes from anybody: nothing in them is run or written, and no claim in them takes memory.

Each payload would leave a file called `trace`, or take gigabytes.
"""

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

import data.decode
from data.datamodule import ClipDataModule
from data.decode import DecodeError, read_frames
from data.drawing import draw_clip, encode_mp4
from data.loading.loader import ClipLoader
from data.shards.format import MAX_HEADER_BYTES, MAX_JSON_BYTES, MAX_VIDEO_BYTES
from data.shards.index import find_shards
from data.storage.remote import Access, open_file
from tae.evaluation.stored_config import evaluation_data
from tae.runtime.errors import UserError

METADATA = b'{"num_frames": 16, "fps": 24.0}'
Members = list[tuple[tarfile.TarInfo | str, bytes]]


class Payload:
    """Unpickling it makes the file `trace`."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.trace}",)


@pytest.fixture(scope="module")
def video() -> bytes:
    return encode_mp4(draw_clip(np.random.default_rng(0), 16, 32, 44))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """The file that must not be there afterwards, nor anything else outside the shards' folder and the output."""
    return tmp_path / "trace"


@pytest.fixture
def load(make_module: Callable[..., ClipDataModule], tmp_path: Path) -> Callable[..., ClipLoader]:
    """A loader over a shard of the given members, whose index lists the given keys."""

    def make(members: Members | bytes, keys: tuple[str, ...] = ("a",), **overrides: Any) -> ClipLoader:
        folder = tmp_path / "s"
        folder.mkdir(exist_ok=True)
        content = members if isinstance(members, bytes) else pack(members)
        (folder / "shard-000000.tar").write_bytes(content)
        write_index(folder, len(content), dict.fromkeys(keys, 16))
        pattern = str(folder / "shard-*.tar")
        return make_module(shards={"test": pattern}, batch_size=1, **overrides).test_dataloader()

    return make


def pack(members: Members) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            if info.isreg():
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return packed.getvalue()


def write_index(folder: Path, size: int, frames: Any, name: str = "shard-000000.tar", **others: Any) -> None:
    entry = {"name": name, "samples": len(frames), "bytes": size, "frames": frames} | others
    (folder / "index.json").write_text(json.dumps({"version": 1, "shards": [entry]}))


def keys_and_faults(loader: ClipLoader) -> tuple[list[str], dict[str, str]]:
    keys = [key for batch in loader for key in batch["keys"]]
    return keys, {fault["key"]: fault["reason"] for fault in loader.skipped}


def find(tmp_path: Path) -> None:
    find_shards(str(tmp_path / "s" / "*.tar"), "data.shards.test")


def test_pickles_in_a_shard_are_not_opened(load: Callable[..., ClipLoader], video: bytes, trace: Path) -> None:
    """WebDataset's own decoders unpickle .pyd, .pickle, .pkl and .pth, and load .npy with pickles in it."""
    evil = pickle.dumps(Payload(trace))
    extensions = ("pyd", "pickle", "pkl", "pth", "pt", "npy", "npz", "cbor", "mp4.pyd", "json.pth", "__key__", "cls")
    members: Members = [(f"a.{extension}", evil) for extension in extensions]
    keys, faults = keys_and_faults(load([*members, ("a.mp4", video), ("a.json", METADATA)]))
    assert (keys, faults) == (["a"], {})
    _, faults = keys_and_faults(
        load([("a.mp4", evil), ("a.json", METADATA), ("b.mp4", video), ("b.json", evil)], ("a", "b"))
    )
    assert set(faults) == {"a", "b"}
    assert not trace.exists()
    pickle.loads(evil)
    assert trace.exists()  # the payload works


def test_nothing_is_written_whatever_members_are_called(
    load: Callable[..., ClipLoader], video: bytes, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(video)
    names = ["../trace.mp4", f"{tmp_path}/trace.mp4", "a/../../trace.mp4", "..mp4", "/trace.mp4", "a\\..\\trace.mp4"]
    links = []
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        info = tarfile.TarInfo("a.mp4")
        info.type, info.linkname = kind, str(secret)
        links.append((info, b""))
    before = sorted(tmp_path.rglob("*"))
    keys, faults = keys_and_faults(load([*((name, video) for name in names), *links, ("a.json", METADATA)]))
    assert (keys, faults) == ([], {"a": "0 video or image files under one key, one is expected"})
    after = {path for path in tmp_path.rglob("*") if path not in before}
    assert {path.relative_to(tmp_path).parts[0] for path in after} == {"s", "output"}


@pytest.mark.parametrize("key", ["../../trace", "/tmp/trace", "a/b", "a\\b", "", "a\nb", "a.b", "x" * 300])
def test_a_key_that_could_lead_out_of_a_folder_is_refused(
    load: Callable[..., ClipLoader], video: bytes, key: str
) -> None:
    """Keys are part of the names of videos that training writes."""
    with pytest.raises(UserError, match="has the key"):
        load([(f"{key}.mp4", video)], (key,))


@pytest.mark.parametrize(
    "name", ["pipe:touch trace", "../../../etc/passwd", "/etc/passwd", "a/b.tar", "..", "http://x/y"]
)
def test_an_index_cannot_name_other_files(
    load: Callable[..., ClipLoader], tmp_path: Path, video: bytes, name: str
) -> None:
    load([("a.mp4", video), ("a.json", METADATA)])
    write_index(tmp_path / "s", 10240, {"a": 16}, name)
    with pytest.raises(UserError, match=r"not a name of a shard|which is not there"):
        find(tmp_path)
    assert not (tmp_path / "trace").exists()
    assert not Path("trace").exists()


@pytest.mark.parametrize(
    "scheme", ["pipe:cat", "file://", "memory://", "simplecache::http://x", "local://", "ftp://x", "gs://x"]
)
def test_other_sources_are_refused(make_module: Callable[..., ClipDataModule], trace: Path, scheme: str) -> None:
    with pytest.raises(UserError, match=r"data\.shards\.test"):
        make_module(shards={"test": f"{scheme} x/shard-000000.tar; touch {trace}"}).setup("test")
    assert not trace.exists()


def test_a_checkpoint_cannot_allow_commands(trace: Path) -> None:
    """Neither by its own setting nor together with the user's permission for commands of their own."""
    command = f"pipe:touch {trace}; cat shard-000000.tar"
    stored = {"_target_": "data.datamodule.ClipDataModule", "shards": {"test": command}, "allow_pipe": True}
    empty = {"shards": {"train": None, "val": None, "test": None}, "allow_pipe": None}
    settings = {"num_frames": 1, "frame_stride": 1, "resolution": 8, "batch_size": 1, "num_workers": 0, "seed": 0}
    settings |= {"short_clip": "skip", "max_skipped": 0.0, "shuffle_buffer": 1, "output_dir": str(trace.parent)}

    def read(given: dict[str, Any]) -> None:
        cfg = OmegaConf.create({"ckpt": "x", "data": empty | given})
        chosen = OmegaConf.to_container(evaluation_data(cfg, {"data": stored | settings}))
        chosen.pop("_target_")  # type: ignore[union-attr]
        ClipDataModule(**chosen).eval_dataloader("test")  # type: ignore[arg-type]

    with pytest.raises(UserError, match=r"data\.allow_pipe=true"):
        read({})
    with pytest.raises(UserError, match=r"data\.shards\.test is not set"):
        read({"allow_pipe": True})
    assert not trace.exists()


def gif_of(width: int, height: int) -> bytes:
    """A few kilobytes that claim frames of any size."""
    small = io.BytesIO()
    frames = [Image.fromarray(np.full((32, 44), 40 * i, np.uint8)) for i in range(4)]
    frames[0].save(small, "gif", save_all=True, append_images=frames[1:])
    return small.getvalue()[:6] + struct.pack("<HH", width, height) + small.getvalue()[10:]


@pytest.mark.parametrize(("width", "height"), [(16_000, 16_000), (65_000, 65_000), (60_000, 16), (3, 200)])
def test_a_picture_of_a_claimed_size_is_refused_before_it_is_made(
    width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_decoding(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(data.decode.VideoFile, "frames", no_decoding)
    with pytest.raises(DecodeError, match=rf"claims pictures of {width}x{height} pixels|cannot be opened"):
        read_frames(gif_of(width, height), [0])
    monkeypatch.undo()
    assert read_frames(gif_of(44, 32), [0, 2]).shape == (2, 32, 44, 3)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar header alone; sizes above 8 GiB are stored in base 256."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (header("a.mp4", MAX_VIDEO_BYTES + 1), f"the limit is {MAX_VIDEO_BYTES}"),
        (header("a.mp4", 1 << 62), f"the limit is {MAX_VIDEO_BYTES}"),
        (header("a.mp4", MAX_VIDEO_BYTES), "more than are left in the shard"),
        (header("a.json", MAX_JSON_BYTES + 1), f"the limit is {MAX_JSON_BYTES}"),
        (header("x", MAX_HEADER_BYTES + 1, tarfile.GNUTYPE_LONGNAME), "a header of"),
        (header("x", 1 << 40, tarfile.XHDTYPE), "a header of"),
        (header("x", -512), "the shard cannot be read"),
        (header("a.mp4", -1), "the shard cannot be read"),
        (gzip.compress(bytes(10_000_000)), "the shard cannot be read"),
        (b"", "the shard cannot be read"),
    ],
    ids=[
        "large",
        "huge",
        "past the end",
        "json",
        "long name",
        "attributes",
        "negative",
        "minus one",
        "compressed",
        "empty",
    ],
)
def test_sizes_that_a_shard_claims_are_checked_first(
    load: Callable[..., ClipLoader], content: bytes, reason: str
) -> None:
    keys, faults = keys_and_faults(load(content))
    assert keys == []
    assert reason in faults["a"]


def test_a_cut_list_of_sparse_blocks_ends(load: Callable[..., ClipLoader]) -> None:
    """tarfile would read for ever what is not there."""
    attributes = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "a.mp4",
        "GNU.sparse.realsize": "9",
    }
    info = tarfile.TarInfo("a.mp4")
    info.size, info.pax_headers = 512, attributes
    content = info.tobuf(tarfile.PAX_FORMAT) + b"9999\n" + b"1\n" * 254
    keys, faults = keys_and_faults(load(content))
    assert (keys, list(faults)) == ([], ["a"])


@pytest.mark.parametrize(
    "metadata",
    [
        b"[" * 500_000,
        b'{"fps": ' + b"9" * 5000 + b"}",
        b'{"fps": NaN}',
        b'{"fps": 1e999}',
        b'{"fps": -1}',
        b'{"fps": {"a": 1}}',
        b'[{"fps": 24}]',
        b"\xff\xfe\x00",
        b"x" * (MAX_JSON_BYTES + 1),
    ],
    ids=["deep", "digits", "nan", "infinite", "negative", "object", "list", "encoding", "long"],
)
def test_metadata_that_is_beyond_use_costs_its_clip(
    load: Callable[..., ClipLoader], video: bytes, metadata: bytes
) -> None:
    members: Members = [("a.mp4", video), ("a.json", metadata), ("b.mp4", video), ("b.json", METADATA)]
    keys, faults = keys_and_faults(load(members, ("a", "b")))
    assert (keys, list(faults)) == (["b"], ["a"])


@pytest.mark.parametrize(
    "index",
    [
        "[" * 100_000,
        '{"version": 1, "shards": ' + "[" * 100_000,
        '{"version": 1, "shards": [{"name": "shard-000000.tar", "samples": 1, "bytes": BYTES, "frames": {"a": 10000001}}]}',
        '{"version": 1, "shards": [{"name": "shard-000000.tar", "samples": 1, "bytes": BYTES, "frames": {"a": true}}]}',
        '{"version": 1, "shards": [{"name": "shard-000000.tar", "samples": 1, "bytes": -1, "frames": {"a": 1}}]}',
        '{"version": 1, "shards": [{"name": "shard-000000.tar", "samples": 1, "bytes": 1, "frames": ["a"]}]}',
        '{"version": 1, "shards": [{"name": "shard-000000.tar", "samples": 1, "bytes": BYTES, "frames": {"a": 1}, '
        '"sha256": "../../trace"}]}',
        '{"version": 1, "shards": {"name": 3}}',
        "null",
        "\x00",
    ],
)
def test_an_index_beyond_use_is_refused(
    load: Callable[..., ClipLoader], tmp_path: Path, video: bytes, index: str
) -> None:
    load([("a.mp4", video), ("a.json", METADATA)])
    size = (tmp_path / "s" / "shard-000000.tar").stat().st_size
    (tmp_path / "s" / "index.json").write_text(index.replace("BYTES", str(size)))
    with pytest.raises(UserError, match="is not an index of shards"):
        find(tmp_path)


def test_a_large_index_is_not_read_to_its_end(
    load: Callable[..., ClipLoader], tmp_path: Path, video: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    load([("a.mp4", video), ("a.json", METADATA)])
    monkeypatch.setattr("data.shards.index.MAX_INDEX_BYTES", 100)
    with pytest.raises(UserError, match="more than 100 bytes"):
        find(tmp_path)


def test_reading_stops_at_the_size_in_the_index(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    with open_file(str(tmp_path / "file"), Access(), 100) as file:
        assert len(file.read()) == 100
