"""A training run's folder, made in a moment, and the export of what is in it."""

import json
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from tae import TemporalAutoencoder
from tae.runtime.cli import CONFIG_FOLDER
from tae.runtime.files import file_sha256

METRICS = {
    "protocol": "tae-eval-1",
    "num_clips": 1234,
    "num_frames": 39488,
    "metrics": {
        "psnr": {"mean": 31.416, "ci95": [31.0, 31.8]},
        "ssim": {"mean": 0.92351, "ci95": None},
        "lpips": {"mean": None, "ci95": None, "reason": "no weights"},
    },
    "baselines": {"trilinear": {"psnr": {"mean": 22.5, "ci95": [22.0, 23.0]}}},
    "skipped": [],
    "config": {"data": {"num_frames": 32, "resolution": 256, "shards": {"test": "secret/clips/*.tar"}}},
}


def config(**values: Any) -> DictConfig:
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        return compose("export", overrides=[f"{key}={value}" for key, value in values.items()])


def make_model(group_norm: str = "frame") -> TemporalAutoencoder:
    """A tiny model whose temporal parts do something, as after training."""
    model = TemporalAutoencoder(
        4, (1, 1, 2, 2), encoder_blocks=1, decoder_blocks=1, norm_groups=2, group_norm=group_norm
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def write_run(folder: Path) -> Path:
    """A checkpoint, and the metrics of its evaluation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make_model()
    (folder / "checkpoints").mkdir()
    checkpoint = {
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "architecture": model.architecture,
        "config": {},
        "starting_weights": {"image_vae": "owner/vae", "sha256": "abc"},
    }
    torch.save(checkpoint, folder / "checkpoints" / "best.ckpt")
    digest = file_sha256(folder / "checkpoints" / "best.ckpt")
    (folder / "metrics.json").write_text(json.dumps(METRICS | {"checkpoint": {"path": "best.ckpt", "sha256": digest}}))
    return folder


def write_stats(folder: Path, sha256: str) -> None:
    stats = {
        "num_clips": 9,
        "num_latent_frames": 1,
        "num_positions": 1,
        "mean": [0.5],
        "std": [2.0],
        "posterior_std": [1.0],
    }
    stats |= {"shift": 0.5, "scale": 0.25, "outlier_rate": 0.01, "checkpoint": {"path": "p", "sha256": sha256}}
    (folder / "latent_stats.json").write_text(json.dumps({"version": 1} | stats))
