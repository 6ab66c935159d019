"""Our model where diffusers expects one of its own."""

import ast
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tae import TemporalAutoencoder, UserError
from tae.interop.diffusers_adapter import DiffusersVAE
from tae.latents.stats import LatentStats
from tae.model.frame_conversion import clip_to_frames, frames_to_clip
from tae.model.tiling import Tiling

diffusers = pytest.importorskip("diffusers")

STATS = LatentStats(
    num_clips=1,
    num_latent_frames=1,
    num_positions=1,
    mean=(0.1,) * 16,
    std=(2.0,) * 16,
    posterior_std=(1.0,) * 16,
    shift=0.1,
    scale=0.5,
    outlier_rate=0.0,
    checkpoint={},
)


@pytest.fixture
def model() -> TemporalAutoencoder:
    """Its temporal parts do something, as after training: a fresh one shows every latent frame 8 times."""
    model = TemporalAutoencoder(4, (1, 1, 2, 2), encoder_blocks=1, decoder_blocks=1, norm_groups=2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture
def vae(model: TemporalAutoencoder) -> DiffusersVAE:
    return DiffusersVAE(model, STATS)


@torch.no_grad()
def test_video_and_images(model: TemporalAutoencoder, vae: DiffusersVAE) -> None:
    clip = torch.rand(2, 3, 11, 24, 33) * 2 - 1
    posterior = model.encode(clip)
    encoded = vae.encode(clip).latent_dist
    assert torch.equal(encoded.mode(), posterior.mean)
    assert torch.equal(encoded.logvar, posterior.logvar)
    a, b = (encoded.sample(torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(vae.decode(posterior.mean).sample, model.decode(posterior.mean))
    assert torch.equal(vae.decode(posterior.mean, return_dict=False)[0], model.decode(posterior.mean))
    assert vae(clip).sample.shape == clip.shape
    image = clip[:, :, 0]
    latents = vae.encode(image).latent_dist.mode()
    assert latents.shape == (2, 16, 3, 5)
    assert torch.equal(latents, model.encode(clip[:, :, :1]).mean[:, :, 0])
    assert torch.equal(vae.decode(latents).sample, model.decode(latents[:, :, None])[:, :, 0])
    assert vae(image).sample.shape == image.shape


@torch.no_grad()
def test_slicing_and_tiling(model: TemporalAutoencoder, vae: DiffusersVAE) -> None:
    clip = torch.rand(2, 3, 16, 16, 16) * 2 - 1
    whole = vae.encode(clip).latent_dist.mode()
    decoded = vae.decode(whole).sample
    vae.enable_slicing()
    torch.testing.assert_close(vae.encode(clip).latent_dist.mode(), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(vae.decode(whole).sample, decoded, atol=1e-5, rtol=0)
    vae.enable_tiling(Tiling(tile_pixel_frames=8, overlap_pixel_frames=0))
    tiled = torch.cat([model.encode(clip[:, :, :8]).mean, model.encode(clip[:, :, 8:]).mean], 2)
    torch.testing.assert_close(vae.encode(clip).latent_dist.mode(), tiled, atol=1e-5, rtol=0)
    assert vae.decode(whole).sample.shape == decoded.shape
    vae.disable_tiling()
    vae.disable_slicing()
    assert torch.equal(vae.encode(clip).latent_dist.mode(), whole)
    with pytest.raises(UserError, match="multiples of 8"):
        vae.enable_tiling(Tiling(tile_pixel_frames=12))


@torch.no_grad()
def test_half_precision_stays_half(vae: DiffusersVAE) -> None:
    vae = vae.to(torch.bfloat16)
    assert vae.dtype == torch.bfloat16
    latents = vae.encode(torch.zeros(1, 3, 8, 16, 16)).latent_dist.sample()
    assert latents.dtype == torch.bfloat16
    assert vae.decode(latents.float()).sample.dtype == torch.bfloat16


def test_statistics_beside_the_model_are_found(model: TemporalAutoencoder, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert DiffusersVAE.from_pretrained(tmp_path).config.scaling_factor == 1.0
    (tmp_path / "latent_stats.json").write_text(json.dumps({"version": 1} | vars(STATS)))
    config = DiffusersVAE.from_pretrained(tmp_path).config
    assert (config.scaling_factor, config.shift_factor, config["latents_std"]) == (0.5, 0.1, [2.0] * 16)
    assert not hasattr(config, "use_quant_conv")


@torch.no_grad()
def test_latents_normalised_by_channel_are_decoded(model: TemporalAutoencoder) -> None:
    """As Wan's pipeline undoes it: `latents / (1 / std) + mean`, with the lists of the config."""
    clip = torch.rand(1, 3, 16, 32, 32) * 2 - 1
    latents = model.encode(clip).mode()
    variance, mean = torch.var_mean(latents, (0, 2, 3, 4), correction=0)
    stats = replace(STATS, mean=tuple(mean.tolist()), std=tuple(variance.sqrt().tolist()))
    vae = DiffusersVAE(model, stats)
    mean, std = (torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    normalised = (vae.encode(clip).latent_dist.mode() - mean) / std
    torch.testing.assert_close(normalised.mean((0, 2, 3, 4)), torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalised.std((0, 2, 3, 4), correction=0), torch.ones(16), atol=1e-5, rtol=0)
    decoded = vae.decode(normalised / (1 / std) + mean).sample
    torch.testing.assert_close(decoded, model.decode(latents), atol=1e-5, rtol=0)  # rounding of the two scalings


def test_diffusers_video_processor_in_and_out(model: TemporalAutoencoder, vae: DiffusersVAE) -> None:
    """The way of a video through a diffusers pipeline is our own way."""
    from diffusers.video_processor import VideoProcessor

    frames = np.random.default_rng(0).integers(0, 256, (16, 32, 40, 3), dtype=np.uint8)
    processor = VideoProcessor(vae_scale_factor=vae.spatial_compression_ratio)
    clip = processor.preprocess_video([frames.astype(np.float32) / 255])
    ours = frames_to_clip(torch.from_numpy(frames)[None])
    torch.testing.assert_close(clip, ours, atol=1e-6, rtol=0)
    with torch.no_grad():
        latents = (vae.encode(clip).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor
        decoded = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]
        expected = clip_to_frames(model.decode(model.encode(ours).mode()))
    shown = processor.postprocess_video(decoded, output_type="np")
    assert np.abs(shown * 255 - expected.numpy()).max() < 0.51  # rounded on one side only


def test_a_pipeline_takes_it_as_its_vae(vae: DiffusersVAE) -> None:
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=16,
        out_channels=16,
        num_layers=1,
        sample_size=4,
        patch_size=2,
        norm_type="ada_norm_zero",
        num_embeds_ada_norm=1000,
        norm_elementwise_affine=False,
    )
    pipeline = diffusers.DiTPipeline(transformer=transformer, vae=vae, scheduler=diffusers.DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to("cpu")
    assert pipeline.vae is vae
    generator = torch.Generator().manual_seed(0)
    images = pipeline([1, 2], num_inference_steps=2, generator=generator, output_type="np").images
    assert images.shape == (2, 32, 32, 3)
    assert np.isfinite(images).all()


# Of how many factors they keep.
PIPELINES = {
    "wan/pipeline_wan": 2,
    "wan/pipeline_wan_vace": 2,
    "stable_diffusion_3/pipeline_stable_diffusion_3": 1,
    "hunyuan_video/pipeline_hunyuan_video": 2,
}


@pytest.mark.parametrize(
    ("architecture", "factor"),
    [({}, 8), ({"frontend": "haar", "folds": 1, "channel_multipliers": (1, 1, 2)}, 8),
     ({"frontend": "patch", "folds": 2, "channel_multipliers": (1, 1)}, 8), ({"channel_multipliers": (1, 2)}, 2)],
    ids=str,
)  # fmt: skip
def test_pipelines_read_the_factors(architecture: dict[str, Any], factor: int) -> None:
    """Of the config, of the number of levels, of attributes: by the lines of diffusers, which needs more to be run."""
    sizes = {"channel_multipliers": (1, 1, 2, 2), "encoder_blocks": 1, "decoder_blocks": 1, "norm_groups": 2}
    vae = DiffusersVAE(TemporalAutoencoder(4, **sizes | architecture), STATS)
    for name, count in PIPELINES.items():
        source = (Path(diffusers.__file__).parent / "pipelines" / f"{name}.py").read_text(encoding="utf-8")
        read = [
            eval(ast.unparse(node.value), {"self": SimpleNamespace(vae=vae)})
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Assign)
            and re.fullmatch(r"self\.vae_\w*(factor|ratio)\w*", ast.unparse(node.targets[0]))
        ]
        assert read == [factor] * count, name
        assert {key for key in re.findall(r"self\.vae\.config\.(\w+)", source) if key not in vae.config} == set(), name


@torch.no_grad()
def test_decode_keeps_as_many_frames_as_asked_for(model: TemporalAutoencoder, vae: DiffusersVAE) -> None:
    latents = torch.randn(1, 16, 2, 3, 3)
    assert torch.equal(vae.decode(latents, num_frames=11).sample, model.decode(latents)[:, :, :11])
    assert vae.decode(latents[:, :, 0], num_frames=1).sample.shape == (1, 3, 24, 24)
    for frames in (0, 17):
        with pytest.raises(ValueError, match=f"num_frames={frames} was asked of latents that hold 16"):
            vae.decode(latents, num_frames=frames)


def test_saving_and_making_another_of_the_same_kind(vae: DiffusersVAE, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    read = DiffusersVAE.from_pretrained(tmp_path)
    assert read.config == vae.config
    assert read.stats == vae.stats
    weights = read.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in vae.state_dict().items())
    other = DiffusersVAE.from_config(vae.config)
    assert other.model.architecture == vae.model.architecture
    assert other.config.scaling_factor == 1.0, "the statistics are of the weights, which are others"
