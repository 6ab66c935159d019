"""Plain videos are measured as shards of them are."""

import csv
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from data.prepare import main as prepare
from tae import UserError
from tae.evaluation.run import evaluate
from tae.runtime.cli import CONFIG_FOLDER
from tests.references.video import numbered_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos, one of them in a subfolder, one that is too short, and two files that are none."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "more").mkdir()
    numbered_video(folder / "a.mp4", "mpeg4", frames=12)
    numbered_video(folder / "more" / "b.mkv", "ffv1", frames=20)
    numbered_video(folder / "short.mkv", "ffv1", frames=3)
    (folder / "broken.mp4").write_bytes(b"not a video")
    (folder / "notes.txt").touch()
    return folder


def run(command: str, *overrides: str) -> Any:
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        cfg = compose(command, overrides=list(overrides))
    return prepare(cfg) if command == "prepare" else evaluate(cfg)


WINDOW = ("metrics=[psnr]", "data.num_frames=8", "data.resolution=32", "data.num_workers=0", "trainer.accelerator=cpu")


def test_a_folder_of_videos_gives_the_numbers_of_its_shards(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    output = tmp_path / "plain"
    output.mkdir()
    (output / ".metrics.json.4711.tmp").touch()  # of a killed evaluation
    plain = run("evaluate", f"ckpt={checkpoint}", f"source={videos}", *WINDOW, f"output_dir={output}")
    with (output / "source" / "rejected.csv").open(newline="") as file:
        rejected = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert set(rejected) == {"broken.mp4", "notes.txt"}
    assert not list(output.glob(".*.tmp"))
    run("prepare", f"source={videos}", f"output={tmp_path}/shards", "split=test")
    shards = ("data=folder", f"data.shards.test={tmp_path}/shards/test/*.tar")
    prepared = run("evaluate", f"ckpt={checkpoint}", *shards, *WINDOW, f"output_dir={tmp_path}/out")
    assert plain["num_clips"] == prepared["num_clips"] == 2
    assert plain["metrics"]["psnr"] == prepared["metrics"]["psnr"]
    again = run("evaluate", f"ckpt={checkpoint}", f"source={videos}", *WINDOW, f"output_dir={output}")
    assert again["metrics"] == plain["metrics"]


@pytest.mark.parametrize("source", ["{here}/list.txt", "{videos}/a.mp4"])
def test_a_list_or_a_single_video_and_the_bundled_weights(source: str, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{videos}/a.mp4\nmissing.mp4\n")
    given = source.format(here=tmp_path, videos=videos)
    found = run("evaluate", f"source={given}", *WINDOW, f"output_dir={tmp_path}/out")
    assert found["num_clips"] == 1
    assert found["config"]["data"]["shards"]["test"] == [f"{tmp_path}/out/source/test/shard-000000.tar"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["source=/nowhere"], "^source=/nowhere does not exist"),
        (["source={videos}", "data.shards.test=x.tar"], "both say what to measure on"),
        (["source={videos}/more", "data.num_frames=99"], "no clip is long enough"),
        (["source={videos}/notes.txt"], "holds no videos"),
    ],
)
def test_what_cannot_be_measured_is_said(overrides: list[str], message: str, videos: Path, tmp_path: Path) -> None:
    given = [override.format(videos=videos) for override in overrides]
    with pytest.raises(UserError, match=message):
        run("evaluate", *WINDOW, *given, f"output_dir={tmp_path}")
