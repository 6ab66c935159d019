"""Tiles against whole clips: equal where they must be, their seams measured where they cannot."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tae import TemporalAutoencoder
from tae.model.layers import Attention
from tae.model.posterior import DiagonalGaussian
from tae.model.streaming import decode_stream, encode_stream
from tae.model.temporal_conv import TemporalConv
from tae.model.tiling import (
    Tiling,
    Windows,
    blending_weights,
    decode_in_space,
    encode_in_space,
    even_tile,
    stitch,
)
from tae.planning.meter import Meter
from tae.runtime.errors import UserError
from tests.references.tiling import overlap_add_by_loops, seam_energy

# Float32 through some forty layers, whose kernels may sum in another order for another number of frames; values are
# about 1. A frame of a wrong tile is off by 0.01 or more.
TOLERANCE = 1e-5


@pytest.fixture
def model():
    return TemporalAutoencoder(base_channels=8, norm_groups=4, encoder_blocks=1, decoder_blocks=1).eval()


def disturb(*modules: nn.Module) -> None:
    """Let the temporal layers of these modules look at other frames, as training does."""
    for layer in (layer for module in modules for layer in module.modules()):
        if isinstance(layer, TemporalConv):
            nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.weight[0].numel()))
        if isinstance(layer, Attention) and layer.over == "time":
            nn.init.normal_(layer.output.weight, std=0.1)


def random_clip(t, h=16, w=16):
    return torch.rand(1, 3, t, h, w) * 2 - 1


def in_pieces(x, lengths):
    """Pieces of these lengths in turn until nothing is left."""
    start, pieces = 0, []
    while start < x.shape[2]:
        length = lengths[len(pieces) % len(lengths)]
        pieces.append(x[:, :, start : start + length])
        start += length
    return pieces


def windows(pieces, length, overlap, dim):
    cutter = Windows(length, overlap, dim)
    return [window for piece in pieces for window in cutter.push(piece)] + cutter.flush()


def encode(model, clip, tiling=None, pieces=(7, 1, 40)):
    return torch.cat([p.mean for p in encode_stream(model, in_pieces(clip, pieces), tiling)], 2)


def decode(model, latents, num_frames=None, size=None, tiling=None, pieces=(1, 5)):
    return torch.cat(list(decode_stream(model, in_pieces(latents, pieces), num_frames, size, tiling)), 2)


@pytest.mark.parametrize("t", [1, 5, 31, 32])
def test_one_tile_is_exactly_the_model(model, t):
    disturb(model)
    clip = random_clip(t, 13, 19)
    with torch.no_grad():
        posterior = model.encode(clip)
        decoded = model.decode(posterior.mean, num_frames=t, size=(13, 19))
    assert torch.equal(encode(model, clip), posterior.mean)
    assert torch.equal(decode(model, posterior.mean, t, (13, 19)), decoded)
    whole_frame = Tiling(tile_pixels=24, overlap_pixels=8)
    assert torch.equal(encode_in_space(model, clip, whole_frame).logvar, posterior.logvar)
    assert torch.equal(decode_in_space(model, posterior.mean, (13, 19), whole_frame)[:, :, :t], decoded)


@pytest.mark.parametrize("t", [33, 40, 64, 71])
def test_a_fresh_model_is_exact_at_any_length(model, t):
    """Its temporal layers look at one frame only, so nothing is lost at a tile's end."""
    clip = random_clip(t)
    with torch.no_grad():
        latents = model.encode(clip).mean
        expected = model.decode(latents, num_frames=t)
    torch.testing.assert_close(encode(model, clip), latents, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(decode(model, latents, t), expected, atol=TOLERANCE, rtol=0)


def test_encoding_is_exact_outside_the_reach_of_temporal_kernels(model):
    disturb(model.encoder.conv_in, model.encoder.levels[0])
    # conv_in 1, two convolutions of the block 2, downsampling 1: latent frame i reads pixel frames 8 i - 4 to 8 i + 4,
    # so of each tile only the first latent frame misses something.
    clip = random_clip(96)
    with torch.no_grad():
        whole = model.encode(clip).mean
    error = (encode(model, clip) - whole).abs().amax(dim=(0, 1, 3, 4))
    cut = [4, 8]
    assert error[cut].min() > 1e-2
    assert error[[i for i in range(12) if i not in cut]].max() < TOLERANCE


def test_decoding_is_exact_outside_the_reach_of_temporal_kernels(model):
    disturb(model.decoder.levels[-1], model.decoder.conv_out)
    reach = 3  # two convolutions of the last block and conv_out, at the full frame rate
    latents = torch.randn(1, 16, 12, 2, 2)
    with torch.no_grad():
        whole = model.decode(latents)
    error = (decode(model, latents, tiling=Tiling(overlap_pixel_frames=0)) - whole).abs().amax(dim=(0, 1, 3, 4))
    cut = [frame for seam in (32, 64) for frame in range(seam - reach, seam + reach)]
    assert error[[31, 32, 63, 64]].min() > 1e-3
    assert error[[i for i in range(96) if i not in cut]].max() < TOLERANCE


class Resampler:
    """A model that needs no memory of its own: the mean of 8x8x8 pixels, and each value repeated as often."""

    time_factor = space_factor = 8
    latent_channels = 3

    def encode(self, clip):
        mean = nn.functional.avg_pool3d(clip, 8)
        return DiagonalGaussian(mean, torch.zeros_like(mean))

    def decode(self, latents, size=None):
        return nn.functional.interpolate(latents, scale_factor=8)


@pytest.mark.parametrize(("tile_pixels", "most"), [(None, 2.6), (32, 3.1)])  # it was 4.5 and 5.3 without letting go
def test_only_a_few_tiles_are_held_at_once(tile_pixels, most):
    """Pieces beside the tile that they become, and half a tile for the next to be blended with; nothing else."""
    height, width, tiles = 64, 96, 5
    tile_bytes = 4 * 3 * 32 * height * width
    tiling = Tiling(tile_pixels=tile_pixels, overlap_pixels=8)
    model = Resampler()
    with Meter() as meter:
        clips = (torch.zeros(1, 3, 8, height, width) for _ in range(4 * tiles))
        latents = (posterior.mean for posterior in encode_stream(model, clips, tiling))
        frames = 0
        for clip in decode_stream(model, latents, size=(height, width), tiling=tiling):
            frames += clip.shape[2]
            del clip
    assert frames == 32 * tiles
    assert meter.peak < most * tile_bytes


def test_pieces_do_not_matter(model):
    disturb(model)
    clip = random_clip(75)
    latents = encode(model, clip, pieces=(75,))
    assert torch.equal(encode(model, clip, pieces=(1,)), latents)
    assert torch.equal(encode(model, clip, pieces=(32,)), latents)
    assert torch.equal(decode(model, latents, pieces=(1,)), decode(model, latents, pieces=(100,)))


@pytest.mark.parametrize("group_norm", ["frame", "clip"])
def test_blending_softens_the_seams_in_time(group_norm):
    model = TemporalAutoencoder(
        base_channels=8, norm_groups=4, encoder_blocks=1, decoder_blocks=1, group_norm=group_norm
    )
    disturb(model.decoder)
    latents = torch.randn(1, 16, 16, 2, 2)
    with torch.no_grad():
        whole = model.decode(latents)
    energy = {}
    for overlap in (0, 16):
        error = decode(model, latents, tiling=Tiling(overlap_pixel_frames=overlap)) - whole
        energy[overlap] = seam_energy(error[0].movedim(1, 0).numpy(), seams=list(range(32, 128, 32 - overlap)))
    # Cut hard, the error jumps at the seams several times harder than elsewhere; blended, it jumps no harder.
    assert energy[0] > 3.0
    assert energy[16] < 1.5


def test_blending_softens_the_seams_in_space(model):
    slope = torch.linspace(-1, 1, 16).view(1, 1, 1, 16, 1)  # a smooth picture, in which a seam is seen
    latents = torch.randn(1, 16, 1, 1, 1) + torch.randn(1, 16, 1, 1, 1) * slope.expand(-1, -1, -1, -1, 4)
    with torch.no_grad():
        whole = model.decode(latents)
    energy = {}
    for overlap, seams in ((0, [64]), (32, [48, 80])):  # two tiles both times, of 64 and of 80 rows
        tiling = Tiling(tile_pixels=64 + overlap // 2, overlap_pixels=overlap)
        error = decode(model, latents, tiling=tiling) - whole
        energy[overlap] = seam_energy(error[0, :, 0].movedim(1, 0).numpy(), seams)
    assert energy[0] > 2.0
    assert energy[32] < 1.0


@pytest.mark.parametrize(("t", "h", "w"), [(1, 8, 8), (9, 41, 70), (33, 24, 57), (50, 66, 17)])
def test_any_size_comes_back_whole(model, t, h, w):
    disturb(model)
    tiling = Tiling(tile_pixel_frames=16, overlap_pixel_frames=8, tile_pixels=32, overlap_pixels=8)
    clip = random_clip(t, h, w)
    latents = encode(model, clip, tiling)
    assert latents.shape[1:] == model.latent_shape(t, h, w)
    decoded = decode(model, latents, t, (h, w), tiling)
    assert decoded.shape == clip.shape
    assert decoded.isfinite().all()


def test_tiles_in_space_stay_close_to_the_whole(model):
    """They differ by normalisation and attention; a tile put in the wrong place would not correlate at all."""
    clip = random_clip(1, 96, 128)
    with torch.no_grad():
        whole = model.encode(clip).mean
    tiled = encode_in_space(model, clip, Tiling(tile_pixels=64, overlap_pixels=16)).mean
    assert torch.corrcoef(torch.stack([whole.flatten(), tiled.flatten()]))[0, 1] > 0.8


@pytest.mark.parametrize(("length", "overlap", "count"), [(4, 2, 9), (6, 3, 12), (5, 0, 10), (8, 1, 8), (4, 2, 3)])
def test_stitch_equals_overlap_add(length, overlap, count):
    x = torch.randn(count, 3)
    tiles = [tile + torch.randn(1) for tile in windows([x], length, overlap, dim=0)]
    expected = overlap_add_by_loops([tile.numpy().copy() for tile in tiles], overlap)
    got = torch.cat(list(stitch([tile.clone() for tile in tiles], overlap, dim=0)))
    assert len(got) == count
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)  # a few float32 roundings of values about 3


@pytest.mark.parametrize("overlap", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 23])
def test_what_is_cut_can_be_stitched(overlap, count):
    x = torch.randn(2, count)
    cut = list(windows(x.split(3, dim=1), 6, overlap, dim=1))
    assert all(tile.shape[1] == 6 for tile in cut[:-1])
    assert all(tile.shape[1] > overlap for tile in cut[1:])
    assert torch.equal(torch.cat(list(stitch((t.clone() for t in cut), overlap, dim=1)), 1), x)


