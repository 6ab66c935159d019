"""Networks of diffusers are trained, killed, resumed and exported; diffusers reads what comes of it."""

import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from reliability.tiny_run import assert_same_state, finish, kill_group, start_train

from tae.export import main as export
from tae.model.checkpoint_file import read_checkpoint
from tae.model.diffusers.autoencoder import DiffusersAutoencoder
from tae.model.pretrained import load_autoencoder
from tae.runtime.cli import CONFIG_FOLDER
from tests.fakes.diffusers_models import SMALL

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

SMALL_RUN = (
    *("data=synthetic", "data.num_clips={train: 6, val: 1, test: 1}", "data.clip_frames=10", "data.clip_size=32"),
    *("data.num_frames=9", "data.resolution=32", "data.batch_size=1", "data.num_workers=1", "precision=fp32"),
    *("trainer.accelerator=cpu", "trainer.max_steps=16", "trainer.val_check_interval=8", "optimizer.lr=1e-3"),
    *("callbacks.last.every_n_steps=2", "callbacks.progress.refresh_rate=0", "callbacks.videos.num_clips=1"),
    *("metrics=quick", "report.latents=false", "page.clips=1", "loss.perceptual.weight=0"),
    *("validate_first=false", "resume=auto"),
)
EVERYTHING = (
    *("ema.decay=0.9", "adversary=patch", "adversary.frame_channels=4", "adversary.clip_channels=4"),
    *("adversary.layers=2", "adversary.start=3", "adversary.alone=3", "adversary.ramp=6", "model.latent_noise=0.2"),
)
DECODER = ("trainable=decoder", "loss.kl.weight=0", "loss.opl.weight=0", "model.gradient_checkpointing=true")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("name", "settings"),
    [("AutoencoderKLWan", EVERYTHING), ("AutoencoderKLLTXVideo", DECODER)],
    ids=["wan, with all options", "ltx, the decoder"],
)
def test_killed_resumed_exported(name: str, settings: tuple[str, ...], tmp_path: Path) -> None:
    """A run that is killed ends in the same bits; what it exports is read by diffusers, and gives its outputs."""
    cls = getattr(diffusers, name)
    cls(**SMALL[name][0]).save_pretrained(tmp_path / "published")
    network = ("model=diffusers", f"model.class_name={name}", f"model.source={tmp_path / 'published'}")
    run = (*network, *SMALL_RUN, f"data.cache_dir={tmp_path / 'cache'}", *settings)
    code, _, errors = finish(start_train(f"output_dir={tmp_path / 'whole'}", *run))
    assert code == 0, errors

    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    process = start_train(f"output_dir={tmp_path / 'killed'}", *run)
    while process.poll() is None and not (last.exists() and read_checkpoint(last)["global_step"] >= 6):
        time.sleep(0.05)
    kill_group(process)
    assert read_checkpoint(last)["global_step"] < 16, "it ended before it was killed"
    code, _, errors = finish(start_train(f"output_dir={tmp_path / 'killed'}", *run))
    assert code == 0, errors
    assert_same_state(tmp_path / "whole" / "checkpoints" / "last.ckpt", last)

    trained = load_autoencoder(last)
    assert isinstance(trained.model, DiffusersAutoencoder)
    assert trained.model.starting_weights is not None
    assert trained.model.starting_weights["source"] == str(tmp_path / "published")
    theirs = cls.from_pretrained(tmp_path / "published")
    encoders = (vae.encoder.parameters() for vae in (trained.model.vae, theirs))
    frozen = [torch.equal(ours, before) for ours, before in zip(*encoders, strict=True)]
    assert all(frozen) if settings == DECODER else not any(frozen)

    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        export(compose("export", overrides=[f"ckpt={last}", f"output={tmp_path / 'exported'}"]))
    exported = cls.from_pretrained(tmp_path / "exported").eval()
    clip = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    with torch.inference_mode():
        ours = trained.model(clip, sample_posterior=False).reconstruction
        assert torch.equal(exported(clip).sample, ours)
