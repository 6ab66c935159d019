"""Networks that fold pixels first: the transform, the shortcuts, and the whole model behind the usual interface."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tae import TemporalAutoencoder, Tiling, UserError, decode_stream, encode_stream
from tae.model.folding import (
    AveragingDownsample,
    DuplicatingUpsample,
    Folding,
    Unfolding,
    channels_to_space,
    haar_bands,
    space_to_channels,
)
from tae.model.layers import RMSNorm
from tests.references.layers import haar_by_matrix, rms_norm_by_loops

SIZES = [(1, 1, 1), (2, 4, 6), (1, 5, 8), (7, 3, 9), (8, 8, 8)]
SMALL: dict[str, Any] = {
    "base_channels": 8, "channel_multipliers": (1, 2), "latent_channels": 4, "encoder_blocks": 1, "decoder_blocks": 1,
    "norm_groups": 2, "frontend": "haar", "folds": 2,
}  # fmt: skip
VARIANTS = [
    {},
    {"norm": "rms"},
    {"frontend": "patch"},
    {"folds": 1, "channel_multipliers": (1, 1, 4)},
    {"folds": 3, "channel_multipliers": (1,)},
    {"frontend": "conv", "folds": 0, "channel_multipliers": (1, 2, 2, 2), "norm": "rms"},
]


def small(**changes: Any) -> TemporalAutoencoder:
    return TemporalAutoencoder(**SMALL | changes).eval()


def without_convolution(layer: nn.Module) -> nn.Module:
    """Its shortcut alone."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_shortcut_leads_around_the_last_norm(part: str) -> None:
    """What the norm is given, through a 1x1 convolution, is in what the network gives; image networks have none."""
    network = getattr(small(), part)
    without_convolution(network.conv_out)
    seen: list[torch.Tensor] = []
    network.norm_out.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    network.conv_out.register_forward_hook(lambda module, given, out: seen.append(out))
    with torch.no_grad():
        network(torch.randn(2, 3 if part == "encoder" else 4, 8, 16, 24))
    weight, bias = network.shortcut_out.weight[:, :, 0, 0], network.shortcut_out.bias
    expected = torch.einsum("oc,bcthw->bothw", weight, seen[0]) + bias[:, None, None, None]
    torch.testing.assert_close(seen[1], expected)
    full = small(frontend="conv", folds=0, channel_multipliers=(1, 1, 1, 1))
    assert not any("shortcut_out" in name for name in full.state_dict())


def test_bands_are_those_of_the_matrix() -> None:
    x = torch.randn(2, 3, 4, 6, 8, dtype=torch.double)
    bands = torch.stack(haar_bands(x)).numpy()
    np.testing.assert_allclose(bands, haar_by_matrix(x.numpy()), rtol=0, atol=1e-14)
    assert np.square(bands).sum() == pytest.approx(x.square().sum().item())  # orthonormal


