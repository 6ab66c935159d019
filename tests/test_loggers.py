"""What the loggers keep of a run, read back from an offline W&B run and a TensorBoard file."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from PIL import Image

from tae.training.loggers import WANDB_ID
from tae.training.run import train
from tests.fakes.wandb_file import read_records

ROOT = Path(__file__).parents[1]
SMALL = [
    "experiment=demo",
    "init_from=null",
    "optimizer.lr=1e-3",
    "model.base_channels=8",
    "model.norm_groups=4",
    "data.num_clips={train: 4, val: 2, test: 2}",
    "data.clip_frames=10",
    "data.num_frames=8",
    "data.clip_size=32",
    "data.resolution=32",
    "data.batch_size=2",
    "trainer.val_check_interval=3",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "callbacks.progress.refresh_rate=0",
    "callbacks.videos.num_clips=1",
    "scheduler=constant",
    "page.clips=0",
]
FIGURES = {
    "train/loss",
    "train/reconstruction",
    "train/kl",
    "train/opl",
    "train/psnr",
    "train/step_time",
    "train/clips_per_second",
    "train/frames_per_second",
    "lr-AdamW",
    "val/psnr",
    "val/ssim",
    "test/psnr",
    "test/ssim",
    "latents/effective_rank",
    "latents/equivariance_flip",
    "latents/psnr_at_noise_0.1",
}

# W&B's own: it leaves its connection and log file to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


def run(output: Path, cache: Path, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return train(
            compose("train", overrides=[*SMALL, f"data.cache_dir={cache}", f"output_dir={output}", *overrides])
        )


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A run of 5 steps with all loggers, stopped and resumed once; its folder and those of its W&B parts."""
    output, cache = tmp_path_factory.mktemp("logged"), tmp_path_factory.mktemp("cache")
    loggers = ["logger=[csv,tensorboard,wandb]", "logger.wandb.offline=true", "resume=auto"]
    for steps in (5, 8):
        run(output, cache, *loggers, f"trainer.max_steps={steps}")
    return output, sorted((output / "wandb").glob("offline-run-*"))


def test_wandb_keeps_figures_config_code_and_videos(logged: tuple[Path, list[Path]]) -> None:
    _, parts = logged
    records = list(read_records(next(parts[0].glob("*.wandb"))))
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert {name for row in rows for name in row} >= FIGURES
    steps = [row["trainer/global_step"] for row in rows if "train/loss" in row]
    assert steps == [0, 1, 2, 3, 4]
    config = {
        item.key: json.loads(item.value_json)
        for record in records
        for update in (record.run.config, record.config)
        for item in update.update
    }
    assert config["seed"] == 0
    assert config["optimizer"]["lr"] == 1e-3
    assert set(config["environment"]) >= {"git_commit", "torch", "device"}
    videos = [value[0]["path"] for row in rows for name, value in row.items() if name.endswith("/videos")]
    assert len(videos) == 2, "of the validations at steps 0 and 3"
    assert all((parts[0] / "files" / video).read_bytes()[4:8] == b"ftyp" for video in videos), "MP4"


def test_a_resumed_run_goes_on_under_its_id(logged: tuple[Path, list[Path]]) -> None:
    output, parts = logged
    assert len(parts) == 2
    identity = (output / WANDB_ID).read_text().strip()
    for part in parts:
        runs = [record.run for record in read_records(next(part.glob("*.wandb"))) if record.HasField("run")]
        assert {started.run_id for started in runs} == {identity}


def test_another_run_in_the_folder_has_another_id(logged: tuple[Path, list[Path]], tmp_path: Path) -> None:
    output, _ = logged
    (tmp_path / WANDB_ID).write_text("anotherid\n")
    run(tmp_path, output / "cache", "logger=wandb", "logger.wandb.offline=true", "trainer.max_steps=1")
    assert (tmp_path / WANDB_ID).read_text().strip() != "anotherid"


def test_tensorboard_keeps_figures_config_and_videos(logged: tuple[Path, list[Path]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, EventAccumulator

    output, _ = logged
    events = EventAccumulator(str(output / "tensorboard"), size_guidance={SCALARS: 0, IMAGES: 0}).Reload()
    assert set(events.Tags()["scalars"]) >= FIGURES
    assert "hp_metric" not in events.Tags()["scalars"]
    assert [event.step for event in events.Scalars("train/loss")] == list(range(8))
    assert [event.step for event in events.Scalars("val/psnr")][-1] == 5
    (tag,) = events.Tags()["images"]
    assert tag.startswith("val/")
    video = Image.open(io.BytesIO(events.Images(tag)[0].encoded_image_string))
    assert video.n_frames == 8
    assert video.size == (516, 256)
    config = yaml.safe_load((output / "tensorboard" / "hparams.yaml").read_text())
    assert config["optimizer"]["lr"] == 1e-3
    assert "git_commit" in config["environment"]


def test_the_csv_is_beside_them(logged: tuple[Path, list[Path]]) -> None:
    output, _ = logged
    header = (output / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert set(header) >= FIGURES
