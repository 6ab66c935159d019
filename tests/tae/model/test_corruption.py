"""What latents go through in training: its size, that it is off in use, and what it is for."""

import pytest
import torch
from torch import Tensor, nn

from tae import TemporalAutoencoder, UserError
from tae.model.corruption import LatentCorruption, make_corruption

SMALL = {"channel_multipliers": (1, 1, 1, 2), "encoder_blocks": 1, "decoder_blocks": 1, "norm_groups": 2}


def test_noise_is_drawn_for_each_clip_in_deviations_of_the_channel() -> None:
    latents = torch.randn(64, 2, 2, 8, 8) * torch.tensor([1.0, 10.0]).view(1, 2, 1, 1, 1)
    added = (LatentCorruption(2, noise=0.4)(latents) - latents).std(dim=(2, 3, 4))  # (clip, channel)
    scales = added / torch.tensor([1.0, 10.0])
    torch.testing.assert_close(scales[:, 0], scales[:, 1], rtol=0.3, atol=0.02)  # of 128 values each
    assert scales.max() < 0.47
    assert scales.min() < 0.06
    assert scales.mean().item() == pytest.approx(0.2, abs=0.05)


def test_masked_positions_are_the_token_in_all_channels() -> None:
    corruption = LatentCorruption(3, mask=0.25)
    with torch.no_grad():
        corruption.token.copy_(torch.tensor([7.0, 8.0, 9.0]))
    latents = torch.randn(4, 3, 2, 16, 16)
    found = corruption(latents)
    masked = found[:, 0] == 7
    assert masked.float().mean().item() == pytest.approx(0.25, abs=0.03)
    expected = torch.where(masked[:, None], corruption.token.view(1, 3, 1, 1, 1), latents)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert corruption.token.grad.tolist() == [masked.sum().item()] * 3


def test_a_prefix_of_channels_is_kept_for_each_clip() -> None:
    found = LatentCorruption(16, prefixes=[4, 8, 16])(torch.ones(300, 16, 1, 2, 2))
    kept = found[:, :, 0, 0, 0].sum(1)
    assert all((found[n, : int(k)] == 1).all() and (found[n, int(k) :] == 0).all() for n, k in enumerate(kept))
    counts = [(kept == k).sum().item() for k in (4, 8, 16)]
    assert sum(counts) == 300
    assert min(counts) > 70  # each in a third of the clips; 70 is four standard deviations away


def test_it_acts_in_training_alone_and_what_is_regularised_is_the_sample() -> None:
    model = TemporalAutoencoder(4, **SMALL)
    model.corruption = LatentCorruption(16, noise=1.0, mask=0.5, prefixes=[4, 16])
    clip = torch.rand(1, 3, 8, 16, 16)
    plain = TemporalAutoencoder(4, **SMALL)
    plain.load_state_dict(model.state_dict(), strict=False)
    outs = [net(clip, sample_posterior=False) for net in (model, plain)]
    assert torch.equal(outs[0].latents, outs[1].latents)
    assert not torch.equal(outs[0].reconstruction, outs[1].reconstruction)
    with torch.no_grad():
        assert torch.equal(model.eval()(clip, False).reconstruction, plain.eval()(clip, False).reconstruction)


def test_it_is_drawn_again_from_the_same_seed() -> None:
    corruption, latents, found = LatentCorruption(16, 0.3, 0.3, [8, 16]), torch.randn(2, 16, 2, 4, 4), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(corruption(latents))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def trained(corruption: LatentCorruption | None, data: Tensor) -> tuple[nn.Linear, nn.Linear]:
    """A linear autoencoder with eight channels of data of eight directions that differ in size."""
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-2)
    for _ in range(150):
        latents = encoder(data)[:, :, None, None, None]
        latents = latents if corruption is None else corruption(latents)
        loss = (decoder(latents.flatten(1)) - data).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder, decoder


@torch.no_grad()
def test_latents_that_lost_channels_in_training_can_be_cut() -> None:
    data = torch.randn(256, 8) * 2.0 ** -torch.arange(8)
    errors = []
    for corruption in (None, LatentCorruption(8, prefixes=[2, 4, 8])):
        with torch.enable_grad():
            encoder, decoder = trained(corruption, data)
        latents = encoder(data)
        latents[:, 2:] = 0
        errors.append((decoder(latents) - data).square().mean().item())
    best = data[:, 2:].square().sum(1).mean().item() / 8  # of two directions, the two largest
    assert errors[1] < 1.5 * best < 0.3 * errors[0], (errors, best)


@torch.no_grad()
def test_a_decoder_that_had_noise_in_training_loses_less_to_it() -> None:
    data = torch.randn(256, 8) * 2.0 ** -torch.arange(8)
    lost = []
    for corruption in (None, LatentCorruption(8, noise=1.0)):
        with torch.enable_grad():
            encoder, decoder = trained(corruption, data)
        latents = encoder(data)
        noisy = latents + 0.5 * latents.std(0) * torch.randn_like(latents)
        lost.append((decoder(noisy) - data).square().mean().item())
    assert lost[1] < 0.8 * lost[0], lost


def test_nothing_that_is_off_is_there() -> None:
    assert make_corruption(16, 0.0, 0.0, None) is None
    assert list(LatentCorruption(16, noise=0.1).parameters()) == []


@pytest.mark.parametrize("prefixes", [[], [8, 4], [0, 4], [4, 32], [4, 4]])
def test_prefixes_that_are_none_are_refused(prefixes: list[int]) -> None:
    with pytest.raises(UserError, match=r"give rising numbers from 1 to 16.*\[4, 8, 16\]"):
        LatentCorruption(16, prefixes=prefixes)
