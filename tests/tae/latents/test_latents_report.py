"""The latents report against its definitions, written again as loops (tests/references/latents.py)."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tae.latents.probes import NOISE, Codec, aligned, probe
from tae.latents.report import latents_report, report_lines
from tae.latents.spectrum import BANDS, dct_matrix
from tae.latents.sums import LatentSums, neighbour_sums
from tae.latents.velocity import separable_eigenvalues, velocity_variance, velocity_variance_within
from tae.metrics.frame import psnr
from tae.model.frame_conversion import clip_to_frames
from tae.model.posterior import DiagonalGaussian
from tests.references import latents as reference

# All sums are in float64 over a few hundred values of about 1: rounding stays below 1e-10. A wrong bound of a band, a
# population in the place of a sample, or a forgotten mean changes any of these numbers by more than 1e-3.
EXACT = 1e-9


def clips(count: int = 3, channels: int = 3, offset: float = 2.0) -> list[Tensor]:
    """Latents (c, t', h', w') of several sizes, correlated among channels and neighbours, with a mean that is not 0."""
    sizes = [(2, 4, 6), (3, 5, 4), (4, 4, 4), (1, 4, 4)]
    found = []
    for i in range(count):
        t, h, w = sizes[i % len(sizes)]
        noise = torch.randn(channels, t, h, w, dtype=torch.float64)
        smooth = noise.mean(1, keepdim=True) + 0.5 * noise + 0.3 * noise.roll(1, 3)
        found.append(smooth * torch.arange(1, channels + 1).view(-1, 1, 1, 1) + smooth[:1] + offset)
    return found


def sums_of(latents: list[Tensor]) -> LatentSums:
    sums = LatentSums()
    for i, clip in enumerate(latents):
        sums.add(clip, key=f"c{i}")
    return sums


def arrays(latents: list[Tensor]) -> list[np.ndarray]:
    return [clip.numpy() for clip in latents]


def test_the_transform_is_orthonormal_and_its_first_row_the_mean():
    for size in (1, 2, 5, 8):
        matrix = dct_matrix(size)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)
        assert (matrix @ torch.ones(size, dtype=torch.float64))[0] == pytest.approx(math.sqrt(size))


def test_moments_rank_and_spectrum_follow_their_definitions():
    latents = clips(4)
    report = latents_report(sums_of(latents))
    rows = np.concatenate([clip.reshape(3, -1) for clip in arrays(latents)], axis=1)
    assert report["mean"] == pytest.approx(rows.mean(1).tolist(), abs=EXACT)
    assert report["std"] == pytest.approx(rows.std(1).tolist(), abs=EXACT)
    eigenvalues = np.linalg.eigvalsh(np.cov(rows, bias=True))[::-1]
    assert report["effective_rank"] == pytest.approx(reference.effective_rank(arrays(latents)), abs=1e-7)
    assert report["condition_number"] == pytest.approx(eigenvalues[0] / eigenvalues[-1], rel=1e-7)
    assert report["principal_energy"]["4"] == pytest.approx(1.0), "there are three channels"
    for part, name in ((0.25, "above_quarter"), (0.5, "above_half")):
        expected = reference.share_above(arrays(latents), part)
        assert report["spectrum"]["space"][name] == pytest.approx(expected, abs=EXACT)
        expected = reference.share_above_in_time(arrays(latents), part)
        assert report["spectrum"]["time"][name] == pytest.approx(expected, abs=EXACT)
    assert report["neighbour_correlation"] == pytest.approx(reference.neighbour_correlation(arrays(latents)), abs=EXACT)


def test_the_posteriors_part_of_the_deviation_is_added():
    sums = LatentSums()
    latents = torch.randn(2, 2, 4, 4).double()
    sums.add(latents, torch.full_like(latents, 0.5))
    report = latents_report(sums)
    assert report["posterior_std"] == pytest.approx([0.5, 0.5])
    expected = (latents.flatten(1).var(1, correction=0) + 0.25).sqrt().tolist()
    assert report["std"] == pytest.approx(expected)
    assert latents_report(sums_of([latents]))["posterior_std"] is None


def test_an_offset_and_a_scale_of_a_channel_change_nothing():
    """A generator trains on normalised latents: neither says how easily it learns."""
    latents = clips(9)
    changed = [clip * torch.tensor([3.0, 0.2, 1.0]).view(-1, 1, 1, 1) - 40 for clip in latents]
    first, second = (latents_report(sums_of(each)) for each in (latents, changed))
    assert first["spectrum"]["space"]["bands"] == pytest.approx(second["spectrum"]["space"]["bands"], abs=1e-7)
    for name in ("above_quarter", "above_half"):
        assert first["spectrum"]["space"][name] == pytest.approx(second["spectrum"]["space"][name], abs=1e-7)
    assert first["neighbour_correlation"] == pytest.approx(second["neighbour_correlation"], abs=1e-7)
    # Crops are kept in float32: 40 in place of 2 leaves them 4e-6 of rounding.
    assert first["velocity_variance"]["set"] == pytest.approx(second["velocity_variance"]["set"], abs=1e-4)