@pytest.mark.parametrize(("size", "levels", "frontend"), list(product(SIZES, [1, 2], ["haar", "patch"])))
def test_unfolding_is_the_exact_inverse(size: tuple[int, ...], levels: int, frontend: str) -> None:
    """Of the module, which unfolds in float32: eight values a level round by 1e-6 at most."""
    x = torch.randn(2, 3, *size)
    folded = Folding(frontend, levels)(x)
    assert folded.shape == (2, 3 * 8**levels, *(-(-side // 2**levels) for side in size))
    t, h, w = size
    torch.testing.assert_close(Unfolding(frontend, levels)(folded)[:, :, :t, :h, :w], x, rtol=0, atol=5e-6)


def test_folding_takes_each_pixel_to_its_channel() -> None:
    x = torch.arange(2 * 3 * 2 * 4 * 6.0).reshape(2, 3, 2, 4, 6)
    folded = space_to_channels(x)
    for c, t, y, z in product(range(3), range(2), range(2), range(2)):
        assert torch.equal(folded[:, (4 * t + 2 * y + z) * 3 + c], x[:, c, t::2, y::2, z::2])
    assert torch.equal(channels_to_space(folded), x)


def test_the_shortcut_averages_each_cell() -> None:
    x = torch.randn(2, 4, 5, 7, 8)
    even = torch.cat([x, x[:, :, -1:]], 2)
    even = torch.cat([even, even[:, :, :, -1:]], 3)
    torch.testing.assert_close(without_convolution(AveragingDownsample(4, 4))(x), F.avg_pool3d(even, 2))


def test_the_shortcut_repeats_each_value() -> None:
    x = torch.randn(2, 4, 3, 5, 2)
    assert torch.equal(without_convolution(DuplicatingUpsample(4, 4))(x), F.interpolate(x, scale_factor=2))


@pytest.mark.parametrize("growth", [1, 2, 4, 8])
def test_the_shortcuts_lose_nothing_that_has_a_channel(growth: int) -> None:
    """Down after up is the identity, so the other way about is a projection: all is kept with 8 times the channels."""
    x = torch.randn(1, 3 * growth, 2, 3, 4)
    down, up = (
        without_convolution(layer) for layer in (AveragingDownsample(3, 3 * growth), DuplicatingUpsample(3 * growth, 3))
    )
    torch.testing.assert_close(down(up(x)), x)


def test_rms_norm_is_its_definition() -> None:
    layer, x = RMSNorm(6, silu=False), torch.randn(2, 6, 3, 4, 5)
    nn.init.normal_(layer.weight)
    expected = rms_norm_by_loops(x.double().numpy(), layer.weight.detach().double().numpy())
    torch.testing.assert_close(layer(x).double(), torch.from_numpy(expected), rtol=0, atol=1e-5)
    torch.testing.assert_close(RMSNorm(6, silu=True)(x), F.silu(RMSNorm(6, silu=False)(x)))


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_the_interface_is_that_of_every_network(changes: dict[str, Any], tmp_path: Path) -> None:
    model = small(**changes)
    assert (model.time_factor, model.space_factor) == (8, 8)
    for frames, height, width in ((1, 8, 9), (9, 17, 24), (16, 16, 16)):
        clip = torch.rand(1, 3, frames, height, width) * 2 - 1
        out = model(clip, sample_posterior=False)
        assert out.reconstruction.shape == clip.shape
        assert out.latents.shape[1:] == model.latent_shape(frames, height, width)
    model.save_pretrained(tmp_path)
    again = TemporalAutoencoder.from_pretrained(tmp_path)
    assert torch.equal(again(clip, sample_posterior=False).reconstruction, out.reconstruction)
    assert again.architecture == model.architecture


@pytest.mark.parametrize("changes", VARIANTS[:4], ids=str)
def test_every_parameter_learns(changes: dict[str, Any]) -> None:
    model = small(**changes).train()
    out = model(torch.rand(1, 3, 16, 16, 16) * 2 - 1)
    (out.reconstruction.abs().mean() + out.posterior.kl().mean()).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    # What comes before a projection that starts at zero has no gradient in the first step.
    assert all("temporal_attention" in name for name in silent), silent


def test_one_tile_is_the_whole_and_several_are_close() -> None:
    model, clip = small(norm="rms"), torch.rand(1, 3, 32, 16, 16) * 2 - 1
    whole = model(clip, sample_posterior=False)
    tiling = Tiling(tile_pixel_frames=32, overlap_pixel_frames=16)
    latents = torch.cat([posterior.mean for posterior in encode_stream(model, [clip], tiling)], 2)
    assert torch.equal(latents, whole.posterior.mean)
    assert torch.equal(torch.cat(list(decode_stream(model, [latents], tiling=tiling)), 2), whole.reconstruction)


def test_an_image_is_the_clip_that_repeats_it() -> None:
    """Every fold and convolution repeats the frame at the end, so an image need not cost eight frames."""
    model, image = small(), torch.rand(1, 3, 1, 16, 16) * 2 - 1
    video = model.encode(image.expand(-1, -1, 8, -1, -1)).mean
    torch.testing.assert_close(model.encode(image).mean, video)


def test_the_network_of_before_is_described_as_before(tmp_path: Path) -> None:
    TemporalAutoencoder(8, (1, 1), 4, 1, 1, 2).save_pretrained(tmp_path)
    assert not {"norm", "frontend", "folds"} & set(json.loads((tmp_path / "config.json").read_text()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frontend": "wavelet"}, "frontend='wavelet' is unknown"),
        ({"norm": "layer"}, "norm='layer' is unknown"),
        ({"folds": 0}, "folds=0 is not allowed"),
        ({"frontend": "conv"}, "folds=2 is not allowed"),
        ({"channel_multipliers": (1, 3)}, "1, 2, 4 or 8 times"),
        ({"channel_multipliers": (2, 1)}, "1, 2, 4 or 8 times"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(**changes)


def test_no_image_autoencoder_fits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image_vae=null"):
        TemporalAutoencoder.from_image_vae(tmp_path, **SMALL)
