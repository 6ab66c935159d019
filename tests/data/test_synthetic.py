from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from data.drawing import draw_clip
from data.shards.index import find_shards
from data.synthetic import SyntheticDataModule
from data.synthetic.__main__ import main
from tae.runtime.cli import CONFIG_FOLDER
from tae.runtime.errors import UserError


def make(tmp_path: Path, **overrides: object) -> SyntheticDataModule:
    arguments = {
        "num_clips": {"train": 4, "val": 2, "test": 2},
        "clip_frames": 10,
        "clip_size": 32,
        "clips_seed": 0,
        "cache_dir": tmp_path / "cache",
        "num_frames": 8,
        "frame_stride": 1,
        "resolution": 32,
        "batch_size": 2,
        "num_workers": 0,
        "short_clip": "skip",
        "max_skipped": 0.01,
        "shuffle_buffer": 8,
        "seed": 0,
        "output_dir": tmp_path / "output",
    }
    return SyntheticDataModule(**(arguments | overrides))  # type: ignore[arg-type]


def test_clips_are_written_once_and_splits_differ(tmp_path: Path) -> None:
    module = make(tmp_path)
    killed = module.folder.with_name(f".draft-{module.folder.name}") / "train"  # what a killed process leaves
    killed.mkdir(parents=True)
    (killed / "shard-000000.tar").write_bytes(b"half")
    module.prepare_data()
    stamps = {path: path.stat().st_mtime_ns for path in module.folder.rglob("*")}
    again = make(tmp_path)
    again.prepare_data()
    assert again.folder == module.folder
    assert stamps == {path: path.stat().st_mtime_ns for path in module.folder.rglob("*")}
    name = module.folder.name
    assert {path.name for path in module.folder.parent.iterdir()} == {name, f".{name}.lock"}  # no draft is left
    again.setup()
    (val,), (test,) = list(again.val_dataloader()), list(again.test_dataloader())
    assert len(again.train_dataloader()) == 2
    assert val["frames"].shape == (2, 8, 32, 32, 3)
    assert not torch.equal(val["frames"], test["frames"])


def test_other_arguments_are_other_files(tmp_path: Path) -> None:
    folders = {make(tmp_path, **change).folder for change in ({}, {"clips_seed": 1}, {"clip_frames": 12})}
    assert len(folders) == 3


def test_clips_move_are_coloured_and_repeat_with_their_seed() -> None:
    clips = [draw_clip(np.random.default_rng(seed), 8, 32, 42).astype(int) for seed in range(20)]
    assert all((draw_clip(np.random.default_rng(3), 8, 32, 42) == clips[3]).all() for _ in range(2))
    assert np.mean([np.abs(np.diff(clip, axis=0)).mean() for clip in clips]) > 2
    assert np.mean([clip.std(axis=(0, 1, 2)).mean() for clip in clips]) > 15
    assert np.std([clip.mean(axis=(0, 1, 2)) for clip in clips], axis=0).min() > 20


@pytest.mark.parametrize(
    "change",
    [{"clip_size": 33}, {"clip_size": 8}, {"clip_frames": 0}, {"num_clips": {"train": 1, "val": 1, "test": 0}}],
)
def test_arguments_out_of_range_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"clip_size|num_clips"):
        make(tmp_path, **change)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cache_dir=.* cannot be written"):
        make(tmp_path, cache_dir=tmp_path / "file").prepare_data()


def test_generated_clips_as_a_data_set_of_their_own(tmp_path: Path) -> None:
    """`python -m data.synthetic`: clips like those of the demo, in shards that any data group can name."""

    def write(folder: Path, counts: str) -> None:
        sizes = ["clip_frames=10", "clip_size=32", f"num_clips={counts}"]
        with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
            main(compose("synthetic", overrides=[*sizes, f"output={folder}"]))

    write(tmp_path / "clips", "{train: 4, val: 2, test: 0}")
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == ["train", "val"]
    module = make(tmp_path)
    module.prepare_data()
    ours, cached = (
        find_shards(str(at / "train" / "shard-*.tar"), "shards")[0].frames for at in (tmp_path / "clips", module.folder)
    )
    assert ours == cached
    assert len(find_shards(str(tmp_path / "clips" / "val" / "shard-*.tar"), "shards")[0].frames) == 2
    with pytest.raises(UserError, match="is not empty"):
        write(tmp_path / "clips", "{train: 1, val: 0, test: 0}")
    with pytest.raises(UserError, match=r"num_clips\.val=-1 is not allowed"):
        write(tmp_path / "other", "{train: 1, val: -1, test: 0}")
