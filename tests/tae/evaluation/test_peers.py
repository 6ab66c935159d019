"""Autoencoders of diffusers, small and with random weights, through the same evaluation as ours."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file, save_file

from tae import UserError
from tae.evaluation.peers import FACTORS, WEIGHTS_FILE, DiffusersAutoencoder, load_other
from tae.evaluation.run import evaluate

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
ROOT = Path(__file__).parents[3]
GROUPS = {"norm_num_groups": 4}

# For each class: constructor arguments of a small model, stride in time, multiple in space, latents of 8 frames 32x32.
SMALL: dict[str, tuple[dict[str, Any], int | None, int, tuple[int, ...]]] = {
    "AutoencoderKL": (
        {
            "block_out_channels": (8, 8, 8),
            "down_block_types": ("DownEncoderBlock2D",) * 3,
            "up_block_types": ("UpDecoderBlock2D",) * 3,
            **GROUPS,
        },
        None,
        4,
        (4, 8, 8, 8),
    ),
    "AutoencoderKLCogVideoX": (
        {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "latent_channels": 4, **GROUPS},
        4,
        8,
        (4, 3, 4, 4),
    ),
    "AutoencoderKLCosmos": (
        {
            "encoder_block_out_channels": (8, 8, 8, 8),
            "decode_block_out_channels": (8, 8, 8, 8),
            "num_layers": 1,
            "latent_channels": 4,
            "attention_resolutions": (8,),
            "resolution": 32,
        },
        8,
        8,
        (4, 2, 4, 4),
    ),
    "AutoencoderKLHunyuanVideo": (
        {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "latent_channels": 4, **GROUPS},
        4,
        8,
        (4, 3, 4, 4),
    ),
    "AutoencoderKLLTXVideo": (
        {
            "block_out_channels": (8, 8, 8, 8),
            "decoder_block_out_channels": (8, 8, 8, 8),
            "layers_per_block": (1, 1, 1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1, 1, 1),
            "latent_channels": 4,
        },
        8,
        32,
        (4, 2, 1, 1),
    ),
    "AutoencoderKLWan": ({"base_dim": 8, "z_dim": 4, "num_res_blocks": 1}, 4, 8, (4, 3, 4, 4)),
}


def make(name: str, **arguments: Any) -> Any:
    return getattr(diffusers, name)(**(SMALL[name][0] | arguments)).eval()


def test_every_class_has_a_case() -> None:
    assert set(SMALL) == set(FACTORS)


@pytest.mark.parametrize("name", SMALL)
def test_the_rules_are_the_models_own(name: str) -> None:
    _, stride, size, latents = SMALL[name]
    model = DiffusersAutoencoder(make(name))
    assert model.factors == (stride, size)
    with torch.inference_mode():
        out = model(torch.rand(1, 3, 8, 32, 32) * 2 - 1)
    assert out.latents.shape[1:] == latents
    assert out.reconstruction.shape == (1, 3, 8, 32, 32)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("frames", "height", "width"), [(9, 32, 64), (6, 35, 40), (1, 32, 32)])
def test_a_reconstruction_is_what_diffusers_gives(name: str, frames: int, height: int, width: int) -> None:
    """The same calls by hand, on a clip padded by indexing: equal bit for bit."""
    vae = make(name)
    _, stride, size, _ = SMALL[name]
    clip = torch.rand(2, 3, frames, height, width) * 2 - 1
    wanted = frames if stride is None else 1 + -(-(frames - 1) // stride) * stride
    axes = [(wanted, frames), (-(-height // size) * size, height), (-(-width // size) * size, width)]
    t, y, x = (torch.arange(want).clamp(max=have - 1) for want, have in axes)
    padded = clip[:, :, t][:, :, :, y][..., x]
    with torch.inference_mode():
        ours = DiffusersAutoencoder(vae)(clip).reconstruction
        if stride is None:
            images = [vae.decode(vae.encode(padded[:, :, i]).latent_dist.mode()).sample for i in range(frames)]
            theirs = torch.stack(images, dim=2)
        else:
            theirs = vae.decode(vae.encode(padded).latent_dist.mode()).sample
    assert theirs.shape == padded.shape
    assert torch.equal(ours, theirs[:, :, :frames, :height, :width])


def test_a_decoder_that_denoises_is_asked_to_decode() -> None:
    vae = make("AutoencoderKLLTXVideo", timestep_conditioning=True)
    clip = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    with torch.inference_mode():
        ours = DiffusersAutoencoder(vae)(clip).reconstruction
        theirs = vae.decode(vae.encode(clip).latent_dist.mode(), temb=torch.zeros(1)).sample
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "name", [name if name == "AutoencoderKLWan" else pytest.param(name, marks=pytest.mark.slow) for name in SMALL]
)
def test_it_is_evaluated_as_ours_is(name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    make(name).save_pretrained(tmp_path / "model")
    cache = tmp_path_factory.getbasetemp() / "synthetic"  # one for all classes
    overrides = [
        f"ckpt=diffusers:{name}:{tmp_path}/model",
        "data=synthetic",
        f"data.cache_dir={cache}",
        "data.num_clips={train: 2, val: 2, test: 2}",
        "data.clip_frames=10",
        "data.num_frames=8",
        "data.clip_size=32",
        "data.resolution=32",
        "trainer.accelerator=cpu",
        f"output_dir={tmp_path}/out",
    ]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        document = evaluate(compose("evaluate", overrides=overrides))
    assert document["num_clips"] == 2
    assert document["metrics"]["psnr"]["mean"] > 0
    assert document["model"]["class"] == name
    assert document["model"]["latents"] == list(SMALL[name][3])
    assert document["model"]["compression"] == pytest.approx(3 * 8 * 32 * 32 / torch.tensor(SMALL[name][3]).prod())
    assert ("padded to 9 frames" in document["model"]["input"]) == (SMALL[name][1] is not None)
    assert document["checkpoint"]["sha256"] is not None
    latents = document["latents"]
    assert len(latents["mean"]) == SMALL[name][3][0]
    assert len(latents["decode_noise"]["psnr"]) == 5
    assert latents["equivariance"]["flip"] >= 0
    assert (max(latents["posterior_std"]) > 1e-5) == (name != "AutoencoderKLCosmos"), "whose posterior has no noise"
    assert document == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert name in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "index.html").is_file()


def refused(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_other(source)


@pytest.mark.parametrize(
    "source", ["diffusers:AutoencoderTiny:/x", "diffusers:os:/x", "diffusers:AutoencoderKLWan", "diffusers:"]
)
def test_other_classes_are_refused(source: str) -> None:
    refused(source, "CLASS one of AutoencoderKL, ")


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    refused(f"diffusers:AutoencoderKL:{tmp_path}/nothing", "no such folder")
    refused(f"diffusers:AutoencoderKL:{tmp_path}", "cannot be loaded")


def test_a_model_of_another_class_is_refused(tmp_path: Path) -> None:
    make("AutoencoderKL").save_pretrained(tmp_path)
    refused(f"diffusers:AutoencoderKLWan:{tmp_path}", "diffusers:AutoencoderKL:")


def test_weights_that_fit_in_part_are_refused(tmp_path: Path) -> None:
    """diffusers fills what is missing at random and warns."""
    make("AutoencoderKL").save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS_FILE)
    del weights["decoder.conv_in.weight"]
    save_file(weights, tmp_path / WEIGHTS_FILE)
    refused(f"diffusers:AutoencoderKL:{tmp_path}", r"decoder\.conv_in\.weight")


def test_without_diffusers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    refused("diffusers:AutoencoderKL:a/b", "pip install diffusers")
