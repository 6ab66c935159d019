"""Small shards of real H.264 files, made once for the tests of the stream."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import data.shards.index_writer
from data.datamodule import ClipDataModule
from data.drawing import draw_clip, encode_mp4
from data.shards.index_writer import write_index
from data.shards.writer import ShardWriter

SHARDS = ((5, 20), (3, 24), (1, 9), (4, 20))  # (clips, frames of each): unequal shards, one clip too short for 16


def _write_shard(folder: Path, samples: dict[str, tuple[bytes, int]]) -> None:
    """A folder with one shard: key -> (file, number of frames)."""
    with ShardWriter(folder, "train", {"seed": 0}, shard_bytes=10**9) as writer:
        for key, (video, frames) in samples.items():
            writer.write(key, "mp4", video, {"num_frames": frames, "fps": 24.0, "label": f"of {key}"})


@pytest.fixture
def write_shard() -> Callable[[Path, dict[str, tuple[bytes, int]]], None]:
    """The function that makes a folder with one shard and its index."""
    return _write_shard


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose shards hold 12 usable clips of 32 x 42 pixels and a short one."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    entries = []
    for number, (clips, frames) in enumerate(SHARDS):
        videos = {f"clip{number}_{i}": (encode_mp4(draw_clip(rng, frames, 32, 42)), frames) for i in range(clips)}
        _write_shard(folder / "part", videos)
        name = f"shard-{number:06d}.tar"
        (folder / "part" / "shard-000000.tar").rename(folder / name)
        entries.append(json.loads((folder / "part" / "index.json").read_text())["shards"][0] | {"name": name})
    index = {"version": 1, "split": "train", "recipe": {}, "shards": entries}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def table(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shards with their samples in a table."""
    monkeypatch.setattr(data.shards.index_writer, "MAX_LISTED", 3)
    folder = tmp_path / "table"
    folder.mkdir()
    for shard in shards.glob("*.tar"):
        (folder / shard.name).symlink_to(shard)
    write_index(folder, {"split": "train", "recipe": {}}, json.loads((shards / "index.json").read_text())["shards"])
    return folder


@pytest.fixture
def make_module(shards: Path, tmp_path: Path) -> Iterator[Callable[..., ClipDataModule]]:
    """A ClipDataModule over the shards, with small defaults that can be overridden."""

    def make(**overrides: Any) -> ClipDataModule:
        pattern = str(shards / "shard-*.tar")
        arguments: dict[str, Any] = {
            "shards": {"train": pattern, "val": pattern, "test": pattern},
            "num_frames": 16,
            "frame_stride": 1,
            "resolution": 16,
            "batch_size": 2,
            "num_workers": 0,
            "short_clip": "skip",
            "max_skipped": 0.01,
            "shuffle_buffer": 4,
            "seed": 0,
            "output_dir": tmp_path / "output",
        }
        modules.append(ClipDataModule(**(arguments | overrides)))
        return modules[-1]

    modules: list[ClipDataModule] = []
    yield make
    for module in modules:
        module.teardown()
