"""The model's contract: sizes, what it refuses, and exact behaviour around training."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from tae import TemporalAutoencoder, UserError
from tae.model.posterior import DiagonalGaussian

SMALL = {
    "base_channels": 8,
    "channel_multipliers": (1, 2, 2, 2),
    "norm_groups": 4,
    "encoder_blocks": 1,
    "decoder_blocks": 1,
}


def small(**changes: object) -> TemporalAutoencoder:
    return TemporalAutoencoder(**(SMALL | changes))  # type: ignore[arg-type]


def test_default_model_has_the_papers_size() -> None:
    with torch.device("meta"):
        model = TemporalAutoencoder()
    assert sum(parameter.numel() for parameter in model.parameters()) == 114_062_049
    spatial = sum(p.numel() for name, p in model.named_parameters() if ".temporal" not in name)
    assert spatial == 83_819_683  # the Stable Diffusion 3.5 image autoencoder


@pytest.mark.parametrize("frames", [*range(1, 18), 33])
def test_any_number_of_frames(frames: int) -> None:
    out = small()(torch.rand(1, 3, frames, 8, 8) * 2 - 1)
    assert out.reconstruction.shape == (1, 3, frames, 8, 8)
    assert out.latents.shape == (1, 16, -(-frames // 8), 1, 1)


@pytest.mark.parametrize(("height", "width"), list(itertools.product([8, 9, 15, 17], [8, 12, 23])))
def test_any_size(height: int, width: int) -> None:
    model = small()
    out = model(torch.rand(2, 3, 3, height, width) * 2 - 1)
    assert out.reconstruction.shape == (2, 3, 3, height, width)
    assert out.latents.shape == (2, *model.latent_shape(3, height, width))


def test_odd_sizes_are_padded_by_repeating_the_edge() -> None:
    model, clip = small(), torch.rand(1, 3, 2, 11, 13) * 2 - 1
    padded = torch.cat([clip, clip[..., -1:, :].expand(-1, -1, -1, 5, -1)], dim=3)
    padded = torch.cat([padded, padded[..., -1:].expand(-1, -1, -1, -1, 3)], dim=4)
    assert torch.equal(model.encode(clip).mean, model.encode(padded).mean)


def test_decode_gives_all_frames_or_the_first_ones() -> None:
    model, latents = small(), torch.randn(1, 16, 2, 2, 3)
    everything = model.decode(latents)
    assert everything.shape == (1, 3, 16, 16, 24)
    assert torch.equal(model.decode(latents, num_frames=9, size=(15, 20)), everything[:, :, :9, :15, :20])


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (torch.zeros(1, 3, 16, 16), "add a time axis"),
        (torch.zeros(1, 1, 4, 16, 16), "takes a clip"),
        (torch.zeros(1, 3, 4, 7, 16), "h, w >= 8"),
        (torch.zeros(1, 3, 0, 16, 16), "t >= 1"),
    ],
)
def test_encode_refuses_what_is_no_clip(clip: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small().encode(clip)


def test_encode_refuses_frames() -> None:
    with pytest.raises(TypeError, match="frames_to_clip"):
        small().encode(torch.zeros(1, 3, 4, 16, 16, dtype=torch.uint8))


def test_decode_refuses_more_than_there_is_and_other_channels() -> None:
    with pytest.raises(ValueError, match="these latents hold"):
        small().decode(torch.zeros(1, 16, 1, 1, 1), num_frames=9)
    with pytest.raises(ValueError, match=r"takes latents \(b, 16"):
        small().decode(torch.zeros(1, 4, 1, 1, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_norm": "batch"}, "frame, clip"),
        ({"temporal_init": "zero"}, "centric, random"),
        ({"temporal_padding": "reflect"}, "replicate, zeros"),
        ({"norm_groups": 3}, "Choose a divisor of 8"),
        ({"latent_channels": 0}, "positive integers"),
        ({"channel_multipliers": ()}, "positive integers"),
    ],
)
def test_impossible_architectures_are_refused(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(**change)


@pytest.mark.parametrize("group_norm", ["frame", "clip"])
def test_frame_normalisation_keeps_distant_frames_apart(group_norm: str) -> None:
    """Fresh temporal parts mix nothing, so only statistics over the clip let a last frame change the first latent."""
    model = small(group_norm=group_norm)
    clip = torch.rand(1, 3, 16, 16, 16) * 2 - 1
    changed = clip.clone()
    changed[:, :, -1] = -changed[:, :, -1]
    difference = (model.encode(clip).mean - model.encode(changed).mean)[:, :, 0].abs().max()
    assert (difference == 0) == (group_norm == "frame")


def test_batch_order_does_not_matter() -> None:
    model, clip = small(), torch.rand(3, 3, 5, 16, 16) * 2 - 1
    forward, backward = model.encode(clip).mean, model.encode(clip.flip(0)).mean.flip(0)
    torch.testing.assert_close(forward, backward, rtol=0, atol=1e-5)  # kernels may block a batch differently


def test_checkpointing_changes_no_gradient() -> None:
    model, clip = small(), torch.rand(1, 3, 5, 16, 16) * 2 - 1
    gradients = []
    for model.gradient_checkpointing in (False, True):
        model.zero_grad()
        model(clip, sample_posterior=False).reconstruction.square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_every_parameter_receives_a_gradient() -> None:
    model = small()
    nn.init.normal_(model.encoder.middle.temporal_attention.output.weight)  # at zero it would shield what is before it
    nn.init.normal_(model.decoder.middle.temporal_attention.output.weight)
    model(torch.rand(1, 3, 16, 16, 16) * 2 - 1).reconstruction.square().mean().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == [name for name in silent if name.endswith("key.bias")]  # softmax does not feel a key's offset


def test_saved_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model, clip = small(group_norm="clip", temporal_padding="zeros"), torch.rand(1, 3, 9, 16, 20) * 2 - 1
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    again = TemporalAutoencoder.from_pretrained(tmp_path)
    assert again.architecture == model.architecture
    assert torch.equal(again.encode(clip).mean, model.encode(clip).mean)


def test_temporal_convolutions_start_as_asked() -> None:
    """What is not temporal starts alike, the model of before is described as before, random weights fill all taps."""
    models = {}
    for init in ("centric", "random"):
        torch.manual_seed(0)
        models[init] = small(temporal_init=init)
    assert not {"temporal_init", "temporal_padding"} & models["centric"].architecture.keys()
    assert models["random"].architecture["temporal_init"] == "random"
    centric, random = (dict(model.named_parameters()) for model in models.values())
    for name, weight in random.items():
        if name.endswith(".temporal.weight"):
            bound = (3 * weight.shape[1]) ** -0.5  # of PyTorch's uniform distribution, 1 / sqrt(fan in)
            assert 0.9 * bound < weight.abs().max() <= bound or weight.numel() < 60
            assert weight.count_nonzero() == weight.numel()
        elif not name.endswith(".temporal.bias"):
            assert torch.equal(weight, centric[name]), name


def test_zeros_outside_change_what_a_trained_clip_begins_and_ends_with() -> None:
    """The identity looks at no neighbour, so a new model is the image autoencoder with either."""
    clip = torch.rand(1, 3, 16, 16, 16) * 2 - 1
    models = [small(temporal_padding=padding) for padding in ("replicate", "zeros")]
    models[1].load_state_dict(models[0].state_dict())
    torch.testing.assert_close(models[0].encode(clip).mean, models[1].encode(clip).mean, rtol=0, atol=1e-5)
    for name, parameter in models[0].named_parameters():
        if ".temporal." in name:
            nn.init.normal_(parameter, std=0.2)
    models[1].load_state_dict(models[0].state_dict())
    means = [model.encode(clip).mean for model in models]
    difference = (means[0] - means[1]).abs().amax((0, 1, 3, 4))
    assert difference[0] > 1e-3
    assert difference[-1] > 1e-3


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"size mismatch|Missing key"):
        TemporalAutoencoder.from_pretrained(tmp_path, base_channels=16)


def test_posterior_sampling_follows_the_generator() -> None:
    posterior = small().encode(torch.rand(1, 3, 8, 16, 16) * 2 - 1)
    first, second, other = (posterior.sample(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, posterior.mean + torch.exp(0.5 * posterior.logvar) * noise)


def test_posterior_noise_is_drawn_on_the_device_of_the_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipelines of diffusers hand over one of the CPU whatever the device of the latents; meta stands for CUDA."""
    devices, randn = [], torch.randn
    monkeypatch.setattr(torch, "randn", lambda *size, **how: devices.append(how["device"]) or randn(*size, **how))
    elsewhere = DiagonalGaussian(*torch.zeros(2, 1, 4, 1, 2, 2, device="meta"))
    assert elsewhere.sample(torch.Generator()).device.type == "meta"
    assert devices == [torch.device("cpu")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_of_another_type_decodes_what_it_encodes(dtype):
    model = TemporalAutoencoder(base_channels=8, norm_groups=4, encoder_blocks=1, decoder_blocks=1).to(dtype)
    clip = torch.zeros(1, 3, 8, 16, 16, dtype=dtype)
    assert model(clip).reconstruction.dtype == dtype  # though posteriors are float32


@pytest.mark.parametrize("wanted", [{"num_frames": 0}, {"num_frames": -3}, {"num_frames": 9}, {"size": (16, 17)}])
def test_what_latents_do_not_hold_is_refused_before_decoding(wanted, monkeypatch):
    model = TemporalAutoencoder(base_channels=8, norm_groups=4, encoder_blocks=1, decoder_blocks=1)
    monkeypatch.setattr(model.decoder, "forward", lambda latents: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="these latents hold"):
        model.decode(torch.zeros(1, 16, 1, 2, 2), **wanted)
