"""Autoencoders of diffusers, small and with random weights, through the interface and the evaluation of ours."""

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file, save_file

from tae import UserError
from tae.evaluation.run import evaluate
from tae.model.diffusers.autoencoder import DiffusersAutoencoder
from tae.model.diffusers.families import FAMILIES
from tae.model.diffusers.grid import Axis
from tae.model.diffusers.loading import WEIGHTS_FILE
from tae.model.pretrained import load_autoencoder
from tae.model.trainable import freeze_all_but
from tests.fakes.diffusers_models import SMALL, make

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
ROOT = Path(__file__).parents[3]
VARIANCELESS = {"AutoencoderDC", "AutoencoderKLCosmos", "AutoencoderKLKVAEVideo"}
OWN_PIXELS = {"AutoencoderKLMiniMaxH3"}
EACH = [pytest.param(name, marks=pytest.mark.slow) if name.endswith("Allegro") else name for name in SMALL]


def test_every_class_has_a_case() -> None:
    assert set(SMALL) == set(FAMILIES)


@pytest.mark.parametrize("name", SMALL)
def test_a_class_that_is_first_built_without_weights_has_its_constants(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a new process, where a check before training builds the first one on the meta device."""
    module = getattr(diffusers, name).__module__
    monkeypatch.delitem(sys.modules, module)
    for place in (diffusers, diffusers.models, diffusers.models.autoencoders):
        monkeypatch.delitem(vars(place), name, raising=False)
    with torch.device("meta"):
        DiffusersAutoencoder.from_config(name, SMALL[name][0])
    model = DiffusersAutoencoder.from_config(name, SMALL[name][0])
    assert [key for key, buffer in model.named_buffers() if buffer.is_meta] == []


@pytest.mark.parametrize("name", EACH)
def test_sizes_calls_and_gradients_are_the_classes_own(name: str) -> None:
    """A clip that fits comes back in its size, equal bit for bit to diffusers' own forward; every weight gets a gradient."""
    _, size, latents = SMALL[name]
    vae = make(name)
    model = DiffusersAutoencoder(vae)
    clip = torch.rand(1, 3, *size) * 2 - 1
    assert model.grid.misfits(*size) == []
    out = model(clip, sample_posterior=False)
    assert out.latents.shape[1:] == latents == model.latent_shape(*size)
    assert out.reconstruction.shape == clip.shape
    (out.reconstruction.square().mean() + out.posterior.kl().mean()).backward()
    silent = [key for key, parameter in vae.named_parameters() if parameter.grad is None]
    assert silent == []
    assert model.last_layer.grad is not None
    assert model.is_gaussian == (name not in VARIANCELESS)
    assert (out.posterior.logvar.max() > -30) == model.is_gaussian
    if name in OWN_PIXELS:
        return
    with torch.no_grad():
        if model.family.images_only:
            theirs = vae(clip[0].movedim(1, 0)).sample.movedim(0, 1)[None]
        else:
            whole = vae(clip, **({} if name != "AutoencoderVidTok" else {"sample_posterior": False}))
            theirs = whole.sample.movedim(1, 2) if name.endswith("Allegro") else whole.sample
    assert torch.equal(out.reconstruction, theirs)


@pytest.mark.parametrize("name", ["AutoencoderDC", "AutoencoderKLLTXVideo", "AutoencoderKLWan"])
def test_a_clip_that_does_not_fit_is_padded_and_trimmed(name: str) -> None:
    """As a clip padded by indexing, equal bit for bit."""
    model = DiffusersAutoencoder(make(name))
    clip = torch.rand(2, 3, 6, 35, 40) * 2 - 1
    wanted = model.grid.padded(6, 35, 40)
    assert model.grid.misfits(*wanted) == []
    t, y, x = (torch.arange(want).clamp(max=have - 1) for want, have in zip(wanted, (6, 35, 40), strict=True))
    with torch.inference_mode():
        ours = model(clip, sample_posterior=False).reconstruction
        theirs = model(clip[:, :, t][:, :, :, y][..., x], sample_posterior=False).reconstruction
    assert torch.equal(ours, theirs[:, :, :6, :35, :40])


def test_an_axis_names_what_it_takes() -> None:
    """By enumeration: 17k + 22, as MiniMax-H3."""
    axis = Axis(22, 17, latents=7, more=5)
    allowed = {22: 7, 39: 12, 56: 17}
    for length in range(1, 57):
        assert axis.takes(length) == (length in allowed)
        assert axis.at_least(length) == min(n for n in allowed if n >= length)
        assert axis.below(length) == max((n for n in allowed if n < length), default=None)
        assert axis.num_latents(length) == allowed[axis.at_least(length)]
    model = DiffusersAutoencoder(make("AutoencoderKLWan"))
    (found,) = model.grid.misfits(16, 64, 64)
    assert "16 frames" in found
    assert "13 and 17" in found


def test_pixels_of_minimax_are_normalised_as_imagenet() -> None:
    """Encoded is (x - mean) / std of [0, 1]; decoding undoes it, so that a decoder of zeros gives the mean colour."""
    model = DiffusersAutoencoder(make("AutoencoderKLMiniMaxH3"))
    torch.nn.init.zeros_(model.vae.decoder.proj_out.weight)
    torch.nn.init.zeros_(model.vae.decoder.proj_out.bias)
    clip = torch.rand(1, 3, 22, 32, 32) * 2 - 1
    colour = model(clip, sample_posterior=False).reconstruction[0, :, 0, 0, 0]
    assert torch.allclose((colour + 1) / 2, torch.tensor([0.485, 0.456, 0.406]), atol=1e-6)
    scaled = ((clip + 1) / 2 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1, 1)
    with torch.no_grad():
        assert torch.equal(model.encode(clip).mean, model.vae.encode(scaled).latent_dist.mean)


def test_gradients_through_caches_are_those_of_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wan works through a clip in pieces and keeps features: a directional difference sees them all, in float64.

    Its nearest-neighbour upsampling rounds to float32, which a difference over so small a step cannot take: for this test
    it computes in what it is given.
    """
    upsampling = importlib.import_module("diffusers.models.autoencoders.autoencoder_kl_wan").WanUpsample
    monkeypatch.setattr(upsampling, "forward", torch.nn.Upsample.forward)
    model = DiffusersAutoencoder(make("AutoencoderKLWan").double())
    clip = torch.rand(1, 3, 9, 16, 16, dtype=torch.float64) * 2 - 1
    parameters = list(model.parameters())
    direction = [torch.randn_like(p) for p in parameters]

    def value() -> torch.Tensor:
        return model.vae.decode(model.vae.encode(clip).latent_dist.mean).sample.square().mean()

    gradients = torch.autograd.grad(value(), parameters)
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    step, ends = 1e-6, []
    with torch.no_grad():
        for sign in (1, -2):
            for p, d in zip(parameters, direction, strict=True):
                p += sign * step * d
            ends.append(value())
    # A central difference errs by step^2 and by 1e-16 / step, relative to values near 1.
    assert math.isclose((ends[0] - ends[1]) / (2 * step), slope, rel_tol=1e-6)


def test_parts_alone_are_trained() -> None:
    model = DiffusersAutoencoder(make("AutoencoderKLWan"))
    freeze_all_but(model.vae, ["decoder.up_blocks", "decoder.*norm_out"])
    trained = {name for name, parameter in model.vae.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(name.startswith(("decoder.up_blocks.", "decoder.norm_out.")) for name in trained)
    assert model.last_layer.requires_grad
    with pytest.raises(UserError, match=r"decoder\.nothing names nothing\. There are .*decoder\.up_blocks"):
        freeze_all_but(model.vae, ["decoder.nothing"])


def test_a_decoder_that_denoises_is_asked_to_decode() -> None:
    vae = make("AutoencoderKLLTXVideo", timestep_conditioning=True)
    clip = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    with torch.inference_mode():
        ours = DiffusersAutoencoder(vae)(clip, sample_posterior=False).reconstruction
        theirs = vae.decode(vae.encode(clip).latent_dist.mode(), temb=torch.zeros(1)).sample
    assert torch.equal(ours, theirs)


SLOW = [name for name in SMALL if name != "AutoencoderKLWan" and not name.endswith("Allegro")]


@pytest.mark.parametrize("name", ["AutoencoderKLWan", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
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
    shape = DiffusersAutoencoder(make(name)).latent_shape(8, 32, 32)
    assert document["model"]["latents"] == list(shape)
    assert document["model"]["compression"] == pytest.approx(3 * 8 * 32 * 32 / math.prod(shape))
    assert ("were padded to" in document["model"]["input"]) == (not FAMILIES[name].images_only)
    assert document["checkpoint"]["sha256"] is not None
    latents = document["latents"]
    assert len(latents["mean"]) == shape[0]
    assert len(latents["decode_noise"]["psnr"]) == 5
    assert latents["equivariance"]["flip"] >= 0
    assert (max(latents["posterior_std"]) > 1e-5) == (name not in VARIANCELESS)
    assert document == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert name in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "index.html").is_file()


def refused(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_autoencoder(source)


@pytest.mark.parametrize(
    "source", ["diffusers:AutoencoderTiny:/x", "diffusers:os:/x", "diffusers:AutoencoderKLWan", "diffusers:"]
)
def test_other_classes_are_refused(source: str) -> None:
    refused(source, "Choose one of: AutoencoderDC, |give diffusers:CLASS:SOURCE")


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    refused(f"diffusers:AutoencoderKL:{tmp_path}/nothing", "no such folder")
    refused(f"diffusers:AutoencoderKL:{tmp_path}", "cannot be loaded")


def test_a_model_of_another_class_is_refused(tmp_path: Path) -> None:
    make("AutoencoderKL").save_pretrained(tmp_path)
    refused(f"diffusers:AutoencoderKLWan:{tmp_path}", "is of AutoencoderKL, not of AutoencoderKLWan")


def test_weights_that_fit_in_part_are_refused(tmp_path: Path) -> None:
    """diffusers fills what is missing at random and warns."""
    make("AutoencoderKL").save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS_FILE)
    del weights["decoder.conv_in.weight"]
    save_file(weights, tmp_path / WEIGHTS_FILE)
    refused(f"diffusers:AutoencoderKL:{tmp_path}", r"decoder\.conv_in\.weight")


@pytest.mark.parametrize(
    "settings", [{"layers_per_block": 2}, {"latent_channels": 2}, {"latent_channels": "x"}], ids=str
)
@pytest.mark.parametrize("prefix", ["diffusers:AutoencoderKL:", ""])
def test_a_damaged_config_is_refused(prefix: str, settings: dict[str, Any], tmp_path: Path) -> None:
    make("AutoencoderKL").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | settings))
    refused(f"{prefix}{tmp_path}", r"\A[^\n]* (cannot be loaded|do not fit together)[^\n]*\Z")


def test_without_diffusers_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    refused("diffusers:AutoencoderKL:a/b", "pip install diffusers")
