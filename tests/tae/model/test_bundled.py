"""The bundled weights: found by name everywhere, small, described truly, and better than a trivial codec."""

import re
import tomllib
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from data.decode import read_frames
from data.sampling.transforms import Crop
from tae import TemporalAutoencoder, clip_to_frames, frames_to_clip
from tae.evaluation.stored_config import evaluation_data
from tae.interop.diffusers_adapter import DiffusersVAE
from tae.latents.stats import LatentStats, Scaling
from tae.metrics.baseline import trilinear_baseline
from tae.metrics.frame import psnr
from tae.model.bundled import BUNDLED
from tae.model.pretrained import load_model
from tae.runtime.cli import CONFIG_FOLDER
from tae.runtime.files import file_sha256
from tae.training.config_checks import is_missing

of_each = pytest.mark.parametrize("name", BUNDLED)
# Groups that training has not seen (the test shards of `experiment=tiny_pretrain`), one easy and one hard.
UNSEEN = ("BodyWeightSquats/v_BodyWeightSquats_g01_c03.avi", "Punch/v_Punch_g22_c07.avi")


def config(entry: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        return compose(entry, overrides=list(overrides))


def test_every_entry_point_starts_from_them() -> None:
    for entry in ("evaluate", "reconstruct", "encode", "export"):
        assert config(entry)["ckpt"] == "tiny"


RUNS = {"tiny": "demo", "tiny-haar": "haar_pretrain"}


@of_each
def test_a_run_has_their_network(name: str) -> None:
    assert not is_missing(name)
    model, run = TemporalAutoencoder.from_pretrained(name), config("train", f"experiment={RUNS[name]}")
    assert {key: run.model[key] for key in model.architecture} == model.architecture
    assert load_model(name).sha256 == file_sha256(BUNDLED[name] / "model.safetensors")
    assert config("train", "experiment=demo").init_from == "tiny"


def test_a_folder_of_that_name_is_reached_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    TemporalAutoencoder(4, (1, 1), encoder_blocks=1, decoder_blocks=1, norm_groups=1).save_pretrained("tiny")
    assert TemporalAutoencoder.from_pretrained("tiny").time_factor == 8
    assert TemporalAutoencoder.from_pretrained("./tiny").space_factor == 2


def test_they_are_small_and_their_cards_are_about_them() -> None:
    assert sum(path.stat().st_size for folder in BUNDLED.values() for path in folder.iterdir()) < 12e6
    for folder in BUNDLED.values():
        assert file_sha256(folder / "model.safetensors") in (folder / "README.md").read_text()


@of_each
def test_they_come_along_whole(name: str) -> None:
    """What no pattern of the package's data matches is missing where the package is installed."""
    root = Path(CONFIG_FOLDER).parent
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["tae"]
    folder = BUNDLED[name]
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "latent_stats.json",
        "model.safetensors",
    }
    assert all(any(path.relative_to(root / "tae").match(pattern) for pattern in patterns) for path in folder.iterdir())


@of_each
def test_the_statistics_of_their_latents_are_found_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = LatentStats.read(BUNDLED[name])
    made_by = {key: stats.checkpoint[key] for key in ("path", "sha256")}
    assert made_by == {"path": name, "sha256": file_sha256(BUNDLED[name] / "model.safetensors")}
    assert load_model(name).encoded(stats.checkpoint)
    card = (BUNDLED[name] / "README.md").read_text()
    assert f"Over {stats.num_clips} clips" in card
    assert f"(latents + {-stats.shift:.5f}) * {stats.scale:.5f}" in card
    (tmp_path / name).mkdir()  # which the name does not mean, as nowhere else
    monkeypatch.chdir(tmp_path)
    config = DiffusersVAE.from_pretrained(name).config
    assert (config.shift_factor, config.scaling_factor) == (stats.shift, stats.scale)
    assert config["latents_std"] == list(stats.std)


@of_each
def test_the_readme_says_of_them_what_their_card_says(name: str) -> None:
    card = (BUNDLED[name] / "README.md").read_text()
    model, baseline = re.search(r"PSNR \(dB\) \| ([\d.]+) .*?\| ([\d.]+) ", card).groups()
    readme = (Path(CONFIG_FOLDER).parent / "README.md").read_text()
    row = re.search(rf"bundled `{name}`[^|]*\| ([\d.]+) dB \|[^|]*trilinear ([\d.]+)", readme)
    assert row.groups() == (model, baseline)


def test_the_page_says_of_tiny_what_its_card_says() -> None:
    model, baseline = re.search(
        r"PSNR \(dB\) \| ([\d.]+) .*?\| ([\d.]+) ", (BUNDLED["tiny"] / "README.md").read_text()
    ).groups()
    page = " ".join((Path(CONFIG_FOLDER).parent / "docs" / "benchmarks.md").read_text().split())
    claimed = re.search(r"has not seen it is ([\d.]+) dB above the trilinear codec", page)[1]
    assert float(claimed) == pytest.approx(float(model) - float(baseline), abs=0.06)  # rounded there


def test_they_are_evaluated_on_generated_clips_or_on_given_shards() -> None:
    assert evaluation_data(config("evaluate", "output_dir=out"), None)["_target_"].endswith("SyntheticDataModule")
    given = evaluation_data(config("evaluate", "output_dir=out", "data.shards.test=a.tar", "data.resolution=128"), None)
    assert given["_target_"].endswith("ClipDataModule")
    assert (given["shards"]["test"], given["resolution"], given["num_frames"]) == ("a.tar", 128, 32)


def unseen_frames(folder: Path, name: str) -> torch.Tensor:
    """(1, 32, 128, 128, 3), as the evaluation of their card takes them."""
    video = (folder / "ucf101" / name).read_bytes()
    with av.open(folder / "ucf101" / name) as container:
        start = (sum(1 for _ in container.decode(video=0)) - 32) // 2
    images = read_frames(video, range(start, start + 32))
    return torch.from_numpy(np.stack([Crop(*images.shape[1:3], 128)(image) for image in images]))[None]


@of_each
@pytest.mark.parametrize("per_channel", [False, True])
def test_the_statistics_of_their_latents_scale_unseen_video(name: str, shared_clips: Path, per_channel: bool) -> None:
    frames = torch.cat([unseen_frames(shared_clips, video) for video in UNSEEN])
    with torch.no_grad():
        latents = TemporalAutoencoder.from_pretrained(name).encode(frames_to_clip(frames)).sample()
    scaled = Scaling.from_stats(LatentStats.read(BUNDLED[name]), per_channel).apply(latents)
    assert abs(scaled.mean().item()) < 0.2
    assert 0.7 < scaled.std().item() < 1.4


@of_each
@pytest.mark.parametrize("video", UNSEEN)
def test_unseen_video_is_three_decibels_above_the_trivial_codec(shared_clips: Path, video: str, name: str) -> None:
    frames = unseen_frames(shared_clips, video)
    clip = frames_to_clip(frames)
    with torch.no_grad():
        ours = TemporalAutoencoder.from_pretrained(name)(clip, sample_posterior=False).reconstruction
    ours, trivial = (
        psnr(frames[0], clip_to_frames(result)[0]).mean().item() for result in (ours, trilinear_baseline(clip, 8, 8))
    )
    assert ours > trivial + 3