def test_sums_of_two_processes_are_those_of_one():
    latents = clips(9)
    whole, first, second = sums_of(latents), LatentSums(), LatentSums()
    for i, clip in reversed(list(enumerate(latents))):
        (first if i % 2 else second).add(clip, key=f"c{i}")
    first += second
    one, two = latents_report(whole), latents_report(first)
    assert two["effective_rank"] == pytest.approx(one["effective_rank"], abs=EXACT)
    assert two["velocity_variance"] == one["velocity_variance"], "crops are put in the order of their keys"
    assert two["positions"] == one["positions"]


def test_the_spectrum_is_compared_with_the_pictures_on_the_latents_grid():
    latents, frames = torch.randn(3, 2, 8, 8).double(), torch.randn(3, 2, 32, 32)
    sums = LatentSums()
    sums.add(latents, clip=frames)
    small = frames.unflatten(2, (8, 4)).unflatten(4, (8, 4)).mean((3, 5))
    expected = reference.log_spectral_distance([latents.numpy()], [small.double().numpy()])
    # The pictures are averaged in float32: shares of about 0.1 with an error of 1e-7 are 4e-6 dB.
    assert latents_report(sums)["spectrum"]["distance"] == pytest.approx(expected, abs=1e-4)
    same = LatentSums()
    same.add(small, clip=frames)
    assert latents_report(same)["spectrum"]["distance"] == pytest.approx(0, abs=1e-4)
    assert sum(latents_report(same)["spectrum"]["pictures"]["bands"]) == pytest.approx(1)
    assert len(latents_report(same)["spectrum"]["pictures"]["bands"]) == BANDS


def test_velocity_variance_is_the_integral_of_the_paper():
    """pi / 2 sum sqrt(lambda) against the integral over time, by the midpoint rule."""
    eigenvalues = np.array([0.04, 0.5, 1.0, 3.0])
    assert math.pi / 2 * np.sqrt(eigenvalues).mean() == pytest.approx(
        reference.irreducible_variance(eigenvalues), rel=1e-5
    )


def test_separable_eigenvalues_against_loops_and_against_the_truth():
    channels, positions = (torch.randn(n, n).double() for n in (3, 4))
    values = channels @ torch.randn(200, 3, 4, dtype=torch.float64) @ positions.T
    found = separable_eigenvalues(values).sort().values
    loops = torch.from_numpy(np.sort(reference.flip_flop(values.numpy())))
    # The ridge of 1e-6 and the end after 10 turns: seen 2e-5 of the largest. One turn alone is 1e-2 away.
    torch.testing.assert_close(found, loops, rtol=1e-3, atol=1e-4 * loops.max().item())
    truth = torch.outer(*(torch.linalg.eigvalsh(m @ m.T) for m in (channels, positions))).flatten().sort().values
    torch.testing.assert_close(found.sqrt().mean(), truth.sqrt().mean(), rtol=0.1, atol=0)  # of 200 samples


def test_velocity_variance_falls_with_order():
    """White noise has pi / 2; channels that repeat one another, smooth latents and alike ones have less."""
    white = torch.randn(400, 4, 8).double()
    assert velocity_variance(white) == pytest.approx(math.pi / 2, rel=0.03)  # 400 samples: eigenvalues spread a little
    repeated = white[:, :1].expand(-1, 4, -1) * 0.99 + 0.14 * white
    smooth = white.mean(2, keepdim=True) * math.sqrt(8) * 0.9 + 0.43 * white
    assert velocity_variance(repeated) < 0.65 * velocity_variance(white)  # by hand: 0.60, 0.70 and 0.43
    assert velocity_variance(smooth) < 0.8 * velocity_variance(white)
    labels = [str(i % 4) for i in range(400)]
    classes = torch.randn(4, 4, 8).double()
    labelled = 0.9 * classes[torch.arange(400) % 4] + 0.43 * white
    within = velocity_variance_within(labelled, labels)
    assert within is not None
    assert within[0] < 0.6 * velocity_variance(labelled)
    assert within[1] == 4
    assert velocity_variance_within(white[:6], ["a", "b", "c", "a", "", ""]) is None


@pytest.mark.parametrize("size", [(1, 4, 4), (2, 3, 5), (5, 2, 2), (1, 1, 1)])
def test_neighbourhoods_of_any_size(size):
    products, sums, pairs = neighbour_sums(torch.ones(2, *size).double())
    assert products.tolist() == [pairs, pairs]
    assert sums.tolist() == [2 * pairs, 2 * pairs]


