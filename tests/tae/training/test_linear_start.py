"""A network that starts as the linear codec, against that codec itself."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from reliability.tiny_run import train_here
from torch import Tensor

from tae.metrics.linear_codec import BlockSums, LinearCodec
from tae.model.autoencoder import TemporalAutoencoder
from tae.pca import main
from tae.runtime.cli import CONFIG_FOLDER
from tae.runtime.errors import UserError
from tae.training.linear_start import start_as_linear_codec
from tests.tae.metrics.test_linear_codec import smooth_clip

NETWORK = ("model=haar", "model.base_channels=8", "model.norm_groups=2")
CLIPS = [smooth_clip(seed) for seed in range(6)]


def sums_of(clips: list[Tensor]) -> BlockSums:
    sums = BlockSums()
    for clip in clips:
        sums.add(clip)
    return sums


def started(**architecture) -> TemporalAutoencoder:
    arguments = {"channel_multipliers": [1, 2], "folds": 2, "frontend": "haar", "norm_groups": 2, "latent_channels": 4}
    torch.manual_seed(0)
    model = TemporalAutoencoder(**({"base_channels": 24} | arguments | architecture)).eval()
    for parameter in model.parameters():  # no weight that the start relies on is left as it was built
        torch.nn.init.normal_(parameter, std=0.3)
    start_as_linear_codec(model, sums_of(CLIPS))
    return model


@torch.no_grad()
def error(codec, clips: list[Tensor]) -> float:
    return sum((codec(clip) - clip).square().mean().item() for clip in clips) / len(clips)


NETWORKS = {
    "haar, 2 levels": {},
    "haar, 1 level": {"folds": 1, "channel_multipliers": [1, 2, 4]},
    "patch": {"frontend": "patch"},
    "rms": {"norm": "rms"},
    "random temporal weights": {"temporal_init": "random"},
    "zeros around the clip": {"temporal_padding": "zeros"},
    "more channels than values": {"folds": 1, "channel_multipliers": [1, 2, 2], "base_channels": 32},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_is_the_linear_codec(name: str) -> None:
    """Its components come level by level, so that it may lose a little to the ones of whole blocks, and no more."""
    model, codec = started(**NETWORKS[name]), LinearCodec(sums_of(CLIPS), model_channels := 4)
    assert model.latent_channels == model_channels
    with torch.no_grad():
        ours = error(lambda clip: model.decode(model.encode(clip).mode()), CLIPS)
    best = error(codec, CLIPS)
    assert best < ours * 1.0001, "no linear codec of blocks is better than theirs"
    assert ours < 1.02 * best
    assert best < 0.3 * error(lambda clip: clip.mean((2, 3, 4), keepdim=True).expand_as(clip), CLIPS)


def test_other_clips_and_an_image_go_through_it_alike() -> None:
    model, codec = started(), LinearCodec(sums_of(CLIPS), 4)
    with torch.no_grad():
        for clip in (smooth_clip(9, frames=8, size=40), smooth_clip(10, frames=1, size=16)):
            ours = model.decode(model.encode(clip).mode(), num_frames=clip.shape[2])
            # Another choice of weak components in between: up to a tenth of the codec's own error.
            assert (ours - codec(clip)).square().mean() < 0.1 * (codec(clip) - clip).square().mean()


@torch.no_grad()
def test_latents_are_of_unit_variance_and_hardly_noisy() -> None:
    posteriors = [started().encode(clip) for clip in CLIPS]
    latents = torch.cat([posterior.mode() for posterior in posteriors]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(latents.mean(1), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.square().mean(1), torch.ones(4), atol=1e-3, rtol=0)
    assert torch.exp(0.5 * posteriors[0].logvar).max() < 0.06


def test_a_step_moves_every_residual_block() -> None:
    """A branch whose every layer were 0 would never learn."""
    model = started().train()
    clip = CLIPS[0]
    for _ in range(2):  # the last layer of a branch has a gradient at first, what is before it after a step
        (model(clip).reconstruction - clip).square().mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    still = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not [name for name in still if "conv" in name and name.endswith("weight")]


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"folds": 0, "frontend": "conv", "channel_multipliers": [1, 1, 1, 1]}, "for networks that fold"),
        ({"channel_multipliers": [1]}, "compresses 4 times"),
        ({"base_channels": 8, "latent_channels": 17}, "17 components do not pass a last level of 16 channels"),
    ],
)
def test_other_networks_are_refused(architecture: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        started(**architecture)


def write_start(output: Path, cache: Path, *overrides: str) -> Path:
    """The command, on generated clips and for a small network."""
    settings = [
        *("data=synthetic", "data.num_clips={train: 4, val: 1, test: 1}", "data.clip_frames=8", "data.clip_size=32"),
        *(
            "data.num_frames=8",
            "data.resolution=32",
            f"data.cache_dir={cache}",
            *NETWORK,
            "clips=6",
            f"output={output}",
        ),
    ]
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        return main(compose("pca", overrides=[*settings, *overrides]))


def test_the_command_writes_a_model_that_training_starts_from(tmp_path: Path) -> None:
    folder = write_start(tmp_path / "start", tmp_path / "cache")
    assert folder.joinpath("model.safetensors").stat().st_mode & 0o044 == 0o044
    small = ("data.clip_frames=8", "data.num_frames=8", "data.resolution=32", "model.channel_multipliers=[2, 4]")
    document = train_here(
        tmp_path / "run", tmp_path / "cache", *NETWORK, *small, f"init_from={folder}", "optimizer.lr=1e-9",
        "trainer.max_steps=1", "model.encoder_blocks=2", "model.decoder_blocks=3",
    )  # fmt: skip
    measured = document["metrics"]["psnr"]["mean"], document["baselines"]["trilinear"]["psnr"]["mean"]
    assert measured[0] > measured[1] + 1, "principal components are better than a trilinear codec"


def test_the_command_refuses_before_it_reads_clips(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="is not empty"):
        write_start(tmp_path / "full", tmp_path / "cache")
    with pytest.raises(UserError, match="for networks that fold"):
        write_start(tmp_path / "new", tmp_path / "cache", "model.frontend=conv", "model.folds=0")
    with pytest.raises(UserError, match="for networks that fold"):
        write_start(tmp_path / "new", tmp_path / "cache", "model=tiny")
    with pytest.raises(UserError, match="clips"):
        write_start(tmp_path / "new", tmp_path / "cache", "clips=0")
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "cache").exists()
