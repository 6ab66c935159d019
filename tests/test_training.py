"""Training from the configs, on generated clips: what a run leaves behind, exact resume, what stops it."""

import contextlib
import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from tae import TemporalAutoencoder, UserError
from tae.evaluation.run import evaluate
from tae.model.checkpoint_file import read_checkpoint
from tae.model.pretrained import load_model
from tae.runtime.files import file_sha256
from tae.training.run import train

ROOT = Path(__file__).parents[1]
SMALL = [
    "experiment=demo",
    "init_from=null",
    "model.base_channels=8",
    "model.norm_groups=4",
    "data.num_clips={train: 6, val: 3, test: 3}",
    "data.clip_frames=10",
    "data.clip_size=32",
    "data.num_frames=8",
    "data.resolution=32",
    "data.batch_size=1",
    "trainer.val_check_interval=4",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "callbacks.progress.refresh_rate=0",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("synthetic")


def config(entry: str, output: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(entry, overrides=[*overrides, f"output_dir={output}"])


def run(output: Path, cache: Path, *overrides: str) -> dict[str, Any]:
    return train(config("train", output, *SMALL, f"data.cache_dir={cache}", *overrides))


def weights(output: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    return load_model(output / "checkpoints" / name).model.state_dict()


@pytest.fixture(scope="module")
def trained(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run")
    with (output / "log.txt").open("w") as log, contextlib.redirect_stdout(log):
        run(output, cache, "trainer.max_steps=8", "optimizer.lr=1e-3", "callbacks.progress.refresh_rate=10")
    return output


def test_a_run_leaves_what_the_contract_says(trained: Path) -> None:
    document = json.loads((trained / "metrics.json").read_text())
    assert document["protocol"] == "tae-eval-2"
    assert (document["num_clips"], document["num_frames"]) == (3, 24)
    assert set(document["metrics"]["psnr"]) == {"mean", "ci95"}
    assert document["baselines"]["trilinear"]["psnr"]["mean"] > 0
    assert document["metrics"]["lpips"]["mean"] is None
    assert document["training"]["steps"] == 8
    assert 0 < document["training"]["validation_psnr_before"] < document["training"]["validation_psnr_best"]
    assert document["config"]["seed"] == 0
    assert OmegaConf.to_container(OmegaConf.load(trained / "config.yaml")) == document["config"]
    assert {file.name for file in (trained / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert {"best.mp4", "median.mp4", "worst.mp4"} < {file.name for file in (trained / "videos").iterdir()}


def test_figures_are_logged(trained: Path) -> None:
    with (trained / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in (
        "train/loss",
        "train/reconstruction",
        "train/kl",
        "train/opl",
        "train/psnr",
        "train/step_time",
        "val/psnr",
    ):
        assert any(row[name] for row in rows), name
    assert not any(name.startswith("train/perceptual") for name in rows[0])  # weight 0: not computed
    assert [int(row["step"]) for row in rows if row["val/psnr"]] == [0, 3, 7]


def test_a_log_shows_steps_and_validations_as_lines(trained: Path) -> None:
    """Standard output is a file: nothing was shown there between the first message and the report."""
    lines = [line for line in (trained / "log.txt").read_text().splitlines() if line.startswith("step ")]
    assert lines[0].startswith("step 0/8  validation:  psnr ")  # of the weights that training starts from
    assert [line.split()[1] for line in lines if "validation" in line] == ["0/8", "4/8", "8/8"]
    steps = [line for line in lines if "validation" not in line]
    assert [line.split()[1] for line in steps] == [f"{step}/8" for step in range(1, 9)]
    number = r"[\d.e+-]+"
    shown = rf"step 7/8  loss {number}  reconstruction {number}  kl {number}  opl {number}  outlier_rate {number}"
    assert re.fullmatch(rf"{shown}  psnr {number} dB  {number} s/step  \d+:\d\d left", steps[6]), steps[6]


def test_no_step_is_logged_where_lightning_is_told_so(cache: Path, tmp_path: Path) -> None:
    run(tmp_path, cache, "trainer.max_steps=5", "trainer.log_every_n_steps=0", "callbacks.videos.num_clips=0")
    header = (tmp_path / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "val/psnr" in header
    assert not any(name.startswith("train/") for name in header)


def test_callbacks_can_be_left_out(cache: Path, tmp_path: Path) -> None:
    """The last checkpoint is then the one to measure, and no times are known; before it was refused after the training."""
    document = run(tmp_path, cache, "trainer.max_steps=1", "~callbacks.best", "~callbacks.step_timer", "page.clips=0")
    assert document["checkpoint"]["path"].endswith("last.ckpt")
    assert document["training"]["seconds_per_step"] is None
    assert document["training"]["validation_psnr_best"] is None


def test_the_best_checkpoint_is_found_in_any_order_of_callbacks(cache: Path, tmp_path: Path) -> None:
    cfg = config("train", tmp_path, *SMALL, f"data.cache_dir={cache}", "trainer.max_steps=4", "page.clips=0")
    cfg.callbacks = dict(reversed(cfg.callbacks.items()))
    document = train(cfg)
    assert document["checkpoint"]["path"].endswith("best.ckpt")
    assert document["training"]["validation_psnr_best"] > 0


def test_checkpoints_hold_plain_values_and_the_autoencoder_alone(trained: Path) -> None:
    checkpoint = read_checkpoint(trained / "checkpoints" / "last.ckpt")
    assert checkpoint["architecture"]["base_channels"] == 8
    assert checkpoint["config"]["data"]["num_frames"] == 8
    model = TemporalAutoencoder(**checkpoint["architecture"])
    assert {name.removeprefix("model.") for name in checkpoint["state_dict"]} == set(model.state_dict())
    moments = checkpoint["optimizer_states"][0]["state"]
    assert len(moments) == len(list(model.parameters()))


def test_evaluation_of_a_checkpoint_gives_the_numbers_of_its_training(
    trained: Path, cache: Path, tmp_path: Path
) -> None:
    arguments = [f"ckpt={trained}/checkpoints/best.ckpt", "trainer.accelerator=cpu", f"data.cache_dir={cache}"]
    again = evaluate(config("evaluate", tmp_path, *arguments))
    assert again["metrics"] == json.loads((trained / "metrics.json").read_text())["metrics"]


def test_an_evaluation_says_what_it_measured(trained: Path, cache: Path, tmp_path: Path) -> None:
    """The settings that come from the checkpoint too, but not the folder of its run."""
    arguments = [
        f"ckpt={trained}/checkpoints/best.ckpt",
        "trainer.accelerator=cpu",
        "page.clips=0",
        "data.num_frames=4",
        f"data.cache_dir={cache}",  # a folder that is never taken from a checkpoint
    ]
    written = evaluate(config("evaluate", tmp_path, *arguments))["config"]
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml")) == written
    trained_with = read_checkpoint(trained / "checkpoints" / "best.ckpt")["config"]
    measured = {"num_frames": 4, "output_dir": str(tmp_path)}
    assert written["data"] == trained_with["data"] | measured
    assert written["trainer"]["precision"] == trained_with["trainer"]["precision"] == "32-true"


def test_evaluation_of_a_saved_folder_needs_data_settings(trained: Path, cache: Path, tmp_path: Path) -> None:
    load_model(trained / "checkpoints" / "best.ckpt").model.save_pretrained(tmp_path / "model")
    arguments = [f"ckpt={tmp_path}/model", "trainer.accelerator=cpu"]
    with pytest.raises(UserError, match="add data=GROUP"):
        evaluate(config("evaluate", tmp_path / "out", *arguments))
    data = ["data=synthetic", f"data.cache_dir={cache}", *(item for item in SMALL if item.startswith("data."))]
    again = evaluate(config("evaluate", tmp_path / "out", *arguments, *data))
    assert again["metrics"] == json.loads((trained / "metrics.json").read_text())["metrics"]


@pytest.mark.slow
def test_resuming_twice_gives_the_weights_of_an_uninterrupted_run(trained: Path, cache: Path, tmp_path: Path) -> None:
    """Stopped after 3 and after 5 of 8 steps, in the middle of an epoch of 6."""
    for steps in (3, 5, 8):
        run(tmp_path, cache, f"trainer.max_steps={steps}", "optimizer.lr=1e-3", "resume=auto", "scheduler=constant")
    whole = tmp_path / "whole"
    run(whole, cache, "trainer.max_steps=8", "optimizer.lr=1e-3", "scheduler=constant")
    resumed, uninterrupted = weights(tmp_path), weights(whole)
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in uninterrupted)


def test_resume_passes_over_a_damaged_checkpoint(
    trained: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, cache, "trainer.max_steps=4", "optimizer.lr=1e-3", "scheduler=constant")
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:10_000])
    run(tmp_path, cache, "trainer.max_steps=5", "optimizer.lr=1e-3", "scheduler=constant", "resume=auto")
    assert "passes over last.ckpt" in capsys.readouterr().out
    assert read_checkpoint(last)["global_step"] == 5


def test_fine_tuning_starts_from_the_weights_alone(trained: Path, cache: Path, tmp_path: Path) -> None:
    checkpoint = trained / "checkpoints" / "last.ckpt"
    settings = ["optimizer.lr=1e-12", "scheduler=constant"]
    document = run(tmp_path, cache, f"init_from={checkpoint}", "trainer.max_steps=1", *settings)
    start, end = weights(trained), weights(tmp_path)
    assert all(torch.allclose(start[name], end[name], rtol=0, atol=1e-10) for name in start)
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 1
    origin = {"init_from": str(checkpoint), "sha256": file_sha256(checkpoint)}
    assert document["checkpoint"]["starting_weights"] == origin
    run(tmp_path, cache, "resume=auto", "trainer.max_steps=2", *settings)
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["starting_weights"] == origin


def test_fine_tuning_from_another_shape_is_refused(trained: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"(?s)does not fit this model.*conv_in") as caught:
        run(tmp_path, cache, f"init_from={trained}/checkpoints/last.ckpt", "model.base_channels=16")
    assert isinstance(caught.value.__cause__, UserError)


def test_mixed_precision_trains_and_clips(cache: Path, tmp_path: Path) -> None:
    """Under bf16 the fused optimizer was refused by Lightning's clipping, after the first step's backward pass."""
    arguments = ["trainer.max_steps=2", "trainer.val_check_interval=2", "scheduler=constant", "precision=bf16"]
    run(tmp_path / "free", cache, *arguments, "trainer.gradient_clip_val=null", "optimizer.lr=1e-3")
    run(tmp_path / "held", cache, *arguments, "trainer.gradient_clip_val=1e-9", "optimizer.lr=1e-3")
    free, held = weights(tmp_path / "free"), weights(tmp_path / "held")
    moved = {name: (free[name] - held[name]).abs().max().item() for name in held}
    # Clipped to 1e-9, gradients vanish beside AdamW's eps of 1e-8; free, an update is about the learning rate. Without
    # clipping the two runs would be the same.
    assert max(moved.values()) > 1e-4


def test_a_run_is_not_overwritten(trained: Path, cache: Path) -> None:
    before = (trained / "checkpoints" / "last.ckpt").read_bytes()
    with pytest.raises(UserError, match=r"holds the checkpoints of another run.*resume=auto"):
        run(trained, cache, "trainer.max_steps=1")
    assert (trained / "checkpoints" / "last.ckpt").read_bytes() == before


def test_a_config_in_a_checkpoint_cannot_name_other_classes(trained: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    trace = tmp_path / "trace"
    checkpoint["config"]["data"] = {"_target_": "pathlib.Path.touch", "self": str(trace)}
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="It is not run"):
        evaluate(config("evaluate", tmp_path / "out", f"ckpt={tmp_path}/evil.ckpt"))
    assert not trace.exists()


def test_an_evaluation_names_the_clips_of_all_processes_that_failed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process' share stands in for a second process."""
    monkeypatch.setattr(
        "tae.evaluation.run.gather", lambda mine: [*mine, {"key": "z", "shard": "a.tar", "reason": "r"}]
    )
    arguments = [f"ckpt={trained}/checkpoints/best.ckpt", "trainer.accelerator=cpu", "page.clips=0"]
    found = evaluate(config("evaluate", tmp_path / "few", *arguments))["skipped"]
    assert found == [{"key": "z", "shard": "a.tar", "reason": "r"}]
    monkeypatch.setattr("tae.evaluation.run.JUDGED_FROM", 4)
    evaluate(config("evaluate", tmp_path / "allowed", *arguments, "data.max_skipped=0.25"))
    with pytest.raises(UserError, match=r"1 of 4 test clips .*\(25.0%\); data.max_skipped allows 1.0%.*skipped.jsonl"):
        evaluate(config("evaluate", tmp_path / "many", *arguments))
    assert (tmp_path / "many" / "metrics.json").exists()


@pytest.mark.parametrize("logger", ["csv", "tensorboard"])
def test_loggers_are_built(logger: str, tmp_path: Path) -> None:
    loggers = instantiate(config("train", tmp_path, f"logger={logger}").logger)
    assert {"csv", logger} == set(loggers)


@pytest.mark.slow
def test_a_sweep_over_two_processes_compares_its_runs(cache: Path, tmp_path: Path) -> None:
    """Two runs of two processes each: as many steps, each test clip once, and one table in the end."""
    command = [sys.executable, "train.py", "-m", *SMALL, f"data.cache_dir={cache}", f"output_dir={tmp_path}"]
    command += ["loss.opl.weight=0,1", "trainer.devices=2", "trainer.max_steps=4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    with (tmp_path / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert (tmp_path / "comparison.md").is_file()
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    for run_folder in ("0", "1"):
        assert json.loads((tmp_path / run_folder / "metrics.json").read_text())["num_clips"] == 3