class Mean(nn.Module):
    """Latents are 2x2x2 means: equivariant under every transform of the report, but for time."""

    time_factor = 2
    space_factor = 2

    def encode(self, clip: Tensor) -> DiagonalGaussian:
        frames = clip[:, :, ::2]
        mean = nn.functional.avg_pool3d(frames, (1, 2, 2))
        return DiagonalGaussian(mean, torch.full_like(mean, -4.0))

    def decode(self, latents: Tensor, num_frames: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        assert size is not None
        whole = latents.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
        return whole[:, :, :num_frames, : size[0], : size[1]]


class Positional(Mean):
    """Adds what depends on the place: a ramp from left to right, as large as the latents' deviation."""

    def encode(self, clip: Tensor) -> DiagonalGaussian:
        posterior = super().encode(clip)
        ramp = torch.linspace(-1, 1, posterior.mean.shape[-1])
        return DiagonalGaussian(posterior.mean + ramp, posterior.logvar)


def probed(codec: Codec, clip: Tensor):
    latents = codec.encode(clip).mode()[0].double()
    sums = sums_of([latents])
    return probe(codec, "a", clip, sums.channel_variance)


def test_equivariance_sees_a_place_in_the_latents():
    clip = torch.rand(1, 3, 8, 16, 16) * 2 - 1
    errors = probed(Mean(), clip).equivariance
    assert errors == pytest.approx(
        dict.fromkeys(("flip", "quarter_turn", "half_size", "time_reversal"), 0.0), abs=1e-10
    )
    errors = probed(Positional(), clip).equivariance
    assert errors["time_reversal"] == pytest.approx(0, abs=1e-10)
    # The difference is twice the ramp: its mean square over 2 variances, by hand.
    latents = Positional().encode(clip).mode()
    ramp = torch.linspace(-1, 1, 8)
    expected = ((2 * ramp).square().mean() / (2 * latents[0].flatten(1).var(1, correction=0))).mean().item()
    assert errors["flip"] == pytest.approx(expected, rel=1e-4)


def test_unrelated_latents_have_an_error_of_one():
    class Unrelated(Mean):
        def encode(self, clip: Tensor) -> DiagonalGaussian:
            posterior = super().encode(clip)
            return DiagonalGaussian(torch.randn_like(posterior.mean), posterior.logvar)

    # 3 x 5 x 32 x 32 values: the mean square is known to 1 in 90, of two channels' variances likewise.
    assert probed(Unrelated(), torch.rand(1, 3, 9, 64, 64)).equivariance["flip"] == pytest.approx(1, abs=0.05)


def test_decode_noise_is_the_error_of_the_decoder_and_the_noise():
    clip = torch.rand(1, 3, 5, 16, 16) * 1.6 - 0.8
    curve = probed(Mean(), clip).decode_noise
    latents = Mean().encode(clip).mode()
    plain = Mean().decode(latents, num_frames=5, size=(16, 16))
    assert curve[0] == pytest.approx(psnr(clip_to_frames(clip)[0], clip_to_frames(plain)[0]).mean().item(), abs=1e-4)
    assert len(curve) == len(NOISE)
    assert all(a > b for a, b in itertools.pairwise(curve)), "more noise, less PSNR"
    # Noise of 0.4 std adds its variance to the decoder's error, but for what is clamped and rounded.
    error = 10 ** (-curve[0] / 10) + (0.4 * latents[0].flatten(1).std(1, correction=0) / 2).square().mean().item()
    assert curve[-1] == pytest.approx(-10 * math.log10(error), abs=0.3)


@pytest.mark.parametrize(
    ("shape", "factors", "expected"),
    [
        ((32, 256, 256), (8, 8), (17, 256, 256)),
        ((16, 64, 72), (8, 8), (9, 64, 64)),
        ((16, 64, 72), (4, 8), (13, 64, 64)),
        ((5, 20, 20), (8, 8), (1, 16, 16)),
        ((5, 12, 12), (1, 8), (5, 8, 8)),
    ],
)
def test_what_of_a_clip_is_probed(shape, factors, expected):
    assert aligned(torch.zeros(1, 3, *shape), *factors).shape[2:] == expected


def test_the_report_is_plain_and_says_what_it_lacks():
    report = latents_report(sums_of([torch.randn(2, 1, 2, 2).double()]))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["spectrum"]["time"] is None
    assert report["velocity_variance"]["set"] is None
    assert report["reasons"].keys() == {
        "posterior_std", "spectrum.time", "spectrum.distance", "velocity_variance.set", "equivariance", "decode_noise"
    }  # fmt: skip
    lines = dict(report_lines(report))
    assert "energy above 1/4, 1/2 of the band in time" not in lines
    assert lines["measured on"] == "1 clips, 4 positions"


def test_constant_latents_end_in_no_division_by_zero():
    report = latents_report(sums_of([torch.full((2, 2, 4, 4), 0.3).double()] * 8))
    assert json.dumps(report, allow_nan=False)
    assert report["effective_rank"] is report["neighbour_correlation"] is report["spectrum"]["space"] is None
    assert "effective rank" not in dict(report_lines(report))
