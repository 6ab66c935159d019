"""Streams: any pieces give the bits of one push, as early as is said, in memory that does not grow."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tae import DecoderStream, EncoderStream, TemporalAutoencoder, Tiling, TinyDecoder, UserError
from tae.model.codec import TileableCodec, TileableDecoder
from tae.model.posterior import DiagonalGaussian
from tae.planning.meter import Meter
from tests.tae.model.test_tiling import disturb

TILING = Tiling(tile_pixel_frames=16, overlap_pixel_frames=8, tile_pixels=24, overlap_pixels=8)
SIZE = (19, 30)  # two tiles in width, and padding both ways
MOST_FRAMES = 75


class Resampler:
    """A quick model whose every value depends on its whole tile, as with attention: a tile cut elsewhere shows."""

    time_factor = space_factor = 8
    latent_channels = 3

    def encode(self, clip: Tensor) -> DiagonalGaussian:
        padding = [pad for extent in reversed(clip.shape[2:]) for pad in (0, -extent % 8)]
        mean = F.avg_pool3d(F.pad(clip, padding, mode="replicate"), 8)
        return DiagonalGaussian(mean + 0.1 * mean.mean(), mean - clip.std(correction=0))

    def decode(self, latents: Tensor, num_frames: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        clip = F.interpolate(latents, scale_factor=8) + 0.1 * latents.mean()
        height, width = size or clip.shape[3:]
        return clip[:, :, :num_frames, :height, :width]


def network(kind: str) -> TemporalAutoencoder:
    """One whose temporal parts do something, as after training."""
    folding = {"frontend": "haar", "folds": 1, "norm": "rms"} if kind == "haar" else {}
    widths = (1, 1, 1) if folding else (1, 1, 1, 1)
    model = TemporalAutoencoder(4, widths, norm_groups=2, encoder_blocks=1, decoder_blocks=1, **folding)
    disturb(model)
    return model.eval()


def clip_of(num_frames: int, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.rand(1, 3, num_frames, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def encoded(model: TileableCodec, clip: Tensor, pieces: Sequence[int]) -> Tensor:
    """Mean and log variance, one after the other, of a clip that is pushed in pieces of these lengths."""
    stream = EncoderStream(model, TILING)
    parts = [posterior for piece in clip.split(list(pieces), 2) for posterior in stream.push(piece)] + stream.flush()
    return torch.cat([torch.cat([part.mean, part.logvar], 1) for part in parts], 2)


def decoded(model: TileableCodec, latents: Tensor, like: Tensor, pieces: Sequence[int]) -> Tensor:
    """A clip as long and large as `like`, its latents pushed in pieces of these lengths."""
    stream = DecoderStream(model, like.shape[2], (like.shape[3], like.shape[4]), TILING)
    clips = [clip for piece in latents.split(list(pieces), 2) for clip in stream.push(piece)]
    return torch.cat(clips + stream.flush(), 2)


@st.composite
def pieces_of(draw: st.DrawFn, extent: int) -> list[int]:
    """Lengths, of which some may be 0, that add up to `extent`."""
    cuts = sorted(draw(st.lists(st.integers(0, extent), max_size=extent)))
    return [end - start for start, end in zip([0, *cuts], [*cuts, extent], strict=True)]


@given(data=st.data(), num_frames=st.integers(1, MOST_FRAMES))
@settings(max_examples=20, deadline=None)
def test_any_pieces_give_the_bits_of_one_push(data: st.DataObject, num_frames: int) -> None:
    model, clip = Resampler(), clip_of(num_frames)
    moments = encoded(model, clip, [num_frames])
    assert torch.equal(encoded(model, clip, data.draw(pieces_of(num_frames))), moments)
    latents = moments[:, :3]
    whole = decoded(model, latents, clip, [latents.shape[2]])
    assert whole.shape == clip.shape
    assert torch.equal(decoded(model, latents, clip, data.draw(pieces_of(latents.shape[2]))), whole)


@pytest.mark.parametrize("kind", ["conv", "haar"])
def test_so_they_do_with_networks(kind: str) -> None:
    model, clip = network(kind), clip_of(37, (17, 24))
    moments = encoded(model, clip, [37])
    assert torch.equal(encoded(model, clip, [1, 15, 3, 9, 9]), moments)
    latents = moments[:, :16]
    whole = decoded(model, latents, clip, [5])
    assert torch.equal(decoded(model, latents, clip, [1, 1, 1, 1, 1]), whole)
    with torch.no_grad():  # of a tile each, so it is exactly the model's
        assert torch.equal(encoded(model, clip[:, :, :13], [7, 6])[:, :16], model.encode(clip[:, :, :13]).mean)
        reconstruction = model.decode(latents[:, :, :2], num_frames=13, size=(17, 24))
    assert torch.equal(decoded(model, latents[:, :, :2], clip[:, :, :13], [1, 1]), reconstruction)


@pytest.mark.parametrize("overlap", [0, 8, 24])
def test_the_latency_is_what_is_said(overlap: int) -> None:
    """The longest wait for a latent, and for a frame; never longer, and reached."""
    tiling = Tiling(tile_pixel_frames=32, overlap_pixel_frames=overlap)
    encoder, decoder = EncoderStream(Resampler(), tiling), DecoderStream(Resampler(), tiling=tiling)
    waits: dict[str, list[int]] = {"latents": [], "frames": []}
    latents = 0
    for frame in range(32 * 4):
        for posterior in encoder.push(torch.zeros(1, 3, 1, 8, 8)):
            waits["latents"] += [frame - 8 * (latents + i) for i in range(posterior.mean.shape[2])]
            latents += posterior.mean.shape[2]
    given = 0
    for latent in range(16):
        for clip in decoder.push(torch.zeros(1, 3, 1, 1, 1)):
            waits["frames"] += [8 * (latent - (given + i) // 8) for i in range(clip.shape[2])]
            given += clip.shape[2]
    assert max(waits["latents"]) == encoder.latency == 31
    assert max(waits["frames"]) == decoder.latency == 24


def test_memory_does_not_grow_with_the_length() -> None:
    peaks = []
    for tiles in (3, 12):
        encoder, decoder = EncoderStream(Resampler()), DecoderStream(Resampler())
        with Meter() as meter:
            for _ in range(8 * tiles):
                for posterior in encoder.push(torch.zeros(1, 3, 4, 32, 32)):
                    decoder.push(posterior.mean)
        peaks.append(meter.peak)
    assert peaks[0] == peaks[1] > 0


def test_what_was_pushed_may_be_overwritten() -> None:
    """A camera has one buffer."""
    buffer, stream = torch.zeros(1, 3, 8, 16, 16), EncoderStream(Resampler(), Tiling(16, 0))
    given = []
    for value in (0.25, 0.5):
        given += stream.push(buffer.fill_(value))
    first, second = given[0].mean[0, 0, :, 0, 0].tolist()
    assert second - first == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("piece", "error", "message"),
    [
        (
            torch.zeros(1, 3, 2, 24, 16),
            ValueError,
            r"began with pieces \(1, 3, any, 16, 16\).*got \(1, 3, any, 24, 16\)",
        ),
        (torch.zeros(2, 3, 2, 16, 16), ValueError, r"got \(2, 3, any, 16, 16\)"),
        (torch.zeros(1, 3, 2, 16, 16).double(), ValueError, "float32 on cpu; got .* torch.float64"),
        (torch.zeros(1, 3, 2, 16, 16, dtype=torch.uint8), TypeError, "got torch.uint8. Use tae.frames_to_clip"),
        (torch.full((1, 3, 2, 16, 16), 255.0), ValueError, r"values in \[-1, 1\]; got 255 to 255"),
        (torch.full((1, 3, 2, 16, 16), torch.nan), ValueError, "got nan"),
        (torch.zeros(1, 3, 16, 16), ValueError, "add a time axis"),
        (torch.zeros(1, 3, 2, 4, 16), ValueError, "h, w >= 8"),
    ],
)
def test_frames_that_do_not_continue_a_stream_are_refused(piece: Tensor, error: type, message: str) -> None:
    stream = EncoderStream(Resampler())
    stream.push(torch.zeros(1, 3, 3, 16, 16))
    with pytest.raises(error, match=message):
        stream.push(piece)
    stream.push(torch.zeros(1, 3, 29, 16, 16))  # a refused piece leaves the stream as it was
    assert stream.flush() == []


@pytest.mark.parametrize(
    ("piece", "error", "message"),
    [
        (torch.zeros(1, 3, 2, 3, 2), ValueError, r"began with pieces \(1, 3, any, 2, 2\).*got \(1, 3, any, 3, 2\)"),
        (torch.zeros(1, 4, 2, 2, 2), ValueError, r"takes latents \(b, 3, t, h, w\)"),
        (torch.zeros(1, 3, 2, 2, 2, dtype=torch.int64), TypeError, "got torch.int64"),
    ],
)
def test_latents_that_do_not_continue_a_stream_are_refused(piece: Tensor, error: type, message: str) -> None:
    stream = DecoderStream(Resampler())
    stream.push(torch.zeros(1, 3, 1, 2, 2))
    with pytest.raises(error, match=message):
        stream.push(piece)


def test_a_flushed_stream_has_ended() -> None:
    for stream, piece in ((EncoderStream(Resampler()), torch.zeros(1, 3, 3, 8, 8)),
                          (DecoderStream(Resampler()), torch.zeros(1, 3, 1, 1, 1))):  # fmt: skip
        stream.push(piece)
        assert len(stream.flush()) == 1
        for again in (lambda: stream.push(piece), stream.flush):  # noqa: B023
            with pytest.raises(ValueError, match=r"was flushed, which ends it\. Make a new one for each video"):
                again()


def test_no_more_frames_than_are_wanted() -> None:
    stream = DecoderStream(Resampler(), num_frames=20)
    given = [clip.shape[2] for _ in range(12) for clip in stream.push(torch.zeros(1, 3, 1, 1, 1))]
    assert given == [16, 4]
    assert stream.flush() == []
    short = DecoderStream(Resampler(), num_frames=20)
    short.push(torch.zeros(1, 3, 2, 1, 1))
    with pytest.raises(ValueError, match="num_frames=20 was asked for; these latents hold 16"):
        short.flush()


@pytest.mark.parametrize(
    "wanted", [{"num_frames": 0}, {"num_frames": -1}, {"size": (0, 16)}, {"size": (16, -1)}], ids=str
)
def test_nothing_to_give_is_refused_when_the_stream_is_made(wanted: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give 1 or more, or None for all"):
        DecoderStream(Resampler(), **wanted)


@pytest.mark.parametrize("tile_pixels", [None, 16])
@pytest.mark.parametrize("model", [Resampler(), TinyDecoder(latent_channels=3, width=4, blocks=1)])
@pytest.mark.parametrize("size", [(40, 40), (16, 17)])
def test_latents_that_hold_less_than_is_wanted_are_refused_at_once(
    model: TileableDecoder, size: tuple[int, int], tile_pixels: int | None
) -> None:
    tiling = Tiling(tile_pixels=tile_pixels, overlap_pixels=8)
    with pytest.raises(ValueError, match=r"size=.* was asked for; these latents hold \(16, 16\)"):
        DecoderStream(model, size=size, tiling=tiling).push(torch.zeros(1, 3, 1, 2, 2))


def test_a_tiling_that_does_not_fit_is_refused_when_the_stream_is_made() -> None:
    EncoderStream(Resampler(), Tiling(overlap_pixel_frames=12))  # which encoding does not look at
    for make in (
        lambda: EncoderStream(Resampler(), Tiling(20)),
        lambda: DecoderStream(Resampler(), tiling=Tiling(32, 12)),
    ):
        with pytest.raises(UserError, match="multiples of 8"):
            make()