def test_windows_are_given_as_soon_as_they_are_full():
    cutter = Windows(length=4, overlap=2, dim=0)
    assert [len(cutter.push(torch.zeros(1))) for _ in range(9)] == [0, 0, 0, 1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("length", [1, 2, 16])
def test_weights_are_a_ramp_and_its_mirror(length):
    weights = blending_weights(length)
    assert ((weights > 0) & (weights < 1)).all()
    torch.testing.assert_close(weights + weights.flip(0), torch.ones(length))
    torch.testing.assert_close(weights.diff(), torch.full((length - 1,), 1 / (length + 1)))


def test_tiles_of_one_axis_are_nearly_equal():
    assert even_tile(1080, tile=512, overlap=64, unit=8) == 408  # three tiles, not 512, 512 and 184
    for extent in range(72, 400, 8):
        length = even_tile(extent, tile=64, overlap=16, unit=8)
        sizes = [len(tile) for tile in windows([torch.zeros(extent)], length, 16, dim=0)]
        assert max(sizes) <= 64
        assert min(sizes) > max(sizes) - 8 * len(sizes)


@pytest.mark.parametrize(
    "tiling",
    [
        Tiling(tile_pixel_frames=20),
        Tiling(tile_pixels=64),
        Tiling(tile_pixels=100, overlap_pixels=8),
        Tiling(tile_pixels=64, overlap_pixels=-8),
    ],
)
def test_a_tiling_that_does_not_fit_is_refused(model, tiling):
    with pytest.raises(UserError, match="multiples of 8"):
        next(encode_stream(model, [random_clip(1)], tiling))


@pytest.mark.parametrize("overlap", [12, 32])
def test_the_overlap_in_time_counts_where_it_is_used(model, overlap):
    tiling = Tiling(overlap_pixel_frames=overlap)
    next(encode_stream(model, [random_clip(1)], tiling))
    with pytest.raises(UserError, match="multiples of 8"):
        next(decode_stream(model, [torch.randn(1, 16, 1, 1, 1)], tiling=tiling))


def test_more_frames_than_there_are_is_refused(model):
    with pytest.raises(ValueError, match="these latents hold 16"):
        decode(model, torch.randn(1, 16, 2, 1, 1), num_frames=17)


def test_nothing_gives_nothing(model):
    assert list(encode_stream(model, [])) == []
    assert list(decode_stream(model, [])) == []
