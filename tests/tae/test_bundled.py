"""The weights that come along: found by name everywhere, small, described truly, and better than a trivial codec."""

import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from data.decode import read_frames
from data.transforms import Square
from tae import TemporalAutoencoder, clip_to_frames, frames_to_clip
from tae.autoencoder import BUNDLED
from tae.checkpoint import load_model
from tae.cli import CONFIG_FOLDER
from tae.config import evaluation_data, is_missing
from tae.files import file_sha256
from tae.metrics import psnr, trilinear_baseline

FOLDER = BUNDLED["tiny"]
# Groups that training has not seen (the test shards of `experiment=tiny_pretrain`), one easy and one hard.
UNSEEN = ("BodyWeightSquats/v_BodyWeightSquats_g01_c03.avi", "Punch/v_Punch_g22_c07.avi")


def config(entry: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        return compose(entry, overrides=list(overrides))


def test_every_entry_point_starts_from_them() -> None:
    for entry in ("evaluate", "reconstruct", "encode", "export"):
        assert config(entry)["ckpt"] == "tiny"
    demo = config("train")
    assert demo.init_from == "tiny"
    assert not is_missing("tiny")
    model = TemporalAutoencoder.from_pretrained("tiny")
    assert {name: demo.model[name] for name in model.architecture} == model.architecture
    assert load_model("tiny").sha256 == file_sha256(FOLDER / "model.safetensors")


def test_a_folder_of_that_name_is_reached_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    TemporalAutoencoder(4, (1, 1), encoder_blocks=1, decoder_blocks=1, norm_groups=1).save_pretrained("tiny")
    assert TemporalAutoencoder.from_pretrained("tiny").factor == 8
    assert TemporalAutoencoder.from_pretrained("./tiny").factor == 2


def test_they_are_small_and_their_card_is_about_them() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 12e6
    assert file_sha256(FOLDER / "model.safetensors") in (FOLDER / "README.md").read_text()


def test_the_readme_says_of_them_what_their_card_says() -> None:
    model, baseline = re.search(r"PSNR \(dB\) \| ([\d.]+) .*?\| ([\d.]+) ", (FOLDER / "README.md").read_text()).groups()
    readme = " ".join((Path(CONFIG_FOLDER).parent / "README.md").read_text().split())
    claimed = re.search(r"have not seen ([\d.]+) dB above the trilinear codec", readme)[1]
    assert float(claimed) == pytest.approx(float(model) - float(baseline), abs=0.06)  # rounded there


def test_they_are_evaluated_on_generated_clips_or_on_given_shards() -> None:
    assert evaluation_data(config("evaluate", "output_dir=out"), None)["_target_"].endswith("SyntheticDataModule")
    given = evaluation_data(config("evaluate", "output_dir=out", "data.shards.test=a.tar", "data.resolution=128"), None)
    assert given["_target_"].endswith("ClipDataModule")
    assert (given["shards"]["test"], given["resolution"], given["num_frames"]) == ("a.tar", 128, 32)


@pytest.mark.parametrize("name", UNSEEN)
def test_unseen_video_is_three_decibels_above_the_trivial_codec(shared_clips: Path, name: str) -> None:
    video = (shared_clips / "ucf101" / name).read_bytes()
    with av.open(shared_clips / "ucf101" / name) as container:
        start = (sum(1 for _ in container.decode(video=0)) - 32) // 2
    images = read_frames(video, range(start, start + 32))
    frames = torch.from_numpy(np.stack([Square(*images.shape[1:3], 128)(image) for image in images]))[None]
    clip = frames_to_clip(frames)
    with torch.no_grad():
        ours = TemporalAutoencoder.from_pretrained("tiny")(clip, sample_posterior=False).reconstruction
    ours, trivial = (
        psnr(frames[0], clip_to_frames(result)[0]).mean().item() for result in (ours, trilinear_baseline(clip))
    )
    assert ours > trivial + 3
